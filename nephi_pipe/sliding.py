"""Sliding along a surface: what lies outside of the lungs moves along their border.

The motion is the flow of a velocity that follows the level sets of the distance to the lungs, so
that the lungs' border goes to itself: neither a gap nor an overlap opens. As in the
direction-dependent models of lung motion (Schmidt-Richberg et al., IEEE TMI 31, 2012), motion
normal to the pleura is continuous and tangential motion need not be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .geometry import Grid
from .images import Image
from .interpolation import resample_array
from .simulate import Diffeomorphism, KnownMap

_DEPTH_MM = 3.0
_BLUR_MM = 4.0
_NODES_MM = 8.0
_REACH_MM = 40.0
"""Beyond it nothing slides, but for what the splines of the flow smear."""

_SMEARED_MM = 30.0

_OUTER_NODES = [0, 1, 2, -3, -2, -1]
"""Zero, as `Diffeomorphism` expects."""

_SMALLEST = 1e-6


@dataclass(frozen=True, eq=False)
class Depth:
    """How far points are outside of the lungs, mm, below zero inside; the border is smoothed.

    Parameters
    ----------
    values
        The distance at the nodes of ``grid``.
    grid
        A lattice over the lungs and what is around them.
    """

    values: np.ndarray
    grid: Grid

    @classmethod
    def of(cls, lungs: Image) -> Depth:
        """The distance from the border of a mask, as far as something slides."""
        lattice = lungs.grid.resampled(_DEPTH_MM)
        edge = int(np.ceil((_REACH_MM + _SMEARED_MM) / _DEPTH_MM)) + 2
        lattice = lattice.cropped((-edge,) * 3, np.array(lattice.shape) + edge)
        mask = (lungs.data > 0).astype(np.float32)
        inside = resample_array(mask, lungs.grid.to_index(lattice.points())) > 0.5
        distance = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
        smooth = ndimage.gaussian_filter(distance * _DEPTH_MM, _BLUR_MM / _DEPTH_MM)
        return cls(smooth.astype(np.float32), lattice)

    def at(self, points: np.ndarray) -> np.ndarray:
        """The distance at ``points`` (..., 3), shape (...); far away it is 70 mm."""
        return resample_array(
            self.values, self.grid.to_index(points), cval=_REACH_MM + _SMEARED_MM
        )

    def outside(self, points: np.ndarray) -> np.ndarray:
        """Which of ``points`` (..., 3) may slide: outside of the lungs and near them, bool."""
        depth = self.at(points)
        return (depth > 0) & (depth < _REACH_MM + _SMEARED_MM)

    def normal(self, points: np.ndarray) -> np.ndarray:
        """Unit vectors (..., 3) away from the lungs."""
        steps = np.eye(3) * _DEPTH_MM
        rise = [self.at(points + step) - self.at(points - step) for step in steps]
        gradient = np.stack(rise, axis=-1)
        length = np.linalg.norm(gradient, axis=-1, keepdims=True)
        return gradient / np.maximum(length, _SMALLEST)


@dataclass(frozen=True, eq=False)
class SlidingMap:
    """A map that is ``inner`` in the lungs and slides along their border outside.

    Inside it and its inverse are exact. Outside it is ``inner`` after the inverse of ``slide``,
    but for a thin layer at the border where the flow does not follow the surface exactly: there
    the inverse may end on the wrong side.

    Parameters
    ----------
    inner
        The motion of the lungs.
    slide
        What the outside does before it.
    depth
        Distance from the lungs in the space that is mapped.
    """

    inner: KnownMap
    slide: Diffeomorphism
    depth: Depth

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map ``points`` (..., 3), mm."""
        points = np.array(points, dtype=float)
        out = self.depth.outside(points)
        points[out] = self.slide.inverse_points(points[out])
        return self.inner.map_points(points)

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        """The points that ``map_points`` takes to ``points`` (..., 3)."""
        points = np.asarray(self.inner.inverse_points(points))
        out = self.depth.outside(points)
        points[out] = self.slide.map_points(points[out])
        return points

    def jacobian_determinant(self, points: np.ndarray) -> np.ndarray:
        """Determinant of the derivative at ``points`` (..., 3) on its own side, shape (...)."""
        points = np.array(points, dtype=float)
        factor = np.ones(points.shape[:-1])
        out = self.depth.outside(points)
        factor[out] = self.slide.inverse.jacobian_determinant(points[out])
        points[out] = self.slide.inverse_points(points[out])
        return factor * self.inner.jacobian_determinant(points)


def sliding_flow(phi: Diffeomorphism, depth: Depth, part: float) -> Diffeomorphism:
    """A flow along the lungs' border that undoes ``part`` of what ``phi`` moves there.

    After ``phi`` it leaves the chest wall behind: at the border ``1 - part`` of the motion along
    it is left, and all of it from 40 mm on.

    Parameters
    ----------
    phi
        From the moving points to the space that ``depth`` knows.
    depth
        Distance from the lungs.
    part
        From 0, nothing slides, to 1.
    """
    lattice = depth.grid.resampled(_NODES_MM)
    points = lattice.points()
    near = np.abs(depth.at(points)) < _REACH_MM
    for axis in range(3):
        near[(slice(None),) * axis + (_OUTER_NODES,)] = False
    points = points[near]
    along = points - phi.inverse_points(points)
    normal = depth.normal(points)
    along -= (along * normal).sum(axis=-1, keepdims=True) * normal
    left = 1 - np.maximum(depth.at(points), 0) / _REACH_MM
    velocity = np.zeros((*lattice.shape, 3))
    velocity[near] = -part * (left**2 * (3 - 2 * left))[:, None] * along
    return Diffeomorphism(lattice, velocity)
