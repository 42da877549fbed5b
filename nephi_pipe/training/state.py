"""What a training needs to go on exactly, in one file that is replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputDataError, UsageError
from ..field.model import NePhiModel
from .checkpoint import read_tensors, write_tensors
from .config import TrainingConfig

STATE, STATE_FORMAT = 'training.safetensors', 'nephi-training-2'

_MOMENTS = ('step', 'exp_avg', 'exp_avg_sq')


class State:
    """Weights, their moving average, Adam's moments, and where the training is.

    Parameters
    ----------
    folder
        Where the file is.
    model, average, optimiser
        What is saved and restored.
    config, data
        What the training is; another one is not continued.

    Attributes
    ----------
    step
        Steps that were made.
    rows
        Losses of the steps of the epoch that is not over.
    history
        A row for each epoch.
    best
        The row of the best validation so far; empty when there was none.
    started_from
        Checksum of the weights that it started from, '' for none.
    coarse
        That of the coarse stage that it was given.
    """

    def __init__(
        self,
        folder: Path,
        model: NePhiModel,
        average: NePhiModel,
        optimiser: Any,
        config: TrainingConfig,
        data: list[dict[str, str]],
    ) -> None:
        self.path = folder / STATE
        self.model, self.average, self.optimiser = model, average, optimiser
        self.config, self.data, self.started_from = config, data, ''
        self.coarse = ''
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}

    def save(self) -> None:
        """Write the file; what was there before stays until the new one is complete."""
        tensors = {f'model.{name}': value for name, value in self.model.state_dict().items()}
        averages = self.average.state_dict().items()
        tensors |= {f'average.{name}': value for name, value in averages}
        for index, moments in self.optimiser.state_dict()['state'].items():
            tensors |= {f'adam.{index}.{name}': value for name, value in moments.items()}
        header = {
            **self._identity(),
            'step': self.step,
            'rows': self.rows,
            'history': self.history,
            'best': self.best,
        }
        write_tensors(self.path, STATE_FORMAT, header, tensors)

    def restore(self) -> None:
        """Take over where an earlier run of the same training stopped.

        Raises
        ------
        UsageError
            It had other settings or images, or went beyond the epochs that are asked for.
        InputDataError
            The file is damaged, or does not hold what its header says.
        """
        header, tensors = read_tensors(self.path, STATE_FORMAT)
        try:
            self._check_header(header)
            self._take_over(tensors)
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise InputDataError(
                f'"{self.path}" does not hold what its header says '
                f'({str(error).splitlines()[0]}); expected the file as it was written. Remove it '
                'and train anew.'
            ) from error
        self.step, self.rows = header['step'], header['rows']
        self.history, self.best = header['history'], header['best']

    def _take_over(self, tensors: dict[str, Tensor]) -> None:
        """Weights and Adam's moments; any error where they are not those of this training."""
        parts: dict[str, dict[str, Tensor]] = {'model': {}, 'average': {}, 'adam': {}}
        for name, value in tensors.items():
            kind, rest = name.split('.', 1)
            parts[kind][rest] = value
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts['adam'].items():
            index, key = name.split('.')
            moments.setdefault(int(index), {})[key] = value
        parameters = list(self.model.parameters())
        for index, found in moments.items():
            shapes = {name: value.shape for name, value in found.items()}
            shape = parameters[index].shape if 0 <= index < len(parameters) else None
            if shapes != dict(zip(_MOMENTS, (torch.Size(()), shape, shape), strict=True)):
                raise ValueError(f'the moments {index} do not fit the architecture')
        self.model.load_state_dict(parts['model'])
        self.average.load_state_dict(parts['average'])
        groups = self.optimiser.state_dict()['param_groups']
        self.optimiser.load_state_dict({'state': moments, 'param_groups': groups})

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        config = self.config.as_dict()
        return {
            'architecture': self.model.config.as_dict(),
            'settings': self.config.training.identity,
            'loss': config['loss'],
            'augmentation': config['augmentation'],
            'data': self.data,
            'started_from': self.started_from,
            **({'coarse': self.coarse} if self.coarse else {}),
        }

    def _check_header(self, header: Mapping[str, Any]) -> None:
        for name in ('history', 'rows'):
            rows = header[name]
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError(f'its {name} is no list of rows')
        step, length = header['step'], self.config.training.steps_per_epoch
        if type(step) is not int or step < 0 or not isinstance(header['best'], dict):
            raise ValueError(f'it says it made {step!r} steps')
        if not isinstance(header['settings'], dict):
            raise ValueError('its settings are no table')
        ours, theirs = self._identity(), header
        names = [name for name in ours if name != 'settings' and theirs.get(name) != ours[name]]
        own, other = ours['settings'], theirs['settings']
        names += [name for name in own if name not in other or other[name] != own[name]]
        if names:
            raise UsageError(
                f'"{self.path}" belongs to a training with other {", ".join(names)}; expected '
                'the same as now. Choose another folder, or start anew without resuming.'
            )
        if (len(header['history']), len(header['rows'])) != divmod(step, length):
            raise ValueError('its steps and its history differ')
        done, epochs = len(header['history']), self.config.training.epochs
        if step > epochs * length:
            raise UsageError(
                f'"{self.path}" has {done} epochs behind it, expected at most the {epochs} asked '
                'for. Ask for more, or start anew without resuming.'
            )
