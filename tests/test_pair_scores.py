"""Landmarks and volume of a pair of lungs, scored by a breath that is known."""

from __future__ import annotations

import numpy as np
import pytest
from lung_data import SHAPE, affine, breathe, chest, landmarks

from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image
from nephi_pipe.landmark_errors import LandmarkPairs
from nephi_pipe.pair_scores import PairMaps, maps_of_transform

STRETCH = 1.25


def breathing(points):
    return breathe(points, STRETCH)


def back(points):
    return breathe(points, 1 / STRETCH)


@pytest.fixture(scope='module')
def masks():
    grid = Grid(SHAPE, affine())
    return [Image(chest(stretch)[1], grid) for stretch in (1.0, STRETCH)]


def test_the_breath_lays_both_lungs_on_each_other_and_gives_their_volume(masks):
    scores = maps_of_transform(breathing, np.eye(4)).organ_scores(*masks)
    assert list(scores) == ['masks', 'volume']
    assert scores['masks']['dice']['after'] > 0.97 > 0.93 > scores['masks']['dice']['before']
    assert scores['volume']['ratio_by_jacobian'] == pytest.approx(STRETCH, abs=1e-4)
    assert abs(scores['volume']['mismatch']) < 0.02


def test_dense_maps_and_determinants_are_those_that_are_given(masks):
    """Of a registration both come from elsewhere than from the map of points."""
    inside = np.count_nonzero(masks[0].data)
    maps = PairMaps(np.eye(4), back, None, breathing, lambda mask: np.full(inside, 1.5))
    scores = maps.organ_scores(*masks)
    assert scores['masks']['dice']['after'] > 0.97
    assert scores['volume']['ratio_by_jacobian'] == 1.5


def test_landmarks_are_scored_there_and_back():
    points = landmarks()
    pairs = LandmarkPairs([str(i) for i in range(len(points))], points, breathing(points))
    shift = np.eye(4)
    shift[2, 3] = -10.0
    errors = maps_of_transform(breathing, shift, back).landmark_errors_mm(pairs)
    moved = np.linalg.norm(breathing(points) - points, axis=1)
    assert errors['raw_mm'] == pytest.approx(moved)
    assert errors['affine_mm'] == pytest.approx(np.abs(moved - 10))
    assert errors['nephi_mm'] == pytest.approx(0, abs=1e-9)
    assert errors['inverse_nephi_mm'] == pytest.approx(0, abs=1e-9)
    assert 'inverse_nephi_mm' not in maps_of_transform(breathing, shift).landmark_errors_mm(pairs)
