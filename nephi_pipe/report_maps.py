"""Maps over the anatomy, and landmarks: where and how much the deformation moves and stretches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .images import Image, resample_array
from .report_drawing import FIXED_COLOUR, FOLD_COLOUR, MOVED_COLOUR, Picture
from .report_slices import PLANES, Layout, Tile, sample

if TYPE_CHECKING:
    from .report_pictures import _Scene

Drawn = tuple[Picture, str, str]
"""A picture, its title and its caption."""


def draw_jacobian(scene: _Scene) -> Drawn | None:
    """The determinant as colours, its lowest value ringed."""
    jacobian = scene.images.jacobian
    if jacobian is None:
        return None
    lowest, where = _lowest(jacobian, scene.images.fixed_mask or scene.mask)
    layout = scene.layout.through(where)
    grey = scene.grey(layout, scene.images.fixed, scene.fixed_window)
    determinant = sample(layout, jacobian.data, jacobian.grid, cval=1.0)
    limit = scene.view.determinant_limit
    with np.errstate(divide='ignore', invalid='ignore'):
        scaled = np.log(determinant) / np.log(limit)
    coloured = _coloured((np.nan_to_num(scaled) + 1) / 2, 'RdBu_r', grey)
    coloured[determinant <= 0] = _rgb(FOLD_COLOUR)
    picture = Picture(layout, _only(coloured, grey, scene.inside_on(layout)), legend=True)
    picture.ring(where)
    picture.mark_sides()
    ticks = [f'{limit**power:.2g}' for power in (-1, -0.5, 0, 0.5, 1)]
    picture.colour_bar('RdBu_r', ticks, 'det J (volume ratio)', 'fold (≤ 0)')
    means = {
        'deformation': 'of the deformation alone, its affine left out',
        'total': 'of the total map from fixed to moving, its affine included',
    }[scene.images.jacobian_of]
    spot = ', '.join(f'{value:.0f}' for value in where)
    caption = (
        f'Determinant {means}, on a logarithmic scale: red where the moving image is larger, blue '
        f'where it is smaller. Lowest value on the map: {lowest:.3g}, ringed at ({spot}) mm.'
    )
    title = 'Local change of volume' if scene.view.organ else 'Jacobian determinant'
    return picture, title, caption


def draw_motion(scene: _Scene) -> Drawn | None:
    """How far each point moves, where the view is of an organ that moves."""
    images, layout = scene.images, scene.layout
    if images.displacement is None or not scene.view.organ:
        return None
    lengths = np.linalg.norm(images.displacement, axis=-1).astype(np.float32)
    shown = sample(layout, lengths, images.displacement_grid or images.fixed.grid)
    values = shown[scene.inside] if scene.inside.any() else shown
    most = max(float(np.ceil(np.percentile(values, 99))), 1.0)
    coloured = _coloured(shown / most, 'viridis', scene.fixed)
    picture = Picture(layout, _only(coloured, scene.fixed, scene.inside), legend=True)
    picture.mark_sides()
    ticks = [f'{most * part:.3g}' for part in (0, 0.25, 0.5, 0.75, 1)]
    picture.colour_bar('viridis', ticks, 'motion (mm)')
    caption = (
        f'How far each point moves beside the affine, mm: {values.mean():.1f} on average in these '
        f'slices, {values.max():.1f} at most. The scale ends at their 99th percentile.'
    )
    return picture, 'Motion', caption


def _landmarks(scene: _Scene, moved: np.ndarray | None, title: str) -> Drawn | None:
    """Each landmark on the slice of every plane that is closest to it."""
    fixed, layout = scene.images.landmarks_fixed, scene.layout
    if fixed is None or moved is None:
        return None
    picture = Picture(layout, 0.75 * scene.fixed, legend=True)
    for plane in layout.planes:
        axis = PLANES[plane][2]
        tiles = [tile for tile in layout.tiles if tile.plane == plane]
        away = np.abs([fixed[:, axis] - tile.position_mm for tile in tiles]).argmin(axis=0)
        for i, tile in enumerate(tiles):
            own = away == i
            ends = [_pixels(layout, tile, points[own]) for points in (fixed, moved)]
            picture.lines(list(np.stack(ends, axis=1)), MOVED_COLOUR, 1.6)
            picture.dots(ends[0], FIXED_COLOUR)
    picture.mark_sides()
    picture.line_legend([(FIXED_COLOUR, 'fixed landmarks'), (MOVED_COLOUR, 'to the moved ones')])
    errors = np.linalg.norm(fixed - moved, axis=1)
    caption = (
        f'{len(fixed)} landmarks of the fixed image (dots) and the way from each to its '
        'counterpart brought back from the moving image, each on the closest slice of a plane. '
        f'Their mean length is {errors.mean():.2f} mm, in the fixed image.'
    )
    return picture, title, caption


def _pixels(layout: Layout, tile: Tile, points: np.ndarray) -> np.ndarray:
    """Columns and rows of points (N, 3) on a tile; those beyond it at its edge."""
    pixels = np.array([layout.pixel(tile, point) for point in points]).reshape(-1, 2)
    first = np.array([tile.left, tile.top])
    return np.clip(pixels, first, first + [tile.width - 1, tile.height - 1])


def draw_landmarks_before(scene: _Scene) -> Drawn | None:
    """Landmarks, the moving ones brought back by the affine."""
    return _landmarks(scene, scene.images.landmarks_before, 'Landmarks before (affine)')


def draw_landmarks_after(scene: _Scene) -> Drawn | None:
    """Landmarks, the moving ones brought back by the whole inverse."""
    return _landmarks(scene, scene.images.landmarks_after, 'Landmarks after (NePhi)')


def _coloured(shares: np.ndarray, name: str, grey: np.ndarray) -> np.ndarray:
    """Colours of a map for values in [0, 1], shaded by the anatomy, (rows, columns, 3)."""
    from matplotlib import colormaps

    return colormaps[name](np.clip(shares, 0, 1))[..., :3] * (0.55 + 0.45 * grey[..., None])


def _only(coloured: np.ndarray, grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The colours inside, the dimmed anatomy around them."""
    return np.where(inside[..., None], coloured, 0.5 * grey[..., None])


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def _lowest(jacobian: Image, mask: Image, first_try: int = 20_000) -> tuple[float, np.ndarray]:
    """The lowest determinant inside the mask and where it is (mm).

    The lowest values anywhere are tried first, since asking the mask about every voxel is slow.
    """
    flat = jacobian.data.ravel()
    for count in (min(first_try, flat.size), flat.size):
        tried = np.argpartition(flat, count - 1)[:count]
        tried = tried[np.argsort(flat[tried], kind='stable')]
        points = jacobian.grid.to_world(np.stack(np.unravel_index(tried, jacobian.data.shape), -1))
        inside = resample_array(mask.data.astype(np.uint8), mask.grid.to_index(points), order=0)
        if inside.any():
            break
    first = int(np.argmax(inside > 0))
    return float(flat[tried[first]]), points[first]
