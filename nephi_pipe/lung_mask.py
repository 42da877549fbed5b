"""Where the lungs are in a chest CT: found without a network, right and left apart."""

from __future__ import annotations

import os

import numpy as np
from scipy import ndimage

from .airways import find_airways
from .coarse import Coarse
from .errors import InputDataError
from .images import Image, bounding_box, load_mask
from .morphology import closed, dilated, eroded

RIGHT, LEFT = 1, 2
"""Labels of a lung mask, the patient's own sides."""

COARSE_MM = 2.0
"""Voxels are averaged in blocks of about this size."""

LUNG_BELOW_HU = -400.0
"""Halfway from lung to soft tissue; air that is left in a lung is far below, also expired."""

LEAST_AIR = 0.2
"""Of a mask that is given, the share of air; lungs full of fluid have little."""

WALL_MM = 2.5
"""Wall of the trachea and large bronchi."""

CLOSE_MM = 8.0
"""Vessels and nodules narrower than twice this are filled."""

SMALLEST_ML = 40.0
"""Lungs hold more than this together, also an infant's."""

SECOND_LUNG = 0.1
"""Volume of the smaller lung, as a share of all air inside the chest, at least."""

OUTSIDE_SHARE = 0.35
"""Air outside the body meets the edges of the picture with a larger share of its surface."""

ACROSS_SHARE = 0.2
"""Likewise where it reaches both sides of the picture: tables and arms have surface too."""

RING_MM = 6.0
"""Around a lung lies at least so much tissue; around the inside of a table does not."""

GAS_BELOW_HU = -920.0
"""Nearly all of a bowel's gas is below; in a lung vessels are not."""


def lung_mask(image: Image) -> Image:
    """Find both lungs, or the one there is, in a chest CT.

    Air below -400 HU, without the airways (:func:`nephi_pipe.airways.find_airways`), what lies
    outside the body, and gas in stomach and bowel; lungs that touch are divided where they are
    thin; vessels and nodules are filled by closing each lung (Hu et al., IEEE Transactions on
    Medical Imaging 20, 2001). Works on any orientation, on crops, and on scans that end inside
    the lungs. Dense parts of a lung that reach the chest wall (effusion, consolidation) are left
    out.

    Parameters
    ----------
    image
        CT in Hounsfield units, as :func:`nephi_pipe.ct.mend_ct` returns it.

    Returns
    -------
    Image
        uint8 on the grid of ``image``: 1 the right lung, 2 the left one, 0 elsewhere.

    Raises
    ------
    InputDataError
        There is no lung.
    """
    chest = Coarse.of(image, COARSE_MM)
    airways = find_airways(chest.data, chest.spacing)
    blank = _blank(chest.data)
    air = (chest.data < LUNG_BELOW_HU) & ~blank & ~dilated(airways, WALL_MM, chest.spacing)
    pieces, outside = _pieces_of_lung(air, blank, chest)
    if not pieces.any():
        raise InputDataError(
            f'No lung is found in {image.name}; expected a CT of the chest in Hounsfield units '
            'with at least one lung in it. Check that the right file was given, or give a mask of '
            'the lungs.'
        )
    labels = _sides(pieces, outside, chest)
    trunk = _trunk(airways, chest.spacing)
    return Image(chest.restored(_filled(labels, trunk, chest.spacing)), image.grid)


def find_lungs(image: Image, mask: str | os.PathLike | None = None) -> tuple[np.ndarray, str]:
    """The lungs of a CT, from the mask that is given or by :func:`lung_mask`.

    Parameters
    ----------
    image
        CT in Hounsfield units.
    mask
        Mask of both lungs, or of one, on the grid of the image.

    Returns
    -------
    The mask, of the image's shape, bool where given and else with the labels of
    :func:`lung_mask`; and where it comes from, 'given' or 'found'.

    Raises
    ------
    InputDataError
        The mask cannot be used, lies on another grid or shows no lung; or there is no lung.
    """
    if mask is None:
        return lung_mask(image).data, 'found'
    given = load_mask(mask, like=image)
    check_shows_lung(given, image)
    return given.data, 'given'


def check_shows_lung(mask: Image, image: Image) -> None:
    """Raise InputDataError unless a mask holds air, as one of one or both lungs does."""
    share = float((image.data[mask.data > 0] < LUNG_BELOW_HU).mean())
    if share < LEAST_AIR:
        raise InputDataError(
            f'The mask {mask.name} shows no lung: {100 * share:.0f} % of its voxels in '
            f'{image.name} are below {LUNG_BELOW_HU:.0f} HU; expected {100 * LEAST_AIR:.0f} % or '
            'more, as in a mask of one or both lungs. Check that both files belong together.'
        )


def _blank(data: np.ndarray) -> np.ndarray:
    """Where the scanner saw nothing: the lowest value, at the sides of the picture."""
    labels, count = ndimage.label(data == data.min())
    keep = np.bincount(labels.ravel(), minlength=count + 1) > 0.001 * data.size
    at_sides = np.zeros(count + 1, dtype=bool)
    at_sides[labels[[0, -1]]] = at_sides[labels[:, [0, -1]]] = True
    keep &= at_sides
    keep[0] = False
    return keep[labels]


def _pieces_of_lung(
    air: np.ndarray, blank: np.ndarray, chest: Coarse
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the components of air that are lung, 0 elsewhere, and the air outside the body."""
    labels, count = ndimage.label(air)
    ml = chest.ml(np.bincount(labels.ravel(), minlength=count + 1))
    ml[0] = 0
    share = _share_on_edges(labels, blank, count, chest)
    across = np.intersect1d(labels[0], labels[-1])
    is_outside = share > OUTSIDE_SHARE
    is_outside[across] |= share[across] > ACROSS_SHARE
    boxes = ndimage.find_objects(labels)
    found: list[int] = []
    for label in np.argsort(-ml):
        if ml[label] < max(SMALLEST_ML, SECOND_LUNG * ml[found].sum()):
            break
        if not is_outside[label] and _is_lung(labels, label, boxes[label - 1], chest):
            found.append(int(label))
    found = _at_one_height(found, boxes)
    keep = np.zeros(count + 1, dtype=np.int32)
    keep[found] = range(1, len(found) + 1)
    is_outside[0] = False
    return keep[labels], is_outside[labels]


def _share_on_edges(
    labels: np.ndarray, blank: np.ndarray, count: int, chest: Coarse
) -> np.ndarray:
    """Of each component's surface to the sides, front and back: the share without tissue behind.

    There is none beyond the picture, nor where the scanner saw nothing.
    """
    open_mm2, all_mm2 = np.zeros((2, count + 1))
    for axis in (0, 1):
        face = chest.spacing[1 - axis] * chest.spacing[2]
        rows, nothing = np.moveaxis(labels, axis, 0), np.moveaxis(blank, axis, 0)
        for one, other in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            seen = (rows[one] > 0) & (rows[other] == 0)
            all_mm2 += face * np.bincount(rows[one][seen], minlength=count + 1)
            seen &= nothing[other]
            open_mm2 += face * np.bincount(rows[one][seen], minlength=count + 1)
        edges = face * np.bincount(rows[[0, -1]].ravel(), minlength=count + 1)
        open_mm2, all_mm2 = open_mm2 + edges, all_mm2 + edges
    return open_mm2 / np.maximum(all_mm2, 1e-6)


def _is_lung(labels: np.ndarray, label: int, box: tuple[slice, ...], chest: Coarse) -> bool:
    """Whether a component is wrapped in tissue and holds more than gas."""
    more = np.ceil(2 * RING_MM / chest.spacing).astype(int)
    part = tuple(
        slice(max(side.start - n, 0), side.stop + n) for side, n in zip(box, more, strict=True)
    )
    inside, data = labels[part] == label, chest.data[part]
    deep = eroded(inside, RING_MM / 2, chest.spacing)
    if not deep.any() or np.percentile(data[deep], 95) < GAS_BELOW_HU:
        return False
    solid = _solid(inside, RING_MM / 2, chest.spacing)
    near = dilated(solid, RING_MM / 3, chest.spacing)
    ring = dilated(solid, RING_MM, chest.spacing) & ~near
    return bool((data[ring] > LUNG_BELOW_HU).mean() > 0.6) if ring.any() else True


def _at_one_height(found: list[int], boxes: list[tuple[slice, ...]]) -> list[int]:
    """Without components that lie below the middle of the first, which bowels do."""
    if not found:
        return found
    height = boxes[found[0] - 1][2]
    middle = (height.start + height.stop) / 2
    return [one for one in found if boxes[one - 1][2].stop > middle]


def _sides(pieces: np.ndarray, outside: np.ndarray, chest: Coarse) -> np.ndarray:
    """1 in the right lung and 2 in the left one, divided where they touch."""
    seeds = two_lungs(pieces > 0, chest)
    if seeds is None:
        return np.where(pieces > 0, _side_of_one(pieces > 0, outside, chest), 0).astype(np.uint8)
    box = bounding_box(pieces > 0)
    nearest = ndimage.distance_transform_edt(
        seeds[box] == 0, sampling=chest.spacing, return_distances=False, return_indices=True
    )
    labels = np.zeros(pieces.shape, dtype=np.uint8)
    labels[box] = np.where(pieces[box] > 0, seeds[box][tuple(nearest)], 0)
    return labels


def two_lungs(lungs: np.ndarray, chest: Coarse) -> np.ndarray | None:
    """Inner parts of both lungs, labelled, as soon as eroding the mask divides it; else None.

    ``lungs`` is a mask in the blocks of ``chest``.
    """
    box = bounding_box(lungs)
    seeds = np.zeros(lungs.shape, dtype=np.uint8)
    lungs = lungs[box]
    for radius in (0.0, 2.5, 4.0, 6.0, 8.0, 10.0, 12.0):
        inner = eroded(lungs, radius, chest.spacing)
        labels, count = ndimage.label(inner)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        sizes[0] = 0
        first, second = np.argsort(-sizes)[:2] if count > 1 else (0, 0)
        if sizes[second] < SECOND_LUNG * sizes.sum() or not sizes[second]:
            continue
        centers = np.array(ndimage.center_of_mass(inner, labels, [first, second])) * chest.spacing
        apart = centers[0] - centers[1]
        if abs(apart[0]) > np.abs(apart[1:]).max():
            right, left = (first, second) if apart[0] > 0 else (second, first)
            seeds[box] = np.select([labels == right, labels == left], [RIGHT, LEFT], 0)
            return seeds
    return None


def _side_of_one(lung: np.ndarray, outside: np.ndarray, chest: Coarse) -> int:
    """The side of the only lung: where the air outside is, from the middle, or in the world."""
    box = bounding_box(lung)
    slab = outside[:, :, box[2]]
    right, left = slab[box[0].stop :].sum(), slab[: box[0].start].sum()
    if max(right, left) > 4 * min(right, left):
        return RIGHT if right > left else LEFT
    if right and left:
        tissue = np.flatnonzero((chest.data[:, :, box[2]] > LUNG_BELOW_HU).any(axis=(1, 2)))
        center = np.flatnonzero(lung.any(axis=(1, 2))).mean()
        return RIGHT if center > (tissue[0] + tissue[-1]) / 2 else LEFT
    return RIGHT if chest.grid.center_mm[0] > 0 else LEFT


def _trunk(airways: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The airways that are wider than 8 mm, with their walls: no part of a lung."""
    wide = dilated(eroded(airways, 4.0, spacing), 5.0, spacing) & airways
    return dilated(wide, WALL_MM, spacing)


def _filled(labels: np.ndarray, trunk: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Each lung closed and its holes filled, without the airways and the other lung."""
    out = np.zeros_like(labels)
    for label in (RIGHT, LEFT):
        lung = labels == label
        if lung.any():
            solid = _solid(lung, CLOSE_MM, spacing)
            out[solid & ~trunk & (labels != RIGHT + LEFT - label) & (out == 0)] = label
    return out


def _solid(mask: np.ndarray, radius_mm: float, spacing: np.ndarray) -> np.ndarray:
    """The mask closed, and the holes that are left filled."""
    solid = closed(mask, radius_mm, spacing)
    box = bounding_box(solid)
    solid[box] = ndimage.binary_fill_holes(solid[box])
    return solid
