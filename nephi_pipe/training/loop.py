"""The training loop: random pairs, one Adam step each, on one device or on several.

Devices, their gradients and mixed precision are Accelerate's; which pairs are drawn depends on the
number of the step alone, so that a training which goes on draws what it would have drawn.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import NePhiError
from ..field.model import ModelConfig, NePhiModel
from ..learning.optimise import Progress
from ..presets import Preset
from .batch import Batch
from .breathing import Breaths
from .coarse_stage import is_trained, predict_stages
from .config import TrainingConfig
from .lattice_loss import LatticeLosses
from .loss import dice_loss, pair_losses, supervised_loss
from .pairs import TrainingPair, draw_pair
from .records import Records
from .signals import Stop
from .stack import Stack
from .state import State
from .subject import Subject
from .validation import Validation

_WATCHED = 2000
"""Points at which the Dice of a step is told: it costs a pass through the network."""

_STACK_SPACING = 0.7
"""Voxels of images on one grid in units of the distance of the samples."""

_SUPERVISED = 2000
"""Points at which a simulated pair is compared with its truth: smooth, and without noise."""


class PairLosses(nn.Module):
    """A model together with its loss, so that one forward pass goes from pairs to a number.

    Parameters
    ----------
    model
        What is trained.
    config
        Loss, augmentation.
    chosen
        The preset, with the loss of ``config``.
    """

    def __init__(self, model: NePhiModel, config: TrainingConfig, chosen: Preset) -> None:
        super().__init__()
        self.model, self.config, self.chosen = model, config, chosen

    def forward(
        self, pairs: Sequence[TrainingPair], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss to be minimised, and the means of its parts over the batch.

        Of all stages that are trained the loss, of the last one its parts.
        """
        augmentation = self.config.augmentation
        totals = []
        for stage in predict_stages(self.model, pairs, augmentation, generator):
            if stage.model is not self.model and not is_trained(stage.model):
                continue
            with torch.autocast(self.model.frequencies.device.type, enabled=False):
                found = [
                    self._of_pair(pair, field, generator)
                    for pair, field in zip(stage.pairs, stage.fields, strict=True)
                ]
            totals.append(torch.stack([losses.pop('total') for losses in found]).mean())
        return torch.stack(totals).sum(), _means(found)

    def _of_pair(
        self, pair: TrainingPair, field: Any, generator: torch.Generator
    ) -> dict[str, Any]:
        loss, device = self.config.loss, str(self.model.frequencies.device)
        points = pair.random_points(loss.points, generator, device)
        losses = pair_losses(field, pair.volumes(device), points, self.chosen.optimisation)
        total = losses['loss']
        if pair.warp is not None and loss.supervision_weight:
            few = points[0][:_SUPERVISED]
            known = supervised_loss(field, pair.warp, few, pair.moving_warp)
            losses['supervised'] = known
            total = total + loss.supervision_weight * losses['supervised']
        if pair.labelled and loss.dice_weight:
            losses['dice_loss'] = dice_loss(field, pair.label_volumes(device), points)
            total = total + loss.dice_weight * losses['dice_loss']
        found = {name: float(value.detach()) for name, value in losses.items()}
        if pair.labelled:
            watched = points[0][:_WATCHED]
            before, after = pair.dice(watched, field.displacement_in_chunks(watched))
            found |= {'dice_before': before, 'dice_after': after}
        return {**found, 'loss': float(total.detach()), 'total': total}


class TrainingRun:
    """A training in progress.

    Parameters
    ----------
    folder
        Where it is saved.
    architecture
        Sizes of the model.
    config
        How it is trained.
    subjects
        The images.
    kept
        Those that are only validated on.
    data
        What all of them are: names and checksums.
    chosen
        The preset of the modality.
    accelerator
        Accelerate's, for the device.
    start
        Weights to start from.
    coarse
        The first stage, of weights that are new otherwise.
    started_from
        Checksums of the files of these, by name.
    breaths
        Motions of simulated pairs.
    """

    def __init__(
        self,
        folder: Path,
        architecture: ModelConfig,
        config: TrainingConfig,
        subjects: Sequence[Subject],
        kept: Sequence[Subject],
        data: list[dict[str, str]],
        chosen: Preset,
        accelerator: Any,
        start: NePhiModel | None = None,
        coarse: NePhiModel | None = None,
        started_from: Mapping[str, str] | None = None,
        breaths: Breaths | None = None,
    ) -> None:
        self.breaths = breaths
        self.config, self.subjects, self.accelerator = config, subjects, accelerator
        self.chosen = replace(chosen, optimisation=config.loss.for_points(chosen.optimisation))
        self.model = start or NePhiModel(
            architecture, torch.Generator().manual_seed(config.training.seed)
        )
        if coarse is not None:
            self.model.coarse.load_state_dict(coarse.state_dict())
        if self.model.coarse is not None:
            self.model.coarse.requires_grad_(config.training.joint)
        self.model.to(accelerator.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        optimiser = torch.optim.Adam(self.model.parameters(), lr=config.training.learning_rate)
        losses = self._losses()
        self.losses, self.optimiser = accelerator.prepare(losses, optimiser)
        self.state = State(folder, self.model, self.average, self.optimiser, config, data)
        files = started_from or {}
        self.state.started_from = files.get('weights', '')
        self.state.coarse = files.get('coarse', '')
        self.records = Records(folder, self.state)
        self.validation = Validation(kept, chosen, config, breaths)

    def _losses(self) -> nn.Module:
        """The loss at random points, or on a lattice that fits all images."""
        if not self.config.loss.on_lattice:
            self._stack = None
            return PairLosses(self.model, self.config, self.chosen)
        self._stack = Stack.of(
            self.subjects,
            self.chosen.margin_mm,
            _STACK_SPACING * self.config.loss.sample_mm,
            str(self.model.frequencies.device),
        )
        extent = torch.from_numpy(self._stack.extent_mm / self.model.config.scale_mm).float()
        return LatticeLosses(self.model, self.config, self.chosen.optimisation, extent)

    def go_on(self, progress: Callable[[Progress], None] | None, stop: Stop) -> None:
        """Train the epochs that are missing."""
        state, training = self.state, self.config.training
        begin, first = time.monotonic(), state.step
        total = training.epochs * training.steps_per_epoch
        self.model.train()
        with self.records:
            while state.step < total:
                row = self._step(state.step)
                state.step += 1
                state.rows.append(row)
                self._main(self.records.step, row)
                if progress and self.accelerator.is_main_process:
                    seconds = time.monotonic() - begin
                    left = seconds / (state.step - first) * (total - state.step)
                    epoch = (state.step - 1) // training.steps_per_epoch + 1
                    reached = 1 - row['similarity'], row['regularity']
                    progress(Progress(state.step, total, epoch, *reached, seconds, left))
                if state.step % training.steps_per_epoch == 0:
                    self._end_epoch()
                if self._told_to_stop(stop):
                    self._main(state.save)
                    stop.leave()

    def _step(self, number: int) -> dict[str, float]:
        """Draw pairs, predict their maps, move the weights; the means over the batch."""
        training, accelerator = self.config.training, self.accelerator
        draw = number * accelerator.num_processes + accelerator.process_index
        # Not the number itself: what generators with neighbouring seeds draw first is correlated.
        (seed,) = np.random.SeedSequence([training.seed, draw]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed) >> 1)
        loss, row = self.losses(self._pairs(generator), generator)
        if not math.isfinite(row['loss']):
            raise NePhiError(
                f'The loss of step {number + 1} is not finite; expected a number. Train again '
                'with a smaller learning rate.'
            )
        for group in self.optimiser.param_groups:
            group['lr'] = training.rate(number)
        self.optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        if training.clip and accelerator.sync_gradients:
            accelerator.clip_grad_norm_(self.model.parameters(), training.clip)
        self.optimiser.step()
        self._move_average(number)
        return row

    def _pairs(self, generator: torch.Generator) -> Batch | list[TrainingPair]:
        """What a step looks at."""
        size, augmentation = self.config.training.batch_size, self.config.augmentation
        if self._stack is not None:
            scale_mm = self.model.config.scale_mm
            return Batch.draw(self._stack, scale_mm, size, augmentation, generator)
        margin_mm, place = self.chosen.margin_mm, self.model.frame_for
        return [
            draw_pair(
                self.subjects,
                margin_mm,
                place,
                augmentation,
                generator,
                within=self.chosen.lungs,
                breaths=self.breaths,
            )
            for _ in range(size)
        ]

    @torch.no_grad()
    def _move_average(self, number: int) -> None:
        # At first the weights are followed closely: what they were at random is soon forgotten.
        decay = min(self.config.training.average, (1 + number) / (10 + number))
        means, values = (list(one.parameters()) for one in (self.average, self.model))
        torch._foreach_lerp_(means, values, 1 - decay)
        for mean, value in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(value)

    def _end_epoch(self) -> None:
        state, training = self.state, self.config.training
        epoch = state.step // training.steps_per_epoch
        row = {'epoch': epoch, **self._over_devices(_means(state.rows))}
        row['learning_rate'] = training.rate(state.step - 1)
        last = epoch == training.epochs
        if self._validates(epoch, last) and self.accelerator.is_main_process:
            found, picture = self.validation(self.average)
            row |= {f'validation_{name}': value for name, value in found.items()}
            self.records.picture(epoch, picture)
        state.history.append(row)
        state.rows = []
        if self.accelerator.is_main_process:
            self.records.epoch(row)
            if last or epoch % training.save_every == 0:
                state.save()
                self.records.write()
        self.accelerator.wait_for_everyone()

    def _validates(self, epoch: int, last: bool) -> bool:
        every = self.config.training.eval_every
        return bool(self.validation.subjects) and every > 0 and (last or epoch % every == 0)

    def _over_devices(self, row: dict[str, float]) -> dict[str, float]:
        """The means over all devices; each of them needs not have seen the same kinds of loss."""
        if self.accelerator.num_processes == 1:
            return row
        from accelerate.utils import gather_object

        return _means(gather_object([row]))

    def _told_to_stop(self, stop: Stop) -> bool:
        """Whether any device's process was told to; all of them must leave at the same step."""
        if self.accelerator.num_processes == 1:
            return bool(stop.told)
        told = torch.tensor([int(stop.told)], device=self.accelerator.device)
        stop.told = int(self.accelerator.reduce(told, 'sum'))
        return bool(stop.told)

    def _main(self, action: Callable[..., Any], *arguments: Any) -> None:
        if self.accelerator.is_main_process:
            action(*arguments)


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
