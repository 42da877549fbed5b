"""What a registration gives: both maps, evaluated, applied, scored and saved."""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .displacement import DisplacementField, sample_field
from .fold_search import lowest_determinants
from .geometry import Frame, Grid, apply_affine
from .images import Image, save_image
from .transforms import Transform, resample, write_transform

if TYPE_CHECKING:
    from .field.deformation import NePhiField
    from .field.lattice import FrameLattice, SplineLattice

LATTICE_TOLERANCE_VOXELS = 0.02
"""Largest error of dense evaluation on a coarser lattice, in voxels of the target grid."""

LATTICE_CHECKED = 4000
"""Random mask points at which dense evaluation is compared with the network."""

LATTICE_SPACINGS_MM = (4.0, 3.0, 2.5, 1.75, 1.25)
"""Lattices for dense evaluation, coarsest first."""

BASE_SPACINGS_MM = (1.5, 1.0)
"""Lattices along the frame's axes on which the networks are evaluated for dense maps."""

_BELOW_BASE = 0.8
"""Nodes closer together than this part of such a lattice's show no more than the lattice."""

EXACT_POINTS = 50_000
"""Random mask points at which the network's own Jacobian is taken."""

LOWEST_POINTS = 5_000
"""Voxels with the lowest dense determinant at which it is taken as well."""

FOLD_FLOOR = 0.02
"""Determinants below this count as about to fold when a map is repaired."""

_SLAB = 24


class Registration:
    """A pair of maps between a fixed and a moving image.

    ``phi(x) = A (x + u(x))`` takes fixed points to moving points, RAS+ mm, and resamples the
    moving image onto the fixed grid. :attr:`inverse` is the same object for the other way.

    Attributes
    ----------
    affine
        A, 4x4, fixed mm to moving mm.
    fixed_grid, moving_grid
        The images' grids.
    fixed_mask, moving_mask
        What was compared, bool images.
    history
        One dict a step: step, total_steps, level, similarity, regularity, seconds.
    provenance
        Version, seed, device, weights, times.
    """

    def __init__(
        self,
        field: NePhiField,
        frame: Frame,
        affine: np.ndarray,
        fixed_grid: Grid,
        moving_grid: Grid,
        fixed_mask: Image,
        moving_mask: Image,
        *,
        inverted: bool = False,
        history: list[dict] | None = None,
        provenance: dict | None = None,
    ) -> None:
        self.field, self.frame = field, frame
        self.affine = np.asarray(affine, dtype=float)
        self.fixed_grid, self.moving_grid = fixed_grid, moving_grid
        self.fixed_mask, self.moving_mask = fixed_mask, moving_mask
        self.inverted = inverted
        self._lattices: list[tuple[Grid, SplineLattice]] = []
        self._frame_lattice: FrameLattice | None = None
        self._base_mm = math.inf
        self.history = [] if history is None else history
        self.provenance = provenance or {}

    @cached_property
    def inverse(self) -> Registration:
        """The map of moving points to fixed points, ``phi^-1(y) = A^-1 (y + v(y))``."""
        other = Registration(
            self.field,
            self.frame,
            np.linalg.inv(self.affine),
            self.moving_grid,
            self.fixed_grid,
            self.moving_mask,
            self.fixed_mask,
            inverted=not self.inverted,
            history=self.history,
            provenance=self.provenance,
        )
        other.__dict__['inverse'] = self
        return other

    def displacement_at(self, points_mm: np.ndarray) -> np.ndarray:
        """u at points (..., 3) in mm, from the network itself; float64 mm of the same shape."""
        import torch

        points_mm = np.asarray(points_mm, dtype=float)
        normalised = self._normalised(points_mm.reshape(-1, 3))
        moved = self.field.displacement_in_chunks(
            torch.from_numpy(normalised).float(), self.inverted
        )
        displacement = moved.numpy().astype(float) * self.frame.scale_mm
        return (displacement @ self._from_frame.T).reshape(points_mm.shape)

    def warp_points(self, points_mm: np.ndarray) -> np.ndarray:
        """Fixed points (..., 3) in mm to moving points, through the continuous map."""
        return apply_affine(self.affine, points_mm + self.displacement_at(points_mm))

    map_points = warp_points

    def exact_jacobian_determinant(self, points_mm: np.ndarray, total: bool = False) -> np.ndarray:
        """det of the network's own derivative of ``x + u(x)`` at points (N, 3), shape (N,).

        With ``total`` of phi, its affine included.
        """
        import torch

        normalised = torch.from_numpy(self._normalised(points_mm)).float()
        gradient = self.field.gradient_in_chunks(normalised, self.inverted)
        # A similar matrix has the same determinant, so the frame's axes serve either way.
        determinant = torch.linalg.det(torch.eye(3) + gradient).numpy()
        return determinant * self._affine_determinant if total else determinant

    def displacement(self, grid: Grid) -> np.ndarray:
        """u at every voxel of ``grid``, float32 mm (X, Y, Z, 3), by the cubic spline lattice."""
        lattice = self._lattice(grid)
        out = np.empty((*grid.shape, 3), dtype=np.float32)
        for start in range(0, grid.shape[0], _SLAB):
            out[start : start + _SLAB] = lattice.read(start, start + _SLAB).numpy()
        return out

    def jacobian_determinant(self, grid: Grid | None = None, total: bool = False) -> Image:
        """det of ``x + u(x)`` at every voxel: analytic derivative of the spline lattice.

        With ``total`` of phi, its affine included (above 1: the moving image is larger there).
        """
        grid = grid or self.fixed_grid
        out = self._determinants(self._lattice(grid), grid)
        return Image(out * np.float32(self._affine_determinant) if total else out, grid)

    def warp(
        self,
        image: Image,
        interpolation: str = 'linear',
        grid: Grid | None = None,
        outside: float = 0.0,
    ) -> Image:
        """A moving-space image resampled onto the fixed grid (or ``grid``).

        ``outside`` is the value where the moving image has none.
        """
        grid = grid or self.fixed_grid
        return resample(image, self._dense(grid), grid, interpolation, outside)

    def warp_labels(self, labels: Image, grid: Grid | None = None) -> Image:
        """Moving labels on the fixed grid, nearest neighbour."""
        return self.warp(labels, 'labels', grid)

    def metrics(
        self,
        fixed: Image,
        moving: Image,
        *,
        fixed_labels: Image | None = None,
        moving_labels: Image | None = None,
        fixed_landmarks: np.ndarray | None = None,
        moving_landmarks: np.ndarray | None = None,
        saved: Transform | None = None,
    ) -> dict[str, Any]:
        """Everything that can be said of the map in numbers (METHOD section 5's definitions).

        Overlap, similarity and finite-difference folds are those of the transform as saved
        (``saved``, or what :meth:`save_transform` would write); landmarks go through the
        continuous map; ``folds.exact`` is the network's own derivative at 50 000 random mask
        points and where the dense map is lowest, ``folds.lattice`` the dense map at every voxel.
        """
        from .metrics import evaluate, inverse_consistency_mm, random_points, tre_mm

        saved = saved or self.stored_transform()[0]
        mask = self.fixed_mask.data
        scores = evaluate(
            saved,
            fixed,
            moving,
            fixed_mask=self.fixed_mask,
            fixed_labels=fixed_labels,
            moving_labels=moving_labels,
            fixed_landmarks=fixed_landmarks,
            moving_landmarks=moving_landmarks,
            affine=self.affine,
        )
        if fixed_landmarks is not None:
            from .metrics import landmark_summary

            errors = tre_mm(fixed_landmarks, moving_landmarks, self.warp_points)
            scores['tre_mm']['after'] = landmark_summary(errors)
        dense = self.jacobian_determinant().data
        scores['folds'] = self._folds(dense, mask) | scores['folds']
        points = random_points(self.fixed_grid, mask, EXACT_POINTS // 5)
        scores['inverse_consistency_mm'] = inverse_consistency_mm(
            self.warp_points, self.inverse.warp_points, points
        )
        return scores

    def folded_points(self, seed: int = 0) -> np.ndarray:
        """Normalised points (N, 3) of either direction where the map folds or is about to."""
        found = []
        for direction in (self, self.inverse):
            points, determinants = lowest_determinants(
                direction.exact_jacobian_determinant,
                direction.fixed_grid,
                direction.fixed_mask.data,
                seed,
            )
            found.append(direction._normalised(points[determinants <= FOLD_FLOOR]))
        return np.concatenate(found)

    def stored_transform(self, xfm_grid: str | float = 'auto') -> tuple[Transform, float]:
        """The map as a file holds it, and the largest error in mm that storing it makes."""
        field, error = self._stored_field(xfm_grid)
        return Transform([field, self.affine]), error

    def save_transform(
        self,
        path: str | os.PathLike,
        inverse: bool = False,
        xfm_grid: str | float = 'auto',
    ) -> dict[str, Any]:
        """Write the map (.h5, .nii.gz, or .safetensors for the field itself).

        Returns the facts of its sidecar.
        """
        source = self.inverse if inverse else self
        path = Path(path)
        facts: dict[str, Any] = {
            'Type': 'neural field',
            'Units': 'mm',
            'CoordinateSystem': 'RAS',
            'Direction': 'maps points of the fixed image to points of the moving image'
            if not inverse
            else 'maps points of the moving image to points of the fixed image',
        }
        if path.suffix == '.safetensors':
            source.save_field(path)
        else:
            field, error = source._stored_field(xfm_grid)
            write_transform(path, source.affine, field)
            facts |= {
                'Type': 'affine and displacement field',
                'CoordinateSystem': 'LPS',
                'FieldSpacing': [float(step) for step in field.grid.spacing],
                'FieldInterpolationErrorMax': error,
            }
        return facts | {'Provenance': self.provenance}

    def save_field(self, path: str | os.PathLike) -> Path:
        """Write both maps as a small file that can be evaluated at any resolution later."""
        from .field_file import write_field

        return write_field(path, self)

    def save(
        self,
        folder: str | os.PathLike,
        moving: Image | None = None,
        xfm_format: str = 'h5',
        xfm_grid: str | float = 'auto',
    ) -> dict[str, Path]:
        """Write transform, inverse and (given ``moving``) the warped image into ``folder``."""
        folder = Path(folder)
        suffix = {'h5': '.h5', 'nii': '.nii.gz', 'field': '.safetensors'}[xfm_format]
        files = {
            'transform': folder / f'transform{suffix}',
            'inverse': folder / f'inverse{suffix}',
        }
        self.save_transform(files['transform'], xfm_grid=xfm_grid)
        self.save_transform(files['inverse'], inverse=True, xfm_grid=xfm_grid)
        if moving is not None:
            warped = self.warp(moving)
            files['warped'] = save_image(folder / 'warped.nii.gz', warped.data, warped.grid)
        return files

    @property
    def _to_frame(self) -> np.ndarray:
        """4x4, this side's world to the world of the frame (the forward fixed world)."""
        return self.affine if self.inverted else np.eye(4)

    @property
    def _from_frame(self) -> np.ndarray:
        """3x3, displacements of the frame's world to this side's world."""
        return np.linalg.inv(self._to_frame[:3, :3])

    @property
    def _affine_determinant(self) -> float:
        return float(np.linalg.det(self.affine[:3, :3]))

    def _normalised(self, points_mm: np.ndarray) -> np.ndarray:
        world = apply_affine(self._to_frame, points_mm)
        return (world - np.array(self.frame.center_mm)) / self.frame.scale_mm

    def _dense(self, grid: Grid) -> Transform:
        return Transform([DisplacementField(self.displacement(grid), grid), self.affine])

    def _stored_field(self, xfm_grid: str | float) -> tuple[DisplacementField, float]:
        mask = self.fixed_mask.data
        return sample_field(
            self.displacement,
            self.fixed_grid,
            spacing=xfm_grid,
            at_points=self.displacement_at,
            near_points=self._displacement_near,
            mask=mask,
        )

    def forget_lattices(self) -> None:
        """Drop what was evaluated: the field has changed."""
        for direction in (self, self.inverse):
            direction._lattices, direction._frame_lattice = [], None
            direction._base_mm = math.inf

    def _lattice(self, grid: Grid) -> SplineLattice:
        """The coarsest spline lattice over ``grid`` that errs by less than 0.02 voxel."""
        for known, lattice in self._lattices:
            if known.same_as(grid, 1e-6):
                return lattice
        points = self._lattice_check_points(grid)
        truth = self.displacement_at(points)
        tolerance = LATTICE_TOLERANCE_VOXELS * float(grid.spacing.min())
        spacing = reach = LATTICE_SPACINGS_MM[0]
        for base_mm in BASE_SPACINGS_MM:
            self._refine_base(base_mm)
            finer, reach = list(LATTICE_SPACINGS_MM), max(reach, spacing)
            while finer:
                closer = next((one for one in finer if one <= reach), finer[-1])
                every = np.maximum(np.floor(closer / grid.spacing), 1)
                shows_no_more = (every * grid.spacing).max() < _BELOW_BASE * base_mm
                if shows_no_more and base_mm != BASE_SPACINGS_MM[-1]:
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

    def _refine_base(self, spacing_mm: float) -> None:
        """Have nodes at least so close together in the lattice from which grids are filled."""
        if self._base_mm > spacing_mm:
            from .field.lattice import FrameLattice

            step = spacing_mm / self.frame.scale_mm
            self._frame_lattice = FrameLattice(self.field, step, self.inverted)
            self._base_mm = spacing_mm

    @property
    def _base(self) -> FrameLattice:
        """The field on a fine lattice along the frame's axes, from which grids are filled."""
        self._refine_base(BASE_SPACINGS_MM[0])
        return self._frame_lattice

    def _displacement_near(self, points_mm: np.ndarray) -> np.ndarray:
        """u at points (N, 3) in mm, from the lattice along the frame's axes: fast, not exact."""
        displacement = self._base.read(self._normalised(points_mm)) * self.frame.scale_mm
        return displacement @ self._from_frame.T

    def _determinants(self, lattice: SplineLattice, grid: Grid) -> np.ndarray:
        """det of ``x + u(x)`` at every voxel, 1 outside of the field's box."""
        lattice = lattice.in_voxels(grid.inverse_affine[:3, :3])
        out = np.ones(grid.shape, dtype=np.float32)
        lower, upper = self._box(grid)
        upper = np.minimum(upper + 1, grid.shape)
        box = tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))
        lattice.determinant(box, out[box])
        return out

    def _build(self, grid: Grid, every: np.ndarray, exact: bool = False) -> SplineLattice:
        import torch

        from .field.lattice import build_lattice

        read = self.displacement_at if exact else self._displacement_near

        def evaluate(index: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(read(grid.to_world(index.numpy()))).float()

        lower, upper = self._box(grid)
        return build_lattice(evaluate, lower, upper, every, grid.shape)

    def _box(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Voxel indices of ``grid`` that the field's box covers."""
        half = self.field.extent.numpy() * self.frame.scale_mm
        signs = np.indices((2, 2, 2)).reshape(3, -1).T * 2 - 1
        corners = np.array(self.frame.center_mm) + signs * half
        index = grid.to_index(apply_affine(np.linalg.inv(self._to_frame), corners))
        last = np.array(grid.shape) - 1
        lower = np.clip(np.floor(index.min(axis=0)), 0, last)
        return lower.astype(int), np.clip(np.ceil(index.max(axis=0)), lower + 1, None).astype(int)

    def _lattice_check_points(self, grid: Grid) -> np.ndarray:
        """World positions (N, 3) of random voxels of ``grid`` inside the mask."""
        from .metrics import random_points

        points = random_points(self.fixed_grid, self.fixed_mask.data, LATTICE_CHECKED)
        index = np.rint(grid.to_index(points)).astype(int)
        return grid.to_world(index[((index >= 0) & (index < grid.shape)).all(axis=1)])

    def _lattice_error(
        self, lattice: SplineLattice, grid: Grid, points: np.ndarray, truth: np.ndarray
    ) -> float:
        """Largest error of the dense map at voxels, mm."""
        if not len(points):
            return 0.0
        index = np.rint(grid.to_index(points)).astype(int)
        return float(np.linalg.norm(lattice.at_voxels(index) - truth, axis=1).max())

    def _folds(self, dense: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        inside = dense[mask]
        points = self._checked_points(dense, mask, seed=0)
        exact = self.exact_jacobian_determinant(points)
        return {
            'exact': _counted('points', exact),
            'lattice': _counted('voxels', inside),
        }

    def _checked_points(self, dense: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
        """Random mask points, and the mask voxels where the dense determinant is lowest."""
        from .metrics import random_points

        inside = np.flatnonzero(mask)
        count = min(LOWEST_POINTS, len(inside) - 1)
        lowest = inside[np.argpartition(dense.ravel()[inside], count)[:count]]
        index = np.stack(np.unravel_index(lowest, mask.shape), axis=-1)
        points = random_points(self.fixed_grid, mask, EXACT_POINTS, seed)
        return np.concatenate([points, self.fixed_grid.to_world(index)])


def load_registration(path: str | os.PathLike) -> Registration:
    """Read a registration from its field file (.safetensors)."""
    from .field_file import read_field

    return read_field(path)


def _counted(kind: str, determinants: np.ndarray) -> dict[str, float | int]:
    folded = int((determinants <= 0).sum())
    return {
        kind: int(determinants.size),
        'count': folded,
        'percent': 100 * folded / determinants.size,
        'min': float(determinants.min()),
    }
