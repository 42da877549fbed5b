"""Images on their grids: load, check, conform, mask, normalise, save."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from .errors import InputDataError
from .files import atomic
from .geometry import Grid
from .image_file import checked_affine as checked_affine
from .image_file import open_image as open_image
from .image_file import read_voxels as read_voxels
from .interpolation import resample_array as resample_array

_STORED_AS = {'bool': np.uint8, 'int64': np.int32}


@dataclass(frozen=True, eq=False)
class Image:
    """A 3D array and where it lies.

    Parameters
    ----------
    data
        Array of shape ``grid.shape``; float32 for images, integers for labels, bool for masks.
    grid
        Where the voxels are, RAS+ mm.
    path
        The file it was read from, for messages.
    """

    data: np.ndarray
    grid: Grid
    path: Path | None = field(default=None)

    @property
    def name(self) -> str:
        """The file's name in quotes, or a word for an image without a file."""
        return f'"{self.path}"' if self.path else 'the image in memory'

    def with_data(self, data: np.ndarray) -> Image:
        """The same grid with other values."""
        return replace(self, data=data)


def load_image(path: str | os.PathLike) -> Image:
    """Read a 3D intensity image as float32.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It is not a NIfTI or MGH image, is truncated, is not 3D, has an affine that
        cannot be used, holds values that are not finite, or is the same value everywhere.
    """
    data, grid = _read(Path(path))
    with np.errstate(over='ignore'):
        data = np.asarray(data, dtype=np.float32)
    image = Image(data, grid, Path(path))
    check_values(image)
    return image


def check_values(image: Image) -> None:
    """Raise InputDataError where an image holds NaN or infinite values, or one value alone."""
    finite = np.isfinite(image.data)
    if not finite.all():
        raise InputDataError(
            f'{image.name} holds {finite.size - finite.sum()} values that are not finite (NaN or '
            'infinite); expected a number in every voxel. Replace them (for example by 0) and try '
            'again.'
        )
    if image.data.min() == image.data.max():
        raise InputDataError(
            f'{image.name} has the value {image.data.flat[0]:g} in every voxel; expected an image '
            'with contrast. Check that the right file was given.'
        )


def load_labels(path: str | os.PathLike) -> Image:
    """Read a 3D label map as int32; values must be whole numbers (0 is background)."""
    data, grid = _read(Path(path))
    most = np.iinfo(np.int32).max
    largest = max(float(data.max()), -float(data.min()))
    if largest > most:
        raise InputDataError(
            f'"{path}" holds a label of the size {largest:.0f}; expected numbers up to {most}. '
            'Renumber the labels.'
        )
    with np.errstate(invalid='ignore'):
        labels = np.asarray(np.rint(data), dtype=np.int32)
    if not np.allclose(data, labels, rtol=0, atol=1e-3):
        raise InputDataError(
            f'"{path}" holds values that are not whole numbers; expected a label map. Check that '
            'the right file was given.'
        )
    return Image(labels, grid, Path(path))


def load_mask(path: str | os.PathLike, like: Image | None = None) -> Image:
    """Read a mask (everything above 0.5 is inside).

    Parameters
    ----------
    path
        The mask's file.
    like
        The image it belongs to: their grids must be the same.
    """
    data, grid = _read(Path(path))
    mask = Image(np.asarray(data) > 0.5, grid, Path(path))
    if like is not None:
        check_same_grid(mask, like)
    if not mask.data.any():
        raise InputDataError(
            f'The mask "{path}" is empty; expected voxels above 0.5. Give another mask or none.'
        )
    return mask


def check_same_grid(image: Image, like: Image) -> None:
    """Raise InputDataError unless both images lie on the same voxels of the world."""
    if not image.grid.same_as(like.grid):
        raise InputDataError(
            f'{image.name} (shape {image.grid.shape}) does not lie on the grid of {like.name} '
            f'(shape {like.grid.shape}) or their affines differ; expected the same voxels. '
            'Resample it onto that image (nearest neighbour for labels) and try again.'
        )


def save_image(
    path: str | os.PathLike, data: np.ndarray, grid: Grid, intent: str | None = None
) -> Path:
    """Write a NIfTI image atomically, sform and qform both set to the grid's affine.

    ``data`` has the shape of the grid, possibly with further axes; bool is written as uint8, and
    int64, which few tools read, as int32.

    Raises
    ------
    InputDataError
        Numbers are too large for int32.
    """
    if data.dtype == np.int64 and data.size and np.abs(data).max() > np.iinfo(np.int32).max:
        raise InputDataError(
            f'"{path}" would hold the number {np.abs(data).max()}; expected numbers up to '
            f'{np.iinfo(np.int32).max}. Renumber the labels.'
        )
    data = data.astype(_STORED_AS.get(data.dtype.name, data.dtype), copy=False)
    image = nib.Nifti1Image(data, grid.affine)
    image.header.set_xyzt_units('mm')
    image.set_sform(grid.affine, code='scanner')
    image.set_qform(grid.affine, code='scanner')
    if intent:
        image.header.set_intent(intent)
    # Unlike nib.save, this closes the file on a full disk too.
    with atomic(path) as temporary, nib.openers.Opener(str(temporary), 'wb') as stream:
        image.to_stream(stream.fobj)
    return Path(path)


def _read(path: Path) -> tuple[np.ndarray, Grid]:
    """The array of a 3D image (float64 where scaled) and its checked grid."""
    image = open_image(path)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise InputDataError(
            f'"{path}" has the shape {image.shape}; expected a 3D image. '
            + ('Extract one volume first.' if len(shape) > 3 else 'This tool registers volumes.')
        )
    grid = Grid(shape, checked_affine(image, path))
    return read_voxels(image.dataobj, path).reshape(shape), grid


def foreground(image: Image) -> np.ndarray:
    """A rough mask of what is not background, bool, of the image's shape.

    Skull-stripped images have an exact constant outside: everything else is foreground.
    Otherwise Otsu's threshold on the robust range, largest component, holes filled.
    """
    data = image.data
    corner_value = _background_value(data)
    exact = data != corner_value
    inside = exact.mean()
    mask = exact if 0.005 < inside < 0.6 else data > _otsu(data)
    box = bounding_box(mask)
    labels, count = ndimage.label(mask[box])
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        labels = labels == sizes.argmax()
    filled = np.zeros_like(mask)
    filled[box] = ndimage.binary_fill_holes(labels)
    return filled


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box of indices that holds every true voxel (all of it when none is).

    >>> bounding_box(np.eye(3, dtype=bool)[None, :2])
    (slice(0, 1, None), slice(0, 2, None), slice(0, 2, None))
    """
    axes = [mask.any(axis=tuple(other for other in range(3) if other != a)) for a in range(3)]
    ends = [np.flatnonzero(along)[[0, -1]] if along.any() else (0, -1) for along in axes]
    return tuple(slice(int(first), int(last) + 1 if last >= 0 else None) for first, last in ends)


def _background_value(data: np.ndarray) -> float:
    """The most common value on the faces of the volume."""
    # Indexing makes a view; ndarray.take copies a whole volume that is not in C order.
    faces = [np.moveaxis(data, axis, 0)[i].ravel() for axis in range(3) for i in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()])


def _otsu(data: np.ndarray, bins: int = 256) -> float:
    """Otsu's threshold (IEEE Trans SMC 9, 1979) between the 0.5th and 99.5th percentile."""
    low, high = np.percentile(data[::2, ::2, ::2], [0.5, 99.5])
    if low == high:
        # What is not background is so small that no percentile sees it.
        low, high = data.min(), data.max()
    counts, edges = np.histogram(data, bins=bins, range=(low, high))
    centers = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)
    total = np.cumsum(counts * centers)
    other = weight[-1] - weight
    with np.errstate(divide='ignore', invalid='ignore'):
        between = (total[-1] * weight / weight[-1] - total) ** 2 / (weight * other)
    return float(centers[np.nanargmax(between)])


def normalise(data: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Scale intensities so that the 1st and 99th percentile inside ``mask`` become 0 and 1.

    Values are clipped to [-0.1, 1.5]; the result is float32 of the same shape.
    """
    inside = data[mask] if mask is not None else data
    low, high = np.percentile(inside, [1.0, 99.0])
    scaled = np.subtract(data, low, dtype=np.float32)
    scaled /= np.float32(max(high - low, 1e-6))
    return np.clip(scaled, -0.1, 1.5, out=scaled)
