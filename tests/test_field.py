"""The pair of maps: values, derivatives and interpolation against independent computations."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from nephi_pipe.field.config import COMPACT, PUBLISHED, FieldConfig
from nephi_pipe.field.deformation import NePhiField
from nephi_pipe.field.interpolate import (
    code_weights,
    cubic_weights,
    linear_weights,
    read_grid,
    read_grid_with_gradient,
    separable,
    spline_weights,
)
from nephi_pipe.field.latent import SOFTENED_NODES, LatentCode
from nephi_pipe.field.lattice import FrameLattice, build_lattice
from nephi_pipe.field.siren import ModulatedSiren
from nephi_pipe.learning.regularity import gradient_inverse_consistency

SMALL = FieldConfig(frequencies=6, width=8, global_channels=3, local_channels=4, local_size=5)

READINGS = ('linear', 'cubic')


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_field(ndim: int = 3, seed: int = 0, extent=None, reading='linear') -> NePhiField:
    """A field in float64 that is not the identity: random output layers and codes."""
    config = dataclasses.replace(SMALL, ndim=ndim, code_reading=reading)
    field = NePhiField(config, generator(seed), extent).double()
    with torch.no_grad():
        for network in field.networks:
            network.output.weight.normal_(0, 0.05, generator=generator(seed + 1))
            network.output.bias.normal_(0, 0.05, generator=generator(seed + 2))
        for code in field.code.parameters():
            code.normal_(0, 0.3, generator=generator(seed + 3))
    return field


def points_inside(count: int, ndim: int = 3, reach: float = 0.9) -> torch.Tensor:
    draw = torch.rand(count, ndim, generator=generator(9), dtype=torch.float64)
    return (draw * 2 - 1) * reach


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.abs().max().clamp_min(1e-30)
    return float(((found - expected).abs().max() / scale).detach())


def gradient_of(function, points: torch.Tensor, create_graph: bool = False) -> torch.Tensor:
    """Jacobians (N, d, d) of a map of points by backward passes through each component."""
    values = function(points)
    rows = [
        torch.autograd.grad(values[:, i].sum(), points, retain_graph=True,
                            create_graph=create_graph)[0]
        for i in range(values.shape[1])
    ]  # fmt: skip
    return torch.stack(rows, dim=1)


# The maps


@pytest.mark.parametrize('ndim', [2, 3])
def test_a_fresh_field_is_the_identity_exactly(ndim) -> None:
    field = NePhiField(dataclasses.replace(SMALL, ndim=ndim), generator())
    points = points_inside(50, ndim).float()
    for inverse in (False, True):
        displacement, gradient = field.displacement_and_gradient(points, inverse)
        assert displacement.shape == (50, ndim) and gradient.shape == (50, ndim, ndim)
        assert not displacement.any() and not gradient.any()
        assert not field.displacement_in_chunks(points, inverse).any()


@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('inverse', [False, True])
@pytest.mark.parametrize('reading', READINGS)
def test_forward_mode_is_the_derivative(ndim, inverse, reading) -> None:
    field = make_field(ndim, reading=reading)
    points = points_inside(200, ndim).requires_grad_()
    value, gradient = field.displacement_and_gradient(points, inverse)
    expected = gradient_of(lambda at: field.displacement(at, inverse), points)
    assert expected.abs().max() > 0.5
    assert relative(gradient, expected) < 1e-9
    assert relative(value, field.displacement(points, inverse)) < 1e-12
    in_chunks = field.gradient_in_chunks(points.detach(), inverse)
    assert relative(in_chunks, expected) < 1e-9


def test_forward_mode_of_the_published_sizes() -> None:
    field = NePhiField(PUBLISHED, generator()).double()
    for network in field.networks:
        torch.nn.init.normal_(network.output.weight, std=0.02, generator=generator(1))
    points = points_inside(20).requires_grad_()
    expected = gradient_of(field.displacement, points)
    assert relative(field.displacement_and_gradient(points)[1], expected) < 1e-9


def test_outside_of_its_box_a_point_moves_like_the_nearest_inside() -> None:
    field = make_field(extent=[1.0, 0.5, 0.75])
    points = torch.tensor([[1.4, 0.2, -0.9], [0.3, 0.1, 0.2]], dtype=torch.float64)
    nearest = torch.tensor([[1.0, 0.2, -0.75], [0.3, 0.1, 0.2]], dtype=torch.float64)
    value, gradient = field.displacement_and_gradient(points)
    torch.testing.assert_close(value, field.displacement(nearest))
    assert not gradient[0][:, [0, 2]].any() and gradient[0][:, 1].all() and gradient[1].all()


@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('reading', READINGS)
def test_a_whole_lattice_is_as_point_by_point(ndim, reading) -> None:
    field = make_field(ndim, extent=[1.0, 0.6, 0.8][:ndim], reading=reading)
    axes = [torch.linspace(-1.2, 1.1, count, dtype=torch.float64) for count in (70, 80, 5)[:ndim]]
    points = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)
    for inverse in (False, True):
        found = field.displacement_on_axes(axes, inverse)
        expected = field.displacement(points.reshape(-1, ndim), inverse).view(points.shape)
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)


def test_both_directions_share_the_code_and_no_weights() -> None:
    field = make_field()
    points = points_inside(20)
    before = [field.displacement(points, inverse) for inverse in (False, True)]
    with torch.no_grad():
        field.networks[0].first.weight += 0.1
    after = [field.displacement(points, inverse) for inverse in (False, True)]
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    with torch.no_grad():
        field.code.global_code += 0.1
    assert not torch.equal(field.displacement(points, True), after[1])


def test_a_seed_gives_the_same_field_and_another_seed_another() -> None:
    def state(seed: int) -> torch.Tensor:
        field = NePhiField(SMALL, generator(seed))
        return torch.cat([value.ravel() for value in field.state_dict().values()])

    torch.manual_seed(1)
    first = state(3)
    torch.manual_seed(2)
    assert torch.equal(first, state(3))
    assert not torch.equal(first, state(4))


def test_sizes_of_the_named_configurations() -> None:
    def count(config: FieldConfig) -> int:
        network = ModulatedSiren(config, generator())
        return sum(parameter.numel() for parameter in network.parameters())

    # First synthesis and modulation layers 256 -> 128 and 320 -> 128, two hidden layers of each,
    # three outputs: the "about 0.14 million" of the paper.
    assert count(PUBLISHED) == (257 + 321 + 4 * 129) * 128 + 3 * 129 == 140_419
    assert count(COMPACT) == (129 + 193 + 4 * 65) * 64 + 3 * 65 == 37_443


def test_the_prior_is_the_paper_s() -> None:
    code = make_field().code
    local = code.local_code.detach().numpy()
    expected = np.linalg.norm(code.global_code.detach().numpy())
    expected += np.sqrt((local**2).sum(axis=-1)).mean()
    assert code.prior().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('ndim', [2, 3])
def test_a_code_is_softened_around_a_point_alone(ndim) -> None:
    size = 2 * SOFTENED_NODES + 3
    code = LatentCode(torch.zeros(3), torch.ones(*[size] * ndim, 2))
    code.soften(torch.zeros(1, ndim))
    torch.testing.assert_close(code.local_code.detach(), torch.ones(*[size] * ndim, 2))
    middle = (size // 2,) * ndim
    with torch.no_grad():
        code.local_code[middle] = 9.0
        code.local_code[(0,) * ndim] = 5.0
    code.soften(torch.zeros(1, ndim))
    # Half of a node and a quarter of either neighbour along each axis, all of it in the middle.
    assert code.local_code[middle][0].item() == pytest.approx(1 + 8 / 2**ndim)
    assert code.local_code[(0,) * ndim][0].item() == 5.0
    beside = (size // 2 + 1, *middle[1:])
    share = 1 - 1 / SOFTENED_NODES
    assert code.local_code[beside][0].item() == pytest.approx(1 + share * 4 / 2**ndim)


@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('reading', READINGS)
@pytest.mark.parametrize('inverse', [False, True])
def test_gradient_inverse_consistency_is_the_double_backward_one(ndim, reading, inverse) -> None:
    field = make_field(ndim, reading=reading)
    points = points_inside(64, ndim, reach=0.7).requires_grad_()
    parameters = [p for p in field.parameters() if p.requires_grad]

    def residual(at: torch.Tensor, inverse: bool) -> torch.Tensor:
        there = at + field.displacement(at, inverse)
        return there + field.displacement(there, not inverse) - at

    plain = gradient_of(lambda at: residual(at, inverse), points, True).square().mean()
    consistency = gradient_inverse_consistency(field, points.detach(), inverse)
    loss, determinants, found, apart = consistency
    assert plain.item() > 1e-3
    assert abs(loss.item() / plain.item() - 1) < 1e-9
    gradient = gradient_of(lambda at: field.displacement(at, inverse), points)
    torch.testing.assert_close(found, gradient)
    torch.testing.assert_close(determinants, torch.linalg.det(torch.eye(ndim) + gradient))
    torch.testing.assert_close(apart, residual(points, inverse))
    # The bias of the second map's output moves nothing that is measured.
    expected, found = (
        torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        for value in (plain, loss)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert relative(ours, theirs) < 1e-8


# Reading a grid of codes


@pytest.mark.parametrize('shape', [(4, 6), (3, 5, 4)])
def test_read_grid_is_grid_sample_with_border(shape) -> None:
    grid = torch.randn(*shape, 2, generator=generator(), dtype=torch.float64)
    points = points_inside(300, len(shape), reach=1.3)
    found = read_grid(grid, points)
    positions = points.flip(-1).view(1, *[1] * (len(shape) - 1), -1, len(shape))
    expected = F.grid_sample(
        grid.movedim(-1, 0)[None], positions, padding_mode='border', align_corners=True
    )
    torch.testing.assert_close(found, expected.view(2, -1).T, rtol=0, atol=1e-12)
    nodes = torch.tensor([[-1.0] * len(shape), [1.0] * len(shape)], dtype=torch.float64)
    ends = torch.stack([grid.reshape(-1, 2)[0], grid.reshape(-1, 2)[-1]])
    torch.testing.assert_close(read_grid(grid, nodes), ends, rtol=0, atol=0)


@pytest.mark.parametrize('shape', [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize('reading', READINGS)
def test_read_grid_is_twice_differentiable_in_grid_and_points(shape, reading) -> None:
    grid = torch.randn(*shape, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    points = points_inside(3, len(shape), reach=0.8).requires_grad_()
    read = partial(read_grid, kind=reading)
    assert torch.autograd.gradcheck(read, (grid, points))
    assert torch.autograd.gradgradcheck(read, (grid, points))
    assert torch.autograd.gradcheck(
        lambda *inputs: read_grid_with_gradient(*inputs, reading)[1], (grid, points)
    )


@pytest.mark.parametrize('reading', READINGS)
def test_the_derivative_of_read_grid_is_its_own_and_zero_outside(reading) -> None:
    grid = torch.randn(4, 5, 3, 2, generator=generator(), dtype=torch.float64)
    points = points_inside(100, 3, reach=1.4).requires_grad_()
    value, gradient = read_grid_with_gradient(grid, points, reading)
    for channel in range(2):
        expected = torch.autograd.grad(value[:, channel].sum(), points, retain_graph=True)[0]
        torch.testing.assert_close(gradient[:, :, channel].T, expected)
    outside = points.detach().abs().T > 1
    assert outside.any() and not gradient[outside].any()


def test_the_cubic_reading_is_scipy_s_spline_of_the_same_coefficients() -> None:
    grid = torch.randn(6, 5, 7, 1, generator=generator(), dtype=torch.float64)
    points = points_inside(200, 3, reach=0.4)
    index = (points.numpy() + 1) / 2 * (np.array([6, 5, 7]) - 1)
    expected = ndimage.map_coordinates(grid[..., 0].numpy(), index.T, order=3, prefilter=False)
    found = read_grid(grid, points, 'cubic')[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_cubic_reading_is_smooth_to_the_second_derivative() -> None:
    grid = torch.randn(9, 1, generator=generator(), dtype=torch.float64)
    # Around the inner nodes, at -0.75, -0.5, ...
    nodes = torch.linspace(-0.75, 0.75, 7, dtype=torch.float64)
    sides = [(nodes + step)[:, None].requires_grad_() for step in (-1e-9, 1e-9)]
    found = []
    for points in sides:
        value, gradient = read_grid_with_gradient(grid, points, 'cubic')
        second = torch.autograd.grad(gradient.sum(), points)[0]
        found.append(torch.cat([value, gradient[0], second], dim=1).detach())
    assert found[0][:, 2].abs().min() > 1e-2
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


# Weights of interpolation


@pytest.mark.parametrize(('weights', 'degree'), [(linear_weights, 1), (cubic_weights, 2)])
def test_weights_reproduce_polynomials(weights, degree) -> None:
    nodes = torch.arange(9, dtype=torch.float64)
    positions = torch.linspace(1, 7, 31, dtype=torch.float64)
    for power in range(degree + 1):
        found = weights(positions, 9) @ nodes**power
        torch.testing.assert_close(found, positions**power, rtol=0, atol=1e-12)
    assert (weights(positions, 9) @ nodes ** (degree + 1) - positions ** (degree + 1)).abs().max()
    held = weights(torch.tensor([-3.0, 20.0], dtype=torch.float64), 9) @ nodes
    torch.testing.assert_close(held, torch.tensor([0.0, 8.0], dtype=torch.float64))


@pytest.mark.parametrize('reading', READINGS)
def test_code_weights_read_as_points_are_read(reading) -> None:
    grid = torch.randn(6, 6, 6, 2, generator=generator(), dtype=torch.float64)
    axes = [torch.linspace(low, 1.2, 9, dtype=torch.float64) for low in (-1.1, -1.0, -0.7)]
    points = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1).reshape(-1, 3)
    matrices = [code_weights((axis + 1) / 2 * 5, 6, reading) for axis in axes]
    found = separable(grid, matrices).reshape(-1, 2)
    torch.testing.assert_close(found, read_grid(grid, points, reading), rtol=0, atol=1e-12)


def test_spline_weights_reproduce_cubics_and_their_slopes_far_from_the_ends() -> None:
    nodes = torch.arange(60, dtype=torch.float64)
    positions = torch.linspace(29, 31, 21, dtype=torch.float64)
    for power in range(4):
        values = ((nodes - 30) / 10) ** power
        expected = ((positions - 30) / 10) ** power
        torch.testing.assert_close(spline_weights(positions, 60) @ values, expected,
                                   rtol=0, atol=1e-11)  # fmt: skip
        slope = power / 10 * ((positions - 30) / 10) ** max(power - 1, 0)
        found = spline_weights(positions, 60, derivative=True) @ values
        torch.testing.assert_close(found, slope, rtol=0, atol=1e-11)


@pytest.mark.parametrize('nodes', [3, 4, 11])
def test_spline_weights_are_scipy_s_with_mirror_boundary(nodes) -> None:
    values = torch.randn(nodes, generator=generator(), dtype=torch.float64)
    positions = torch.linspace(0, nodes - 1, 40, dtype=torch.float64)
    expected = ndimage.map_coordinates(values.numpy(), positions.numpy()[None], mode='mirror')
    np.testing.assert_allclose(spline_weights(positions, nodes) @ values, expected, atol=1e-10)


def test_separable_applies_each_matrix_along_its_axis() -> None:
    values = torch.randn(3, 4, 2, 5, generator=generator(), dtype=torch.float64)
    matrices = [
        torch.randn(rows, columns, generator=generator(rows), dtype=torch.float64)
        for rows, columns in ((6, 3), (2, 4), (7, 2))
    ]
    expected = torch.einsum('ax,by,cz,xyzk->abck', *matrices, values)
    torch.testing.assert_close(separable(values, matrices), expected)


def test_a_lattice_shows_a_smooth_map_and_its_exact_determinant() -> None:
    shape, wave = (30, 26, 22), 2 * np.pi / 40

    def displacement(index: torch.Tensor) -> torch.Tensor:
        return 2.0 * torch.sin(wave * index.roll(1, dims=1))

    lattice = build_lattice(displacement, (0, 0, 0), (29, 25, 21), (4.0, 2.0, 3.0), shape)
    index = torch.tensor([[15, 12, 11], [8, 20, 7], [20, 6, 14]], dtype=torch.float64)
    near = lattice.at_voxels(index.long().numpy())
    np.testing.assert_allclose(near, displacement(index).numpy(), atol=5e-3)
    dense = lattice.read(7, 9)
    assert dense.shape == (2, 26, 22, 3)
    np.testing.assert_allclose(dense[1, 20, 7], near[1], atol=1e-12)
    box = tuple(slice(0, count) for count in shape)
    out = np.empty(shape, dtype=np.float64)
    lattice.determinant(box, out)
    slopes = 2.0 * wave * np.cos(wave * index.numpy())
    # Each component varies along one other axis, in a cycle: det = 1 + the product of the slopes.
    expected = 1 + slopes.prod(axis=1)
    np.testing.assert_allclose(out[tuple(index.long().numpy().T)], expected, atol=5e-3)


def test_a_frame_lattice_shows_the_field() -> None:
    field = make_field(extent=[1.0, 0.7, 0.5], reading='cubic').float()
    points = points_inside(400, reach=0.95) * field.extent.double()
    for inverse in (False, True):
        expected = field.displacement_in_chunks(points.float(), inverse).numpy()
        coarse, fine = (
            np.abs(FrameLattice(field, step, inverse).read(points.numpy()) - expected).max()
            for step in (0.04, 0.02)
        )
        # Errors of a cubic spline fall with the fourth power of the spacing.
        assert fine < 0.01 * np.abs(expected).max() and fine < 0.3 * coarse
