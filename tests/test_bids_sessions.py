"""Which scans of one person are registered to which: sessions, breath states, tables."""

from __future__ import annotations

import json

import pytest
from bids_data import describe, touch

from nephi_pipe.bids_app.names import Names
from nephi_pipe.bids_app.pairs import select_pairs
from nephi_pipe.bids_app.sessions import session_order
from nephi_pipe.bids_app.settings import Settings
from nephi_pipe.errors import NoInputError, NothingSelectedError, UsageError


def ct(*names):
    """Files such as ``01/2_acq-insp``: person, session and what else there is."""
    paths = []
    for name in names:
        person, entities = name.split('/')
        paths.append(
            f'sub-{person}/ses-{entities.split("_")[0]}/ct/sub-{person}_ses-{entities}_ct.nii.gz'
        )
    return paths


def pairs_of(data, **more):
    settings = Settings(
        bids_dir=data,
        output_dir=data.parent / 'out',
        work_dir=data.parent / 'w',
        modality='lung',
        **more,
    )
    return select_pairs(settings)


def names_of(data, **more):
    """``moving -> fixed`` without the person, where there is only one."""
    pairs = pairs_of(data, **more)
    return [f'{p.moving.stem} -> {p.fixed.stem}'.replace('sub-01_', '') for p in pairs]


@pytest.fixture
def data(tmp_path):
    """Three sessions, whose numbers do not sort as text."""
    return touch(describe(tmp_path / 'ds'), ct('01/1', '01/2', '01/10'))


@pytest.mark.parametrize(
    ('policy', 'expected'),
    [
        (None, ['ses-10 -> ses-1', 'ses-2 -> ses-1']),
        ('baseline', ['ses-10 -> ses-1', 'ses-2 -> ses-1']),
        ('consecutive', ['ses-10 -> ses-2', 'ses-2 -> ses-1']),
        ('all', ['ses-10 -> ses-1', 'ses-10 -> ses-2', 'ses-2 -> ses-1']),
    ],
)
def test_later_sessions_go_to_earlier_ones(data, policy, expected):
    assert names_of(data, session_pairs=policy) == expected


def test_results_lie_with_the_follow_up(data, tmp_path):
    pair = pairs_of(data, session_pairs='consecutive')[1]
    names = Names(tmp_path, pair)
    folder = tmp_path / 'sub-01' / 'ses-2' / 'ct'
    assert names.forward == folder / 'sub-01_ses-2_from-ct_to-sub01ses1_mode-image_xfm.h5'
    assert names.landmarks == folder / 'sub-01_ses-2_space-sub01ses1_desc-nephi_landmarks.tsv'


def test_a_session_may_be_chosen_as_the_moving_one(data):
    assert names_of(data, session_label=('2',)) == ['ses-2 -> ses-1']
    with pytest.raises(NothingSelectedError, match='the later one selected by --session-label'):
        pairs_of(data, session_label=('1',))


def test_times_in_the_table_of_sessions_count(data):
    table = data / 'sub-01' / 'sub-01_sessions.tsv'
    rows = {'ses-1': '2021-05-01', 'ses-2': '2020-05-01T10:30:00.5', 'ses-10': '2022-05-01T09:00Z'}
    lines = ['session_id\tacq_time', *(f'{label}\t{time}' for label, time in rows.items())]
    table.write_text('\n'.join(lines) + '\n')
    assert names_of(data) == ['ses-1 -> ses-2', 'ses-10 -> ses-2']


@pytest.mark.parametrize('times', [['2021-05-01', '2020-05-01'], ['12/03/2018', '01/05/2017'],
                                   ['2021-05-01', 'n/a'], ['20210501', '20200501']])  # fmt: skip
def test_times_that_cannot_be_used_are_told(data, times, caplog):
    """A session without a time, or one that no two people read alike: labels count."""
    table = data / 'sub-01' / 'sub-01_sessions.tsv'
    rows = [f'ses-{label}\t{time}' for label, time in zip((1, 2), times, strict=True)]
    table.write_text('\n'.join(['session_id\tacq_time', *rows]) + '\n')
    assert names_of(data) == ['ses-10 -> ses-1', 'ses-2 -> ses-1']
    assert 'sub-01_sessions.tsv" has no acq_time like 2019-05-01T10:30:00 for' in caplog.text


def test_a_table_of_sessions_without_times_is_nothing_to_tell(data, caplog):
    (data / 'sub-01' / 'sub-01_sessions.tsv').write_text('session_id\tage\nses-1\t70\n')
    assert names_of(data) == ['ses-10 -> ses-1', 'ses-2 -> ses-1']
    assert not caplog.text


def test_a_baseline_comes_first_by_its_name():
    assert session_order(['1month', 'followup', 'baseline']) == ['baseline', '1month', 'followup']


BREATHS = ct('01/1_acq-exp', '01/1_acq-insp', '01/2_acq-exp', '01/2_acq-insp')


def test_breath_states_within_a_session(tmp_path):
    data = touch(describe(tmp_path / 'ds'), BREATHS)
    expected = ['ses-1_acq-insp -> ses-1_acq-exp', 'ses-2_acq-insp -> ses-2_acq-exp']
    assert names_of(data, fixed_acq='exp') == names_of(data, fixed_acq='acq-exp') == expected
    with pytest.raises(NothingSelectedError, match='expected acq-deep and another breath state'):
        pairs_of(data, fixed_acq='deep')


def test_a_session_with_one_breath_state_is_told(tmp_path, caplog):
    data = touch(describe(tmp_path / 'ds'), BREATHS[:3])
    assert names_of(data, fixed_acq='exp') == ['ses-1_acq-insp -> ses-1_acq-exp']
    assert 'sub-01_ses-2_acq-exp: expected a scan of acq-exp and one of another' in caplog.text


def test_breath_states_beside_a_table_of_sessions(tmp_path):
    data = touch(describe(tmp_path / 'ds'), [*BREATHS, *ct('02/1_acq-exp', '02/1_acq-insp')])
    table = tmp_path / 'sessions.tsv'
    table.write_text('participant_id\tfixed\tmoving\n01\t1_acq-exp\t2_acq-exp\n')
    found = [pair.name for pair in pairs_of(data, fixed_acq='exp', session_pairs=str(table))]
    assert found == [
        'sub-01_ses-1_acq-insp to sub01ses1acqexp',
        'sub-01_ses-2_acq-exp to sub01ses1acqexp',
        'sub-01_ses-2_acq-insp to sub01ses2acqexp',
        'sub-02_ses-1_acq-insp to sub02ses1acqexp',
    ]


def test_indices_may_be_padded(tmp_path):
    scans = ct('01/1_run-1', '01/1_run-2', '01/2_run-01', '01/2_run-02')
    data = touch(describe(tmp_path / 'ds'), scans)
    expected = ['ses-2_run-01 -> ses-1_run-1', 'ses-2_run-02 -> ses-1_run-2']
    assert names_of(data) == expected
    table = tmp_path / 'sessions.tsv'
    table.write_text('participant_id\tfixed\tmoving\n01\t1_run-01\t2_run-1\n')
    assert names_of(data, session_pairs=str(table)) == expected[:1]


def test_sessions_keep_to_the_same_breath_state(tmp_path):
    data = touch(describe(tmp_path / 'ds'), BREATHS)
    expected = ['ses-2_acq-exp -> ses-1_acq-exp', 'ses-2_acq-insp -> ses-1_acq-insp']
    assert names_of(data) == expected
    both = names_of(data, fixed_acq='exp', session_pairs='baseline')
    assert both == sorted([*expected, *names_of(data, fixed_acq='exp')])


def test_a_scan_without_a_counterpart_is_left_out_and_said(tmp_path, caplog):
    data = touch(describe(tmp_path / 'ds'), BREATHS[:3] + ct('01/2_acq-deep'))
    assert names_of(data) == ['ses-2_acq-exp -> ses-1_acq-exp']
    assert 'sub-01_ses-2_acq-deep has no counterpart among sub-01_ses-1_acq-exp' in caplog.text


def test_the_only_scans_of_two_sessions_belong_together(tmp_path, caplog):
    data = touch(describe(tmp_path / 'ds'), ct('01/1_acq-thin', '01/2_acq-thick'))
    assert names_of(data) == ['ses-2_acq-thick -> ses-1_acq-thin']
    assert 'is it the same breath state?' in caplog.text


def test_one_session_only(tmp_path, caplog):
    data = touch(describe(tmp_path / 'ds'), ct('01/1', '01/2', '02/1'))
    assert len(pairs_of(data)) == 1
    sentence = 'Nothing to register of sub-02: the only scan that matches is sub-02_ses-1'
    assert f'{sentence}; expected scans of two sessions.' in caplog.text
    with pytest.raises(NothingSelectedError, match=sentence):
        pairs_of(data, participant_label=('02',))


def test_a_table_of_sessions(data, tmp_path):
    touch(data, [*ct('02/a_acq-insp', '02/b_acq-insp', '02/b_acq-exp', '03/1')])
    table = tmp_path / 'sessions.tsv'
    table.write_text(
        'participant_id\tfixed\tmoving\n'
        'sub-01\t2\tses-1\n'
        '01\tses-1\t10\n'
        'sub-02\ta_acq-insp\tses-b\n'
        'sub-02\tses-b_acq-exp\tses-b_acq-insp\n'
    )
    names = [pair.name for pair in pairs_of(data, session_pairs=str(table))]
    assert names == [
        'sub-01_ses-1 to sub01ses2',
        'sub-01_ses-10 to sub01ses1',
        'sub-02_ses-b_acq-insp to sub02sesaacqinsp',
        'sub-02_ses-b_acq-insp to sub02sesbacqexp',
    ]
    only = pairs_of(data, session_pairs=str(table), participant_label=('01',))
    assert [pair.name for pair in only] == names[:2]
    with pytest.raises(NothingSelectedError, match='has no row of sub-03'):
        pairs_of(data, session_pairs=str(table), participant_label=('01', '03'))


def test_what_was_asked_for_and_is_not_there_is_told(data, tmp_path, caplog):
    table = tmp_path / 'sessions.tsv'
    table.write_text('participant_id\tfixed\tmoving\n01\t1\t2\n99\t1\t2\n')
    assert names_of(data, session_pairs=str(table)) == ['ses-2 -> ses-1']
    assert 'The data set has no sub-99' in caplog.text
    assert names_of(data, session_label=('2', '9')) == ['ses-2 -> ses-1']
    assert 'No scan is of ses-9' in caplog.text
    mistyped = touch(
        data / 'derivatives/lungs', ['sub-01/ses-1/ct/sub-01_ses-1_desc-lung_mask.nii.gz']
    )
    pairs_of(data, derivatives={'lungs': mistyped})
    assert 'derivatives lungs' in caplog.text
    assert (
        'expected files like sub-01/ses-10/ct/sub-01_ses-10_label-lung_mask.nii.gz' in caplog.text
    )
    alone = touch(data / 'derivatives/points', ['sub-01/ses-2/ct/sub-01_ses-2_landmarks.tsv'])
    pairs_of(data, derivatives={'points': alone})
    assert 'Landmarks are given of one scan only and not scored: sub-01_ses-2 to' in caplog.text


@pytest.mark.parametrize(
    ('text', 'error', 'words'),
    [
        ('subject\tfixed\tmoving\n01\t1\t2\n', UsageError, 'needs the columns participant_id'),
        ('participant_id\tfixed\tmoving\n01\t1\t\n', UsageError, 'a value in each row'),
        ('participant_id\tfixed\tmoving\n07\t1\t2\n', NothingSelectedError, 'None of the people'),
        ('participant_id\tfixed\tmoving\n01\t1\t3\n', NothingSelectedError, '1 fixed and 0 mov'),
        ('participant_id\tfixed\tmoving\n01\t1\t1\n', UsageError, 'with itself'),
        ('participant_id\tfixed\tmoving\n01\t1\tx-y\n', UsageError, 'names no session'),
    ],
)
def test_tables_that_cannot_be_used(data, tmp_path, text, error, words):
    table = tmp_path / 'sessions.tsv'
    table.write_text(text)
    with pytest.raises(error, match=words):
        pairs_of(data, session_pairs=str(table))


def test_a_policy_that_does_not_exist(data):
    with pytest.raises(NoInputError, match='no file "first"; expected baseline, consecutive, all'):
        pairs_of(data, session_pairs='first')


def test_masks_and_landmarks_of_the_lungs(data):
    manual = touch(
        describe(data / 'derivatives' / 'manual'),
        [
            'sub-01/ses-1/ct/sub-01_ses-1_label-lung_mask.nii.gz',
            'sub-01/ses-1/ct/sub-01_ses-1_label-trachea_mask.nii.gz',
            'sub-01/ses-1/ct/sub-01_ses-1_landmarks.tsv',
            'sub-01/ses-2/ct/sub-01_ses-2_landmarks.tsv',
        ],
    )
    pair = pairs_of(data, derivatives={'manual': manual})[1]
    assert pair.fixed.mask.name == 'sub-01_ses-1_label-lung_mask.nii.gz'
    assert pair.moving.mask is None
    assert pair.has_landmarks
    assert pair.moving.landmarks_uri == 'bids:manual:sub-01/ses-2/ct/sub-01_ses-2_landmarks.tsv'


def test_one_table_for_both_scans_is_no_landmarks_of_a_pair(data):
    manual = touch(describe(data / 'derivatives' / 'manual'), ['sub-01/sub-01_landmarks.tsv'])
    pair = pairs_of(data, derivatives={'manual': manual})[0]
    assert pair.moving.landmarks == pair.fixed.landmarks and not pair.has_landmarks


def test_computed_tomography_among_anatomical_scans(tmp_path):
    names = [f'sub-01/ses-{n}/anat/sub-01_ses-{n}_CT.nii.gz' for n in (1, 2)]
    data = touch(describe(tmp_path / 'ds'), names)
    with pytest.raises(NothingSelectedError, match='No ct matches .* sub-01/ct/sub-01_ct.nii.gz'):
        pairs_of(data)
    filters = tmp_path / 'filters.json'
    filters.write_text(json.dumps({'ct': {'datatype': 'anat', 'suffix': 'CT'}}))
    (pair,) = pairs_of(data, bids_filter_file=filters)
    assert pair.moving.path == data / names[1]
    assert Names(tmp_path, pair).inverse == (
        tmp_path / 'sub-01/ses-2/anat/sub-01_ses-2_from-sub01ses1_to-CT_mode-image_xfm.h5'
    )
