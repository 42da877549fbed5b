"""The training loop: random pairs, one Adam step each, everything saved after each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..errors import InputDataError, NePhiError, UsageError
from ..field.model import ModelConfig, NePhiModel
from ..files import write_json
from ..learning.optimise import Progress
from ..presets import Preset
from .checkpoint import save_model, write_tensors
from .data import Subject, draw_pair
from .loss import pair_losses

WEIGHTS, STATE, HISTORY = 'weights.safetensors', 'training.safetensors', 'history.json'
"""What a training writes into its folder."""

STATE_FORMAT = 'nephi-training-1'

POINTS = 10_000
"""At most so many points of each image are compared at a step."""


@dataclass(frozen=True)
class TrainingSettings:
    """What decides, with the images and the architecture, which weights a training finds.

    Parameters
    ----------
    steps_per_epoch, batch_size
        Steps of an epoch, and pairs of a step.
    learning_rate
        Of Adam.
    seed
        Of every random draw.
    """

    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    seed: int


class TrainingRun:
    """A training in progress.

    Parameters
    ----------
    folder
        Where it is saved.
    architecture
        Sizes of the model.
    settings
        How it is trained.
    chosen
        Margin of the frames, and the loss in its ``optimisation``.
    subjects
        The images.
    data
        What the images are: names and checksums.
    device
        Where it is computed.
    """

    def __init__(
        self,
        folder: Path,
        architecture: ModelConfig,
        settings: TrainingSettings,
        chosen: Preset,
        subjects: Sequence[Subject],
        data: list[dict[str, str]],
        device: str,
    ) -> None:
        self.folder, self.settings, self.chosen = folder, settings, chosen
        self.subjects, self.data = subjects, data
        self.history: list[dict[str, float]] = []
        generator = torch.Generator().manual_seed(settings.seed)
        self.model = NePhiModel(architecture, generator).to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=settings.learning_rate)

    def go_on(self, epochs: int, progress: Callable[[Progress], None] | None) -> None:
        """Train the epochs that are missing, and save after each."""
        begin, steps = time.monotonic(), self.settings.steps_per_epoch
        total, first = epochs * steps, len(self.history) * steps
        self.model.train()
        for epoch in range(len(self.history), epochs):
            found = []
            for number in range(epoch * steps, (epoch + 1) * steps):
                found.append(self._step(number))
                if progress:
                    done, seconds = number + 1, time.monotonic() - begin
                    left = seconds / (done - first) * (total - done)
                    reached = 1 - found[-1]['similarity'], found[-1]['regularity']
                    progress(Progress(done, total, epoch + 1, *reached, seconds, left))
            self.history.append({'epoch': epoch + 1, **_means(found)})
            self.save()

    def _step(self, number: int) -> dict[str, float]:
        """Draw pairs, predict their maps, move the weights; the means over the batch."""
        settings, chosen = self.settings, self.chosen
        # Draws depend on the step alone: a training that goes on draws what it would have drawn.
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + number) % 2**63)
        pairs = [
            draw_pair(self.subjects, chosen.margin_mm, self.model.frame_for, generator)
            for _ in range(settings.batch_size)
        ]
        images = [self.model.images((p.fixed, p.moving), p.frame, p.affine) for p in pairs]
        fields = self.model.predict(torch.stack(images), [pair.extent for pair in pairs])
        totals, found = [], []
        for pair, field in zip(pairs, fields, strict=True):
            points = pair.random_points(POINTS, generator)
            losses = pair_losses(field, pair.volumes(), points, chosen.optimisation)
            totals.append(losses['loss'])
            found.append({name: float(value.detach()) for name, value in losses.items()})
            if pair.labelled:
                moved = field.displacement_in_chunks(points[0])
                before, after = pair.dice(points[0], moved)
                found[-1] |= {'dice_before': before, 'dice_after': after}
        self._move(torch.stack(totals).mean(), number)
        return _means(found)

    def _move(self, loss: Tensor, number: int) -> None:
        if not torch.isfinite(loss):
            raise NePhiError(
                f'The loss of step {number + 1} is not finite; expected a number. Train again '
                'with a smaller learning rate.'
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def save(self) -> None:
        """Write what is needed to go on, the history, and weights as soon as there are any."""
        tensors = {f'model.{name}': value for name, value in self.model.state_dict().items()}
        for index, moments in self.optimiser.state_dict()['state'].items():
            tensors |= {f'adam.{index}.{name}': value for name, value in moments.items()}
        header = {**self._identity(), 'history': self.history}
        write_tensors(self.folder / STATE, STATE_FORMAT, header, tensors)
        write_json(self.folder / HISTORY, self.history)
        if not self.history:
            (self.folder / WEIGHTS).unlink(missing_ok=True)
            return
        provenance = {
            'settings': asdict(self.settings),
            'last_epoch': self.history[-1],
            'data': self.data,
            'version': __version__,
            'torch': torch.__version__,
        }
        save_model(self.folder / WEIGHTS, self.model, provenance)

    def restore(self, header: dict[str, Any], tensors: dict[str, Tensor], epochs: int) -> None:
        """Take over where an earlier run of the same training stopped.

        Raises
        ------
        UsageError
            It had other settings or images, or went beyond ``epochs``.
        InputDataError
            It does not hold what its header says.
        """
        try:
            self._check_same(header, epochs)
            self._take_over(tensors)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InputDataError(
                f'"{self.folder / STATE}" does not hold what its header says '
                f'({str(error).splitlines()[0]}); expected the file as it was written. Remove it '
                'and train anew.'
            ) from error
        self.history = header['history']

    def _take_over(self, tensors: dict[str, Tensor]) -> None:
        """Weights and Adam's moments; any error where they are not those of this training."""
        model: dict[str, Tensor] = {}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, rest = name.split('.', 1)
            if kind == 'model':
                model[rest] = value
            else:
                index, key = rest.split('.')
                moments.setdefault(int(index), {})[key] = value
        parameters = list(self.model.parameters())
        for index, found in moments.items():
            shapes = {name: value.shape for name, value in found.items()}
            shape = parameters[index].shape if 0 <= index < len(parameters) else None
            if shapes != {'step': torch.Size(()), 'exp_avg': shape, 'exp_avg_sq': shape}:
                raise ValueError(f'the moments {index} do not fit the architecture')
        self.model.load_state_dict(model)
        groups = self.optimiser.state_dict()['param_groups']
        self.optimiser.load_state_dict({'state': moments, 'param_groups': groups})

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        return {
            'architecture': self.model.config.as_dict(),
            'settings': asdict(self.settings),
            'data': self.data,
        }

    def _check_same(self, header: dict[str, Any], epochs: int) -> None:
        history = header['history']
        if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
            raise ValueError('its history is no list of epochs')
        ours = {**self._identity(), **asdict(self.settings)}
        theirs = {**header, **header['settings']}
        other = [name for name in ours if name != 'settings' and theirs.get(name) != ours[name]]
        if other:
            raise UsageError(
                f'"{self.folder / STATE}" belongs to a training with other {", ".join(other)}; '
                'expected the same as now. Choose another folder, or start anew without resuming.'
            )
        done = len(history)
        if done > epochs:
            raise UsageError(
                f'"{self.folder / STATE}" has {done} epochs behind it, expected at most the '
                f'{epochs} asked for. Ask for more, or start anew without resuming.'
            )


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
