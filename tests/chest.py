"""A chest of simple shapes in HU, with a known truth, on any grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from data import make_grid

from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import Image

SIZE_MM = (420.0, 330.0, 380.0)
"""A picture of all of it: air and a table around, bowels below, the neck above."""

TRACHEA_MM = np.array([[0.0, -10, z] for z in range(75, 185, 5)])
"""Points in the middle of the trachea."""

GAS_MM = np.array([-70.0, 25.0, -155.0])
NODULE_MM = np.array([85.0, 10.0, -20.0])


@dataclass(frozen=True)
class Chest:
    """A scan and its truth.

    Parameters
    ----------
    image
        HU.
    lungs
        1 in the right lung, 2 in the left one, vessels and nodule included.
    """

    image: Image
    lungs: np.ndarray


def chest_grid(spacing: float | tuple[float, float, float] = 4.0, axes: str = 'RAS') -> Grid:
    """A grid around the whole chest; ``spacing`` along the voxel axes."""
    sizes = np.broadcast_to(np.asarray(spacing, dtype=float), 3)
    extent = np.array(SIZE_MM)
    if axes == 'PIR':
        extent = extent[[1, 2, 0]]
    shape = tuple(int(n) for n in np.ceil(extent / sizes))
    return make_grid(axes, shape, tuple(sizes), (0.0, 0.0, 0.0))


def make_chest(
    grid: Grid | None = None,
    *,
    touching: bool = False,
    contrast_hu: float = 0.0,
    lung_hu: float = -850.0,
    noise_hu: float = 15.0,
    lungs: tuple[int, ...] = (1, 2),
) -> Chest:
    """Draw a chest.

    Parameters
    ----------
    grid
        Where; :func:`chest_grid` by default.
    touching
        A sheet of lung of 6 mm joins both in front of the heart.
    contrast_hu
        Brightness of a contrast agent in vessels and heart.
    lung_hu
        Air and tissue of the lungs; about -700 when expired.
    noise_hu
        Standard deviation.
    lungs
        Which lungs hold air; the other one is white.
    """
    grid = grid or chest_grid()
    points = grid.points()
    x, y, z = np.moveaxis(points, -1, 0)
    body = (np.abs(x) / 175) ** 2.5 + (np.abs(y) / 118) ** 2.5 < 1
    data = np.where(body, 30.0, -1000.0)
    slab = (np.abs(x) < 200) & (np.abs(y + 138) < 14)
    data[slab] = np.where(np.abs(y + 138) < 10, -900.0, 100.0)[slab]
    labels = _lungs(points, touching)
    labels[~np.isin(labels, lungs)] = 0
    inside = labels > 0
    blood = 40 + contrast_hu
    vessels = np.sin(x / 8) * np.sin(y / 10 + 1) * np.sin(z / 9 + 2) > 0.6
    data[inside] = np.where(vessels, blood, lung_hu + 0.3 * y)[inside]
    data[_ball(points, np.array([-10.0, 35.0, -60.0]), (40, 35, 40))] = blood
    data[_ball(points, NODULE_MM, (6.5, 6.5, 6.5))] = 30
    data[_ball(points, GAS_MM, (28, 28, 24))] = -995
    lumen, wall = _airways(points)
    data[wall], data[lumen] = 20, -1000
    labels[wall | lumen] = 0
    data = data + noise_hu * np.random.default_rng(0).normal(size=data.shape)
    return Chest(Image(data.astype(np.float32), grid), labels)


def part(chest: Chest, lower_mm: list[float], upper_mm: list[float]) -> Chest:
    """What lies in a box of the world, on a grid that is not oblique."""
    grid = chest.image.grid
    ends = apply_affine(grid.inverse_affine, np.array([lower_mm, upper_mm]))
    lower = np.maximum(np.rint(ends.min(axis=0)).astype(int), 0)
    upper = np.minimum(np.rint(ends.max(axis=0)).astype(int), grid.shape)
    box = tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))
    image = Image(chest.image.data[box], grid.cropped(lower, upper))
    return Chest(image, chest.lungs[box])


def _ball(points: np.ndarray, center: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
    return np.linalg.norm((points - center) / radii, axis=-1) < 1


def _lungs(points: np.ndarray, touching: bool) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    right = _ball(points, np.array([80.0, -5.0, 0.0]), (64, 88, 125)) & (x > 22)
    left = _ball(points, np.array([-78.0, -5.0, 5.0]), (60, 88, 118)) & (x < -24)
    if touching:
        sheet = (np.abs(y - 60) < 3) & (np.abs(z - 10) < 60) & (np.abs(x) < 60)
        right, left = right | (sheet & (x >= 0)), left | (sheet & (x < 0))
    return np.select([right, left], [1, 2], 0)


def _airways(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lumen and wall of the trachea, which leaves the picture above, and the main bronchi."""
    carina = np.array([0.0, -10.0, 65.0])
    ends = [(carina + [0, 0, 200], 9.0), (carina + [45, 0, -35], 6.5), (carina - [45, 0, 30], 6.5)]
    distances = [_to_segment(points, carina, end) - radius for end, radius in ends]
    nearest = np.min(distances, axis=0)
    return nearest < 0, (nearest >= 0) & (nearest < 2)


def _to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    along = end - start
    share = np.clip((points - start) @ along / (along @ along), 0, 1)
    return np.linalg.norm(points - start - share[..., None] * along, axis=-1)
