"""How alike images are, and the volumes and features that are compared."""

import numpy as np
import pytest
import torch
from data import AFFINE, AXES, intensity, make_grid
from scipy import ndimage
from textures import FRAME, blobs, noise

from nephi_pipe.geometry import Frame, Grid, apply_affine
from nephi_pipe.learning.similarity import (
    gaussian_windows,
    global_ncc_loss,
    mean_difference_loss,
    windowed_ncc_loss,
)
from nephi_pipe.learning.volume import Volume, locally_normalised, mind_features, smooth
from nephi_pipe.presets import preset
from nephi_pipe.presets.preparation import Prepared, pair_builder


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


def mind_pair(fixed: Grid, moving: Grid, world: np.ndarray):
    """The volumes by which `register` compares the same object on two grids."""
    sides = []
    for grid, to_fixed in ((fixed, np.eye(4)), (moving, np.linalg.inv(world))):
        picture = intensity(apply_affine(to_fixed, grid.points())).astype(np.float32) / 200
        sides.append(Prepared(picture, grid, np.ones(grid.shape, dtype=bool), None))
    settings = preset('other').optimisation
    build = pair_builder(*sides, world, FRAME, settings, 'cpu')
    return build(settings.levels[-1])


@pytest.mark.parametrize('posed', [False, True])
@pytest.mark.parametrize(
    ('axes', 'spacing', 'most'),
    [*[(axes, 2.0, 0.02) for axes in AXES], ('PIR', 1.5, 0.06), ('LPS', (1.6, 3.5, 1.8), 0.1)],
)
def test_mind_features_do_not_depend_on_how_an_image_is_stored(axes, spacing, most, posed):
    counts = tuple(np.ceil(80 / np.broadcast_to(spacing, 3)).astype(int).tolist())
    world = AFFINE if posed else np.eye(4)
    center = tuple(apply_affine(world, np.array([5.0, -12.0, 20.0])).tolist())
    pair = mind_pair(
        make_grid('RAS', (40, 40, 40)), make_grid(axes, counts, spacing, center), world
    )
    points = 18 * noise(3000, 3).clamp(-1, 1) + torch.tensor([5.0, -12.0, 20.0])
    points = (points - torch.tensor(FRAME.center_mm)) / FRAME.scale_mm
    fixed, moving = (volume.sample(points)[:, :-1] for volume in (pair.fixed, pair.moving))
    elsewhere = pair.moving.sample(points.roll(1, dims=0))[:, :-1]
    assert (fixed - elsewhere).abs().mean() > 0.15
    turned = axes.startswith('oblique') or posed
    assert (fixed - moving).abs().mean() < most + 0.04 * turned


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
