"""What a pair is scored by beside its images: its landmarks one by one, its organ's volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .folds import finite_differences
from .landmark_errors import LandmarkPairs, landmark_errors_mm
from .metrics import displacement_on
from .transforms import PointMap, Transform
from .volume_change import mask_overlap, volume_change

if TYPE_CHECKING:
    from .images import Image
    from .registration import Registration


@dataclass(frozen=True, eq=False)
class PairMaps:
    """The maps of a pair by which landmarks and masks are scored.

    Parameters
    ----------
    affine
        4x4, fixed mm to moving mm: what "before" means.
    forward, inverse
        Map fixed points to moving points, and back; the latter may be None.
    dense
        Maps like ``forward`` and is quick for whole images.
    determinant
        Gives that of the total map at the voxels of a mask on the fixed grid, shape (N,).
    """

    affine: np.ndarray
    forward: PointMap
    inverse: PointMap | None
    dense: PointMap
    determinant: Callable[[Image], np.ndarray]

    def landmark_errors_mm(self, landmarks: LandmarkPairs) -> dict[str, np.ndarray]:
        """Distances as :func:`nephi_pipe.landmark_errors.landmark_errors_mm` has them."""
        return landmark_errors_mm(landmarks, self.affine, self.forward, self.inverse)

    def organ_scores(self, fixed_mask: Image, moving_mask: Image) -> dict[str, Any]:
        """Overlap and change of volume of the organ that the masks hold.

        Returns
        -------
        dict
            ``masks``: the ``dice`` of both, ``before`` and ``after``; ``volume``: see
            :func:`nephi_pipe.volume_change.volume_change`.
        """
        both = {'before': Transform([self.affine]), 'after': self.dense}
        return {
            'masks': {'dice': mask_overlap(fixed_mask, moving_mask, both)},
            'volume': volume_change(self.determinant(fixed_mask), fixed_mask, moving_mask),
        }


def maps_of_registration(registration: Registration, saved: PointMap) -> PairMaps:
    """Those of a registration of ours: points go through the continuous map, images by ``saved``.

    Parameters
    ----------
    registration
        The registration.
    saved
        Its transform as it is stored.
    """
    return PairMaps(
        registration.affine,
        registration.warp_points,
        registration.inverse.warp_points,
        saved,
        lambda mask: registration.jacobian_determinant(mask.grid, total=True).data[mask.data],
    )


def maps_of_transform(
    transform: PointMap, affine: np.ndarray, inverse: PointMap | None = None
) -> PairMaps:
    """Those of any transform; its determinant is taken by finite differences.

    Parameters
    ----------
    transform
        Maps fixed points to moving points, mm.
    affine
        4x4, fixed mm to moving mm: what "before" means.
    inverse
        The way back, where there is one.
    """

    def determinant(mask: Image) -> np.ndarray:
        return finite_differences(displacement_on(transform, mask.grid), mask.grid, mask.data)[1]

    return PairMaps(affine, transform, inverse, transform, determinant)
