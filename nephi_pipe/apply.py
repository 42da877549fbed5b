"""Files through transforms: 3D and 4D images resampled, tables of points mapped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from .errors import InputDataError, UsageError
from .files import atomic
from .geometry import Grid
from .image_file import checked_affine, open_image, read_voxels
from .landmarks import read_points, write_points
from .transforms import (
    INTERPOLATIONS,
    PointMap,
    Transform,
    map_slabs,
    read_transform,
    voxel_reader,
)


def read_chain(paths: Sequence[str | os.PathLike]) -> Transform:
    """Read transforms listed from the reference to the image.

    Points of the reference pass through them in the order given, which is the order of
    antsApplyTransforms: with from-B_to-C first and from-A_to-B second, points of C reach A.
    """
    return Transform([read_transform(path) for path in paths])


def read_grid(path: str | os.PathLike) -> Grid:
    """The grid of a 3D or 4D image; its voxels are not read.

    Raises
    ------
    NoInputError, InputDataError
        It is not there, not an image, not 3D or 4D, or its affine cannot be used.
    """
    return _grid(open_image(path), path)


def apply_to_image(
    path: str | os.PathLike,
    transform: Transform | PointMap,
    grid: Grid,
    output: str | os.PathLike,
    interpolation: str = 'linear',
    cval: float = 0.0,
) -> Path:
    """Resample an image file, 3D or 4D, onto a grid and write it.

    Parameters
    ----------
    path
        The image; the volumes of a 4D image are read and written one after the other.
    transform
        Maps points of the grid to points of the image, mm.
    grid
        Where the result lies.
    output
        A name in ``.nii.gz`` or ``.nii``. Float32 for 'linear' and 'cubic', the type of the file
        for 'nearest' and 'labels'; a 4D image keeps the distance of its volumes.
    interpolation
        One of :data:`nephi_pipe.transforms.INTERPOLATIONS`.
    cval
        The value where the image has none.

    Raises
    ------
    NoInputError, InputDataError
        The image is not there or cannot be used.
    UsageError
        There is no such interpolation, the output has another suffix, or its type cannot hold
        ``cval``.
    OutputError, StorageError
        The result cannot be written.
    """
    output = Path(output)
    if not output.name.endswith(('.nii', '.nii.gz')):
        raise UsageError(f'Cannot write an image to "{output}"; expected .nii.gz or .nii.')
    image = open_image(path)
    source = _grid(image, path)
    to_source = Transform([transform, source.inverse_affine])
    kind = _stored_type(image) if INTERPOLATIONS.get(interpolation) == 0 else np.dtype('f4')
    if kind.kind in 'iu' and not (
        cval % 1 == 0 and np.iinfo(kind).min <= cval <= np.iinfo(kind).max
    ):
        raise UsageError(
            f'{cval:g} outside of the image cannot be stored, since "{path}" holds {kind} '
            'numbers; expected a whole number of their range. Choose another value.'
        )
    # The way of the points is found once when several volumes take it.
    slabs = list(map_slabs(to_source, grid)) if _volume_count(image) > 1 else None
    header = _header(image, grid, kind)
    with atomic(output) as temporary, nib.openers.Opener(str(temporary), 'wb') as stream:
        header.write_to(stream)
        stream.write(b'\0' * (header.single_vox_offset - stream.tell()))
        for volume in _volumes(image, Path(path)):
            read = voxel_reader(_checked(volume, path, interpolation), interpolation, cval)
            moved = np.empty(grid.shape, dtype=kind)
            for slab, index in slabs or map_slabs(to_source, grid):
                moved[slab] = read(index)
            stream.write(moved.tobytes(order='F'))
    return output


def apply_to_points(
    path: str | os.PathLike, transform: Transform | PointMap, output: str | os.PathLike
) -> Path:
    """Map a table of points (columns x, y, z in RAS+ mm); other columns are kept.

    A transform ``from-moving_to-fixed`` takes points of the fixed image to the moving one.

    Raises
    ------
    NoInputError, InputDataError
        As :func:`nephi_pipe.landmarks.read_points`.
    """
    table = read_points(path)
    mapped = Transform([transform]).map_points(table.points)
    return write_points(output, table.with_points(mapped))


def _shape(image: nib.spatialimages.SpatialImage) -> tuple[int, ...]:
    """The shape without trailing axes of length one beyond the third."""
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _volume_count(image: nib.spatialimages.SpatialImage) -> int:
    return int(np.prod(_shape(image)[3:], dtype=int))


def _grid(image: nib.spatialimages.SpatialImage, path: str | os.PathLike) -> Grid:
    shape = _shape(image)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise InputDataError(
            f'"{path}" has the shape {image.shape}; expected a 3D or 4D image. Extract what is to '
            'be resampled first.'
        )
    return Grid(shape[:3], checked_affine(image, path))


def _stored_type(image: nib.spatialimages.SpatialImage) -> np.dtype:
    """The type of the voxels on disk, or float32 where they are scaled when read."""
    data = image.dataobj
    plain = getattr(data, 'slope', 1) == 1 and getattr(data, 'inter', 0) == 0
    return image.get_data_dtype().newbyteorder('=') if plain else np.dtype('f4')


def _volumes(image: nib.spatialimages.SpatialImage, path: Path) -> Iterator[np.ndarray]:
    shape, count = _shape(image), _volume_count(image)
    if count == 1:
        yield read_voxels(image.dataobj, path).reshape(shape[:3])
        return
    # One handle for all volumes: a compressed file is then read once and not once a volume.
    series = type(image).from_filename(path, keep_file_open=True).dataobj
    for number in range(count):
        one = (slice(None), slice(None), slice(None), number)
        yield read_voxels(partial(series.__getitem__, one), path).reshape(shape[:3])


def _checked(data: np.ndarray, path: str | os.PathLike, interpolation: str) -> np.ndarray:
    if INTERPOLATIONS.get(interpolation, 0) > 1 and not np.isfinite(data).all():
        raise InputDataError(
            f'"{path}" holds values that are not finite; cubic interpolation would spread them '
            'over the whole image. Use linear or nearest, or replace them first.'
        )
    return data


def _header(image: nib.spatialimages.SpatialImage, grid: Grid, kind: np.dtype) -> nib.Nifti1Header:
    """The geometry of the grid with the image's number and distance of volumes."""
    series = _shape(image)[3:]
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape((*grid.shape, *series))
    header.set_zooms((*grid.spacing, *image.header.get_zooms()[3 : 3 + len(series)]))
    units = image.header.get_xyzt_units() if isinstance(image, nib.Nifti1Image) else ()
    header.set_xyzt_units('mm', *units[1:])
    header.set_sform(grid.affine, code='scanner')
    header.set_qform(grid.affine, code='scanner')
    header.set_slope_inter(1, 0)
    header['vox_offset'] = header.single_vox_offset
    return header
