"""Feature volumes that are read at points of the normalised frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Frame, Grid, apply_affine

_NEIGHBOUR, _PATCH = 2, 0.8
"""Of MIND-SSC, in voxels: how far neighbours are, and the standard deviation of a patch."""

_WHOLE = 1e-4
"""Voxels: a step that is nearer to a whole number of them is one."""


class Volume:
    """Channels on a voxel grid, linearly interpolated at normalised points, zero outside.

    Parameters
    ----------
    channels
        Tensor of shape (C, X, Y, Z).
    grid
        Where the voxels are.
    frame
        The normalised coordinates in which points are given.
    world_from_frame
        4x4 mm to mm: maps a fixed world point to this image's world (the affine stage), identity
        for the fixed image.
    """

    def __init__(
        self, channels: Tensor, grid: Grid, frame: Frame, world_from_frame: np.ndarray
    ) -> None:
        self.channels = channels[None]
        self._matrix, self._offset = _to_grid_sample(grid, frame, world_from_frame)
        self._matrix = self._matrix.to(channels)
        self._offset = self._offset.to(channels)

    def sample(self, points: Tensor, channels: slice = slice(None)) -> Tensor:
        """Values (N, C) at normalised points (N, 3); differentiable in the points."""
        position = torch.addmm(self._offset, points, self._matrix.T).view(1, 1, 1, -1, 3)
        read = self.channels[:, channels]
        values = F.grid_sample(read, position, padding_mode='zeros', align_corners=True)
        return values.view(read.shape[1], -1).T


def _to_grid_sample(
    grid: Grid, frame: Frame, world_from_frame: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Normalised point -> grid_sample's coordinates, which are [-1, 1] and in reverse order."""
    to_index = grid.inverse_affine @ world_from_frame
    scale = 2 / np.maximum(np.array(grid.shape) - 1, 1)
    matrix = scale[:, None] * to_index[:3, :3] * frame.scale_mm
    offset = scale * apply_affine(to_index, np.array(frame.center_mm)) - 1
    return torch.tensor(matrix[::-1].copy()), torch.tensor(offset[::-1].copy())


def smooth(volume: Tensor, sigma_voxels: np.ndarray | list[float]) -> Tensor:
    """Gaussian smoothing of (C, X, Y, Z), border repeated, one sigma for each axis in voxels."""
    for axis, sigma in enumerate(sigma_voxels):
        if sigma < 0.1:
            continue
        radius = min(math.ceil(3 * float(sigma)), volume.shape[axis + 1] - 1)
        offsets = torch.arange(-radius, radius + 1, dtype=volume.dtype, device=volume.device)
        kernel = torch.exp(-(offsets**2) / (2 * float(sigma) ** 2))
        kernel = kernel / kernel.sum()
        moved = volume.movedim(axis + 1, -1)
        rows = moved.reshape(-1, 1, moved.shape[-1])
        rows = F.conv1d(F.pad(rows, (radius, radius), mode='replicate'), kernel.view(1, 1, -1))
        volume = rows.view(moved.shape).movedim(-1, axis + 1)
    return volume


def locally_normalised(image: Tensor, mask: Tensor, sigma_voxels: np.ndarray) -> Tensor:
    """Intensity less its local mean, over its local standard deviation, zero outside the mask.

    Means are Gaussian and taken inside ``mask`` only, so a brain's edge does not bleed.
    Shapes (X, Y, Z). Regions flatter than 2 % of the intensity range stay flat.
    """
    inside = mask.to(image.dtype)
    moments = smooth(torch.stack([inside, image * inside, image**2 * inside]), sigma_voxels)
    weight = moments[0] + 1e-4
    mean = moments[1] / weight
    variance = (moments[2] / weight - mean**2).clamp_min(0)
    return (image - mean) / (variance + 0.02**2).sqrt() * inside


def mind_features(
    image: Tensor,
    axes: np.ndarray | None = None,
    sigma_voxels: Sequence[float] = (_PATCH,) * 3,
) -> Tensor:
    """MIND-SSC: twelve self-similarity channels in [0, 1] (Heinrich et al., MICCAI 2013).

    ``image`` (X, Y, Z) -> (12, X, Y, Z); each channel compares two of the six neighbours of a
    voxel that lie at a right angle to each other.

    Parameters
    ----------
    image
        Intensities.
    axes
        3x3: from a voxel to the neighbour on each of three axes (columns), in voxels. Two images
        are comparable where these are the same steps in the world, however each is stored;
        None for two voxels along the image's own axes. Between voxels values are linear.
    sigma_voxels
        Standard deviation of a patch along each axis of the image.
    """
    axes = _NEIGHBOUR * np.eye(3) if axes is None else axes
    steps = np.concatenate([axes.T, -axes.T])
    pairs = [(a, b) for a in range(6) for b in range(a) if a - b != 3]
    shifted = [_shifted(image, step) for step in steps.tolist()]
    differences = torch.stack([(shifted[a] - shifted[b]) ** 2 for a, b in pairs])
    distances = smooth(differences, list(sigma_voxels))
    distances = distances - distances.min(dim=0).values
    variance = distances.mean(dim=0)
    middle = variance.mean()
    variance = variance.clamp(middle * 1e-3, middle * 1e3)
    return torch.exp(-distances / variance)


def mind_geometry(
    grid: Grid, world_from_frame: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """``axes`` and ``sigma_voxels`` of :func:`mind_features` for an image.

    Parameters
    ----------
    grid
        Of the image.
    world_from_frame
        4x4, the common world to that of the image, mm.
    spacing_mm
        What counts as a voxel in the common world.
    """
    axes = (grid.inverse_affine @ world_from_frame)[:3, :3] * (_NEIGHBOUR * spacing_mm)
    return axes, _PATCH * spacing_mm / grid.spacing


def _shifted(image: Tensor, offset: Sequence[float]) -> Tensor:
    """What lies ``offset`` voxels further; linear between voxels, the border is repeated."""
    for axis, along in enumerate(offset):
        # Steps that are whole but for the rounding of an affine need no interpolation.
        first = math.floor(along + _WHOLE)
        part = max(along - first, 0.0)
        index = torch.arange(image.shape[axis], device=image.device) + first
        last = image.shape[axis] - 1
        near = image.index_select(axis, index.clamp(0, last))
        if part < 2 * _WHOLE:
            image = near
        else:
            image = torch.lerp(near, image.index_select(axis, (index + 1).clamp(0, last)), part)
    return image
