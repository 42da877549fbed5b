"""The affine initialisation: known maps of a phantom, real brains, and what is refused."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from data import AXES, DEMO, rotation

from nephi_pipe.errors import InputDataError, UsageError
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import load_image
from nephi_pipe.learning.affine import estimate_affine
from nephi_pipe.learning.affine_cost import pairs
from nephi_pipe.learning.affine_levels import Subject

BLOBS = np.random.default_rng(7).uniform(-1, 1, (40, 3)) * [45.0, 60.0, 40.0]
"""Centres of what is inside the phantom, mm."""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def phantom(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and mask of a head-sized ellipsoid with blobs, at points (..., 3) in mm."""
    inside = ((points / [58.0, 75.0, 50.0]) ** 2).sum(axis=-1) < 1
    values = np.full(points.shape[:-1], 0.3)
    for number, blob in enumerate(BLOBS):
        distance = ((points - blob) ** 2).sum(axis=-1)
        values += (0.7 if number % 2 else -0.5) * np.exp(-distance / (2 * (6 + number % 7) ** 2))
    return np.where(inside, 100 + 60 * values, 0), inside


def make_grid(
    axes: str = 'RAS',
    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0),
    extent: tuple[float, float, float] = (168.0, 200.0, 160.0),
    center: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Grid:
    """A grid over a box of the world, its axes turned."""
    shape = np.ceil(np.abs(AXES[axes]).T @ np.array(extent) / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes] * spacing
    affine[:3, 3] = center - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(shape), affine)


def make_map(
    angles: tuple[float, float, float], shift: tuple[float, float, float], matrix: np.ndarray
) -> np.ndarray:
    """Fixed mm to moving mm."""
    truth = np.eye(4)
    truth[:3, :3] = rotation(*np.deg2rad(angles)) @ matrix
    truth[:3, 3] = shift
    return truth


RIGID = make_map((14, -17, 12), (20.0, -25.0, 15.0), np.eye(3))
SIMILAR = make_map((-12, 10, 20), (-24.0, 18.0, -20.0), 1.15 * np.eye(3))
AFFINE = make_map(
    (10, 16, -14), (15.0, 22.0, 24.0), [[1.1, 0.05, 0], [0, 0.92, 0.06], [0.04, 0, 1.02]]
)


def around(truth: np.ndarray, **options) -> Grid:
    """A grid that holds all of the phantom moved by ``truth``."""
    return make_grid(**{'extent': (232.0, 232.0, 232.0), 'center': tuple(truth[:3, 3])} | options)


def moved(truth: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The moving phantom that ``truth`` takes the fixed one to, without interpolation."""
    return phantom(apply_affine(np.linalg.inv(truth), grid.points()))


@functools.cache
def fixed() -> tuple[np.ndarray, Grid, np.ndarray]:
    grid = make_grid()
    data, mask = phantom(grid.points())
    return data, grid, mask


def error_mm(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance between two maps over the fixed phantom."""
    _, grid, mask = fixed()
    points = grid.to_world(np.argwhere(mask))
    apart = apply_affine(found, points) - apply_affine(truth, points)
    return float(np.linalg.norm(apart, axis=1).mean())


def align(truth: np.ndarray, grid: Grid | None = None, **options) -> np.ndarray:
    """The estimate for the phantom and its moved self, both masked."""
    grid = around(truth) if grid is None else grid
    data, grid_f, mask = fixed()
    other, other_mask = moved(truth, grid)
    return estimate_affine(data, grid_f, other, grid, mask, other_mask, **options)


@pytest.mark.parametrize(
    ('axes', 'spacing'),
    [
        ('LAS', (4.0, 4.0, 4.0)),
        ('PIR', (3.0, 4.0, 4.5)),
        ('oblique LAS', (3.5, 4.0, 4.0)),
        ('oblique', (3.0, 3.0, 7.0)),
    ],
)
def test_finds_an_affine_between_grids_of_any_kind(axes, spacing):
    found = align(AFFINE, around(AFFINE, axes=axes, spacing=spacing))
    assert found.dtype == np.float64
    assert np.array_equal(found[3], [0, 0, 0, 1])
    assert error_mm(found, AFFINE) < 0.5


def test_a_rigid_map_stays_rigid():
    found = align(RIGID, dof=6)
    assert np.allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(found[:3, :3]) == pytest.approx(1)
    assert error_mm(found, RIGID) < 0.3


def test_a_similarity_stays_a_similarity():
    found = align(SIMILAR, dof=7)
    square = found[:3, :3] @ found[:3, :3].T
    assert np.allclose(square, square[0, 0] * np.eye(3), atol=1e-9)
    assert np.cbrt(np.linalg.det(found[:3, :3])) == pytest.approx(1.15, abs=0.01)
    assert error_mm(found, SIMILAR) < 0.3


@pytest.mark.parametrize('axis', [(45, 0, 0), (0, -45, 0), (0, 0, 45)])
def test_large_rotations_are_found(axis):
    truth = make_map(axis, (30.0, 0.0, -20.0), 0.85 * np.eye(3))
    assert error_mm(align(truth), truth) < 0.5


def test_other_intensities_do_not_matter():
    grid = around(AFFINE)
    data, mask = moved(AFFINE, grid)
    bias = np.exp(0.3 * np.linspace(-1, 1, grid.shape[1]))[None, :, None]
    noise = np.random.default_rng(0).normal(0, 4, grid.shape)
    other = (3 * (data / 100) ** 1.3 * bias * 100 + noise) * mask
    found = estimate_affine(*fixed()[:2], other, grid, fixed()[2], mask)
    assert error_mm(found, AFFINE) < 0.7


def test_what_lies_outside_of_the_masks_is_not_seen():
    grid = around(AFFINE)
    data, mask = moved(AFFINE, grid)
    skull = np.linalg.norm(apply_affine(np.linalg.inv(AFFINE), grid.points()) / 90, axis=-1) < 1
    head = np.where(mask, data, 400.0 * skull)
    found = estimate_affine(*fixed()[:2], head, grid, fixed()[2], mask)
    assert np.array_equal(found, align(AFFINE, grid))


def test_a_cut_field_of_view_does_not_pull():
    center = AFFINE[:3, 3] + [0.0, 0.0, 62.0]
    grid = around(AFFINE, center=tuple(center), extent=(232.0, 232.0, 160.0))
    _, mask = moved(AFFINE, grid)
    whole = moved(AFFINE, around(AFFINE))[1]
    assert 0.7 < mask.sum() / whole.sum() < 0.85
    assert error_mm(align(AFFINE, grid), AFFINE) < 0.7


def test_excluded_voxels_take_no_part():
    data, grid, mask = fixed()
    lesion = np.linalg.norm(grid.points() - [30.0, -20.0, 15.0], axis=-1) < 26
    there = around(AFFINE)
    other, other_mask = moved(AFFINE, there)
    args = (np.where(lesion & mask, 260.0, data), grid, other, there, mask, other_mask)
    excluded = error_mm(estimate_affine(*args, fixed_excluded=lesion), AFFINE)
    assert excluded < 0.5
    assert excluded < 0.7 * error_mm(estimate_affine(*args), AFFINE)
    backwards = (other, there, args[0], grid, other_mask, mask)
    back = estimate_affine(*backwards, moving_excluded=lesion)
    assert error_mm(np.linalg.inv(back), AFFINE) < 0.5


@pytest.mark.parametrize('masked', ['none', 'fixed', 'moving'])
def test_masks_may_be_missing(masked):
    data, grid, mask = fixed()
    there = around(RIGID)
    other, other_mask = moved(RIGID, there)
    masks = (mask if masked == 'fixed' else None, other_mask if masked == 'moving' else None)
    assert error_mm(estimate_affine(data, grid, other, there, *masks), RIGID) < 0.7


def test_a_small_animal_is_aligned_as_well():
    data, grid, mask = fixed()
    there = around(AFFINE)
    other, other_mask = moved(AFFINE, there)
    shrink = np.diag([0.1, 0.1, 0.1, 1.0])
    small = [Grid(g.shape, shrink @ g.affine) for g in (grid, there)]
    found = estimate_affine(data, small[0], other, small[1], mask, other_mask)
    assert error_mm(np.linalg.inv(shrink) @ found @ shrink, AFFINE) < 0.5


def test_the_same_seed_gives_the_same_bytes():
    first, again = (align(SIMILAR, seed=3) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    other = align(SIMILAR, seed=4)
    assert not np.array_equal(first, other)
    assert error_mm(first, other) < 0.3


def smooth_subject(truth: np.ndarray, name: str) -> Subject:
    """A picture without edges, moved by ``truth``."""
    grid = around(truth)
    points = apply_affine(np.linalg.inv(truth), grid.points())
    weights = np.exp(-((points[..., None, :] - BLOBS[:6] / 2) ** 2).sum(axis=-1) / 600)
    values = weights @ np.array([1.0, -0.5, 0.8, -0.7, 0.6, 0.9])
    return Subject.checked(values, grid, np.linalg.norm(points, axis=-1) < 75, None, name)


def test_gradient_and_curvature_are_those_of_the_cost():
    pair = pairs(smooth_subject(np.eye(4), 'fixed'), smooth_subject(RIGID, 'moving'), 4.0, 0)[0]
    near = RIGID.copy()
    near[:3, :3] = rotation(0.05, -0.04, 0.06) @ RIGID[:3, :3]
    landscape = pair.landscape(near[None])
    assert landscape.cost == pytest.approx(pair.cost(near[None]), rel=1e-4)
    for change in np.random.default_rng(1).normal(size=(4, 12)):
        generator = np.zeros((4, 4))
        generator[:3, :3] = change[3:].reshape(3, 3) / pair.radius
        generator[:3, 3] = change[:3] - generator[:3, :3] @ pair.center
        steps = torch.from_numpy(np.array([1.0, 0.0, -1.0])[:, None, None] * generator)
        ahead, here, back = pair.cost(torch.linalg.matrix_exp(steps).numpy() @ near)
        slope, bend = (ahead - back) / 2, ahead - 2 * here + back
        assert landscape.gradient[0] @ change == pytest.approx(slope, rel=0.1)
        assert change @ landscape.curvature[0] @ change == pytest.approx(bend, rel=0.25)


def test_swapping_the_images_inverts_the_map():
    data, grid, mask = fixed()
    there = around(AFFINE)
    other, other_mask = moved(AFFINE, there)
    forth = estimate_affine(data, grid, other, there, mask, other_mask)
    back = estimate_affine(other, there, data, grid, other_mask, mask)
    assert error_mm(back @ forth, np.eye(4)) < 0.3


def test_depths_do_not_follow_what_changes_the_intensities():
    """An organ that holds more air towards one end: intensities alone are pulled aside."""
    there = around(AFFINE)
    data, grid, mask = fixed()
    other, other_mask = moved(AFFINE, there)
    along = there.points()[..., 2] - AFFINE[2, 3]
    thinned = np.clip(1 - along / 60, 0.1, 2) * other
    plain, deep = (
        error_mm(
            estimate_affine(data, grid, thinned, there, mask, other_mask, by_depth=by_depth),
            AFFINE,
        )
        for by_depth in (False, True)
    )
    assert deep < 0.5 * plain and deep < 2.0


def test_bad_input_is_refused_with_a_sentence():
    data, grid, mask = fixed()
    with pytest.raises(InputDataError, match='moving mask has 0 voxels'):
        estimate_affine(data, grid, data, grid, mask, np.zeros_like(mask))
    with pytest.raises(InputDataError, match='none of them free'):
        estimate_affine(data, grid, data, grid, mask, mask, fixed_excluded=mask)
    with pytest.raises(InputDataError, match='fixed mask has the shape'):
        estimate_affine(data, grid, data, grid, mask[1:], mask)
    with pytest.raises(InputDataError, match='moving image has the shape'):
        estimate_affine(data, grid, data[1:], grid)
    with pytest.raises(InputDataError, match='expected contrast'):
        estimate_affine(data, grid, np.full_like(data, 7), grid, mask, mask)
    with pytest.raises(UsageError, match='expected one of both images'):
        estimate_affine(data, grid, data, grid, mask, by_depth=True)
    with pytest.raises(UsageError, match='dof is 9'):
        estimate_affine(data, grid, data, grid, mask, mask, dof=9)


def test_a_piece_too_small_to_hold_the_other_image_is_refused():
    data, grid, mask = fixed()
    piece = make_grid(extent=(20.0, 20.0, 20.0), spacing=(1.0, 1.0, 1.0), center=(20.0, 0.0, 0.0))
    with pytest.raises(InputDataError, match='cannot be aligned'):
        estimate_affine(data, grid, phantom(piece.points())[0], piece, mask)


@functools.cache
def brain(name: str) -> tuple[np.ndarray, Grid, np.ndarray]:
    """A real brain at 2 mm and its mask (it is skull-stripped: all that is not zero)."""
    image = load_image(DEMO / name / 'anat' / f'{name}_T1w.nii.gz')
    return image.data, image.grid, image.data != 0


def random_pose(random: np.random.Generator, center: np.ndarray) -> np.ndarray:
    """Up to 30 degrees about any axis, up to 40 mm, scaled by 0.8 to 1.2."""
    axis = random.normal(size=3)
    vector = np.deg2rad(random.uniform(20, 30)) * axis / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), vector)
    matrix = torch.linalg.matrix_exp(torch.from_numpy(cross)).numpy() * random.uniform(0.8, 1.2)
    way = random.normal(size=3)
    pose = np.eye(4)
    pose[:3, :3] = matrix
    pose[:3, 3] = center - matrix @ center + random.uniform(20, 40) * way / np.linalg.norm(way)
    return pose


def brain_error_mm(found: np.ndarray, truth: np.ndarray, points: np.ndarray) -> float:
    apart = apply_affine(found, points) - apply_affine(truth, points)
    return float(np.linalg.norm(apart, axis=1).mean())


@pytest.mark.parametrize('seed', range(3))
def test_a_brain_is_brought_back_from_a_random_pose(seed):
    data, grid, mask = brain('sub-45')
    points = grid.to_world(np.argwhere(mask)[::50])
    pose = random_pose(np.random.default_rng(seed), points.mean(axis=0))
    there = Grid(grid.shape, pose @ grid.affine)
    found = estimate_affine(data, grid, 5 * data**0.8, there, mask, mask)
    assert brain_error_mm(found, pose, points) < 0.5


def test_two_people_are_aligned_alike_from_any_pose():
    data, grid, mask = brain('sub-45')
    other, other_grid, other_mask = brain('sub-41')
    points = grid.to_world(np.argwhere(mask)[::50])
    unperturbed = estimate_affine(data, grid, other, other_grid, mask, other_mask)
    for seed in (11, 12):
        pose = random_pose(np.random.default_rng(seed), apply_affine(unperturbed, points).mean(0))
        there = Grid(other_grid.shape, pose @ other_grid.affine)
        found = estimate_affine(data, grid, other, there, mask, other_mask)
        assert brain_error_mm(found, pose @ unperturbed, points) < 1.0
