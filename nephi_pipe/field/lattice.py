"""Dense maps: a field evaluated on a coarse lattice, read at every voxel by a cubic spline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .deformation import NePhiField
from .interpolate import separable, spline_weights

_SLAB = 16

_REACH = 3
"""Nodes of a frame lattice beyond the field's box, on each side."""


class SplineLattice:
    """The cubic spline through values at regular nodes, on a finer regular grid.

    Along each axis the nodes lie at ``first + every * i`` in units of the fine grid's index.

    Parameters
    ----------
    values
        Values at the nodes, (n1, n2, n3, C).
    first
        Fine index of the first node of each axis (may be negative).
    every
        Fine steps between two nodes, for each axis.
    shape
        Shape of the fine grid. Beyond the outer nodes the values there are held.
    """

    def __init__(
        self,
        values: Tensor,
        first: Sequence[float],
        every: Sequence[float],
        shape: Sequence[int],
    ) -> None:
        self.values = values
        self.shape = tuple(shape)
        self._first, self._every = np.array(first, dtype=float), np.array(every, dtype=float)
        self._weights, self._slopes = [], []
        for axis, count in enumerate(self.shape):
            nodes = values.shape[axis]
            position = (torch.arange(count, dtype=torch.float64) - first[axis]) / every[axis]
            held = position.clamp(0, nodes - 1)
            inside = (position == held).double()[:, None] / every[axis]
            self._weights.append(spline_weights(held, nodes).to(values))
            self._slopes.append((spline_weights(held, nodes, derivative=True) * inside).to(values))

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Values of the slab ``start:stop`` along the first axis, (slab, Y, Z, C)."""
        first, *others = self._weights
        return separable(self.values, [first[start:stop], *others])

    def at_voxels(self, index: np.ndarray) -> np.ndarray:
        """Values (N, C) at fine indices (N, 3)."""
        last = np.array(self.values.shape[:-1]) - 1
        position = np.clip((index - self._first) / self._every, 0, last)
        coefficients = _coefficients(self.values.numpy())
        return _read_spline(coefficients, position)

    def in_voxels(self, voxels_per_mm: np.ndarray) -> SplineLattice:
        """The same displacement (C = 3) in units of fine voxels, by a 3x3 matrix."""
        other = copy.copy(self)
        other.values = self.values @ torch.as_tensor(voxels_per_mm.T.copy()).to(self.values)
        return other

    def determinant(self, box: tuple[slice, slice, slice], out: np.ndarray) -> None:
        """det(I + du/dx) at the fine voxels of ``box``, for values in voxels; into ``out``.

        A displacement in voxels and one in mm have similar Jacobians, so the same determinant.
        """
        weights = [matrix[part] for matrix, part in zip(self._weights, box, strict=True)]
        slopes = [matrix[part] for matrix, part in zip(self._slopes, box, strict=True)]
        for start in range(0, out.shape[0], _SLAB):
            slab = slice(start, start + _SLAB)
            columns = []
            for axis in range(3):
                matrices = list(weights)
                matrices[axis] = slopes[axis]
                matrices[0] = matrices[0][slab]
                columns.append(separable(self.values, matrices).unbind(-1))
            out[slab] = _determinant(columns).numpy()


class FrameLattice:
    """A field on a lattice along the axes of its frame, read at any point by a cubic spline.

    Parameters
    ----------
    field
        The pair of maps.
    step
        Distance of two nodes, normalised.
    inverse
        Which of the two maps.
    """

    def __init__(self, field: NePhiField, step: float, inverse: bool) -> None:
        half = field.extent.double().numpy()
        self._step, self._first = step, -half - _REACH * step
        counts = np.ceil(2 * half / step).astype(int) + 1 + 2 * _REACH
        axes = [
            torch.from_numpy(first + step * np.arange(count)).float()
            for first, count in zip(self._first, counts, strict=True)
        ]
        values = field.displacement_on_axes(axes, inverse).numpy()
        self._last = counts - 1
        self._coefficients = _coefficients(values)

    def read(self, points: np.ndarray) -> np.ndarray:
        """Displacement (N, 3) at normalised points (N, 3); beyond the box its edge is held."""
        index = np.clip((points - self._first) / self._step, 0, self._last)
        return _read_spline(self._coefficients, index)


def build_lattice(
    evaluate: Callable[[Tensor], Tensor],
    lower: Sequence[int],
    upper: Sequence[int],
    every: Sequence[float],
    shape: Sequence[int],
) -> SplineLattice:
    """Evaluate a map at the nodes that cover fine indices ``lower`` to ``upper``.

    Parameters
    ----------
    evaluate
        Fine indices (N, 3), float64, to values (N, C).
    lower, upper
        Box of fine indices that the nodes cover; outside of it values are held.
    every
        Fine steps between two nodes, for each axis.
    shape
        Shape of the fine grid.
    """
    axes, first = [], []
    for low, high, step in zip(lower, upper, every, strict=True):
        count = max(int(-(-(high - low) // step)) + 1, 2) + 2
        start = low - step
        first.append(start)
        axes.append(start + step * torch.arange(count, dtype=torch.float64))
    nodes = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)
    values = evaluate(nodes.reshape(-1, 3))
    return SplineLattice(values.view(*nodes.shape[:3], -1), first, every, shape)


def _coefficients(values: np.ndarray) -> list[np.ndarray]:
    """Those of the cubic B-spline through values (n1, n2, n3, C), for each channel."""
    return [
        ndimage.spline_filter(np.ascontiguousarray(part), order=3, output=values.dtype)
        for part in np.moveaxis(values, -1, 0)
    ]


def _read_spline(coefficients: list[np.ndarray], positions: np.ndarray) -> np.ndarray:
    """Values (N, C) at positions (N, 3) counted in nodes, read by as many threads as torch has."""
    values = np.empty((len(positions), len(coefficients)), dtype=coefficients[0].dtype)
    threads = torch.get_num_threads()

    def read(part: slice) -> None:
        for channel, nodes in enumerate(coefficients):
            values[part, channel] = ndimage.map_coordinates(
                nodes, positions[part].T, order=3, mode='mirror', prefilter=False
            )

    share = max(-(-len(positions) // threads), 1)
    parts = [slice(first, first + share) for first in range(0, len(positions), share)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, parts))
    return values


def _determinant(columns: list[tuple[Tensor, ...]]) -> Tensor:
    """det(I + G) where ``columns[j][i]`` is dG_i/dx_j, written out: no tiny matrix products."""
    (a, d, g), (b, e, h), (c, f, i) = columns
    a, e, i = a + 1, e + 1, i + 1
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
