"""One direction of a map that is composed of a field and of what comes after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .dense import FieldSide
from .geometry import Grid, apply_affine

if TYPE_CHECKING:
    from .field.lattice import FrameLattice
    from .prealignment import BaseMap

_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False)
class ComposedSide:
    """One of the two maps of a field with a non-linear one, as :class:`FieldSide` is of a field.

    Forwards a point passes the field and then the base, ``base(x + u(x))``. On the way back it
    passes the base first, ``z + v(z)`` with ``z = base(y)``, since the field lives in the fixed
    image's world. Displacements are those beside the base's affine A, ``A^-1 phi(x) - x``.

    Parameters
    ----------
    inner
        The field's map in the fixed image's world.
    base
        The other map, of this direction.
    """

    inner: FieldSide
    base: BaseMap

    @property
    def code_spacing_mm(self) -> float:
        """Distance of two nodes of the field's local code."""
        return self.inner.code_spacing_mm

    def normalised(self, points_mm: np.ndarray) -> np.ndarray:
        """World points (..., 3) in the coordinates of the frame, where the field meets them."""
        return self.inner.normalised(self._met(points_mm))

    def displacement_at(self, points_mm: np.ndarray) -> np.ndarray:
        """``A^-1 phi(x) - x`` at points (..., 3) in mm, from the maps themselves; float64 mm."""
        points = np.asarray(points_mm, dtype=float)
        if self.inner.inverted:
            there = self.base.warp_points(points)
            mapped = there + self.inner.displacement_at(there)
        else:
            mapped = self.base.warp_points(points + self.inner.displacement_at(points))
        return self._without_affine(mapped) - points

    def jacobian_determinant(self, points_mm: np.ndarray) -> np.ndarray:
        """det of ``A^-1 phi`` at points (N, 3): the product of both maps' own, shape (N,)."""
        there = points_mm
        if not self.inner.inverted:
            there = points_mm + self.inner.displacement_at(points_mm)
        return self.field_determinant(points_mm) * self.base.exact_jacobian_determinant(there)

    def field_determinant(self, points_mm: np.ndarray) -> np.ndarray:
        """That of the field alone where points (N, 3) meet it, shape (N,)."""
        return self.inner.field_determinant(self._met(points_mm))

    def box(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """All voxel indices: beyond the field's box there still is the base."""
        return np.zeros(3, dtype=int), np.maximum(np.array(grid.shape) - 1, 1)

    def frame_lattice(self, spacing_mm: float) -> FrameLattice:
        """The field on a lattice along the axes of its frame; the base is read alike."""
        self.base.read_from(spacing_mm)
        return self.inner.frame_lattice(spacing_mm)

    def displacement_from(self, lattice: FrameLattice, points_mm: np.ndarray) -> np.ndarray:
        """The displacement at points (N, 3), the field read from its lattice: fast, not exact."""
        found = np.empty((len(points_mm), 3))
        for start in range(0, len(points_mm), _CHUNK):
            part = slice(start, start + _CHUNK)
            points = points_mm[part]
            if self.inner.inverted:
                there = self.base.warp_points_near(points)
                mapped = there + self.inner.displacement_from(lattice, there)
            else:
                moved = points + self.inner.displacement_from(lattice, points)
                mapped = self.base.warp_points_near(moved)
            found[part] = self._without_affine(mapped) - points
        return found

    def _met(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points are when they come to the field."""
        return self.base.warp_points(points_mm) if self.inner.inverted else points_mm

    def _without_affine(self, points_mm: np.ndarray) -> np.ndarray:
        return apply_affine(np.linalg.inv(self.base.affine), points_mm)
