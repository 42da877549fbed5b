"""A BIDS data set of three people whose lungs breathe between sessions, made from real chest CTs.

Sessions that do not exist are simulated: the first scan, warped by the motion of a case of
DIR-Lab, with the change of density that belongs to it, at another position of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from nephi_pipe.ct import mend_ct
from nephi_pipe.files import make_folder, write_json, write_text
from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image, load_image, load_mask, save_image
from nephi_pipe.landmarks import PointTable, read_points, write_points
from nephi_pipe.lung_mask import lung_mask
from nephi_pipe.metrics import random_points
from nephi_pipe.simulate_breathing import breathing_pair
from nephi_pipe.transforms import Transform, resample

from .lung_pairs import BELOW_MM, Recipe, continued_below, motion_of

LANDMARKS = 100
"""Random ones, where experts marked none."""

TABLE_MM = (6.0, -14.0, 30.0)
"""From the table of the first session to that of a simulated one."""

MANUAL = 'derivatives/manual/sub-01/ses-{0}/ct/sub-01_ses-{0}'
NAMES = {'sub-01': 'lungct', 'sub-02': 'POPI', 'sub-03': 'ct-64'}
"""Which scans people are made from."""


class Scan(NamedTuple):
    """A CT in HU, the mask of its lungs, and its landmarks by number, RAS+ mm."""

    image: Image
    lungs: Image
    points: dict[int, np.ndarray]


@dataclass(frozen=True)
class Followed:
    """A person: real sessions, and the recipe of one more (see ``benchmarks/lung_pairs.py``)."""

    real: tuple[Scan, ...]
    recipe: Recipe
    side: str = ''

    def sessions(self, cases: Path) -> list[Scan]:
        """All of them, the simulated one last."""
        motion = motion_of(cases, self.recipe)
        motion = motion.half(self.side) if self.side else motion
        first = self.real[0]
        image, lungs = continued_below(first.image, first.lungs, BELOW_MM)
        pair = breathing_pair(
            image, lungs, motion, magnitude_mm=self.recipe.magnitude_mm, seed=self.recipe.seed
        )
        moved = pair.truth.map_points(np.array([*first.points.values()]))
        inside = _inside(pair.moving.grid, moved)
        points = {n: p for n, p, stays in zip(first.points, moved, inside, strict=True) if stays}
        return [*self.real, _on_table(Scan(pair.moving, pair.moving_labels, points), TABLE_MM)]


def write_cohort(data: Path, root: Path, spacing_mm: float) -> Path:
    """Write scans and, in ``derivatives/lungs``, their masks and landmarks.

    Parameters
    ----------
    data
        The folder of ``lungct`` and ``lungparts``.
    root
        The data set; what is there is written again.
    spacing_mm
        Of the voxels; axes that are coarser stay so.
    """
    _describe(root)
    for label, person in people(data, spacing_mm).items():
        for number, scan in enumerate(person.sessions(data / 'lungparts' / 'dirlab_copd'), 1):
            _write_scan(root, f'{label}/ses-{number}/ct/{label}_ses-{number}', scan)
    return root


def people(data: Path, spacing_mm: float) -> dict[str, Followed]:
    """Three people by label; the first one has two real sessions of a right lung."""
    lungct, parts = data / 'lungct', data / 'lungparts'
    right = tuple(_of_lungct(lungct, name, spacing_mm) for name in ('baseline', 'followup'))
    popi = _whole_chest(parts / 'popi' / 'popi_phase00_256.nii.gz', spacing_mm)
    small = _whole_chest(parts / 'ct-64.nii.gz', spacing_mm)
    return {
        'sub-01': Followed(right, Recipe(2, 'exp', 'insp', 8.0, 1), 'right'),
        'sub-02': Followed((popi,), Recipe(1, 'exp', 'insp', 12.0, 2)),
        'sub-03': Followed((small,), Recipe(3, 'insp', 'exp', 10.0, 3)),
    }


def _of_lungct(folder: Path, session: str, spacing_mm: float) -> Scan:
    stem = folder / MANUAL.format(session)
    scan = f'sub-01/ses-{session}/ct/sub-01_ses-{session}_ct.nii.gz'
    image = mend_ct(load_image(folder / scan))[0]
    lungs = load_mask(Path(f'{stem}_label-lung_mask.nii.gz'), image)
    points = read_points(Path(f'{stem}_landmarks.tsv')).points
    coarse = coarser(image, spacing_mm)
    lungs = resample(
        lungs.with_data(lungs.data.astype(np.uint8)), Transform(), coarse.grid, 'labels'
    )
    return Scan(coarse, lungs, dict(enumerate(points)))


def _whole_chest(path: Path, spacing_mm: float) -> Scan:
    image = coarser(mend_ct(load_image(path))[0], spacing_mm)
    lungs = lung_mask(image)
    points = random_points(image.grid, lungs.data > 0, LANDMARKS)
    return Scan(image, lungs, dict(enumerate(points)))


def coarser(image: Image, spacing_mm: float) -> Image:
    """The image with voxels of at least ``spacing_mm``, smoothed first where they grow."""
    spacing = np.maximum(image.grid.spacing, spacing_mm)
    growth = spacing / image.grid.spacing
    # A Gaussian as wide as the new voxel, less what the old one blurs already.
    smooth = ndimage.gaussian_filter(
        image.data, np.sqrt(growth**2 - 1) / np.sqrt(12), mode='nearest'
    )
    grid = image.grid.resampled(spacing)
    return resample(image.with_data(smooth), Transform(), grid, 'linear', float(smooth.min()))


def _inside(grid: Grid, points: np.ndarray) -> np.ndarray:
    index = grid.to_index(points)
    return ((index >= 0) & (index <= np.array(grid.shape) - 1)).all(axis=-1)


def _on_table(scan: Scan, shift_mm: tuple[float, float, float]) -> Scan:
    affine = scan.image.grid.affine.copy()
    affine[:3, 3] += shift_mm
    grid = Grid(scan.image.grid.shape, affine)
    image, lungs = (replace(part, grid=grid) for part in (scan.image, scan.lungs))
    return Scan(image, lungs, {number: p + shift_mm for number, p in scan.points.items()})


def _describe(root: Path) -> None:
    about = {'BIDSVersion': '1.10.0'}
    raw = {'Name': 'Breathing lungs', 'DatasetType': 'raw', **about}
    write_json(root / 'dataset_description.json', raw)
    derived = root / 'derivatives' / 'lungs'
    made = {'Name': 'Masks and landmarks', 'DatasetType': 'derivative', **about}
    made['GeneratedBy'] = [{'Name': 'benchmarks/cohort_data.py'}]
    write_json(derived / 'dataset_description.json', made)
    rows = ''.join(f'{label}\t{name}\n' for label, name in NAMES.items())
    write_text(root / 'participants.tsv', f'participant_id\tscan\n{rows}')
    scan = {'Description': 'The real scan that all sessions of the person are made from'}
    write_json(root / 'participants.json', {'scan': scan})
    write_text(root / 'README.md', f'# Breathing lungs\n\n{__doc__}')
    for folder in (root, derived):  # BIDS has no rule for CT yet
        write_text(folder / '.bidsignore', 'ct\n')


def _write_scan(root: Path, stem: str, scan: Scan) -> None:
    derived = root / 'derivatives' / 'lungs' / stem
    for path in (root / stem, derived):
        make_folder(path.parent)
    data = np.rint(scan.image.data).astype(np.int16)
    save_image(Path(f'{root / stem}_ct.nii.gz'), data, scan.image.grid)
    mask = (scan.lungs.data > 0).astype(np.uint8)
    save_image(Path(f'{derived}_label-lung_mask.nii.gz'), mask, scan.lungs.grid)
    rows = [[str(number), '', '', ''] for number in scan.points]
    table = PointTable(['index', 'x', 'y', 'z'], rows, np.array([*scan.points.values()]))
    write_points(Path(f'{derived}_landmarks.tsv'), table)
