"""A field after a pre-alignment: maps, determinants and files are those of the composition.

Pre-alignments are a known pose after a known diffeomorphism. Tiny settings, a brain at 3 mm.
"""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from cli_runs import error_of, points_file
from prealigned import POSE
from registration_runs import quickly

from nephi_pipe import load_registration
from nephi_pipe.cli import main
from nephi_pipe.describe import describe
from nephi_pipe.displacement import DisplacementField
from nephi_pipe.geometry import apply_affine
from nephi_pipe.held_field import HeldField
from nephi_pipe.images import Image, foreground, save_image
from nephi_pipe.itk import write_affine
from nephi_pipe.landmarks import read_points
from nephi_pipe.metrics import inverse_consistency_mm, ncc, random_points, tre_mm
from nephi_pipe.prealignment import PreAlignment
from nephi_pipe.transforms import Transform, read_transform, resample, write_transform

pytestmark = pytest.mark.usefixtures('tiny_presets')

LPS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture(scope='module')
def inside(pair):
    """Points in the fixed brain, mm."""
    return random_points(pair.fixed.grid, foreground(pair.fixed), 1000, seed=5)


def own_displacement(registration, points):
    """That of the field alone, in the fixed image's world."""
    return registration._side.inner.displacement_at(points)


def of_small_differences(warp, points, step=0.01):
    """Determinant of a map's derivative, shape (N,)."""
    columns = [(warp(points + d) - warp(points - d)) / (2 * step) for d in step * np.eye(3)]
    return np.linalg.det(np.stack(columns, axis=-1))


# --- the law of composition ---------------------------------------------------------------------


def test_a_fixed_point_passes_the_field_and_then_the_pre_alignment(
    composed, inside, diffeomorphism
):
    moved = inside + own_displacement(composed, inside)
    assert np.linalg.norm(moved - inside, axis=1).mean() > 0.5
    expected = apply_affine(POSE, diffeomorphism.map_points(moved))
    assert np.linalg.norm(composed.warp_points(inside) - expected, axis=1).max() < 0.05
    np.testing.assert_allclose(composed.affine, POSE, atol=1e-6)
    beside = apply_affine(np.linalg.inv(POSE), composed.warp_points(inside)) - inside
    np.testing.assert_allclose(composed.displacement_at(inside), beside, atol=1e-4)


def test_a_moving_point_passes_them_the_other_way_round(composed, inside, diffeomorphism):
    moving = composed.warp_points(inside)
    there = diffeomorphism.inverse_points(apply_affine(np.linalg.inv(POSE), moving))
    expected = there + own_displacement(composed.inverse, there)
    assert np.linalg.norm(composed.inverse.warp_points(moving) - expected, axis=1).max() < 0.05
    assert composed.inverse.inverse is composed
    assert composed.inverse.base.inverse is composed.base


def test_the_pre_alignment_is_undone_exactly(composed, inside):
    back = composed.base.inverse.warp_points(composed.base.warp_points(inside))
    assert np.linalg.norm(back - inside, axis=1).max() < 1e-3


def test_the_field_corrects_the_pre_alignment(pair, posed, composed, inside):
    truth = apply_affine(POSE, pair.moving_landmarks)
    before = tre_mm(pair.fixed_landmarks, truth, composed.base.warp_points)
    after = tre_mm(pair.fixed_landmarks, truth, composed.warp_points)
    back = tre_mm(truth, pair.fixed_landmarks, composed.inverse.warp_points)
    assert before.mean() > 2
    assert after.mean() < 0.5 * before.mean() and back.mean() < 0.5 * before.mean()
    there = inverse_consistency_mm(composed.warp_points, composed.inverse.warp_points, inside)
    assert there['mean'] < 0.35 * before.mean()
    mask = foreground(pair.fixed)
    warped = composed.warp(posed)
    before = resample(posed, Transform([composed.base.warp_points]), pair.fixed.grid)
    assert ncc(pair.fixed.data, warped.data, mask) > ncc(pair.fixed.data, before.data, mask) + 0.05


@pytest.mark.parametrize('inverse', [False, True], ids=['forward', 'inverse'])
def test_determinants_multiply(composed, inside, diffeomorphism, inverse):
    one = composed.inverse if inverse else composed
    points = composed.warp_points(inside) if inverse else inside
    total = one.exact_jacobian_determinant(points, total=True)
    # Between two nodes the pre-alignment is linear: small differences seldom meet a kink.
    differences = np.abs(total - of_small_differences(one.warp_points, points))
    assert np.quantile(differences, 0.9) < 1e-3 and total.std() > 0.05
    volume = np.linalg.det(one.affine[:3, :3])
    np.testing.assert_allclose(one.exact_jacobian_determinant(points), total / volume, rtol=1e-6)
    if not inverse:
        moved = points + own_displacement(composed, points)
        own = of_small_differences(lambda x: x + own_displacement(composed, x), points, 0.05)
        known = diffeomorphism.jacobian_determinant(moved) * np.linalg.det(POSE[:3, :3])
        assert np.abs(total - own * known).mean() < 0.01


@pytest.mark.parametrize('inverse', [False, True], ids=['forward', 'inverse'])
def test_dense_maps_are_the_continuous_ones(composed, inverse):
    one = composed.inverse if inverse else composed
    voxels = np.argwhere(one.fixed_mask.data)[::11]
    points = one.fixed_grid.to_world(voxels)
    dense = one.displacement(one.fixed_grid)[tuple(voxels.T)]
    apart = np.linalg.norm(dense - one.displacement_at(points), axis=1)
    assert apart.max() < 1.5 * 0.02 * one.fixed_grid.spacing.min()
    determinants = one.jacobian_determinant(total=True).data[tuple(voxels.T)]
    exact = one.exact_jacobian_determinant(points, total=True)
    assert np.abs(determinants - exact).mean() < 0.03


def test_the_warped_image_is_read_through_the_whole_map(composed, pair, posed, inside):
    step = 2.0
    ramp = posed.grid.points() @ np.array([1.0, 2.0, 3.0])
    warped = composed.warp(Image(ramp.astype(np.float32), posed.grid))
    voxels = np.argwhere(composed.fixed_mask.data)[::17]
    there = composed.warp_points(composed.fixed_grid.to_world(voxels))
    index = posed.grid.to_index(there)
    within = ((index > 1) & (index < np.array(posed.grid.shape) - 2)).all(axis=1)
    expected = there @ np.array([1.0, 2.0, 3.0])
    assert np.abs(warped.data[tuple(voxels.T)] - expected)[within].max() < 0.1 * step


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize('inverse', [False, True], ids=['forward', 'inverse'])
def test_itk_reads_the_whole_map(composed, inside, tmp_path, inverse):
    path = tmp_path / 'whole.h5'
    facts = composed.save_transform(path, inverse=inverse, xfm_grid=2.0)
    one = composed.inverse if inverse else composed
    points = composed.warp_points(inside) if inverse else inside
    transform = sitk.ReadTransform(str(path))
    itk = np.array([transform.TransformPoint(p.tolist()) for p in points * LPS]) * LPS
    apart = np.linalg.norm(itk - one.warp_points(points), axis=1)
    assert apart.max() < 1.3 * facts['FieldInterpolationErrorMax'] + 1e-3
    assert facts['FieldInterpolationErrorMax'] < 0.3
    np.testing.assert_allclose(read_transform(path).map_points(points), itk, atol=1e-3)


def test_a_field_file_keeps_the_pre_alignment(composed, inside, tmp_path):
    path = composed.save_field(tmp_path / 'field.safetensors')
    again = load_registration(path)
    for one, other in ((composed, again), (composed.inverse, again.inverse)):
        points = inside if one is composed else composed.warp_points(inside)
        apart = np.linalg.norm(one.warp_points(points) - other.warp_points(points), axis=1)
        assert apart.max() < 0.03
    np.testing.assert_allclose(read_transform(path).map_points(inside), again.warp_points(inside))
    backwards = load_registration(composed.inverse.save_field(tmp_path / 'back.safetensors'))
    np.testing.assert_allclose(
        backwards.warp_points(inside), again.inverse.warp_points(inside), atol=1e-9
    )
    assert again.provenance['initial_transform'] == composed.provenance['initial_transform']
    told = describe(path)
    assert 'its pre-alignment (nephi-field-2)' in told and 'history' not in told


def test_metrics_are_those_of_the_whole_map(composed, pair, posed):
    truth = apply_affine(POSE, pair.moving_landmarks)
    saved = composed.stored_transform(2.0)[0]
    scores = composed.metrics(
        pair.fixed,
        posed,
        fixed_landmarks=pair.fixed_landmarks,
        moving_landmarks=truth,
        saved=saved,
    )
    after = tre_mm(pair.fixed_landmarks, truth, composed.warp_points)
    assert scores['tre_mm']['after']['mean'] == pytest.approx(after.mean())
    folds = scores['folds']
    assert folds['exact']['count'] == folds['lattice']['count'] == 0
    assert folds['lattice']['min'] == pytest.approx(
        scores['jacobian']['deformation']['min'], abs=0.15
    )
    assert json.dumps(scores)


def test_the_command_composes(pair, posed, pre_files, inside, tmp_path, capsys):
    images = [
        str(save_image(tmp_path / f'{side}.nii.gz', image.data, image.grid))
        for side, image in (('fixed', pair.fixed), ('moving', posed))
    ]
    out = tmp_path / 'out'
    start = ['--initial-transform', str(pre_files[0]), '--initial-inverse', str(pre_files[1])]
    options = ['--steps', '2', '--weights', 'none', '--xfm-format', 'field', '--report']
    assert main(['register', *images, '-o', str(out), *start, *options]) == 0
    one = load_registration(out / 'transform.safetensors')
    assert one.provenance['initial_transform'] == [str(pre_files[0])]
    assert json.loads((out / 'metrics.json').read_text())['inverse_consistency_mm']['mean'] < 1
    assert (out / 'report.html').exists()
    source, mapped = points_file(tmp_path, inside[:20]), tmp_path / 'mapped.tsv'
    assert main(['apply', str(out / 'transform.safetensors'), str(source), '-o', str(mapped)]) == 0
    np.testing.assert_allclose(read_points(mapped).points, one.warp_points(inside[:20]), atol=1e-3)
    capsys.readouterr()
    code, message = error_of(
        capsys, 'register', *images, '-o', out, '--initial-transform', images[0]
    )
    assert code == 65 and 'fixed.nii.gz' in message and 'intent' in message


# --- kinds of pre-alignment ---------------------------------------------------------------------


def test_a_way_back_that_is_given_is_used(pair, posed, pre_files, inside, tmp_path):
    one = quickly(
        pair.fixed, posed, initial_transform=pre_files[0], initial_inverse=pre_files[1], steps=1
    )
    moving = one.warp_points(inside)
    there = read_transform(pre_files[1]).map_points(moving)
    np.testing.assert_allclose(one.base.inverse.warp_points(moving), there, atol=1e-4)
    total = one.inverse.exact_jacobian_determinant(moving, total=True)
    differences = np.abs(total - of_small_differences(one.inverse.warp_points, moving))
    assert np.quantile(differences, 0.9) < 1e-3
    again = load_registration(one.save_field(tmp_path / 'field.safetensors'))
    apart = again.inverse.warp_points(moving) - one.inverse.warp_points(moving)
    assert np.linalg.norm(apart, axis=1).max() < 0.03


def test_an_earlier_registration_is_the_first_stage(pair, posed, inside, tmp_path):
    coarse = quickly(pair.fixed, posed, initial_transform=POSE, steps=4)
    path = coarse.save_field(tmp_path / 'coarse.safetensors')
    fine = quickly(pair.fixed, posed, initial_transform=path, steps=4)
    stored = load_registration(path)
    moved = inside + own_displacement(fine, inside)
    np.testing.assert_allclose(fine.warp_points(inside), stored.warp_points(moved), atol=1e-9)
    moving = fine.warp_points(inside)
    there = stored.inverse.warp_points(moving)
    expected = there + own_displacement(fine.inverse, there)
    np.testing.assert_allclose(fine.inverse.warp_points(moving), expected, atol=1e-4)
    total = fine.exact_jacobian_determinant(inside, total=True)
    np.testing.assert_allclose(
        total, of_small_differences(fine.warp_points, inside, 0.05), atol=0.02
    )
    again = load_registration(fine.save_field(tmp_path / 'both.safetensors'))
    apart = again.warp_points(inside) - fine.warp_points(inside)
    assert np.linalg.norm(apart, axis=1).max() < 0.03
    dense = fine.displacement(fine.fixed_grid)[fine.fixed_mask.data]
    points = fine.fixed_grid.points()[fine.fixed_mask.data]
    apart = np.linalg.norm(dense - fine.displacement_at(points), axis=1)
    assert apart.max() < 1.5 * 0.02 * fine.fixed_grid.spacing.min()
    # A registration at hand serves like its file.
    straight = quickly(pair.fixed, posed, initial_transform=stored, steps=4)
    np.testing.assert_array_equal(straight.warp_points(inside), fine.warp_points(inside))


def test_several_files_are_listed_from_the_fixed_to_the_moving_image(
    pair, posed, composed, lattice, inside, tmp_path
):
    """As ANTs has them: the warp first, its affine second."""
    warp = write_transform(tmp_path / '1Warp.nii.gz', np.eye(4), lattice)
    affine = write_affine(tmp_path / '0Affine.txt', POSE)
    one = quickly(pair.fixed, posed, initial_transform=[warp, affine], steps=1)
    np.testing.assert_allclose(one.affine, POSE, atol=1e-6)
    apart = one.base.warp_points(inside) - composed.base.warp_points(inside)
    assert np.linalg.norm(apart, axis=1).max() < 1e-2


def test_an_affine_written_as_a_field_is_taken_for_one(pair, posed, lattice, inside, tmp_path):
    nothing = DisplacementField(np.zeros((*lattice.grid.shape, 3)), lattice.grid)
    path = write_transform(tmp_path / 'pose.nii.gz', POSE, nothing)
    one = quickly(pair.fixed, posed, initial_transform=path, steps=2)
    plain = quickly(pair.fixed, posed, initial_transform=POSE, steps=2)
    np.testing.assert_allclose(one.affine, POSE, atol=1e-4)
    apart = one.warp_points(inside) - plain.warp_points(inside)
    assert np.linalg.norm(apart, axis=1).max() < 0.05


def test_the_affine_of_a_chain_is_its_last_one(lattice, inside):
    held = HeldField(lattice)
    assert PreAlignment([held, POSE], None, POSE).covered(inside) == 1
    assert PreAlignment([POSE @ POSE, held], None, POSE).covered(inside + 200) == 0
