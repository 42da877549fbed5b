"""Errors of landmarks, one by one, in both directions."""

from __future__ import annotations

import csv
import logging

import numpy as np
import pytest
from lung_data import table

from nephi_pipe.errors import InputDataError
from nephi_pipe.geometry import apply_affine
from nephi_pipe.landmark_errors import (
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


def test_rows_are_matched_by_their_names(tmp_path, caplog):
    logging.getLogger('nephi_pipe').propagate = True
    fixed = write(tmp_path, 'f', FIXED, [4, 5, 6])
    moving = write(tmp_path, 'm', FIXED[[2, 0]] + SHIFT, [6, 4])  # a row is missing
    pairs = read_landmark_pairs(fixed, moving)
    assert pairs.names == ['4', '6']
    assert np.array_equal(pairs.moving, pairs.fixed + SHIFT)
    assert '1 landmarks are in only one of' in caplog.text


@pytest.mark.parametrize(
    ('names', 'header', 'words'),
    [
        ([7, 8], None, r'No landmark of .*f.tsv" \(such as 0\) is in .*m.tsv" \(such as 7\)'),
        ([1, 1], None, 'names the landmark 1 more than once in the column index'),
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
