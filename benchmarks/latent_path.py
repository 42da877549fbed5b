"""A path through the latent space: ``python -m benchmarks latent-path --help``.

Two people are registered to a third by a forward pass of the shipped weights; between both
registrations `nephi_pipe.latent_path` makes others. Told of each: how far the map is from both
ends, and the least exact determinant. The figure shows the deformed grid and the determinant of
one slice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nephi_pipe import register
from nephi_pipe.images import foreground, load_image
from nephi_pipe.latent_path import interpolate
from nephi_pipe.metrics import random_points
from nephi_pipe.result import Registration

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_POINTS = 50_000
_LINES_MM = 6.0
_LIMIT = 2.5


def main(argv: Sequence[str] | None = None) -> int:
    """Register, walk the path, write the figure and print the table."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks latent-path', description=__doc__.split('\n\n')[1]
    )
    parser.add_argument('--data', type=Path, required=True, help='the folder of ds002748')
    parser.add_argument('--fixed', default='40', metavar='LABEL')
    parser.add_argument('--moving', nargs=2, default=['38', '39'], metavar='LABEL')
    parser.add_argument('--out', type=Path, required=True, help='the figure, a PNG')
    given = parser.parse_args(argv)
    fixed, *moving = (
        load_image(given.data / f'sub-{label}/anat/sub-{label}_T1w.nii.gz')
        for label in (given.fixed, *given.moving)
    )
    ends = [register(fixed, image, steps=0) for image in moving]
    path = [interpolate(*ends, share) for share in SHARES]
    print(table(path, random_points(fixed.grid, foreground(fixed), _POINTS)))
    draw(path, given.out)
    return 0


def table(path: Sequence[Registration], points: np.ndarray) -> str:
    """A row for each step of the path."""
    without_affine = [points + one.displacement_at(points) for one in path]
    rows = [
        '| share | mm from the first end | from the second | least determinant | folds, % |',
        '| ---: | ---: | ---: | ---: | ---: |',
    ]
    for share, one, there in zip(SHARES, path, without_affine, strict=True):
        far = [
            np.linalg.norm(there - end, axis=1).mean() for end in without_affine[:: len(path) - 1]
        ]
        determinant = one.exact_jacobian_determinant(points)
        rows.append(
            f'| {share:.2f} | {far[0]:.2f} | {far[1]:.2f} | {determinant.min():.3f} '
            f'| {100 * (determinant <= 0).mean():.4f} |'
        )
    return '\n'.join(rows)


def draw(path: Sequence[Registration], target: Path) -> None:
    """Deformed grids and determinants of the middle axial slice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(path), 3.4), layout='constrained')
    FigureCanvasAgg(figure)
    for place, (share, one) in enumerate(zip(SHARES, path, strict=True), start=1):
        axes = figure.add_subplot(1, len(path), place)
        axes.set_axis_off()
        axes.set_aspect('equal')
        axes.set_title(f'{share:.2f}')
        grid = one.fixed_grid.resampled(2.0)
        middle = grid.shape[2] // 2
        slab = grid.cropped((0, 0, middle - 2), (*grid.shape[:2], middle + 3))
        displacement = one.displacement(slab)[:, :, 2]
        determinant = one.jacobian_determinant(slab).data[:, :, 2]
        home = slab.points()[:, :, 2]
        moved = home + displacement
        axes.pcolormesh(
            home[..., 0], home[..., 1], np.log2(np.maximum(determinant, 1e-3)),
            cmap='RdBu_r', vmin=-np.log2(_LIMIT), vmax=np.log2(_LIMIT), shading='nearest',
        )  # fmt: skip
        every = round(_LINES_MM / 2.0)
        axes.plot(moved[::every, :, 0].T, moved[::every, :, 1].T, color='k', lw=0.4)
        axes.plot(moved[:, ::every, 0], moved[:, ::every, 1], color='k', lw=0.4)
    figure.savefig(target, dpi=100)


if __name__ == '__main__':
    raise SystemExit(main())
