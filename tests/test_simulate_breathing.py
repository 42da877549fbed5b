"""Breathing with a known truth: motions fitted to landmarks, density, sliding."""

import numpy as np
import pytest
from scipy import ndimage

from nephi_pipe.errors import InputDataError, UsageError
from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image
from nephi_pipe.metrics import random_points, tre_mm
from nephi_pipe.motion import LandmarkMotion, fit_diffeomorphism, read_motion
from nephi_pipe.simulate_breathing import breathing_pair, with_density
from nephi_pipe.sliding import Depth
from nephi_pipe.transforms import resample

GRID = Grid(
    (64, 48, 50), np.array([[-5.0, 0, 0, 160], [0, -5.0, 0, 120], [0, 0, 5.0, -300], [0, 0, 0, 1]])
)
CENTERS = {'right': [65.0, 0.0, -180.0], 'left': [-65.0, 0.0, -180.0]}
RADII = np.array([48.0, 65.0, 90.0])


def lungs_of(grid: Grid, *sides: str) -> Image:
    """Ellipsoids for lungs."""
    points = grid.points()
    distances = [np.linalg.norm((points - CENTERS[side]) / RADII, axis=-1) for side in sides]
    return Image(np.min(distances, axis=0) < 1, grid)


def breath(points: np.ndarray) -> np.ndarray:
    """The diaphragm goes down by 25 mm and the ribs forward by 8 mm."""
    depth = np.clip((-90.0 - points[..., 2:]) / 180, 0, 1)
    return points + depth**1.5 * [0.0, 8.0, -25.0]


@pytest.fixture(scope='module')
def motion() -> LandmarkMotion:
    """That of another person: 30 mm further left, in smaller lungs, 300 landmarks."""
    lungs = lungs_of(GRID, 'right', 'left')
    start = random_points(GRID, lungs.data, 300, seed=1)
    shift, scale = np.array([-30.0, 12.0, 400.0]), np.array([0.8, 0.9, 0.85])
    everywhere = GRID.to_world(np.argwhere(lungs.data))
    return LandmarkMotion(
        start * scale + shift, breath(start) * scale + shift, everywhere * scale + shift
    )


@pytest.fixture(scope='module')
def chest() -> tuple[Image, Image]:
    """Lungs of -850 HU with vessels of 40 HU, in a body of 30 HU."""
    lungs = lungs_of(GRID, 'right', 'left')
    noise = np.random.default_rng(0).normal(size=GRID.shape)
    vessels = ndimage.gaussian_filter(noise, 1.2)
    data = np.where(lungs.data, np.where(vessels > 2.3 * vessels.std(), 40.0, -850.0), 30.0)
    data[:, :2] = -1000
    return Image(data.astype(np.float32), GRID), lungs


@pytest.fixture(scope='module')
def pair(chest, motion):
    return breathing_pair(*chest, motion, magnitude_mm=10.0, noise_hu=0.0, seed=3)


def test_a_motion_is_carried_to_other_lungs_and_fitted(chest, motion):
    carried = motion.carried_to(chest[1])
    start = random_points(GRID, chest[1].data, 300, seed=1)
    # The boxes of both persons' lungs correspond, so here does everything.
    np.testing.assert_allclose(carried.start, start, atol=0.5)
    np.testing.assert_allclose(carried.end, breath(start), atol=0.5)
    phi = fit_diffeomorphism(carried)
    assert tre_mm(carried.start, carried.end, phi).mean() < 0.3
    others = random_points(GRID, ndimage.binary_erosion(chest[1].data, iterations=2), 500, seed=9)
    assert tre_mm(others, breath(others), phi).mean() < 0.6
    assert np.linalg.norm(breath(others) - others, axis=1).mean() > 8
    np.testing.assert_array_equal(
        phi.map_points(GRID.center_mm + [0, 500, 0]), GRID.center_mm + [0, 500, 0]
    )


def test_one_lung_gets_the_motion_of_one(motion):
    lung = lungs_of(GRID, 'right')
    half = motion.half('right')
    assert 120 < len(half.start) < 180
    carried = half.carried_to(lung)
    index = np.rint(GRID.to_index(carried.start)).astype(int)
    assert lung.data[tuple(index.T)].mean() > 0.97
    np.testing.assert_allclose(carried.end, breath(carried.start), atol=1.0)
    left = motion.half('left')
    assert len(left.start) + len(half.start) == 300
    assert left.start[:, 0].max() < half.start[:, 0].min()
    with pytest.raises(UsageError, match='"left" or "right"'):
        motion.half('both')


def test_the_truth_is_exact_and_has_no_fold(pair, chest):
    everywhere = GRID.points().reshape(-1, 3)[::3]
    there = pair.truth.map_points(everywhere)
    np.testing.assert_allclose(pair.truth.inverse_points(there), everywhere, atol=1e-4)
    assert pair.truth.jacobian_determinant(GRID.points()).min() > 0.2
    assert pair.fixed is chest[0]
    assert len(pair.fixed_landmarks) == len(pair.moving_landmarks) == 300
    index = np.rint(GRID.to_index(pair.fixed_landmarks)).astype(int)
    assert chest[1].data[tuple(index.T)].all()
    assert tre_mm(pair.fixed_landmarks, pair.moving_landmarks, pair.truth).max() < 1e-6


@pytest.mark.parametrize('magnitude', [8.0, 20.0])
def test_the_mean_motion_in_the_lungs_is_the_one_asked_for(chest, motion, magnitude):
    made = breathing_pair(*chest, motion, magnitude_mm=magnitude, landmarks=2000, seed=4)
    moved = np.linalg.norm(made.moving_landmarks - made.fixed_landmarks, axis=1)
    assert moved.mean() == pytest.approx(magnitude, rel=0.05)
    assert made.truth.jacobian_determinant(GRID.points()[::2, ::2, ::2]).min() > 0


def test_without_a_magnitude_it_is_that_of_the_landmarks(chest, motion):
    made = breathing_pair(*chest, motion, landmarks=1000)
    expected = breath(made.fixed_landmarks)
    assert np.linalg.norm(made.moving_landmarks - expected, axis=1).mean() < 1.0


def test_lungs_and_their_mask_move_by_the_truth(pair, chest):
    back = resample(pair.moving_labels, pair.truth, GRID, 'labels').data
    assert (back == chest[1].data).mean() > 0.985
    expected = pair.truth.inverse_points(GRID.points())
    exact = resample(
        chest[1].with_data(chest[1].data.astype(np.uint8)), expected_map(expected), GRID, 'labels'
    )
    assert (exact.data != pair.moving_labels.data).sum() < 20
    volume = pair.truth.jacobian_determinant(GRID.points())[chest[1].data].mean()
    assert pair.moving_labels.data.sum() / chest[1].data.sum() == pytest.approx(volume, rel=0.01)


def expected_map(where: np.ndarray):
    """A map that is known at the voxels of ``GRID`` only."""

    def look_up(points: np.ndarray) -> np.ndarray:
        return where[tuple(np.moveaxis(np.rint(GRID.to_index(points)).astype(int), -1, 0))]

    return look_up


def test_the_dense_images_are_made_with_the_truth_to_a_hundredth_of_a_mm(chest, motion):
    """An image whose values are positions says where each voxel of the moving one came from."""
    place = Image(GRID.points()[..., 2].astype(np.float32), GRID)
    made = breathing_pair(
        place, chest[1], motion, magnitude_mm=10.0, noise_hu=0.0, density=False, seed=3
    )
    inner = (slice(12, -12),) * 3
    expected = made.truth.inverse_points(GRID.points()[inner])[..., 2]
    assert np.abs(made.moving.data[inner] - expected).max() < 0.01


def test_mass_stays_where_the_lungs_hold_air(pair, chest, motion):
    image, lungs = chest
    inside = ndimage.binary_erosion(pair.moving_labels.data > 0, iterations=2)
    volume = 1 / pair.truth.jacobian_determinant(pair.truth.inverse_points(GRID.points()))
    without = breathing_pair(
        image, lungs, motion, magnitude_mm=10.0, noise_hu=0.0, density=False, seed=3
    ).moving.data
    air_filled = inside & (np.abs(without + 850) < 0.01)
    found = pair.moving.data[air_filled]
    np.testing.assert_allclose(found, -1000 + 150 * volume[air_filled], atol=0.5)
    assert np.ptp(found) > 15
    vessels = inside & (without > 0)
    np.testing.assert_allclose(pair.moving.data[vessels], without[vessels], atol=1e-3)
    body = pair.moving_labels.data == 0
    np.testing.assert_array_equal(pair.moving.data[body], without[body])


def test_density_follows_volume():
    data = np.array([-900.0, -700.0, -450.0, 40.0])
    halved = with_density(data, np.full(4, 2.0), np.ones(4, bool))
    np.testing.assert_allclose(halved, [-800.0, -400.0, -175.0, 40.0])
    np.testing.assert_array_equal(with_density(data, np.full(4, 2.0), np.zeros(4, bool)), data)


def test_the_chest_wall_stays_behind_when_the_lungs_slide(chest, motion, pair):
    image, lungs = chest
    made = breathing_pair(
        image, lungs, motion, magnitude_mm=10.0, noise_hu=0.0, sliding=1.0, seed=3
    )
    depth = Depth.of(lungs)
    points = GRID.points()
    at = depth.at(points)
    # In the lungs nothing is another.
    deep = points[at < -3.0]
    np.testing.assert_allclose(made.truth.map_points(deep), pair.truth.map_points(deep), atol=1e-9)
    # At the side wall, low down: the smooth motion goes down with the lung, the sliding one not.
    wall = (at > 1.0) & (at < 8.0) & (np.abs(points[..., 0]) > 90) & (points[..., 2] < -190)
    smooth, sliding = (
        one.map_points(points[wall]) - points[wall] for one in (pair.truth, made.truth)
    )
    assert smooth[:, 2].mean() < -5.0
    assert np.abs(sliding[:, 2]).mean() < 0.4 * np.abs(smooth[:, 2]).mean()
    # What is normal to the border stays the same, so that nothing opens.
    normal = depth.normal(points[wall])
    gap = ((smooth - sliding) * normal).sum(axis=-1)
    assert np.abs(gap).mean() < 0.15 * np.linalg.norm(smooth - sliding, axis=-1).mean()


def test_the_sliding_truth_can_be_undone_but_for_a_thin_layer(chest, motion):
    made = breathing_pair(*chest, motion, magnitude_mm=10.0, sliding=0.7, seed=3)
    points = GRID.points().reshape(-1, 3)[::5]
    there = made.truth.map_points(points)
    error = np.linalg.norm(made.truth.inverse_points(there) - points, axis=-1)
    wrong = error > 0.01
    assert wrong.mean() < 0.005
    assert np.abs(Depth.of(chest[1]).at(points[wrong])).max(initial=0) < 5.0
    index = GRID.to_index(made.fixed_landmarks)
    assert len(index) == 300
    back = made.truth.inverse_points(made.moving_landmarks)
    np.testing.assert_allclose(back, made.fixed_landmarks, atol=1e-4)
    assert made.truth.jacobian_determinant(points).min() > 0


def test_a_seed_gives_the_same_pair_again_and_another_seed_another(chest, motion):
    first, again, other = (
        breathing_pair(*chest, motion, magnitude_mm=9.0, landmarks=20, seed=seed)
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.moving.data, again.moving.data)
    np.testing.assert_array_equal(first.moving_landmarks, again.moving_landmarks)
    assert np.abs(first.fixed_landmarks - other.fixed_landmarks).max() > 1
    difference = first.moving.data - other.moving.data
    assert difference.std() == pytest.approx(10 * np.sqrt(2), rel=0.2)


def test_what_cannot_be_simulated_is_told(chest, motion):
    image, lungs = chest
    with pytest.raises(UsageError, match='above 0'):
        breathing_pair(image, lungs, motion, magnitude_mm=0.0)
    with pytest.raises(UsageError, match='from 0 to 1'):
        breathing_pair(image, lungs, motion, sliding=1.5)
    with pytest.raises(UsageError, match='empty'):
        breathing_pair(image, lungs.with_data(np.zeros(GRID.shape, bool)), motion)
    other = Image(lungs.data[1:], GRID.cropped((1, 0, 0), GRID.shape))
    with pytest.raises(InputDataError, match='does not lie on the grid'):
        breathing_pair(image, other, motion)


def test_a_table_of_two_states_is_read_either_way(tmp_path, chest):
    path = tmp_path / 'landmarks.tsv'
    rows = np.arange(24.0).reshape(4, 6)
    header = '\t'.join(f'{state}_{axis}' for state in ('exp', 'insp') for axis in 'xyz')
    path.write_text('\n'.join([header, *('\t'.join(map(str, row)) for row in rows)]))
    motion = read_motion(path, chest[1])
    np.testing.assert_array_equal(motion.start, rows[:, :3])
    np.testing.assert_array_equal(motion.end, rows[:, 3:])
    back = read_motion(path, chest[1], 'insp', 'exp')
    np.testing.assert_array_equal(back.end, rows[:, :3])
    with pytest.raises(InputDataError, match='rest_x'):
        read_motion(path, chest[1], 'exp', 'rest')
    path.write_text(f'{header}\n1\t2\t3\n')
    with pytest.raises(InputDataError, match='lacks numbers'):
        read_motion(path, chest[1])
