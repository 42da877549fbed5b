"""Finding lungs: shapes with a known truth, and real scans."""

import os
from pathlib import Path

import numpy as np
import pytest
from chest import GAS_MM, NODULE_MM, TRACHEA_MM, Chest, chest_grid, make_chest, part
from data import AXES, make_grid

from nephi_pipe.coarse import Coarse
from nephi_pipe.ct import mend_ct
from nephi_pipe.errors import InputDataError
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import Image, load_image, load_mask, save_image
from nephi_pipe.lung_mask import find_lungs, lung_mask
from nephi_pipe.morphology import closed, dilated, eroded

DATA = Path(os.environ.get('NEPHI_TEST_DATA', Path(__file__).parents[2] / 'shared' / 'data'))
"""Real scans that are not part of the project; tests with them are skipped elsewhere."""

FAR = 1000.0


@pytest.fixture(scope='module')
def chest() -> Chest:
    return make_chest()


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def scores(chest: Chest) -> list[float]:
    """Dice of the right and of the left lung."""
    found = lung_mask(chest.image).data
    return [dice(found == side, chest.lungs == side) for side in (1, 2)]


def read_at(image: Image, points: np.ndarray) -> np.ndarray:
    """Values of the voxels nearest to points in mm."""
    index = np.rint(apply_affine(image.grid.inverse_affine, points)).astype(int)
    return image.data[tuple(np.atleast_2d(index).T)]


# --- where the lungs are, and where they are not ------------------------------------------------


@pytest.mark.parametrize('axes', AXES)
def test_both_lungs_are_found_in_any_orientation(axes):
    chest = make_chest(chest_grid(5.0, axes))
    assert min(scores(chest)) > 0.95


@pytest.mark.parametrize(
    'spacing',
    [
        (2.8, 2.8, 5.0),
        (6.0, 6.0, 6.0),
        pytest.param((1.3, 1.4, 6.0), marks=pytest.mark.slow),
    ],
)
def test_thick_slices_and_small_voxels(spacing):
    assert min(scores(make_chest(chest_grid(spacing)))) > 0.95


def test_trachea_gas_and_table_are_left_out_and_vessels_are_filled(chest):
    found = lung_mask(chest.image)
    assert not read_at(found, TRACHEA_MM).any()
    assert not read_at(found, GAS_MM).any()
    assert read_at(found, NODULE_MM) == 1
    assert not read_at(found, np.array([[x, -138.0, 0.0] for x in range(-190, 200, 10)])).any()
    deep = eroded(chest.lungs > 0, 8.0, chest.image.grid.spacing)
    assert (found.data[deep] > 0).mean() > 0.995
    assert (chest.image.data[deep] > -200).mean() > 0.05
    assert found.data.dtype == np.uint8
    assert found.grid is chest.image.grid


@pytest.mark.parametrize(
    'case',
    [
        {'touching': True},
        {'contrast_hu': 350.0},
        {'lung_hu': -650.0},
        {'lung_hu': -945.0, 'noise_hu': 40.0},
    ],
)
def test_touching_contrast_expired_and_emphysematous_lungs(case):
    assert min(scores(make_chest(**case))) > 0.95


@pytest.mark.parametrize('lower, upper', [(-40.0, FAR), (-FAR, 40.0), (-30.0, 50.0)])
def test_scans_that_end_within_the_lungs(chest, lower, upper):
    assert min(scores(part(chest, [-FAR, -FAR, lower], [FAR, FAR, upper]))) > 0.95


@pytest.mark.parametrize('axes', ['RAS', 'LPS'])
@pytest.mark.parametrize('side', [1, 2])
@pytest.mark.parametrize('margin', [0.0, 25.0])
def test_one_lung_cut_from_a_scan_knows_its_side(axes, side, margin):
    chest = make_chest(chest_grid(4.0, axes))
    inside = chest.image.grid.to_world(np.argwhere(chest.lungs == side))
    crop = part(chest, inside.min(axis=0) - margin, inside.max(axis=0) + margin)
    found = lung_mask(crop.image).data
    assert dice(found == side, crop.lungs == side) > 0.95
    assert not (found == 3 - side).any()


@pytest.mark.parametrize('side', [1, 2])
def test_the_only_lung_of_a_whole_chest_knows_its_side(side):
    chest = make_chest(lungs=(side,))
    found = lung_mask(chest.image).data
    assert dice(found == side, chest.lungs == side) > 0.95
    assert not (found == 3 - side).any()


def test_lungs_that_the_circle_of_the_scanner_cuts(chest):
    x, y, _ = np.moveaxis(chest.image.grid.points(), -1, 0)
    outside = np.hypot(x, y) > 125
    cut = chest.image.with_data(np.where(outside, -2048, chest.image.data).astype(np.float32))
    mended, _ = mend_ct(cut)
    truth = np.where(outside, 0, chest.lungs)
    assert min(scores(Chest(mended, truth))) > 0.95


def test_what_lies_beside_the_body_does_not_make_lungs_of_the_air_around(chest):
    """Plates and arms have so much surface that the edges of the picture are little of it."""
    x, y, z = np.moveaxis(chest.image.grid.points(), -1, 0)
    plates = (np.abs(x) > 180) & (np.abs(x) < 205) & (np.abs(y) < 90) & (x % 12 < 4)
    data = np.where(plates, 30, chest.image.data).astype(np.float32)
    assert min(scores(Chest(Image(data, chest.image.grid), chest.lungs))) > 0.95


def test_an_airway_that_is_open_to_the_outside(chest):
    data, grid = chest.image.data.copy(), chest.image.grid
    x, y, z = np.moveaxis(grid.points(), -1, 0)
    data[(np.abs(x) < 8) & (y > -10) & (z > 170)] = -1000
    assert min(scores(Chest(Image(data, grid), chest.lungs))) > 0.95


@pytest.mark.parametrize(
    'lower, upper', [([-FAR, -FAR, -FAR], [FAR, FAR, -125.0]), ([-30, -90, -90], [30, 90, 60.0])]
)
def test_a_scan_without_lungs_is_refused(chest, lower, upper):
    with pytest.raises(InputDataError, match='No lung is found in the image in memory'):
        lung_mask(part(chest, lower, upper).image)


# --- masks that are given -----------------------------------------------------------------------


def test_a_mask_of_one_lung_is_taken_as_it_is(chest, tmp_path):
    right = chest.lungs == 1
    path = save_image(tmp_path / 'right.nii.gz', right, chest.image.grid)
    found, source = find_lungs(chest.image, path)
    assert source == 'given'
    np.testing.assert_array_equal(found, right)
    found, source = find_lungs(chest.image)
    assert source == 'found'
    assert set(np.unique(found)) == {0, 1, 2}


def test_a_mask_that_shows_no_lung_or_lies_elsewhere_is_refused(chest, tmp_path):
    grid = chest.image.grid
    heart = np.linalg.norm(grid.points() - [-10, 35, -60], axis=-1) < 30
    path = save_image(tmp_path / 'heart.nii.gz', heart, grid)
    with pytest.raises(InputDataError, match='heart.nii.gz" shows no lung: 0 %'):
        find_lungs(chest.image, path)
    path = save_image(tmp_path / 'small.nii.gz', heart[1:], grid.cropped((1, 0, 0), grid.shape))
    with pytest.raises(InputDataError, match='does not lie on the grid'):
        find_lungs(chest.image, path)


# --- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize('axes', ['RAS', 'PIR', 'oblique LAS'])
def test_blocks_run_along_the_patient_and_come_back(axes):
    grid = make_grid(axes, (33, 40, 12), (0.9, 0.7, 3.0), (0.0, 0.0, 0.0))
    x, y, z = np.moveaxis(grid.points(), -1, 0)
    coarse = Coarse.of(Image((x + 1000).astype(np.float32), grid), 2.0)
    assert sorted(coarse.block) == [1, 2, 3]
    assert coarse.ml(10) == pytest.approx(10 * 0.9 * 0.7 * 3.0 * 6 / 1000)
    if axes != 'oblique LAS':
        steps = np.diff(coarse.data, axis=0)[:-1]
        np.testing.assert_allclose(steps, coarse.spacing[0], atol=1e-3)
    ball = np.sqrt(x**2 + y**2 + z**2) < 10
    blocks = Coarse.of(Image(ball.astype(np.float32), grid), 2.0)
    back = blocks.restored(np.where(blocks.data > 0.5, 2, 0))
    assert set(np.unique(back)) == {0, 2}
    assert dice(back == 2, ball) > 0.94


# --- morphology ---------------------------------------------------------------------------------


def test_masks_grow_and_shrink_by_millimetres():
    spacing = np.array([1.0, 1.5, 4.0])
    grid = Grid((41, 31, 15), np.diag([*spacing, 1.0]))
    distance = np.linalg.norm(grid.points() - grid.to_world(np.array([20, 15, 7])), axis=-1)
    point = distance == 0
    np.testing.assert_array_equal(dilated(point, 6.0, spacing), distance <= 6)
    np.testing.assert_array_equal(eroded(~point, 6.0, spacing), distance > 6)
    assert not dilated(np.zeros_like(point), 6.0, spacing).any()
    assert eroded(np.ones_like(point), 6.0, spacing).all()


def test_closing_fills_gaps_and_goes_on_beyond_the_picture():
    mask = np.ones((40, 20, 20), dtype=bool)
    mask[10:14] = False
    mask[20:] = False
    solid = closed(mask, 3.0, np.ones(3))
    assert solid[:20].all()
    assert not solid[20:].any()


# --- real scans ---------------------------------------------------------------------------------


def real(*names: str) -> Path:
    path = DATA.joinpath(*names)
    if not path.exists():
        pytest.skip(f'{path} is not here')
    return path


@pytest.mark.slow
@pytest.mark.parametrize('session', ['baseline', 'followup'])
def test_experts_masks_of_a_right_lung(session):
    stem = f'sub-01_ses-{session}'
    image = load_image(real('lungct', 'sub-01', f'ses-{session}', 'ct', f'{stem}_ct.nii.gz'))
    folder = real('lungct', 'derivatives', 'manual', 'sub-01', f'ses-{session}', 'ct')
    truth = load_mask(folder / f'{stem}_label-lung_mask.nii.gz', like=image).data
    mended, done = mend_ct(image)
    found = lung_mask(mended).data
    assert 'padding of -2048' in done[0]
    assert dice(found > 0, truth) > 0.985
    assert not (found == 2).any()


def test_a_whole_chest_of_a_real_person():
    image = load_image(real('lungparts', 'ct-64.nii.gz'))
    mended, done = mend_ct(image)
    assert mended is image
    assert done == ()
    found = lung_mask(image)
    right, left = (found.grid.to_world(np.argwhere(found.data == side)) for side in (1, 2))
    litres = np.array([len(right), len(left)]) * found.grid.voxel_volume_mm3 / 1e6
    assert 2.1 < litres[1] < litres[0] < 2.6
    apart = right.mean(axis=0) - left.mean(axis=0)
    assert apart[0] > 100
    assert abs(apart[2]) < 20
