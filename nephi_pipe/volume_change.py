"""How the volume of an organ changes from the fixed to the moving image, all of it and locally."""

from __future__ import annotations

from typing import Any

import numpy as np

from .images import Image
from .overlap import dice
from .transforms import PointMap, resample


def volume_change(
    determinant: np.ndarray, fixed_mask: Image, moving_mask: Image
) -> dict[str, Any]:
    """The change by the Jacobian of the map, beside that of the masks' volumes.

    The integral of the determinant over the fixed organ is the volume that the map gives it in the
    moving image (Reinhardt et al., Medical Image Analysis 2008): divided by the fixed volume it
    must equal the ratio of the masks where masks and map are right.

    Parameters
    ----------
    determinant
        Of the total map from fixed to moving at the voxels of the fixed mask, shape (N,).
    fixed_mask, moving_mask
        The organ, each on the grid of its image, bool.

    Returns
    -------
    dict
        ``fixed_ml`` and ``moving_ml`` of the masks; ``ratio_by_masks`` and
        ``ratio_by_jacobian`` of moving to fixed volume, and ``mismatch``, the second over the
        first minus 1; ``local``: percentiles of the determinant; ``folds``: voxels of the mask
        where it is not positive.

    >>> from .geometry import Grid
    >>> mask = Image(np.ones((10, 10, 10), dtype=bool), Grid((10, 10, 10), np.eye(4)))
    >>> change = volume_change(np.full(1000, 1.2), mask, mask)
    >>> change['fixed_ml'], round(change['mismatch'], 3), change['folds']['count']
    (1.0, 0.2, 0)
    """
    fixed_ml, moving_ml = (_millilitres(mask) for mask in (fixed_mask, moving_mask))
    by_masks = moving_ml / fixed_ml
    by_jacobian = float(determinant.mean(dtype=np.float64))
    folds = int(np.count_nonzero(determinant <= 0))
    percentiles = np.percentile(determinant, [1, 5, 50, 95, 99])
    return {
        'fixed_ml': fixed_ml,
        'moving_ml': moving_ml,
        'ratio_by_masks': by_masks,
        'ratio_by_jacobian': by_jacobian,
        'mismatch': by_jacobian / by_masks - 1,
        'local': {
            'min': float(determinant.min()),
            **dict(zip(('p01', 'p05', 'median', 'p95', 'p99'), percentiles.tolist(), strict=True)),
            'max': float(determinant.max()),
        },
        'folds': {
            'voxels': int(determinant.size),
            'count': folds,
            'percent': 100 * folds / determinant.size,
        },
    }


def mask_overlap(
    fixed_mask: Image, moving_mask: Image, maps: dict[str, PointMap]
) -> dict[str, float]:
    """Dice of the fixed mask and the moving one, warped onto it by each of ``maps``."""
    moving = moving_mask.with_data(moving_mask.data.astype(np.uint8))
    return {
        when: dice(
            fixed_mask.data.astype(np.uint8), resample(moving, one, fixed_mask.grid, 'labels').data
        )[1]
        for when, one in maps.items()
    }


def _millilitres(mask: Image) -> float:
    return float(np.count_nonzero(mask.data) * mask.grid.voxel_volume_mm3 / 1000)
