"""Whole grids from spline lattices: as few nodes as the map asks for, and within the tolerance."""

import numpy as np
import pytest
import torch
from data import make_grid

from nephi_pipe import dense
from nephi_pipe.dense import DenseMap, FieldSide
from nephi_pipe.field.config import FieldConfig
from nephi_pipe.field.deformation import NePhiField
from nephi_pipe.geometry import Frame
from nephi_pipe.images import Image
from nephi_pipe.result import Registration

FIELD = FieldConfig(frequencies=4, width=16, global_channels=4, local_channels=4, local_size=6)
EXTENT = [1.0, 0.8, 0.9]
SCALE_MM = 90.0


@pytest.fixture
def side() -> FieldSide:
    """A smooth map of a few mm, in a frame of 180 mm."""
    generator = torch.Generator().manual_seed(3)
    field = NePhiField(FIELD, generator, EXTENT)
    with torch.no_grad():
        field.frequencies.mul_(0.03)
        field.code.local_code.zero_()  # else too rough for any lattice
        for network in field.networks:
            last = list(network.parameters())[-2:]
            for parameter in last:
                parameter.normal_(0, 0.02, generator=generator)
    return FieldSide(field, Frame((3.0, -2.0, 5.0), SCALE_MM), np.eye(4), inverted=False)


def test_the_code_s_nodes_are_as_far_apart_as_the_frame_says(side):
    apart = [2 * SCALE_MM * half / (FIELD.local_size - 1) for half in EXTENT]
    assert side.code_spacing_mm == pytest.approx(np.prod(apart) ** (1 / 3))


class Elsewhere(torch.Tensor):
    """A tensor that behaves as one in the memory of a GPU does."""

    def numpy(self):
        raise TypeError("can't convert a tensor on another device to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_a_registration_is_set_up_while_its_field_is_on_another_device(side):
    grid = make_grid()
    mask = Image(np.ones(grid.shape, dtype=bool), grid)
    expected = side.box(grid)
    side.field.extent = side.field.extent.as_subclass(Elsewhere)
    found = Registration(side.field, side.frame, np.eye(4), grid, grid, mask, mask)
    found.forget_lattices()
    np.testing.assert_array_equal(found.inverse._side.box(grid), expected)


@pytest.mark.parametrize('spacing', [0.5, 0.8, 1.7])
def test_a_fine_grid_is_read_from_few_nodes_within_the_tolerance(side, monkeypatch, spacing):
    built = []
    build = DenseMap._build

    def counted(self, *arguments, **options):
        built.append(build(self, *arguments, **options))
        return built[-1]

    monkeypatch.setattr(DenseMap, '_build', counted)
    grid = make_grid('oblique LAS', (40, 36, 30), spacing, center=(3.0, -2.0, 5.0))
    mask = np.ones(grid.shape, dtype=bool)
    found = DenseMap(side, grid, mask).displacement(grid)
    index = np.argwhere(mask)[::37]
    truth = side.displacement_at(grid.to_world(index))
    assert np.abs(truth).max() > 1
    error = np.linalg.norm(found[tuple(index.T)] - truth, axis=1).max()
    assert error < 1.2 * dense.LATTICE_TOLERANCE_VOXELS * spacing
    if spacing == 0.5:
        assert built[-1].values[..., 0].numel() < mask.size / 8


@pytest.mark.parametrize(('local_size', 'first'), [(6, 2.4), (16, 1.5), (40, 1.0)])
def test_the_first_base_lattice_follows_the_code(local_size, first):
    config = FieldConfig(
        frequencies=4, width=16, global_channels=4, local_channels=4, local_size=local_size
    )
    field = NePhiField(config, torch.Generator().manual_seed(0), EXTENT)
    side = FieldSide(field, Frame((0.0, 0.0, 0.0), 30.0), np.eye(4), inverted=False)
    grid = make_grid('RAS', (8, 8, 8), 2.0)
    found = DenseMap(side, grid, np.ones(grid.shape, dtype=bool))
    found.displacement_near(np.zeros((1, 3)))
    assert found._base_mm == first
