"""Small chest CTs with two lungs that breathe by a known map, as BIDS data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from bids_data import describe, save

SHAPE = (40, 30, 36)
SPACING_MM = 7.0
APEX_MM = 90.0
"""Height of the plane that breathing leaves where it is."""


def affine(shift_mm: Iterable[float] = (0, 0, 0)) -> np.ndarray:
    """RAS+ grid, its middle at ``shift_mm``."""
    matrix = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    matrix[:3, 3] = np.array(shift_mm) - SPACING_MM * (np.array(SHAPE) - 1) / 2
    return matrix


def breathe(points: np.ndarray, stretch: float) -> np.ndarray:
    """Where points (..., 3) of the chest at rest go: everything stretches below the apex."""
    moved = np.array(points, dtype=float)
    moved[..., 2] = APEX_MM - (APEX_MM - moved[..., 2]) * stretch
    return moved


def chest(stretch: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A CT in HU and its lung mask; the lungs' volume is ``stretch`` times that at rest."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing='ij'), -1)
    points = index @ affine()[:3, :3] + affine()[:3, 3]
    points = breathe(points, 1 / stretch)
    body = np.linalg.norm(points / [130, 95, 200], axis=-1) < 1
    lungs = np.zeros(SHAPE, dtype=bool)
    for side in (-1, 1):
        lungs |= np.linalg.norm((points - [60 * side, 0, 0]) / [45, 65, 85], axis=-1) < 1
    x, y, z = np.moveaxis(points, -1, 0)
    vessels = np.sin(x / 9) * np.sin(y / 11 + 1) * np.sin(z / 10 + 2)
    lung = -840 + 300 * np.clip(vessels - 0.2, 0, None) + 40 * np.sin(z / 30)
    return np.where(lungs, lung, np.where(body, 40, -1000)).astype(np.int16), lungs


def landmarks(count: int = 20) -> np.ndarray:
    """Points in the lungs at rest, RAS+ mm, shape (count, 3)."""
    random = np.random.default_rng(4)
    inside = random.uniform(-0.5, 0.5, (count, 3)) * [45, 65, 85]
    inside[:, 0] += np.where(np.arange(count) % 2, 60, -60)
    return inside


def table(points: np.ndarray, names: Iterable[object] | None = None) -> str:
    """Points as a table; with names, in a column ``index``."""
    names = list(range(len(points)) if names is None else names)
    rows = [
        '\t'.join([str(name), *(f'{value:.4f}' for value in point)])
        for name, point in zip(names, points, strict=True)
    ]
    return '\n'.join(['index\tx\ty\tz', *rows]) + '\n'


def make_lungs(root: Path, people: Mapping[str, Mapping[str, float]]) -> Path:
    """A data set and ``derivatives/manual`` with lung masks and landmarks.

    Parameters
    ----------
    people
        For each person the scans (``ses-1``, ``ses-1_acq-insp``) and how they are stretched.
    """
    describe(root, 'lungs')
    manual = describe(root / 'derivatives' / 'manual', 'manual', DatasetType='derivative')
    for person, scans in people.items():
        for number, (entities, stretch) in enumerate(scans.items()):
            shift = np.array([0.0, 4.0, 30.0]) * number  # another position of the table
            image, mask = chest(stretch)
            folder = f'sub-{person}/{entities.split("_")[0]}/ct'
            stem = f'{folder}/sub-{person}_{entities}'
            save(root / f'{stem}_ct.nii.gz', image, affine(shift))
            path = manual / f'{stem}_label-lung_mask.nii.gz'
            save(path, mask.astype(np.uint8), affine(shift))
            points = breathe(landmarks(), stretch) + shift
            (manual / folder).mkdir(parents=True, exist_ok=True)
            (manual / f'{stem}_landmarks.tsv').write_text(table(points))
    return root
