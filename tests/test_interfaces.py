"""The Nipype interfaces on a small pair with a known truth."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chest import chest_grid, make_chest
from nipype.interfaces.base import isdefined
from small_pair import write_pair

from nephi_pipe import interfaces
from nephi_pipe.errors import InputDataError, UsageError
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import Image, load_image, load_labels, save_image
from nephi_pipe.itk import write_affine
from nephi_pipe.metrics import read_landmarks
from nephi_pipe.transforms import read_transform

SHIFT = np.array([[1.0, 0, 0, 7.5], [0, 1, 0, -4], [0, 0, 1, 2], [0, 0, 0, 1]])


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp('pair'))


def run(interface, cwd):
    return interface.run(cwd=str(cwd)).outputs


def head(mask_value=0.0):
    """A head of spheres: scalp, skull, brain; cut at the neck."""
    grid = Grid((60, 70, 60), np.diag([3.5, 3.5, 3.5, 1.0]))
    radius = np.linalg.norm(grid.points() - grid.center_mm + [0, 0, 25], axis=-1)
    data = np.select([radius < 65, radius < 74, radius < 85], [100.0, 15.0, 120.0], mask_value)
    return Image(data.astype(np.float32), grid)


@pytest.mark.parametrize('name', interfaces.__all__)
def test_every_trait_is_described(name):
    interface = getattr(interfaces, name)
    for spec in (interface.input_spec(), interface.output_spec()):
        for trait_name in spec.copyable_trait_names():
            assert spec.trait(trait_name).desc, trait_name


@pytest.mark.parametrize('name', interfaces.__all__)
def test_outputs_may_have_been_removed(name):
    spec = getattr(interfaces, name).output_spec()
    for trait_name in spec.copyable_trait_names():
        assert not getattr(spec.trait(trait_name).trait_type, 'exists', False)


def test_import_loads_neither_torch_nor_network():
    code = (
        'import socket, sys\n'
        'def refuse(*args, **kwargs): raise AssertionError("network")\n'
        'socket.socket.connect = socket.getaddrinfo = refuse\n'
        'from nephi_pipe import interfaces\n'
        'for name in interfaces.__all__: getattr(interfaces, name)()\n'
        'sys.exit("torch" in sys.modules)'
    )
    environment = {'PATH': '/usr/bin:/bin', 'HOME': '/nonexistent'}
    subprocess.run([sys.executable, '-c', code], check=True, env=environment)


def test_threads_and_device_are_not_part_of_the_result(files):
    inputs = files.some('fixed_image', 'moving_image')
    one = interfaces.NePhiOptimize(**inputs, num_threads=1, device='cpu').inputs.get_hashval()[1]
    two = interfaces.NePhiOptimize(**inputs, num_threads=2, device='cuda', use_gpu=True)
    assert two.inputs.get_hashval()[1] == one
    other = interfaces.NePhiOptimize(**inputs, seed=1).inputs.get_hashval()[1]
    assert other != one


def test_a_device_that_is_absent_is_an_error(files, tmp_path):
    inputs = files.some('fixed_image', 'moving_image')
    for device, words in (('cuda:99', 'CUDA devices are visible'), ('tpu', 'no device "tpu"')):
        with pytest.raises(UsageError, match=words):
            run(interfaces.NePhiOptimize(**inputs, device=device, use_gpu=True), tmp_path)
    assert not list(tmp_path.glob('*.safetensors'))


def test_weights_count_by_content(files, tmp_path):
    inputs = files.some('fixed_image', 'moving_image')

    def hashed(content):
        path = tmp_path / 'weights.safetensors'
        path.write_bytes(content)
        interface = interfaces.NePhiInfer(**inputs, weights=str(path))
        return interface.inputs.get_hashval('content')[1]

    assert hashed(b'one') == hashed(b'one')
    assert hashed(b'one') != hashed(b'two')


def test_conform_writes_float32_with_equal_forms(tmp_path):
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 5.0, -6.0, 7.0
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 2)
    image.set_qform(np.diag([2.0, 2.0, 3.0, 1.0]), 1)
    nib.save(image, tmp_path / 'odd.nii')
    outputs = run(interfaces.Conform(image=str(tmp_path / 'odd.nii')), tmp_path)
    written = nib.load(outputs.image)
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.get_fdata(), data)
    np.testing.assert_allclose(written.get_sform(), affine)
    np.testing.assert_allclose(written.get_qform(), affine, atol=1e-5)
    assert Path(outputs.image).parent == tmp_path


def test_conform_keeps_a_mask_and_refuses_a_foreign_one(files, tmp_path):
    fixed = files.pair.fixed
    inside = np.zeros(fixed.grid.shape, bool)
    inside[5:9, 5:9, 5:9] = True
    mask = save_image(tmp_path / 'given.nii.gz', inside, fixed.grid)
    outputs = run(interfaces.Conform(image=files['fixed_image'], mask=str(mask)), tmp_path)
    np.testing.assert_array_equal(load_labels(outputs.mask).data, inside)
    outputs = run(interfaces.Conform(image=files['fixed_image']), tmp_path)
    found = load_labels(outputs.mask).data > 0
    assert (found & (fixed.data > 0)).sum() > 0.99 * (fixed.data > 0).sum()
    foreign = save_image(tmp_path / 'foreign.nii.gz', inside[1:], fixed.grid.resampled(7.0))
    with pytest.raises(InputDataError, match='does not lie on the grid'):
        run(interfaces.Conform(image=files['fixed_image'], mask=str(foreign)), tmp_path)


def test_brain_mask_of_a_stripped_scan(files, tmp_path):
    outputs = run(interfaces.BrainMask(image=files['fixed_image']), tmp_path)
    assert outputs.source == 'skull-stripped'
    inside = load_labels(outputs.mask).data > 0
    assert (inside[files.pair.fixed.data > 0]).all()


def test_a_head_without_mask_is_refused_unless_asked_for(tmp_path):
    scan = head()
    path = str(save_image(tmp_path / 'head.nii.gz', scan.data, scan.grid))
    with pytest.raises(InputDataError, match='a head with its skull'):
        run(interfaces.BrainMask(image=path, method='none'), tmp_path)
    outputs = run(interfaces.BrainMask(image=path, whole_head=True), tmp_path)
    assert outputs.source == 'whole head'
    np.testing.assert_array_equal(load_labels(outputs.mask).data > 0, scan.data > 0)
    brain = save_image(tmp_path / 'brain.nii.gz', scan.data == 100, scan.grid)
    outputs = run(interfaces.BrainMask(image=path, mask=str(brain)), tmp_path)
    assert outputs.source == 'given'
    np.testing.assert_array_equal(load_labels(outputs.mask).data > 0, scan.data == 100)


def test_lungs_are_found_and_a_good_ct_is_passed_on(tmp_path):
    chest = make_chest(chest_grid(5.0, 'LPS'))
    path = str(save_image(tmp_path / 'ct.nii.gz', chest.image.data, chest.image.grid))
    outputs = run(interfaces.LungMask(image=path), tmp_path)
    assert outputs.source == 'found'
    assert outputs.image == path
    assert sorted(file.name for file in tmp_path.glob('*.nii.gz')) == ['ct.nii.gz', 'mask.nii.gz']
    assert nib.load(outputs.mask).get_data_dtype() == np.uint8
    found = load_labels(outputs.mask).data
    for side in (1, 2):
        both = (found == side) & (chest.lungs == side)
        assert 2 * both.sum() / ((found == side).sum() + (chest.lungs == side).sum()) > 0.95


def test_a_ct_is_mended_and_a_mask_of_one_lung_is_kept(tmp_path, caplog):
    chest = make_chest(chest_grid(5.0))
    data = chest.image.data.copy()
    data[:6] = -3024
    path = str(save_image(tmp_path / 'ct.nii.gz', data, chest.image.grid))
    left = chest.lungs == 2
    mask = str(save_image(tmp_path / 'left.nii.gz', left, chest.image.grid))
    outputs = run(interfaces.LungMask(image=path, mask=mask), tmp_path)
    assert outputs.source == 'given'
    assert f'"{path}": padding of -3024' in caplog.text
    np.testing.assert_array_equal(load_labels(outputs.mask).data > 0, left)
    assert outputs.image == str(tmp_path / 'mended_ct.nii.gz')
    assert outputs.mended.startswith('padding of -3024')
    mended = load_image(outputs.image)
    assert (mended.data[:6] == -1024).all()
    np.testing.assert_array_equal(mended.data[6:], np.maximum(data[6:], -1024))
    np.testing.assert_array_equal(load_image(path).data, data)


def test_masks_of_a_pair_hold_the_same_lungs(tmp_path):
    chest = make_chest(chest_grid(6.0))
    path = str(save_image(tmp_path / 'ct.nii.gz', chest.image.data, chest.image.grid))
    masks = {
        name: str(save_image(tmp_path / f'{name}.nii.gz', data, chest.image.grid))
        for name, data in {'left': chest.lungs == 2, 'both': chest.lungs.astype('u1')}.items()
    }
    node = interfaces.CommonLungs(
        fixed_image=path, moving_image=path, fixed_mask=masks['left'], moving_mask=masks['both']
    )
    outputs = run(node, tmp_path)
    assert outputs.fixed_mask == masks['left']
    assert outputs.moving_mask == str(tmp_path / 'moving_mask.nii.gz')
    assert outputs.compared == 'one lung of the moving scan: the one that the fixed mask holds'
    assert set(np.unique(load_labels(outputs.moving_mask).data)) == {0, 2}
    node.inputs.fixed_mask = masks['both']
    outputs = run(node, tmp_path)
    assert outputs.fixed_mask == outputs.moving_mask == masks['both']
    assert outputs.compared == ''


def test_a_mask_beside_the_lungs_and_an_image_that_is_no_ct_are_refused(files, tmp_path):
    chest = make_chest(chest_grid(6.0))
    path = str(save_image(tmp_path / 'ct.nii.gz', chest.image.data, chest.image.grid))
    muscle = (chest.image.data > -100) & (chest.lungs == 0)
    mask = str(save_image(tmp_path / 'muscle.nii.gz', muscle, chest.image.grid))
    with pytest.raises(InputDataError, match='shows no lung'):
        run(interfaces.LungMask(image=path, mask=mask), tmp_path)
    with pytest.raises(InputDataError, match='no Hounsfield units'):
        run(interfaces.LungMask(image=files['fixed_image']), tmp_path)


@pytest.mark.parametrize('known', [True, False])
def test_affine_is_the_one_given_or_the_one_found(files, tmp_path, known):
    fixed = files.pair.fixed
    moved = Grid(fixed.grid.shape, SHIFT @ fixed.grid.affine)
    moving = save_image(tmp_path / 'moving.nii.gz', fixed.data, moved)
    interface = interfaces.AffineInit(fixed_image=files['fixed_image'], moving_image=str(moving))
    if known:
        interface.inputs.initial_transform = str(write_affine(tmp_path / 'known.txt', SHIFT))
    outputs = run(interface, tmp_path)
    found = np.array(outputs.matrix)
    points = files.pair.fixed_landmarks
    errors = np.linalg.norm(apply_affine(found, points) - apply_affine(SHIFT, points), axis=1)
    assert errors.max() < (1e-9 if known else 0.5)
    again = run(interfaces.AffineInit(**interface.inputs.get_traitsfree()), tmp_path)
    assert again.matrix == outputs.matrix
    mapped = run(
        interfaces.ApplyTransform(input_file=files['fixed_landmarks'], transforms=outputs.affine),
        tmp_path,
    )
    np.testing.assert_allclose(
        read_landmarks(mapped.output_file), apply_affine(found, points), atol=2e-3
    )


def test_apply_resamples_images_and_labels(files, tmp_path):
    fixed, labels = files.pair.fixed, files.pair.fixed_labels
    transforms = []
    # One voxel along the first axis of the array, then two back along the second.
    for voxels in ((1, 0, 0), (0, -2, 0)):
        shift = np.eye(4)
        shift[:3, 3] = fixed.grid.affine[:3, :3] @ voxels
        path = tmp_path / f'{len(transforms)}.txt'
        transforms.append(str(write_affine(path, shift)))
    common = {'transforms': transforms, 'reference': files['fixed_image']}
    outputs = run(interfaces.ApplyTransform(input_file=files['fixed_image'], **common), tmp_path)
    warped = load_image(outputs.output_file).data
    np.testing.assert_allclose(warped[:-1, 2:], fixed.data[1:, :-2], atol=0.05)
    outputs = run(
        interfaces.ApplyTransform(
            input_file=files['fixed_labels'], interpolation='labels', **common
        ),
        tmp_path,
    )
    warped = load_labels(outputs.output_file).data
    np.testing.assert_array_equal(warped[:-1, 2:], labels.data[1:, :-2])
    with pytest.raises(UsageError, match='there is no reference'):
        run(
            interfaces.ApplyTransform(input_file=files['fixed_image'], transforms=transforms[0]),
            tmp_path,
        )


def test_evaluate_scores_a_foreign_transform(files, tmp_path):
    truth = files.pair.truth
    identity = write_affine(tmp_path / 'identity.txt', np.eye(4))
    interface = interfaces.EvaluateRegistration(
        transforms=[str(identity)], inverse_transforms=[str(identity)], **files.paths
    )
    outputs = run(interface, tmp_path)
    metrics = json.loads(Path(outputs.metrics).read_text())
    points = files.pair.fixed_landmarks
    expected = np.linalg.norm(truth.map_points(points) - points, axis=1)
    assert metrics['tre_mm']['after']['mean'] == pytest.approx(expected.mean(), abs=1e-3)
    assert metrics['inverse_consistency_mm']['max'] == pytest.approx(0.0, abs=1e-9)
    assert metrics['folds']['finite_difference']['central_count'] == 0
    assert metrics['jacobian']['total']['min'] == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_array_equal(
        load_labels(outputs.warped_labels).data, files.pair.moving_labels.data
    )


def test_evaluate_needs_something_and_labels_are_optional(files, tmp_path):
    images = files.some('fixed_image', 'moving_image')
    with pytest.raises(UsageError, match='nothing to evaluate'):
        run(interfaces.EvaluateRegistration(**images), tmp_path)
    identity = str(write_affine(tmp_path / 'identity.txt', np.eye(4)))
    outputs = run(interfaces.EvaluateRegistration(transforms=identity, **images), tmp_path)
    assert not isdefined(outputs.warped_labels)
    assert 'dice' not in json.loads(Path(outputs.metrics).read_text())


def test_labels_of_one_side_are_warped_but_not_scored(files, tmp_path):
    inputs = files.some('fixed_image', 'moving_image', 'moving_labels')
    identity = str(write_affine(tmp_path / 'identity.txt', np.eye(4)))
    outputs = run(interfaces.EvaluateRegistration(transforms=identity, **inputs), tmp_path)
    assert 'dice' not in json.loads(Path(outputs.metrics).read_text())
    np.testing.assert_array_equal(
        load_labels(outputs.warped_labels).data, files.pair.moving_labels.data
    )


@pytest.mark.slow
def test_train_then_infer_then_optimize(files, tmp_path):
    weights = run(
        interfaces.NePhiTrain(
            images=[files['fixed_image'], files['moving_image']],
            grid=25,
            epochs=1,
            steps_per_epoch=2,
        ),
        tmp_path,
    ).weights
    images = files.some('fixed_image', 'moving_image')
    common = {'weights': weights, 'xfm_grid': '5', **images}
    (tmp_path / 'infer').mkdir()
    (tmp_path / 'optimize').mkdir()
    predicted = run(interfaces.NePhiInfer(**common), tmp_path / 'infer')
    assert json.loads(Path(predicted.history).read_text()) == []
    optimised = run(interfaces.NePhiOptimize(**common, steps=2), tmp_path / 'optimize')
    assert len(json.loads(Path(optimised.history).read_text())) == 2
    facts = json.loads(Path(optimised.forward_sidecar).read_text())
    assert facts['Provenance']['weights'] == weights
    points = files.pair.fixed_landmarks
    moved = [
        read_transform(outputs.forward_transform).map_points(points)
        for outputs in (predicted, optimised)
    ]
    assert np.abs(moved[0] - moved[1]).max() > 1e-4


def test_infer_without_weights_is_refused(files, tmp_path):
    images = files.some('fixed_image', 'moving_image')
    with pytest.raises(UsageError, match='without weights'):
        run(interfaces.NePhiInfer(weights='none', **images), tmp_path)
