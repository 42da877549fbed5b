"""The trachea and the large bronchi of a chest CT, by growing from the top."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
"""Neighbours within one axial slice; the last axis runs from the feet to the head."""
IN_PLANE[:, :, 1] = ndimage.generate_binary_structure(2, 1)

TRACK_BELOW_HU = -700.0
"""Air inside the trachea's wall, also where voxels of 4 mm mix both."""

TRACHEA_MM2 = (60.0, 700.0)
"""Its cross-section; of an adult 150 to 350 mm2, of a small child 60."""

WIDEST_MM, MOST_ELONGATED, LEAST_FILLED = 40.0, 2.2, 0.5
"""Of a cross-section: its box is no larger and no longer than this, and filled to that share."""

SHORTEST_MM = 30.0
"""Of a run of cross-sections, one above the other, that is taken for the trachea."""

LUNG_SECTION_MM2 = 2000.0
"""Air of this area in a slice is a section of a lung (or lies outside)."""

GROW_BELOW_HU = (-700, -750, -800, -840, -870, -900, -930, -960)
"""Tried one after the other, until what grows from the trachea does not leak into a lung."""

AIRWAYS_ML = 150.0
"""More is a leak; trachea and bronchi of an adult are 30 to 80 mL."""


def find_airways(data: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The inside of the trachea and of the bronchi that are seen at this resolution.

    The trachea is the longest run of small round sections of air, from a slice to the next below,
    that begins above the middle of the lungs. The tree is grown from it at the highest threshold
    that does not leak, as in Mori et al., IEEE Transactions on Medical Imaging 19, 2000.

    Parameters
    ----------
    data
        HU, shape (X, Y, Z); the axes run to the right, to the front and to the head.
    spacing
        Voxel size, mm, shape (3,).

    Returns
    -------
    bool, of the same shape; nothing where no trachea is seen.
    """
    labels, count = ndimage.label(data < TRACK_BELOW_HU, IN_PLANE)
    areas = np.bincount(labels.ravel(), minlength=count + 1) * spacing[0] * spacing[1]
    trachea = _trachea(labels, areas, data, spacing)
    if not trachea:
        return np.zeros(data.shape, dtype=bool)
    seed = np.isin(labels, trachea)
    for threshold in GROW_BELOW_HU:
        grown = _grown(data < threshold, seed)
        if grown.sum() * spacing.prod() / 1e3 < AIRWAYS_ML:
            return grown | seed
    return seed


def _grown(air: np.ndarray, seed: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(air)
    touched = np.zeros(count + 1, dtype=bool)
    touched[labels[seed]] = True
    touched[0] = False
    return touched[labels]


def _trachea(
    labels: np.ndarray, areas: np.ndarray, data: np.ndarray, spacing: np.ndarray
) -> list[int]:
    """The labels of the sections that follow each other down the trachea; none without one."""
    boxes = ndimage.find_objects(labels)
    sections = {
        label: box
        for label, box in enumerate(boxes, 1)
        if _is_round(box, areas[label], spacing) and np.ptp(data[box][labels[box] == label]) > 0
    }
    runs: dict[int, list[int]] = {}
    for label in sorted(sections, key=lambda one: -sections[one][2].start):
        above = _above(label, sections[label], labels, areas)
        longest = max((runs[one] for one in above if one in runs), key=len, default=[])
        runs[label] = [*longest, label]
    middle = _middle_of_lungs(boxes, areas, labels.shape)
    long = [
        run
        for run in runs.values()
        if len(run) * spacing[2] >= SHORTEST_MM and sections[run[0]][2].start >= middle
    ]
    return max(long, key=len, default=[])


def _is_round(box: tuple[slice, ...], area: float, spacing: np.ndarray) -> bool:
    if not TRACHEA_MM2[0] <= area <= TRACHEA_MM2[1]:
        return False
    width, depth = (
        (side.stop - side.start) * size for side, size in zip(box[:2], spacing, strict=False)
    )
    long, short = max(width, depth), min(width, depth)
    return (
        long <= WIDEST_MM
        and long <= MOST_ELONGATED * short
        and area >= LEAST_FILLED * width * depth
    )


def _above(
    label: int, box: tuple[slice, ...], labels: np.ndarray, areas: np.ndarray
) -> list[int]:
    """Sections of the next slice upwards that cover a good part of this one, or it of them."""
    z = box[2].start
    if z + 1 >= labels.shape[2]:
        return []
    seen = labels[box[0], box[1], z + 1][labels[box][..., 0] == label]
    found, counts = np.unique(seen[seen > 0], return_counts=True)
    voxel = areas[label] / len(seen)
    return [
        int(one)
        for one, count in zip(found, counts, strict=True)
        if count * voxel > 0.3 * min(areas[label], areas[one])
    ]


def _middle_of_lungs(
    boxes: list[tuple[slice, ...]], areas: np.ndarray, shape: tuple[int, ...]
) -> float:
    """Mean slice of the large sections of air that the picture does not cut."""
    large = [
        label
        for label, box in enumerate(boxes, 1)
        if areas[label] > LUNG_SECTION_MM2
        and all(box[axis].start > 0 and box[axis].stop < shape[axis] for axis in (0, 1))
    ]
    heights = [boxes[label - 1][2].start for label in large]
    return float(np.average(heights, weights=areas[large])) if large else 0.0
