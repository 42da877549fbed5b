"""What a registration gives: both maps, evaluated, applied, scored and saved."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .composition import ComposedSide
from .dense import DenseMap, FieldSide
from .displacement import DisplacementField, sample_field
from .fold_search import lowest_determinants
from .geometry import Frame, Grid, apply_affine
from .images import Image, save_image
from .transforms import Transform, resample, write_transform

if TYPE_CHECKING:
    from .field.deformation import NePhiField
    from .prealignment import BaseMap

EXACT_POINTS = 50_000
"""Random mask points at which the network's own Jacobian is taken."""

LOWEST_POINTS = 5_000
"""Voxels with the lowest dense determinant at which it is taken as well."""

FOLD_FLOOR = 0.02
"""Determinants below this count as about to fold when a map is repaired."""


class Registration:
    """A pair of maps between a fixed and a moving image.

    ``phi(x) = A (x + u(x))`` takes fixed points to moving points, RAS+ mm, and resamples the
    moving image onto the fixed grid. :attr:`inverse` is the same object for the other way.

    With a pre-alignment, ``phi(x) = base(x + n(x))`` with n the field's displacement. A is then
    the base's affine part, and u everything beside it, ``u(x) = A^-1 phi(x) - x``.

    Attributes
    ----------
    affine
        A, 4x4, fixed mm to moving mm.
    base
        What comes after the field forwards, and before it on the way back; None where that is A.
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
        base: BaseMap | None = None,
    ) -> None:
        self.field, self.frame, self.base = field, frame, base
        self.affine = np.asarray(affine, dtype=float)
        self.fixed_grid, self.moving_grid = fixed_grid, moving_grid
        self.fixed_mask, self.moving_mask = fixed_mask, moving_mask
        self.inverted = inverted
        # This side's world to the world of the frame, which is the forward fixed one.
        to_frame = self.affine if inverted and base is None else np.eye(4)
        side = FieldSide(field, frame, to_frame, inverted)
        self._side = side if base is None else ComposedSide(side, base)
        self._dense = DenseMap(self._side, fixed_grid, fixed_mask.data)
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
            base=self.base and self.base.inverse,
        )
        other.__dict__['inverse'] = self
        return other

    def displacement_at(self, points_mm: np.ndarray) -> np.ndarray:
        """u at points (..., 3) in mm, from the maps themselves; float64 mm of the same shape."""
        return self._side.displacement_at(points_mm)

    def warp_points(self, points_mm: np.ndarray) -> np.ndarray:
        """Fixed points (..., 3) in mm to moving points, through the continuous map."""
        return apply_affine(self.affine, points_mm + self.displacement_at(points_mm))

    map_points = warp_points

    def warp_points_near(self, points_mm: np.ndarray) -> np.ndarray:
        """The same for many points (..., 3): networks are read from a lattice, nearly exact."""
        near = self._dense.displacement_near(points_mm.reshape(-1, 3))
        return apply_affine(self.affine, points_mm + near.reshape(points_mm.shape))

    def read_from(self, spacing_mm: float) -> None:
        """Have :meth:`warp_points_near` read from nodes at least so close together, mm."""
        self._dense.refine_base(spacing_mm)

    def exact_jacobian_determinant(self, points_mm: np.ndarray, total: bool = False) -> np.ndarray:
        """det of the network's own derivative of ``x + u(x)`` at points (N, 3), shape (N,).

        With ``total`` of phi, its affine included. After a field the base has its own determinant
        at the moved point; both are multiplied.
        """
        determinant = self._side.jacobian_determinant(points_mm)
        return determinant * self._affine_determinant if total else determinant

    def displacement(self, grid: Grid) -> np.ndarray:
        """u at every voxel of ``grid``, float32 mm (X, Y, Z, 3), by the cubic spline lattice."""
        return self._dense.displacement(grid)

    def jacobian_determinant(self, grid: Grid | None = None, total: bool = False) -> Image:
        """det of ``x + u(x)`` at every voxel: analytic derivative of the spline lattice.

        With ``total`` of phi, its affine included (above 1: the moving image is larger there).
        """
        grid = grid or self.fixed_grid
        out = self._dense.jacobian_determinant(grid)
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
        return resample(image, self._dense_transform(grid), grid, interpolation, outside)

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
        """Normalised points (N, 3) of either direction where the field folds or is about to."""
        found = []
        for direction in (self, self.inverse):
            points, determinants = lowest_determinants(
                direction._side.field_determinant,
                direction.fixed_grid,
                direction.fixed_mask.data,
                seed,
            )
            found.append(direction._side.normalised(points[determinants <= FOLD_FLOOR]))
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
    def _affine_determinant(self) -> float:
        return float(np.linalg.det(self.affine[:3, :3]))

    def _dense_transform(self, grid: Grid) -> Transform:
        return Transform([DisplacementField(self.displacement(grid), grid), self.affine])

    def _stored_field(self, xfm_grid: str | float) -> tuple[DisplacementField, float]:
        mask = self.fixed_mask.data
        return sample_field(
            self.displacement,
            self.fixed_grid,
            spacing=xfm_grid,
            at_points=self.displacement_at,
            near_points=self._dense.displacement_near,
            mask=mask,
        )

    def forget_lattices(self) -> None:
        """Drop what was evaluated: the field has changed."""
        for direction in (self, self.inverse):
            direction._dense.forget()

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
