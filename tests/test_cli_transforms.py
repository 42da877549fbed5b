"""``nephi apply``, ``evaluate`` and ``info``: which way they map, what they tell."""

import json

import nibabel as nib
import numpy as np
import pytest
from cli_runs import DOUBLE, GRID, SHIFT, affine_file, error_of, points_file
from small_pair import PairFiles, write_pair

from nephi_pipe.cli import main
from nephi_pipe.displacement import DisplacementField
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import load_image, save_image
from nephi_pipe.landmarks import read_points
from nephi_pipe.transforms import write_transform


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> PairFiles:
    return write_pair(tmp_path_factory.mktemp('pair'))


def test_transforms_are_listed_from_the_reference_to_the_image(tmp_path) -> None:
    """Points of the reference pass the first one first: x -> x + 4 -> 2 (x + 4)."""
    first = affine_file(tmp_path, 'first', SHIFT)
    second = affine_file(tmp_path, 'second', DOUBLE)
    points = np.array([[1.0, 2.0, 3.0], [-4.0, 5.5, 0.25]])
    source, output = points_file(tmp_path, points), tmp_path / 'mapped.tsv'
    assert main(['apply', str(first), str(second), str(source), '-o', str(output)]) == 0
    mapped = read_points(output)
    np.testing.assert_allclose(mapped.points, points * [2, 1, 1] + [8, 0, 0], atol=1e-3)
    assert mapped.header == ['name', 'x', 'y', 'z']
    assert [row[0] for row in mapped.rows] == ['p0', 'p1']


def test_image_and_points_agree_on_the_order(tmp_path) -> None:
    """The value at a reference voxel is the image's at the mapped point, for any order."""
    points = GRID.points()
    ramp = (points @ [1.0, 10.0, 0.0]).astype(np.float32)
    wide = Grid((60, 20, 20), np.array(
        [[2.0, 0, 0, -10], [0, 2, 0, -4], [0, 0, 2, -4], [0, 0, 0, 1]]
    ))  # fmt: skip
    save_image(tmp_path / 'grid.nii.gz', ramp, GRID)
    image = (wide.points() @ [1.0, 10.0, 0.0]).astype(np.float32)
    save_image(tmp_path / 'image.nii.gz', image, wide)
    first = affine_file(tmp_path, 'first', SHIFT)
    second = affine_file(tmp_path, 'second', DOUBLE)
    names = [first, second, tmp_path / 'image.nii.gz', '--reference', tmp_path / 'grid.nii.gz']
    output = tmp_path / 'out.nii.gz'
    assert main(['apply', *map(str, names), '-o', str(output)]) == 0
    expected = apply_affine(DOUBLE @ SHIFT, points) @ [1.0, 10.0, 0.0]
    np.testing.assert_allclose(load_image(output).data, expected, atol=1e-3)


@pytest.mark.parametrize('interpolation', ['linear', 'nearest', 'cubic', 'labels'])
def test_4d_image_is_resampled_volume_by_volume(tmp_path, interpolation) -> None:
    """A shift of two voxels, so that every interpolation gives the voxels themselves."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1000, (*GRID.shape, 3)).astype(np.int16)
    image = nib.Nifti1Image(data, GRID.affine)
    image.header.set_zooms((2, 2, 2, 1.25))
    image.header.set_xyzt_units('mm', 'sec')
    nib.save(image, tmp_path / 'series.nii.gz')
    shift = affine_file(tmp_path, 'shift', SHIFT)
    names = [shift, tmp_path / 'series.nii.gz', '--reference', tmp_path / 'series.nii.gz']
    output = tmp_path / 'out.nii.gz'
    options = ['--interpolation', interpolation, '-o', str(output)]
    assert main(['apply', *map(str, names), *options]) == 0
    result = nib.load(output)
    np.testing.assert_allclose(result.get_fdata()[:-2], data[2:], atol=0.5)
    assert not result.get_fdata()[-1:].any()
    assert result.header.get_zooms()[3] == 1.25
    kept = interpolation in ('nearest', 'labels')
    assert result.get_data_dtype() == (np.int16 if kept else np.float32)


def test_apply_fills_what_lies_outside_as_it_is_told(capsys, tmp_path, files) -> None:
    far = affine_file(tmp_path, 'far', SHIFT)
    given = ['apply', far, files['fixed_image'], '--reference', files['fixed_image']]
    given += ['-o', tmp_path / 'out.nii.gz', '--outside', '-1000']
    assert main([str(one) for one in given]) == 0
    values = load_image(tmp_path / 'out.nii.gz').data
    assert 0 < (values == -1000).mean() < 0.5
    inside = values[values != -1000]
    assert inside.min() > -1 and inside.std() > 1


@pytest.mark.parametrize(
    ('kind', 'value', 'fits'),
    [(np.int8, 0, True), (np.int16, 1000, True), (np.uint8, -1000, False), (np.int8, 0.5, False)],
)
def test_apply_refuses_an_outside_that_the_type_cannot_hold(
    capsys, tmp_path, kind, value, fits
) -> None:
    far = affine_file(tmp_path, 'far', SHIFT)
    data = np.ones(GRID.shape, kind)
    data[3:] = 2
    source = tmp_path / 'whole.nii'
    nib.save(nib.Nifti1Image(data, GRID.affine), source)
    given = ['apply', far, source, '--reference', source, '-o', tmp_path / 'out.nii.gz']
    given = [str(one) for one in (*given, '--interpolation', 'nearest', '--outside', value)]
    if fits:
        assert main(given) == 0
        found = np.asarray(nib.load(tmp_path / 'out.nii.gz').dataobj)
        assert found.dtype == kind and (found[-1] == value).all()
    else:
        code, message = error_of(capsys, *given)
        assert code == 64
        assert f'{value:g} outside of the image cannot be stored' in message


def test_apply_refuses_another_suffix(capsys, tmp_path, files) -> None:
    shift = affine_file(tmp_path, 'shift', SHIFT)
    options = ['--reference', files['fixed_image'], '-o', tmp_path / 'out.png']
    code, message = error_of(capsys, 'apply', shift, files['moving_image'], *options)
    assert code == 64
    assert 'out.png' in message


def test_evaluate_knows_a_perfect_transform(tmp_path, files) -> None:
    """The truth of a simulated pair, written as ITK would have it, brings the landmarks home."""
    truth = files.pair.truth
    grid = files.pair.fixed.grid.resampled(2.0)
    vectors = truth.map_points(grid.points()) - grid.points()
    transform = tmp_path / 'truth.h5'
    write_transform(transform, np.eye(4), DisplacementField(vectors, grid))
    options = []
    for kind in ('labels', 'landmarks'):
        for side in ('fixed', 'moving'):
            options += [f'--{side}-{kind}', files[f'{side}_{kind}']]
    output = tmp_path / 'scores.json'
    images = ['--fixed', files['fixed_image'], '--moving', files['moving_image']]
    assert main(['evaluate', str(transform), *images, *options, '-o', str(output)]) == 0
    scores = json.loads(output.read_text())
    assert scores['tre_mm']['after']['max'] < 0.1 < 1 < scores['tre_mm']['before']['mean']
    assert scores['dice']['after']['mean'] > scores['dice']['before']['mean'] + 0.05
    assert scores['folds']['finite_difference']['central_count'] == 0


def test_evaluate_compares_with_the_affine_inside_the_transform(capsys, tmp_path, files) -> None:
    field = DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID)
    transform = write_transform(tmp_path / 'shift.h5', SHIFT, field)
    images = ['--fixed', files['fixed_image'], '--moving', files['moving_image']]
    assert main(['evaluate', str(transform), *images]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores['displacement_mm']['max'] == pytest.approx(0, abs=1e-3)
    assert scores['similarity']['before'] == pytest.approx(scores['similarity']['after'], abs=1e-6)


def test_evaluate_measures_the_way_back(capsys, tmp_path, files) -> None:
    forward = affine_file(tmp_path, 'forward', SHIFT)
    back = affine_file(tmp_path, 'back', np.linalg.inv(SHIFT) + np.eye(4, k=3) * 0.5)
    images = ['--fixed', files['fixed_image'], '--moving', files['moving_image']]
    assert main(['evaluate', str(forward), *images, '--inverse', str(back)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores['inverse_consistency_mm']['mean'] == pytest.approx(0.5, abs=1e-3)


def test_info_describes_transforms(capsys, tmp_path) -> None:
    vectors = np.zeros((*GRID.shape, 3), np.float32)
    vectors[5, 5, 5] = [0, 3, 4]
    path = write_transform(tmp_path / 't.h5', SHIFT, DisplacementField(vectors, GRID))
    assert main(['info', str(path)]) == 0
    first, field, affine = capsys.readouterr().out.splitlines()
    assert str(path) in first and '2 steps' in first
    assert '12 x 14 x 16 nodes' in field and '5.00 mm at most' in field
    assert 'shift 4.00 0.00 0.00 mm' in affine and 'rotation 0.0 degrees' in affine


def test_info_on_what_it_does_not_know(capsys, tmp_path) -> None:
    path = tmp_path / 'w.safetensors'
    path.write_bytes(b'nothing of the kind')
    code, message = error_of(capsys, 'info', path)
    assert code == 65
    assert 'w.safetensors' in message
