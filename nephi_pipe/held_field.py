"""A displacement field as a map of all of space: its derivative and its inverse."""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree

from .displacement import DisplacementField

SOLVED_MM = 1e-4
"""How near to its target an inverted point is brought."""

_CHUNK = 1 << 15
_STEPS = 30
_LONGEST_CELLS = 2.0
"""A step of Newton's method goes no further: slopes change from cell to cell."""

_LEAST_DETERMINANT = 0.05
_MOST_STARTS = 200_000


class HeldField:
    """``x + u(x)`` with u on a lattice, linear between nodes and held beyond the outer ones.

    A file of a field says nothing of what lies beyond it. ITK takes a displacement of zero there,
    which tears the map at the border; held, it stays continuous and can be inverted.

    Parameters
    ----------
    field
        The lattice; within it both read alike.

    >>> from nephi_pipe.geometry import Grid
    >>> vectors = np.zeros((3, 3, 3, 3))
    >>> vectors[2, :, :, 0] = 0.5
    >>> held = HeldField(DisplacementField(vectors, Grid((3, 3, 3), np.eye(4))))
    >>> held.map_points(np.array([[1.5, 1.0, 1.0], [9.0, 1.0, 1.0]]))
    array([[1.75, 1.  , 1.  ],
           [9.5 , 1.  , 1.  ]])
    >>> held.inverse_points(np.array([[1.75, 1.0, 1.0]])).round(4)
    array([[1.5, 1. , 1. ]])
    >>> held.jacobian(np.array([[1.5, 1.0, 1.0]]))[0, 0]
    array([1.5, 0. , 0. ])
    """

    def __init__(self, field: DisplacementField) -> None:
        self.field, self.grid = field, field.grid
        shape = np.array(field.grid.shape)
        self._last = shape - 1
        self._strides = np.array([shape[1] * shape[2], shape[2], 1])
        ahead = np.where(shape > 1, self._strides, 0)
        self._corners = np.array(list(itertools.product((0, 1), repeat=3))) @ ahead

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """``points`` (..., 3) in mm, displaced; float64."""
        points = np.asarray(points, dtype=float)
        index = np.clip(self.grid.to_index(points), 0, self._last)
        return points + self.field.displacement_at_index(index)

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """Derivative of ``x + u(x)`` at ``points`` (N, 3): exact, (N, 3, 3)."""
        parts = [self._with_derivative(part)[1] for part in _split(points)]
        return np.concatenate(parts) if parts else np.zeros((0, 3, 3))

    def inverse_points(self, targets: np.ndarray) -> np.ndarray:
        """The points that the map takes to ``targets`` (N, 3), mm, where it does not fold.

        By Newton's method; what does not arrive starts again at the node mapped nearest to it.
        """
        parts = [self._solve(part) for part in _split(targets)]
        return np.concatenate(parts) if parts else np.zeros((0, 3))

    @cached_property
    def _vectors(self) -> np.ndarray:
        return np.ascontiguousarray(self.field.vectors).reshape(-1, 3)

    @cached_property
    def _starts(self) -> tuple[cKDTree, np.ndarray]:
        """Where nodes are mapped to, and the nodes; some of them where they are many."""
        every = int(np.ceil((self.grid.size / _MOST_STARTS) ** (1 / 3)))
        index = np.stack(
            np.meshgrid(*(np.arange(0, n, every) for n in self.grid.shape), indexing='ij'), axis=-1
        )
        nodes = self.grid.to_world(index.reshape(-1, 3))
        return cKDTree(self.map_points(nodes)), nodes

    def _with_derivative(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points (N, 3) go, and the derivative there."""
        index = self.grid.to_index(points)
        inside = (index >= 0) & (index <= self._last)
        index = np.clip(index, 0, self._last)
        low = np.clip(np.floor(index), 0, np.maximum(self._last - 1, 0)).astype(np.intp)
        values = self._vectors[(low @ self._strides)[:, None] + self._corners]
        t = index - low
        value, slopes = _trilinear(values.astype(float), t)
        slopes *= inside[:, :, None]
        by_mm = np.einsum('nji,jk->nik', slopes, self.grid.inverse_affine[:3, :3])
        return points + value, np.eye(3) + by_mm

    def _solve(self, targets: np.ndarray) -> np.ndarray:
        found = self._newton(targets, 2 * targets - self.map_points(targets))
        missed = np.linalg.norm(self.map_points(found) - targets, axis=1) > SOLVED_MM
        if missed.any():
            tree, nodes = self._starts
            near = nodes[tree.query(targets[missed])[1]]
            found[missed] = self._newton(targets[missed], near)
        return found

    def _newton(self, targets: np.ndarray, found: np.ndarray) -> np.ndarray:
        longest = _LONGEST_CELLS * self.grid.spacing.max()
        going = np.arange(len(targets))
        for _ in range(_STEPS):
            moved, jacobian = self._with_derivative(found[going])
            error = moved - targets[going]
            far = np.linalg.norm(error, axis=1) > SOLVED_MM
            going, error, jacobian = going[far], error[far], jacobian[far]
            if not going.size:
                break
            step = _solved(jacobian, error)
            length = np.linalg.norm(step, axis=1, keepdims=True)
            found[going] -= step * np.minimum(1, longest / np.maximum(length, 1e-12))
        return found


def _split(points: np.ndarray) -> list[np.ndarray]:
    points = np.asarray(points, dtype=float)
    return [points[start : start + _CHUNK] for start in range(0, len(points), _CHUNK)]


def _trilinear(values: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value (N, C) and slopes along the axes (N, 3, C) between corners (N, 8, C), z fastest."""
    x, y, z = t.T[:, :, None]
    along_x = values[:, 4:] - values[:, :4]
    at_x = values[:, :4] + x[:, None] * along_x
    along_y = at_x[:, 2:] - at_x[:, :2]
    at_y = at_x[:, :2] + y[:, None] * along_y
    along_z = at_y[:, 1] - at_y[:, 0]
    x_at_y = along_x[:, :2] + y[:, None] * (along_x[:, 2:] - along_x[:, :2])
    slopes = [
        x_at_y[:, 0] + z * (x_at_y[:, 1] - x_at_y[:, 0]),
        along_y[:, 0] + z * (along_y[:, 1] - along_y[:, 0]),
        along_z,
    ]
    return at_y[:, 0] + z * along_z, np.stack(slopes, axis=1)


def _solved(matrices: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``matrix^-1 right`` for each of (N, 3, 3) and (N, 3), bounded where it has no inverse."""
    a, b, c = np.moveaxis(matrices, -1, 0)
    bc, ca, ab = np.cross(b, c), np.cross(c, a), np.cross(a, b)
    determinant = (a * bc).sum(axis=1)
    determinant = np.where(
        np.abs(determinant) < _LEAST_DETERMINANT, _LEAST_DETERMINANT, determinant
    )
    rows = np.stack([bc, ca, ab], axis=1)
    return (rows @ right[:, :, None])[:, :, 0] / determinant[:, None]
