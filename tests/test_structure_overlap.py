"""Structures that overlap: the loss, its gradient through an optimisation, and when it counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data import AFFINE, make_grid
from registration_runs import FIELD
from textures import FRAME, noise

from nephi_pipe.field.deformation import NePhiField
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.learning.optimise import optimise
from nephi_pipe.learning.settings import Level, OptimisationSettings
from nephi_pipe.learning.similarity import overlap_loss
from nephi_pipe.learning.structures import Structures, overlap
from nephi_pipe.presets.preparation import Prepared, pair_builder

CENTER = np.array(FRAME.center_mm)
PLACES = CENTER + np.array([[12.0, 4, 0], [-12, -6, 4]])
SHIFT = np.array([3.0, -2.0, 2.5])
SETTINGS = OptimisationSettings(
    levels=(Level(1.0, 5.0, 2, 0.8),),
    steps=35,
    regularity_points=200,
    diffusion_weight=0.05,
    bending_weight=0.05,
    network_rate=3e-3,
    code_rate=4e-2,
)


def test_the_loss_is_the_mean_soft_dice_of_what_counts() -> None:
    target, warped = noise(50, 3).sigmoid(), noise(50, 3, seed=1).sigmoid()
    weight = torch.ones(50)
    weight[20:] = 0
    kept = [side[:20].double() for side in (target, warped)]
    both = (2 * (kept[0] * kept[1]).sum(0) + 1) / (
        (kept[0] ** 2).sum(0) + (kept[1] ** 2).sum(0) + 1
    )
    assert overlap_loss(target, warped, weight).item() == pytest.approx(1 - both.mean().item())
    assert overlap_loss(target, target, weight).item() == pytest.approx(0, abs=1e-6)
    nothing = torch.zeros(50, 3)
    assert overlap_loss(nothing, nothing, weight).item() == 0


def balls(places: np.ndarray, grid: Grid) -> Structures:
    """A ball of 7 mm around each place, a structure of its own."""
    apart = np.linalg.norm(grid.points()[None] - places[:, None, None, None], axis=-1)
    return Structures(torch.from_numpy(np.clip(7.5 - apart, 0, 1)).float(), grid)


def pair_of(shift: np.ndarray, excluded: np.ndarray | None = None):
    """Images that show nothing, and structures that moved by ``shift`` before an affine."""
    sides = []
    for axes, to_world in (('RAS', np.eye(4)), ('oblique LAS', AFFINE)):
        center = tuple(apply_affine(to_world, CENTER).tolist())
        grid = make_grid(axes, (36, 36, 36), 2.0, center)
        inside = np.ones(grid.shape, dtype=bool)
        sides.append(Prepared(0.5 * inside.astype(np.float32), grid, inside, None))
    if excluded is not None:
        near = np.linalg.norm(sides[0].grid.points() - excluded, axis=-1) < 14
        sides[0] = replace(sides[0], excluded=near)
    there = apply_affine(AFFINE, PLACES + shift)
    found = balls(PLACES, sides[0].grid), balls(there, sides[1].grid)
    return sides, found


def optimised(settings: OptimisationSettings, **pair) -> NePhiField:
    sides, found = pair_of(**pair)
    field = NePhiField(FIELD, torch.Generator().manual_seed(0), [0.8, 0.8, 0.8])
    build = pair_builder(*sides, AFFINE, FRAME, settings, 'cpu', found)
    optimise(field, build, settings, FRAME.scale_mm)
    return field


def moved(field: NePhiField, points: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Where a field moves points, mm."""
    normalised = torch.from_numpy((points - CENTER) / FRAME.scale_mm).float()
    return field.displacement_in_chunks(normalised, inverse).numpy() * FRAME.scale_mm


def test_structures_alone_bring_a_pair_together_both_ways() -> None:
    field = optimised(SETTINGS, shift=SHIFT)
    assert np.abs(moved(field, PLACES) - SHIFT).max() < 0.8
    assert np.abs(moved(field, PLACES + SHIFT, inverse=True) + SHIFT).max() < 0.8
    field = optimised(replace(SETTINGS, structure_weight=0.0, steps=10), shift=SHIFT)
    assert np.linalg.norm(moved(field, PLACES) - SHIFT, axis=1).min() > 2


def test_what_is_excluded_does_not_pull() -> None:
    found = moved(optimised(SETTINGS, shift=SHIFT, excluded=PLACES[0]), PLACES)
    assert np.linalg.norm(found[0] - SHIFT) > 2.0
    assert np.abs(found[1] - SHIFT).max() < 0.8


def test_overlap_counts_what_is_not_shown_as_missed() -> None:
    sides, (fixed, moving) = pair_of(np.zeros(3))
    points = sides[0].grid.points().reshape(-1, 3)
    assert overlap((fixed, moving), points, AFFINE) > 0.8
    assert overlap((fixed, moving), points, AFFINE @ np.diag([-1.0, 1, 1, 1])) < 0.1
    empty = replace(fixed, shares=torch.zeros_like(fixed.shares))
    assert overlap((empty, empty), points, np.eye(4)) == 0
    one = replace(moving, shares=moving.shares * torch.tensor([1.0, 0])[:, None, None, None])
    assert overlap((fixed, one), points, AFFINE) == pytest.approx(0.42, abs=0.04)


def test_shares_are_smoothed_as_images_of_a_level_are() -> None:
    _, (fixed, _) = pair_of(np.zeros(3))
    assert fixed.smoothed(0.0) is fixed.shares
    soft = fixed.smoothed(4.0)
    assert soft.max() < 0.8 and soft.sum() == pytest.approx(fixed.shares.sum().item(), rel=0.02)
