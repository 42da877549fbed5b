"""Where a step looks: lattices, samples, slabs and interpolation between nodes."""

import numpy as np
import pytest
import torch
from data import make_grid
from textures import FRAME, noise

from nephi_pipe.field.interpolate import read_grid, separable
from nephi_pipe.learning.sampling import Lattice, Occupancy
from nephi_pipe.learning.volume import Volume


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
    lattice = Lattice.draw(torch.tensor([1.0, 0.7, 0.9]), 0.05, 2, generator)
    shape = lattice.sample_shape
    middle = torch.zeros(shape, dtype=torch.bool)
    middle[5:-5, 5:-5, 5:-5] = True
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
        whole = [n - 10 for n in shape]
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
