"""Errors of landmarks, one by one, in both directions."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from lung_data import table

from nephi_pipe.errors import InputDataError
from nephi_pipe.geometry import apply_affine
from nephi_pipe.landmark_errors import (
    IDENTIFIERS,
    landmark_errors_mm,
    read_landmark_pairs,
    summarise_landmarks,
    write_landmark_errors,
)

FIXED = np.array([[1.0, 2.0, 3.0], [10.0, 0.0, -5.0], [-7.0, 4.0, 20.0]])
SHIFT = np.array([30.0, 0.0, 0.0])
DOUBLE = np.diag([2.0, 2.0, 2.0, 1.0])


def write(folder, name, points, names=None, header=None):
    path = folder / f'{name}.tsv'
    text = table(points, names)
    path.write_text(text if header is None else text.replace('index\tx', f'{header}\tx'))
    return path


def test_distances_are_those_of_the_maps_in_both_directions(tmp_path):
    """Moving landmarks lie 1, 2 and 3 mm beyond twice the fixed ones."""
    moving = 2 * FIXED + np.array([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]])
    pairs = read_landmark_pairs(write(tmp_path, 'f', FIXED), write(tmp_path, 'm', moving))

    def forward(points):
        return 2 * points + [0.5, 0.0, 0.0]

    def inverse(points):
        return (points - [0.5, 0.0, 0.0]) / 2

    errors = landmark_errors_mm(pairs, DOUBLE, forward, inverse)
    assert errors['raw_mm'] == pytest.approx(np.linalg.norm(moving - FIXED, axis=1))
    assert errors['affine_mm'] == pytest.approx([1, 2, 3])
    assert errors['nephi_mm'] == pytest.approx([0.5, np.hypot(2, 0.5), np.hypot(3, 0.5)])
    assert errors['inverse_affine_mm'] == pytest.approx([0.5, 1, 1.5])
    assert errors['inverse_nephi_mm'] == pytest.approx(errors['nephi_mm'] / 2)
    scores = summarise_landmarks(errors)
    assert scores['tre_mm']['before'] == pytest.approx(
        {'mean': 2.0, 'median': 2.0, 'p90': 2.8, 'max': 3.0, 'n': 3}
    )
    assert scores['tre_inverse_mm']['before']['max'] == pytest.approx(1.5)
    assert set(scores['tre_mm']) == {'raw', 'before', 'after'}


def test_the_table_has_a_row_for_each_landmark(tmp_path):
    moving = apply_affine(DOUBLE, FIXED) + SHIFT
    pairs = read_landmark_pairs(
        write(tmp_path, 'f', FIXED, 'abc'), write(tmp_path, 'm', moving, 'abc')
    )
    errors = landmark_errors_mm(pairs, DOUBLE, lambda points: 2 * points + SHIFT)
    path = write_landmark_errors(tmp_path / 'e.tsv', pairs, errors)
    with open(path) as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert [row['index'] for row in rows] == ['a', 'b', 'c']
    assert [float(row['z']) for row in rows] == [3.0, -5.0, 20.0]
    assert {row['affine_mm'] for row in rows} == {'30.000'}
    assert {row['nephi_mm'] for row in rows} == {'0.000'}
    assert {row['inverse_nephi_mm'] for row in rows} == {'n/a'}
    assert set(summarise_landmarks(errors)['tre_inverse_mm']) == {'before'}


@pytest.mark.parametrize('header', IDENTIFIERS)
def test_rows_are_matched_by_their_names(tmp_path, caplog, header):
    fixed = write(tmp_path, 'f', FIXED, [4, 5, 6], header)
    moving = write(tmp_path, 'm', FIXED[[2, 0]] + SHIFT, [6, 4], header)  # a row is missing
    pairs = read_landmark_pairs(fixed, moving)
    assert pairs.names == ['4', '6']
    assert np.array_equal(pairs.moving, pairs.fixed + SHIFT)
    assert (
        f'only one of "{fixed}" and "{moving}" has are left out: 1 of 3, such as 5' in caplog.text
    )


def test_rows_that_both_tables_lack_are_counted_on_both_sides(tmp_path, caplog):
    """As many rows in both, and other ones: row by row two of three would be wrong."""
    fixed = write(tmp_path, 'f', FIXED[:2], [4, 5])
    moving = write(tmp_path, 'm', FIXED[1:] + SHIFT, [5, 6])
    pairs = read_landmark_pairs(fixed, moving)
    assert pairs.names == ['5']
    assert np.array_equal(pairs.moving, pairs.fixed + SHIFT)
    assert 'left out: 2 of 3, such as 4' in caplog.text


def test_a_number_that_was_written_anew_after_a_row_had_gone_is_refused(tmp_path):
    """By the numbers all three rows of one find a partner, two of them the wrong one."""
    rows = ['index\tname\tx\ty\tz', '0\tcarina\t1\t2\t3', '1\tapex\t4\t5\t6']
    fixed, moving = tmp_path / 'f.tsv', tmp_path / 'm.tsv'
    fixed.write_text('\n'.join([*rows, '2\tbase\t7\t8\t9']) + '\n')
    moving.write_text('\n'.join([*rows[:2], '1\tbase\t7\t8\t9']) + '\n')
    with pytest.raises(InputDataError) as error:
        read_landmark_pairs(fixed, moving)
    said = str(error.value)
    assert f'The landmark with the index 1 has the name apex in "{fixed}" and base in' in said
    moving.write_text(moving.read_text().replace('1\tbase', '2\tbase'))
    assert read_landmark_pairs(fixed, moving).names == ['0', '2']


@pytest.mark.parametrize(
    ('names', 'header', 'words'),
    [
        ([7, 8], None, r'No landmark of .*f.tsv" \(such as 0\) is in .*m.tsv" \(such as 7\)'),
        ([1, 1], None, 'names the landmark 1 more than once in the column index'),
        ([0, ''], None, r'Row 3 of .*m.tsv" has no name in the column index'),
        ([0, 1], 'number', 'has 3 landmarks and .* has 2; expected as many in both'),
    ],
)
def test_tables_that_do_not_match(tmp_path, names, header, words):
    fixed = write(tmp_path, 'f', FIXED)
    moving = write(tmp_path, 'm', FIXED[:2], names, header)
    with pytest.raises(InputDataError, match=words):
        read_landmark_pairs(fixed, moving)


def test_rows_without_names_belong_together_in_their_order(tmp_path):
    fixed = write(tmp_path, 'f', FIXED, header='number')
    moving = write(tmp_path, 'm', FIXED + SHIFT, [9, 8, 7])
    pairs = read_landmark_pairs(fixed, moving)
    assert pairs.names == ['0', '1', '2']
    assert np.array_equal(pairs.moving, FIXED + SHIFT)


def test_a_label_that_says_the_kind_of_a_landmark_names_none(tmp_path):
    kinds = ['vessel', 'airway', 'vessel']
    fixed = write(tmp_path, 'f', FIXED, kinds, 'label')
    moving = write(tmp_path, 'm', FIXED + SHIFT, kinds, 'label')
    assert read_landmark_pairs(fixed, moving).names == ['0', '1', '2']
    with pytest.raises(InputDataError, match='has 3 landmarks and .* has 2'):
        read_landmark_pairs(fixed, write(tmp_path, 's', FIXED[:2], kinds[:2], 'label'))
