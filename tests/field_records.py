"""What the benchmarks that save maps at the voxels leave of a registration, for tests of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.brain import Person


def record(method: str, fixed: str, moving: str, **scores) -> dict:
    """What ``kept`` reads back."""
    finite = {'central_percent': 0.25, 'digital_percent': 0.5, 'ndv_percent': 0.0}
    common = {
        'folds': {'finite_difference': finite},
        'jacobian': {'total': {'sd_log': 0.4}},
        'dice': {'before': {'mean': 0.7}, 'after': {'mean': 0.8}},
    }
    return {
        'fixed': fixed, 'moving': moving, 'method': method, 'wall_s': 9.0, 'cpu_s': 12.0,
        'peak_mib': 900.0, 'threads': 2, 'processor': '2 x Some CPU', 'load_before': 0.3,
        'phases': {
            'affine_s': 2.0, 'deformable_s': 3.0, 'dense_s': 1.0, 'steps': 20,
            'versions': {'torch': '1.0'},
        },
        'scores': common | scores,
    }  # fmt: skip


def cells(text: str, *start: str) -> list[str]:
    """The row of a table that begins so."""
    rows = [[cell.strip(' *') for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    return next(row for row in rows if row[: len(start)] == list(start))


def person(folder: Path, data: Path, label: str) -> Person:
    """Files that need not be there, in the place of ``Person.find``."""
    return Person(folder / f'{label}.nii.gz', folder / f'{label}_labels.nii.gz')
