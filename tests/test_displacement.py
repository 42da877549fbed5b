"""Stored fields: coarse enough to be small, fine enough to be right, over the whole picture."""

import nitransforms
import numpy as np
import pytest
from data import GRIDS, SmoothWarp, make_grid, random_points

from nephi_pipe.displacement import DisplacementField, field_grid, sample_field
from nephi_pipe.geometry import Grid
from nephi_pipe.transforms import write_transform

SMOOTH = SmoothWarp(4.0, 25.0)


def sampled(warp: SmoothWarp, grid: Grid, **options) -> tuple[DisplacementField, float]:
    """The warp stored on a lattice over a grid."""
    return sample_field(warp.on_grid, grid, at_points=warp.displacement, **options)


def everywhere(grid: Grid, count: int = 4000) -> np.ndarray:
    """Points anywhere in the field of view, up to the outer edges of the voxels."""
    return random_points(grid, count, margin=-0.5, seed=99)


@pytest.fixture(params=GRIDS)
def grid(request):
    """A fixed grid of every kind."""
    return GRIDS[request.param]


def test_measured_error_is_the_error_in_the_whole_field_of_view(grid):
    field, error = sampled(SMOOTH, grid)
    points = everywhere(grid)
    apart = np.linalg.norm(field.displacement(points) - SMOOTH.displacement(points), axis=-1)
    assert 0.5 * error < apart.max() < 1.1 * error
    assert 0.02 < error < 0.05
    assert np.allclose(field.grid.direction, grid.direction)
    assert (field.grid.spacing > 3.9).all()


def test_nitransforms_reads_a_coarse_field_up_to_the_outer_voxels(grid, tmp_path):
    field, _ = sampled(SMOOTH, grid)
    path = write_transform(tmp_path / 'x.h5', np.eye(4), field)
    points = random_points(grid, 4000, margin=0)
    mapped = nitransforms.manip.load(path, fmt='h5').map(points)
    assert np.abs(mapped - SMOOTH.map_points(points)).max() < 0.05


@pytest.mark.parametrize('tolerance', [0.2, 0.05, 0.01])
def test_spacing_follows_the_tolerance(tolerance):
    field, error = sampled(SMOOTH, GRIDS['RAS'], tolerance_mm=tolerance)
    coarser = field_grid(GRIDS['RAS'], 1.3 * field.grid.spacing[0])
    apart = DisplacementField(SMOOTH.on_grid(coarser), coarser).displacement(
        everywhere(GRIDS['RAS'])
    ) - SMOOTH.displacement(everywhere(GRIDS['RAS']))
    assert error <= tolerance
    assert field.grid.spacing[0] == 6 or np.linalg.norm(apart, axis=-1).max() > tolerance


def test_a_rough_field_gets_the_finest_lattice_and_an_honest_error():
    rough = SmoothWarp(1.0, 1.5)
    field, error = sampled(rough, GRIDS['RAS'])
    assert np.allclose(field.grid.spacing, 0.7)
    assert error > 0.05


def test_errors_outside_of_the_mask_do_not_count():
    grid = GRIDS['RAS']
    middle = np.zeros(grid.shape, dtype=bool)
    middle[14:26, 12:24, 10:20] = True
    center = grid.center_mm

    def rough_outside(points: np.ndarray) -> np.ndarray:
        far = np.linalg.norm(points - center, axis=-1, keepdims=True) > 25
        return SMOOTH.displacement(points) + far * np.sin(points)

    def on_grid(lattice: Grid) -> np.ndarray:
        return rough_outside(lattice.points())

    inside, error = sample_field(on_grid, grid, at_points=rough_outside, mask=middle)
    whole, whole_error = sample_field(on_grid, grid, at_points=rough_outside)
    assert error < 0.05 < whole_error
    assert inside.grid.spacing[0] > 2 * whole.grid.spacing[0]


def test_native_spacing_has_a_node_in_every_voxel(grid):
    field, error = sampled(SMOOTH, grid, spacing='native')
    assert field.grid.shape == tuple(n + 6 for n in grid.shape)
    assert np.allclose(field.grid.points()[3:-3, 3:-3, 3:-3], grid.points(), atol=1e-9)
    assert np.allclose(field.displacement(grid.points()), SMOOTH.on_grid(grid), atol=1e-4)
    assert error > 0


def test_given_spacing_is_used(grid):
    field, _ = sampled(SMOOTH, grid, spacing=7.0)
    assert np.allclose(field.grid.spacing, 7.0)


def test_a_sheared_grid_gets_a_rectangular_lattice_that_covers_it():
    affine = GRIDS['oblique'].affine.copy()
    affine[:3, 0] += 0.4 * affine[:3, 1]
    sheared = Grid((30, 30, 30), affine)
    lattice = field_grid(sheared, 3.0)
    assert np.allclose(lattice.direction.T @ lattice.direction, np.eye(3))
    index = lattice.to_index(sheared.corners())
    assert (index > 2).all() and (index < np.array(lattice.shape) - 3).all()


def test_lattice_of_a_coarse_image_may_be_finer_than_its_voxels():
    grid = make_grid('LAS', (20, 20, 20), 4.2)
    field, error = sampled(SmoothWarp(3.0, 10.0), grid)
    assert error < 0.05
    assert field.grid.spacing[0] < 4.2


def test_vectors_must_fit_their_grid():
    with pytest.raises(ValueError, match='vectors of shape'):
        DisplacementField(np.zeros((3, 3, 3, 3)), GRIDS['RAS'])
