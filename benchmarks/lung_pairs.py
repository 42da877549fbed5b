"""The simulated breathing pairs of the lung benchmark, made once, in a process of its own.

    python -m benchmarks.lung_pairs DATA FOLDER NUMBER

DATA is the folder of ``popi`` and ``dirlab_copd``. The full chest CT of POPI breathes as cases 4
and 5 of DIR-Lab do, in either direction, with means of 8 to 20 mm, and as far as their
landmarks say (41 and 36 mm in its lungs). FOLDER gets images, masks and landmarks of both states.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from nephi_pipe.errors import NePhiError
from nephi_pipe.images import Image, load_image, load_mask, save_image
from nephi_pipe.landmarks import PointTable, write_points
from nephi_pipe.lung_mask import lung_mask
from nephi_pipe.motion import LandmarkMotion, read_motion
from nephi_pipe.simulate_breathing import breathing_pair

from .lung import FULL_NUMBERS

MEANS_MM = (8.0, 11.0, 14.0, 17.0, 20.0)
CASES = (4, 5)
LANDMARKS = 300
BELOW_MM, FULL_BELOW_MM = 50.0, 100.0
"""Added below the scan, which ends where the lungs do: they move down by up to 4 cm, of a full
breath by 8."""

TISSUE_HU = 40.0


@dataclass(frozen=True)
class Recipe:
    """How one pair is made."""

    case: int
    start: str
    end: str
    magnitude_mm: float | None
    seed: int

    @classmethod
    def of(cls, number: int) -> Recipe:
        """Pairs 0 to 9: all means of a case, then of the other; every second breathes out.

        Pairs 10 and 11: the motion of each case as it is, in and out.
        """
        states = ('exp', 'insp')[:: 1 if number % 2 == 0 else -1]
        if number in FULL_NUMBERS:
            return cls(CASES[FULL_NUMBERS.index(number)], *states, None, number)
        case, mean = divmod(number, len(MEANS_MM))
        return cls(CASES[case], *states, MEANS_MM[mean], number)


def main() -> None:
    """Read the arguments, make one pair; what is missing is told in one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('folder', type=Path)
    parser.add_argument('number', type=int)
    given = parser.parse_args()
    recipe = Recipe.of(given.number)
    try:
        image = load_image(given.data / 'popi' / 'popi_phase00_256.nii.gz')
        motion = motion_of(given.data / 'dirlab_copd', recipe)
    except NePhiError as error:
        sys.exit(f'{error}\nExpected lungct and lungparts, whole, in --data.')
    write_pair(given.folder, image, motion, recipe)


def motion_of(folder: Path, recipe: Recipe) -> LandmarkMotion:
    """The motion of a case of DIR-Lab."""
    case = f'case_{recipe.case:02d}'
    lungs = load_mask(folder / f'{case}_{recipe.start}_mask.nii.gz')
    return read_motion(folder / f'{case}_landmarks.tsv', lungs, recipe.start, recipe.end)


def write_pair(folder: Path, image: Image, motion: LandmarkMotion, recipe: Recipe) -> None:
    """Images, masks and landmarks; the fixed landmarks last, so that they tell a whole pair."""
    below_mm = FULL_BELOW_MM if recipe.magnitude_mm is None else BELOW_MM
    image, lungs = continued_below(image, lung_mask(image), below_mm)
    pair = breathing_pair(
        image,
        lungs,
        motion,
        magnitude_mm=recipe.magnitude_mm,
        landmarks=LANDMARKS,
        seed=recipe.seed,
    )
    for side in ('moving', 'fixed'):
        data = getattr(pair, side).data
        labels = getattr(pair, f'{side}_labels').data
        points = getattr(pair, f'{side}_landmarks')
        save_image(folder / f'{side}_ct.nii.gz', np.rint(data).astype(np.int16), image.grid)
        save_image(folder / f'{side}_lungs.nii.gz', labels, image.grid)
        table = PointTable(['x', 'y', 'z'], [[''] * 3 for _ in points], points)
        write_points(folder / f'{side}_landmarks.tsv', table)


def continued_below(image: Image, lungs: Image, length_mm: float) -> tuple[Image, Image]:
    """The scan with its lowest slice repeated below; the third axis goes to the head.

    What the slice cuts of the lungs ends there: below it is soft tissue.
    """
    slices = round(length_mm / image.grid.spacing[2])
    grid = image.grid.cropped((0, 0, -slices), image.grid.shape)
    below = [(0, 0), (0, 0), (slices, 0)]
    data = np.pad(image.data, below, mode='edge')
    tips = ndimage.binary_dilation(lungs.data[..., 0] > 0, iterations=2)
    data[..., :slices][tips] = TISSUE_HU
    return Image(data, grid), Image(np.pad(lungs.data, below), grid)


if __name__ == '__main__':
    main()
