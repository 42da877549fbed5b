"""A volume in blocks of some millimetres, its axes those of the patient."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from .geometry import Grid
from .images import Image, bounding_box


@dataclass(frozen=True, eq=False)
class Coarse:
    """An image averaged in blocks; its axes run about to the right, to the front and to the head.

    Parameters
    ----------
    data
        Block means, float32.
    spacing
        Size of a block, mm, shape (3,).
    block
        Voxels of the image in a block, along each of the axes of ``data``.
    grid
        Grid of the image itself.
    """

    data: np.ndarray
    spacing: np.ndarray
    block: tuple[int, ...]
    grid: Grid

    @classmethod
    def of(cls, image: Image, size_mm: float) -> Coarse:
        """Blocks of whole voxels, about ``size_mm`` wide; larger voxels stay as they are."""
        to_ras = nib.orientations.io_orientation(image.grid.affine)
        data = nib.orientations.apply_orientation(image.data, to_ras)
        spacing = image.grid.spacing[np.argsort(to_ras[:, 0])]
        block = np.maximum(np.rint(size_mm / spacing), 1).astype(int)
        for axis, width in enumerate(block):
            data = _block_means(data, axis, width)
        data = np.ascontiguousarray(data, np.float32)
        return cls(data, spacing * block, tuple(block.tolist()), image.grid)

    def ml(self, voxels: np.ndarray | int) -> np.ndarray | float:
        """Volume of so many blocks."""
        return voxels * self.spacing.prod() / 1e3

    def restored(self, labels: np.ndarray) -> np.ndarray:
        """Labels of blocks brought back to the image's voxels and axes, uint8.

        Borders lie where each label, linearly interpolated, is one half.
        """
        fine = np.zeros(self.grid.shape, dtype=np.uint8)
        to_ras = nib.orientations.io_orientation(self.grid.affine)
        view = nib.orientations.apply_orientation(fine, to_ras)
        for label in np.unique(labels[labels > 0]):
            _paint(view, labels == label, self.block, label)
        return fine


def _block_means(data: np.ndarray, axis: int, width: int) -> np.ndarray:
    if width == 1:
        return data
    starts = np.arange(0, data.shape[axis], width)
    sums = np.add.reduceat(data, starts, axis, dtype=np.float32)
    counts = np.diff([*starts, data.shape[axis]]).astype(np.float32)
    return sums / np.expand_dims(counts, [other for other in range(3) if other != axis])


def _paint(fine: np.ndarray, coarse: np.ndarray, block: tuple[int, ...], label: int) -> None:
    """Set ``fine`` to ``label`` where ``coarse``, interpolated, is above one half."""
    if max(block) == 1:
        fine[coarse] = label
        return
    part = tuple(
        slice(max(side.start - 1, 0) * width, min((side.stop + 1) * width, n))
        for side, width, n in zip(bounding_box(coarse), block, fine.shape, strict=True)
    )
    width = np.array(block)
    first = np.array([side.start for side in part])
    share = ndimage.affine_transform(
        coarse.astype(np.float32),
        1 / width,
        (first + 0.5) / width - 0.5,
        output_shape=tuple(side.stop - side.start for side in part),
        order=1,
        mode='nearest',
    )
    fine[part][share > 0.5] = label
