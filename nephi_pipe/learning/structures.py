"""Where structures lie: what a network found in two images, as an optimisation compares it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..geometry import Frame, Grid
from .volume import Volume, smooth


@dataclass(frozen=True, eq=False)
class Structures:
    """Shares of structures in voxels.

    Parameters
    ----------
    shares
        (C, X, Y, Z), from 0 to 1.
    grid
        Of these voxels, all their sides of one length.
    """

    shares: Tensor
    grid: Grid

    def smoothed(self, sigma_mm: float) -> Tensor:
        """Shares after a Gaussian of this standard deviation, as images of coarse levels are."""
        if not sigma_mm:
            return self.shares
        return smooth(self.shares, (sigma_mm / self.grid.spacing).tolist())


StructuresOfPair = tuple[Structures, Structures]
"""Of the fixed and of the moving image, the same ones in both."""


def overlap(found: StructuresOfPair, points_mm: np.ndarray, affine: np.ndarray) -> float:
    """Mean Dice of structures after an affine, shares for voxels; one that is not shown counts 0.

    Parameters
    ----------
    found
        Structures of both images.
    points_mm
        Points of the fixed image, (N, 3).
    affine
        4x4, fixed mm to moving mm.
    """
    world = Frame((0.0, 0.0, 0.0), 1.0)
    points = torch.from_numpy(points_mm).to(found[0].shares)
    fixed, moving = (
        Volume(side.shares, side.grid, world, to_side).sample(points)
        for side, to_side in zip(found, (np.eye(4), affine), strict=True)
    )
    each = (fixed + moving).sum(dim=0)
    return float((2 * (fixed * moving).sum(dim=0) / each.clamp_min(1)).mean())
