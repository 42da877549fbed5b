"""The command ``nephi``: what it writes, which way it maps, how it ends."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_runs import GRID, error_of
from registration_runs import FIELD, make_tiny
from small_pair import PairFiles, write_pair

from nephi_pipe import __version__, commands
from nephi_pipe.cli import main
from nephi_pipe.images import load_image, save_image
from nephi_pipe.learning.optimise import Progress
from nephi_pipe.transforms import read_transform


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> PairFiles:
    return write_pair(tmp_path_factory.mktemp('pair'))


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


# register


@pytest.fixture(scope='module')
def registered(files, tmp_path_factory) -> Path:
    """A short registration with everything that can be asked for."""
    out = tmp_path_factory.mktemp('registered') / 'out'
    options = ['--weights', 'none', '--threads', '1', '--jacobian', '--report']
    for kind in ('labels', 'landmarks'):
        for side in ('fixed', 'moving'):
            options += [f'--{side}-{kind}', files[f'{side}_{kind}']]
    pair = [files['fixed_image'], files['moving_image']]
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch, replace(FIELD, code_reading='cubic'))  # a coarse lattice holds the map
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
    pair = [files['fixed_image'], files['moving_image']]
    options = ['--weights', 'none', '--steps', '2', '--threads', '1']
    for form in ('field', 'nii'):
        folder = str(tmp_path / form)
        assert main(['register', *pair, '-o', folder, '--xfm-format', form, *options]) == 0
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
