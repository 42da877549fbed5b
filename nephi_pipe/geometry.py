"""Grids of voxels in the world, RAS+ millimetres everywhere.

A transform ``from-A_to-B`` resamples an image of A onto the grid of B; it maps
points of B to points of A. With B fixed and A moving, ``phi(x)`` takes a fixed
point ``x`` to a moving point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns a RAS+ point into ITK's LPS+ and back (it is its own inverse)."""

_FINEST_MM = 1e-4
_LONGEST_MM, _LARGEST_MM3 = 3e3, 2e9
"""Of a field of view: three metres, two cubic metres; more than a whole body needs."""
_FURTHEST_MM = 1e5
"""Of a grid from the world's origin: beyond it single precision loses hundredths of a mm."""


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map ``points`` of shape (..., 3) by a 4x4 ``affine``.

    >>> apply_affine(np.diag([2.0, 1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    array([2., 2., 3.])
    """
    affine = np.asarray(affine, dtype=float)
    return np.asarray(points) @ affine[:3, :3].T + affine[:3, 3]


def is_invertible(affine: np.ndarray) -> bool:
    """Whether a 4x4 affine is finite and has an inverse.

    >>> is_invertible(np.eye(4)), is_invertible(np.diag([1.0, 1.0, 0.0, 1.0]))
    (True, False)
    """
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) >= 1e-6)


def flaw_of_grid(shape: Sequence[int], affine: np.ndarray) -> str:
    """What is wrong with a grid that a file declares, '' where nothing is.

    Lattices in mm are made over the field of view of a grid: its size is bounded here and their
    memory thereby.

    >>> flaw_of_grid((64, 64, 64), np.diag([2.0, 2.0, 2.0, 1.0]))
    ''
    >>> flaw_of_grid((64, 64, 64), np.diag([2.0, 2.0, 0.0, 1.0]))
    'is zero, singular or not finite'
    """
    affine = np.asarray(affine, dtype=float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return 'is zero, singular or not finite'
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not spacing.all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        return 'is zero, singular or not finite'
    extent = spacing * np.array(shape[:3], dtype=float)
    if spacing.min() < _FINEST_MM or extent.max() > _LONGEST_MM or extent.prod() > _LARGEST_MM3:
        sizes = ' x '.join(f'{value:.3g}' for value in spacing)
        return f'makes voxels of {sizes} mm and {extent.max():.3g} mm of space'
    if np.abs(affine[:3, 3]).max() > _FURTHEST_MM:
        return f'places it {np.abs(affine[:3, 3]).max():.3g} mm away'
    return ''


def flip_ras_lps(affine: np.ndarray) -> np.ndarray:
    """Rewrite a world-to-world 4x4 ``affine`` between RAS+ and LPS+ coordinates.

    >>> shift = np.eye(4); shift[0, 3] = 5.0
    >>> float(flip_ras_lps(shift)[0, 3])
    -5.0
    """
    return LPS_FROM_RAS @ np.asarray(affine, dtype=float) @ LPS_FROM_RAS


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of voxels in the world.

    Parameters
    ----------
    shape
        Number of voxels along each of the three axes.
    affine
        4x4 matrix, voxel indices to RAS+ mm, any orientation and anisotropy.

    >>> grid = Grid((10, 20, 30), np.diag([2.0, 2.0, 3.0, 1.0]))
    >>> grid.spacing
    array([2., 2., 3.])
    >>> grid.center_mm
    array([ 9. , 19. , 43.5])
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=float)
        affine.setflags(write=False)
        object.__setattr__(self, 'affine', affine)
        object.__setattr__(self, 'shape', tuple(int(n) for n in self.shape))

    @cached_property
    def spacing(self) -> np.ndarray:
        """Voxel size along each axis, mm, shape (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def direction(self) -> np.ndarray:
        """Unit vectors of the voxel axes as columns, RAS+, shape (3, 3)."""
        return self.affine[:3, :3] / self.spacing

    @cached_property
    def inverse_affine(self) -> np.ndarray:
        """4x4 matrix, RAS+ mm to voxel indices."""
        return np.linalg.inv(self.affine)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in cubic millimetres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def center_mm(self) -> np.ndarray:
        """World position of the middle of the grid, shape (3,)."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    def to_world(self, indices: np.ndarray) -> np.ndarray:
        """Voxel indices (..., 3) to RAS+ mm."""
        return apply_affine(self.affine, indices)

    def to_index(self, points_mm: np.ndarray) -> np.ndarray:
        """RAS+ mm (..., 3) to continuous voxel indices."""
        return apply_affine(self.inverse_affine, points_mm)

    def points(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """World positions of the slabs ``first:last`` along axis 0.

        Returns an array of shape (last - first, shape[1], shape[2], 3) in mm.
        """
        last = self.shape[0] if last is None else last
        axes = [np.arange(first, last), np.arange(self.shape[1]), np.arange(self.shape[2])]
        parts = [axis[:, None] * self.affine[:3, i] for i, axis in enumerate(axes)]
        return (
            parts[0][:, None, None]
            + parts[1][None, :, None]
            + parts[2][None, None, :]
            + self.affine[:3, 3]
        )

    def corners(self) -> np.ndarray:
        """World positions of the eight outer corners (voxel edges), shape (8, 3)."""
        upper = np.array(self.shape) - 0.5
        signs = np.indices((2, 2, 2)).reshape(3, -1).T
        return self.to_world(np.where(signs == 1, upper, -0.5))

    def same_as(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """Whether every voxel of both grids lies at the same place in the world."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners() - other.corners()).max() <= tolerance_mm)

    def resampled(self, spacing_mm: float | Sequence[float]) -> Grid:
        """A grid over the same field of view with another spacing.

        The outer edges are kept on the first side of each axis; on the far side
        the grid may reach over by less than one new voxel.

        >>> Grid((10, 10, 10), np.eye(4)).resampled(2.0).shape
        (5, 5, 5)
        """
        spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=float), 3)
        extent = np.array(self.shape) * self.spacing
        shape = np.maximum(np.ceil(extent / spacing - 1e-6), 1).astype(int)
        affine = np.eye(4)
        affine[:3, :3] = self.direction * spacing
        first_edge = self.to_world(np.full(3, -0.5))
        affine[:3, 3] = first_edge + affine[:3, :3] @ np.full(3, 0.5)
        return Grid(tuple(shape), affine)

    def cropped(self, lower: Sequence[int], upper: Sequence[int]) -> Grid:
        """The part of the grid with voxel indices in [lower, upper).

        ``lower`` may be negative and ``upper`` beyond the shape: the grid grows.
        """
        first = np.asarray(lower, dtype=int)
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(first)
        return Grid(tuple(np.asarray(upper, dtype=int) - first), affine)


@dataclass(frozen=True)
class Frame:
    """Normalised coordinates of a field: one scale for all axes, so isotropic in mm.

    ``normalised = (x_mm - center_mm) / scale_mm``; the box the field is made for
    lies in [-1, 1] along its longest axis and inside of it along the others.
    """

    center_mm: tuple[float, float, float]
    scale_mm: float

    @classmethod
    def around(cls, points_mm: np.ndarray, margin_mm: float = 0.0) -> Frame:
        """The frame of the axis-aligned box around ``points_mm`` (N, 3).

        >>> Frame.around(np.array([[0.0, 0, 0], [20, 40, 10]]))
        Frame(center_mm=(10.0, 20.0, 5.0), scale_mm=20.0)
        """
        lower, upper = points_mm.min(axis=0), points_mm.max(axis=0)
        x, y, z = ((lower + upper) / 2).tolist()
        return cls((x, y, z), float((upper - lower).max() / 2 + margin_mm))
