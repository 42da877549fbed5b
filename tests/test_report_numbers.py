"""Charts and numbers of a report."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
from report_data import HISTORY, HOSTILE, made_up_metrics

from nephi_pipe.report import pair_section
from nephi_pipe.report_charts import curve_chart, dice_chart
from nephi_pipe.report_html import Row, escape, table
from nephi_pipe.report_numbers import headline, key_figures, per_structure, provenance_rows


def svg(text: str) -> tuple[ElementTree.Element, str]:
    return ElementTree.fromstring(text), '{http://www.w3.org/2000/svg}'


def test_dice_bars_are_as_long_as_dice():
    root, ns = svg(dice_chart(made_up_metrics(0.8, 0.1), {1: 'Caudate', 2: HOSTILE}))
    rows = root.findall(f'{ns}g')
    assert [row.findtext(f'{ns}title') for row in rows][::2] == ['Mean', 'Caudate']
    widths = {
        row.findtext(f'{ns}title'): [float(bar.get('width')) for bar in row.iter(f'{ns}rect')]
        for row in rows
    }
    scale = widths['Mean'][1] / 0.8
    assert np.allclose(widths['Caudate'], [0.6 * scale, 0.75 * scale], atol=0.1)
    assert rows[1].findtext(f'{ns}title').startswith('<script>')  # as text, best first


def test_curve_rises_with_similarity_and_marks_levels():
    root, ns = svg(curve_chart(HISTORY))
    rising, falling = (
        np.array([pair.split(',') for pair in line.get('points').split()], dtype=float)
        for line in root.iter(f'{ns}polyline')
    )
    assert len(rising) == 60
    assert (np.diff(rising[:, 1]) < 0).all() and (np.diff(falling[:, 1]) > 0).all()
    assert np.allclose(np.diff(falling[:, 1]), np.diff(falling[:, 1])[0], atol=0.11)  # log axis
    texts = [text.text for text in root.iter(f'{ns}text')]
    assert {'level 0', 'level 1', 'level 2', 'Regularity (logarithmic)'} <= set(texts)


def test_curve_of_a_long_history_with_gaps_stays_small():
    history = [{'similarity': float(i), 'regularity': None, 'level': HOSTILE} for i in range(9000)]
    history[4]['similarity'] = float('nan')
    text = curve_chart(history)
    root, ns = svg(text)
    assert len(text) < 20_000 and len(list(root.iter(f'{ns}polyline'))) == 1
    assert curve_chart(history[:1]) == curve_chart([]) == dice_chart({}) == ''


# numbers


def test_key_figures_are_all_there_under_their_names():
    metrics = made_up_metrics()
    metrics['folds']['finite_difference'] |= {'digital_count': 12, 'digital_percent': 0.015}
    rows = {row.name: row.values for row in key_figures(metrics, {'affine': 6, 'total': 75.0})}
    assert rows['Mean Dice'] == ('0.700', '0.800')
    assert rows['Mean HD95, mm'] == ('6.00', '2.50')
    assert rows['Landmark error (TRE), mean, mm'] == ('5.00', '1.25')
    assert rows['Exact'] == ('0 of 50,000 points',)
    assert rows['Digital diffeomorphism'] == ('12 of 80,000 voxels (0.015 %)',)
    assert rows['Deformation alone: range'] == ('0.22 to 3.1',)
    assert rows['Total map: SDlogJ'] == ('0.350',)
    assert rows['Inverse consistency error, mm'][0].startswith('mean 0.20')
    assert rows['Total'] == ('1 min 15 s',)


def test_headline_names_the_worst_definition_of_folds():
    metrics = made_up_metrics()
    assert ('Folds', '0', 'by every definition below') in headline(metrics)
    metrics['folds']['finite_difference']['digital_count'] = 12
    assert ('Folds', '12', 'digital diffeomorphism') in headline(metrics)
    assert headline(metrics, 75.0)[-1] == ('Time', '1 min 15 s', 'in total')


def test_numbers_without_metrics_and_with_nonsense():
    assert key_figures({}) == [] and headline({}) == [] and per_structure({}).rows == []
    odd = {'dice': {'after': {'mean': float('nan'), 'labels': [1]}}, 'folds': 'none', 'hd95_mm': 3}
    assert key_figures(odd) == [] and headline(odd) == []
    assert headline({'dice': {'after': {'mean': 0.5}}})[0][1] == '0.500'


def test_structures_in_order_with_names():
    columns, rows = per_structure(made_up_metrics(), {1: 'Caudate'})
    assert columns == ('Dice before', 'Dice after', 'HD95 (mm) before', 'HD95 (mm) after')
    assert rows[0].name == 'Caudate' and rows[0].values == ('0.600', '0.750', '5.00', '2.00')
    assert rows[1].name == 'label 2'


def test_provenance_is_flat():
    rows = provenance_rows(
        {'seed': 0, 'weights': {'name': 'none', 'sha': None}, 'command': ['a', 1]}
    )
    assert rows == [
        Row('seed', ('0',)), Row('weights / name', ('none',)), Row('command', ('a 1',))
    ]  # fmt: skip


def test_structures_of_equal_dice_stay_in_order() -> None:
    """Or a report would differ from process to process: sets of text have no order."""
    scores = {'labels': {str(label): 0.5 for label in range(1, 40)}, 'mean': 0.5}
    drawn = dice_chart({'dice': {'before': scores, 'after': scores}})
    places = [drawn.index(f'>label {label}<') for label in range(1, 40)]
    assert places == sorted(places)


def test_section_without_anything():
    html = pair_section([], title='sub-41 → sub45')
    assert 'sub-41 → sub45' in html and '<img' not in html and '<table' not in html


def test_escape_and_table():
    assert escape(HOSTILE).count('<') == 0 and '"' not in escape(HOSTILE)
    html = table('T', ('', 'a', 'b'), [Row('h'), Row('x', ('1', '2')), Row('y', ('3',), 'why')])
    assert '<th colspan="3" scope="colgroup">h</th>' in html
    assert '<td colspan="2">3</td>' in html and 'why' in html
    assert table('T', ('', ''), []) == ''
