"""How good a registration is: overlap, landmarks, folds, inverse consistency.

Everything works on any transform, ours or a foreign one, that maps fixed points to moving points
(RAS+ mm): an object with ``map_points`` or a function of points (..., 3). Numbers have their unit
in their name. Overlap of labels is in `nephi_pipe.overlap`, folds of a field on a grid are in
`nephi_pipe.folds`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .errors import InputDataError
from .folds import finite_differences
from .geometry import Grid, apply_affine
from .images import Image, check_same_grid, foreground
from .landmarks import read_points
from .overlap import dice, hd95_mm
from .transforms import DisplacementField, PointMap, Transform, resample

CONSISTENCY_POINTS = 20_000
"""Random mask points at which `evaluate` measures the inverse consistency."""

_SMALLEST_DETERMINANT = 1e-9
_PLANES = 8


def tre_mm(fixed_points: np.ndarray, moving_points: np.ndarray, transform: PointMap) -> np.ndarray:
    """Target registration error of each landmark, mm, shape (N,).

    The fixed points go through the continuous map and nothing is rounded to voxels.

    >>> fixed, moving = np.zeros((1, 3)), np.array([[4.0, 3.0, 0.0]])
    >>> tre_mm(fixed, moving, lambda points: points + [1.0, -1.0, 0.0])
    array([5.])
    """
    fixed_points, moving_points = np.asarray(fixed_points), np.asarray(moving_points)
    if fixed_points.shape != moving_points.shape or fixed_points.shape[1:] != (3,):
        raise InputDataError(
            f'The landmarks have the shapes {fixed_points.shape} (fixed) and '
            f'{moving_points.shape} (moving); expected as many moving as fixed points, each with '
            'x, y and z. Give tables in which row i of one belongs to row i of the other.'
        )
    return np.linalg.norm(_mapped(transform, fixed_points) - moving_points, axis=-1)


def read_landmarks(path: str | os.PathLike) -> np.ndarray:
    """The points of a tab-separated table with columns x, y and z, RAS+ mm, shape (N, 3).

    Raises NoInputError and InputDataError as `nephi_pipe.landmarks.read_points` does.
    """
    return read_points(path).points


def jacobian_statistics(
    determinant: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, float]:
    """Spread of Jacobian determinants: min, p01, p99, max and SDlogJ.

    SDlogJ (``sd_log``) is the standard deviation of the natural logarithm over the determinants
    that are positive (the others are folds, counted elsewhere), raised to 1e-9 where they are
    smaller, which is where Learn2Reg clips. Learn2Reg's scripts also add 3 to every determinant
    before the logarithm, so their values are smaller and do not compare.

    >>> jacobian_statistics(np.array([np.exp(-1.0), np.exp(1.0), -5.0]))['sd_log']
    1.0
    """
    values = determinant.ravel() if mask is None else determinant[mask]
    p01, p99 = np.percentile(values, [1, 99])
    positive = values[values > 0].astype(np.float64)
    logarithms = np.log(np.maximum(positive, _SMALLEST_DETERMINANT))
    return {
        'min': float(values.min()),
        'p01': float(p01),
        'p99': float(p99),
        'max': float(values.max()),
        'sd_log': float(logarithms.std()) if positive.size else 0.0,
    }


def inverse_consistency_mm(
    forward: PointMap, inverse: PointMap, points: np.ndarray
) -> dict[str, float]:
    """Distance |inverse(forward(x)) - x| in mm over ``points`` (N, 3): mean, p95 and max."""
    back = _mapped(inverse, _mapped(forward, points))
    return _summary(np.linalg.norm(back - points, axis=-1), ['mean', 'p95', 'max'])


def ncc(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Global normalised cross-correlation inside ``mask``; 0 where an image is constant.

    >>> a = np.arange(5.0)
    >>> round(ncc(a, 7 - 2 * a), 6)
    -1.0
    """
    inside = slice(None) if mask is None else mask
    a, b = (image[inside].ravel().astype(np.float64) for image in (a, b))
    a -= a.mean()
    b -= b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def random_points(grid: Grid, mask: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Points drawn uniformly from the voxels of ``mask``, RAS+ mm, shape (count, 3)."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(np.flatnonzero(mask), count)
    index = np.stack(np.unravel_index(chosen, grid.shape), axis=-1)
    return grid.to_world(index + rng.uniform(-0.5, 0.5, (count, 3)))


def displacement_on(transform: PointMap, grid: Grid) -> np.ndarray:
    """``phi(x) - x`` at the voxels of ``grid``, float32 (X, Y, Z, 3), RAS+ mm."""
    displacement = Transform([transform]).map_grid(grid)
    for first, last in _slabs(grid):
        displacement[first:last] -= grid.points(first, last)
    return displacement


def evaluate(
    transform: PointMap,
    fixed: Image,
    moving: Image,
    *,
    inverse: PointMap | None = None,
    fixed_mask: Image | np.ndarray | None = None,
    fixed_labels: Image | None = None,
    moving_labels: Image | None = None,
    fixed_landmarks: np.ndarray | None = None,
    moving_landmarks: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    displacement: np.ndarray | None = None,
) -> dict[str, Any]:
    """Score a transform, ours or a foreign one, on the grid of the fixed image.

    Parameters
    ----------
    transform
        Maps fixed points to moving points, mm.
    fixed, moving
        The two images, each on its own grid.
    inverse
        Maps moving points to fixed points; without it there is no inverse consistency.
    fixed_mask
        Where folds, Jacobians, displacement and similarity are measured; a rough foreground of
        the fixed image when None.
    fixed_labels, moving_labels
        Label maps, both or none; the moving ones are warped by nearest neighbour.
    fixed_landmarks, moving_landmarks
        Corresponding points (N, 3), RAS+ mm, both or none.
    affine
        4x4, fixed mm to moving mm: its own scores are the rows ``before``. The deformation is
        what the transform does beside it, ``x + u(x) = affine^-1 phi(x)``. Identity when None.
    displacement
        ``phi(x) - x`` at the fixed voxels (X, Y, Z, 3), mm, where it is known already.

    Returns
    -------
    dict
        ``dice`` and ``hd95_mm`` (``before`` and ``after``, each ``mean`` and ``labels``; the mean
        distance is None when no label is in both maps), ``tre_mm`` (``before``, ``after``),
        ``folds`` (``finite_difference``, see `nephi_pipe.folds`), ``jacobian`` of the ``total``
        map and of the ``deformation`` without its affine (central differences on the fixed grid),
        ``inverse_consistency_mm`` (at 20 000 random mask points), ``similarity`` (global NCC
        ``before`` and ``after``, where the moving image reaches) and ``displacement_mm`` (|u|).
        Without labels, landmarks or inverse their keys are absent.

    Raises
    ------
    InputDataError
        Labels or a mask lie on another grid, landmarks do not pair up, or one of two is missing.
    """
    _check_both('a label map', fixed_labels, moving_labels)
    _check_both('landmarks', fixed_landmarks, moving_landmarks)
    mask = _mask_array(fixed, fixed_mask)
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
    if displacement is None:
        displacement = displacement_on(transform, fixed.grid)
    maps = {
        'before': Transform([affine]),
        'after': Transform([DisplacementField(displacement, fixed.grid)]),
    }
    scores: dict[str, Any] = {}
    if fixed_labels is not None:
        scores |= _label_scores(fixed, fixed_labels, moving_labels, maps)
    if fixed_landmarks is not None:
        errors = {
            when: tre_mm(fixed_landmarks, moving_landmarks, one)
            for when, one in (('before', maps['before']), ('after', transform))
        }
        scores['tre_mm'] = {when: landmark_summary(values) for when, values in errors.items()}
    folds, central = finite_differences(displacement, fixed.grid, mask)
    scores['folds'] = {'finite_difference': folds}
    scores['jacobian'] = {
        'total': jacobian_statistics(central),
        'deformation': jacobian_statistics(central / np.float32(np.linalg.det(affine[:3, :3]))),
    }
    if inverse is not None:
        points = random_points(fixed.grid, mask, CONSISTENCY_POINTS)
        scores['inverse_consistency_mm'] = inverse_consistency_mm(transform, inverse, points)
    scores['similarity'] = {
        when: _similarity(fixed, resample(moving, one, fixed.grid, 'linear', np.nan), mask)
        for when, one in maps.items()
    }
    lengths = _deformation_lengths(displacement, fixed.grid, mask, affine)
    scores['displacement_mm'] = _summary(lengths, ['mean', 'p95', 'max'])
    return scores


def _similarity(fixed: Image, warped: Image, mask: np.ndarray) -> float:
    """NCC where the moving image reaches, 0 where it reaches nothing of the mask."""
    known = mask & np.isfinite(warped.data)
    return ncc(fixed.data, warped.data, known) if known.any() else 0.0


def _check_both(name: str, of_fixed: object, of_moving: object) -> None:
    if (of_fixed is None) != (of_moving is None):
        given, lacking = ('moving', 'fixed') if of_fixed is None else ('fixed', 'moving')
        raise InputDataError(
            f'The {given} image comes with {name} and the {lacking} image without; expected both '
            f'or none. Give {name} of the {lacking} image too.'
        )


def _mask_array(fixed: Image, mask: Image | np.ndarray | None) -> np.ndarray:
    if mask is None:
        return foreground(fixed)
    if isinstance(mask, Image):
        check_same_grid(mask, fixed)
        mask = mask.data
    return np.asarray(mask) > 0


def _label_scores(
    fixed: Image, fixed_labels: Image, moving_labels: Image, maps: dict[str, Transform]
) -> dict[str, Any]:
    check_same_grid(fixed_labels, fixed)
    scores: dict[str, Any] = {'dice': {}, 'hd95_mm': {}}
    for when, one in maps.items():
        warped = resample(moving_labels, one, fixed.grid, 'labels').data
        overlap = dice(fixed_labels.data, warped)
        if not overlap:
            raise InputDataError(
                f'{fixed_labels.name} and the warped {moving_labels.name} hold background only; '
                'expected labels above 0. Give other label maps or none.'
            )
        distances = hd95_mm(fixed_labels.data, warped, fixed.grid.spacing)
        scores['dice'][when] = _with_mean(overlap)
        scores['hd95_mm'][when] = _with_mean(distances)
    return scores


def _with_mean(values: dict[int, float]) -> dict[str, Any]:
    mean = float(np.mean(list(values.values()))) if values else None
    return {'mean': mean, 'labels': {str(label): value for label, value in values.items()}}


def landmark_summary(errors: np.ndarray) -> dict[str, float | int]:
    """Mean, median, 90th percentile, maximum and number of landmark errors (N,), mm."""
    return _summary(errors, ['mean', 'median', 'p90', 'max']) | {'n': len(errors)}


_STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    'mean': lambda values: values.mean(dtype=np.float64),
    'median': np.median,
    'p90': lambda values: np.percentile(values, 90),
    'p95': lambda values: np.percentile(values, 95),
    'max': np.max,
}


def _summary(values: np.ndarray, names: list[str]) -> dict[str, float]:
    return {name: float(_STATISTICS[name](values)) for name in names}


def _deformation_lengths(
    displacement: np.ndarray, grid: Grid, mask: np.ndarray, affine: np.ndarray
) -> np.ndarray:
    """|affine^-1 phi(x) - x| at the voxels of the mask, mm."""
    back = np.linalg.inv(affine)
    lengths = []
    for first, last in _slabs(grid):
        inside = mask[first:last]
        points = grid.points(first, last)[inside]
        moved = apply_affine(back, points + displacement[first:last][inside])
        lengths.append(np.linalg.norm(moved - points, axis=-1).astype(np.float32))
    return np.concatenate(lengths)


def _slabs(grid: Grid) -> Iterator[tuple[int, int]]:
    for first in range(0, grid.shape[0], _PLANES):
        yield first, min(first + _PLANES, grid.shape[0])


def _mapped(transform: PointMap, points: np.ndarray) -> np.ndarray:
    return Transform([transform]).map_points(points)
