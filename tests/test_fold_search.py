"""Where a map is nearest to folding is found without a dense map."""

import numpy as np
import pytest

from nephi_pipe.fold_search import lowest_determinants
from nephi_pipe.geometry import Grid


def dented(centre, width_mm):
    """A determinant of 1 that falls to -0.5 at one place."""

    def determinant(points):
        squared = ((points - centre) ** 2).sum(axis=-1)
        return 1 - 1.5 * np.exp(-squared / (2 * width_mm**2))

    return determinant


@pytest.mark.parametrize('spacing', [(0.7, 0.7, 0.7), (1.37, 1.37, 2.5), (3.0, 3.0, 5.0)])
def test_a_fold_of_two_millimetres_is_found_on_any_grid(spacing):
    grid = Grid((40, 40, 20), np.diag([*spacing, 1.0]))
    mask = np.zeros(grid.shape, dtype=bool)
    mask[4:36, 4:36, 3:17] = True
    centre = grid.to_world(np.array([17.3, 20.6, 9.4]))
    points, determinants = lowest_determinants(dented(centre, 2.0), grid, mask)
    assert determinants.min() < -0.2
    assert np.linalg.norm(points[determinants.argmin()] - centre) < 2.0
    outside = ~mask[tuple(np.rint(grid.to_index(points)).astype(int).T)]
    assert outside.mean() < 0.05


def test_a_mask_thinner_than_the_search_is_looked_at_whole():
    grid = Grid((30, 30, 30), np.diag([0.5, 0.5, 0.5, 1.0]))
    mask = np.zeros(grid.shape, dtype=bool)
    mask[3, 3, 5:25] = True
    points, determinants = lowest_determinants(dented([1.5, 1.5, 7.5], 0.5), grid, mask)
    assert len(points) == len(determinants) >= 20
    assert determinants.min() < 0


def test_the_same_seed_looks_at_the_same_points():
    grid = Grid((20, 20, 20), np.eye(4))
    mask = np.ones(grid.shape, dtype=bool)
    found = [lowest_determinants(dented([9, 9, 9], 2.0), grid, mask, seed) for seed in (1, 1, 2)]
    one, two, other = (points for points, _ in found)
    assert np.array_equal(one, two) and not np.array_equal(one, other)
