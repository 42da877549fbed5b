"""How good weights are on people who take no part in the training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..field.deformation import NePhiField
from ..field.model import NePhiModel
from ..presets import Preset
from .breathing import Breaths
from .coarse_stage import predict_stages
from .config import TrainingConfig
from .pairs import TrainingPair, place_pair, simulate
from .settings import Augmentation
from .subject import Subject

_SEED = 20_231_107
_MOST_PAIRS = 6
_BREATHS = 4
"""Of each subject, which differ more than random maps."""

_POINTS = 20_000
_EXACT_POINTS = 4000
_SLICE = 96
_STILL = Augmentation()


class Validation:
    """The same pairs, the same points and the same simulated maps every time.

    Parameters
    ----------
    subjects
        People who were kept out; two or more for real pairs, one for simulated ones.
    chosen
        The preset of the modality: of lungs, pairs are of one person.
    config
        Sizes, and how large simulated maps are.
    breaths
        Motions of simulated pairs.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        chosen: Preset,
        config: TrainingConfig,
        breaths: Breaths | None = None,
    ) -> None:
        self.subjects, self.chosen, self.config = subjects, chosen, config
        self.breaths = breaths

    @torch.no_grad()
    def __call__(self, model: NePhiModel) -> tuple[dict[str, float], np.ndarray]:
        """Means over the pairs, and a picture of the first: fixed, warped and moving image.

        Of the last stage of a model; "before" is after the stages before it.

        The Dice at random points before and after (where there are labels); folds in % of random
        points, by exact determinants; inverse consistency in mm; the landmark error of simulated
        pairs in mm before and after.
        """
        generator = torch.Generator().manual_seed(_SEED)
        rows, picture = [], None
        for number, (fixed, moving) in enumerate(self._pairs(generator)):
            margin_mm = self.chosen.margin_mm
            pair = place_pair(fixed, moving, margin_mm, model.frame_for, _STILL, generator)
            if fixed is moving:
                pair = simulate(pair, self._motion, generator, self.breaths)
            last = predict_stages(model, [pair], _STILL, generator)[-1]
            pair, field = last.pairs[0], last.fields[0]
            rows.append(self._score(field, pair, generator))
            if number == 0:
                picture = _picture(field, pair)
        names = dict.fromkeys(name for row in rows for name in row)
        means = {n: float(np.mean([row[n] for row in rows if n in row])) for n in names}
        return means, picture

    def _pairs(self, generator: torch.Generator) -> list[tuple[Subject, Subject]]:
        pairs = [
            (one, other)
            for one, other in itertools.permutations(self.subjects, 2)
            if not self.chosen.lungs or one.person == other.person
        ]
        order = torch.randperm(len(pairs), generator=generator)[:_MOST_PAIRS].tolist()
        breaths = 1 if self.breaths is None else _BREATHS
        return [pairs[number] for number in order] + breaths * [
            (one, one) for one in self.subjects
        ]

    @property
    def _motion(self) -> Augmentation:
        """How simulated pairs move; all else stays as it is."""
        own = self.config.augmentation
        return Augmentation(simulated_mm=own.simulated_mm, breathing_mm=own.breathing_mm)

    def _score(
        self, field: NePhiField, pair: TrainingPair, generator: torch.Generator
    ) -> dict[str, float]:
        points, _ = pair.random_points(_POINTS, generator, str(field.frequencies.device))
        moved = points + field.displacement_in_chunks(points)
        scale_mm = pair.frame.scale_mm
        if pair.warp is not None:
            truth = pair.warp(points)
            return {
                'tre_before_mm': _mean_length(pair.reached(points) - truth) * scale_mm,
                'tre_mm': _mean_length(pair.reached(moved) - truth) * scale_mm,
            }
        back = moved + field.displacement_in_chunks(moved, inverse=True)
        identity = torch.eye(3, device=points.device)
        jacobians = identity + field.gradient_in_chunks(points[:_EXACT_POINTS])
        found = {
            'folds_percent': 100 * float((torch.linalg.det(jacobians) <= 0).float().mean()),
            'inverse_consistency_mm': _mean_length(back - points) * scale_mm,
        }
        if pair.labelled:
            before, after = pair.dice(points, moved - points)
            found |= {'dice_before': before, 'dice_after': after}
        return found


def _mean_length(vectors: Tensor) -> float:
    return float(vectors.norm(dim=1).mean())


def _picture(field: NePhiField, pair: TrainingPair) -> np.ndarray:
    """The middle axial slices of the fixed, the warped and the moving image, side by side."""
    device = field.frequencies.device
    axis = torch.linspace(-1, 1, _SLICE, device=device)
    x, y = torch.meshgrid(axis, axis, indexing='ij')
    points = torch.stack([x, y, torch.zeros_like(x)], dim=-1).view(-1, 3)
    fixed, moving = pair.volumes(str(device))
    shown = [
        fixed.sample(points),
        moving.sample(points + field.displacement_in_chunks(points)),
        moving.sample(points),
    ]
    slices = [values[:, 0].view(_SLICE, _SLICE).T.flip(0) for values in shown]
    return torch.cat(slices, dim=1).clamp(0, 1).cpu().numpy()
