"""A known pair behind a known pre-alignment: a pose after a diffeomorphism."""

from pathlib import Path

import numpy as np

from nephi_pipe.displacement import DisplacementField
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import Image
from nephi_pipe.simulate import random_diffeomorphism
from nephi_pipe.transforms import write_transform

POSE = np.array(
    [[0.98, -0.17, 0.0, 6.0], [0.17, 0.98, 0.0, -9.0], [0, 0, 1.05, 4.0], [0, 0, 0, 1]]
)


def in_pose(image):
    """The image elsewhere in the world."""
    return Image(image.data, Grid(image.grid.shape, POSE @ image.grid.affine))


def known_map(image):
    """The diffeomorphism, on the image's grid."""
    return random_diffeomorphism(image.grid, magnitude_mm=4.0, smoothness_mm=24.0, seed=9)


def as_field(diffeomorphism, image):
    """The diffeomorphism as a field that reaches beyond the image."""
    grid = image.grid.cropped((-2, -2, -2), np.array(image.grid.shape) + 2).resampled(1.5)
    return DisplacementField(diffeomorphism.map_points(grid.points()) - grid.points(), grid)


def as_files(lattice, diffeomorphism, posed, folder: Path):
    """The pre-alignment and its way back as ITK has them."""
    grid = posed.grid.resampled(1.5)
    back = np.linalg.inv(POSE)
    there = diffeomorphism.inverse_points(apply_affine(back, grid.points()))
    vectors = apply_affine(POSE, there) - grid.points()
    return (
        write_transform(folder / 'pre.h5', POSE, lattice),
        write_transform(folder / 'back.h5', back, DisplacementField(vectors, grid)),
    )
