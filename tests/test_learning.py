"""How a deformation is found: similarity, regularity, sampling, the course of an optimisation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data import intensity, make_grid
from textures import FRAME, noise

from nephi_pipe.field.config import FieldConfig
from nephi_pipe.field.deformation import NePhiField
from nephi_pipe.learning import optimise as optimisation
from nephi_pipe.learning.optimise import Pair, optimise
from nephi_pipe.learning.regularity import (
    bending_energy,
    fold_barrier,
    gradient_inverse_consistency,
    point_regularity,
)
from nephi_pipe.learning.settings import Level, OptimisationSettings
from nephi_pipe.learning.volume import Volume

# --- regularity ---------------------------------------------------------------------------------


def linear_maps(there: torch.Tensor, back: torch.Tensor) -> SimpleNamespace:
    """A pair of linear maps in the place of a field."""

    def evaluate(points: torch.Tensor, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = (back if inverse else there) - torch.eye(3)
        return points @ gradient.T, gradient.expand(len(points), 3, 3)

    return SimpleNamespace(displacement_and_gradient=evaluate)


def test_gradient_inverse_consistency_of_linear_maps():
    matrix = torch.tensor([[1.1, 0.2, 0.0], [-0.1, 0.9, 0.3], [0.0, 0.1, 1.2]])
    points = noise(10, 3)
    exact = linear_maps(matrix, torch.linalg.inv(matrix))
    volume = torch.linalg.det(matrix).item()
    for inverse, expected in ((False, volume), (True, 1 / volume)):
        loss, determinants, gradient, apart = gradient_inverse_consistency(exact, points, inverse)
        assert loss.item() == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(determinants, torch.full((10,), expected), atol=1e-5, rtol=0)
        wanted = (torch.linalg.inv(matrix) if inverse else matrix) - torch.eye(3)
        torch.testing.assert_close(gradient[3], wanted)
        torch.testing.assert_close(apart, torch.zeros(10, 3), atol=1e-6, rtol=0)
    one_way = linear_maps(matrix, torch.eye(3))
    loss, *_ = gradient_inverse_consistency(one_way, points)
    assert loss.item() == pytest.approx(((matrix - torch.eye(3)) ** 2).mean().item(), rel=1e-4)


def test_how_far_both_maps_together_are_off_counts_in_a_unit():
    matrix = torch.tensor([[1.1, 0.2, 0.0], [-0.1, 0.9, 0.3], [0.0, 0.1, 1.2]])
    points = noise(10, 3)
    one_way = linear_maps(matrix, torch.eye(3))
    settings = OptimisationSettings(consistency_weight=2.0)
    without, _, _ = point_regularity(one_way, points, False, settings)
    total, consistency, _ = point_regularity(one_way, points, False, settings, 0.1)
    apart = points @ (matrix - torch.eye(3)).T
    expected = 2 * (apart.norm(dim=1) / 0.1).square().mean()
    torch.testing.assert_close(total - without, expected)
    torch.testing.assert_close(consistency, (matrix - torch.eye(3)).square().mean())


def test_maps_that_are_told_how_far_they_are_off_invert_each_other_better():
    points = noise(500, 3)
    off = []
    for weight in (0.0, 1.0):
        field = tiny_field()
        settings = replace(SETTINGS, steps=40, network_rate=3e-3, consistency_weight=weight)
        optimise(field, small_pair, settings, FRAME.scale_mm)
        there = points + field.displacement(points, False)
        off.append((there + field.displacement(there, True) - points).norm(dim=1).mean().item())
    assert off[1] < 0.7 * off[0]


def test_the_barrier_begins_at_its_margin_and_pushes_up():
    determinants = torch.tensor([1.0, 0.2, 0.1, 0.05, -0.1], requires_grad=True)
    barrier = fold_barrier(determinants, margin=0.1)
    assert barrier.item() == pytest.approx((0.5**2 + 2**2) / 5, rel=1e-5)
    barrier.backward()
    assert not determinants.grad[:3].any()
    assert determinants.grad[4] < determinants.grad[3] < 0


def test_bending_energy_lets_linear_motion_pass():
    step = 0.1
    axes = [step * torch.arange(n, dtype=torch.float64) for n in (7, 6, 5)]
    x, y, z = torch.meshgrid(*axes, indexing='ij')
    used = torch.rand(7, 6, 5, generator=torch.Generator().manual_seed(2)) < 0.9
    linear = torch.stack([2 * x - y, z + 4, 0 * x], dim=-1)
    assert bending_energy(linear, used, 1 / step**2).item() == pytest.approx(0, abs=1e-20)
    curved = torch.stack([3 * x**2, 2 * x * y, 0 * x], dim=-1)
    # Mean over the nine second derivatives and three components: 6 (xx), twice 2 (xy and yx).
    expected = (6**2 + 2 * 2**2) / 27
    everywhere = torch.ones_like(used)
    assert bending_energy(curved, everywhere, 1 / step**2).item() == pytest.approx(expected)
    spoiled = torch.where(used[..., None], curved, 1e6)
    assert bending_energy(spoiled, used, 1 / step**2).item() == pytest.approx(expected, rel=0.5)


# --- the course of an optimisation --------------------------------------------------------------

SETTINGS = OptimisationSettings(
    levels=(Level(0.5, 12.0, 2, 1.0), Level(0.5, 9.0, 2)), steps=8, regularity_points=50
)


def tiny_field(seed: int = 0) -> NePhiField:
    config = FieldConfig(
        frequencies=8, width=16, global_channels=4, local_channels=4, local_size=8
    )
    return NePhiField(config, torch.Generator().manual_seed(seed), [0.7, 0.7, 0.6])


def small_pair(level: Level) -> Pair:
    """The picture of ``data.py``, shifted by 4 mm."""
    grid = make_grid('RAS', (28, 26, 24), 2.6)
    channels = torch.from_numpy(intensity(grid.points()).astype(np.float32) / 150)
    weight = (channels > 0.1).float()
    there = np.eye(4)
    there[0, 3] = 4.0
    both = torch.stack([channels, weight])
    return Pair(Volume(both, grid, FRAME, np.eye(4)), Volume(both, grid, FRAME, there))


def test_levels_follow_each_other_and_progress_is_told():
    told, levels = [], []

    def pair_at(level: Level) -> Pair:
        levels.append(level)
        return small_pair(level)

    history = optimise(tiny_field(), pair_at, SETTINGS, FRAME.scale_mm, progress=told.append)
    assert told == history
    assert levels == list(SETTINGS.levels)
    assert [entry.step for entry in history] == list(range(1, 9))
    assert [entry.level for entry in history] == [0] * 4 + [1] * 4
    assert history[-1].seconds_left == 0 < history[0].seconds_left
    assert set(history[0].as_dict()) >= {'step', 'total_steps', 'level', 'similarity', 'seconds'}


@pytest.mark.parametrize('similarity', ['ncc', 'windowed-ncc'])
def test_an_optimisation_makes_the_pair_more_alike(similarity):
    settings = replace(SETTINGS, similarity=similarity, steps=24, network_rate=3e-3)
    history = optimise(tiny_field(), small_pair, settings, FRAME.scale_mm)
    apart = [1 - entry.similarity for entry in history]
    assert apart[-1] < 0.8 * apart[0]


@pytest.mark.parametrize('threads', [1, 2])
def test_a_seed_and_the_threads_decide_every_bit(threads):
    fields = [tiny_field(), tiny_field(), tiny_field()]
    for field, seed in zip(fields, (5, 5, 6), strict=True):
        optimise(field, small_pair, SETTINGS, FRAME.scale_mm, seed=seed, threads=threads)
    one, same, other = (field.state_dict() for field in fields)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one['code.local_code'], other['code.local_code'])


def test_the_number_of_threads_is_given_back():
    before = torch.get_num_threads()
    optimise(tiny_field(), small_pair, replace(SETTINGS, steps=1), FRAME.scale_mm, threads=2)
    assert torch.get_num_threads() == before


def test_identical_images_end_early_and_stay_within_a_fifth_of_a_voxel():
    def same(level: Level) -> Pair:
        fixed = small_pair(level).fixed
        return Pair(fixed, fixed)

    settings = replace(SETTINGS, steps=160)
    field = tiny_field()
    history = optimise(field, same, settings, FRAME.scale_mm)
    assert len(history) < 100
    assert history[-1].total_steps == 160
    points = noise(200, 3).clamp(-1, 1) * 0.3
    moved_mm = field.displacement_in_chunks(points).norm(dim=1) * FRAME.scale_mm
    assert moved_mm.mean() < 0.2 * 2.6


def test_the_barrier_acts_at_watched_points():
    folded = tiny_field()
    with torch.no_grad():
        folded.networks[0].output.weight += 0.03 * noise(3, 16, seed=1)
    points = 0.5 * noise(4000, 3, seed=2).clamp(-1, 1)

    def determinants(where: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(torch.eye(3) + folded.gradient_in_chunks(where))

    watched = points[determinants(points) <= 0]
    assert len(watched) > 100
    settings = replace(SETTINGS, steps=30, barrier_weight=100.0, network_rate=3e-4)
    optimise(folded, small_pair, settings, FRAME.scale_mm, watch=watched)
    assert (determinants(watched) <= 0).sum() < 0.02 * len(watched)
    assert (determinants(points) <= 0).sum() < 0.1 * len(watched)


def test_one_steep_gradient_does_not_lead_an_optimisation_away(monkeypatch):
    settings = replace(SETTINGS, similarity='ncc', steps=40, network_rate=3e-3)
    undisturbed = optimise(tiny_field(), small_pair, settings, FRAME.scale_mm)
    calls = []

    def with_a_spike(*given):
        total, *rest = point_regularity(*given)
        calls.append(total)
        return (1e6 * total if len(calls) == 24 else total), *rest

    monkeypatch.setattr(optimisation, 'point_regularity', with_a_spike)
    disturbed = optimise(tiny_field(), small_pair, settings, FRAME.scale_mm)
    assert len(calls) == 80
    gained = [run[-1].similarity - run[0].similarity for run in (undisturbed, disturbed)]
    assert gained[1] > 0.9 * gained[0] > 0.05


@pytest.fixture
def counts(monkeypatch):
    """How many points the regulariser was given, call by call."""
    found = []

    def counted(field, points, *rest):
        found.append(len(points))
        return point_regularity(field, points, *rest)

    monkeypatch.setattr(optimisation, 'point_regularity', counted)
    return found


AROUND_THE_HARDEST = 2 * 64
"""Those of the step before, and as many around them."""


def test_images_that_do_not_show_the_finest_level_are_regularised_more():
    softer = OptimisationSettings(diffusion_weight=0.5, coarse_weights=(0.7, 1.0))
    alike = replace(softer, coarse_weights=None)
    for settings, weights in ((softer, (0.7, 1.0)), (alike, None)):
        own = settings.diffusion_weight, settings.bending_weight
        for spacing, expected in ((1.0, own), (2.0, weights or own)):
            chosen = settings.for_voxels(spacing)
            assert (chosen.diffusion_weight, chosen.bending_weight) == expected


def test_a_level_takes_its_part_of_the_points_of_the_regulariser(counts):
    levels = (replace(SETTINGS.levels[0], regularity=0.4), SETTINGS.levels[1])
    settings = replace(SETTINGS, levels=levels, steps=2, regularity_points=1000)
    optimise(tiny_field(), small_pair, settings, FRAME.scale_mm)
    assert counts == [200, 200, *[500 + AROUND_THE_HARDEST] * 2]


def test_a_step_looks_at_some_of_very_many_folded_points(counts):
    watched = 0.5 * noise(9000, 3).clamp(-1, 1)
    settings = replace(SETTINGS, steps=2, regularity_points=1000)
    optimise(tiny_field(), small_pair, settings, FRAME.scale_mm, watch=watched)
    assert counts == [4500, 4500, *[4500 + AROUND_THE_HARDEST] * 2]
