"""Displacement fields: read one with trilinear interpolation, and store one on a lattice."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .geometry import Grid
from .interpolation import resample_array

PointMap = Callable[[np.ndarray], np.ndarray]
"""A function of points (..., 3) in mm that gives values of the same shape in mm."""

SPACINGS_MM = (6, 5, 4, 3.5, 3, 2.5, 2, 1.75, 1.5, 1.25, 1, 0.8, 0.7)
"""Spacings tried for a stored field, coarsest first. Voxels say little of how smooth a field is: a
coarse image may need the finest lattice, and a finer one than that grows faster than it helps."""

_MARGIN = 3
_CHECKED_POINTS = 8000
_TRIED_POINTS = 1500
"""As many of them choose a lattice where values take long to get."""

_PARALLEL_TOLERANCE = 1e-4
"""In cells: how far the axes of two lattices may part and still be called parallel."""


class DisplacementField:
    """A displacement on a lattice, read with trilinear interpolation as ITK does.

    Outside of the lattice (more than half a cell beyond its outer nodes) the displacement is zero.

    Parameters
    ----------
    vectors
        Displacements in RAS+ mm, shape (X, Y, Z, 3); kept as float32.
    grid
        Where the nodes of the lattice are.

    >>> vectors = np.zeros((3, 3, 3, 3))
    >>> vectors[2, :, :, 0] = 4.0
    >>> field = DisplacementField(vectors, Grid((3, 3, 3), np.eye(4)))
    >>> field.displacement(np.array([[1.5, 1.0, 1.0], [9.0, 1.0, 1.0]]))
    array([[2., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """

    def __init__(self, vectors: np.ndarray, grid: Grid) -> None:
        if vectors.shape != (*grid.shape, 3):
            raise ValueError(f'vectors of shape {vectors.shape} on a grid of shape {grid.shape}')
        # One component after the other in memory: twice as fast to read.
        self._components = np.ascontiguousarray(np.moveaxis(vectors, -1, 0), dtype=np.float32)
        self.grid = grid

    @property
    def vectors(self) -> np.ndarray:
        """Displacements in RAS+ mm, float32, shape (X, Y, Z, 3)."""
        return np.moveaxis(self._components, 0, -1)

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """Displacements in mm, float32, at ``points`` (..., 3) in mm."""
        return self.displacement_at_index(self.grid.to_index(points))

    def displacement_at_index(self, index: np.ndarray) -> np.ndarray:
        """Displacements in mm, float32, at continuous indices (..., 3) of the lattice."""
        return np.stack([resample_array(part, index) for part in self._components], axis=-1)

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """``points`` (..., 3) in mm, displaced."""
        return points + self.displacement(points)

    def on_lattice(
        self, to_world: np.ndarray, shape: Sequence[int]
    ) -> Callable[[int, int], np.ndarray] | None:
        """A fast reader for a lattice whose axes are parallel to this one's.

        Parameters
        ----------
        to_world
            4x4 matrix, indices of the lattice to mm.
        shape
            Its number of nodes along each axis.

        Returns
        -------
        A function of ``(first, last)`` that gives the displacements of that slab of the lattice,
        float32 mm, shape (3, last - first, shape[1], shape[2]); None where the axes part.
        """
        to_index = self.grid.inverse_affine @ to_world
        across = to_index[:3, :3] - np.diag(np.diag(to_index))[:3, :3]
        if np.abs(across * np.array(shape)).max() > _PARALLEL_TOLERANCE:
            return None
        axes = [
            _axis_weights(to_index[i, i], to_index[i, 3], shape[i], self.grid.shape[i])
            for i in range(3)
        ]
        return partial(_read_slab, self._components, axes)


def _axis_weights(
    scale: float, shift: float, count: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower neighbour, and the weights of both neighbours, of ``count`` nodes along one axis."""
    at = scale * np.arange(count) + shift
    inside = (at >= -0.5) & (at < size - 0.5)
    at = np.clip(at, 0, size - 1)
    low = np.minimum(at.astype(int), max(size - 2, 0))
    lower = np.where(inside, 1 - (at - low), 0).astype(np.float32)
    upper = np.where(inside, at - low, 0).astype(np.float32)
    return low, lower, upper


def _read_slab(components: np.ndarray, axes: list, first: int, last: int) -> np.ndarray:
    """Trilinear interpolation as three linear ones, one axis after the other."""
    (low, lower, upper), *others = axes
    slab = slice(first, last)
    values = _blend(components, 1, low[slab], lower[slab], upper[slab])
    for axis, weights in enumerate(others, start=2):
        values = _blend(values, axis, *weights)
    return values


def _blend(
    values: np.ndarray, axis: int, low: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    along = (-1,) + (1,) * (values.ndim - 1 - axis)
    below = values.take(low, axis)
    above = values.take(low + 1, axis, mode='clip')
    below *= lower.reshape(along)
    above *= upper.reshape(along)
    above += below
    return above


def field_grid(grid: Grid, spacing_mm: float | None = None) -> Grid:
    """The lattice of a stored field: parallel to ``grid`` and three cells larger on every side.

    ITK has no displacement beyond the last nodes, and nitransforms reads between nodes with cubic
    splines, which err near the border: with three cells by 0.01 of the spacing at the outer
    voxels, with one cell by 0.1. A sheared grid gets the nearest rectangular
    lattice, since ITK's images cannot shear.

    Parameters
    ----------
    grid
        The fixed image's grid.
    spacing_mm
        Distance of the nodes along all axes; None for the grid's own.

    >>> field_grid(Grid((10, 10, 10), np.eye(4)), 2.0).shape
    (11, 11, 11)
    """
    direction = grid.direction
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-4:
        left, _, right = np.linalg.svd(direction)
        direction = left @ right
    along = grid.corners() @ np.linalg.inv(direction).T
    lower, upper = along.min(axis=0), along.max(axis=0)
    step = grid.spacing if spacing_mm is None else np.full(3, float(spacing_mm))
    shape = np.ceil((upper - lower) / step - 1e-6).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = direction * step
    affine[:3, 3] = direction @ (lower + step / 2)
    return Grid(tuple(shape), affine).cropped((-_MARGIN,) * 3, shape + _MARGIN)


def sample_field(
    displacement: Callable[[Grid], np.ndarray],
    grid: Grid,
    tolerance_mm: float = 0.05,
    spacing: str | float = 'auto',
    *,
    at_points: PointMap,
    near_points: PointMap | None = None,
    mask: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[DisplacementField, float]:
    """Store a displacement on the coarsest lattice that linear interpolation reads well enough.

    Parameters
    ----------
    displacement
        Gives the displacements in mm at all voxels of a grid, shape (X, Y, Z, 3).
    grid
        The fixed image's grid; the lattice covers its whole field of view.
    tolerance_mm
        Largest error allowed at random points.
    spacing
        'auto', 'native' (the grid's own), or a number of mm.
    at_points
        Gives the displacements in mm at points (..., 3) in mm: the truth to compare with.
    near_points
        The same, faster and not quite right, points (N, 3): a lattice is chosen with it.
    mask
        Where the error counts, bool of the grid's shape; everywhere without one.
    seed
        For the random points.

    Returns
    -------
    The field, and its largest error in mm at the random points. The error is above the tolerance
    only where the spacing was given or where the finest lattice does not reach it.
    """
    points = _random_points(grid, mask, _CHECKED_POINTS, seed)
    truth = at_points(points)

    def stored(lattice: Grid) -> tuple[DisplacementField, float]:
        field = DisplacementField(displacement(lattice), lattice)
        return field, _largest(field.displacement(points) - truth)

    if spacing != 'auto':
        return stored(field_grid(grid, None if spacing == 'native' else float(spacing)))
    lattices = _lattices(grid)
    tried = slice(_TRIED_POINTS) if near_points is None else slice(None)
    first = bisect_left(
        lattices,
        True,
        hi=len(lattices) - 1,
        key=lambda lattice: (
            _cell_error(near_points or at_points, lattice, points[tried], truth[tried])
            <= tolerance_mm
        ),
    )
    for lattice in lattices[first:]:
        field, error = stored(lattice)
        if error <= tolerance_mm:
            break
    return field, error


def _lattices(grid: Grid) -> list[Grid]:
    """What 'auto' chooses from, coarsest first."""
    return [field_grid(grid, spacing) for spacing in SPACINGS_MM]


def _random_points(grid: Grid, mask: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Points anywhere in random voxels (of the mask), shape (count, 3) in mm."""
    random = np.random.default_rng(seed)
    if mask is None:
        voxels = random.integers(0, grid.shape, (count, 3))
    else:
        inside = random.choice(np.flatnonzero(mask), count)
        voxels = np.stack(np.unravel_index(inside, grid.shape), axis=-1)
    return grid.to_world(voxels + random.uniform(-0.5, 0.5, (count, 3)))


def _cell_error(
    at_points: PointMap, lattice: Grid, points: np.ndarray, truth: np.ndarray
) -> float:
    """The error of a lattice at ``points``, from the corners of their cells alone."""
    index = lattice.to_index(points)
    low = np.floor(index)
    corners = np.array(list(itertools.product((0, 1), repeat=3)))[:, None]
    weights = np.where(corners, index - low, 1 - (index - low)).prod(axis=-1)
    values = at_points(lattice.to_world(low + corners).reshape(-1, 3)).reshape(*weights.shape, 3)
    return _largest((weights[..., None] * values).sum(axis=0) - truth)


def _largest(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors, axis=-1).max())
