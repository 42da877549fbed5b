"""``nephi register --modality lung``: mended, scored, shown and refused as by ``nephi-pipe``."""

import csv
import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from lung_data import table
from lung_pairs import breathing_chest, of_side
from report_data import Page, check_page

from nephi_pipe import dense, displacement, interfaces, registration
from nephi_pipe.cli import main
from nephi_pipe.images import load_image, load_mask, save_image
from nephi_pipe.landmark_errors import COLUMNS
from nephi_pipe.presets import preset
from nephi_pipe.report import load_figure

PADDING_HU = -3024.0


@pytest.fixture(scope='module', autouse=True)
def quick():
    """The command has no rough settings of its own; a rough map would be stored very finely."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(displacement, 'SPACINGS_MM', (6.0,))
        patch.setattr(registration, 'preset', lambda modality, _: preset(modality, True))
        patch.setattr(dense, 'BASE_SPACINGS_MM', (6.0, 3.0))
        yield


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


def command(files, out, *more, **replaced):
    """The command line; a file that is replaced by None is left out."""
    options = []
    for name in ('fixed-mask', 'moving-mask', 'fixed-landmarks', 'moving-landmarks'):
        path = replaced.get(name.replace('-', '_'), files[name])
        options += [f'--{name}', str(path)] if path else []
    images = [str(files['fixed']), str(files['moving'])]
    line = ['register', *images, '-o', str(out), '--modality', 'lung', '--threads', '1']
    return [*line, *options, *more]


def run(capsys, files, out, **replaced):
    """Exit code and the lines on standard error."""
    code = main(command(files, out, **replaced))
    return code, capsys.readouterr().err.splitlines()


@pytest.fixture(scope='module')
def without_a_row(files, tmp_path_factory):
    path = tmp_path_factory.mktemp('short') / 'moving.tsv'
    rows = files['moving-landmarks'].read_text().splitlines(keepends=True)
    path.write_text(''.join(rows[:8] + rows[9:]))
    return path


class Registered(NamedTuple):
    """What one run of the command left: its folder, scores, page and warnings."""

    out: Path
    scores: dict
    page: Page
    warnings: str


@pytest.fixture(scope='module')
def registered(files, without_a_row, tmp_path_factory):
    """A run with a mask of the fixed scan alone, and a landmark that the moving one lacks."""
    out = tmp_path_factory.mktemp('registered') / 'out'
    given = {'moving_mask': None, 'moving_landmarks': without_a_row}
    records = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: records.append(record.getMessage())
    logging.getLogger().addHandler(listener)
    try:
        assert main(command(files, out, '--report', '--xfm-format', 'field', **given)) == 0
    finally:
        logging.getLogger().removeHandler(listener)
    scores = json.loads((out / 'metrics.json').read_text())
    return Registered(out, scores, check_page(out / 'report.html'), '\n'.join(records))


def test_padding_is_mended_and_every_landmark_scored(files, registered):
    out, scores, _, warnings = registered
    assert warnings.count(f'"{files["moving"]}": padding of -3024') == 1
    warped = load_image(out / 'warped.nii.gz').data
    assert load_image(files['moving']).data.min() == PADDING_HU
    assert warped.min() >= -1100

    assert 'left out: 1 of 200, such as 7.' in warnings
    with open(out / 'landmarks.tsv') as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert list(rows[0]) == list(COLUMNS)  # those of the table that nephi-pipe writes
    assert [row['index'] for row in rows] == [str(n) for n in range(200) if n != 7]
    for key, column in (('tre_mm', 'nephi_mm'), ('tre_inverse_mm', 'inverse_nephi_mm')):
        mean = np.mean([float(row[column]) for row in rows])
        assert mean == pytest.approx(scores[key]['after']['mean'], abs=1e-3)
        assert mean < 0.65 * scores[key]['before']['mean']
    assert scores['tre_mm']['raw']['mean'] > 8


def test_overlap_and_volume_of_the_lungs_are_scored(files, registered):
    """The fixed lungs are those of the mask, the moving ones those found in the mended CT."""
    overlap, volume = registered.scores['masks']['dice'], registered.scores['volume']
    assert overlap['before'] < overlap['after']
    assert overlap['after'] > 0.9
    fixed, moving = (load_mask(files[f'{side}-mask']) for side in ('fixed', 'moving'))
    fixed_ml, moving_ml = (
        np.count_nonzero(mask.data) * mask.grid.voxel_volume_mm3 / 1000 for mask in (fixed, moving)
    )
    assert volume['fixed_ml'] == pytest.approx(fixed_ml)
    assert volume['moving_ml'] == pytest.approx(moving_ml, rel=0.1)
    assert volume['ratio_by_masks'] == pytest.approx(volume['moving_ml'] / fixed_ml)
    assert volume['ratio_by_masks'] > 1.05  # inspiration is moving
    assert volume['ratio_by_jacobian'] > 1.05
    assert abs(volume['mismatch']) < 0.1
    assert volume['folds'] == {
        'voxels': np.count_nonzero(fixed.data),
        'count': 0,
        'percent': 0.0,
    }


def test_the_page_has_the_sections_of_lungs(registered):
    page = registered.page
    shown = [image['alt'].split(',')[0] for image in page.all('img')]
    for title in (
        'Lungs before (affine)',
        'Lungs after (NePhi)',
        'Motion',
        'Local change of volume',
        'Landmarks before (affine)',
        'Landmarks after (NePhi)',
        'Landmark errors',
    ):
        assert title in shown
    for heading in ('Change of volume', 'Ratio by the Jacobian', 'Dice of the masks', 'Time'):
        assert heading in page.text
    volume = registered.scores['volume']
    assert f'{volume["fixed_ml"]:,.0f} → {volume["moving_ml"]:,.0f}' in page.text
    assert f'{volume["ratio_by_jacobian"]:.3f}' in page.text
    assert 'Yellow lines: lungs of the fixed image' in page.text


def nodes_of_the_app(files, registered, without_a_row, folder):
    """Scores and figures as the nodes of ``init_lung_wf`` make them of the same registration."""

    def run_node(interface, **inputs):
        place = folder / interface.__name__ / str(len(list(folder.glob('*/*'))))
        place.mkdir(parents=True)
        return interface(**inputs).run(cwd=str(place)).outputs

    fixed = run_node(interfaces.LungMask, image=str(files['fixed']), mask=str(files['fixed-mask']))
    moving = run_node(interfaces.LungMask, image=str(files['moving']))
    images = {'fixed_image': fixed.image, 'moving_image': moving.image}
    lungs = run_node(
        interfaces.CommonLungs, **images, fixed_mask=fixed.mask, moving_mask=moving.mask
    )
    pair = {
        **images,
        'field': str(registered.out / 'transform.safetensors'),
        'fixed_mask': lungs.fixed_mask,
        'moving_mask': lungs.moving_mask,
        'fixed_landmarks': str(files['fixed-landmarks']),
        'moving_landmarks': str(without_a_row),
    }
    scored = run_node(interfaces.EvaluateRegistration, **pair)
    jacobian = folder / 'jacobian.nii.gz'
    determinant = registration.load_registration(pair['field']).jacobian_determinant(total=True)
    save_image(jacobian, determinant.data, determinant.grid)
    drawn = run_node(
        interfaces.PairReport,
        **pair,
        warped_image=str(registered.out / 'warped.nii.gz'),
        jacobian=str(jacobian),
        metrics=scored.metrics,
        modality='lung',
    )
    return json.loads(Path(scored.metrics).read_text()), drawn.figures


def numbers(values, name=''):
    """Nested numbers by the path of their keys."""
    if not isinstance(values, dict):
        return {name: values}
    return {k: v for key in values for k, v in numbers(values[key], f'{name}/{key}').items()}


def test_scores_and_figures_are_those_of_the_app(files, registered, without_a_row, tmp_path):
    scores, figures = nodes_of_the_app(files, registered, without_a_row, tmp_path)
    assert list(scores) == list(registered.scores)
    # The app scores what the file of the field holds, which is rounded.
    assert numbers(registered.scores) == pytest.approx(numbers(scores), rel=5e-3, abs=5e-3)
    titles = {figure.title for figure in map(load_figure, figures)}
    alts = [image['alt'] for image in registered.page.all('img')]
    missing = {title for title in titles if not any(alt.startswith(title) for alt in alts)}
    assert missing == set() and len(titles) >= 12


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
