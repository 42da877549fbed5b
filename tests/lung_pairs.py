"""Two scans of a chest in two breath states, of which the truth is known, as whole images."""

from __future__ import annotations

from functools import cache

import numpy as np
from chest import Chest, chest_grid, make_chest

from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image
from nephi_pipe.metrics import random_points
from nephi_pipe.motion import LandmarkMotion
from nephi_pipe.simulate import SimulatedPair
from nephi_pipe.simulate_breathing import breathing_pair

SPACING_MM = 6.0


def breath(points: np.ndarray) -> np.ndarray:
    """The domes of the diaphragm go down by up to 35 mm, the ribs forward by up to 10 mm."""
    x, y, z = np.moveaxis(points, -1, 0)
    depth = np.clip((90 - z) / 200, 0, 1)
    dome = np.exp(-(((np.abs(x) - 75) / 45) ** 2) - (y / 60) ** 2)
    return points + np.stack([0 * x, 10 * depth, -35 * depth * dome], axis=-1)


@cache
def breathing_chest(
    spacing: tuple[float, float, float] = (SPACING_MM,) * 3, contrast_hu: float = 0.0
) -> SimulatedPair:
    """Expiration fixed, inspiration moving, 200 landmarks; the labels are the lungs, 1 inside."""
    chest: Chest = make_chest(chest_grid(spacing), contrast_hu=contrast_hu)
    grid, lungs = chest.image.grid, chest.lungs > 0
    start = random_points(grid, lungs, 300, seed=1)
    motion = LandmarkMotion(start, breath(start), grid.to_world(np.argwhere(lungs)))
    return breathing_pair(chest.image, Image(lungs, grid), motion, landmarks=200)


def above(image: Image, height_mm: float) -> Image:
    """The part of an image above a height of the world; its third axis runs upwards."""
    first = int(np.ceil(image.grid.to_index(np.array([0.0, 0.0, height_mm]))[2]))
    upper = image.grid.cropped((0, 0, first), image.grid.shape)
    return Image(image.data[:, :, first:], upper)


def turned(image: Image, axes: str) -> Image:
    """The same image with its voxels stored in another order, such as 'LPS'."""
    import nibabel as nib

    codes = nib.orientations.axcodes2ornt(axes)
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.grid.affine), codes
    )
    data = nib.orientations.apply_orientation(image.data, change)
    affine = image.grid.affine @ nib.orientations.inv_ornt_aff(change, image.grid.shape)
    return Image(np.ascontiguousarray(data), Grid(data.shape, affine))


def thick_slices(image: Image, count: int) -> Image:
    """Each so many slices averaged to one, as a scanner's thick slices are."""
    shape = np.array(image.data.shape)
    shape[2] //= count
    data = image.data[:, :, : shape[2] * count].reshape(*shape, count).mean(axis=-1)
    affine = image.grid.affine @ np.diag([1.0, 1.0, count, 1.0])
    affine[:3, 3] = image.grid.to_world(np.array([0, 0, (count - 1) / 2]))
    return Image(data.astype(np.float32), Grid(tuple(shape.tolist()), affine))


def moved(image: Image, shift_mm: tuple[float, float, float]) -> Image:
    """The same image elsewhere in the world, as after another position of the table."""
    affine = image.grid.affine.copy()
    affine[:3, 3] += shift_mm
    return Image(image.data, Grid(image.grid.shape, affine))


def of_side(mask: Image, side: str) -> Image:
    """The part of a mask that lies on the person's 'right' or 'left' of the world's origin."""
    x = mask.grid.points()[..., 0]
    return mask.with_data(np.where((x > 0) == (side == 'right'), mask.data, 0))
