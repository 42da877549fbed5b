"""Where a map is nearest to folding, by the networks' own derivative: no dense map is made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .geometry import Grid

SPACING_MM = 2.5
"""About the distance of the points that are looked at first."""

LOWEST = 3000
"""Those of them with the lowest determinants are looked around."""

_AROUND = 8


def lowest_determinants(
    determinant: Callable[[np.ndarray], np.ndarray], grid: Grid, mask: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Points of a mask where a determinant is low, and the determinants there.

    Parameters
    ----------
    determinant
        Of world points (N, 3), shape (N,).
    grid, mask
        Where to look: every few voxels of the mask, then at random between the lowest of these.
    seed
        Of the random points.

    Returns
    -------
    World points (N, 3), RAS+ mm, and determinants (N,).
    """
    every = np.maximum(np.rint(SPACING_MM / grid.spacing), 1).astype(int)
    coarse = mask[tuple(slice(step // 2, None, step) for step in every)]
    if not coarse.any():
        every, coarse = np.ones(3, dtype=int), mask
    index = np.argwhere(coarse) * every + every // 2
    first = determinant(grid.to_world(index))
    count = min(LOWEST, len(index))
    lowest = index[np.argpartition(first, count - 1)[:count]]
    shift = np.random.default_rng(seed).uniform(-0.5, 0.5, (_AROUND, count, 3)) * every
    around = grid.to_world((lowest + shift).reshape(-1, 3))
    points = np.concatenate([grid.to_world(index), around])
    return points, np.concatenate([first, determinant(around)])
