"""Tables of points: tab-separated, a header, columns x, y and z in RAS+ mm; others are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .errors import InputDataError
from .files import write_text
from .reading import read_table

_AXES = ('x', 'y', 'z')


@dataclass(frozen=True, eq=False)
class PointTable:
    """Points and whatever else the table says about them.

    Parameters
    ----------
    header
        Names of the columns as in the file.
    rows
        The cells of each row, as text.
    points
        The points, shape (N, 3), RAS+ mm.
    """

    header: list[str]
    rows: list[list[str]]
    points: np.ndarray

    @property
    def columns(self) -> list[str]:
        """Names of the columns without spaces around them, in small letters."""
        return _columns(self.header)

    def with_points(self, points: np.ndarray) -> PointTable:
        """The same rows at other places."""
        return replace(self, points=np.asarray(points, dtype=float))


def read_points(path: str | os.PathLike) -> PointTable:
    """Read a table of points.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It has no columns x, y, z, or a row without three finite numbers.
    """
    path = Path(path)
    rows = read_table(path, 'a tab-separated table of points')
    header = rows[0] if rows else []
    names = _columns(header)
    if any(names.count(axis) != 1 for axis in _AXES):
        raise InputDataError(
            f'"{path}" has the columns {", ".join(header) or "(none)"}; expected a tab-separated '
            'table with a header and the columns x, y and z in RAS+ mm. Rename or add them.'
        )
    columns = [names.index(axis) for axis in _AXES]
    points = [_numbers(row, columns, line, path) for line, row in enumerate(rows[1:], start=2)]
    if not points:
        raise InputDataError(f'"{path}" has a header but no rows; expected at least one point.')
    return PointTable(header, rows[1:], np.array(points))


def write_points(path: str | os.PathLike, table: PointTable) -> Path:
    """Write a table of points with three decimals (micrometres), atomically."""
    columns = [table.columns.index(axis) for axis in _AXES]
    lines = ['\t'.join(table.header)]
    for row, point in zip(table.rows, table.points, strict=True):
        cells = list(row)
        for column, value in zip(columns, point, strict=True):
            cells[column] = f'{value:.3f}'
        lines.append('\t'.join(cells))
    return write_text(path, '\n'.join(lines) + '\n')


def _columns(header: list[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _numbers(row: list[str], columns: list[int], line: int, path: Path) -> list[float]:
    try:
        values = [float(row[column]) for column in columns]
    except (ValueError, IndexError):
        values = [np.nan]
    if not np.isfinite(values).all():
        raise InputDataError(
            f'Row {line} of "{path}" is "{" ".join(row)}"; expected finite numbers under x, y and '
            'z. Correct or remove the row.'
        )
    return values
