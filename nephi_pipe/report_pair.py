"""What the pictures of a registered pair are drawn from, gathered from the registration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .geometry import apply_affine
from .landmark_errors import LandmarkPairs, landmark_errors_mm
from .report_pictures import PairImages
from .transforms import Transform, resample

if TYPE_CHECKING:
    from .images import Image
    from .presets.views import View
    from .registration import Registration

GRID_MM = 4.0
"""Spacing of the displacement that the figure of the deformed grid is drawn from."""


def registered_images(
    registration: Registration,
    fixed: Image,
    moving: Image,
    warped: Image,
    view: View,
    *,
    jacobian: Image | None = None,
    labels: tuple[Image | None, Image | None, Image | None] = (None, None, None),
    masks: tuple[Image | None, Image | None] = (None, None),
    landmarks: LandmarkPairs | None = None,
) -> PairImages:
    """Everything that the figures of a registration show.

    Parameters
    ----------
    registration
        What was found.
    fixed, moving, warped
        The images, and the moving one on the fixed grid.
    view
        How pairs of this kind are looked at.
    jacobian
        Map of determinants, of the kind that the view names.
    labels
        Label maps: fixed, moving, and the moving one on the fixed grid.
    masks
        Masks of fixed and moving image, bool. Where they hold an organ and there are no moving
        labels, their outlines are shown.
    landmarks
        Landmarks of both images.
    """
    coarse = fixed.grid.resampled(GRID_MM)
    return PairImages(
        fixed,
        resample(moving, Transform([registration.affine]), fixed.grid, cval=view.outside),
        warped,
        jacobian=jacobian,
        displacement=registration.displacement(coarse),
        displacement_grid=coarse,
        fixed_mask=registration.fixed_mask,
        jacobian_of=view.jacobian_of,
        **_outlined(registration, labels, masks, view),
        **_marked(registration, landmarks),
    )


def charted_errors(registration: Registration, landmarks: LandmarkPairs) -> dict[str, np.ndarray]:
    """Of each landmark ``before`` (affine) and ``after``, mm, for the chart of a report."""
    errors = landmark_errors_mm(landmarks, registration.affine, registration.warp_points)
    return {'before': errors['affine_mm'], 'after': errors['nephi_mm']}


def _outlined(
    registration: Registration,
    labels: tuple[Image | None, Image | None, Image | None],
    masks: tuple[Image | None, Image | None],
    view: View,
) -> dict[str, Any]:
    """Label maps whose outlines are shown: those given, else the masks of an organ."""
    fixed, moving, warped = labels
    shown = {}
    if view.organ and moving is None and masks[0] is not None and masks[1] is not None:
        fixed, moving = masks[0], masks[1].with_data(masks[1].data.astype(np.uint8))
        warped = registration.warp_labels(moving)
        shown['labels_name'] = view.organ
    before = None
    if moving is not None:
        affine = Transform([registration.affine])
        before = resample(moving, affine, registration.fixed_grid, 'labels')
    return {**shown, 'labels_fixed': fixed, 'labels_before': before, 'labels_after': warped}


def _marked(registration: Registration, landmarks: LandmarkPairs | None) -> dict[str, np.ndarray]:
    """Landmarks of the fixed image, and those of the moving one brought back to it."""
    if landmarks is None:
        return {}
    return {
        'landmarks_fixed': landmarks.fixed,
        'landmarks_before': apply_affine(np.linalg.inv(registration.affine), landmarks.moving),
        'landmarks_after': registration.inverse.warp_points(landmarks.moving),
    }
