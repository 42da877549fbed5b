"""Spatial transforms: maps of points in RAS+ mm, their files, and images read through them.

A transform ``from-A_to-B`` maps points of B to points of A, so it resamples an image of A onto
the grid of B (see :mod:`nephi_pipe.geometry`). The formats are in :mod:`nephi_pipe.itk`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .displacement import DisplacementField, PointMap, field_grid, sample_field
from .errors import UsageError
from .geometry import Grid, apply_affine, is_invertible
from .images import Image
from .interpolation import resample_array, spline_coefficients
from .itk import read_steps, unusable, write_composite, write_field_image

__all__ = [
    'DisplacementField',
    'Transform',
    'field_grid',
    'read_affine',
    'read_transform',
    'resample',
    'sample_field',
    'write_transform',
]

INTERPOLATIONS = {'linear': 1, 'nearest': 0, 'cubic': 3, 'labels': 0}
"""Names of interpolations and the order of their B-spline."""

_SLAB_POINTS = 1 << 18


class Transform:
    """A chain of maps, applied first to last.

    Parameters
    ----------
    steps
        4x4 affines (mm to mm), objects with ``map_points`` such as :class:`DisplacementField`,
        other transforms, and plain functions of points (..., 3).

    >>> shift = np.eye(4)
    >>> shift[0, 3] = 5.0
    >>> transform = Transform([np.diag([2.0, 1.0, 1.0, 1.0]), shift])
    >>> transform.map_points(np.array([1.0, 1.0, 1.0]))
    array([7., 1., 1.])
    >>> transform.inverse().map_points(np.array([7.0, 1.0, 1.0]))
    array([1., 1., 1.])
    """

    def __init__(self, steps: Sequence = ()) -> None:
        self.steps = tuple(_joined(steps))

    @property
    def affine(self) -> np.ndarray | None:
        """The 4x4 matrix of the whole chain, or None where a step is not affine."""
        if not self.steps:
            return np.eye(4)
        only = self.steps[0]
        return only if len(self.steps) == 1 and isinstance(only, np.ndarray) else None

    def then(self, other: Transform | np.ndarray | PointMap) -> Transform:
        """This transform first, ``other`` on its result."""
        return Transform([self, other])

    def inverse(self) -> Transform:
        """The inverse of an affine chain.

        Raises
        ------
        UsageError
            A step is not affine.
        """
        if self.affine is None:
            raise UsageError(
                'Only an affine transform can be inverted here, and this one holds a displacement '
                'field. Give the file of the opposite direction instead (from and to swapped).'
            )
        return Transform([np.linalg.inv(self.affine)])

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map ``points`` (..., 3) in mm."""
        points = np.asarray(points)
        for step in self.steps:
            points = _map(step, points)
        return points

    def map_grid(self, grid: Grid) -> np.ndarray:
        """Where the voxels of ``grid`` are mapped to, float32 mm, shape (X, Y, Z, 3)."""
        mapped = np.empty((*grid.shape, 3), dtype=np.float32)
        for slab, points in map_slabs(self, grid):
            mapped[slab] = points
        return mapped


def _joined(steps: Sequence) -> Iterator:
    """The steps with nested chains opened and neighbouring affines multiplied."""
    affine = None
    for step in steps:
        for inner in step.steps if isinstance(step, Transform) else [step]:
            if isinstance(inner, np.ndarray):
                affine = inner if affine is None else inner @ affine
                continue
            if affine is not None:
                yield affine
                affine = None
            yield inner
    if affine is not None:
        yield affine


def _map(step: Any, points: np.ndarray) -> np.ndarray:
    if isinstance(step, np.ndarray):
        return apply_affine(step, points)
    return getattr(step, 'map_points', step)(points)


def map_slabs(transform: Transform | PointMap, grid: Grid) -> Iterator[tuple[slice, np.ndarray]]:
    """Map the voxels of a grid slab by slab along axis 0, so that memory stays small.

    Yields
    ------
    The slab, and where its voxels go: float32 mm, shape (thickness, Y, Z, 3).
    """
    to_world, *steps = Transform([grid.affine, transform]).steps
    displaced = None
    if steps and isinstance(steps[0], DisplacementField):
        displaced = steps[0].on_lattice(to_world, grid.shape)
    steps = steps[1:] if displaced else steps
    thickness = max(1, _SLAB_POINTS // (grid.shape[1] * grid.shape[2]))
    for first in range(0, grid.shape[0], thickness):
        last = min(first + thickness, grid.shape[0])
        points = _voxel_positions(to_world, grid.shape, first, last)
        if displaced:
            points += displaced(first, last)
        for step in steps:
            points = _map_components(step, points)
        yield slice(first, last), np.moveaxis(points, 0, -1)


def _voxel_positions(
    to_world: np.ndarray, shape: Sequence[int], first: int, last: int
) -> np.ndarray:
    """Positions of a slab of voxels, components first, float32, (3, last - first, Y, Z)."""
    i, j, k = (to_world[:3, axis, None] * np.arange(shape[axis]) for axis in range(3))
    rows = i[:, first:last, None] + j[:, None] + to_world[:3, 3, None, None]
    return rows.astype(np.float32)[..., None] + k.astype(np.float32)[:, None, None]


def _map_components(step: Any, points: np.ndarray) -> np.ndarray:
    """Apply one step to points with the components first: an affine is then one fast product."""
    if isinstance(step, np.ndarray):
        flat = step[:3, :3].astype(np.float32) @ points.reshape(3, -1)
        flat += step[:3, 3, None].astype(np.float32)
        return flat.reshape(points.shape)
    return np.moveaxis(_map(step, np.moveaxis(points, 0, -1)), -1, 0).astype(np.float32)


def resample(
    image: Image,
    transform: Transform | PointMap,
    grid: Grid,
    interpolation: str = 'linear',
    cval: float = 0.0,
) -> Image:
    """Read a moving image on the grid of a fixed one.

    Parameters
    ----------
    image
        The moving image.
    transform
        Maps points of ``grid`` to points of the image, mm.
    grid
        The fixed image's grid.
    interpolation
        'linear', 'cubic' (B-spline), 'nearest' or 'labels' (nearest).
    cval
        The value where the moving image has none.

    Returns
    -------
    Float32 for 'linear' and 'cubic', the image's own type otherwise.

    Raises
    ------
    UsageError
        There is no such interpolation.
    """
    read = voxel_reader(image.data, interpolation, cval)
    to_source = Transform([transform, image.grid.inverse_affine])
    nearest = INTERPOLATIONS[interpolation] == 0
    data = np.empty(grid.shape, dtype=image.data.dtype if nearest else np.float32)
    for slab, index in map_slabs(to_source, grid):
        data[slab] = read(index)
    return Image(data, grid)


def voxel_reader(
    data: np.ndarray, interpolation: str, cval: float = 0.0
) -> Callable[[np.ndarray], np.ndarray]:
    """A function that reads ``data`` (X, Y, Z) at continuous voxel indices (..., 3).

    Raises
    ------
    UsageError
        There is no such interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise UsageError(
            f'There is no interpolation "{interpolation}"; expected one of '
            f'{", ".join(INTERPOLATIONS)}.'
        )
    order = INTERPOLATIONS[interpolation]
    if order:
        data = np.ascontiguousarray(data, dtype=np.float32)
    if order > 1:
        data = spline_coefficients(data, order)
    return partial(
        resample_array, np.ascontiguousarray(data), order=order, cval=cval, prefilter=False
    )


def read_transform(path: str | os.PathLike) -> Transform:
    """Read a transform from any of our files, or from ITK's and ANTs'.

    Parameters
    ----------
    path
        ``.h5`` (ITK, single or composite), ``.txt`` or ``.tfm`` (ITK text), ``.mat`` (ITK and
        ANTs), ``.nii`` or ``.nii.gz`` (displacements, intent 1007) or ``.safetensors`` (ours).

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It is damaged, or holds a kind of transform that is not supported.
    """
    if Path(path).suffix == '.safetensors':
        from .registration import load_registration

        return Transform([load_registration(path).warp_points])
    return Transform(
        [
            step if isinstance(step, np.ndarray) else DisplacementField(*step)
            for step in read_steps(path)
        ]
    )


def read_affine(path: str | os.PathLike) -> np.ndarray:
    """Read an affine as a 4x4 matrix, fixed mm to moving mm, RAS+.

    Raises
    ------
    NoInputError, InputDataError
        As :func:`read_transform`, and where the file holds more than an affine or the affine has
        no inverse.
    """
    affine = None if Path(path).suffix == '.safetensors' else read_transform(path).affine
    if affine is None:
        raise unusable(path, 'holds a displacement field', 'an affine', 'Give the affine alone.')
    if not is_invertible(affine):
        raise unusable(
            path, 'holds a singular matrix', 'an affine with an inverse', 'Make it again.'
        )
    return affine


def write_transform(path: str | os.PathLike, affine: np.ndarray, field: DisplacementField) -> Path:
    """Write ``phi(x) = affine(x + field(x))`` so that ITK, ANTs and nitransforms read it.

    Parameters
    ----------
    path
        ``.h5``: an ITK composite of the affine and the field. ``.nii.gz`` or ``.nii``: one field
        that carries the affine too, ``phi(x) - x``, intent 1007, LPS+.
    affine
        4x4, fixed mm to moving mm, RAS+.
    field
        The displacement that comes before it.

    Raises
    ------
    UsageError
        Another suffix.
    OutputError, StorageError
        The file cannot be written.
    """
    path = Path(path)
    if path.suffix == '.h5':
        return write_composite(path, affine, field.vectors, field.grid)
    if path.name.endswith(('.nii', '.nii.gz')):
        # Linear interpolation commutes with an affine: the one field reads as well as the two.
        points = field.grid.points()
        whole = apply_affine(affine, points + field.vectors) - points
        return write_field_image(path, whole, field.grid)
    raise UsageError(f'Cannot write a transform to "{path}"; expected a name in .h5 or .nii.gz.')
