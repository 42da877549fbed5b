"""The initial transform of a registration: read, looked at, and taken off the moving image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputDataError, UsageError
from .fold_search import lowest_determinants
from .geometry import Grid, apply_affine, is_invertible
from .held_field import HeldField
from .images import Image
from .metrics import random_points
from .prealignment import BaseMap, PreAlignment, Step, affine_part, is_linear
from .result import Registration
from .transforms import DisplacementField, Transform, read_transform, resample

if TYPE_CHECKING:
    from .presets.preparation import Prepared

FilePath = str | os.PathLike
FilePaths = FilePath | Sequence[FilePath]
InitialTransform = FilePaths | np.ndarray | Registration | PreAlignment

MOST_APART_MM = 1.0
"""Mean distance from a point to itself, there and back, above which two files do not belong
together."""

LEAST_COVERED = 0.5
"""Share of the fixed mask of which a displacement field must say something."""

_CHECKED = 5000
_BORDER_VOXELS = 4


def start_of(
    initial: InitialTransform | None, inverse: FilePaths | None, fixed_mask: Image
) -> tuple[np.ndarray | None, BaseMap | None]:
    """The affine to start from, None where nothing was given, and a non-linear map around it.

    Parameters
    ----------
    initial, inverse
        As :func:`nephi_pipe.register` takes them.
    fixed_mask
        Where a non-linear map is looked at, bool.

    Raises
    ------
    UsageError, NoInputError, InputDataError
        As :func:`read_start` and :func:`check_base`, and for an array that is no affine or an
        inverse without its transform.
    """
    if inverse is not None and not isinstance(initial, str | os.PathLike | Sequence):
        raise UsageError(
            'An initial inverse was given without files of an initial transform; expected both or '
            'none. Give the initial transform too.'
        )
    if initial is None:
        return None, None
    if isinstance(initial, np.ndarray):
        return _checked(initial), None
    if isinstance(initial, Registration | PreAlignment):
        start, name = initial, 'that was given'
    else:
        points = random_points(fixed_mask.grid, fixed_mask.data, _CHECKED)
        start, name = read_start(initial, inverse, points), ', '.join(map(str, listed(initial)))
    if isinstance(start, np.ndarray):
        return start, None
    check_base(start, fixed_mask.grid, fixed_mask.data, name)
    return start.affine, start


def _checked(initial: np.ndarray) -> np.ndarray:
    matrix = np.array(initial, dtype=float)
    if matrix.shape != (4, 4) or not is_invertible(matrix):
        raise UsageError(
            f'The initial transform is an array of shape {matrix.shape} that is no invertible '
            'affine; expected a finite 4x4 matrix, fixed mm to moving mm. Check how it is made.'
        )
    return matrix


def read_start(
    files: FilePaths, back: FilePaths | None, points_mm: np.ndarray
) -> np.ndarray | BaseMap:
    """The initial transform in one or several files: an affine, or a non-linear map.

    Parameters
    ----------
    files
        ITK's, or ours; several are listed from the fixed to the moving image.
    back
        The way back of displacement fields, listed from the moving to the fixed image, or None.
    points_mm
        Points (N, 3) of the fixed image, where the nearest affine counts.

    Raises
    ------
    NoInputError, InputDataError
        A file that is not there or cannot be used, or an affine without an inverse.
    UsageError
        A way back where the map has its own, or a field file within a chain.
    """
    files, back = listed(files), None if back is None else listed(back)
    if len(files) == 1 and files[0].suffix == '.safetensors':
        _check_no_way_back(back, files)
        from .field_file import read_field

        return read_field(files[0])
    chain = _chain(files)
    steps = _held(chain, files)
    if chain.affine is not None:
        _check_no_way_back(back, files)
        return chain.affine
    way_back = None if back is None else _held(_chain(back), back)
    return PreAlignment(steps, way_back, affine_part(steps, points_mm))


def listed(files: FilePaths) -> list[Path]:
    """One or several files as a list."""
    return [Path(one) for one in ([files] if isinstance(files, str | os.PathLike) else files)]


def _check_no_way_back(back: list[Path] | None, files: list[Path]) -> None:
    if back is not None:
        raise UsageError(
            f'The initial transform "{files[0]}" has an inverse of its own; expected a second '
            'file for displacement fields only. Leave the initial inverse out.'
        )


def _chain(files: list[Path]) -> Transform:
    for path in files:
        if path.suffix == '.safetensors':
            raise UsageError(
                f'The field "{path}" is one of several files of an initial transform; expected '
                'it alone. Write it as .h5 with "nephi register" first.'
            )
    return Transform([read_transform(path) for path in files])


def _held(chain: Transform, files: list[Path]) -> list[Step]:
    steps = [HeldField(one) if isinstance(one, DisplacementField) else one for one in chain.steps]
    if not all(is_invertible(one) for one in steps if is_linear(one)):
        raise InputDataError(
            f'"{files[0]}" holds a singular matrix; expected an affine with an inverse. Make it '
            'again.'
        )
    return steps


def check_base(base: BaseMap, grid: Grid, mask: np.ndarray, name: str) -> None:
    """Look whether a pre-alignment can be undone where the fixed image is.

    Parameters
    ----------
    base
        The map from fixed to moving points.
    grid, mask
        The fixed image's, bool.
    name
        Of its file.

    Raises
    ------
    InputDataError
        It says nothing of where the fixed image is, folds, or its way back leads elsewhere.
    """
    points = random_points(grid, mask, _CHECKED)
    covered = base.covered(points) if isinstance(base, PreAlignment) else 1.0
    if covered < LEAST_COVERED:
        raise InputDataError(
            f'The displacement field of "{name}" covers {100 * covered:.0f} % of the fixed mask; '
            f'expected at least {100 * LEAST_COVERED:.0f} %. Check that it maps points of the '
            'fixed image to points of the moving image, and belongs to this pair.'
        )
    _, determinants = lowest_determinants(base.exact_jacobian_determinant, grid, mask)
    folded = int((determinants <= 0).sum())
    if folded:
        raise InputDataError(
            f'The pre-alignment "{name}" folds at {folded} of {len(determinants)} points of the '
            f'fixed mask (smallest determinant {determinants.min():.2f}); expected a map with an '
            'inverse. Make it again with more smoothing, or start from its affine.'
        )
    if not isinstance(base, PreAlignment):
        # Both maps of a field of ours were found together; how well they agree is reported.
        return
    there = base.warp_points(points)
    apart = np.linalg.norm(base.inverse.warp_points(there) - points, axis=1)
    if not apart.mean() <= MOST_APART_MM:
        raise InputDataError(
            f'The pre-alignment "{name}" and its way back miss each other by {apart.mean():.1f} '
            f'mm on average; expected at most {MOST_APART_MM:g} mm. Check that the initial '
            'inverse is of the same pair and of the opposite direction, or leave it out.'
        )
    lowest = base.inverse.exact_jacobian_determinant(there).min()
    if lowest <= 0:
        raise InputDataError(
            f'The way back of the pre-alignment "{name}" folds (smallest determinant '
            f'{lowest:.2f}); expected a map with an inverse. Leave the initial inverse out.'
        )


def freed(side: Prepared, base: BaseMap) -> Prepared:
    """The moving image without what the pre-alignment does beside its affine A.

    What is registered to the fixed image next, with A between both: ``I(base(A^-1 y))``, on the
    image's own voxels, so that a pre-alignment that is its affine leaves them as they are. What
    is kept is a box around the mask, which may come to lie beyond the image.
    """
    back = base.inverse.warp_points(side.mask_points)
    index = side.grid.to_index(apply_affine(base.affine, back))
    size = np.array(side.grid.shape)
    # At most by its own size: a damaged field could ask for anything.
    lower = np.maximum(np.floor(index.min(axis=0)) - _BORDER_VOXELS, -size)
    upper = np.minimum(np.ceil(index.max(axis=0)) + _BORDER_VOXELS + 1, 2 * size)
    grid = side.grid.cropped(lower, np.maximum(upper, lower + 1))
    undone = Transform([np.linalg.inv(base.affine), base.warp_points_near])

    def read(array: np.ndarray | None, interpolation: str) -> np.ndarray | None:
        if array is None:
            return None
        return resample(Image(array, side.grid), undone, grid, interpolation).data

    mask = read(side.mask, 'nearest')
    return replace(
        side,
        data=np.where(mask, read(side.data, 'linear'), 0).astype(np.float32),
        grid=grid,
        mask=mask,
        excluded=read(side.excluded, 'nearest'),
        organ=read(side.organ, 'nearest'),
    )
