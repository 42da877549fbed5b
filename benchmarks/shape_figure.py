"""The figure of the shapes: fixed, moving, warped, and the deformed grid of some unseen pairs."""

from __future__ import annotations

from pathlib import Path

from nephi_pipe.field.model import NePhiModel

from .shape_learning import TEST_SEED, exact_map, read, unseen
from .shape_pairs import SIZE

_PAIRS = 4
_SEED = TEST_SEED + 192
"""A triangle at one or both ends of each pair."""

_LINES_PIXELS = 6


def draw(model: NePhiModel, target: Path) -> None:
    """Write some unseen pairs, one a row, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pair, field = unseen(model, _PAIRS, _SEED)
    moved, _ = exact_map(field)
    fixed, moving = (shapes.images() for shapes in pair)
    warped = read(moving, moved).view_as(fixed)
    grids = moved.view(_PAIRS, SIZE, SIZE, 2).numpy()
    figure = Figure(figsize=(2 * 4, 2.06 * _PAIRS), layout='constrained')
    FigureCanvasAgg(figure)
    every = slice(_LINES_PIXELS // 2, SIZE, _LINES_PIXELS)
    for row in range(_PAIRS):
        pictures = {'fixed': fixed[row], 'moving': moving[row], 'warped': warped[row], 'map': None}
        for column, (title, picture) in enumerate(pictures.items(), start=1):
            axes = figure.add_subplot(_PAIRS, 4, 4 * row + column, aspect='equal')
            axes.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(-1, 1))
            if row == 0:
                axes.set_title(title)
            if picture is None:
                grid = grids[row]
                axes.plot(grid[every, :, 0].T, grid[every, :, 1].T, color='k', lw=0.5)
                axes.plot(grid[:, every, 0], grid[:, every, 1], color='k', lw=0.5)
            else:
                axes.imshow(picture.numpy().T, cmap='gray', origin='lower', extent=(-1, 1, -1, 1))
    figure.savefig(target, dpi=70)
