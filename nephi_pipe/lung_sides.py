"""Masks of one lung in a pair: both scans are to be compared in the same lungs."""

from __future__ import annotations

import logging
from functools import cached_property

import numpy as np
from scipy import ndimage

from .coarse import Coarse
from .errors import InputDataError
from .images import Image
from .lung_mask import COARSE_MM, LEFT, RIGHT, check_shows_lung, lung_mask, two_lungs

logger = logging.getLogger(__name__)

SIDES = {RIGHT: 'right', LEFT: 'left'}

WIDER = 1.5
"""Both lungs are more than twice as wide as one, and breath hardly changes their width."""

_HELD_SHARE = 0.2
"""Of what a mask holds of both lungs, the part of a lung that counts as held."""


def lungs_of_pair(
    fixed: Image, moving: Image, fixed_mask: Image | None = None, moving_mask: Image | None = None
) -> tuple[Image, Image]:
    """Masks of the same lungs in two CTs, found where they are not given, bool.

    Raises
    ------
    InputDataError
        A mask shows no lung, a CT has none, or they hold different lungs, see `common_lungs`.
    """
    lungs = []
    for image, mask in ((fixed, fixed_mask), (moving, moving_mask)):
        if mask is not None:
            check_shows_lung(mask, image)
        lungs.append(mask or lung_mask(image))
    common = common_lungs(fixed, lungs[0].data, moving, lungs[1].data)
    one, other = (own.with_data(data > 0) for own, data in zip(lungs, common, strict=True))
    return one, other


def common_lungs(
    fixed: Image, fixed_mask: np.ndarray, moving: Image, moving_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Leave in the masks of a pair the lungs that both hold.

    Where one mask holds one lung, and the other both because it was drawn so or found in the CT,
    the other is restricted to the same lung, with a warning: one lung would be stretched over
    two. Which lung it is, is found in its CT.

    Parameters
    ----------
    fixed, moving
        CTs in Hounsfield units.
    fixed_mask, moving_mask
        Their lungs, each of the shape of its image, bool or labels above 0.

    Returns
    -------
    Both masks, the very same arrays where nothing is taken away.

    Raises
    ------
    InputDataError
        The masks hold different lungs of two scans that show both.
    """
    images, masks = (fixed, moving), [fixed_mask, moving_mask]
    held = [_HeldLungs(image, mask > 0) for image, mask in zip(images, masks, strict=True)]
    undivided = [number for number in (0, 1) if held[number].split is None]
    if len(undivided) == 2:
        _check_same_side(held)
    elif undivided:
        one, other = undivided[0], 1 - undivided[0]
        sides = held[one].sides_in_ct() if held[one].is_one_beside(held[other]) else ()
        if len(sides) == 1:
            logger.warning(
                'The mask of %s holds the %s lung alone, that of %s both: the %s lungs are '
                'compared. Give masks of the same lungs if that is not meant.',
                images[one].name,
                SIDES[sides[0]],
                images[other].name,
                SIDES[sides[0]],
            )
            masks[other] = held[other].only(sides[0], masks[other])
    return masks[0], masks[1]


class _HeldLungs:
    """What a mask holds: both lungs, told apart in ``split`` (blocks, 1 and 2), or one (None)."""

    def __init__(self, image: Image, mask: np.ndarray) -> None:
        self.image, self.mask = image, mask
        self._blocks = Coarse.of(Image(mask.astype(np.float32), image.grid), COARSE_MM)
        self._inside = self._blocks.data > 0.5
        seeds = two_lungs(self._inside, self._blocks) if self._inside.any() else None
        self.split = None if seeds is None else self._spread(seeds)

    def _spread(self, seeds: np.ndarray) -> np.ndarray:
        """To every block the label of the nearest seed."""
        nearest = ndimage.distance_transform_edt(
            seeds == 0,
            sampling=self._blocks.spacing,
            return_distances=False,
            return_indices=True,
        )
        return seeds[tuple(nearest)]

    def _width_mm(self, blocks: np.ndarray) -> float:
        return float(np.ptp(np.flatnonzero(blocks.any(axis=(1, 2)))) * self._blocks.spacing[0])

    def is_one_beside(self, both: _HeldLungs) -> bool:
        """Whether this is one lung, and no pair that could not be divided."""
        parts = [both._width_mm(both._inside & (both.split == side)) for side in SIDES]
        return self._width_mm(self._inside) < WIDER * max(parts)

    @cached_property
    def _found(self) -> np.ndarray:
        """The lungs of the CT by their labels, whatever the mask holds."""
        try:
            return lung_mask(self.image).data
        except InputDataError:
            return np.zeros(self.mask.shape, dtype=np.uint8)

    @property
    def ct_shows_both(self) -> bool:
        return all((self._found == side).any() for side in SIDES)

    def sides_in_ct(self) -> tuple[int, ...]:
        """Labels of the lungs of the CT that the mask holds; none where none is found."""
        counts = np.bincount(self._found[self.mask], minlength=LEFT + 1)
        total = counts[[RIGHT, LEFT]].sum()
        return tuple(side for side in SIDES if counts[side] > _HELD_SHARE * total)

    def only(self, side: int, mask: np.ndarray) -> np.ndarray:
        """The mask without the other lung."""
        other = self._blocks.restored(np.where(self.split == side, 0, 1).astype(np.uint8))
        return np.where(other > 0, np.zeros_like(mask), mask)


def _check_same_side(held: list[_HeldLungs]) -> None:
    """Refuse the right lung of one scan beside the left one of the other.

    Where a scan shows one lung only, its side is not certain.
    """
    if not all(one.ct_shows_both for one in held):
        return
    sides = [one.sides_in_ct() for one in held]
    if len(sides[0]) == len(sides[1]) == 1 and sides[0] != sides[1]:
        raise InputDataError(
            f'The mask of {held[0].image.name} holds the {SIDES[sides[0][0]]} lung, that of '
            f'{held[1].image.name} the {SIDES[sides[1][0]]} one; expected masks of the same lungs '
            'in both. Give those, or none: the lungs are found then.'
        )
