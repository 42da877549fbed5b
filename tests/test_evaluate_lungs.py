"""``nephi evaluate --modality lung``: CTs mended and lungs scored as by ``nephi register``."""

import json

import numpy as np
import pytest
from lung_data import SHAPE, affine, chest

from nephi_pipe.cli import main
from nephi_pipe.geometry import Grid
from nephi_pipe.images import load_image, save_image
from nephi_pipe.itk import write_affine

STRETCH = 1.2
PADDING_HU = -3024.0


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Two breath states on one grid; the moving one once more with a scanner's padding."""
    folder, grid = tmp_path_factory.mktemp('files'), Grid(SHAPE, affine())
    (fixed, fixed_mask), (moving, moving_mask) = chest(), chest(STRETCH)
    x, y, _ = np.moveaxis(grid.points(), -1, 0)
    right = fixed_mask & (x > 0)
    images = {
        'fixed': fixed,
        'moving': moving,
        'padded': np.where(np.hypot(x, y) > 120, PADDING_HU, moving),
        'fixed-mask': fixed_mask,
        'moving-mask': moving_mask,
        'right-mask': right,
        'mr': np.where(fixed == 40, 300, 10) + np.arange(SHAPE[0])[:, None, None],
        'no-lung': np.where(fixed_mask, 40, fixed) + 15 * np.sin(x / 9),
    }
    paths = {
        name: save_image(folder / f'{name}.nii.gz', data.astype(np.float32), grid)
        for name, data in images.items()
    }
    paths['identity'] = write_affine(folder / 'identity.txt', np.eye(4))
    paths['small-mask'] = save_image(
        folder / 'small.nii.gz', fixed_mask[:-1], Grid(fixed_mask[:-1].shape, affine())
    )
    return paths


def evaluate(capsys, files, *options, fixed='fixed', moving='moving'):
    """Exit code, and the scores or what is said on standard error."""
    line = ['evaluate', files['identity'], '--fixed', files[fixed], '--moving', files[moving]]
    code = main([str(argument) for argument in [*line, *options]])
    said = capsys.readouterr()
    return code, json.loads(said.out) if code == 0 else said.err.splitlines()


def masks(files, fixed='fixed-mask', moving='moving-mask'):
    return '--fixed-mask', files[fixed], '--moving-mask', files[moving]


def test_padding_is_mended_for_lungs_and_counts_without(capsys, caplog, files):
    padded, clean = (
        evaluate(capsys, files, '--modality', 'lung', *masks(files), moving=moving)[1]
        for moving in ('padded', 'moving')
    )
    assert f'"{files["padded"]}": padding of -3024' in caplog.text
    assert padded['similarity'] == clean['similarity']
    caplog.clear()
    padded, clean = (
        evaluate(capsys, files, moving=moving)[1]['similarity']['after']
        for moving in ('padded', 'moving')
    )
    assert abs(padded - clean) > 0.01
    assert 'padding' not in caplog.text


def test_lungs_of_given_masks_are_scored(capsys, files):
    code, scores = evaluate(capsys, files, '--modality', 'lung', *masks(files))
    assert code == 0
    fixed, moving = (load_image(files[f'{side}-mask']) for side in ('fixed', 'moving'))
    voxel_ml = fixed.grid.voxel_volume_mm3 / 1000
    volume, overlap = scores['volume'], scores['masks']['dice']
    assert volume['fixed_ml'] == pytest.approx(fixed.data.sum() * voxel_ml)
    assert volume['moving_ml'] == pytest.approx(moving.data.sum() * voxel_ml)
    assert volume['ratio_by_masks'] == pytest.approx(STRETCH, rel=0.02)
    assert volume['ratio_by_jacobian'] == pytest.approx(1)  # the identity changes no volume
    assert volume['folds']['voxels'] == scores['folds']['finite_difference']['voxels']
    common = 2 * (fixed.data * moving.data).sum() / (fixed.data.sum() + moving.data.sum())
    assert overlap == {'before': pytest.approx(common), 'after': pytest.approx(common)}
    assert not {'masks', 'volume'} & set(evaluate(capsys, files, *masks(files))[1])


def test_lungs_are_found_where_no_mask_is_given(capsys, files):
    _, given = evaluate(capsys, files, '--modality', 'lung', *masks(files))
    code, found = evaluate(capsys, files, '--modality', 'lung', moving='padded')
    assert code == 0
    for name in ('fixed_ml', 'moving_ml', 'ratio_by_masks'):
        assert found['volume'][name] == pytest.approx(given['volume'][name], rel=0.1)


def test_the_same_lung_of_both_is_scored(capsys, caplog, files):
    one = '--modality', 'lung', '--fixed-mask', files['right-mask']
    code, scores = evaluate(capsys, files, *one)
    assert code == 0
    assert 'the right lungs are compared' in caplog.text
    assert scores['volume']['ratio_by_masks'] == pytest.approx(STRETCH, rel=0.1)


@pytest.mark.parametrize(
    ('images', 'mask', 'sentence'),
    [
        ({'fixed': 'mr'}, (), 'no Hounsfield units; expected a CT with air near -1000'),
        ({'fixed': 'no-lung'}, (), 'No lung is found in'),
        ({}, ('--fixed-mask', 'small-mask'), 'does not lie on the grid of'),
    ],
)
def test_what_shows_no_lung_is_refused_in_one_sentence(capsys, files, images, mask, sentence):
    options = [files.get(word, word) for word in mask]
    code, said = evaluate(capsys, files, '--modality', 'lung', *options, **images)
    assert code == 65 and len(said) == 1
    assert sentence in said[0]
    assert 'Traceback' not in said[0]


def test_a_modality_that_is_none_is_a_usage_error(capsys, files):
    code, said = evaluate(capsys, files, '--modality', 'liver')
    assert code == 64
    assert "invalid choice: 'liver'" in said[0]
