"""All training images on one grid and one device, so that a batch of pairs is read at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputDataError
from ..geometry import Frame, Grid, apply_affine
from .stored import StoredVolume
from .subject import Subject

_MOST_CLASSES = 255


@dataclass(frozen=True, eq=False)
class Stack:
    """Images of several subjects, aligned by their affines to the world of the first.

    Parameters
    ----------
    images
        Intensity and weight of each, float16, (N, 2, X, Y, Z).
    labels
        Numbers into ``classes``, 0 for background, uint8, (N, X, Y, Z); None where a subject has
        no label map.
    classes
        How many labels there are, without background.
    center_mm
        Middle of the grid, (3,), in the common world.
    half_mm
        Distance from there to the outer voxels, (3,).
    extent_mm
        Half the size of the box around all masks, (3,).
    """

    images: Tensor
    labels: Tensor | None
    classes: int
    center_mm: np.ndarray
    half_mm: np.ndarray
    extent_mm: np.ndarray

    @classmethod
    def of(
        cls, subjects: Sequence[Subject], margin_mm: float, spacing_mm: float, device: str
    ) -> Stack:
        """Resample the subjects (trilinear, labels by nearest neighbour) once.

        Raises
        ------
        InputDataError
            The label maps hold more labels than can be told apart here.
        """
        hulls = [apply_affine(np.linalg.inv(one.affine), one.hull_mm) for one in subjects]
        points = np.concatenate(hulls)
        center = (points.min(axis=0) + points.max(axis=0)) / 2
        extent = np.ptp(points, axis=0) / 2 + margin_mm
        counts = 2 * np.ceil(extent / spacing_mm).astype(int) + 1
        affine = np.diag([spacing_mm] * 3 + [1.0])
        affine[:3, 3] = center - spacing_mm * (counts - 1) / 2
        grid = Grid(tuple(counts.tolist()), affine)
        values = _label_values(subjects)
        images, labels = [], []
        points = torch.from_numpy(grid.to_world(np.indices(grid.shape).reshape(3, -1).T))
        points = points.float().to(device)
        world = Frame((0.0, 0.0, 0.0), 1.0)
        for one in subjects:
            channels = torch.from_numpy(one.channels[..., [0, -1]]).to(device)
            read = StoredVolume(channels, one.grid, world, one.affine).sample(points)
            images.append(read.T.reshape(2, *grid.shape).half())
            if values is not None:
                numbers = (np.searchsorted(values, one.labels) + 1) * (one.labels > 0)
                numbered = torch.from_numpy(numbers.astype(np.uint8))[..., None].to(device)
                read = StoredVolume(numbered, one.grid, world, one.affine).nearest(points)
                labels.append(read.view(grid.shape))
        return cls(
            torch.stack(images),
            torch.stack(labels) if labels else None,
            0 if values is None else len(values),
            center,
            spacing_mm * (counts - 1) / 2,
            extent,
        )


def _label_values(subjects: Sequence[Subject]) -> np.ndarray | None:
    """The labels that occur, without 0, in order; None unless all subjects have label maps."""
    if any(one.labels is None for one in subjects):
        return None
    values = np.unique(np.concatenate([np.unique(one.labels) for one in subjects]))
    values = values[values > 0]
    if len(values) > _MOST_CLASSES:
        raise InputDataError(
            f'The label maps hold {len(values)} different labels; expected at most '
            f'{_MOST_CLASSES}. Merge some, or train without label maps.'
        )
    return values
