"""Drawing on a canvas of slices and writing it as a PNG that describes itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from .files import atomic
from .images import Image
from .reading import parse_json
from .report_slices import PLANES, Layout, sample

FIXED_COLOUR, MOVED_COLOUR = '#6cc4f5', '#ffa62b'
FOLD_COLOUR = '#ff2bd6'
LEGEND = (660, 74)
"""Width and height in pixels of the strip below the slices for a legend."""

_TEXT = {'color': '#f2f5f7', 'fontsize': 14.5, 'family': 'DejaVu Sans'}
_MOST_PIXELS = 1 << 25
_NOTE = 'nephi-report'


class Picture:
    """A canvas of slices, pixel for pixel, on which lines and marks are drawn.

    Parameters
    ----------
    layout
        Where the slices are.
    background
        (rows, columns) grey or (rows, columns, 3) colour values in [0, 1]; None for
        a transparent picture.
    legend
        Whether to leave a strip below the slices for a legend.
    """

    def __init__(
        self, layout: Layout, background: np.ndarray | None, legend: bool = False
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.layout = layout
        self.background = background
        self.coloured = background is None or background.ndim == 3 or legend
        rows, columns = layout.shape
        height = rows + (LEGEND[1] if legend else 0)
        self.figure = Figure(figsize=(columns / 100, height / 100), dpi=100)
        self.canvas = FigureCanvasAgg(self.figure)
        self.figure.patch.set_facecolor('none')
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.axis('off')
        self.axes.set(xlim=(-0.5, columns - 0.5), ylim=(height - 0.5, -0.5), aspect='auto')
        self.blocks = [
            {'name': plane, 'box': list(box), 'at_mm': self._positions(plane)}
            for plane, box in zip(layout.planes, layout.blocks, strict=True)
        ]
        if legend:
            left = max((columns - LEGEND[0]) // 2, 0)
            box = [left, rows, min(left + LEGEND[0], columns), height]
            self.blocks.append({'name': 'legend', 'box': box, 'at_mm': []})

    def lines(self, lines: list[np.ndarray], colour: str, width: float = 1.4) -> None:
        """Draw poly-lines of canvas pixels, each of shape (N, 2): column, row."""
        from matplotlib.collections import LineCollection

        self.coloured = True
        self.axes.add_collection(
            LineCollection(lines, colors=colour, linewidths=width * 0.72, capstyle='round')
        )

    def ring(self, point_mm: np.ndarray, colour: str = '#ffffff') -> None:
        """Circle a world point on the slices that pass it."""
        for tile in self.layout.tiles:
            if abs(tile.position_mm - point_mm[PLANES[tile.plane][2]]) < 1e-6:
                self.axes.plot(
                    *self.layout.pixel(tile, point_mm),
                    marker='o',
                    markersize=20,
                    markerfacecolor='none',
                    markeredgecolor=colour,
                    markeredgewidth=1.6,
                )

    def mark_sides(self) -> None:
        """Write each slice's position, and which side is which once a block."""
        for plane, (left, top, right, _) in zip(
            self.layout.planes, self.layout.blocks, strict=True
        ):
            first, last = ('P', 'A') if plane == 'sagittal' else ('L', 'R')
            self._text(left + 9, top + 8, first, va='top')
            self._text(right - 9, top + 8, last, va='top', ha='right')
            axis = 'xyz'[PLANES[plane][2]]
            for tile in self.layout.tiles:
                if tile.plane == plane:
                    label = f'{axis} {tile.position_mm:+.0f}'
                    self._text(tile.left + 9, tile.top + tile.height - 8, label, va='bottom')

    def line_legend(self, entries: list[tuple[str, str]]) -> None:
        """Explain line colours in the legend strip: (colour, text) from left to right."""
        left, top, right, bottom = self.blocks[-1]['box']
        step = (right - left) / len(entries)
        for i, (colour, text) in enumerate(entries):
            x, y = left + 20 + i * step, (top + bottom) / 2
            self.axes.plot([x, x + 44], [y, y], color=colour, linewidth=2.6)
            self._text(x + 58, y, text, va='center')

    def dots(self, points: np.ndarray, colour: str) -> None:
        """Small dots at canvas pixels (N, 2): column, row."""
        self.coloured = True
        self.axes.plot(
            *points.T, linestyle='', marker='o', markersize=3.6, color=colour, markeredgewidth=0
        )

    def colour_bar(self, name: str, ticks: list[str], label: str, special: str = '') -> None:
        """A horizontal bar with evenly spread ticks in the legend strip.

        ``special`` explains the colour of folds, if there is anything to explain.
        """
        left, top, right, _ = self.blocks[-1]['box']
        first, last, upper, lower = left + 214, right - 176, top + 12, top + 32
        ramp = np.linspace(0, 1, 256)[None]
        extent = (first, last, lower, upper)
        self.axes.imshow(ramp, cmap=name, vmin=0, vmax=1, extent=extent, aspect='auto')
        for x, tick in zip(np.linspace(first, last, len(ticks)), ticks, strict=True):
            self.axes.plot([x, x], [lower, lower + 5], color='#f2f5f7', linewidth=1)
            self._text(x, lower + 10, tick, va='top', ha='center')
        self._text(left, (upper + lower) / 2, label, va='center')
        if special:
            self.axes.plot(last + 26, (upper + lower) / 2, 's', color=FOLD_COLOUR, markersize=11)
            self._text(last + 40, (upper + lower) / 2, special, va='center')

    def save(self, path: str | os.PathLike, key: str, title: str, caption: str) -> Path:
        """Write an optimised PNG that carries its title, caption and blocks along."""
        from PIL import Image as Pillow
        from PIL.PngImagePlugin import PngInfo

        self.canvas.draw()
        image = Pillow.fromarray(np.asarray(self.canvas.buffer_rgba()).copy())
        if self.background is None:
            image = image.quantize(64, method=Pillow.Quantize.FASTOCTREE)
        else:
            image = Pillow.alpha_composite(self._ground(image.size), image)
            image = image.convert('RGB' if self.coloured else 'L')
        note = {'key': key, 'title': title, 'caption': caption, 'blocks': self.blocks}
        info = PngInfo()
        info.add_itxt('Title', title)
        info.add_itxt('Description', caption)
        info.add_itxt(_NOTE, json.dumps(note))
        with atomic(path) as temporary:
            image.save(temporary, format='PNG', pnginfo=info, compress_level=4)
        return Path(path)

    def _ground(self, size: tuple[int, int]) -> Any:
        """The background as an opaque picture; black where the legend is."""
        from PIL import Image as Pillow

        ground = Pillow.new('RGBA', size, 'black')
        ground.paste(Pillow.fromarray(np.rint(255 * self.background).astype(np.uint8)))
        return ground

    def _positions(self, plane: str) -> list[float]:
        return [round(t.position_mm, 1) for t in self.layout.tiles if t.plane == plane]

    def _text(self, x: float, y: float, text: str, **keywords) -> None:
        from matplotlib.patheffects import withStroke

        outline = [withStroke(linewidth=3, foreground='black')]
        self.axes.text(x, y, text, path_effects=outline, **_TEXT, **keywords)


def read_note(path: Path) -> dict:
    """What ``Picture.save`` wrote into a PNG, and its size; {} for others.

    The pixels are read too: a damaged picture raises OSError or SyntaxError here, not when it is
    shown, and one that is far larger than ours ValueError before it is read.
    """
    from PIL import Image as Pillow

    with Pillow.open(path, formats=['PNG']) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f'a picture of {image.width} x {image.height} pixels')
        image.load()
        text = getattr(image, 'text', {}).get(_NOTE, '')
    try:
        note = parse_json(text)
    except ValueError:
        return {}
    return {**note, 'size': image.size} if isinstance(note, dict) else {}


def label_outlines(layout: Layout, labels: Image) -> list[np.ndarray]:
    """Smooth outlines of every label on the canvas, as poly-lines of pixels."""
    canvas = sample(layout, labels.data, labels.grid, order=0)
    sigma = 0.6 * float(labels.grid.spacing.mean()) * layout.pixels_per_mm
    lines = []
    for tile in layout.tiles:
        values, compact = np.unique(canvas[tile.window], return_inverse=True)
        compact = compact.reshape(tile.height, tile.width) + 1
        for i, box in enumerate(ndimage.find_objects(compact)):
            if box is not None and values[i] != 0:
                lines += _outline(compact, i + 1, box, sigma, (tile.left, tile.top))
    return lines


def level_lines(values: np.ndarray, levels: np.ndarray, corner: tuple) -> list[np.ndarray]:
    """Lines where a (rows, columns) array takes the ``levels``; NaN is left out.

    ``corner`` is the (column, row) of the array's first pixel on the canvas.
    """
    from contourpy import contour_generator

    generator = contour_generator(z=np.ma.masked_invalid(values))
    return [line + corner for level in levels for line in generator.lines(level)]


def _outline(
    compact: np.ndarray, value: int, box: tuple, sigma: float, corner: tuple
) -> list[np.ndarray]:
    room = int(np.ceil(3 * sigma)) + 2
    padded = np.pad((compact[box] == value).astype(np.float32), room)
    smooth = ndimage.gaussian_filter(padded, sigma, truncate=3)
    first = (corner[0] + box[1].start - room, corner[1] + box[0].start - room)
    return level_lines(smooth, np.array([0.5]), first)
