"""Between two registrations of one fixed image there is a smooth path."""

from copy import copy

import numpy as np
import pytest
from small_pair import small_brain

from nephi_pipe import register
from nephi_pipe.errors import UsageError
from nephi_pipe.latent_path import interpolate
from nephi_pipe.metrics import random_points
from nephi_pipe.simulate import simulated_pair

TURN = np.array([[0.98, -0.2, 0, 3], [0.2, 0.98, 0, -2], [0, 0, 1.1, 1], [0, 0, 0, 1.0]])


def found(person, affine, **options):
    image, labels = small_brain()
    pair = simulated_pair(image, labels, magnitude_mm=5.0, smoothness_mm=24.0, seed=person)
    return register(
        pair.fixed, pair.moving, sloppy=True, threads=1, initial_transform=affine, **options
    )


@pytest.fixture(scope='module')
def ends():
    """Two people to the same fixed image, from networks that begin alike."""
    return found(1, np.eye(4)), found(2, TURN)


@pytest.fixture(scope='module')
def points(ends):
    return random_points(ends[0].fixed_grid, ends[0].fixed_mask.data, 500)


def test_both_ends_are_met(ends, points):
    for share, end in zip((0, 1), ends, strict=True):
        path = interpolate(*ends, share)
        assert np.abs(path.warp_points(points) - end.warp_points(points)).max() < 1e-3
        there = end.warp_points(points)
        gap = path.inverse.warp_points(there) - end.inverse.warp_points(there)
        assert np.abs(gap).max() < 1e-3
        assert path.moving_grid.same_as(end.moving_grid)


def test_the_path_is_smooth_and_does_not_fold(ends, points):
    shares = np.linspace(0, 1, 21)
    maps = [interpolate(*ends, share) for share in shares]
    path = np.stack([one.warp_points(points) for one in maps])
    whole = np.linalg.norm(path[-1] - path[0], axis=-1).mean()
    steps = np.linalg.norm(np.diff(path, axis=0), axis=-1).mean(axis=1)
    bends = np.linalg.norm(np.diff(path, 2, axis=0), axis=-1).mean(axis=1)
    assert whole > 2
    assert steps.max() < 3 * whole / 20 and bends.max() < 0.5 * steps.mean()
    assert min(one.exact_jacobian_determinant(points).min() for one in maps) > 0


def test_the_other_direction_is_the_inverse_of_the_path(ends, points):
    middle = interpolate(*ends, 0.5)
    back = interpolate(ends[0].inverse, ends[1].inverse, 0.5)
    there = middle.warp_points(points)
    assert np.abs(back.warp_points(there) - middle.inverse.warp_points(there)).max() < 1e-3


@pytest.mark.parametrize('share', [-0.1, 1.5, float('nan')])
def test_a_share_beyond_the_ends_is_refused(ends, share):
    with pytest.raises(UsageError, match='from 0 to 1'):
        interpolate(*ends, share)


def test_other_weights_are_refused(ends):
    with pytest.raises(UsageError, match='same weights'):
        interpolate(ends[0], found(1, np.eye(4), seed=1, steps=1), 0.5)
    with pytest.raises(UsageError, match='same direction'):
        interpolate(ends[0], ends[1].inverse, 0.5)


def test_two_fixed_images_are_refused(ends):
    other = copy(ends[1])
    other.fixed_grid = ends[1].fixed_grid.resampled(8.0)
    with pytest.raises(UsageError, match='different fixed grids'):
        interpolate(ends[0], other, 0.5)
