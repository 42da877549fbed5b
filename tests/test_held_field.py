"""Displacement fields as maps of all of space: their derivative, their inverse."""

import numpy as np
import pytest
from data import GRIDS, SmoothWarp, make_grid, random_points
from hypothesis import given, settings
from hypothesis import strategies as st

from nephi_pipe.displacement import DisplacementField
from nephi_pipe.held_field import SOLVED_MM, HeldField
from nephi_pipe.simulate import random_diffeomorphism

WARP = SmoothWarp()


def held(grid, warp=WARP) -> HeldField:
    return HeldField(DisplacementField(warp.map_points(grid.points()) - grid.points(), grid))


@pytest.fixture(params=GRIDS)
def grid(request):
    """A grid of every kind."""
    return GRIDS[request.param]


def test_within_the_lattice_it_reads_like_the_field(grid):
    one, points = held(grid), random_points(grid)
    np.testing.assert_allclose(one.map_points(points), one.field.map_points(points), atol=1e-5)
    mapped, _ = one._with_derivative(points)
    np.testing.assert_allclose(mapped, one.map_points(points), atol=1e-4)


def test_beyond_the_lattice_the_border_is_held(grid):
    one = held(grid)
    beyond = grid.to_world(np.array([[-20.0, 3, 4], [7, 400, 5], [2, 3, -9]]))
    border = grid.to_world(np.array([[0.0, 3, 4], [7, grid.shape[1] - 1, 5], [2, 3, 0]]))
    moved = one.map_points(beyond) - beyond
    np.testing.assert_allclose(moved, one.map_points(border) - border, atol=1e-5)
    assert np.abs(moved).min() > 0


def test_the_derivative_is_that_of_small_differences(grid):
    one, step = held(grid), 1e-3
    index = np.random.default_rng(0).integers(0, np.array(grid.shape) - 1, (200, 3))
    points = grid.to_world(index + 0.4)
    columns = [
        (one._with_derivative(points + shift)[0] - one._with_derivative(points - shift)[0])
        / (2 * step)
        for shift in step * np.eye(3)
    ]
    np.testing.assert_allclose(one.jacobian(points), np.stack(columns, axis=-1), atol=1e-8)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), magnitude=st.floats(2.0, 25.0))
def test_the_inverse_undoes_any_diffeomorphism(seed, magnitude):
    grid = make_grid('oblique', (30, 30, 30), 3.0)
    truth = random_diffeomorphism(grid, magnitude_mm=magnitude, smoothness_mm=40.0, seed=seed)
    one = held(grid, truth)
    points = random_points(grid, 400, margin=-3)
    found = one.inverse_points(one.map_points(points))
    errors = np.linalg.norm(one.map_points(found) - one.map_points(points), axis=1)
    assert errors.max() < 2 * SOLVED_MM
    if np.linalg.det(one.jacobian(grid.points().reshape(-1, 3))).min() > 0.05:
        assert np.linalg.norm(found - points, axis=1).max() < 0.01


def test_nothing_is_inverted_to_nothing():
    one = held(make_grid())
    assert one.inverse_points(np.zeros((0, 3))).shape == (0, 3)
    assert one.jacobian(np.zeros((0, 3))).shape == (0, 3, 3)
