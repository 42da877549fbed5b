"""``register`` whatever the images are like: orientations, lesions, other modalities."""

from dataclasses import replace

import numpy as np
import pytest
from data import SmoothWarp, intensity, make_grid
from registration_runs import quickly
from scipy import ndimage

from nephi_pipe import registration
from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image, foreground
from nephi_pipe.learning.settings import Level
from nephi_pipe.metrics import tre_mm

pytestmark = pytest.mark.usefixtures('tiny_presets')


@pytest.fixture(scope='module')
def found(pair):
    return quickly(pair.fixed, pair.moving)


# --- every orientation --------------------------------------------------------------------------

WARP = SmoothWarp(2.5, 20.0)
CENTER = np.array([5.0, -12.0, 20.0])
ORIENTATIONS = {
    'RAS': make_grid('RAS', (26, 26, 26), 2.7),
    'LAS': make_grid('LAS', (26, 26, 26), 2.7),
    'LPS': make_grid('LPS', (26, 26, 26), 2.7),
    'oblique': make_grid('oblique LAS', (30, 30, 30), 2.7),
    'anisotropic': make_grid('PIR', (34, 20, 31), (2.1, 3.6, 2.3)),
}


def ball(grid: Grid) -> np.ndarray:
    return np.linalg.norm(grid.points() - CENTER, axis=-1) < 28


def scene(kind: str, points_of) -> tuple[Image, Image]:
    """A picture read at ``points_of(x)``, on the grid of an orientation, and its mask."""
    grid = ORIENTATIONS[kind]
    texture = intensity(points_of(grid.points())) + 30 * np.sin(points_of(grid.points()) / 5).sum(
        -1
    )
    return Image(texture.astype(np.float32), grid), Image(ball(grid), grid)


def register_scene(fixed_kind: str, moving_kind: str) -> registration.Registration:
    fixed, fixed_mask = scene(fixed_kind, WARP.map_points)
    moving, moving_mask = scene(moving_kind, lambda points: points)
    return quickly(fixed, moving, fixed_mask=fixed_mask, moving_mask=moving_mask, steps=20)


@pytest.fixture(scope='module')
def in_ras():
    return register_scene('RAS', 'RAS')


@pytest.mark.parametrize(
    ('fixed_kind', 'moving_kind'),
    [
        ('LAS', 'LPS'),
        ('oblique', 'anisotropic'),
        pytest.param('anisotropic', 'RAS', marks=pytest.mark.slow),
        pytest.param('LPS', 'oblique', marks=pytest.mark.slow),
    ],
)
def test_the_map_is_the_same_in_every_orientation(in_ras, fixed_kind, moving_kind):
    other = register_scene(fixed_kind, moving_kind)
    draw = np.random.default_rng(2).normal(size=(800, 3))
    points = CENTER + 24 * draw / np.linalg.norm(draw, axis=1, keepdims=True) * np.cbrt(
        np.random.default_rng(3).uniform(size=(800, 1))
    )
    truth = WARP.displacement(points)
    before = np.linalg.norm(truth, axis=1).mean()
    error = np.linalg.norm(other.displacement_at(points) - truth, axis=1).mean()
    apart = np.linalg.norm(other.warp_points(points) - in_ras.warp_points(points), axis=1)
    assert error < 0.5 * before
    assert apart.mean() < 0.25 * before


# --- exclusion ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def lesion(pair):
    """The moving image with a bright ball in it, and the ball's mask."""
    grid = pair.moving.grid
    inside = foreground(pair.moving)
    center = grid.to_world(np.array(ndimage.center_of_mass(inside)) + [9.0, 0, 2])
    there = (np.linalg.norm(grid.points() - center, axis=-1) < 12) & inside
    data = pair.moving.data.copy()
    data[there] = 1.5 * data.max()
    return Image(data, grid), Image(there, grid), center


def near(pair, center: np.ndarray, reach: float = 18.0) -> np.ndarray:
    return np.linalg.norm(pair.moving_landmarks - center, axis=1) < reach


def test_a_lesion_does_not_attract_the_map_when_it_is_excluded(pair, lesion, found):
    sick, mask, center = lesion
    around = near(pair, center)
    assert 30 < around.sum() < 300

    def error(result: registration.Registration) -> float:
        points = pair.fixed_landmarks[around], pair.moving_landmarks[around]
        return tre_mm(*points, result.warp_points).mean()

    attracted = error(quickly(pair.fixed, sick, steps=15))
    excluded = error(quickly(pair.fixed, sick, steps=15, exclude_mask=mask))
    assert excluded < 0.85 * attracted
    assert excluded < error(found) + 0.6


def test_what_the_excluded_voxels_hold_makes_no_difference(pair, lesion):
    sick, mask, _ = lesion
    other = sick.data.copy()
    other[mask.data] = np.median(sick.data[sick.data > 0])
    maps = [
        quickly(pair.fixed, Image(data, sick.grid), exclude_mask=mask, steps=2)
        for data in (sick.data, other)
    ]
    moved = [result.displacement_at(pair.fixed_landmarks) for result in maps]
    assert np.abs(moved[0]).max() > 0.01
    np.testing.assert_array_equal(*moved)


# --- other modalities ---------------------------------------------------------------------------


def test_inverted_contrast_is_registered_as_other(pair):
    inverted = pair.moving.data.max() - pair.moving.data
    moving = Image(
        np.where(pair.moving.data > 0, inverted, 0).astype(np.float32), pair.moving.grid
    )
    result = quickly(pair.fixed, moving, modality='other', steps=15)
    before = tre_mm(pair.fixed_landmarks, pair.moving_landmarks, lambda points: points)
    after = tre_mm(pair.fixed_landmarks, pair.moving_landmarks, result.warp_points)
    assert after.mean() < 0.75 * before.mean()


def test_lungs_in_hounsfield_units_are_registered(pair):
    fixed, moving = (
        Image((image.data / image.data.max() * 900 - 1000).astype(np.float32), image.grid)
        for image in (pair.fixed, pair.moving)
    )
    masks = [Image(foreground(image), image.grid) for image in (pair.fixed, pair.moving)]
    result = quickly(
        fixed, moving, fixed_mask=masks[0], moving_mask=masks[1], modality='lung', steps=15
    )
    before = tre_mm(pair.fixed_landmarks, pair.moving_landmarks, lambda points: points)
    after = tre_mm(pair.fixed_landmarks, pair.moving_landmarks, result.warp_points)
    assert after.mean() < 0.75 * before.mean()


@pytest.mark.parametrize('steps', [None, 6])
def test_levels_that_the_voxels_do_not_show_are_left_out(pair, monkeypatch, steps):
    """Of voxels of 3 mm: samples 1.5 mm apart show nothing that those 2.7 mm apart do not."""
    chosen = registration.preset('brain')
    levels = (Level(0.5, 5.4, 2, 0.9), Level(0.5, 3.0, 2))
    settings = replace(chosen.optimisation, levels=levels, steps=8)
    monkeypatch.setattr(registration, 'preset', lambda *_: replace(chosen, optimisation=settings))
    result = quickly(pair.fixed, pair.moving, steps=steps)
    assert [entry['level'] for entry in result.history] == [0] * (steps or 4)
