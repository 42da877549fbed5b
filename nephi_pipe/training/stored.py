"""Images of a training as they are read: point by point, from where they are stored."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..field.interpolate import read_grid
from ..geometry import Frame, Grid, apply_affine
from .augment import PointWarp
from .breathing import with_density


class StoredVolume:
    """Channels of a subject, linearly interpolated at normalised points, zero outside.

    As :class:`nephi_pipe.learning.volume.Volume`, for channels that lie next to each other: only
    the voxels around the points are read.

    Parameters
    ----------
    channels
        (X, Y, Z, C) of any type of number; the outer voxels are zero.
    grid, frame
        Where the voxels are, and the coordinates in which points are given.
    world
        4x4, mm of the frame to mm of the grid.
    warp
        A deformation of the points, before everything else.
    log_volume
        Logarithm of the change of volume that the first channel's density follows, on a lattice
        over [-1, 1] of the points as they are given, (n, n, n, 1).
    """

    def __init__(
        self,
        channels: Tensor,
        grid: Grid,
        frame: Frame,
        world: np.ndarray,
        warp: PointWarp | None = None,
        log_volume: Tensor | None = None,
    ) -> None:
        self._shape = channels.shape[:3]
        self._flat = channels.reshape(-1, channels.shape[-1])
        to_index = grid.inverse_affine @ world
        matrix = to_index[:3, :3] * frame.scale_mm
        offset = apply_affine(to_index, np.array(frame.center_mm))
        device = channels.device
        self._matrix = torch.from_numpy(matrix.T.copy()).float().to(device)
        self._offset = torch.from_numpy(offset).float().to(device)
        self._warp, self._log_volume = warp, log_volume

    def sample(self, points: Tensor) -> Tensor:
        """Values (N, C) at normalised points (N, 3); differentiable in the points."""
        index, weights = self._corners(points)
        values = (weights[..., None] * self._flat[index].float()).sum(dim=1)
        if self._log_volume is None:
            return values
        change = read_grid(self._log_volume.to(points), points)
        return torch.cat([with_density(values[:, :1], change), values[:, 1:]], dim=1)

    def shares(self, points: Tensor, classes: Tensor) -> Tensor:
        """Shares (N, K) of the labels ``classes`` (K,) in the first channel, differentiable."""
        index, weights = self._corners(points)
        same = self._flat[index][..., 0, None] == classes
        return (weights[..., None] * same).sum(dim=1)

    def nearest(self, points: Tensor) -> Tensor:
        """Values (N,) of the first channel in the voxels that weigh most."""
        index, weights = self._corners(points)
        best = weights.argmax(dim=1, keepdim=True)
        return self._flat[index.gather(1, best)[:, 0], 0]

    def _corners(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices and weights (N, 8) of the voxels around points."""
        if self._warp is not None:
            points = self._warp(points)
        position = torch.addmm(self._offset, points, self._matrix)
        index = torch.zeros(len(points), 1, dtype=torch.long, device=points.device)
        weights = torch.ones(len(points), 1, device=points.device)
        for axis, size in enumerate(self._shape):
            along = position[:, axis].clamp(0, size - 1)
            first = along.detach().floor().clamp_max(size - 2)
            t = along - first
            both = torch.stack([first.long(), first.long() + 1], dim=1)
            index = (index[:, :, None] * size + both[:, None]).flatten(1)
            weights = (weights[:, :, None] * torch.stack([1 - t, t], dim=1)[:, None]).flatten(1)
        return index, weights
