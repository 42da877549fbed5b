"""The group level, built from made-up results with a known truth."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from group_data import good, store
from report_data import HOSTILE, check_page, chromium, rendered

from nephi_pipe.bids_app.group import build_group
from nephi_pipe.bids_app.group_flags import THRESHOLDS, judge, load_thresholds, robust_z
from nephi_pipe.bids_app.group_plots import Strip, strip_chart
from nephi_pipe.bids_app.group_table import COLUMNS, NAMES, read_values
from nephi_pipe.bids_app.stored import read_pair
from nephi_pipe.bids_app.subject_report import write_subject_report
from nephi_pipe.errors import InputDataError, NoInputError, UsageError

BAD = {
    3: 'mean Dice after is 0.550, below 0.6',
    4: 'mean Dice did not improve enough (-0.010)',
    5: '7 folds by one definition, over 0',
    6: 'SDlogJ is 0.710, above 0.6',
    7: 'mean inverse consistency error is 1.40 mm, above 1',
    8: 'Displacement 9.00 is an outlier (median 3.00, robust z',
}


def cohort(folder, count=14):
    """Good pairs, and one of each kind of bad ones; what is wrong with each is in ``BAD``."""
    everyone = {i: good(i) for i in range(1, count + 1)}
    everyone[3]['dice']['after']['mean'] = 0.55
    everyone[3]['dice']['before']['mean'] = 0.40
    everyone[4]['dice']['after']['mean'] = 0.80
    everyone[4]['dice']['before']['mean'] = 0.81
    everyone[5]['folds']['finite_difference']['digital_count'] = 7
    everyone[6]['jacobian']['deformation']['sd_log'] = 0.71
    everyone[7]['inverse_consistency_mm']['mean'] = 1.4
    everyone[8]['displacement_mm']['mean'] = 9.0
    for i, metrics in everyone.items():
        store(folder, f'{i:02d}', metrics)
    return everyone


def read_tsv(path):
    with open(path, newline='') as stream:
        return list(csv.DictReader(stream, delimiter='\t', quoting=csv.QUOTE_NONE))


@pytest.fixture(scope='module')
def group(tmp_path_factory):
    folder = tmp_path_factory.mktemp('group')
    cohort(folder)
    (folder / 'sub-03.html').write_text('a page')
    return folder, build_group(folder)


# flags


def test_each_fault_is_flagged_and_nothing_else(group):
    rows = read_tsv(group[1]['tsv'])
    assert [row['participant_id'] for row in rows] == [f'sub-{i:02d}' for i in range(1, 15)]
    for row in rows:
        i = int(row['participant_id'][4:])
        assert row['flag'] == ('review' if i in BAD else 'pass')
        assert BAD.get(i, 'n/a') in row['reasons']


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({}, None),
        ({'masks': {'dice': {'before': 0.8, 'after': 0.85}}},
         'Dice of the masks after is 0.850, below 0.9'),
        ({'tre_mm': {'before': {'mean': 9.0}, 'after': {'mean': 3.5}}},
         'mean landmark error after is 3.50 mm, above 3'),
        ({'tre_mm': {'before': {'mean': 1.0}, 'after': {'mean': 1.2}}},
         'mean landmark error did not fall enough (+0.20 mm)'),
        ({'volume': {'mismatch': -0.25}},
         'the volume ratio by the Jacobian is -25 % off that by the masks'),
    ],
)  # fmt: skip
def test_lungs_are_judged_by_masks_landmarks_and_volume(tmp_path, change, reason):
    path = store(tmp_path, '01', {**good(1), **change}, 'sub01ses1', '_ses-2')
    values = read_values(read_pair(path))
    assert judge([values], load_thresholds()) == [[reason] if reason else []]
    if not change:
        assert values['volume_ratio'] == 1.23 and values['mask_dice_after'] == 0.97
        assert values['tre_inverse_median_after_mm'] == 1.0


def test_robust_z_needs_enough_pairs():
    values = [read_values_of(good(i)) for i in range(1, 8)]
    values[6]['displacement_mean_mm'] = 9.0
    assert judge(values, load_thresholds()) == [[]] * 7
    assert judge(values, load_thresholds({'robust_z_min_pairs': 7}))[6] != []


def test_robust_z_looks_at_the_bad_side_only():
    values = [read_values_of(good(i)) for i in range(1, 11)]
    values[9]['dice_after'] = 0.99
    values[9]['displacement_mean_mm'] = 0.1
    assert judge(values, load_thresholds()) == [[]] * 10


def test_robust_z_is_the_z_of_a_normal_sample():
    sample = np.random.default_rng(0).normal(5, 2, 20_001)
    assert np.abs(robust_z(sample) - (sample - 5) / 2).max() < 0.15
    assert robust_z(np.array([1.0, 1, 1, 1, 5]))[-1] > 3.5
    assert (robust_z(np.ones(5)) == 0).all()


def read_values_of(metrics):
    class Pair:
        pass

    pair = Pair()
    pair.metrics = metrics
    return read_values(pair)


def test_a_pair_without_any_figure_is_not_passed(tmp_path):
    store(tmp_path, '01', {'provenance': {}})
    (row,) = read_tsv(build_group(tmp_path)['tsv'])
    assert row['flag'] == 'review' and row['reasons'] == 'its metrics hold no figure'


def test_a_pair_without_labels_is_judged_by_the_rest(tmp_path):
    metrics = good(1)
    for key in ('dice', 'hd95_mm', 'tre_mm', 'masks'):
        del metrics[key]
    store(tmp_path, '01', metrics)
    paths = build_group(tmp_path)
    (row,) = read_tsv(paths['tsv'])
    assert row['flag'] == 'pass' and row['dice_after'] == row['hd95_after_mm'] == 'n/a'
    assert 'Dice' not in check_page(paths['html']).text.split('Thresholds')[0]


def test_thresholds_are_changed_by_a_mapping_or_a_file(tmp_path):
    cohort(tmp_path)
    strict = {'dice_after_min': 0.9}
    file = tmp_path / 'limits.json'
    file.write_text(json.dumps(strict))
    for given in (strict, file, str(file)):
        paths = build_group(tmp_path, given)
        assert {row['flag'] for row in read_tsv(paths['tsv'])} == {'review'}
        dictionary = json.loads(paths['json'].read_text())
        assert dictionary['flag']['Thresholds']['dice_after_min'] == 0.9
    off = dict.fromkeys(THRESHOLDS)
    paths = build_group(tmp_path, off)
    assert {row['flag'] for row in read_tsv(paths['tsv'])} == {'pass'}
    assert 'No pair is flagged.' in check_page(paths['html']).text


@pytest.mark.parametrize(
    ('given', 'error', 'message'),
    [
        ({'dice': 1}, UsageError, 'no threshold "dice".*dice_after_min'),
        ({'folds_max': '3'}, UsageError, "is '3'.*expected a number"),
        ({'folds_max': True}, UsageError, 'expected a number'),
        ({'folds_max': float('nan')}, UsageError, 'expected a number'),
        ('missing.json', NoInputError, 'no file "missing.json"'),
        ('[]', InputDataError, 'holds a JSON list'),
        ('{', InputDataError, 'cannot be read as JSON'),
    ],
)
def test_thresholds_that_cannot_be_used(tmp_path, given, error, message):
    if isinstance(given, str) and given != 'missing.json':
        (tmp_path / 'limits.json').write_text(given)
        given = tmp_path / 'limits.json'
    with pytest.raises(error, match=message):
        load_thresholds(given)


# table


def test_table_and_dictionary_agree(group):
    _, paths = group
    lines = paths['tsv'].read_text().splitlines()
    dictionary = json.loads(paths['json'].read_text())
    assert lines[0].split('\t') == list(dictionary) == list(NAMES)
    assert all(len(line.split('\t')) == len(NAMES) for line in lines)
    assert all(entry['Description'].endswith('.') for entry in dictionary.values())
    assert set(dictionary['flag']['Levels']) == {'pass', 'review'}
    assert dictionary['hd95_after_mm']['Units'] == 'mm' and 'Units' not in dictionary['dice_after']
    for name in NAMES:
        if name.endswith('_mm'):
            assert dictionary[name]['Units'] == 'mm'


def test_table_holds_the_numbers_of_the_metrics(group):
    row = read_tsv(group[1]['tsv'])[0]
    metrics = good(1)
    assert float(row['dice_after']) == pytest.approx(metrics['dice']['after']['mean'])
    assert float(row['dice_gain']) == pytest.approx(0.103)
    assert float(row['tre_after_mm']) == 1.25 and float(row['similarity_before']) == 0.7
    assert float(row['folds_max']) == float(row['folds_digital_percent']) == 0
    assert float(row['jacobian_total_p99']) == 2.1
    assert float(row['jacobian_deformation_sd_log']) == pytest.approx(0.36)
    assert float(row['displacement_max_mm']) == 12 and float(row['seconds']) == 56
    assert row['moving'] == 'sub-01' and row['fixed'] == 'sub45' and row['session_id'] == 'n/a'
    assert row['metrics_file'] == 'sub-01/anat/sub-01_space-sub45_desc-nephi_metrics.json'
    measured = [column.name for column in COLUMNS if row[column.name] == 'n/a']
    assert measured == []


def test_sessions_runs_and_several_references_are_kept_apart(tmp_path):
    store(tmp_path, '01', good(1), entities='_ses-2_run-1')
    store(tmp_path, '01', good(1), fixed='MNI152NLin2009aSym', entities='_ses-2_run-1')
    nested = tmp_path / 'sub-02' / 'ses-1' / 'anat'
    nested.mkdir(parents=True)
    (nested / 'sub-02_ses-1_space-sub45_desc-nephi_metrics.json').write_text(json.dumps(good(2)))
    (nested / '.12345678.partial.sub-02_metrics.json').write_text('{')
    rows = read_tsv(build_group(tmp_path)['tsv'])
    assert [(r['participant_id'], r['session_id'], r['moving'], r['fixed']) for r in rows] == [
        ('sub-01', 'ses-2', 'sub-01_ses-2_run-1', 'MNI152NLin2009aSym'),
        ('sub-01', 'ses-2', 'sub-01_ses-2_run-1', 'sub45'),
        ('sub-02', 'ses-1', 'sub-02_ses-1', 'sub45'),
    ]


# what cannot be read


def test_a_broken_file_is_named_and_the_others_go_on(tmp_path, caplog):
    cohort(tmp_path, 10)
    broken = [store(tmp_path, '20', '{"dice": '), store(tmp_path, '21', '[1, 2]')]
    binary = store(tmp_path, '22', '{}')
    binary.write_bytes(b'\xff\xfe\x00')
    paths = build_group(tmp_path)
    assert len(read_tsv(paths['tsv'])) == 10
    page = check_page(paths['html'])
    assert len(page.with_class('warn')) == 3
    for path in (*broken, binary):
        assert str(path) in page.text and str(path) in caplog.text


def test_nothing_to_summarise(tmp_path):
    with pytest.raises(NoInputError, match='no folder'):
        build_group(tmp_path / 'nowhere')
    with pytest.raises(NoInputError, match='no metrics of any pair'):
        build_group(tmp_path)
    path = store(tmp_path, '01', '{')
    with pytest.raises(InputDataError, match=f'None of the 1 .*{path.name}'):
        build_group(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ['sub-01']


def test_nonsense_values_do_not_stop_the_group(tmp_path):
    store(tmp_path, '01', {'dice': 'high', 'folds': {'exact': 3}, 'seconds': [1], 'moving': 5})
    metrics = good(2)
    metrics['similarity']['after'] = float('nan')
    metrics['dice']['after']['mean'] = 10**400
    store(tmp_path, '02', json.dumps(metrics))
    rows = read_tsv(build_group(tmp_path)['tsv'])
    assert rows[0]['reasons'] == 'its metrics hold no figure'
    assert rows[1]['reasons'] == (
        'dice_after is not a finite number; similarity_after is not a finite number'
    )
    assert rows[1]['similarity_after'] == rows[1]['dice_after'] == 'n/a'


def test_hostile_names_stay_names(tmp_path):
    evil = '_acq-<img src=x onerror=alert(1)>"\'&\t\n\udcff'
    store(tmp_path, '01', good(1), entities=evil)
    metrics = good(2) | {'moving': HOSTILE, 'provenance': {HOSTILE: HOSTILE}}
    store(tmp_path, '02', metrics, fixed='<b>')
    paths = build_group(tmp_path)
    page = check_page(paths['html'])
    assert page.all('b') == [] and page.all('img') == [] and '<b>' in page.text
    rows = read_tsv(paths['tsv'])
    assert len(rows) == 2 and rows[1]['fixed'] == '<b>'
    check_page(write_subject_report(tmp_path, '01'))
    page = check_page(write_subject_report(tmp_path, '02'))
    assert '<script>alert(1)</script>' in page.text


# page


def test_page_shows_counts_reasons_links_and_every_dot(group):
    folder, paths = group
    page = check_page(paths['html'])
    assert re.search(r'Pairs14of 14 people\s*Pass8.*Review6', page.text)
    for reason in BAD.values():
        assert reason in page.text
    links = {a['href'] for a in page.all('a')}
    assert links == {'./sub-03.html#sub-03-to-sub45'}
    dots = page.with_class('dot')
    strips = [column for column in COLUMNS if column.label]
    assert len(dots) == 14 * len(strips)
    assert len([a for a in dots if 'review' in a['class'].split()]) == 6 * len(strips)
    titles = [a for a in page.all('svg') if a['aria-label'].startswith('Dice before: median')]
    assert len(titles) == 1 and 'Dice after: median' in titles[0]['aria-label']
    assert len(page.all('tr')) == 1 + 14 + 1 + len(THRESHOLDS)
    assert 'sub-09 → sub45: Displacement 3.00 mm' in page.text


def test_dots_lie_where_their_value_is():
    column = next(column for column in COLUMNS if column.name == 'inverse_consistency_mean_mm')
    values = [0.1, 0.5, None, 0.9, 0.3, 0.30001]
    names = [f'pair {i}' for i in range(6)]
    chart = strip_chart([Strip(column, values)], names, [False] * 6, (1.0, 'above'))
    x = {int(i): float(cx) for i, cx in re.findall(r'data-pair="(\d)" cx="([\d.]+)"', chart)}
    scale = (x[3] - x[0]) / 0.8
    assert sorted(x) == [0, 1, 3, 4, 5]
    assert x[1] - x[0] == pytest.approx(0.4 * scale, abs=0.11)
    limit = float(re.search(r'class="limit" d="M([\d.]+)', chart)[1])
    assert limit - x[0] == pytest.approx(0.9 * scale, abs=0.11)
    y = dict(re.findall(r'data-pair="(\d)" cx="[\d.]+" cy="([\d.]+)"', chart))
    assert abs(float(y['4']) - float(y['5'])) >= 8  # the same value: side by side
    assert 'median 0.30 mm, 0.10 mm to 0.90 mm, 5 pairs' in chart


def test_one_pair_is_enough(tmp_path):
    store(tmp_path, '01', good(1))
    page = check_page(build_group(tmp_path)['html'])
    assert 'Pairs1of 1 person' in page.text


def test_group_again_gives_the_same_bytes(group, tmp_path):
    shutil.copytree(group[0], tmp_path / 'again')
    again = build_group(tmp_path / 'again')
    assert all(again[key].read_bytes() == path.read_bytes() for key, path in group[1].items())


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason='no Chromium')
def test_sorting_and_hover_work_in_a_browser(group, tmp_path):
    _, paths = group
    press = """
    const heads = [...document.querySelectorAll('.sortable thead button')];
    const first = () => document.querySelector('.sortable tbody th').textContent;
    const dice = heads.find(h => h.textContent === 'Dice after');
    const seen = [first()];
    dice.click(); seen.push(first());
    heads[0].click(); heads[0].click(); seen.push(first());
    const dot = document.querySelector('.dot[data-pair="2"]');
    dot.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
    seen.push(document.querySelector('.tip').textContent);
    seen.push(document.querySelectorAll('.hot').length);
    seen.push(heads[0].parentElement.getAttribute('aria-sort'));
    document.body.dataset.seen = seen.join('|');
    """
    assert 'class="tip"' in rendered(paths['html'], tmp_path)
    seen = re.search('data-seen="(.*?)"', rendered(paths['html'], tmp_path, press))[1].split('|')
    strips = sum(bool(column.label) for column in COLUMNS)
    assert seen == [
        'sub-01 → sub45', 'sub-03 → sub45', 'sub-14 → sub45',
        'sub-03 → sub45: Dice before 0.400', str(strips + 1), 'descending',
    ]  # fmt: skip
