"""The known pair behind a known pre-alignment: a pose after a diffeomorphism."""

import numpy as np
import pytest
from registration_runs import make_tiny, quickly

from nephi_pipe.displacement import DisplacementField
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import Image
from nephi_pipe.simulate import random_diffeomorphism
from nephi_pipe.transforms import write_transform

POSE = np.array(
    [[0.98, -0.17, 0.0, 6.0], [0.17, 0.98, 0.0, -9.0], [0, 0, 1.05, 4.0], [0, 0, 0, 1]]
)


@pytest.fixture(scope='session')
def posed(pair):
    """The moving image elsewhere in the world: the affine to be found is ``POSE``."""
    grid = pair.moving.grid
    return Image(pair.moving.data, Grid(grid.shape, POSE @ grid.affine))


@pytest.fixture(scope='session')
def diffeomorphism(pair):
    """Of the fixed image's world, known with its inverse."""
    return random_diffeomorphism(pair.fixed.grid, magnitude_mm=4.0, smoothness_mm=24.0, seed=9)


@pytest.fixture(scope='session')
def lattice(pair, diffeomorphism):
    """The diffeomorphism as a field that reaches beyond the image."""
    grid = pair.fixed.grid.cropped((-2, -2, -2), np.array(pair.fixed.grid.shape) + 2)
    grid = grid.resampled(1.5)
    return DisplacementField(diffeomorphism.map_points(grid.points()) - grid.points(), grid)


@pytest.fixture(scope='session')
def pre_files(lattice, diffeomorphism, posed, tmp_path_factory):
    """The pre-alignment and its way back as ITK has them."""
    folder = tmp_path_factory.mktemp('pre')
    grid = posed.grid.resampled(1.5)
    back = np.linalg.inv(POSE)
    there = diffeomorphism.inverse_points(apply_affine(back, grid.points()))
    vectors = apply_affine(POSE, there) - grid.points()
    return (
        write_transform(folder / 'pre.h5', POSE, lattice),
        write_transform(folder / 'back.h5', back, DisplacementField(vectors, grid)),
    )


@pytest.fixture(scope='session')
def composed(pair, posed, pre_files):
    """A field of some steps before the pre-alignment, of tiny presets."""
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        return quickly(pair.fixed, posed, initial_transform=pre_files[0])
