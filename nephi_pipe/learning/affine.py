"""Affine initialisation: several starts, rigid to affine, coarse to fine, inside masks.

Both images become small pyramids of block means. The cost is one minus a normalised
correlation, read in both directions (fixed points in the moving image, moving points in the
fixed one), so that shrinking one image into a flat part of the other never pays. Where both
images have a mask, what lies outside of it counts as zero and a rim of it is compared too: the
outlines attract each other, and a skull on one side only does not matter.

The cost is minimised by Newton steps with an approximate curvature (``affine_cost``) on the group
of rigid, similarity or affine maps: each step multiplies the map by the matrix exponential of a
small generator, so that a rigid map stays rigid. Where a step fails, the next is shorter, as in
Marquardt, SIAM J Appl Math 11, 1963.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ..errors import InputDataError, UsageError
from ..geometry import Grid
from .affine_cost import Landscape, Pair, pairs
from .affine_levels import Subject

FINEST_MM = 2.0
"""Spacing of the finest level; less where the smaller mask is less than 100 mm wide."""

START_STEP_DEG, START_LIMIT_DEG = 20.0, 60.0
"""Starting rotations: a lattice of rotation vectors with this step, up to this angle."""

KEPT = (12, 3, 1)
"""How many maps are optimised at each level."""

STEPS = 30
"""At most so many steps of each optimisation; a third of it is usual."""

FIRST_CAUTION, LEAST_CAUTION = 0.3, 0.02
"""Share of the Gauss-Newton matrix in the first step, and the least there is."""

SMALL_STEP = 0.02
"""Optimisation at a level ends with a step below this share of its spacing."""

LEAST_SHARE = 0.05
"""With fewer than this share of points in common, two images cannot be aligned."""

LARGEST_SCALE = 4.0
"""A map that stretches or shrinks by more than this along an axis is no alignment."""


def estimate_affine(
    fixed: np.ndarray,
    fixed_grid: Grid,
    moving: np.ndarray,
    moving_grid: Grid,
    fixed_mask: np.ndarray | None = None,
    moving_mask: np.ndarray | None = None,
    *,
    fixed_excluded: np.ndarray | None = None,
    moving_excluded: np.ndarray | None = None,
    by_depth: bool = False,
    dof: int = 12,
    seed: int = 0,
) -> np.ndarray:
    """Find the affine map from fixed to moving points that aligns two images.

    Starts are the rotations on a lattice up to 60 degrees about the centres of mass, and the
    positions in the world as they are. The best are optimised rigidly, then with one scale, then
    with ``dof`` parameters, at 8, 4 and 2 mm. The result is the same for the same seed, number
    of threads and type of processor.

    Parameters
    ----------
    fixed, moving
        Intensities, finite, shape of their grid. Give the whole field of view, not a crop: beyond
        its edge nothing is known, inside of it and outside of the mask is background.
    fixed_grid, moving_grid
        Where the voxels are, RAS+ mm.
    fixed_mask, moving_mask
        What is to be aligned, bool, shape of its image. None: the whole field of view; with one
        mask only, the inside of that mask is looked for in the other image.
    fixed_excluded, moving_excluded
        Voxels that take no part in the comparison (lesions, resections), bool, or None. Unlike
        voxels outside of a mask they do not count as background.
    by_depth
        Compare how deep points lie in the masks instead of the intensity as it is (the locally
        normalised one still counts): for an organ whose intensity differs between the images.
        Needs both masks.
    dof
        6 (rigid), 7 (rigid and one scale) or 12 (affine).
    seed
        Of the choice of points.

    Returns
    -------
    affine : (4, 4) float64
        Fixed mm to moving mm.

    Raises
    ------
    InputDataError
        A mask is empty or has another shape than its image, an image has no contrast inside its
        mask, the two have (almost) nothing in common, or one would be scaled more than fourfold.
    UsageError
        ``dof`` is not 6, 7 or 12, or a mask is missing for the depth.

    Examples
    --------
    >>> ball = np.exp(-((np.indices((24, 24, 24)) - 11.5) ** 2).sum(axis=0) / 30)
    >>> here, there = np.diag([4.0, 4, 4, 1]), np.diag([4.0, 4, 4, 1])
    >>> there[:3, 3] = [30, -20, 10]
    >>> args = (ball, Grid(ball.shape, here), ball, Grid(ball.shape, there))
    >>> estimate_affine(*args, ball > 0.1, ball > 0.1, dof=6)[:3, 3].round(1) + 0.0
    array([ 30., -20.,  10.])
    """
    if dof not in _GENERATORS:
        raise UsageError(f'dof is {dof}; expected 6 (rigid), 7 (similarity) or 12 (affine).')
    if by_depth and (fixed_mask is None or moving_mask is None):
        raise UsageError('Depths are compared in masks; expected one of both images. Give them.')
    a = Subject.checked(fixed, fixed_grid, fixed_mask, fixed_excluded, 'fixed')
    b = Subject.checked(moving, moving_grid, moving_mask, moving_excluded, 'moving')
    freedoms = [[free for free in _GENERATORS if free <= dof], [dof], [dof]]
    finest = min(FINEST_MM, min(a.width_mm, b.width_mm) / 50)
    maps = _starts(a, b, dof)
    for pair, kept, stages in zip(
        pairs(a, b, finest, seed, by_depth), KEPT, freedoms, strict=True
    ):
        maps = maps[np.argsort(pair.cost(maps), kind='stable')[:kept]]
        for freedom in stages:
            maps = _minimise(pair, maps, freedom)
    scales = np.linalg.svd(maps[0, :3, :3], compute_uv=False)
    share = pair.share(maps[0])
    if share < LEAST_SHARE or scales.max() > LARGEST_SCALE or scales.min() < 1 / LARGEST_SCALE:
        raise InputDataError(
            'The fixed and the moving image cannot be aligned: the best map scales by '
            f'{scales.min():.2g} to {scales.max():.2g}, and {100 * share:.0f} % of what it aligns '
            'is in both; expected two images of the same organ. Check the pair and the masks.'
        )
    return maps[0]


def _starts(fixed: Subject, moving: Subject, dof: int) -> np.ndarray:
    """Rotations about the centres of mass (scaled as the masks' volumes), and the identity."""
    scale = 1.0
    if dof > 6 and fixed.masked and moving.masked:
        scale = float(np.clip(moving.width_mm / fixed.width_mm, 0.7, 1.4))
    steps = np.arange(-START_LIMIT_DEG, START_LIMIT_DEG + 1, START_STEP_DEG)
    lattice = np.array(list(product(steps, repeat=3)))
    vectors = lattice[np.linalg.norm(lattice, axis=1) <= START_LIMIT_DEG + 1e-6]
    maps = np.tile(np.eye(4), (len(vectors), 1, 1))
    maps[:, :3, :3] = Rotation.from_rotvec(vectors, degrees=True).as_matrix() * scale
    maps[:, :3, 3] = moving.center_mm() - maps[:, :3, :3] @ fixed.center_mm()
    return np.concatenate([np.eye(4)[None], maps])


def _minimise(pair: Pair, maps: np.ndarray, dof: int) -> np.ndarray:
    """Newton steps on all of the maps (B, 4, 4) at once, with more caution where one fails.

    Caution moves the curvature towards the Gauss-Newton matrix and, above 1, shortens the step,
    which points downhill then.
    """
    basis = _GENERATORS[dof]
    best = pair.landscape(maps)
    caution = np.full(len(maps), FIRST_CAUTION)
    for _ in range(STEPS):
        share = caution[:, None, None]
        matrix = np.maximum(1 - share, 0) * best.curvature + share * best.square
        matrix = basis @ matrix @ basis.T + 1e-9 * np.eye(dof)
        change = -np.linalg.solve(matrix, (best.gradient @ basis.T)[..., None])[..., 0]
        large = np.abs(change).max(axis=1, keepdims=True) / pair.radius
        trial = _exponential(change / np.maximum(large, 1) @ basis, pair) @ maps
        tried = pair.landscape(trial)
        better = tried.cost < best.cost
        maps = _chosen(better, trial, maps)
        best = Landscape(*(_chosen(better, *both) for both in zip(tried, best, strict=True)))
        small = np.abs(change).max(axis=1) < SMALL_STEP * pair.spacing_mm
        if (small & (better | (caution >= 1))).all():
            break
        caution = np.maximum(caution * np.where(better, 0.3, 4.0), LEAST_CAUTION)
    return maps


def _chosen(better: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """New rows where they are better."""
    return np.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)


def _exponential(change: np.ndarray, pair: Pair) -> np.ndarray:
    """Maps (B, 4, 4) of generators (B, 12), as ``Pair`` defines them."""
    generator = np.zeros((len(change), 4, 4))
    generator[:, :3, :3] = change[:, 3:].reshape(-1, 3, 3) / pair.radius
    generator[:, :3, 3] = change[:, :3] - generator[:, :3, :3] @ pair.center
    maps = torch.linalg.matrix_exp(torch.from_numpy(generator)).numpy()
    maps[:, 3] = [0, 0, 0, 1]
    return maps


def _generators() -> dict[int, np.ndarray]:
    """Bases (dof, 12) of the generators of rigid, similarity and affine maps."""
    shift, matrix = np.eye(12)[:3], np.eye(12)[3:].reshape(3, 3, 12)
    turns = np.stack([matrix[j, i] - matrix[i, j] for i, j in ((1, 2), (2, 0), (0, 1))])
    scale = (matrix[0, 0] + matrix[1, 1] + matrix[2, 2])[None]
    rigid = np.concatenate([shift, turns])
    return {6: rigid, 7: np.concatenate([rigid, scale]), 12: np.eye(12)}


_GENERATORS = _generators()
