"""Metrics against hand-made numbers, brute force and maps with a known truth."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from nephi_pipe.errors import InputDataError, NoInputError
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import Image
from nephi_pipe.metrics import (
    dice,
    displacement_on,
    evaluate,
    hd95_mm,
    inverse_consistency_mm,
    jacobian_statistics,
    ncc,
    random_points,
    read_landmarks,
    tre_mm,
)
from nephi_pipe.simulate import random_diffeomorphism, simulated_pair
from nephi_pipe.transforms import DisplacementField, Transform

TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


def test_similarity_is_taken_where_the_moving_image_reaches():
    grid = Grid((30, 30, 30), np.diag([2.0, 2, 2, 1]))
    data = np.random.default_rng(0).normal(50, 10, grid.shape).astype(np.float32)
    cut = Image(data[:, :, 12:], grid.cropped((0, 0, 12), grid.shape))
    whole = Image(data, grid)
    found = evaluate(Transform(), whole, cut, fixed_mask=np.ones(grid.shape, dtype=bool))
    assert found['similarity']['after'] == pytest.approx(1)
    away = np.eye(4)
    away[0, 3] = 500
    found = evaluate(Transform([away]), whole, cut, fixed_mask=np.ones(grid.shape, dtype=bool))
    assert found['similarity']['after'] == 0


def ball(shape, center, radius, spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    offsets = (np.stack(np.indices(shape), axis=-1) - center) * np.array(spacing)
    return np.linalg.norm(offsets, axis=-1) <= radius


def label_maps(seed=0, shape=(22, 25, 19)) -> tuple[np.ndarray, np.ndarray]:
    """Blobs of labels 1 to 4 and the same blobs moved a little, with noise at their rims."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 3)
    maps = []
    for level in (
        smooth,
        np.roll(smooth + ndimage.gaussian_filter(rng.normal(size=shape), 3) / 4, 2, 0),
    ):
        maps.append(np.digitize(level / smooth.std(), [0.5, 1.0, 1.5, 2.0]))
    return maps[0], maps[1]


def oblique_grid(shape=(24, 26, 22), spacing=(3.0, 2.5, 3.5)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag(np.array(spacing) * [-1, 1, 1])
    affine[:3, 3] = [40.0, -30.0, 15.0]
    return Grid(shape, affine)


def test_dice_by_hand():
    a = np.array([[0, 1, 1, 1], [2, 2, 0, 7]])
    b = np.array([[1, 1, 1, 0], [2, 0, 0, 0]])
    assert dice(a, b) == {1: 2 * 2 / 6, 2: 2 / 3, 7: 0.0}
    assert dice(a, b) == dice(b, a)
    assert dice(a, a) == {1: 1.0, 2: 1.0, 7: 1.0}


def test_dice_leaves_out_a_label_absent_in_both_and_background():
    assert dice(np.zeros(5, int), np.zeros(5, int)) == {}
    assert set(dice(np.array([0, 3]), np.array([0, 0]))) == {3}


@pytest.mark.parametrize('spacing', [(1.0, 1.0, 1.0), (0.7, 2.0, 1.3)])
def test_hd95_agrees_with_all_distances_and_with_distance_transforms(spacing):
    spacing = np.array(spacing)
    a, b = label_maps()
    found = hd95_mm(a, b, spacing)
    assert set(found) == {1, 2, 3, 4}
    for label, value in found.items():
        rims = [(x == label) & ~ndimage.binary_erosion(x == label) for x in (a, b)]
        points = [np.argwhere(rim) * spacing for rim in rims]
        apart = cdist(*points)
        expected = max(np.percentile(apart.min(axis=i), 95) for i in (0, 1))
        assert value == pytest.approx(expected, rel=1e-12)
        far = ndimage.distance_transform_edt(~rims[1], spacing)[rims[0]]
        np.testing.assert_allclose(np.sort(far), np.sort(apart.min(axis=1)), atol=1e-9)


def test_hd95_of_concentric_balls_is_the_difference_of_their_radii():
    spacing = (0.5, 1.0, 0.5)
    shape, center = (61, 31, 61), (30, 15, 30)
    outer, inner = (ball(shape, center, radius, spacing) for radius in (12.0, 8.0))
    found = hd95_mm(outer.astype(int), inner.astype(int), spacing)
    assert found[1] == pytest.approx(4.0, abs=0.5)


def test_hd95_of_a_label_at_the_border_and_of_one_that_only_one_map_holds():
    a = np.zeros((6, 7, 8), dtype=np.int32)
    a[0], a[5, 5, 5] = 1, 9
    b = np.zeros_like(a)
    b[2] = 1
    assert hd95_mm(a, b, np.array([1.5, 1, 1])) == {1: 3.0}
    assert hd95_mm(a, a, np.ones(3)) == {1: 0.0, 9: 0.0}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), axis=st.integers(0, 2))
def test_hd95_and_dice_follow_the_laws_of_space(seed, scale, axis):
    a, b = label_maps(seed, (12, 10, 14))
    spacing = np.array([1.0, 0.8, 2.0])
    found = hd95_mm(a, b, spacing)
    assert hd95_mm(b, a, spacing) == found
    assert hd95_mm(np.flip(a, axis), np.flip(b, axis), spacing) == pytest.approx(found)
    assert hd95_mm(a, b, scale * spacing) == pytest.approx(
        {k: scale * v for k, v in found.items()}
    )
    assert dice(np.flip(a, axis), np.flip(b, axis)) == dice(a, b)


def test_tre_takes_points_through_the_continuous_map():
    rng = np.random.default_rng(0)
    points = rng.uniform(-50, 50, (40, 3))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN * 1.1, [3.0, -4.0, 100.0]
    errors = rng.normal(size=(40, 3))
    moving = apply_affine(affine, points) + errors
    for transform in (affine, Transform([affine]), lambda x: apply_affine(affine, x)):
        found = tre_mm(points, moving, transform)
        np.testing.assert_allclose(found, np.linalg.norm(errors, axis=1), rtol=1e-9)


def test_tre_of_points_that_do_not_pair_up_is_refused():
    with pytest.raises(InputDataError, match=r'\(4, 3\).*\(5, 3\)'):
        tre_mm(np.zeros((4, 3)), np.zeros((5, 3)), np.eye(4))


def test_landmark_tables(tmp_path):
    table = tmp_path / 'points.tsv'
    table.write_text('index\tx\ty\tz\n0\t1.5\t-2\t3e1\n1\t0\t0\t-1204.5\n')
    np.testing.assert_array_equal(read_landmarks(table), [[1.5, -2, 30], [0, 0, -1204.5]])
    with pytest.raises(NoInputError, match='nowhere.tsv'):
        read_landmarks(tmp_path / 'nowhere.tsv')
    for text in ('a\tb\n1\t2\n', 'x\ty\tz\n', 'x\ty\tz\n1\tn/a\t3\n', ''):
        table.write_text(text)
        with pytest.raises(InputDataError, match='points.tsv'):
            read_landmarks(table)


def test_jacobian_statistics_of_a_log_normal_sample():
    rng = np.random.default_rng(1)
    values = np.exp(rng.normal(0.1, 0.25, 200_000)).reshape(200, 1000)
    found = jacobian_statistics(values)
    assert found['sd_log'] == pytest.approx(0.25, abs=2e-3)
    assert found['p01'] == pytest.approx(np.exp(0.1 - 2.326 * 0.25), rel=1e-2)
    assert found['p99'] == pytest.approx(np.exp(0.1 + 2.326 * 0.25), rel=1e-2)
    assert (found['min'], found['max']) == (values.min(), values.max())


def test_jacobian_statistics_leave_folds_out_of_sdlogj_and_clip_tiny_values():
    values = np.array([-3.0, 0.0, 1e-30, 1.0])
    found = jacobian_statistics(values)
    assert found['min'] == -3.0
    assert found['sd_log'] == pytest.approx(np.log(1e9) / 2)
    assert jacobian_statistics(values, values > 0.5)['sd_log'] == 0.0
    assert jacobian_statistics(values[:2])['sd_log'] == 0.0


def test_inverse_consistency_of_a_pair_that_misses_by_a_known_vector():
    points = np.random.default_rng(0).normal(size=(100, 3))
    affine = np.eye(4)
    affine[:3, :3] = TURN
    back = np.linalg.inv(affine)
    back[:3, 3] += [0.3, 0.0, -0.4]
    found = inverse_consistency_mm(affine, Transform([back]), points)
    assert found == pytest.approx({'mean': 0.5, 'p95': 0.5, 'max': 0.5})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), slope=st.floats(0.01, 100), offset=st.floats(-100, 100))
def test_ncc_is_pearsons_and_ignores_brightness_and_contrast(seed, slope, offset):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 6, 7, 8))
    mask = rng.random(a.shape) < 0.5
    found = ncc(a, b, mask)
    assert found == pytest.approx(np.corrcoef(a[mask], b[mask])[0, 1], abs=1e-9)
    assert ncc(slope * a + offset, b, mask) == pytest.approx(found, abs=1e-6)
    assert ncc(a, -b, mask) == pytest.approx(-found)


def test_ncc_of_a_constant_image_is_zero():
    assert ncc(np.ones((3, 3, 3)), np.random.default_rng(0).normal(size=(3, 3, 3))) == 0.0


def test_random_points_lie_in_the_voxels_of_the_mask_all_alike():
    grid = oblique_grid()
    mask = np.zeros(grid.shape, dtype=bool)
    mask[3:5, 10, :4] = True
    points = random_points(grid, mask, 8000, seed=1)
    index = np.rint(grid.to_index(points)).astype(int)
    assert mask[tuple(index.T)].all()
    _, counts = np.unique(index, axis=0, return_counts=True)
    assert len(counts) == 8
    assert abs(counts - 1000).max() < 150
    np.testing.assert_array_equal(points, random_points(grid, mask, 8000, seed=1))


def test_displacement_on_a_grid_is_that_of_the_map():
    grid = oblique_grid((20, 9, 8))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = 0.9 * TURN, [7.0, 0.0, -80.0]
    expected = apply_affine(affine, grid.points()) - grid.points()
    found = displacement_on(affine, grid)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.fixture(scope='module')
def pair():
    grid = oblique_grid((30, 34, 28))
    rng = np.random.default_rng(2)
    middle = (np.array(grid.shape) - 1) / 2
    brain = ball(grid.shape, middle, 34.0, grid.spacing)
    texture = ndimage.gaussian_filter(rng.normal(size=grid.shape), 1.5)
    labels = np.digitize(texture / texture.std(), [-0.5, 0.2, 0.9]) + 1
    data = np.where(brain, 100 + 150 * texture / texture.std() / 4 + 20 * labels, 0)
    image = Image(data.astype(np.float32), grid)
    return simulated_pair(
        image,
        Image((labels * brain).astype(np.int32), grid),
        magnitude_mm=10.0,
        smoothness_mm=40.0,
        seed=5,
    )


def test_the_truth_scores_as_the_truth(pair):
    mask = pair.fixed_labels.data > 0
    scores = evaluate(
        pair.truth,
        pair.fixed,
        pair.moving,
        inverse=pair.truth.inverse_points,
        fixed_mask=mask,
        fixed_labels=pair.fixed_labels,
        moving_labels=pair.moving_labels,
        fixed_landmarks=pair.fixed_landmarks,
        moving_landmarks=pair.moving_landmarks,
    )
    lengths = np.linalg.norm(pair.moving_landmarks - pair.fixed_landmarks, axis=1)
    assert scores['tre_mm']['before']['mean'] == pytest.approx(lengths.mean())
    assert scores['tre_mm']['before']['p90'] == pytest.approx(np.percentile(lengths, 90))
    assert scores['tre_mm']['after']['max'] < 1e-5
    assert scores['tre_mm']['after']['n'] == len(lengths)
    for before, after in (
        (scores['dice']['before']['mean'], scores['dice']['after']['mean']),
        (scores['similarity']['before'], scores['similarity']['after']),
    ):
        assert after > before + 0.15
    assert scores['dice']['after']['mean'] > 0.8
    assert scores['hd95_mm']['after']['mean'] < scores['hd95_mm']['before']['mean']
    assert scores['inverse_consistency_mm']['max'] < 1e-5
    folds = scores['folds']['finite_difference']
    assert folds['voxels'] == mask.sum()
    assert folds['central_count'] == folds['digital_count'] == folds['ndv_mm3'] == 0
    exact = pair.truth.jacobian_determinant(pair.fixed.grid.points()[mask])
    assert scores['jacobian']['total'] == pytest.approx(jacobian_statistics(exact), abs=0.05)
    assert scores['displacement_mm']['mean'] == pytest.approx(lengths.mean(), rel=0.05)
    assert json.loads(json.dumps(scores)) == scores


def test_an_affine_is_the_row_before_and_is_kept_out_of_the_deformation(pair):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = 1.1 * TURN, [12.0, -5.0, 30.0]
    center = pair.fixed.grid.center_mm
    affine[:3, 3] += center - affine[:3, :3] @ center
    grid = pair.moving.grid
    elsewhere = Grid(grid.shape, affine @ grid.affine)
    scores = evaluate(
        Transform([pair.truth, affine]),
        pair.fixed,
        Image(pair.moving.data, elsewhere),
        fixed_mask=Image(pair.fixed_labels.data > 0, pair.fixed.grid),
        fixed_labels=pair.fixed_labels,
        moving_labels=Image(pair.moving_labels.data, elsewhere),
        fixed_landmarks=pair.fixed_landmarks,
        moving_landmarks=apply_affine(affine, pair.moving_landmarks),
        affine=affine,
    )
    plain = evaluate(
        pair.truth,
        pair.fixed,
        pair.moving,
        fixed_mask=pair.fixed_labels.data > 0,
        fixed_labels=pair.fixed_labels,
        moving_labels=pair.moving_labels,
    )
    assert scores['tre_mm']['after']['max'] < 1e-5
    deformation, total = scores['jacobian']['deformation'], scores['jacobian']['total']
    assert deformation == pytest.approx(plain['jacobian']['total'], rel=1e-3)
    assert total['max'] == pytest.approx(deformation['max'] * 1.1**3, rel=1e-4)
    assert scores['displacement_mm'] == pytest.approx(plain['displacement_mm'], rel=1e-4)
    for key in ('dice', 'hd95_mm'):
        for when in ('before', 'after'):
            mean = scores[key][when]['mean']
            assert mean == pytest.approx(plain[key][when]['mean'], rel=1e-2)
    assert scores['similarity'] == pytest.approx(plain['similarity'], abs=1e-4)


def test_a_known_displacement_scores_as_the_map_it_came_from(pair):
    grid = pair.fixed.grid
    displacement = displacement_on(pair.truth, grid)
    field = Transform([DisplacementField(displacement, grid)])
    given = evaluate(field, pair.fixed, pair.moving, displacement=displacement)
    computed = evaluate(field, pair.fixed, pair.moving)
    for key in ('total', 'deformation'):
        assert given['jacobian'][key] == pytest.approx(computed['jacobian'][key], abs=1e-5)
    for key in ('similarity', 'displacement_mm'):
        assert given[key] == pytest.approx(computed[key], abs=1e-5)
    assert given['folds'] == computed['folds']
    assert set(given) == {'folds', 'jacobian', 'similarity', 'displacement_mm'}


def test_a_field_that_folds_is_found_out(pair):
    displacement = np.random.default_rng(0).normal(scale=2.5, size=(*pair.fixed.grid.shape, 3))
    scores = evaluate(lambda x: x, pair.fixed, pair.moving, displacement=displacement)
    folds = scores['folds']['finite_difference']
    assert 0 < folds['central_percent'] < folds['digital_percent'] <= 100
    assert scores['jacobian']['total']['min'] < 0


@pytest.mark.parametrize(
    ('extra', 'words'),
    [
        ({'fixed_labels': 'fixed'}, 'fixed image comes with a label map'),
        ({'moving_landmarks': np.zeros((3, 3))}, 'moving image comes with landmarks'),
        ({'fixed_mask': np.zeros((30, 34, 28), bool)}, '0 voxels'),
        ({'fixed_mask': 'shifted'}, 'does not lie on the grid'),
    ],
)
def test_what_does_not_fit_together_is_refused(pair, extra, words):
    grid = pair.fixed.grid
    named = {
        'fixed': pair.fixed_labels,
        'shifted': Image(np.ones(grid.shape, bool), grid.cropped((1, 0, 0), (31, 34, 28))),
    }
    extra = {k: named[v] if isinstance(v, str) else v for k, v in extra.items()}
    with pytest.raises(InputDataError, match=words):
        evaluate(np.eye(4), pair.fixed, pair.moving, **extra)


def test_label_maps_without_labels_are_refused(pair):
    empty = Image(np.zeros(pair.fixed.grid.shape, np.int32), pair.fixed.grid)
    with pytest.raises(InputDataError, match='background only'):
        evaluate(np.eye(4), pair.fixed, pair.moving, fixed_labels=empty, moving_labels=empty)


def test_a_label_that_the_moving_image_lacks_counts_in_dice_and_not_in_distance(pair):
    moving = np.where(pair.moving_labels.data == 2, 0, pair.moving_labels.data)
    scores = evaluate(
        pair.truth,
        pair.fixed,
        pair.moving,
        fixed_labels=pair.fixed_labels,
        moving_labels=Image(moving, pair.moving.grid),
    )
    assert scores['dice']['after']['labels']['2'] == 0.0
    assert set(scores['hd95_mm']['after']['labels']) == {'1', '3', '4'}


@pytest.mark.slow
def test_folds_of_a_full_size_brain_agree_with_the_exact_determinant():
    grid = Grid((288, 288, 181), np.diag([-0.868, 0.868, 1.0, 1.0]))
    phi = random_diffeomorphism(grid, magnitude_mm=12.0, smoothness_mm=30.0, seed=0)
    coarse = grid.resampled(5.0).cropped((-2,) * 3, np.array(grid.resampled(5.0).shape) + 2)
    field = DisplacementField(displacement_on(phi, coarse), coarse)
    displacement = displacement_on(field, grid)
    image = Image(np.ones(grid.shape, np.float32), grid)
    mask = np.zeros(grid.shape, bool)
    mask[40:-40, 40:-40, 20:-20] = True
    scores = evaluate(field, image, image, fixed_mask=mask, displacement=displacement)
    exact = jacobian_statistics(phi.jacobian_determinant(random_points(grid, mask, 20_000)))
    found = scores['jacobian']['total']
    assert found['sd_log'] == pytest.approx(exact['sd_log'], abs=0.01)
    assert found['p01'] == pytest.approx(exact['p01'], abs=0.02)
    assert scores['folds']['finite_difference']['digital_count'] == 0
