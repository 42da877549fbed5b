"""Bad data for ``nephi-pipe``: what is said of it, and the exit code."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from bids_data import SHAPE, affine, ball, describe, save, touch


def _truncated(app):
    data = app.t1w().read_bytes()
    app.t1w().write_bytes(data[: len(data) // 2])


def _four_dimensions(app):
    save(app.t1w(), np.stack([ball()[0]] * 3, -1), affine())


def _not_finite(app):
    image = ball()[0]
    image[5:7, 5, 5] = np.nan
    save(app.t1w(), image)


def _constant(app):
    save(app.t1w(), np.full(SHAPE, 3.0, dtype=np.float32))


def _singular(app):
    image = nib.load(app.t1w())
    header = image.header.copy()
    header.set_sform(np.diag([4.0, 4.0, 0.0, 1.0]), code=1)
    raw = nib.Nifti1Image(np.asarray(image.dataobj), None, header)
    raw.header['qform_code'] = 0
    nib.save(raw, app.t1w())


def _flat(app):
    save(app.t1w(), ball()[0][:, :, :1], affine())


def _not_an_image(app):
    app.t1w().write_text('this is not an image')


def _dangling(app):
    app.t1w().unlink()
    app.t1w().symlink_to('../../.git/annex/objects/xx.nii.gz')


def _other_grid(app):
    path = app.bids / 'derivatives/seg/sub-01/anat/sub-01_desc-ball_dseg.nii.gz'
    save(path, ball()[1][:-2].astype(np.int16))


def _two_label_maps(app):
    path = app.bids / 'derivatives/seg/sub-01/anat/sub-01_desc-other_dseg.nii.gz'
    save(path, ball()[1].astype(np.int16))


def _mask_on_another_grid(app):
    path = app.bids / 'derivatives/seg/sub-01/anat/sub-01_desc-brain_mask.nii.gz'
    save(path, np.ones((10, 10, 10), dtype=np.uint8))


BAD = [
    (_truncated, 65, 'cannot be read to its end'),
    (_four_dimensions, 65, r'has the shape (40, 44, 38, 3); expected a 3D image'),
    (_not_finite, 65, '2 values that are not finite'),
    (_constant, 65, 'has the value 3 in every voxel'),
    (_singular, 65, 'an affine that is zero, singular or not finite'),
    (_flat, 65, 'expected a 3D image'),
    (_not_an_image, 65, 'is not an image that can be read'),
    (_dangling, 66, 'Fetch its content first'),
    (_other_grid, 65, 'label map "'),
    (_two_label_maps, 65, '2 files of the derivatives seg could be the dseg of sub-01'),
    (_mask_on_another_grid, 65, 'does not lie on the grid of'),
]


@pytest.mark.parametrize(('spoil', 'code', 'words'), BAD, ids=lambda p: getattr(p, '__name__', ''))
def test_bad_data_of_the_only_person(app, spoil, code, words):
    spoil(app)
    found, said = app.run('--participant-label', '01')
    assert found == code, said
    assert words in said and 'Error: sub-01: ' in said
    assert 'Traceback' not in said
    assert not list(app.out.glob('sub-01/anat/*'))


@pytest.mark.parametrize('spoil', [_truncated, _four_dimensions, _two_label_maps])
def test_bad_data_of_one_person_among_others(app, spoil):
    spoil(app)
    code, said = app.run()
    assert code == 1, said
    assert '1 of 2 pairs finished. Failed: sub-01.' in said
    assert (app.out / 'sub-02/anat/sub-02_space-sub03_desc-nephi_metrics.json').exists()


def test_a_bad_reference_stops_everybody(app):
    save(app.t1w('03'), np.stack([ball()[0]] * 3, -1), affine())
    code, said = app.run()
    assert code == 65 and 'sub-03_T1w.nii.gz" has the shape' in said


def test_no_such_data_set(app):
    app.bids = app.bids.parent / 'nowhere'
    code, said = app.run()
    assert code == 66 and 'cannot be opened (No such file or directory)' in said
    assert not app.out.exists()


def test_no_scan_at_all(app):
    app.bids = touch(
        describe(app.bids.parent / 'other'),
        ['sub-01/anat/sub-01_T2w.nii.gz', 'derivatives/seg/dataset_description.json'],
    )
    code, said = app.run('--reference', 'MNI152')
    assert code == 18 and 'No T1w matches for sub-01' in said


def test_unknown_participant(app):
    code, said = app.run('--participant-label', '77')
    assert code == 18
    assert 'There is no sub-77 in the data set; expected some of 01, 02, 03.' in said


def test_missing_description_is_only_a_warning(app):
    (app.bids / 'dataset_description.json').unlink()
    code, said = app.run('--participant-label', '01')
    assert code == 0 and 'Warning: ' in said and 'no dataset_description.json' in said
    assert 'dataset_description' not in app.run('--skip-bids-validation')[1]


def test_missing_initial_transform(app):
    code, said = app.run('--initial-transform', '/nowhere/a.txt')
    assert code == 66 and '--initial-transform' in said
