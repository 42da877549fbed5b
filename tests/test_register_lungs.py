"""``nephi register --modality lung``: what is mended, scored and refused as by ``nephi-pipe``."""

import csv
import json

import numpy as np
import pytest
from lung_data import table
from lung_pairs import breathing_chest, of_side

from nephi_pipe import displacement, registration, result
from nephi_pipe.cli import main
from nephi_pipe.images import load_image, save_image
from nephi_pipe.landmark_errors import COLUMNS
from nephi_pipe.presets import preset

PADDING_HU = -3024.0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The command has no rough settings of its own; a rough map would be stored very finely."""
    monkeypatch.setattr(displacement, 'SPACINGS_MM', (6.0,))
    monkeypatch.setattr(registration, 'preset', lambda modality, _: preset(modality, True))
    monkeypatch.setattr(result, 'BASE_SPACINGS_MM', (6.0, 3.0))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Files by their options: a pair whose moving CT has a scanner's padding in its corners."""
    folder, pair = tmp_path_factory.mktemp('files'), breathing_chest()
    x, y, _ = np.moveaxis(pair.moving.grid.points(), -1, 0)
    padded = np.where(np.hypot(x, y) > 200, PADDING_HU, pair.moving.data).astype(np.float32)
    images = {
        'fixed': pair.fixed.data,
        'moving': padded,
        'fixed-mask': pair.fixed_labels.data,
        'moving-mask': pair.moving_labels.data,
        'left-mask': of_side(pair.moving_labels, 'left').data,
        'right-mask': of_side(pair.fixed_labels, 'right').data,
    }
    paths = {
        name: save_image(folder / f'{name}.nii.gz', data, pair.fixed.grid)
        for name, data in images.items()
    }
    for side in ('fixed', 'moving'):
        paths[f'{side}-landmarks'] = folder / f'{side}.tsv'
        paths[f'{side}-landmarks'].write_text(table(getattr(pair, f'{side}_landmarks')))
    return paths


def run(capsys, files, out, *more, **replaced):
    """Exit code and the lines on standard error."""
    options = []
    for name in ('fixed-mask', 'moving-mask', 'fixed-landmarks', 'moving-landmarks'):
        options += [f'--{name}', str(replaced.get(name.replace('-', '_'), files[name]))]
    images = [str(files['fixed']), str(files['moving'])]
    line = ['register', *images, '-o', str(out), '--modality', 'lung', '--threads', '1', *options]
    code = main([*line, *more])
    return code, capsys.readouterr().err.splitlines()


@pytest.fixture(scope='module')
def without_a_row(files, tmp_path_factory):
    path = tmp_path_factory.mktemp('short') / 'moving.tsv'
    rows = files['moving-landmarks'].read_text().splitlines(keepends=True)
    path.write_text(''.join(rows[:8] + rows[9:]))
    return path


def test_padding_is_mended_and_every_landmark_scored(
    capsys, caplog, files, tmp_path, without_a_row
):
    out = tmp_path / 'out'
    code, _ = run(capsys, files, out, moving_landmarks=without_a_row)
    assert code == 0
    assert caplog.text.count(f'"{files["moving"]}": padding of -3024') == 1
    warped = load_image(out / 'warped.nii.gz').data
    assert load_image(files['moving']).data.min() == PADDING_HU
    assert warped.min() >= -1100

    assert 'left out: 1 of 200, such as 7.' in caplog.text
    with open(out / 'landmarks.tsv') as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert list(rows[0]) == list(COLUMNS)  # those of the table that nephi-pipe writes
    assert [row['index'] for row in rows] == [str(n) for n in range(200) if n != 7]
    scores = json.loads((out / 'metrics.json').read_text())
    for key, column in (('tre_mm', 'nephi_mm'), ('tre_inverse_mm', 'inverse_nephi_mm')):
        mean = np.mean([float(row[column]) for row in rows])
        assert mean == pytest.approx(scores[key]['after']['mean'], abs=1e-3)
        assert mean < 0.65 * scores[key]['before']['mean']
    assert scores['tre_mm']['raw']['mean'] > 8


def test_masks_of_different_lungs_are_told_in_one_sentence(capsys, files, tmp_path):
    out = tmp_path / 'out'
    masks = {'fixed_mask': files['right-mask'], 'moving_mask': files['left-mask']}
    code, said = run(capsys, files, out, **masks)
    assert code == 65
    (line,) = [line for line in said if not line.startswith('WARNING')]
    assert f'The mask of "{files["fixed"]}" holds the right lung' in line
    assert 'the left one; expected masks of the same lungs' in line


def test_a_mask_beside_the_lungs_is_told_in_one_sentence(capsys, files, tmp_path):
    heart = tmp_path / 'heart.nii.gz'
    image = load_image(files['fixed'])
    near = np.linalg.norm(image.grid.points() - [-10.0, 35.0, -60.0], axis=-1) < 30
    save_image(heart, near, image.grid)
    code, said = run(capsys, files, tmp_path / 'out', fixed_mask=heart)
    assert code == 65
    (line,) = [line for line in said if not line.startswith('WARNING')]
    assert f'The mask "{heart}" shows no lung: 0 % of its voxels' in line


def test_a_row_that_is_missing_without_names_is_told_in_one_sentence(
    capsys, files, tmp_path, without_a_row
):
    """Nothing is computed before: the output folder is not even made."""
    tables = {}
    for name, path in (('fixed', files['fixed-landmarks']), ('moving', without_a_row)):
        rows = [row.split('\t', 1)[1] for row in path.read_text().splitlines(keepends=True)]
        tables[f'{name}_landmarks'] = tmp_path / f'{name}.tsv'
        tables[f'{name}_landmarks'].write_text(''.join(rows))
    out = tmp_path / 'out'
    code, said = run(capsys, files, out, **tables)
    assert code == 65 and len(said) == 1
    assert 'has 200 landmarks and' in said[0] and 'has 199; expected as many in both' in said[0]
    assert not out.exists()
