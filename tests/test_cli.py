"""The command ``nephi``: what it writes, which way it maps, how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_pair import PairFiles, write_pair

from nephi_pipe import __version__, commands
from nephi_pipe.cli import main
from nephi_pipe.displacement import DisplacementField
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import load_image, save_image
from nephi_pipe.itk import write_affine
from nephi_pipe.landmarks import read_points
from nephi_pipe.learning.optimise import Progress
from nephi_pipe.transforms import read_transform, write_transform

GRID = Grid((12, 14, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
SHIFT = np.array([[1.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
DOUBLE = np.diag([2.0, 1.0, 1.0, 1.0])


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> PairFiles:
    return write_pair(tmp_path_factory.mktemp('pair'))


def error_of(capsys, *argv) -> tuple[int, str]:
    """Exit code and the one line on standard error."""
    code = main([str(argument) for argument in argv])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('nephi: error: ')
    return code, lines[0]


def affine_file(folder: Path, name: str, affine: np.ndarray) -> Path:
    return write_affine(folder / f'{name}.txt', affine)


def points_file(folder: Path, points: np.ndarray) -> Path:
    path = folder / 'points.tsv'
    rows = ['name\tx\ty\tz', *(f'p{i}\t{x}\t{y}\t{z}' for i, (x, y, z) in enumerate(points))]
    path.write_text('\n'.join(rows) + '\n')
    return path


# Usage


def test_version(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(['--version'])
    assert end.value.code == 0
    assert capsys.readouterr().out == f'nephi {__version__}\n'


COMMANDS = ['register', 'apply', 'evaluate', 'landmarks', 'train', 'info']


@pytest.mark.parametrize('command', COMMANDS)
def test_help_of_each_command(capsys, command) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, '--help'])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: nephi {command}')


@pytest.mark.parametrize(
    ('argv', 'named'),
    [
        ([], 'COMMAND'),
        (['transmogrify'], 'transmogrify'),
        (['register', 'a.nii'], 'MOVING'),
        (['register', 'a.nii', 'b.nii', '-o', 'o', '--steps', '-1'], '0 or more'),
        (['register', 'a.nii', 'b.nii', '-o', 'o', '--threads', '0'], '1 or more'),
        (['register', 'a.nii', 'b.nii', '-o', 'o', '--modality', 'knee'], 'knee'),
        (
            ['register', 'a.nii', 'b.nii', '-o', 'o', '--steps', '0', '--weights', 'none'],
            'weights',
        ),
        (['register', 'a.nii', 'b.nii', '-o', 'o', '--fixed-labels', 'l.nii'], 'both or none'),
        (['apply', 'a.txt', 'b.nii', '-o', 'c.nii'], '--reference'),
        (['train', 'a.nii', '-o', 'w.safetensors'], 'two images'),
    ],
)
def test_usage_errors_end_with_64(capsys, argv, named) -> None:
    code, message = error_of(capsys, *argv)
    assert code == 64
    assert named in message


@pytest.mark.parametrize('where', ['before', 'after'])
def test_debug_shows_the_traceback(capsys, tmp_path, where) -> None:
    assert main(['info', str(tmp_path / 'none.h5'), '--debug']) == 66
    shown = capsys.readouterr().err
    assert 'Traceback' in shown and shown.strip().splitlines()[-1].startswith('nephi: error:')


def test_what_nobody_foresaw_is_still_one_sentence(capsys, monkeypatch) -> None:
    def fail(arguments):
        raise ZeroDivisionError('float division')

    monkeypatch.setattr(commands, 'info', fail)
    code, message = error_of(capsys, 'info', 'x')
    assert code == 1
    assert 'ZeroDivisionError' in message and '--debug' in message


def test_as_a_module(tmp_path) -> None:
    argv = [sys.executable, '-m', 'nephi_pipe', 'info', 'missing.txt']
    result = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 66
    assert result.stderr.startswith('nephi: error:') and 'missing.txt' in result.stderr


# Bad input


def spoil_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def spoil_nan(path: Path) -> None:
    image = nib.load(path)
    data = image.get_fdata(dtype=np.float32)
    data[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), path)


def spoil_constant(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.ones(image.shape, np.float32), image.affine), path)


def spoil_4d(path: Path) -> None:
    image = nib.load(path)
    data = np.stack([image.get_fdata(dtype=np.float32)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(data, image.affine), path)


def spoil_2d(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32)[..., 5], image.affine), path)


def spoil_affine(path: Path) -> None:
    image = nib.load(path)
    spoiled = nib.Nifti1Image(image.get_fdata(dtype=np.float32), None)
    spoiled.header.set_sform(np.diag([0.0, 2, 2, 1]), code=1)
    spoiled.header['qform_code'] = 0
    spoiled.to_filename(path)


@pytest.mark.parametrize(
    ('spoil', 'named'),
    [
        (spoil_truncated, 'truncated'),
        (spoil_nan, 'not finite'),
        (spoil_constant, 'every voxel'),
        (spoil_4d, '3D image'),
        (spoil_2d, '3D image'),
        (spoil_affine, 'affine'),
    ],
)
def test_images_that_cannot_be_used_end_with_65(capsys, tmp_path, files, spoil, named) -> None:
    bad = tmp_path / 'bad.nii.gz'
    bad.write_bytes(Path(files['moving_image']).read_bytes())
    spoil(bad)
    out = tmp_path / 'out'
    code, message = error_of(capsys, 'register', files['fixed_image'], bad, '-o', out)
    assert code == 65
    assert 'bad.nii.gz' in message and named in message
    assert not out.exists()


def test_missing_image_ends_with_66(capsys, tmp_path, files) -> None:
    missing = tmp_path / 'none.nii.gz'
    code, message = error_of(
        capsys, 'register', files['fixed_image'], missing, '-o', tmp_path / 'out'
    )
    assert code == 66
    assert 'none.nii.gz' in message


def test_labels_on_another_grid_end_with_65(capsys, tmp_path, files) -> None:
    labels = save_image(tmp_path / 'labels.nii.gz', np.ones(GRID.shape, np.uint8), GRID)
    pair = [files['fixed_image'], files['moving_image'], '-o', tmp_path / 'out']
    options = ['--fixed-labels', labels, '--moving-labels', files['moving_labels']]
    code, message = error_of(capsys, 'register', *pair, *options)
    assert code == 65
    assert 'labels.nii.gz' in message


def test_output_that_is_a_file_ends_with_73(capsys, tmp_path, files) -> None:
    (tmp_path / 'out').write_text('')
    pair = [files['fixed_image'], files['moving_image']]
    code, message = error_of(capsys, 'register', *pair, '-o', tmp_path / 'out')
    assert code == 73
    assert str(tmp_path / 'out') in message


# apply


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


def test_apply_refuses_another_suffix(capsys, tmp_path, files) -> None:
    shift = affine_file(tmp_path, 'shift', SHIFT)
    options = ['--reference', files['fixed_image'], '-o', tmp_path / 'out.png']
    code, message = error_of(capsys, 'apply', shift, files['moving_image'], *options)
    assert code == 64
    assert 'out.png' in message


# evaluate and info


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


# register


@pytest.fixture(scope='module')
def registered(files, tmp_path_factory) -> Path:
    """A short registration with everything that can be asked for."""
    out = tmp_path_factory.mktemp('registered') / 'out'
    options = ['--steps', '30', '--threads', '1', '--jacobian', '--report']
    for kind in ('labels', 'landmarks'):
        for side in ('fixed', 'moving'):
            options += [f'--{side}-{kind}', files[f'{side}_{kind}']]
    pair = [files['fixed_image'], files['moving_image']]
    assert main(['register', *pair, '-o', str(out), *options]) == 0
    return out


def test_register_writes_what_it_promises(registered) -> None:
    assert {path.name for path in registered.iterdir()} == {
        'inverse.h5',
        'inverse.json',
        'jacobian.nii.gz',
        'landmarks.tsv',
        'metrics.json',
        'report.html',
        'transform.h5',
        'transform.json',
        'warped.nii.gz',
        'warped_labels.nii.gz',
    }
    page = (registered / 'report.html').read_text(encoding='utf-8')
    assert '<html' in page and 'src="http' not in page
    assert 'alt="Landmarks after (NePhi),' in page and 'alt="Landmark errors, chart' in page
    assert 'Change of volume' not in page
    scores = json.loads((registered / 'metrics.json').read_text())
    assert not {'masks', 'volume'} & set(scores)


def test_register_brings_the_landmarks_closer(registered, files) -> None:
    scores = json.loads((registered / 'metrics.json').read_text())
    before, after = (scores['tre_mm'][when]['mean'] for when in ('before', 'after'))
    assert after < 0.8 * before
    assert scores['dice']['after']['mean'] > scores['dice']['before']['mean']
    transform = read_transform(registered / 'transform.h5')
    errors = np.linalg.norm(
        transform.map_points(files.pair.fixed_landmarks) - files.pair.moving_landmarks, axis=-1
    )
    assert errors.mean() == pytest.approx(after, abs=0.05)


def test_registered_inverse_undoes_the_transform(registered, files) -> None:
    forward, back = (
        read_transform(registered / f'{name}.h5') for name in ('transform', 'inverse')
    )
    points = files.pair.fixed_landmarks
    again = back.map_points(forward.map_points(points))
    assert np.linalg.norm(again - points, axis=-1).mean() < 1.0


def test_apply_repeats_what_register_warped(registered, files, tmp_path) -> None:
    """The stored transform errs by less than 0.05 mm, so the images differ by little."""
    output = tmp_path / 'again.nii.gz'
    transform = str(registered / 'transform.h5')
    options = ['--reference', files['fixed_image'], '-o', str(output)]
    assert main(['apply', transform, files['moving_image'], *options]) == 0
    first, again = load_image(registered / 'warped.nii.gz').data, load_image(output).data
    assert np.abs(first - again).mean() < 0.01 * first.std()


@pytest.mark.slow
def test_field_format_gives_the_same_map_and_tells_what_it_is(tmp_path, files, capsys) -> None:
    pair = [files['fixed_image'], files['moving_image'], '--steps', '2', '--threads', '1']
    for form in ('field', 'nii'):
        folder = str(tmp_path / form)
        assert main(['register', *pair, '-o', folder, '--xfm-format', form]) == 0
    points = files.pair.fixed_landmarks
    names = ('field/transform.safetensors', 'nii/transform.nii.gz')
    mapped = [read_transform(tmp_path / name).map_points(points) for name in names]
    np.testing.assert_allclose(*mapped, atol=0.1)
    capsys.readouterr()
    assert main(['info', str(tmp_path / names[0])]) == 0
    assert 'the field of one registration' in capsys.readouterr().out


def test_progress_tells_similarity_and_time_left(capsys) -> None:
    line = commands.ProgressLine()
    for step in range(1, 101):
        line(Progress(step, 100, 0, 0.5 + step / 1000, 0.1, 0.5 * step, 0.5 * (100 - step)))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 6
    assert shown[0] == 'step 1/100  level 0  similarity 0.5010  0:50 left'
    assert shown[-1].startswith('step 100/100')
