"""Two of the demo's brains on cubes of voxels over one field of view, in a process of its own.

    python -m benchmarks.memory_cubes SIZE FOLDER

Brain scans with their label maps, the same as if they were chest CTs with masks, and an array of
both for programs that read no NIfTI. What is in them is smooth where voxels are finer than the
demo's 2 mm: memory depends on their number alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nephi_pipe.demo import DATASET, LABELS
from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image, load_image, load_labels, normalise, save_image
from nephi_pipe.transforms import Transform, resample

FIELD_OF_VIEW_MM = 192.0
PEOPLE = {'fixed': 'sub-41', 'moving': 'sub-43'}
_AIR_HU, _RANGE_HU = -1000.0, 1100.0


def main() -> None:
    """Read the arguments, make one pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('size', type=int)
    parser.add_argument('folder', type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    arrays = [
        save_person(person, given.size, given.folder / side) for side, person in PEOPLE.items()
    ]
    np.save(given.folder / 'pair.npy', np.stack(arrays))


def save_person(person: str, size: int, stem: Path) -> np.ndarray:
    """Write the files of one person; the intensities from 0 to 1, float32 (N, N, N)."""
    image = load_image(DATASET / f'{person}/anat/{person}_T1w.nii.gz')
    labels = load_labels(LABELS / f'{person}/anat/{person}_desc-meshnet18_dseg.nii.gz')
    grid = cube_around(image, size)
    brain = resample(image, Transform(), grid)
    classes = resample(labels, Transform(), grid, 'labels').data
    values = np.clip(normalise(brain.data, classes > 0), 0, 1).astype(np.float32)
    for kind, data in {
        'brain': brain.data,
        'labels': classes,
        'masks': (classes > 0).astype(np.uint8),
        'lung': _AIR_HU + _RANGE_HU * values,
    }.items():
        save_image(Path(f'{stem}_{kind}.nii'), data, grid)
    return values


def cube_around(image: Image, size: int) -> Grid:
    """A cube of ``size`` voxels along each axis around the middle of an image."""
    spacing = FIELD_OF_VIEW_MM / size
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = image.grid.center_mm - spacing * (size - 1) / 2
    return Grid((size,) * 3, affine)


if __name__ == '__main__':
    main()
