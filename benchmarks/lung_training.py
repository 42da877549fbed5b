"""The images of the lung weights' training, from what may be trained on, and the command.

    python -m benchmarks.lung_training DATA FOLDER

DATA is the folder of ``lungct`` and ``lungparts``. FOLDER gets images and masks, and
``command.txt``. Real are a CT of 4 mm voxels, both of its lungs and each alone, and the two scans
of one right lung that are the real pair: each alone, under simulated motion, never as a pair.
Beside them the lungs of DIR-Lab cases 1 to 3, of which there are masks and no images, are filled
with a texture like that of lungs; one of these is validated on. Popi and cases 4 and 5 take no
part. The training starts from the brain weights, whose encoder has learned to compare images.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import numpy as np
from scipy import ndimage

from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image, load_image, load_mask, save_image
from nephi_pipe.lung_mask import LEFT, RIGHT, lung_mask
from nephi_pipe.transforms import resample
from nephi_pipe.weights import shipped_weights

from .lung import Scan, real_scan

CASES = (1, 2, 3)
STATES = ('exp', 'insp')
SESSIONS = ('baseline', 'followup')
VALIDATION = 'case_03_insp_both'

_SPACING_MM = 3.0
_TISSUE_HU, _AIR_HU = 40.0, -1000.0
_VESSELS_MM = ((14.0, 3.0), (9.0, 2.0), (6.0, 1.3))
"""Distances between vessels, about, and their radii."""


def main() -> None:
    """Read the arguments, make the images, write the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('folder', type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    parts = given.data / 'lungparts'
    names = real_lungs(parts / 'ct-64.nii.gz', given.folder)
    for case in CASES:
        for state in STATES:
            path = parts / 'dirlab_copd' / f'case_{case:02d}_{state}_mask.nii.gz'
            names += filled_lungs(path, given.folder, 10 * case + STATES.index(state))
    scans = [real_scan(given.data, session) for session in SESSIONS]
    text = shlex.join(map(str, command(parts / 'dirlab_copd', given.folder, names, scans)))
    (given.folder / 'command.txt').write_text(text + '\n')
    print(text)


def command(motions: Path, folder: Path, names: list[str], scans: list[Scan]) -> list[str | Path]:
    """The training, without what depends on the time there is."""
    cases = [f'case_{case:02d}' for case in CASES]
    images = [folder / f'{name}_ct.nii.gz' for name in names] + [scan.image for scan in scans]
    masks = [folder / f'{name}_lungs.nii.gz' for name in names] + [scan.mask for scan in scans]
    return [
        'nephi', 'train', *images, '--masks', *masks, '--validation', f'{VALIDATION}_ct.nii.gz',
        '--motions', *(motions / f'{case}_landmarks.tsv' for case in cases),
        '--motion-lungs', *(motions / f'{case}_exp_mask.nii.gz' for case in cases),
        '--preset', 'lung', '--weights', shipped_weights('brain'), '-o', folder / 'weights',
    ]  # fmt: skip


def real_lungs(path: Path, folder: Path) -> list[str]:
    """A CT with the mask of both lungs, of the right and of the left one."""
    image = load_image(path)
    return _parts(path.name.partition('.')[0], image, lung_mask(image).data, folder)


def filled_lungs(path: Path, folder: Path, seed: int) -> list[str]:
    """Lungs of which there is a mask, filled with a texture; likewise."""
    mask = load_mask(path)
    low, high = (bound(np.argwhere(mask.data > 0), axis=0) for bound in (np.min, np.max))
    grid = mask.grid.cropped(low - 8, high + 9).resampled(_SPACING_MM)
    inside = resample(mask, lambda points: points, grid, 'labels').data > 0
    tissue = np.random.default_rng(seed).normal(_TISSUE_HU, 20, size=grid.shape)
    data = np.where(inside, texture(inside, grid, seed), tissue)
    sides = np.where(_is_right(grid), RIGHT, LEFT) * inside
    name = path.name.replace('_mask.nii.gz', '')
    return _parts(name, Image(data.astype(np.float32), grid), sides, folder)


def texture(inside: np.ndarray, grid: Grid, seed: int) -> np.ndarray:
    """HU of air-filled tissue with vessels: tubes where two smooth random fields are zero."""
    rng = np.random.default_rng(seed)
    solid = np.zeros(grid.shape)
    for apart_mm, radius_mm in _VESSELS_MM:
        fields = [_smooth_noise(grid, apart_mm, rng) for _ in range(2)]
        from_axis_mm = apart_mm * np.sqrt(fields[0] ** 2 + fields[1] ** 2)
        solid = np.maximum(solid, np.exp(-0.5 * (from_axis_mm / radius_mm) ** 2))
    depth = ndimage.distance_transform_edt(inside, grid.spacing)
    front = grid.points()[..., 1]
    tissue = -870 + 40 * _smooth_noise(grid, 30.0, rng) - 0.3 * (front - front.mean())
    # Vessels thin out towards the lungs' border.
    solid *= np.clip(depth / 30, 0.4, 1)
    data = tissue + (_TISSUE_HU - tissue) * solid + rng.normal(scale=20, size=grid.shape)
    return np.maximum(data, _AIR_HU)


def _smooth_noise(grid: Grid, width_mm: float, rng: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=grid.shape), width_mm / 2 / grid.spacing)
    return noise / noise.std()


def _is_right(grid: Grid) -> np.ndarray:
    """Voxels on the right of the middle of a grid around both lungs, bool."""
    x = grid.points()[..., 0]
    return x > x.mean()


def _parts(name: str, image: Image, sides: np.ndarray, folder: Path) -> list[str]:
    """Files of both lungs and of each alone, as if of three persons."""
    found = {'both': sides > 0, 'right': sides == RIGHT, 'left': sides == LEFT}
    names = []
    for part, mask in found.items():
        names.append(f'{name}_{part}')
        save_image(folder / f'{names[-1]}_ct.nii.gz', image.data.astype(np.int16), image.grid)
        save_image(folder / f'{names[-1]}_lungs.nii.gz', mask.astype(np.uint8), image.grid)
    return names


if __name__ == '__main__':
    main()
