"""A non-linear map that comes with a pair and is followed by the field (multi-resolution, NePhi).

``phi = phi_pre o phi_nephi``: a fixed point passes the field first and the pre-alignment second,
on the way back it is the other way round. An earlier registration of ours serves as it is;
anything else is a chain of affines and displacement fields, here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from .geometry import apply_affine, is_invertible
from .held_field import HeldField

Step = np.ndarray | HeldField


class BaseMap(Protocol):
    """What comes after a field: an earlier registration, or a :class:`PreAlignment`."""

    affine: np.ndarray

    @property
    def inverse(self) -> BaseMap:
        """The way back."""

    def warp_points(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points (N, 3) go, mm."""

    def warp_points_near(self, points_mm: np.ndarray) -> np.ndarray:
        """The same for many points, maybe not quite exact."""

    def read_from(self, spacing_mm: float) -> None:
        """Have :meth:`warp_points_near` read from nodes at least so close together."""

    def exact_jacobian_determinant(self, points_mm: np.ndarray, total: bool = False) -> np.ndarray:
        """Of the map's derivative at points (N, 3), with or without its affine."""


class PreAlignment:
    """A chain of affines and displacement fields with its inverse.

    Parameters
    ----------
    steps
        4x4 affines and fields, in the order in which a fixed point passes them.
    back
        The same for the way back; found point by point where there is none.
    affine
        4x4, fixed mm to moving mm: what is called the affine part of the map.
    inverted
        Whether this is the way back itself.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        back: Sequence[Step] | None,
        affine: np.ndarray,
        inverted: bool = False,
    ) -> None:
        self.steps, self.back = tuple(steps), None if back is None else tuple(back)
        self.affine, self.inverted = affine, inverted

    @cached_property
    def inverse(self) -> PreAlignment:
        """The map of moving points to fixed points."""
        back = np.linalg.inv(self.affine)
        other = PreAlignment(self.steps, self.back, back, not self.inverted)
        other.__dict__['inverse'] = self
        return other

    def warp_points(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points (..., 3) in mm go; float64."""
        points = np.asarray(points_mm, dtype=float)
        flat = points.reshape(-1, 3)
        if self.inverted and self.back is None:
            for step in reversed(self.steps):
                flat = _undone(step, flat)
        else:
            for step in self._own:
                flat = _mapped(step, flat)
        return flat.reshape(points.shape)

    warp_points_near = warp_points

    def read_from(self, spacing_mm: float) -> None:
        """Nothing: near points are exact here."""

    def exact_jacobian_determinant(self, points_mm: np.ndarray, total: bool = False) -> np.ndarray:
        """det of the map's derivative at points (N, 3), shape (N,).

        Of what the files say, linear between nodes; with ``total`` its affine included.
        """
        points = np.asarray(points_mm, dtype=float)
        if self.inverted and self.back is None:
            found = 1 / _determinant(self.steps, self.warp_points(points))
        else:
            found = _determinant(self._own, points)
        return found if total else found / np.linalg.det(self.affine[:3, :3])

    def covered(self, points_mm: np.ndarray) -> float:
        """The least share of points (N, 3) that come to lie within the lattice of a field."""
        shares = [1.0]
        points = np.asarray(points_mm, dtype=float)
        for step in self._own:
            if not is_linear(step):
                index = step.grid.to_index(points)
                inside = (index >= -0.5) & (index <= np.array(step.grid.shape) - 0.5)
                shares.append(float(inside.all(axis=1).mean()))
            points = _mapped(step, points)
        return min(shares)

    @property
    def _own(self) -> tuple[Step, ...]:
        """The chain of this direction."""
        return self.back if self.inverted else self.steps


def is_linear(step: Step) -> bool:
    """Whether a step is an affine."""
    return isinstance(step, np.ndarray)


def _mapped(step: Step, points: np.ndarray) -> np.ndarray:
    return apply_affine(step, points) if is_linear(step) else step.map_points(points)


def _undone(step: Step, points: np.ndarray) -> np.ndarray:
    if is_linear(step):
        return apply_affine(np.linalg.inv(step), points)
    return step.inverse_points(points)


def _determinant(steps: Sequence[Step], points: np.ndarray) -> np.ndarray:
    """That of a chain: the product of the steps' own where the point is by then."""
    found = np.ones(len(points))
    for step in steps:
        jacobian = step[:3, :3] if is_linear(step) else step.jacobian(points)
        found *= np.linalg.det(jacobian)
        points = _mapped(step, points)
    return found


def affine_part(steps: Sequence[Step], points_mm: np.ndarray) -> np.ndarray:
    """The affine that a chain ends with, or else the one nearest to it at points (N, 3)."""
    if is_linear(steps[-1]):
        return steps[-1]
    mapped = PreAlignment(steps, None, np.eye(4)).warp_points(points_mm)
    known = np.concatenate([points_mm, np.ones((len(points_mm), 1))], axis=1)
    affine = np.eye(4)
    affine[:3] = np.linalg.lstsq(known, mapped, rcond=None)[0].T
    return affine if is_invertible(affine) else np.eye(4)
