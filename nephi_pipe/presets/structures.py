"""The structures of prepared images, by a network."""

from __future__ import annotations

import logging

import numpy as np
import torch
from scipy import ndimage

from ..geometry import Grid
from ..learning.structure_net import StructureNet
from ..learning.structures import Structures, StructuresOfPair, overlap
from .preparation import Prepared

logger = logging.getLogger(__name__)

LEAST_OVERLAP = 0.3
"""Dice after the affine, below which structures are not those of both images."""

_FINE_MM, _COARSE_MM = 1.0, 2.0
_MARGIN_MM = 6.0
_MOST_MM = 256.0
"""What is longer is no brain alone."""


def structures_of_pair(
    fixed: Prepared,
    moving: Prepared,
    affine: np.ndarray,
    network: StructureNet,
    device: str = 'cpu',
) -> StructuresOfPair | None:
    """Those of both images, or None where they cannot be those of one organ.

    Parameters
    ----------
    affine
        4x4, fixed mm to moving mm: the moving image is looked at from where it shows the fixed
        one's pose.
    network
        Finds them in either image.
    device
        Where it does, and where the result lies.
    """
    left, _, right = np.linalg.svd(affine[:3, :3])
    network = network.to(device)
    found = (
        find_structures(fixed, network, np.eye(3), device),
        find_structures(moving, network, left @ right, device),
    )
    if found[0] is None or found[1] is None:
        logger.warning(
            'What is compared is longer than %d mm: no structures of the brain are looked for, '
            'and intensities alone are compared. Give masks of the brain.',
            _MOST_MM,
        )
        return None
    reached = overlap((found[0], found[1]), fixed.mask_points, affine)
    if reached < LEAST_OVERLAP:
        logger.warning(
            'What was taken for structures of the brain overlaps by %.2f alone after the affine: '
            'intensities alone are compared. Check the affine and, where a skull is shown, give '
            'masks of the brain.',
            reached,
        )
        return None
    logger.info('Structures of the brain overlap by %.2f after the affine.', reached)
    return found[0], found[1]


def find_structures(
    image: Prepared, network: StructureNet, axes: np.ndarray, device: str = 'cpu'
) -> Structures | None:
    """Let a network look at an image on voxels of 1 mm; None of what is too long for a brain.

    Parameters
    ----------
    axes
        3x3, unit vectors to the right, the front and the head of the brain in the image's world
        (columns).
    """
    fine = _box_around(image, axes, network.multiple)
    if max(fine.shape) * _FINE_MM > _MOST_MM:
        return None
    to_index = image.grid.inverse_affine @ fine.affine
    data = ndimage.affine_transform(
        _seen_at(image.data, image.grid.spacing),
        to_index[:3, :3],
        to_index[:3, 3],
        output_shape=fine.shape,
        order=1,
    )
    with torch.no_grad():
        logits = network(torch.from_numpy(data)[None, None].to(device))
    return Structures(logits[0].softmax(dim=0)[1:].contiguous(), fine.resampled(_COARSE_MM))


def _box_around(image: Prepared, axes: np.ndarray, multiple: int) -> Grid:
    """Voxels of 1 mm around the mask, so many along each axis as the network can halve."""
    along = image.mask_points @ axes
    lower, upper = along.min(axis=0) - _MARGIN_MM, along.max(axis=0) + _MARGIN_MM
    shape = np.ceil((upper - lower) / multiple / _FINE_MM).astype(int) * multiple
    affine = np.eye(4)
    affine[:3, :3] = axes * _FINE_MM
    affine[:3, 3] = axes @ ((lower + upper) / 2 - _FINE_MM * (shape - 1) / 2)
    return Grid(tuple(shape.tolist()), affine)


def _seen_at(data: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Smoothed along axes whose voxels are smaller than those it will be read at."""
    sigma = np.sqrt(np.maximum((_FINE_MM / spacing) ** 2 - 1, 0)) / 2
    return ndimage.gaussian_filter(data, sigma) if sigma.max() > 0.3 else data
