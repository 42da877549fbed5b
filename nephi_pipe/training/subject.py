"""A prepared training image whose arrays stay on disk until they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..geometry import Frame, Grid

RESERVE = 1.1
"""A model's scale over that of the largest image it is trained on."""


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """Means over blocks of voxels: what the encoder's cube is read from."""

    data: np.ndarray
    grid: Grid


@dataclass(frozen=True, eq=False)
class Subject:
    """A prepared image whose arrays stay on disk until they are read.

    Parameters
    ----------
    grid
        Where the voxels are; a layer of empty ones lies around what the mask needs.
    channels
        Features and, last, the weight: float16, (X, Y, Z, C + 1).
    inside
        Flat indices of the voxels of the mask, int32.
    hull_mm
        Vertices (H, 3) of the convex hull of the mask, mm: a box around the mask is a box around
        them, whatever affine they are moved by.
    thumbnail
        For the encoder.
    labels
        uint16 label map on the grid, or None.
    affine
        4x4, mm of the first image's world to this one's.
    name
        Of the file, for messages.
    person
        Whose scan it is.
    """

    grid: Grid
    channels: np.ndarray
    inside: np.ndarray
    hull_mm: np.ndarray
    thumbnail: Thumbnail
    labels: np.ndarray | None
    affine: np.ndarray
    name: str
    person: str

    @cached_property
    def on_device(self) -> dict[str, Tensor]:
        """Channels by device; on the processor they are the file's own pages."""
        return {'cpu': torch.from_numpy(self.channels)}

    def channels_on(self, device: str) -> Tensor:
        """The channels on a device, where they stay."""
        if device not in self.on_device:
            self.on_device[device] = self.on_device['cpu'].to(device)
        return self.on_device[device]

    def random_points(self, count: int, generator: torch.Generator) -> np.ndarray:
        """World positions (N, 3) mm inside the mask, not at voxel centres; at most one a voxel."""
        count = min(count, len(self.inside))
        chosen = torch.randint(len(self.inside), (count,), generator=generator).numpy()
        index = np.stack(np.unravel_index(self.inside[chosen], self.grid.shape), axis=-1)
        jitter = torch.rand(count, 3, generator=generator).numpy() - 0.5
        return self.grid.to_world(index + jitter)

    def labels_at(self, points_mm: np.ndarray) -> np.ndarray:
        """Labels of the voxels that hold the points (N, 3), 0 outside of the image."""
        index = np.rint(self.grid.to_index(points_mm)).astype(int)
        inside = ((index >= 0) & (index < self.grid.shape)).all(axis=1)
        found = np.zeros(len(index), dtype=int)
        found[inside] = self.labels[tuple(index[inside].T)]
        return found


def scale_of(subjects: Sequence[Subject], margin_mm: float) -> float:
    """A scale in mm for the frames of all pairs: a tenth more than the largest subject needs."""
    sizes = [Frame.around(one.hull_mm, margin_mm).scale_mm for one in subjects]
    return float(np.ceil(RESERVE * max(sizes)))
