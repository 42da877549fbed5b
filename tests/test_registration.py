"""``register``: known warps found, the same in every orientation; what it refuses; what it gives.

Tiny settings, and a brain shrunk to 3/5 of its size: dense maps cost by the cubic millimetre. What
the presets reach on real brains is measured in benchmarks/.
"""

import numpy as np
import pytest
import torch
from data import make_grid
from prealigned import POSE
from registration_runs import SETTINGS, quickly

from nephi_pipe import load_registration
from nephi_pipe.errors import InputDataError, NoInputError, StorageError, UsageError
from nephi_pipe.geometry import apply_affine
from nephi_pipe.images import Image, foreground, save_image
from nephi_pipe.itk import write_affine
from nephi_pipe.metrics import inverse_consistency_mm, ncc, random_points, tre_mm
from nephi_pipe.overlap import dice
from nephi_pipe.transforms import read_transform

pytestmark = pytest.mark.usefixtures('tiny_presets')


# --- a real brain and a known warp --------------------------------------------------------------


@pytest.fixture(scope='module')
def found(pair):
    return quickly(pair.fixed, pair.moving)


@pytest.fixture(scope='module')
def inside(pair):
    """Points in the brain, mm."""
    return random_points(pair.fixed.grid, foreground(pair.fixed), 2000, seed=5)


def test_a_known_smooth_warp_is_found(pair, found):
    before = tre_mm(pair.fixed_landmarks, pair.moving_landmarks, lambda points: points)
    after = tre_mm(pair.fixed_landmarks, pair.moving_landmarks, found.warp_points)
    back = tre_mm(pair.moving_landmarks, pair.fixed_landmarks, found.inverse.warp_points)
    assert before.mean() > 1.8
    assert after.mean() < 0.45 * before.mean()
    assert back.mean() < 0.45 * before.mean()


def test_both_maps_undo_each_other(found, inside):
    there = inverse_consistency_mm(found.warp_points, found.inverse.warp_points, inside)
    moved = np.linalg.norm(found.warp_points(inside) - inside, axis=1)
    assert there['mean'] < 0.35 * moved.mean()
    assert found.inverse.inverse is found
    assert found.inverse.fixed_grid is found.moving_grid
    np.testing.assert_allclose(found.inverse.affine @ found.affine, np.eye(4), atol=1e-12)


def test_the_warped_image_and_labels_look_like_the_fixed_ones(pair, found):
    mask = foreground(pair.fixed)
    warped = found.warp(pair.moving)
    assert warped.grid.same_as(pair.fixed.grid)
    assert ncc(pair.fixed.data, warped.data, mask) > ncc(pair.fixed.data, pair.moving.data, mask)
    labels = found.warp_labels(pair.moving_labels)
    assert labels.data.dtype.kind == 'i'
    assert set(np.unique(labels.data)) <= set(np.unique(pair.moving_labels.data))

    def mean_dice(moving: Image) -> float:
        return np.mean(list(dice(pair.fixed_labels.data, moving.data).values()))

    assert mean_dice(labels) > mean_dice(pair.moving_labels) + 0.03
    coarse = found.warp(pair.moving, grid=pair.fixed.grid.resampled(10.0))
    assert coarse.data.shape == pair.fixed.grid.resampled(10.0).shape


def test_metrics_say_what_the_map_does(pair, found):
    scores = found.metrics(
        pair.fixed,
        pair.moving,
        fixed_labels=pair.fixed_labels,
        moving_labels=pair.moving_labels,
        fixed_landmarks=pair.fixed_landmarks,
        moving_landmarks=pair.moving_landmarks,
        saved=found.stored_transform(2.0)[0],
    )
    after = tre_mm(pair.fixed_landmarks, pair.moving_landmarks, found.warp_points)
    assert scores['tre_mm']['after']['mean'] == pytest.approx(after.mean())
    assert scores['dice']['after']['mean'] > scores['dice']['before']['mean'] + 0.03
    assert scores['similarity']['after'] > scores['similarity']['before']
    folds = scores['folds']
    assert folds['exact']['count'] == folds['lattice']['count'] == 0
    assert folds['finite_difference']['digital_count'] == 0
    assert folds['exact']['points'] == 5000 + 500
    least = scores['jacobian']['total']['min']
    assert folds['lattice']['min'] == pytest.approx(least, abs=0.1)
    assert 0 < scores['inverse_consistency_mm']['mean'] < 1


def test_a_clean_map_is_not_repaired(found):
    assert len(found.history) <= SETTINGS.steps
    assert {'step', 'total_steps', 'level', 'similarity', 'regularity'} <= set(found.history[0])
    assert found.provenance['seed'] == 0 and found.provenance['weights'] == 'none'


def test_points_keep_their_shape(found, inside):
    cube = inside[:24].reshape(2, 3, 4, 3)
    mapped = found.warp_points(cube)
    assert mapped.shape == cube.shape
    np.testing.assert_array_equal(mapped.reshape(-1, 3), found.warp_points(inside[:24]))
    assert found.warp_points(inside[0]).shape == (3,)


def test_the_dense_map_is_the_continuous_one(found):
    voxels = np.argwhere(found.fixed_mask.data)[::11]
    truth = found.displacement_at(found.fixed_grid.to_world(voxels))
    dense = found.displacement(found.fixed_grid)[tuple(voxels.T)]
    apart = np.linalg.norm(dense - truth, axis=1)
    assert apart.max() < 1.5 * 0.02 * found.fixed_grid.spacing.min()


def test_the_dense_determinant_is_the_exact_one(found):
    grid = found.fixed_grid.resampled(2.5)
    dense = found.jacobian_determinant(grid).data
    points = random_points(found.fixed_grid, found.fixed_mask.data, 3000, seed=8)
    voxels = np.rint(grid.to_index(points)).astype(int)
    exact = found.exact_jacobian_determinant(grid.to_world(voxels))
    apart = np.abs(dense[tuple(voxels.T)] - exact)
    assert exact.std() > 0.05
    assert apart.mean() < 0.01 and apart.max() < 0.1


def test_the_exact_determinant_is_that_of_small_differences(found, inside):
    points, step = inside[:200], 0.05
    columns = [
        (found.warp_points(points + shift) - found.warp_points(points - shift)) / (2 * step)
        for shift in step * np.eye(3)
    ]
    expected = np.linalg.det(np.stack(columns, axis=-1))
    total = found.exact_jacobian_determinant(points, total=True)
    np.testing.assert_allclose(total, expected, atol=0.02)


@pytest.mark.parametrize('inverse', [False, True], ids=['forward', 'inverse'])
@pytest.mark.parametrize(
    ('suffix', 'spacing'),
    [
        pytest.param('.h5', 'auto', marks=pytest.mark.slow),
        ('.h5', 2.5),
        ('.nii.gz', 2.5),
        ('.safetensors', 0),
    ],
)
def test_stored_transforms_are_the_map(found, inside, tmp_path, suffix, spacing, inverse):
    path = tmp_path / f'xfm{suffix}'
    facts = found.save_transform(path, inverse=inverse, xfm_grid=spacing)
    read = read_transform(path)
    source = found.inverse if inverse else found
    points = source.inverse.warp_points(inside) if inverse else inside
    apart = np.linalg.norm(read.map_points(points) - source.warp_points(points), axis=1)
    assert facts['Provenance'] == found.provenance
    if suffix == '.safetensors':
        assert apart.max() < 0.02
    else:
        assert apart.max() < 1.3 * facts['FieldInterpolationErrorMax'] + 1e-3
        assert apart.max() < (0.05 if spacing == 'auto' else 0.3)


def test_a_field_file_gives_the_registration_back(found, inside, tmp_path):
    path = found.save_field(tmp_path / 'field.safetensors')
    again = load_registration(path)
    for one, other in ((found, again), (found.inverse, again.inverse)):
        apart = np.linalg.norm(one.warp_points(inside) - other.warp_points(inside), axis=1)
        assert 0 < apart.max() < 0.02
    assert again.fixed_grid.same_as(found.fixed_grid)
    np.testing.assert_array_equal(again.moving_mask.data, found.moving_mask.data)
    assert again.history == found.history and again.provenance == found.provenance
    single = sum(value.numel() * 4 for value in found.field.state_dict().values())
    assert path.stat().st_size < 0.6 * single + 20_000
    backwards = load_registration(found.inverse.save_field(tmp_path / 'back.safetensors'))
    np.testing.assert_allclose(
        backwards.warp_points(inside), again.inverse.warp_points(inside), atol=1e-9
    )


def test_a_field_file_on_a_full_disk(found, small_disk):
    with pytest.raises(StorageError, match='the disk is full. Free some space'):
        found.save_field(small_disk / 'field.safetensors')
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize('matrix', [np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan), np.eye(3)])
def test_an_initial_matrix_without_an_inverse_is_refused(pair, matrix):
    with pytest.raises(UsageError, match='no invertible affine; expected a finite 4x4 matrix'):
        quickly(pair.fixed, pair.moving, initial_transform=matrix)


def test_the_number_of_threads_is_left_as_it_was(pair):
    before = torch.get_num_threads()
    found = quickly(pair.fixed, pair.moving, steps=1, threads=before + 1)
    assert torch.get_num_threads() == before
    assert found.provenance['threads'] == before + 1


def test_single_precision_is_kept_where_half_would_err(pair, inside, tmp_path):
    rough = quickly(pair.fixed, pair.moving, steps=1)
    with torch.no_grad():
        for network in rough.field.networks:
            network.output.bias += 3.1
    rough.save_field(tmp_path / 'field.safetensors')
    again = load_registration(tmp_path / 'field.safetensors')
    np.testing.assert_array_equal(again.warp_points(inside), rough.warp_points(inside))


def test_everything_is_saved_in_a_folder(pair, found, tmp_path):
    files = found.save(tmp_path, pair.moving, xfm_grid=3.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'inverse.h5',
        'transform.h5',
        'warped.nii.gz',
    ]
    assert set(files) == {'transform', 'inverse', 'warped'}


# --- determinism, start, progress ---------------------------------------------------------------


def test_a_seed_gives_the_same_bytes(pair, tmp_path):
    contents = []
    for number, seed in enumerate((3, 3, 4)):
        path = tmp_path / f'{number}.h5'
        result = quickly(pair.fixed, pair.moving, steps=2, seed=seed)
        result.save_transform(path, xfm_grid=3.0)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.fixture(scope='module')
def unposed(pair):
    """One step from the identity."""
    return quickly(pair.fixed, pair.moving, steps=1)


@pytest.mark.parametrize('given', ['matrix', 'file'])
def test_a_given_affine_is_the_start(pair, posed, unposed, tmp_path, given):
    start = write_affine(tmp_path / 'start.txt', POSE) if given == 'file' else POSE
    started = quickly(pair.fixed, posed, initial_transform=start, steps=1)
    np.testing.assert_allclose(started.affine, POSE, atol=1e-6)
    points = pair.fixed_landmarks
    # The same pair of images in another pose: the deformation is the same one.
    np.testing.assert_allclose(
        started.displacement_at(points), unposed.displacement_at(points), atol=0.02
    )
    volume = np.linalg.det(POSE[:3, :3])
    np.testing.assert_allclose(
        started.exact_jacobian_determinant(points, total=True),
        volume * started.exact_jacobian_determinant(points),
        rtol=1e-6,
    )
    total, deformation = (started.jacobian_determinant(total=total).data for total in (1, 0))
    np.testing.assert_allclose(total, volume * deformation, rtol=1e-5)


def test_without_an_affine_the_start_is_the_identity(found):
    np.testing.assert_array_equal(found.affine, np.eye(4))


def test_the_affine_is_estimated(pair, posed):
    aligned = quickly(pair.fixed, posed, affine=True, steps=1)
    points = random_points(pair.fixed.grid, foreground(pair.fixed), 500)
    apart = apply_affine(aligned.affine, points) - apply_affine(POSE, points)
    # The warp between the two has an affine part of its own, of a millimetre or two.
    assert np.linalg.norm(apart, axis=1).mean() < 3


# --- what is refused ----------------------------------------------------------------------------


def test_zero_steps_without_weights_are_refused(pair):
    with pytest.raises(UsageError, match='affine alone'):
        quickly(pair.fixed, pair.moving, steps=0)


def test_an_unknown_device_is_refused(pair):
    with pytest.raises(UsageError, match='expected cpu'):
        quickly(pair.fixed, pair.moving, device='abacus')


def test_a_mask_that_misses_the_brain_is_refused(pair):
    corner = np.zeros(pair.fixed.grid.shape, dtype=bool)
    corner[-6:, -6:, -6:] = True
    assert not pair.fixed.data[corner].any()
    with pytest.raises(InputDataError, match='misses'):
        quickly(pair.fixed, pair.moving, fixed_mask=Image(corner, pair.fixed.grid))


def test_a_mask_that_no_lattice_can_see_is_refused(pair):
    brain = foreground(pair.fixed)
    thin = np.zeros_like(brain)
    thin[:, :, 20:21] = brain[:, :, 20:21]
    thick = pair.fixed.grid.spacing[2]
    with pytest.raises(InputDataError, match=f'is {thick:.3g} mm thick; expected at least'):
        quickly(pair.fixed, pair.moving, fixed_mask=Image(thin, pair.fixed.grid))


def test_an_exclusion_of_everything_is_refused(pair):
    everything = Image(np.ones(pair.moving.grid.shape, dtype=bool), pair.moving.grid)
    with pytest.raises(InputDataError, match='covers all that is compared'):
        quickly(pair.fixed, pair.moving, exclude_mask=everything)


def test_a_constant_in_memory_is_refused(pair):
    with pytest.raises(InputDataError, match='in memory has the value 7 in every voxel'):
        quickly(pair.fixed, pair.moving.with_data(np.full_like(pair.moving.data, 7)))


def test_values_in_memory_that_are_not_finite_are_refused(pair):
    data = pair.moving.data.copy()
    data[3, 4, 5] = np.nan
    with pytest.raises(InputDataError, match='in memory holds 1 values that are not finite'):
        quickly(pair.fixed, pair.moving.with_data(data))


@pytest.mark.parametrize('name', ['fixed_mask', 'moving_mask', 'exclude_mask'])
def test_a_mask_of_another_image_is_refused(pair, name):
    other = Image(np.ones((9, 8, 7), dtype=bool), make_grid('LAS', (9, 8, 7), 9.0))
    with pytest.raises(InputDataError, match='grid'):
        quickly(pair.fixed, pair.moving, **{name: other})


def test_a_start_that_leaves_no_overlap_is_refused(pair):
    far = np.eye(4)
    far[0, 3] = 500.0
    with pytest.raises(InputDataError, match='overlap'):
        quickly(pair.fixed, pair.moving, initial_transform=far)


def test_files_are_read_and_named_in_errors(pair, tmp_path):
    paths = [
        save_image(tmp_path / f'{side}.nii.gz', image.data, image.grid)
        for side, image in (('fixed', pair.fixed), ('moving', pair.moving))
    ]
    told = []
    result = quickly(*paths, steps=2, progress=told.append)
    assert result.fixed_grid.same_as(pair.fixed.grid)
    assert [(entry.step, entry.total_steps) for entry in told] == [(1, 2), (2, 2)]
    with pytest.raises(NoInputError, match='missing.nii.gz'):
        quickly(paths[0], tmp_path / 'missing.nii.gz')
