"""Binary masks grown, shrunk and closed by millimetres.

Spheres of a few voxels only: the squared distance to the mask, up to a radius, is built one axis
after the other (Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012), which for small radii
is faster than a distance transform and takes 12 bytes a voxel of the box around the mask.
"""

from __future__ import annotations

import numpy as np

from .images import bounding_box


def dilated(mask: np.ndarray, radius_mm: float, spacing: np.ndarray) -> np.ndarray:
    """All voxels with a centre at most ``radius_mm`` from that of a voxel of the mask.

    >>> row = np.array([[[0, 0, 1, 0, 0]]], dtype=bool)
    >>> dilated(row, 2.0, np.array([1.0, 1.0, 2.0])).astype(int)
    array([[[0, 1, 1, 1, 0]]])
    """
    reach = _reach(radius_mm, spacing)
    if not mask.any() or not reach.any():
        return mask.copy()
    part = _box_around(mask, reach)
    grown = np.zeros_like(mask)
    grown[part] = _near(mask[part], radius_mm, spacing, reach)
    return grown


def eroded(mask: np.ndarray, radius_mm: float, spacing: np.ndarray) -> np.ndarray:
    """All voxels further than ``radius_mm`` from what is not in the mask.

    What lies beyond the array counts as part of the mask.
    """
    part = _box_around(mask, np.ones(3, dtype=int))
    left = np.zeros_like(mask)
    left[part] = ~dilated(~mask[part], radius_mm, spacing)
    return left


def closed(mask: np.ndarray, radius_mm: float, spacing: np.ndarray) -> np.ndarray:
    """The mask with gaps closed that are narrower than twice the radius.

    Beyond the array the mask goes on as it is at the edge.
    """
    reach = _reach(radius_mm, spacing)
    part = _box_around(mask, reach)
    padded = np.pad(mask[part], [(more, more) for more in reach], mode='edge')
    solid = eroded(dilated(padded, radius_mm, spacing), radius_mm, spacing)
    inner = tuple(slice(more, n - more) for more, n in zip(reach, padded.shape, strict=True))
    out = mask.copy()
    out[part] |= solid[inner]
    return out


def _reach(radius_mm: float, spacing: np.ndarray) -> np.ndarray:
    return np.floor(radius_mm / np.asarray(spacing) + 1e-6).astype(int)


def _box_around(mask: np.ndarray, more: np.ndarray) -> tuple[slice, ...]:
    """The mask's bounding box and ``more`` voxels on each side, within the array."""
    return tuple(
        slice(max(side.start - n, 0), None if side.stop is None else side.stop + n)
        for side, n in zip(bounding_box(mask), more, strict=True)
    )


def _near(
    mask: np.ndarray, radius_mm: float, spacing: np.ndarray, reach: np.ndarray
) -> np.ndarray:
    squared = np.where(mask, np.float32(0), np.float32(np.inf))
    for axis, steps in enumerate(reach):
        before = np.moveaxis(squared.copy(), axis, 0)
        after = np.moveaxis(squared, axis, 0)
        for step in range(1, min(steps, len(before) - 1) + 1):
            cost = np.float32((step * spacing[axis]) ** 2)
            np.minimum(after[step:], before[:-step] + cost, out=after[step:])
            np.minimum(after[:-step], before[step:] + cost, out=after[:-step])
    return squared <= radius_mm**2 + 1e-3
