"""What the template benchmark registers, made once, in processes of their own.

    python -m benchmarks.template_images template FILE
    python -m benchmarks.template_images simulated IMAGE LABELS FOLDER SEED

The first writes the skull-stripped MNI152 template as nilearn ships it (1 mm). The second makes a
pair of 2 mm of one person: the scan, and the scan warped by a known random diffeomorphism.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image, foreground, load_image, load_labels, save_image
from nephi_pipe.landmarks import PointTable, write_points
from nephi_pipe.simulate import simulated_pair
from nephi_pipe.transforms import Transform, resample

SPACING_MM = 2.0
MAGNITUDE_MM = 12.0
LANDMARKS = 1000

MARGIN_MM = 16.0
"""Around the brain: what moves by 12 mm stays in the picture."""

_BLUR = 0.4
"""Standard deviation of the smoothing before voxels are dropped, in new voxels."""


def main() -> None:
    """Read the arguments, make what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest='kind', required=True)
    template = kinds.add_parser('template')
    template.add_argument('file', type=Path)
    simulated = kinds.add_parser('simulated')
    for name in ('image', 'labels', 'folder'):
        simulated.add_argument(name, type=Path)
    simulated.add_argument('seed', type=int)
    given = parser.parse_args()
    if given.kind == 'template':
        write_template(given.file)
    else:
        write_pair(given.folder, load_image(given.image), load_labels(given.labels), given.seed)


def write_template(path: Path) -> None:
    """The skull-stripped T1w template, 1 mm, zero outside of the brain; nothing is downloaded."""
    from nilearn.datasets import load_mni152_template

    found = load_mni152_template(resolution=1)
    data = np.asarray(found.dataobj, dtype=np.float32)
    save_image(path, data, Grid(data.shape, found.affine))


def write_pair(folder: Path, image: Image, labels: Image, seed: int) -> None:
    """Images, label maps and landmarks of both sides; the fixed landmarks come last, so that
    they tell a whole pair.
    """
    image, labels = coarse(image, labels)
    pair = simulated_pair(image, labels, magnitude_mm=MAGNITUDE_MM, landmarks=LANDMARKS, seed=seed)
    for side in ('moving', 'fixed'):
        parts = getattr(pair, f'{side}_labels').data.astype(np.uint8)
        points = getattr(pair, f'{side}_landmarks')
        save_image(folder / f'{side}.nii.gz', getattr(pair, side).data, image.grid)
        save_image(folder / f'{side}_labels.nii.gz', parts, image.grid)
        table = PointTable(['x', 'y', 'z'], [[''] * 3 for _ in points], points)
        write_points(folder / f'{side}_landmarks.tsv', table)


def coarse(image: Image, labels: Image) -> tuple[Image, Image]:
    """A skull-stripped scan and its labels around the brain with voxels of 2 mm."""
    inside = foreground(image)
    where = np.argwhere(inside)
    margin = np.ceil(MARGIN_MM / image.grid.spacing).astype(int)
    grid = image.grid.cropped(where.min(axis=0) - margin, where.max(axis=0) + margin + 1)
    grid = grid.resampled(SPACING_MM)
    sigma = _BLUR * SPACING_MM / image.grid.spacing
    blurred = image.with_data(ndimage.gaussian_filter(image.data, sigma))
    still = Transform()
    data = resample(blurred, still, grid).data
    kept = resample(image.with_data(inside.astype(np.uint8)), still, grid, 'labels').data > 0
    return Image(np.where(kept, data, 0), grid), resample(labels, still, grid, 'labels')


if __name__ == '__main__':
    main()
