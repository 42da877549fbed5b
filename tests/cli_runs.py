"""Runs of ``nephi`` in this process, and small files for it."""

from pathlib import Path

import numpy as np

from nephi_pipe.cli import main
from nephi_pipe.geometry import Grid
from nephi_pipe.itk import write_affine

GRID = Grid((12, 14, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
SHIFT = np.array([[1.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
DOUBLE = np.diag([2.0, 1.0, 1.0, 1.0])


def error_of(capsys, *argv) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    code = main([str(argument) for argument in argv])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('nephi: error: ')
    return code, lines[0]


def affine_file(folder: Path, name: str, affine: np.ndarray) -> Path:
    return write_affine(folder / f'{name}.txt', affine)


def points_file(folder: Path, points: np.ndarray) -> Path:
    path = folder / 'points.tsv'
    rows = ['name\tx\ty\tz', *(f'p{i}\t{x}\t{y}\t{z}' for i, (x, y, z) in enumerate(points))]
    path.write_text('\n'.join(rows) + '\n')
    return path
