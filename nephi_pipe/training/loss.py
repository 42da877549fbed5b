"""What training minimises: the loss of instance optimisation, at random points.

What needs a lattice of points is left out: windows of the similarity, and bending energy. Known
maps of simulated pairs, and label maps where there are some, can be learned from too.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..field.deformation import NePhiField
from ..learning.regularity import point_regularity
from ..learning.settings import OptimisationSettings
from ..learning.similarity import global_ncc_loss, mean_difference_loss
from .augment import PointWarp
from .stored import StoredVolume

Points = tuple[Tensor, Tensor]


class Readable(Protocol):
    """Features that can be read at points."""

    def sample(self, points: Tensor) -> Tensor:
        """(N, C) at (N, 3)."""


Volumes = tuple[Readable, Readable]


def pair_losses(
    field: NePhiField, volumes: Volumes, points: Points, settings: OptimisationSettings
) -> dict[str, Tensor]:
    """Similarity, regularity, prior, and the loss as a whole, each the mean of both directions.

    Parameters
    ----------
    field
        The maps of the pair.
    volumes
        Features and, as the last channel, the weight of the fixed and of the moving image.
    points
        Normalised points (N, 3) inside the fixed mask, and inside the moving mask.
    settings
        Similarity, weights, and the number of points at which exact Jacobians are taken.
    """
    similarity = (
        _similarity(field, volumes, points, settings.similarity, False)
        + _similarity(field, volumes, points, settings.similarity, True)
    ) / 2
    half = settings.regularity_points // 2
    there, back = (
        point_regularity(field, side[:half], inverse, settings)
        for side, inverse in zip(points, (False, True), strict=True)
    )
    regularity = (there[1] + back[1]) / 2
    prior = field.code.prior()
    total = similarity + (there[0] + back[0]) / 2 + settings.prior_weight * prior
    return {'loss': total, 'similarity': similarity, 'regularity': regularity, 'prior': prior}


def supervised_loss(
    field: NePhiField, warp: PointWarp, points: Tensor, coarse: PointWarp | None = None
) -> Tensor:
    """Mean squared error against a known map, both ways, over the mean square of what it moves.

    One for maps that do nothing. The way back is asked for where points (N, 3) went to, so that no
    inverse need be known.

    Parameters
    ----------
    field, warp
        What is trained, and the truth.
    points
        Where they are compared.
    coarse
        The map that follows the field, of the stages before it; None for nothing.
    """
    there = warp(points)
    moved = points + field.displacement(points)
    if coarse is not None:
        moved = coarse(moved)
    start = there if coarse is None else coarse.back(there)
    error = (moved - there).square().mean()
    back = start + field.displacement(start, inverse=True)
    error = error + (back - points).square().mean()
    return error / (2 * (there - points).square().mean())


def dice_loss(
    field: NePhiField, labels: tuple[StoredVolume, StoredVolume], points: Points
) -> Tensor:
    """1 - mean soft Dice over the labels at the points, the mean of both directions."""
    found = []
    for here, inverse in zip(points, (False, True), strict=True):
        target, source = reversed(labels) if inverse else labels
        moved = here + field.displacement(here, inverse)
        classes = target.nearest(here).unique()
        classes = classes[classes != 0]
        if len(classes):
            a, b = target.shares(here, classes), source.shares(moved, classes)
            found.append(1 - (2 * (a * b).sum(dim=0) / (a**2 + b**2).sum(dim=0)).mean())
    return torch.stack(found).mean() if found else points[0].new_zeros(())


def _similarity(
    field: NePhiField, volumes: Volumes, points: Points, kind: str, inverse: bool
) -> Tensor:
    target_volume, source_volume = reversed(volumes) if inverse else volumes
    here = points[int(inverse)]
    target = target_volume.sample(here)
    warped = source_volume.sample(here + field.displacement(here, inverse))
    compare = mean_difference_loss if kind == 'mind' else global_ncc_loss
    return compare(target[:, :-1], warped[:, :-1], target[:, -1])
