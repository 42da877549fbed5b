"""The door for image files: opened by nibabel once their headers make sense.

A header may declare a terabyte in a file of a kilobyte, or send the parser through gigabytes of
compressed zeros. What it declares is compared with what the file can hold before any of it is
allocated. NIfTI-1, NIfTI-2 and MGH are read: formats that say where their voxels are.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .errors import InputDataError, NoInputError
from .geometry import Grid, flaw_of_grid
from .reading import existing_file

logger = logging.getLogger(__name__)

FORM_TOLERANCE_MM = 0.5
"""sform and qform that place a corner further apart than this are reported."""

MOST_VOXELS = 1 << 31
"""Of a volume; the memory of a registration would be 100 GB."""

_KINDS = (nib.Nifti1Pair, nib.Nifti1Image, nib.Nifti2Pair, nib.Nifti2Image, nib.MGHImage)

_COMPRESSED = ('.gz', '.mgz')
_INFLATION = 1032
"""DEFLATE makes at most so many bytes of one."""

_SLACK = 1 << 16
_MOST_EXTENSIONS = 1 << 26
"""Bytes of a header with its extensions."""


def open_image(path: str | os.PathLike) -> nib.spatialimages.SpatialImage:
    """Open an image file of any number of dimensions; its voxels are not read yet.

    Raises
    ------
    NoInputError
        There is no such file, or its content was not fetched.
    InputDataError
        It is not an image, or declares more voxels than it can hold.
    """
    path = existing_file(path, 'an image')
    try:
        kind = _kind(path)
        files = kind.filespec_to_file_map(path)
        _try_header(kind, files)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            image = kind.from_filename(path)
        _check_size(image, files['image'].filename)
    except MemoryError:
        raise
    except Exception as error:  # a parser of foreign bytes stumbles in many ways
        if _is_pointer(path):
            raise NoInputError(
                f'"{path}" holds no image but a pointer to one; expected the content itself. '
                'Fetch it first (for example with "datalad get" or "git lfs pull").'
            ) from error
        raise InputDataError(
            f'"{path}" is not an image that can be read ({_reason(error)}); expected NIfTI '
            '(.nii, .nii.gz) or MGH (.mgh, .mgz). Convert it, or copy or download it again.'
        ) from error
    return image


def read_voxels(data: Any, path: str | os.PathLike) -> np.ndarray:
    """The voxels of ``data``, an image's ``dataobj`` or a part of it by a function of no argument.

    Raises
    ------
    InputDataError
        They cannot be read to their end, or are no real numbers.
    """
    try:
        with np.errstate(all='ignore'):
            voxels = np.asanyarray(data() if callable(data) else data)
    except MemoryError:
        raise
    except Exception as error:
        raise InputDataError(
            f'"{path}" cannot be read to its end ({_reason(error)}); the file is truncated or '
            'damaged. Copy or download it again.'
        ) from error
    if voxels.dtype.kind not in 'biuf':
        raise InputDataError(
            f'"{path}" holds voxels of the type {voxels.dtype}; expected one real number in every '
            'voxel. Convert it first (for example to its magnitude or brightness).'
        )
    return voxels


def checked_affine(image: nib.spatialimages.SpatialImage, path: str | os.PathLike) -> np.ndarray:
    """The sform (or what nibabel takes in its absence), voxel indices to RAS+ mm, shape (4, 4).

    Raises
    ------
    InputDataError
        It cannot be used: zero, singular, not finite, or not in millimetres.
    """
    affine = np.asarray(image.affine, dtype=float)
    flaw = flaw_of_grid(image.shape[:3], affine)
    if flaw:
        raise InputDataError(
            f'"{path}" has an affine that {flaw}; expected one that places its voxels in the '
            'world, in millimetres. Repair the header (sform) and try again.'
        )
    _check_world(image, path)
    _report_different_forms(image, affine, path)
    return affine


def _is_pointer(path: Path) -> bool:
    """Whether a line of git-annex (unlocked) or git-lfs stands in the place of the content."""
    try:
        with open(path, 'rb') as stream:
            return stream.read(64).startswith((b'/annex/objects/', b'version https://git-lfs'))
    except OSError:
        return False


def _kind(path: Path) -> Any:
    sniffed = None
    for kind in _KINDS:
        fits, sniffed = kind.path_maybe_image(path, sniffed)
        if fits:
            return kind
    raise ValueError('its name or its first bytes are those of something else')


def _try_header(kind: Any, files: dict[str, Any]) -> None:
    """Read the header as nibabel will do it again, from a stream that ends early."""
    path = files.get('header', files['image']).filename
    with nib.openers.ImageOpener(path) as stream, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        kind.header_class.from_fileobj(_Bounded(stream, _room(path)), check=False)


class _Bounded:
    """A stream that gives so many bytes and goes no further than a file can reach."""

    def __init__(self, stream: Any, room: int) -> None:
        self._stream, self._room, self._left = stream, room, min(room, _MOST_EXTENSIONS)

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            raise ValueError('its header declares an extension that cannot be')
        self._left -= count
        return self._stream.read(count)

    def seek(self, offset: int, whence: int = 0) -> None:
        if whence or not 0 <= offset <= self._room:
            raise ValueError('its header declares more than the file can hold')
        self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()


def _room(path: str | os.PathLike) -> int:
    """Bytes that a file can hold when decompressed."""
    ratio = _INFLATION if str(path).lower().endswith(_COMPRESSED) else 1
    return ratio * os.path.getsize(path) + _SLACK


def _check_size(image: nib.spatialimages.SpatialImage, path: str) -> None:
    shape = image.shape
    data: Any = image.dataobj
    if any(int(n) < 1 for n in shape) or math.prod(shape[:3]) > MOST_VOXELS:
        raise ValueError(f'its header declares the shape {tuple(map(int, shape))}')
    size = math.prod(map(int, shape)) * data.dtype.itemsize
    if not 0 <= data.offset <= _room(path) or size > _room(path):
        raise ValueError(
            f'its header declares {size} bytes of voxels, more than a file of '
            f'{os.path.getsize(path)} can hold; it is truncated or damaged'
        )


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0].strip() else type(error).__name__


def _check_world(image: nib.spatialimages.SpatialImage, path: str | os.PathLike) -> None:
    """Refuse other units than mm, and tell where the header does not say where voxels lie."""
    if not isinstance(image, nib.Nifti1Pair):
        return
    header = image.header
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:  # no code of a unit
        unit = 'unknown'
    if unit not in ('mm', 'unknown'):
        raise InputDataError(
            f'"{path}" says that its unit is the {unit}; expected millimetres. Convert voxel '
            'sizes and affine to millimetres.'
        )
    if not header['sform_code'] and not header['qform_code']:
        logger.warning(
            '"%s" does not say where it lies (sform and qform have the code 0): its middle is '
            'taken as the origin, with x to the left. Other programs may place it elsewhere, and '
            'then do not apply transforms as they are meant; set a form with the tool that made '
            'the file.',
            path,
        )


def _report_different_forms(
    image: nib.spatialimages.SpatialImage, affine: np.ndarray, path: str | os.PathLike
) -> None:
    if not isinstance(image, nib.Nifti1Pair):
        return
    try:
        qform, code = image.get_qform(coded=True)
    except Exception:  # it is not used: a quaternion that is none does no harm
        return
    if not code or not image.header['sform_code'] or not np.isfinite(qform).all():
        return
    grid = Grid(image.shape[:3], affine)
    apart = np.abs(Grid(image.shape[:3], qform).corners() - grid.corners()).max()
    if apart > FORM_TOLERANCE_MM:
        logger.warning(
            'sform and qform of "%s" place it up to %.1f mm apart; the sform is used, and what is '
            'written carries both equal.',
            path,
            apart,
        )
