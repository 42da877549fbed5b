"""Total and local change of volume of a lung whose breathing is known."""

from __future__ import annotations

import numpy as np
import pytest
from lung_data import SHAPE, affine, breathe, chest

from nephi_pipe.folds import finite_differences
from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image
from nephi_pipe.metrics import displacement_on
from nephi_pipe.volume_change import mask_overlap, volume_change

STRETCH = 1.25


@pytest.fixture(scope='module')
def masks():
    grid = Grid(SHAPE, affine())
    return [Image(chest(stretch)[1], grid) for stretch in (1.0, STRETCH)]


def breathing(points):
    return breathe(points, STRETCH)


def test_the_jacobian_integral_is_the_change_of_the_masks(masks):
    fixed, moving = masks
    displacement = displacement_on(breathing, fixed.grid)
    determinant = finite_differences(displacement, fixed.grid, fixed.data)[1]
    change = volume_change(determinant, fixed, moving)
    assert change['ratio_by_jacobian'] == pytest.approx(STRETCH, abs=1e-4)
    assert change['ratio_by_masks'] == pytest.approx(STRETCH, rel=0.02)
    assert abs(change['mismatch']) < 0.02
    litres = 2 * 4 / 3 * np.pi * 45 * 65 * 85 / 1000
    assert change['fixed_ml'] == pytest.approx(litres, rel=0.02)
    assert change['local']['p05'] == pytest.approx(STRETCH, abs=1e-4)
    assert change['folds'] == {'voxels': determinant.size, 'count': 0, 'percent': 0.0}


def test_folds_are_counted_and_a_wrong_map_does_not_fit_the_masks(masks):
    fixed, moving = masks
    determinant = np.ones(np.count_nonzero(fixed.data))
    determinant[:10] = -0.5
    change = volume_change(determinant, fixed, moving)
    assert change['folds']['count'] == 10
    assert change['local']['min'] == -0.5
    assert change['mismatch'] == pytest.approx(1 / STRETCH - 1, abs=0.03)


def test_the_right_map_lays_the_moving_mask_on_the_fixed_one(masks):
    overlap = mask_overlap(*masks, {'before': lambda points: points, 'after': breathing})
    assert overlap['after'] > 0.97 > 0.93 > overlap['before']
