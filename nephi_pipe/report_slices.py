"""Which slices a report shows, and what a volume looks like on them.

All planes are true planes of the world (RAS+ mm), so oblique and anisotropic
grids come out upright and with the right proportions. Neurological convention:
the person's left is on the left of axial and coronal slices; in sagittal slices
anterior is on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .geometry import Grid
from .images import Image, foreground, resample_array

PLANES = {'axial': (0, 1, 2), 'coronal': (0, 2, 1), 'sagittal': (1, 2, 0)}
"""Per plane the world axes across the picture, up the picture and through it."""

_QUANTILES = (0.2, 0.4, 0.6, 0.8)
_WIDTH, _PIXELS = 1600, 1.6e6
_GAP, _BLOCK_GAP = 4, 20


@dataclass(frozen=True)
class Tile:
    """One slice on the canvas: its plane, where it cuts (mm), its pixels."""

    plane: str
    position_mm: float
    left: int
    top: int
    width: int
    height: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the canvas that it fills."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


@dataclass(frozen=True)
class Layout:
    """Tiles on one canvas of (rows, columns) pixels, grouped in a block per plane.

    ``lower`` and ``upper`` (mm) are the box that is shown; ``blocks`` are
    (left, top, right, bottom) in pixels, in the order of ``planes``.
    """

    tiles: tuple[Tile, ...]
    blocks: tuple[tuple[int, int, int, int], ...]
    shape: tuple[int, int]
    lower: np.ndarray
    upper: np.ndarray
    pixels_per_mm: float

    @property
    def planes(self) -> tuple[str, ...]:
        """The planes that are shown, from left to right."""
        return tuple(dict.fromkeys(tile.plane for tile in self.tiles))

    def points(self, tile: Tile) -> np.ndarray:
        """World positions of a tile's pixel centres, (height, width, 3) in mm."""
        across, up, through = PLANES[tile.plane]
        points = np.empty((tile.height, tile.width, 3))
        points[..., across] = self.lower[across] + self._steps(tile.width)
        points[..., up] = (self.upper[up] - self._steps(tile.height))[:, None]
        points[..., through] = tile.position_mm
        return points

    def pixel(self, tile: Tile, point_mm: np.ndarray) -> tuple[float, float]:
        """Column and row on the canvas of a world point, seen in ``tile``."""
        across, up, _ = PLANES[tile.plane]
        column = tile.left + (point_mm[across] - self.lower[across]) * self.pixels_per_mm - 0.5
        row = tile.top + (self.upper[up] - point_mm[up]) * self.pixels_per_mm - 0.5
        return float(column), float(row)

    def through(self, point_mm: np.ndarray) -> Layout:
        """The same layout with one slice of each plane moved to pass ``point_mm``."""
        tiles = list(self.tiles)
        for plane in self.planes:
            axis = PLANES[plane][2]
            own = [i for i, tile in enumerate(tiles) if tile.plane == plane]
            nearest = min(own, key=lambda i: abs(tiles[i].position_mm - point_mm[axis]))
            tiles[nearest] = replace(tiles[nearest], position_mm=float(point_mm[axis]))
        return replace(self, tiles=tuple(tiles))

    def _steps(self, count: int) -> np.ndarray:
        return (np.arange(count) + 0.5) / self.pixels_per_mm


def framing_mask(fixed: Image, mask: Image | None = None) -> Image:
    """A thinned mask (at most about 400 000 voxels) of what the report looks at.

    It is taken from ``mask``, or without one from what is not background in ``fixed``.
    """
    source = fixed if mask is None else mask
    step = max(1, int(np.ceil((source.grid.size / 4e5) ** (1 / 3))))
    data = source.data[::step, ::step, ::step]
    grid = Grid(data.shape, source.grid.affine @ np.diag([step, step, step, 1.0]))
    if mask is not None:
        inside = np.asarray(data) > 0.5
    else:
        flat = data.min() == data.max()
        inside = np.zeros(data.shape, dtype=bool) if flat else foreground(Image(data, grid))
    return Image(inside if inside.any() else np.ones(data.shape, dtype=bool), grid)


def choose_slices(
    mask: Image, margin_mm: float = 4.0, planes: Sequence[str] = tuple(PLANES)
) -> Layout:
    """Four slices a plane through what is inside ``mask``, on one canvas.

    Each plane cuts where 20, 40, 60 and 80 % of the mask's volume lie to one
    side, so the slices follow the organ and not the field of view; the box shown
    is the mask's with ``margin_mm`` around it.
    """
    points = mask.grid.to_world(np.argwhere(mask.data))
    room = margin_mm + mask.grid.spacing.max() / 2
    lower, upper = points.min(axis=0) - room, points.max(axis=0) + room
    positions = {plane: np.quantile(points[:, PLANES[plane][2]], _QUANTILES) for plane in planes}
    return _arrange(lower, upper, positions)


def sample(
    layout: Layout, data: np.ndarray, grid: Grid, order: int = 1, cval: float = 0.0
) -> np.ndarray:
    """A volume on the canvas: float32 (order 1) or the volume's own type (order 0).

    ``cval`` fills the gaps between tiles and what lies outside of the volume.
    """
    kind = data.dtype if order == 0 else np.float32
    canvas = np.full(layout.shape, cval, dtype=kind)
    data = data.astype(np.uint8) if data.dtype == bool else data
    for tile in layout.tiles:
        index = grid.to_index(layout.points(tile))
        canvas[tile.window] = resample_array(data, index, order=order, cval=cval)
    return canvas


def _arrange(lower: np.ndarray, upper: np.ndarray, positions: dict[str, np.ndarray]) -> Layout:
    """Put two by two tiles a plane side by side, as large as the canvas allows."""
    extent = upper - lower
    axes = {plane: PLANES[plane] for plane in positions}
    width_mm = 2 * sum(extent[across] for across, _, _ in axes.values())
    height_mm = 2 * max(extent[up] for _, up, _ in axes.values())
    scale = min(_WIDTH / width_mm, (_PIXELS / (width_mm * height_mm)) ** 0.5)
    rows = int(round(height_mm * scale)) + _GAP
    tiles, blocks, left = [], [], 0
    for plane, (across, up, _) in axes.items():
        width = max(int(round(extent[across] * scale)), 1)
        height = max(int(round(extent[up] * scale)), 1)
        top = max((rows - 2 * height - _GAP) // 2, 0)
        for i, position in enumerate(positions[plane]):
            x = left + (i % 2) * (width + _GAP)
            y = top + (i // 2) * (height + _GAP)
            tiles.append(Tile(plane, float(position), x, y, width, height))
        right, bottom = left + 2 * width + _GAP, top + 2 * height + _GAP
        blocks.append((left, top, right, bottom))
        left = right + _BLOCK_GAP
    rows = max(rows, max(block[3] for block in blocks))
    return Layout(tuple(tiles), tuple(blocks), (rows, left - _BLOCK_GAP), lower, upper, scale)
