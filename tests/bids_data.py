"""Small BIDS data sets for tests: smooth, brain-like balls with label maps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
from data import DEMO
from scipy import ndimage

SHAPE = (40, 44, 38)
SPACING_MM = 4.0


def ball(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """A skull-stripped 'brain' and its labels (1 shell, 2 core, 3 and 4 in the core).

    The seed changes the shape a little, so that different people need a deformation.
    """
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'), -1)
    bend = [ndimage.gaussian_filter(random.normal(size=shape), 6) for _ in range(3)]
    grid = grid + 0.05 * np.stack([b / np.abs(b).max() for b in bend], -1)
    radius = np.linalg.norm(grid / [0.7, 0.8, 0.65], axis=-1)
    labels = np.where(radius < 1, 1, 0) + np.where(radius < 0.72, 1, 0)
    for value, side in ((3, -1), (4, 1)):
        labels[np.linalg.norm(grid - [0.25 * side, 0.05, 0.0], axis=-1) < 0.16] = value
    values = np.array([0.0, 60.0, 110.0, 30.0, 45.0])[labels]
    image = ndimage.gaussian_filter(values, 0.7) + random.normal(scale=1.0, size=shape)
    return np.where(labels > 0, np.maximum(image, 1.0), 0.0).astype(np.float32), labels


def affine(spacing: float = SPACING_MM, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """RAS+, the world's origin in the middle."""
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    return matrix


def save(path: Path, data: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    """Write a NIfTI with sform and qform set, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = affine(shape=data.shape[:3]) if matrix is None else matrix
    image = nib.Nifti1Image(data, matrix)
    image.set_sform(matrix, code=1)
    nib.save(image, path)
    return path


def touch(root: Path, names: Iterable[str]) -> Path:
    """Empty files with BIDS names, for queries that never open them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def describe(root: Path, name: str = 'balls', **more: object) -> Path:
    """Write ``dataset_description.json``."""
    root.mkdir(parents=True, exist_ok=True)
    content = {'Name': name, 'BIDSVersion': '1.10.0', **more}
    (root / 'dataset_description.json').write_text(json.dumps(content))
    return root


def make_dataset(root: Path, people: Iterable[str] = ('01', '02'), labels: bool = True) -> Path:
    """A data set with one T1w for each person and, in derivatives/seg, their label maps."""
    describe(root)
    seg = describe(
        root / 'derivatives' / 'seg', DatasetType='derivative', GeneratedBy=[{'Name': 'seg'}]
    )
    (seg / 'desc-ball_dseg.tsv').write_text('index\tname\n1\tShell\n2\tCore\n3\tLeft\n4\tRight\n')
    for number, person in enumerate(people):
        image, label_map = ball(number)
        save(root / f'sub-{person}/anat/sub-{person}_T1w.nii.gz', image)
        if labels:
            name = f'sub-{person}/anat/sub-{person}_desc-ball_dseg.nii.gz'
            save(seg / name, label_map.astype(np.int16))
    return root


def small_demo(root: Path) -> Path:
    """The shipped demo data set with every second voxel of each axis: real brains at 4 mm."""
    shutil.copytree(DEMO, root)
    for path in root.rglob('*.nii.gz'):
        image = nib.load(path)
        affine = image.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
        data = np.asarray(image.dataobj)[::2, ::2, ::2]
        small = nib.Nifti1Image(data, affine, dtype=image.get_data_dtype())
        nib.save(small, path)
    return root
