"""DIR-Lab's text files of voxel indices as tables of points in RAS+ mm.

The files (https://med.emory.edu/departments/radiation-oncology/research-laboratories/
deformable-image-registration, Castillo et al., Phys Med Biol 58, 2013) hold a line ``x y z`` for
each landmark: indices from 1, x to the patient's left, y to the back, z from top to bottom. The
number in the world of an image is found by the image's affine, whatever the order of its voxels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from .errors import InputDataError, UsageError
from .geometry import Grid, flaw_of_grid
from .landmarks import PointTable
from .reading import read_text

_AXES = ('L', 'P', 'I')
_EXPECTED = 'a text file with a line "x y z" of voxel indices for each landmark'


def dirlab_grid(size: Sequence[int], spacing_mm: Sequence[float]) -> Grid:
    """The grid of an image without an affine of its own; its first voxel lies at 0, 0, 0 mm.

    Parameters
    ----------
    size
        Number of voxels to the left, to the back and downwards.
    spacing_mm
        Their size.

    Raises
    ------
    UsageError
        Such a grid cannot be.

    >>> dirlab_grid((512, 512, 120), (0.6, 0.6, 2.5)).to_world([10, 20, 30])
    array([ -6., -12., -75.])
    """
    affine = np.diag([*(-np.asarray(spacing_mm, dtype=float)), 1.0])
    flaw = flaw_of_grid(size, affine)
    if flaw or min(size) < 1 or min(spacing_mm) <= 0:
        raise UsageError(
            f'A size of {_words(size)} voxels with a spacing of {_words(spacing_mm)} mm '
            f'{flaw or "is not above 0"}; expected those of the image. Check --size and --spacing.'
        )
    return Grid(tuple(size), affine)


def in_dirlab_order(grid: Grid) -> Grid:
    """The same voxels counted to the left, to the back and downwards.

    >>> ras = Grid((10, 20, 30), np.diag([2.0, 2.0, 3.0, 1.0]))
    >>> in_dirlab_order(ras).affine[:3]
    array([[-2.,  0.,  0., 18.],
           [ 0., -2.,  0., 38.],
           [ 0.,  0., -3., 87.]])
    """
    here = nib.io_orientation(grid.affine)
    turn = nib.orientations.ornt_transform(here, nib.orientations.axcodes2ornt(_AXES))
    shape = np.empty(3, dtype=int)
    shape[turn[:, 0].astype(int)] = grid.shape
    back = nib.orientations.inv_ornt_aff(turn, grid.shape)
    return Grid(tuple(shape), grid.affine @ back)


def read_dirlab_points(path: str | os.PathLike, grid: Grid) -> PointTable:
    """Landmarks of a DIR-Lab file in the world of an image.

    Parameters
    ----------
    path
        The text file.
    grid
        The image's, its voxels in any order.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It holds no landmarks, a line without three whole numbers, or an index outside of the
        image.
    """
    indices = _read_indices(Path(path))
    grid = in_dirlab_order(grid)
    outside = ((indices < 1) | (indices > grid.shape)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        raise InputDataError(
            f'Landmark {row + 1} of "{path}" has the index {_words(indices[row], ", ")}; expected '
            f'1 to {_words(grid.shape, ", ")}, the size of the image to the left, to the back and '
            f'downwards. Check that file and image belong together ({outside.sum()} of '
            f'{len(indices)} lie outside).'
        )
    points = grid.to_world(indices - 1.0)
    return PointTable(['x', 'y', 'z'], [[''] * 3 for _ in points], points)


def read_dirlab_pair(
    paths: Sequence[str | os.PathLike], grids: Sequence[Grid]
) -> tuple[PointTable, PointTable]:
    """Landmarks of both images of a pair; row i of one belongs to row i of the other.

    Raises
    ------
    NoInputError, InputDataError
        As `read_dirlab_points`, and where one file has more landmarks than the other.
    """
    first, second = (read_dirlab_points(*one) for one in zip(paths, grids, strict=True))
    counts = len(first.points), len(second.points)
    if counts[0] != counts[1]:
        raise InputDataError(
            f'"{paths[0]}" has {counts[0]} landmarks and "{paths[1]}" has {counts[1]}; expected '
            'as many, since line i of one belongs to line i of the other. Find the missing line.'
        )
    return first, second


def _read_indices(path: Path) -> np.ndarray:
    """Whole numbers from 1, shape (N, 3)."""
    lines = read_text(path, _EXPECTED).rstrip().splitlines()
    rows = [_index_of(line, number, path) for number, line in enumerate(lines, start=1)]
    if not rows:
        raise InputDataError(f'"{path}" is empty; expected {_EXPECTED}. Get the file again.')
    return np.array(rows)


def _index_of(line: str, number: int, path: Path) -> list[float]:
    """The three numbers of a line; decimals that are whole, such as 12.0, will do."""
    try:
        values = [float(cell) for cell in line.replace(',', ' ').split()]
    except ValueError:
        values = []
    if len(values) != 3 or not all(value.is_integer() for value in values):
        raise InputDataError(
            f'Line {number} of "{path}" is "{line.strip()}"; expected three whole numbers, the '
            'voxel x, y and z of a landmark counted from 1. Correct the line.'
        )
    return values


def _words(values: Sequence[float], between: str = ' x ') -> str:
    return between.join(f'{value:g}' for value in values)
