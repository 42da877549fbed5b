"""Scans of lungs as clinics have them, each registered for real: the error of landmarks falls.

What else of issue 5 is asked for has its tests where it belongs: sessions and missing masks in
`test_bids_lung`, masks of one lung in `test_lung_sides`, tables of landmarks in
`test_landmark_errors`.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from lung_pairs import above, breathing_chest, moved, of_side, thick_slices, turned

from nephi_pipe import dense
from nephi_pipe.ct import mend_ct
from nephi_pipe.geometry import apply_affine
from nephi_pipe.images import load_image
from nephi_pipe.lung_mask import lung_mask
from nephi_pipe.metrics import random_points, tre_mm
from nephi_pipe.motion import LandmarkMotion
from nephi_pipe.registration import register
from nephi_pipe.simulate_breathing import breathing_pair

DATA = Path(os.environ.get('NEPHI_TEST_DATA', Path(__file__).parents[2] / 'shared' / 'data'))

TABLE_MM = (3.0, 5.0, 35.0)
"""How far apart the tables of two sessions lie."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Rough settings leave nothing to see on a lattice of 1.5 mm."""
    monkeypatch.setattr(dense, 'BASE_SPACINGS_MM', (6.0, 3.0))


def long_one(case):
    """The other half of a pair of cases, for the long tests."""
    return pytest.param(case, marks=pytest.mark.slow)


def check(fixed, moving, landmarks, **masks):
    """Register; the error of landmarks is well below that of the affine, and nothing folds."""
    here, there = landmarks
    found = register(fixed, moving, modality='lung', sloppy=True, threads=1, **masks)
    before = tre_mm(here, there, lambda points: apply_affine(found.affine, points)).mean()
    after = tre_mm(here, there, found.warp_points).mean()
    back = tre_mm(there, here, found.inverse.warp_points).mean()
    assert np.linalg.norm(here - there, axis=1).mean() > 5
    assert after < 0.65 * before and after < 2 and back < 2
    determinant = found.jacobian_determinant().data
    assert (determinant[found.fixed_mask.data] > 0).all()
    return found


@pytest.fixture(scope='module')
def pair():
    return breathing_chest()


def landmarks_of(pair, keep=slice(None)):
    return pair.fixed_landmarks[keep], pair.moving_landmarks[keep]


@pytest.mark.parametrize('axes', [long_one('LPS'), 'PIL'])
def test_opposite_orientations(pair, axes):
    """One scan runs from the feet to the head and the other the other way, or lies on its side."""
    check(pair.fixed, turned(pair.moving, axes), landmarks_of(pair))


@pytest.mark.parametrize('both', [False, long_one(True)])
def test_slices_of_5_mm(both):
    thin = breathing_chest((6.0, 6.0, 2.5))
    fixed, moving = thin.fixed, thick_slices(thin.moving, 2)
    assert moving.grid.spacing[2] == pytest.approx(5.0)
    check(thick_slices(fixed, 2) if both else fixed, moving, landmarks_of(thin))


@pytest.mark.parametrize('side', [long_one('fixed'), 'moving'])
def test_a_scan_that_ends_above_the_diaphragm(pair, side):
    """The other scan shows the lungs to their base."""
    end_mm = -60.0
    inside = getattr(pair, f'{side}_landmarks')[:, 2] > end_mm
    images = {'fixed': pair.fixed, 'moving': pair.moving}
    images[side] = above(images[side], end_mm)
    cut = lung_mask(images[side]).data
    assert cut[:, :, 0].any() and not inside.all()
    check(images['fixed'], images['moving'], landmarks_of(pair, inside))


@pytest.mark.parametrize('side', ['fixed', long_one('moving')])
def test_contrast_agent_in_one_scan(pair, side):
    bright = breathing_chest(contrast_hu=350.0)
    images = {'fixed': pair.fixed, 'moving': pair.moving, side: getattr(bright, side)}
    np.testing.assert_array_equal(bright.moving_landmarks, pair.moving_landmarks)
    counts = [(one.data > 200).sum() for one in (images[side], getattr(pair, side))]
    assert counts[0] > 1000 and counts[1] < 10
    check(images['fixed'], images['moving'], landmarks_of(pair))


@pytest.mark.parametrize('given', [long_one('fixed'), 'moving'])
def test_a_mask_of_one_lung_beside_a_scan_without_a_mask(pair, given, caplog):
    """Of the other scan the same lung is taken, wherever its table was."""
    side = pair.fixed_landmarks[:, 0] > 0
    here, there = landmarks_of(pair, side)
    mask = of_side(getattr(pair, f'{given}_labels'), 'right')
    moving = moved(pair.moving, TABLE_MM)
    mask = moved(mask, TABLE_MM) if given == 'moving' else mask
    found = check(pair.fixed, moving, (here, there + TABLE_MM), **{f'{given}_mask': mask})
    assert caplog.text.count('the right lungs are compared') == 1
    ml = [m.data.sum() * m.grid.voxel_volume_mm3 for m in (found.fixed_mask, found.moving_mask)]
    assert 0.9 < ml[1] / ml[0] < 1.4


@pytest.mark.slow
def test_a_real_chest_that_breathes():
    """A whole chest of 4 mm voxels, without masks, on another table."""
    path = DATA / 'lungparts' / 'ct-64.nii.gz'
    if not path.exists():
        pytest.skip(f'{path} is not here')
    image, _ = mend_ct(load_image(path))
    lungs = lung_mask(image)
    everywhere = image.grid.to_world(np.argwhere(lungs.data))
    start = random_points(image.grid, lungs.data > 0, 300, seed=1)
    low, high = np.percentile(everywhere[:, 2], [1, 80])
    depth = np.clip((high - start[:, 2:]) / (high - low), 0, 1)
    motion = LandmarkMotion(start, start + depth**1.5 * [0.0, 8.0, -25.0], everywhere)
    pair = breathing_pair(image, lungs, motion, landmarks=200)
    here, there = landmarks_of(pair)
    check(image, moved(pair.moving, TABLE_MM), (here, there + TABLE_MM))
