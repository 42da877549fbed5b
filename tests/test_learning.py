"""How a deformation is found: similarity, regularity, sampling, the course of an optimisation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data import AFFINE, intensity, make_grid
from scipy import ndimage

from nephi_pipe.field.config import FieldConfig
from nephi_pipe.field.deformation import NePhiField
from nephi_pipe.field.interpolate import read_grid, separable
from nephi_pipe.geometry import Frame, Grid, apply_affine
from nephi_pipe.learning.optimise import Pair, optimise
from nephi_pipe.learning.regularity import (
    bending_energy,
    fold_barrier,
    gradient_inverse_consistency,
)
from nephi_pipe.learning.sampling import Lattice, Occupancy
from nephi_pipe.learning.settings import Level, OptimisationSettings
from nephi_pipe.learning.similarity import (
    gaussian_windows,
    global_ncc_loss,
    mean_difference_loss,
    windowed_ncc_loss,
)
from nephi_pipe.learning.volume import Volume, locally_normalised, mind_features, smooth

FRAME = Frame((5.0, -12.0, 20.0), 40.0)
"""Around what ``intensity`` shows in the grids of ``data.py``."""


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(shape: tuple[int, ...] = (20, 22, 18), seed: int = 0, sigma: float = 1.5) -> np.ndarray:
    """Smooth random texture in [0, 1]."""
    rough = np.random.default_rng(seed).normal(size=shape)
    texture = ndimage.gaussian_filter(rough, sigma, mode='wrap')
    return ((texture - texture.min()) / np.ptp(texture)).astype(np.float32)


# --- similarity ---------------------------------------------------------------------------------


def whole_grid_windows(shape: tuple[int, ...], sigma: float = 1.4) -> dict:
    chosen = torch.arange(int(np.prod(shape)))
    return {'chosen': chosen, 'shape': shape, 'windows': gaussian_windows(shape, sigma)}


def test_identical_images_cost_nothing():
    values, weight = 10 * noise(500, 2), 0.7 + 0.3 * torch.rand(500, generator=torch.Generator())
    assert global_ncc_loss(values, values, weight).item() == pytest.approx(0, abs=1e-5)
    assert mean_difference_loss(values, values, weight).item() == 0
    loss = windowed_ncc_loss(
        values[:480, 0], values[:480, 0], weight[:480], **whole_grid_windows((8, 10, 6))
    )
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_global_ncc_is_the_weighted_correlation():
    a, b = noise(400, seed=1), noise(400, seed=2)
    b = b + 0.7 * a
    weight = torch.rand(400, generator=torch.Generator().manual_seed(3))
    both = np.cov(a.numpy(), b.numpy(), aweights=weight.numpy())
    expected = 1 - both[0, 1] / np.sqrt(both[0, 0] * both[1, 1])
    loss = global_ncc_loss(a[:, None], b[:, None], weight)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    brighter = global_ncc_loss(a[:, None], 3 * b[:, None] + 8, weight)
    assert brighter.item() == pytest.approx(expected, abs=1e-5)
    inverted = global_ncc_loss(a[:, None], -a[:, None], weight)
    assert inverted.item() == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize('every', [1, 2])
def test_windowed_ncc_is_what_a_loop_over_windows_finds(every):
    shape, sigma = (6, 5, 7), 1.1
    generator = torch.Generator().manual_seed(4)
    target, warped = 10 * noise(210, seed=5), 10 * noise(210, seed=6)
    warped = warped + 1.5 * target
    weight = 0.5 + 0.5 * torch.rand(210, generator=generator)
    chosen = torch.randperm(210, generator=generator)[:150].sort().values
    windows = gaussian_windows(shape, sigma, every)
    loss = windowed_ncc_loss(
        target[chosen],
        warped[chosen],
        weight[chosen],
        chosen=chosen,
        shape=shape,
        windows=windows,
    )
    index = np.stack(np.unravel_index(chosen.numpy(), shape), axis=1)
    t, w, mass = (values[chosen].double().numpy() for values in (target, warped, weight))
    squared, counted = [], []
    for place in np.ndindex(*(len(matrix) for matrix in windows)):
        offset = index - ((every - 1) / 2 + every * np.array(place))
        near = np.exp(-(offset**2).sum(axis=1) / (2 * sigma**2)) * mass
        near[(np.abs(offset) > 2.5 * sigma).any(axis=1)] = 0
        both = np.cov(t, w, aweights=near)
        local = both[0, 1] / np.sqrt(both[0, 0] * both[1, 1])
        squared.append(local * abs(local))
        factors = [matrix[i] for matrix, i in zip(windows, place, strict=True)]
        kernel = torch.einsum('i,j,k->ijk', *factors).flatten()[chosen]
        counted.append(float((kernel * weight[chosen]).sum()))
    assert all(0.9 < matrix.sum(dim=1).max() <= 1 + 1e-6 for matrix in windows)
    counted = np.where(np.array(counted) > 0.5, counted, 0)
    expected = 1 - np.average(squared, weights=counted)
    assert 0 < (counted > 0).sum() < counted.size
    assert 0.3 < expected < 0.9
    assert loss.item() == pytest.approx(expected, abs=2e-3)


def test_the_slope_of_windowed_ncc_is_the_one_of_differences():
    shape, generator = (6, 8, 6), torch.Generator().manual_seed(14)
    chosen = torch.randperm(288, generator=generator)[:230].sort().values
    target, weight = torch.rand(2, 230, generator=generator, dtype=torch.float64)
    warped = torch.rand(230, generator=generator, dtype=torch.float64).requires_grad_()
    windows = [matrix.double() for matrix in gaussian_windows(shape, 1.2, 2)]
    assert torch.autograd.gradcheck(
        lambda moved: 3 * windowed_ncc_loss(target, moved, 0.5 + weight, chosen, shape, windows),
        warped,
    )


def test_flat_windows_count_as_no_match_and_give_no_gradient_to_noise():
    shape = (8, 8, 8)
    target = 1e-3 * noise(512, seed=7)
    warped = (1e-3 * noise(512, seed=8)).requires_grad_()
    loss = windowed_ncc_loss(target, warped, torch.ones(512), **whole_grid_windows(shape))
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-3)
    assert warped.grad.abs().max() < 1e-3


def loss_of_shift(similarity: str, shift_mm: float, texture: np.ndarray) -> tuple[float, float]:
    """Loss of reading a volume shifted by ``shift_mm`` along x, and its slope in mm.

    The moving texture is the fixed one, 3 mm further along x.
    """
    grid = Grid(texture.shape, np.diag([2.0, 2, 2, 1]))
    frame = Frame(tuple(grid.center_mm), 20.0)
    inside = torch.ones(texture.shape)
    image = torch.from_numpy(texture)
    channels = {
        'mind': lambda: mind_features(image),
        'local-ncc': lambda: locally_normalised(image, inside > 0, np.full(3, 2.0))[None],
    }.get(similarity, lambda: image[None])()
    there = np.eye(4)
    there[0, 3] = -3.0
    fixed = Volume(channels, grid, frame, np.eye(4))
    moving = Volume(channels, grid, frame, there)
    axis = torch.linspace(-0.5, 0.5, 12)
    points = torch.cartesian_prod(axis, axis, axis)
    shift = torch.zeros(3)
    shift[0] = shift_mm / frame.scale_mm
    shift.requires_grad_()
    target, warped = fixed.sample(points), moving.sample(points + shift)
    weight = torch.ones(len(points))
    if similarity == 'mind':
        loss = mean_difference_loss(target, warped, weight)
    elif similarity == 'windowed-ncc':
        windows = whole_grid_windows((12, 12, 12))
        loss = windowed_ncc_loss(target[:, 0], warped[:, 0], weight, **windows)
    else:
        loss = global_ncc_loss(target, warped, weight)
    loss.backward()
    return loss.item(), shift.grad[0].item() / frame.scale_mm


@pytest.mark.parametrize('similarity', ['ncc', 'local-ncc', 'windowed-ncc', 'mind'])
def test_the_gradient_leads_to_the_truth(similarity):
    # Contrast well above the variance at which a window counts as flat.
    texture = (5 if similarity == 'windowed-ncc' else 1) * blobs(sigma=2.5)
    at_truth, _ = loss_of_shift(similarity, 3.0, texture)
    before, slope_before = loss_of_shift(similarity, 1.5, texture)
    beyond, slope_beyond = loss_of_shift(similarity, 4.5, texture)
    assert slope_before < 0 < slope_beyond
    assert at_truth < 0.3 * min(before, beyond)
    step = 0.02
    around = [loss_of_shift(similarity, 1.5 + sign * step, texture)[0] for sign in (-1, 1)]
    assert slope_before == pytest.approx((around[1] - around[0]) / (2 * step), rel=0.1)


# --- volumes and features -----------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['RAS', 'oblique LAS', 'anisotropic'])
@pytest.mark.parametrize('world', [np.eye(4), AFFINE], ids=['fixed', 'moving'])
def test_a_volume_is_read_where_the_world_says(kind, world):
    spacing = (1.8, 1.9, 5.0) if kind == 'anisotropic' else 2.0
    shape = (44, 38, 12) if kind == 'anisotropic' else (40, 36, 30)
    grid = make_grid('RAS' if kind == 'anisotropic' else kind, shape, spacing)
    data = intensity(grid.points()).astype(np.float32)
    volume = Volume(torch.from_numpy(data)[None], grid, FRAME, world)
    points = 0.7 * (2 * torch.rand(400, 3, generator=torch.Generator().manual_seed(1)) - 1)
    world_points = apply_affine(world, points.numpy() * FRAME.scale_mm + np.array(FRAME.center_mm))
    index = grid.to_index(world_points).T
    expected = ndimage.map_coordinates(data, index, order=1, mode='constant')
    inside = ((index > 0) & (index < np.array(grid.shape)[:, None] - 1)).all(axis=0)
    found = volume.sample(points).numpy()[:, 0]
    assert inside.sum() > 100
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.02)
    assert volume.sample(torch.full((1, 3), 5.0)).item() == 0


def test_smoothing_is_scipy_s():
    texture = blobs(seed=3)
    found = smooth(torch.from_numpy(texture)[None], [1.2, 0.0, 2.0])[0].numpy()
    expected = ndimage.gaussian_filter(texture, [1.2, 0, 2], mode='nearest', truncate=3)
    # The kernels are cut within a voxel of each other.
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_local_normalisation_takes_out_bias_and_contrast():
    texture = torch.from_numpy(blobs((30, 30, 30), seed=4))
    mask = torch.zeros(texture.shape, dtype=torch.bool)
    mask[4:26, 4:26, 4:26] = True
    sigma = np.full(3, 3.0)
    plain = locally_normalised(texture, mask, sigma)
    ramp = torch.linspace(0, 2, 30)[:, None, None]
    biased = locally_normalised(5 * texture + ramp, mask, sigma)
    assert not plain[~mask].any()
    inside = plain[8:22, 8:22, 8:22]
    assert inside.mean().item() == pytest.approx(0, abs=0.1)
    assert inside.std().item() == pytest.approx(1, abs=0.15)
    core = biased[8:22, 8:22, 8:22]
    assert torch.corrcoef(torch.stack([inside.ravel(), core.ravel()]))[0, 1] > 0.98


def test_what_is_outside_the_mask_changes_nothing_inside():
    texture = torch.from_numpy(blobs(seed=5))
    mask = torch.zeros(texture.shape, dtype=torch.bool)
    mask[5:15, 5:15, 5:15] = True
    skull = torch.where(mask, texture, 50.0)
    sigma = np.full(3, 2.0)
    torch.testing.assert_close(
        locally_normalised(skull, mask, sigma)[mask],
        locally_normalised(texture, mask, sigma)[mask],
    )


def test_flat_regions_stay_flat():
    flat = 0.5 + 1e-3 * noise(12, 12, 12, seed=6)
    mask = torch.ones(12, 12, 12, dtype=torch.bool)
    assert locally_normalised(flat, mask, np.full(3, 2.0)).abs().max() < 0.3


def test_mind_features_have_twelve_channels_that_know_no_contrast():
    texture = torch.from_numpy(blobs(seed=7))
    features = mind_features(texture)
    assert features.shape == (12, *texture.shape)
    assert features.min() >= 0 and features.max() == 1
    torch.testing.assert_close(features.max(dim=0).values, torch.ones(texture.shape))
    assert features.std() > 0.1
    torch.testing.assert_close(mind_features(1 - texture), features, atol=1e-4, rtol=0)
    torch.testing.assert_close(mind_features(40 * texture + 7), features, atol=1e-3, rtol=0)


def test_mind_features_are_the_distances_of_patches():
    texture = torch.from_numpy(blobs((16, 16, 16), seed=8))
    features, at = mind_features(texture), (8, 7, 9)
    directions = np.concatenate([np.eye(3), -np.eye(3)]).astype(int)
    offsets = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing='ij'), -1).reshape(-1, 3)
    kernel = np.exp(-(offsets**2).sum(axis=1) / (2 * 0.8**2))
    kernel /= kernel.sum()
    values = texture.numpy().astype(float)
    distances = []
    for i in range(6):
        for j in range(i):
            if directions[i] @ directions[j] == 0:
                sides = [values[tuple((at + offsets + 2 * directions[k]).T)] for k in (i, j)]
                distances.append(((sides[0] - sides[1]) ** 2) @ kernel)
    distances = np.array(distances) - min(distances)
    expected = np.exp(-distances / distances.mean())
    np.testing.assert_allclose(sorted(features[:, 8, 7, 9].tolist()), sorted(expected), atol=0.02)


# --- sampling -----------------------------------------------------------------------------------


def draws(ndim: int, ratio: int, count: int = 1) -> list[Lattice]:
    generator = torch.Generator().manual_seed(ratio)
    extent = torch.tensor([1.0, 0.63, 0.85])[:ndim]
    return [Lattice.draw(extent, 0.21, ratio, generator) for _ in range(count)]


@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('ratio', [1, 2, 3])
def test_the_nodes_evaluated_are_those_that_interpolation_reads(ndim, ratio):
    (lattice,) = draws(ndim, ratio)
    count = int(np.prod(lattice.sample_shape))
    chosen = torch.rand(count, generator=torch.Generator().manual_seed(9)) < 0.02
    wanted = lattice.nodes_for(chosen).view(lattice.node_shape)
    read = torch.zeros(lattice.node_shape, dtype=torch.bool)
    matrices = lattice.to_samples(torch.device('cpu'))
    for flat in chosen.nonzero()[:, 0].tolist():
        index = np.unravel_index(flat, lattice.sample_shape)
        rows = [matrix[i] != 0 for matrix, i in zip(matrices, index, strict=True)]
        taps = rows[0]
        for row in rows[1:]:
            taps = taps[..., None] & row
        read |= taps
    assert not (read & ~wanted).any()
    assert chosen.any() and wanted.sum() < wanted.numel()
    if ratio == 1:
        assert torch.equal(wanted, read)
    # All samples of a node's cell share their taps: a whole cell wants exactly what it reads.
    whole = torch.zeros(lattice.sample_shape, dtype=torch.bool)
    whole[(slice(ratio, 2 * ratio),) * ndim] = True
    expected = torch.zeros(lattice.node_shape, dtype=torch.bool)
    expected[(slice(1, 5),) * ndim] = True
    assert torch.equal(lattice.nodes_for(whole.flatten()).view(lattice.node_shape), expected)


@pytest.mark.parametrize('ratio', [1, 2, 3])
def test_samples_reach_both_ends_of_the_box_at_every_draw(ratio):
    for lattice in draws(3, ratio, count=20):
        spacing = lattice.step / ratio
        for axis, half in zip(lattice.samples, (1.0, 0.63, 0.85), strict=True):
            assert axis[0] - spacing / 2 <= -half + 1e-5
            assert axis[-1] + spacing / 2 >= half - 1e-5
            assert torch.allclose(axis.diff(), torch.tensor(spacing), atol=1e-5)


def test_draws_differ_and_prefer_no_position():
    first = torch.stack([lattice.samples[0][0] for lattice in draws(3, 2, count=200)])
    assert first.max() - first.min() > 0.9 * 0.21
    thirds = torch.histc(first, 3) / len(first)
    assert (thirds > 0.2).all()


def test_slabs_hold_their_part_and_in_time_everything():
    generator = torch.Generator().manual_seed(1)
    lattice = Lattice.draw(torch.tensor([1.0, 0.7, 0.9]), 0.03, 2, generator)
    shape = lattice.sample_shape
    middle = torch.zeros(shape, dtype=torch.bool)
    middle[8:-8, 8:-8, 8:-8] = True
    samples = middle.flatten().nonzero()[:, 0]
    often = torch.zeros(len(samples))
    for _ in range(60):
        chosen = lattice.in_slabs(samples, 1 / 3, generator)
        assert 0.2 < len(chosen) / len(samples) < 0.5
        often += torch.isin(samples, chosen)
        # Whole planes across one axis, several in a row.
        planes = [
            torch.zeros(n).bool().index_fill(0, i, True)
            for n, i in zip(shape, torch.unravel_index(chosen, shape), strict=True)
        ]
        across = [int(plane.sum()) for plane in planes]
        whole = [n - 16 for n in shape]
        assert sum(a < w for a, w in zip(across, whole, strict=True)) == 1
    assert often.min() >= 5 and often.max() <= 35, 'no position is preferred'


def test_what_slabs_would_miss_is_looked_at_whole():
    generator = torch.Generator().manual_seed(2)
    lattice = Lattice.draw(torch.tensor([1.0, 1.0, 1.0]), 0.03, 1, generator)
    one = torch.tensor([12345])
    assert all(torch.equal(lattice.in_slabs(one, 0.1, generator), one) for _ in range(20))


@pytest.mark.parametrize('ratio', [2, 3])
def test_no_sample_of_a_mask_is_passed_over(ratio):
    grid = make_grid('RAS', (28, 26, 24), 2.6)
    center = np.array(FRAME.center_mm)
    distances = [np.linalg.norm(grid.points() - center - shift, axis=-1) for shift in (0, 6)]
    volumes = [
        Volume(torch.from_numpy(distance < 13)[None].float(), grid, FRAME, np.eye(4))
        for distance in distances
    ]
    extent = torch.tensor([0.9, 0.8, 0.75])
    occupied = Occupancy.of(volumes, extent, 0.21, ratio)
    generator = torch.Generator().manual_seed(13)
    for _ in range(10):
        lattice = Lattice.draw(extent, 0.21, ratio, generator)
        points = lattice.sample_points()
        inside = torch.stack([v.sample(points)[:, 0] for v in volumes]).amax(dim=0) > 0.5
        near = occupied.at(lattice.samples)
        passed_over = torch.ones(len(points), dtype=torch.bool)
        passed_over[near] = False
        assert inside.sum() > 100
        assert not (inside & passed_over).any()
        assert len(near) < 0.6 * len(points)


@pytest.mark.parametrize('ratio', [2, 3])
def test_cubic_interpolation_reproduces_quadratics(ratio):
    (lattice,) = draws(3, ratio)

    def quadratic(points: torch.Tensor) -> torch.Tensor:
        x, y, z = points.unbind(-1)
        return torch.stack([x**2 - 0.7 * y, 0.5 * y**2 + x, z**2 + 0.3 * x * y], dim=-1)

    at_nodes = quadratic(lattice.node_points()).view(*lattice.node_shape, 3)
    found = separable(at_nodes, lattice.to_samples(torch.device('cpu'))).reshape(-1, 3)
    torch.testing.assert_close(found, quadratic(lattice.sample_points()), atol=1e-5, rtol=0)


@pytest.mark.parametrize('kind', ['linear', 'cubic'])
def test_the_code_at_the_nodes_is_the_one_that_points_read(kind):
    (lattice,) = draws(3, 2)
    code, extent = noise(6, 6, 6, 4, seed=11), torch.tensor([1.0, 0.63, 0.85])
    nodes = torch.maximum(torch.minimum(lattice.node_points(), extent), -extent)
    torch.testing.assert_close(
        lattice.read_code(code, extent, kind), read_grid(code, nodes, kind), atol=1e-5, rtol=0
    )


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
        loss, determinants, gradient = gradient_inverse_consistency(exact, points, inverse)
        assert loss.item() == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(determinants, torch.full((10,), expected), atol=1e-5, rtol=0)
        wanted = (torch.linalg.inv(matrix) if inverse else matrix) - torch.eye(3)
        torch.testing.assert_close(gradient[3], wanted)
    one_way = linear_maps(matrix, torch.eye(3))
    loss, *_ = gradient_inverse_consistency(one_way, points)
    assert loss.item() == pytest.approx(((matrix - torch.eye(3)) ** 2).mean().item(), rel=1e-4)


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
