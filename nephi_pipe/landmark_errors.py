"""How far corresponding landmarks of two images lie apart, one by one and in both directions."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import InputDataError
from .files import write_text
from .geometry import Grid
from .landmarks import PointTable, read_points
from .metrics import landmark_summary, tre_mm
from .transforms import PointMap, Transform

logger = logging.getLogger(__name__)

IDENTIFIERS = ('index', 'id', 'landmark', 'name', 'label')
"""Columns by which rows are matched, in this order of preference."""

COLUMNS = {
    'index': 'The landmark, as the input tables call it; its row (from 0) where they do not',
    'x': 'Position in the fixed image, to the right',
    'y': 'Position in the fixed image, to the front',
    'z': 'Position in the fixed image, upwards',
    'raw_mm': 'Distance of the two landmarks as they are, without any registration',
    'affine_mm': 'Distance of the moving landmark from the fixed one mapped by the affine',
    'nephi_mm': 'Distance of the moving landmark from the fixed one mapped by the whole map',
    'inverse_affine_mm': 'Distance of the fixed landmark from the moving one mapped back by the '
    'affine',
    'inverse_nephi_mm': 'Distance of the fixed landmark from the moving one mapped by the inverse',
}
"""The table of landmarks: names and meanings of its columns."""


@dataclass(frozen=True, eq=False)
class LandmarkPairs:
    """Landmarks that both images have.

    Parameters
    ----------
    names
        What each is called.
    fixed, moving
        Where they are, shape (N, 3), RAS+ mm.
    """

    names: list[str]
    fixed: np.ndarray
    moving: np.ndarray

    def warn_of_strays(self, fixed: Grid, moving: Grid) -> None:
        """Tell of landmarks outside of their images: of another convention, or another scan."""
        for side, points, grid in (
            ('fixed', self.fixed, fixed),
            ('moving', self.moving, moving),
        ):
            index = grid.to_index(points)
            outside = ((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any(axis=1)
            if outside.any():
                logger.warning(
                    '%d of %d landmarks of the %s image lie outside of it; expected x, y, z in '
                    'RAS+ mm of the scanner. Check whether they are voxels or LPS, and of this '
                    'scan.',
                    outside.sum(),
                    len(points),
                    side,
                )


def read_landmark_pairs(fixed: str | os.PathLike, moving: str | os.PathLike) -> LandmarkPairs:
    """Read two tables of landmarks and match their rows.

    Rows are matched by the column ``index`` (or ``id``, ``landmark``, ``name``, ``label``) where
    both tables have it, so that one may lack a row; otherwise row i belongs to row i.

    Raises
    ------
    NoInputError, InputDataError
        A table is missing or no table of points; a name is missing or occurs twice; nothing
        matches; two columns match rows differently; tables without names differ in length.
    """
    paths = Path(fixed), Path(moving)
    tables = read_points(fixed), read_points(moving)
    columns = _shared_identifiers(tables)
    if not columns:
        return _by_row(tables, *paths)
    names = [_names(table, columns[0], path) for table, path in zip(tables, paths, strict=True)]
    both = [name for name in names[0] if name in set(names[1])]
    if not both:
        raise InputDataError(
            f'No landmark of "{fixed}" (such as {names[0][0]}) is in "{moving}" (such as '
            f'{names[1][0]}); expected the same names in both. Correct the tables.'
        )
    rows = [[own.index(name) for name in both] for own in names]
    _check_agreement(tables, columns, rows, paths)
    _tell_unmatched(names, paths)
    points = [table.points[own] for table, own in zip(tables, rows, strict=True)]
    return LandmarkPairs(both, *points)


def landmark_errors_mm(
    pairs: LandmarkPairs, affine: np.ndarray, forward: PointMap, inverse: PointMap | None = None
) -> dict[str, np.ndarray]:
    """Distances of every landmark, mm, by the names of the table's columns.

    Points go through the continuous maps and are never rounded to voxels.

    Parameters
    ----------
    pairs
        The landmarks.
    affine
        4x4, fixed mm to moving mm.
    forward, inverse
        Map fixed points to moving points, and back; without ``inverse`` its column is absent.
    """
    fixed, moving = pairs.fixed, pairs.moving
    errors = {
        'raw_mm': np.linalg.norm(fixed - moving, axis=1),
        'affine_mm': tre_mm(fixed, moving, Transform([affine])),
        'nephi_mm': tre_mm(fixed, moving, forward),
        'inverse_affine_mm': tre_mm(moving, fixed, Transform([np.linalg.inv(affine)])),
    }
    if inverse is not None:
        errors['inverse_nephi_mm'] = tre_mm(moving, fixed, inverse)
    return errors


def summarise_landmarks(errors: dict[str, np.ndarray]) -> dict[str, dict[str, dict]]:
    """Mean, median, 90th percentile and maximum as metrics have them.

    Returns
    -------
    dict
        ``tre_mm`` (``raw``, ``before``, ``after``) and ``tre_inverse_mm`` (``before``,
        ``after``): without registration, with the affine, with the whole map.
    """
    stages = {
        'tre_mm': {'raw': 'raw_mm', 'before': 'affine_mm', 'after': 'nephi_mm'},
        'tre_inverse_mm': {'before': 'inverse_affine_mm', 'after': 'inverse_nephi_mm'},
    }
    return {
        key: {when: landmark_summary(errors[name]) for when, name in own.items() if name in errors}
        for key, own in stages.items()
    }


def write_landmark_errors(
    path: str | os.PathLike, pairs: LandmarkPairs, errors: dict[str, np.ndarray]
) -> Path:
    """Write a row for each landmark, its place in the fixed image and its distances."""
    lines = ['\t'.join(COLUMNS)]
    for i, (name, point) in enumerate(zip(pairs.names, pairs.fixed, strict=True)):
        distances = [f'{errors[c][i]:.3f}' if c in errors else 'n/a' for c in list(COLUMNS)[4:]]
        lines.append('\t'.join([name, *(f'{value:.3f}' for value in point), *distances]))
    return write_text(path, '\n'.join(lines) + '\n')


def _shared_identifiers(tables: tuple[PointTable, PointTable]) -> list[str]:
    """Columns that name the landmarks in both tables, the preferred one first."""
    shared = [name for name in IDENTIFIERS if all(name in table.columns for table in tables)]
    return [name for name in shared if name != 'label' or _tells_rows_apart(tables, name)]


def _tells_rows_apart(tables: tuple[PointTable, PointTable], column: str) -> bool:
    """Whether no cell occurs twice; a label may be the kind of a landmark, such as "vessel"."""
    return all(len(set(_cells(table, column))) == len(table.rows) for table in tables)


def _cells(table: PointTable, column: str) -> list[str]:
    place = table.columns.index(column)
    return [row[place].strip() if place < len(row) else '' for row in table.rows]


def _names(table: PointTable, column: str, path: Path) -> list[str]:
    """What the rows are called, each otherwise."""
    names = _cells(table, column)
    if '' in names:
        raise InputDataError(
            f'Row {names.index("") + 2} of "{path}" has no name in the column {column}; expected '
            'one in each row, by which both tables are matched. Fill it in, or remove the row.'
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputDataError(
            f'"{path}" names the landmark {twice} more than once in the column {column}; expected '
            'each name once. Correct the table.'
        )
    return names


def _check_agreement(
    tables: tuple[PointTable, PointTable],
    columns: list[str],
    rows: list[list[int]],
    paths: tuple[Path, Path],
) -> None:
    """Refuse rows that one column matches and another tells apart.

    A running number that was written anew after a row had been removed pairs the wrong points.
    """
    first, *others = columns
    for column in others:
        cells = [_cells(table, column) for table in tables]
        for one, other in zip(*rows, strict=True):
            names = cells[0][one], cells[1][other]
            if names[0] != names[1]:
                raise InputDataError(
                    f'The landmark with the {first} {_cells(tables[0], first)[one]} has the '
                    f'{column} {names[0] or "(none)"} in "{paths[0]}" and {names[1] or "(none)"} '
                    f'in "{paths[1]}"; expected both columns to match the same rows. Correct '
                    'them, or remove the one that does not name the landmarks.'
                )


def _tell_unmatched(names: list[list[str]], paths: tuple[Path, Path]) -> None:
    own, other = map(set, names)
    lost = [name for name in [*names[0], *names[1]] if name not in own & other]
    if lost:
        logger.warning(
            'Landmarks that only one of "%s" and "%s" has are left out: %d of %d, such as %s.',
            *paths,
            len(lost),
            len(own | other),
            lost[0],
        )


def _by_row(tables: tuple[PointTable, PointTable], fixed: Path, moving: Path) -> LandmarkPairs:
    counts = [len(table.points) for table in tables]
    if counts[0] != counts[1]:
        raise InputDataError(
            f'"{fixed}" has {counts[0]} landmarks and "{moving}" has {counts[1]}; expected as '
            'many in both, row by row, or a column "index" in both to match them by. Add it, or '
            'remove the rows that have no counterpart.'
        )
    names = [str(row) for row in range(counts[0])]
    return LandmarkPairs(names, *(table.points for table in tables))
