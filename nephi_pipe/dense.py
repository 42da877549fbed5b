"""One direction of a field in millimetres: at points, and on whole grids by spline lattices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .geometry import Frame, Grid, apply_affine

if TYPE_CHECKING:
    from .composition import ComposedSide
    from .field.deformation import NePhiField
    from .field.lattice import FrameLattice, SplineLattice

LATTICE_TOLERANCE_VOXELS = 0.03
"""Largest error of dense evaluation on a coarser lattice, in voxels of the target grid."""

LATTICE_CHECKED = 4000
"""Random mask points at which dense evaluation is compared with the network."""

LATTICE_SPACINGS_MM = (4.0, 3.0, 2.5, 1.75, 1.25)
"""Lattices for dense evaluation, coarsest first."""

BASE_SPACINGS_MM = (2.4, 1.5, 1.0)
"""Lattices along the frame's axes on which the networks are evaluated for dense maps."""

_NODES_BETWEEN = 2
"""Nodes of the first such lattice for one of the local code, at least."""

_BELOW_BASE = 0.8
"""Nodes closer together than this part of such a lattice's show no more than the lattice."""

_SLAB = 24


@dataclass(frozen=True, eq=False)
class FieldSide:
    """One of the two maps of a field, in the world of the image it starts from.

    Parameters
    ----------
    field
        The pair of maps, in the normalised coordinates of the frame.
    frame
        Where these are, in the world of the forward fixed image.
    to_frame
        4x4, this side's world to that of the frame, mm.
    inverted
        Whether it is the second of the two maps.
    """

    field: NePhiField
    frame: Frame
    to_frame: np.ndarray
    inverted: bool

    @property
    def from_frame(self) -> np.ndarray:
        """3x3, displacements of the frame's world to this side's world."""
        return np.linalg.inv(self.to_frame[:3, :3])

    @property
    def half_mm(self) -> np.ndarray:
        """Half the size of the field's box, (3,); the field may be on any device."""
        return self.field.extent.cpu().numpy() * self.frame.scale_mm

    @property
    def code_spacing_mm(self) -> float:
        """Distance of two nodes of the local code, the geometric mean over the axes."""
        nodes = np.array(self.field.code.local_code.shape[:-1])
        apart = 2 * self.half_mm / (nodes - 1)
        return float(np.exp(np.log(apart).mean()))

    def normalised(self, points_mm: np.ndarray) -> np.ndarray:
        """World points (..., 3) in the coordinates of the frame."""
        world = apply_affine(self.to_frame, points_mm)
        return (world - np.array(self.frame.center_mm)) / self.frame.scale_mm

    def in_mm(self, displacement: np.ndarray) -> np.ndarray:
        """Displacements (N, 3) in the frame's coordinates as those of this side's world, mm."""
        return displacement.astype(float) * self.frame.scale_mm @ self.from_frame.T

    def displacement_at(self, points_mm: np.ndarray) -> np.ndarray:
        """u at points (..., 3) in mm, from the network itself; float64 mm of the same shape."""
        import torch

        points_mm = np.asarray(points_mm, dtype=float)
        if not points_mm.size:
            return np.zeros(points_mm.shape)
        points = torch.from_numpy(self.normalised(points_mm.reshape(-1, 3))).float()
        moved = self.field.displacement_in_chunks(points, self.inverted)
        return self.in_mm(moved.numpy()).reshape(points_mm.shape)

    def jacobian_determinant(self, points_mm: np.ndarray) -> np.ndarray:
        """det of the network's own derivative of ``x + u(x)`` at points (N, 3), shape (N,)."""
        return self.field_determinant(points_mm)

    def field_determinant(self, points_mm: np.ndarray) -> np.ndarray:
        """The same, whatever else a map is composed of."""
        import torch

        points = torch.from_numpy(self.normalised(points_mm)).float()
        gradient = self.field.gradient_in_chunks(points, self.inverted)
        # A similar matrix has the same determinant, so the frame's axes serve either way.
        return torch.linalg.det(torch.eye(3) + gradient).numpy()

    def box(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Voxel indices of ``grid`` that the field's box covers."""
        signs = np.indices((2, 2, 2)).reshape(3, -1).T * 2 - 1
        corners = np.array(self.frame.center_mm) + signs * self.half_mm
        index = grid.to_index(apply_affine(np.linalg.inv(self.to_frame), corners))
        last = np.array(grid.shape) - 1
        lower = np.clip(np.floor(index.min(axis=0)), 0, last)
        upper = np.clip(np.ceil(index.max(axis=0)), lower + 1, np.maximum(last, lower + 1))
        return lower.astype(int), upper.astype(int)

    def frame_lattice(self, spacing_mm: float) -> FrameLattice:
        """The map on a lattice along the axes of the frame."""
        from .field.lattice import FrameLattice

        return FrameLattice(self.field, spacing_mm / self.frame.scale_mm, self.inverted)

    def displacement_from(self, lattice: FrameLattice, points_mm: np.ndarray) -> np.ndarray:
        """u at points (N, 3) in mm, from such a lattice: fast, not exact."""
        return self.in_mm(lattice.read(self.normalised(points_mm)))


class DenseMap:
    """A map on whole grids, each filled from the coarsest spline lattice that is good enough.

    Parameters
    ----------
    side
        The map.
    grid, mask
        Where it is compared with the network: random voxels of a mask, bool of the grid's shape.
    """

    def __init__(self, side: FieldSide | ComposedSide, grid: Grid, mask: np.ndarray) -> None:
        self._side, self._grid, self._mask = side, grid, mask
        code_mm = side.code_spacing_mm / _NODES_BETWEEN
        fine = tuple(spacing for spacing in BASE_SPACINGS_MM if spacing <= code_mm)
        self._bases = fine or BASE_SPACINGS_MM[-1:]
        self.forget()

    def forget(self) -> None:
        """Drop what was evaluated: the field has changed."""
        self._lattices: list[tuple[Grid, SplineLattice]] = []
        self._frame_lattice: FrameLattice | None = None
        self._base_mm = math.inf

    def displacement(self, grid: Grid) -> np.ndarray:
        """u at every voxel of ``grid``, float32 mm (X, Y, Z, 3)."""
        lattice = self._lattice(grid)
        out = np.empty((*grid.shape, 3), dtype=np.float32)
        for start in range(0, grid.shape[0], _SLAB):
            out[start : start + _SLAB] = lattice.read(start, start + _SLAB).numpy()
        return out

    def jacobian_determinant(self, grid: Grid) -> np.ndarray:
        """det of ``x + u(x)`` at every voxel of ``grid``, 1 outside of the field's box."""
        lattice = self._lattice(grid).in_voxels(grid.inverse_affine[:3, :3])
        out = np.ones(grid.shape, dtype=np.float32)
        lower, upper = self._side.box(grid)
        upper = np.minimum(upper + 1, grid.shape)
        box = tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))
        lattice.determinant(box, out[box])
        return out

    def displacement_near(self, points_mm: np.ndarray) -> np.ndarray:
        """u at points (N, 3) in mm, from the lattice along the frame's axes: fast, not exact."""
        self.refine_base(self._bases[0])
        return self._side.displacement_from(self._frame_lattice, points_mm)

    def checked_points(self, grid: Grid) -> np.ndarray:
        """World positions (N, 3) of random voxels of ``grid`` inside the mask."""
        from .metrics import random_points

        points = random_points(self._grid, self._mask, LATTICE_CHECKED)
        index = np.rint(grid.to_index(points)).astype(int)
        return grid.to_world(index[((index >= 0) & (index < grid.shape)).all(axis=1)])

    def _lattice(self, grid: Grid) -> SplineLattice:
        """The coarsest spline lattice over ``grid`` that errs by less than 0.03 voxel."""
        for known, lattice in self._lattices:
            if known.same_as(grid, 1e-6):
                return lattice
        points = self.checked_points(grid)
        truth = self._side.displacement_at(points)
        tolerance = LATTICE_TOLERANCE_VOXELS * float(grid.spacing.min())
        spacing = reach = LATTICE_SPACINGS_MM[0]
        for base_mm in self._bases:
            self.refine_base(base_mm)
            finer, reach = list(LATTICE_SPACINGS_MM), max(reach, spacing)
            while finer:
                closer = next((one for one in finer if one <= reach), finer[-1])
                every = np.maximum(closer / grid.spacing, 1)
                shows_no_more = (every * grid.spacing).max() < _BELOW_BASE * base_mm
                if shows_no_more and base_mm != self._bases[-1]:
                    break
                spacing = closer
                lattice = self._build(grid, every)
                error = self._lattice_error(lattice, grid, points, truth)
                if error < tolerance:
                    self._lattices = [*self._lattices[-1:], (grid, lattice)]
                    return lattice
                # A cubic spline's error falls with the fourth power of the spacing.
                reach = spacing * (tolerance / error) ** 0.25
                finer = [one for one in finer if one < spacing]
        lattice = self._build(grid, np.ones(3), exact=True)
        self._lattices = [*self._lattices[-1:], (grid, lattice)]
        return lattice

    def refine_base(self, spacing_mm: float) -> None:
        """Have nodes at least so close together in the lattice from which grids are filled."""
        if self._base_mm > spacing_mm:
            self._frame_lattice = self._side.frame_lattice(spacing_mm)
            self._base_mm = spacing_mm

    def _build(self, grid: Grid, every: np.ndarray, exact: bool = False) -> SplineLattice:
        import torch

        from .field.lattice import build_lattice

        read = self._side.displacement_at if exact else self.displacement_near

        def evaluate(index: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(read(grid.to_world(index.numpy()))).float()

        lower, upper = self._side.box(grid)
        return build_lattice(evaluate, lower, upper, every, grid.shape)

    def _lattice_error(
        self, lattice: SplineLattice, grid: Grid, points: np.ndarray, truth: np.ndarray
    ) -> float:
        """Largest error of the dense map at voxels, mm."""
        if not len(points):
            return 0.0
        index = np.rint(grid.to_index(points)).astype(int)
        return float(np.linalg.norm(lattice.at_voxels(index) - truth, axis=1).max())
