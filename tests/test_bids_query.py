"""Which scans, masks, labels and pairs are found in data sets."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_data import describe, touch

from nephi_pipe.bids_app.names import Names, sidecar
from nephi_pipe.bids_app.pairs import select_pairs
from nephi_pipe.bids_app.preflight import check_scan
from nephi_pipe.bids_app.query import Catalogue, find_table
from nephi_pipe.bids_app.reference import MNI_SHAPE, MNI_SPACE, mni_template, write_template
from nephi_pipe.bids_app.settings import Settings
from nephi_pipe.bids_app.training_scans import find_training_scans
from nephi_pipe.errors import InputDataError, NoInputError, NothingSelectedError, UsageError

PEOPLE = [
    'sub-01/anat/sub-01_T1w.nii.gz',
    'sub-01/anat/sub-01_T2w.nii.gz',
    'sub-01/func/sub-01_task-rest_bold.nii.gz',
    'sub-02/ses-a/anat/sub-02_ses-a_run-01_T1w.nii.gz',
    'sub-02/ses-a/anat/sub-02_ses-a_run-02_T1w.nii.gz',
    'sub-02/ses-b/anat/sub-02_ses-b_acq-fast_T1w.nii',
    'sub-03/anat/sub-03_T1w.nii.gz',
    'sub-04/func/sub-04_task-rest_bold.nii.gz',
    'derivatives/old/sub-01/anat/sub-01_T1w.nii.gz',
    'sourcedata/sub-01/anat/sub-01_T1w.nii.gz',
]


@pytest.fixture
def data(tmp_path):
    return touch(describe(tmp_path / 'ds'), PEOPLE)


def pairs_of(data, **more):
    settings = Settings(
        bids_dir=data, output_dir=data.parent / 'out', work_dir=data.parent / 'w', **more
    )
    return select_pairs(settings)


def names_of(pairs):
    return [pair.name for pair in pairs]


def test_every_scan_of_a_person_is_registered_to_the_reference(data):
    pairs = pairs_of(data, reference='sub-03', participant_label=('02', '01'))
    assert names_of(pairs) == [
        'sub-01 to sub03',
        'sub-02_ses-a_run-01 to sub03',
        'sub-02_ses-a_run-02 to sub03',
        'sub-02_ses-b_acq-fast to sub03',
    ]


def test_the_reference_is_not_registered_to_itself(data):
    pairs = pairs_of(data, reference='sub-03', session_label=())
    assert not [pair for pair in pairs if pair.moving.subject == '03']


def test_people_without_a_scan_are_left_out_with_a_warning(data, caplog):
    pairs = pairs_of(data, reference='sub-03')
    assert {pair.moving.subject for pair in pairs} == {'01', '02'}
    assert 'No T1w matches for sub-04: left out.' in caplog.text


def test_sessions_are_selected(data):
    pairs = pairs_of(data, reference='sub-03', session_label=('ses-b',))
    assert names_of(pairs) == ['sub-02_ses-b_acq-fast to sub03']


@pytest.mark.parametrize(
    ('filters', 'expected'),
    [
        ({'t1w': {'session': None}}, ['sub-01 to sub03']),
        ({'t1w': {'acquisition': '*'}}, ['sub-02_ses-b_acq-fast to MNI']),
        ({'t1w': {'run': 2}}, ['sub-02_ses-a_run-02 to MNI']),
        ({'t1w': {'suffix': 'T2w'}}, ['sub-01 to MNI']),
    ],
)
def test_filters(data, tmp_path, filters, expected):
    path = tmp_path / 'filters.json'
    path.write_text(json.dumps(filters))
    reference = 'sub-03' if 'sub03' in expected[0] else 'MNI152'
    pairs = pairs_of(data, reference=reference, bids_filter_file=path)
    assert [name.replace(MNI_SPACE, 'MNI') for name in names_of(pairs)] == expected


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('{"T1w": {}}', 'with the queries t1w, dseg, mask, landmarks; found T1w'),
        ('{"t1w": "x"}', 'has to hold'),
        ('{', 'is not JSON'),
        ('{"t1w": {"colour": "red"}}', 'entity "colour", which does not exist'),
        ('{"t1w": {"return_type": "id"}}', 'entity "return_type", which does not exist'),
        ('{"t1w": {"run": 1.5}}', 'expected text, a whole number'),
    ],
)
def test_bad_filter_files(data, tmp_path, text, words):
    path = tmp_path / 'filters.json'
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        pairs_of(data, bids_filter_file=path)


@pytest.mark.parametrize(
    ('settings', 'error', 'words'),
    [
        ({'participant_label': ('99',)}, NothingSelectedError, 'no sub-99 .* 01, 02, 03, 04'),
        ({'participant_label': ('04',)}, NothingSelectedError, 'No T1w matches for sub-04'),
        ({'session_label': ('zz',)}, NothingSelectedError, 'No T1w matches'),
        ({'reference': 'sub-99'}, NothingSelectedError, 'no sub-99 in the data set'),
        ({'reference': 'sub-04', 'participant_label': ('01',)}, NothingSelectedError,
         'reference sub-04 has no matching scan'),
        ({'reference': 'sub-02'}, UsageError, 'reference sub-02 is 3 scans .* exactly one'),
        ({'reference': 'brain'}, UsageError, '"brain" is no reference'),
        ({'reference': '/no/t.nii.gz'}, NoInputError, 'no reference file "/no/t.nii.gz"'),
        ({'reference': 'sub-03', 'participant_label': ('03',)}, NothingSelectedError,
         'not registered to itself'),
        ({'pairs': 'missing.tsv'}, NoInputError, 'There is no file "missing.tsv"'),
        ({'derivatives': {'seg': '/nowhere'}}, NoInputError, 'derivatives seg are to be in'),
    ],
)  # fmt: skip
def test_selections_that_cannot_be_used(data, settings, error, words):

    if 'derivatives' in settings:
        settings = {'derivatives': {k: Path(v) for k, v in settings['derivatives'].items()}}
    with pytest.raises(error, match=words):
        pairs_of(data, **settings)


def test_no_data_set(tmp_path):
    with pytest.raises(NoInputError, match='cannot be opened'):
        pairs_of(tmp_path / 'nowhere')
    with pytest.raises(NoInputError, match=r'holds no sub-\* folder'):
        pairs_of(describe(tmp_path / 'empty'))


def test_one_session_as_a_reference_for_another(data):
    pairs = pairs_of(
        data,
        reference='sub-02_ses-a_run-1',
        participant_label=('02',),
        session_label=('b',),
    )
    assert names_of(pairs) == ['sub-02_ses-b_acq-fast to sub02sesarun01']


def test_a_file_of_the_data_set_as_a_reference(data):
    file = data / PEOPLE[3]
    pairs = pairs_of(data, reference=str(file), participant_label=('01',))
    assert names_of(pairs) == ['sub-01 to sub02sesarun01']
    assert pairs[0].fixed.uri == f'bids:raw:{PEOPLE[3]}'


def test_a_file_from_elsewhere_as_a_reference(data, tmp_path):
    touch(tmp_path, ['t/tpl-Some_res-1_T1w.nii.gz', 't/tpl-Some_res-1_desc-brain_mask.nii.gz'])
    file = tmp_path / 't' / 'tpl-Some_res-1_T1w.nii.gz'
    fixed = pairs_of(data, reference=str(file), participant_label=('01',))[0].fixed
    assert (fixed.space, fixed.subject, fixed.suffix) == ('Some', '', 'T1w')
    assert fixed.mask == file.with_name('tpl-Some_res-1_desc-brain_mask.nii.gz')


def test_all_pairs_once(data):
    pairs = pairs_of(data, pairs='all', participant_label=('01', '02', '03'), session_label=())
    assert len(pairs) == 5 * 4 / 2
    assert len({frozenset((p.moving.path, p.fixed.path)) for p in pairs}) == 10


def test_a_table_of_pairs(data, tmp_path):
    table = tmp_path / 'pairs.tsv'
    table.write_text(
        'moving\tfixed\n'
        'sub-01\tsub-03\n'
        f'sub-02_ses-b\t{PEOPLE[3]}\n'
        f'{PEOPLE[6]}\tMNI152\n'
        f'bids::{PEOPLE[4]}\tsub-01\n'
    )
    assert names_of(pairs_of(data, pairs=str(table))) == [
        'sub-01 to sub03',
        'sub-02_ses-a_run-02 to sub01',
        'sub-02_ses-b_acq-fast to sub02sesarun01',
        f'sub-03 to {MNI_SPACE}',
    ]
    assert names_of(pairs_of(data, pairs=str(table), participant_label=('01',))) == [
        'sub-01 to sub03'
    ]


@pytest.mark.parametrize(
    ('text', 'error', 'words'),
    [
        ('from\tto\nsub-01\tsub-03\n', UsageError, 'needs the columns moving and fixed'),
        ('moving\tfixed\nsub-01\t\n', UsageError, 'a value in each row'),
        ('moving\tfixed\nsub-77\tsub-03\n', NothingSelectedError, 'None of the moving scans'),
        ('moving\tfixed\nsub-01_ses-z\tsub-03\n', NothingSelectedError, 'matches no scan'),
        ('moving\tfixed\nsub-01\tsub-01\n', UsageError, 'with itself'),
        ('moving\tfixed\nsub-01\tsub-02\n', UsageError, 'is 3 scans'),
    ],
)
def test_bad_tables(data, tmp_path, text, error, words):
    table = tmp_path / 'pairs.tsv'
    table.write_text(text)
    with pytest.raises(error, match=words):
        pairs_of(data, pairs=str(table))


def test_two_references_of_one_name_are_refused(data, tmp_path):
    touch(tmp_path, ['a/t_T1w.nii.gz', 'b/t_T1w.nii.gz'])
    table = tmp_path / 'pairs.tsv'
    table.write_text(
        f'moving\tfixed\nsub-01\t{tmp_path}/a/t_T1w.nii.gz\nsub-03\t{tmp_path}/b/t_T1w.nii.gz\n'
    )
    with pytest.raises(UsageError, match='would both be called space-tT1w'):
        pairs_of(data, pairs=str(table))


def test_one_name_for_two_files(data):
    touch(data, ['sub-01/anat/sub-01_T1w.nii'])
    with pytest.raises(InputDataError, match='one name for two files'):
        pairs_of(data, participant_label=('01',))


DERIVATIVES = [
    'sub-01/anat/sub-01_desc-brain_mask.nii.gz',
    'sub-01/anat/sub-01_label-GM_mask.nii.gz',
    'sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz',
    'sub-01/anat/sub-01_desc-aseg_dseg.nii.gz',
    'sub-02/anat/sub-02_desc-brain_mask.nii.gz',
    'sub-02/ses-a/anat/sub-02_ses-a_desc-aseg_dseg.nii.gz',
    'sub-02/ses-a/anat/sub-02_ses-a_run-02_desc-aseg_dseg.nii.gz',
    'desc-aseg_dseg.tsv',
    'dseg.tsv',
]


def test_masks_and_labels_follow_entities(data):
    prep = touch(data / 'derivatives' / 'prep', DERIVATIVES)
    pairs = pairs_of(data, derivatives={'prep': prep}, participant_label=('01', '02'))
    found = {
        pair.moving.stem: (
            pair.moving.mask and pair.moving.mask.name,
            pair.moving.labels and pair.moving.labels.name,
        )
        for pair in pairs
    }
    assert found == {
        'sub-01': ('sub-01_desc-brain_mask.nii.gz', 'sub-01_desc-aseg_dseg.nii.gz'),
        'sub-02_ses-a_run-01': (
            'sub-02_desc-brain_mask.nii.gz', 'sub-02_ses-a_desc-aseg_dseg.nii.gz'),
        'sub-02_ses-a_run-02': (
            'sub-02_desc-brain_mask.nii.gz', 'sub-02_ses-a_run-02_desc-aseg_dseg.nii.gz'),
        'sub-02_ses-b_acq-fast': ('sub-02_desc-brain_mask.nii.gz', None),
    }  # fmt: skip
    assert pairs[0].moving.label_table == prep / 'desc-aseg_dseg.tsv'
    assert pairs[0].moving.companion_uris == (
        'bids:prep:sub-01/anat/sub-01_desc-brain_mask.nii.gz',
        'bids:prep:sub-01/anat/sub-01_desc-aseg_dseg.nii.gz',
    )


def test_several_label_maps_need_a_filter(data, tmp_path):
    touch(data / 'derivatives/prep', [*DERIVATIVES, 'sub-01/anat/sub-01_desc-aparc_dseg.nii.gz'])
    prep = {'prep': data / 'derivatives' / 'prep'}
    pairs = pairs_of(data, derivatives=prep, participant_label=('01', '02'))
    troubled = [pair for pair in pairs if pair.moving.problem]
    assert {pair.moving.stem for pair in troubled} == {'sub-01'} and len(troubled) < len(pairs)
    with pytest.raises(
        InputDataError, match='could be the dseg of sub-01.*{"dseg": {"desc": "aparc"}}'
    ):
        check_scan(troubled[0].moving)
    with pytest.raises(InputDataError, match='could be the dseg of sub-01'):
        find_training_scans(data, ['01'], [f'prep={prep["prep"]}'])
    path = tmp_path / 'filters.json'
    path.write_text('{"dseg": {"desc": "aparc"}}')
    pairs = pairs_of(data, derivatives=prep, participant_label=('01',), bids_filter_file=path)
    assert pairs[0].moving.labels.name == 'sub-01_desc-aparc_dseg.nii.gz'


def test_paths_may_lead_up_and_down_again(data, tmp_path, monkeypatch):
    touch(data / 'derivatives/prep', DERIVATIVES)
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    roundabout = Path('../ds')
    settings = {'derivatives': {'prep': roundabout / 'derivatives' / 'prep'}}
    pairs = pairs_of(roundabout, participant_label=('01',), **settings)
    straight = pairs_of(
        data, participant_label=('01',), derivatives={'prep': data / 'derivatives/prep'}
    )
    assert names_of(pairs) == names_of(straight)
    assert pairs[0].moving.labels.samefile(straight[0].moving.labels)
    assert pairs[0].moving.companion_uris == straight[0].moving.companion_uris


def test_the_first_derivatives_with_labels_win(data):
    touch(data / 'derivatives/a', ['sub-01/anat/sub-01_desc-x_dseg.nii.gz'])
    touch(
        data / 'derivatives/b', [f'sub-{n}/anat/sub-{n}_desc-y_dseg.nii.gz' for n in ('01', '03')]
    )
    both = {name: data / 'derivatives' / name for name in 'ab'}
    pairs = pairs_of(data, derivatives=both, participant_label=('01', '03'))
    assert [pair.moving.labels.parts[-4] for pair in pairs] == ['a', 'b']


def test_closest_table(tmp_path):
    touch(tmp_path, ['dseg.tsv', 'sub-1/desc-a_dseg.tsv', 'sub-1/dseg.tsv', 'desc-b_dseg.tsv'])
    assert find_table(tmp_path / 'sub-1/sub-1_desc-a_dseg.nii.gz', tmp_path) == (
        tmp_path / 'sub-1/desc-a_dseg.tsv'
    )
    assert find_table(tmp_path / 'sub-2/sub-2_desc-b_dseg.nii.gz', tmp_path) == (
        tmp_path / 'desc-b_dseg.tsv'
    )
    assert find_table(tmp_path / 'x/sub-2/sub-2_dseg.nii.gz', tmp_path / 'x') is None


def test_computed_tomography_is_found_with_our_configuration(tmp_path):
    data = touch(
        describe(tmp_path / 'ds'),
        [
            'sub-01/ses-1/ct/sub-01_ses-1_acq-insp_ct.nii.gz',
            'sub-01/ses-1/ct/sub-01_ses-1_ct.json',
        ],
    )
    scans = Catalogue(data, ['01'], modality='lung').scans('01')
    assert [(scan.stem, scan.suffix, scan.folder) for scan in scans] == [
        ('sub-01_ses-1_acq-insp', 'ct', 'sub-01/ses-1/ct')
    ]


def test_other_people_are_not_even_opened(data, monkeypatch):
    import os

    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, 'scandir', lambda top: opened.append(str(top)) or scandir(top))
    pairs_of(data, participant_label=('01',), reference='sub-03')
    assert any('sub-01' in name for name in opened)
    assert not [name for name in opened if 'sub-02' in name or 'func' in name or 'deriv' in name]


def test_names(data, tmp_path):
    pair = pairs_of(data, reference='sub-03', participant_label=('02',))[0]
    names = Names(tmp_path, pair)
    anat = tmp_path / 'sub-02' / 'ses-a' / 'anat'
    start = 'sub-02_ses-a_run-01'
    assert names.forward == anat / f'{start}_from-T1w_to-sub03_mode-image_xfm.h5'
    assert names.inverse == anat / f'{start}_from-sub03_to-T1w_mode-image_xfm.h5'
    assert names.warped == anat / f'{start}_space-sub03_desc-nephi_T1w.nii.gz'
    assert names.labels == anat / f'{start}_space-sub03_desc-nephi_dseg.nii.gz'
    assert names.jacobian == anat / f'{start}_space-sub03_desc-nephi_jacobian.nii.gz'
    assert names.metrics == anat / f'{start}_space-sub03_desc-nephi_metrics.json'
    assert names.figure('grid', '.png') == (
        tmp_path / f'sub-02/figures/{start}_space-sub03_desc-grid_T1w.png'
    )
    assert sidecar(names.forward).name == f'{start}_from-T1w_to-sub03_mode-image_xfm.json'
    suffixes = {Names(tmp_path, pair, kind).forward.name.partition('xfm')[2]
                for kind in ('h5', 'nii', 'field')}  # fmt: skip
    assert suffixes == {'.h5', '.nii.gz', '.safetensors'}


def test_template_is_the_symmetric_one(tmp_path):
    template = mni_template(tmp_path)
    write_template(template)
    image, mask = nib.load(template.path), nib.load(template.mask)
    values, inside = np.asarray(image.dataobj), np.asarray(mask.dataobj)
    assert image.shape == mask.shape == MNI_SHAPE
    x = image.affine[0, 0] * np.arange(MNI_SHAPE[0]) + image.affine[0, 3]
    assert np.array_equal(x, -x[::-1])
    assert np.array_equal(values, values[::-1])
    assert np.array_equal(inside, inside[::-1])
    assert inside.sum() == 1_882_989
    assert MNI_SPACE == 'MNI152NLin2009aSym'
    assert (image.affine == image.get_qform()).all()
    stamp = template.path.stat().st_mtime_ns
    write_template(template)
    assert template.path.stat().st_mtime_ns == stamp
