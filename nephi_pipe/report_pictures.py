"""The pictures of one pair: what each shows, and the words that go with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import ndimage

from .errors import InputDataError
from .geometry import Grid
from .images import Image
from .presets.views import View
from .report_drawing import FIXED_COLOUR, MOVED_COLOUR, Picture, label_outlines, level_lines
from .report_maps import (
    Drawn,
    draw_jacobian,
    draw_landmarks_after,
    draw_landmarks_before,
    draw_motion,
)
from .report_slices import PLANES, Layout, choose_slices, framing_mask, sample

_GRID_STEPS_MM = np.array([0.5, 1, 2, 4, 5, 8, 10, 16, 20, 40])
_CHECKS_ACROSS = 7

DEFAULT = View()
"""All planes, contrast by percentiles."""


@dataclass(frozen=True, eq=False)
class PairImages:
    """What the figures of one pair are drawn from; images need not share a grid.

    Parameters
    ----------
    fixed
        The fixed image.
    before
        The moving image resampled with the affine only.
    after
        The moving image resampled with the whole map.
    jacobian
        Map of the Jacobian determinant.
    displacement
        ``u`` in ``phi(x) = A(x + u(x))``, mm, RAS+, shape (X, Y, Z, 3).
    labels_fixed, labels_before, labels_after
        Label maps, the moving one resampled like the images.
    displacement_grid
        Where ``displacement`` is given; the fixed grid by default, coarser is enough.
    fixed_mask
        What to frame and to judge contrast by; found from ``fixed`` by default.
    jacobian_of
        Whether ``jacobian`` belongs to ``x + u(x)`` or to the total map with its affine.
    labels_name
        What the label maps show.
    landmarks_fixed, landmarks_before, landmarks_after
        Landmarks (N, 3) of the fixed image, and those of the moving image brought back to it by
        the affine and by the whole inverse, RAS+ mm.
    """

    fixed: Image
    before: Image
    after: Image
    jacobian: Image | None = None
    displacement: np.ndarray | None = None
    labels_fixed: Image | None = None
    labels_before: Image | None = None
    labels_after: Image | None = None
    displacement_grid: Grid | None = None
    fixed_mask: Image | None = None
    jacobian_of: Literal['deformation', 'total'] = 'deformation'
    labels_name: str = 'structures'
    landmarks_fixed: np.ndarray | None = None
    landmarks_before: np.ndarray | None = None
    landmarks_after: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.displacement is not None:
            grid = self.displacement_grid or self.fixed.grid
            if self.displacement.shape != (*grid.shape, 3):
                raise InputDataError(
                    f'The displacement has the shape {self.displacement.shape}; expected '
                    f'{(*grid.shape, 3)}, its grid and three components in mm. Give the grid it '
                    'was sampled on as displacement_grid.'
                )


def draw_pictures(
    images: PairImages, view: View = DEFAULT
) -> Iterator[tuple[str, Picture, str, str]]:
    """Every picture that the inputs and the view allow: key, picture, title, caption."""
    scene = _Scene(images, view)
    for key, draw in _PICTURES.items():
        drawn = draw(scene)
        if drawn is not None:
            yield (key, *drawn)


class _Scene:
    """A pair on its canvas; what several pictures need is computed once."""

    def __init__(self, images: PairImages, view: View = DEFAULT) -> None:
        self.images, self.view = images, view
        self.mask = framing_mask(images.fixed, images.fixed_mask)
        self.layout = choose_slices(self.mask, planes=view.planes)
        self.inside = self.inside_on(self.layout)
        self.fixed_window = self._window(images.fixed)
        self.moved_window = self._window(images.after)

    @cached_property
    def fixed(self) -> np.ndarray:
        return self.grey(self.layout, self.images.fixed, self.fixed_window)

    @cached_property
    def after(self) -> np.ndarray:
        return self.grey(self.layout, self.images.after, self.moved_window)

    @cached_property
    def fixed_outlines(self) -> list[np.ndarray]:
        return label_outlines(self.layout, self.images.labels_fixed)

    def inside_on(self, layout: Layout) -> np.ndarray:
        """Which pixels lie inside the mask."""
        return sample(layout, self.mask.data.astype(np.float32), self.mask.grid) > 0.5

    def grey(self, layout: Layout, image: Image, window: tuple[float, float]) -> np.ndarray:
        """An image on the canvas, its window scaled to [0, 1]."""
        canvas = sample(layout, image.data, image.grid, cval=float(image.data.min()))
        return np.clip((canvas - window[0]) / (window[1] - window[0]), 0, 1)

    def _window(self, image: Image) -> tuple[float, float]:
        if self.view.window is not None:
            return self.view.window
        canvas = sample(self.layout, image.data, image.grid)
        values = canvas[self.inside] if self.inside.any() else canvas
        low, high = np.percentile(values, [0.5, 99.7])
        return float(low), max(float(high), float(low) + 1e-6)


def _plain(layout: Layout, canvas: np.ndarray, title: str, caption: str) -> Drawn:
    picture = Picture(layout, canvas)
    picture.mark_sides()
    return picture, title, caption


def _fixed(scene: _Scene) -> Drawn:
    return _plain(scene.layout, scene.fixed, 'Fixed', 'The fixed image.')


def _before(scene: _Scene) -> Drawn:
    canvas = scene.grey(scene.layout, scene.images.before, scene.moved_window)
    caption = 'The moving image on the fixed grid, its affine only.'
    return _plain(scene.layout, canvas, 'Before (affine)', caption)


def _after(scene: _Scene) -> Drawn:
    caption = 'The moving image on the fixed grid, affine and NePhi deformation.'
    return _plain(scene.layout, scene.after, 'After (NePhi)', caption)


def _outline(scene: _Scene) -> Drawn:
    picture = Picture(scene.layout, None)
    if scene.images.labels_fixed is not None:
        lines, what = scene.fixed_outlines, f'{scene.images.labels_name} of the fixed image'
    else:
        lines, what = _edges(scene), 'edges of the fixed image'
    picture.lines(lines, '#ffd23f', 1.3)
    return picture, 'Outline of the fixed image', f'Yellow lines: {what}.'


def _edges(scene: _Scene) -> list[np.ndarray]:
    """Where the fixed image crosses the middle between its darker and brighter part."""
    values = scene.fixed[scene.inside] if scene.inside.any() else scene.fixed
    middle = values.mean()
    level = (values[values <= middle].mean() + values[values >= middle].mean()) / 2
    smooth = ndimage.gaussian_filter(scene.fixed, 1.2)
    lines = []
    for tile in scene.layout.tiles:
        lines += level_lines(smooth[tile.window], np.array([level]), (tile.left, tile.top))
    return [line for line in lines if len(line) > 12]


def _labels(scene: _Scene, moved: Image | None, when: str) -> Drawn | None:
    if scene.images.labels_fixed is None or moved is None:
        return None
    picture = Picture(scene.layout, 0.75 * scene.fixed, legend=True)
    picture.lines(scene.fixed_outlines, FIXED_COLOUR, 1.5)
    picture.lines(label_outlines(scene.layout, moved), MOVED_COLOUR, 1.5)
    picture.mark_sides()
    what = scene.images.labels_name
    picture.line_legend([(FIXED_COLOUR, f'fixed {what}'), (MOVED_COLOUR, f'moved {what}')])
    return picture, f'{what.capitalize()} {when}', f'Outlines of the {what} over the fixed image.'


def _labels_before(scene: _Scene) -> Drawn | None:
    return _labels(scene, scene.images.labels_before, 'before (affine)')


def _labels_after(scene: _Scene) -> Drawn | None:
    return _labels(scene, scene.images.labels_after, 'after (NePhi)')


def _checkerboard(scene: _Scene) -> Drawn:
    layout = scene.layout
    size = max(layout.tiles[0].width // _CHECKS_ACROSS, 4)
    canvas = scene.fixed.copy()
    for tile in layout.tiles:
        rows, columns = np.indices((tile.height, tile.width)) // size
        odd = (rows + columns) % 2 == 1
        canvas[tile.window] = np.where(odd, scene.after[tile.window], canvas[tile.window])
    caption = (
        f'Squares of {size / layout.pixels_per_mm:.0f} mm, in turn from the fixed image (top left '
        'of each slice) and from the moving image after NePhi. Edges should run on across squares.'
    )
    return _plain(layout, canvas, 'Checkerboard', caption)


def _grid(scene: _Scene) -> Drawn | None:
    images, layout = scene.images, scene.layout
    if images.displacement is None:
        return None
    grid = images.displacement_grid or images.fixed.grid
    extent = (layout.upper - layout.lower).max()
    step = float(_GRID_STEPS_MM[np.abs(_GRID_STEPS_MM - extent / 24).argmin()])
    picture = Picture(layout, 0.6 * scene.after)
    for tile in layout.tiles:
        away = ndimage.distance_transform_edt(~scene.inside[tile.window])
        points = layout.points(tile)
        index = np.moveaxis(grid.to_index(points), -1, 0)
        for axis in PLANES[tile.plane][:2]:
            part = images.displacement[..., axis]
            carried = points[..., axis] + ndimage.map_coordinates(
                part, index, order=1, mode='nearest'
            )
            carried[away > 6 * layout.pixels_per_mm] = np.nan
            picture.lines(_ruled(carried, step, (tile.left, tile.top)), '#5fe0d3', 1.3)
    picture.mark_sides()
    caption = (
        f'Lines every {step:g} mm, ruled on the moving image after its affine and carried along '
        'by the deformation. Lines of one family that touch or close would be a fold.'
    )
    return picture, 'Deformed grid', caption


def _ruled(carried: np.ndarray, step: float, corner: tuple[int, int]) -> list[np.ndarray]:
    if np.isnan(carried).all():
        return []
    first, last = np.nanmin(carried) / step, np.nanmax(carried) / step
    return level_lines(carried, step * np.arange(np.ceil(first), np.floor(last) + 1), corner)


_PICTURES = {
    'fixed': _fixed,
    'before': _before,
    'after': _after,
    'outline': _outline,
    'labelsbefore': _labels_before,
    'labelsafter': _labels_after,
    'checkerboard': _checkerboard,
    'grid': _grid,
    'motion': draw_motion,
    'jacobian': draw_jacobian,
    'landmarksbefore': draw_landmarks_before,
    'landmarksafter': draw_landmarks_after,
}
