"""Prepared training images on disk: made once, memory-mapped, read point by point.

An entry is a folder named by a checksum of what it was made from: the bytes of the image, its
mask and its labels, and the settings of the preparation. It appears complete or not at all, so
trainings may share a cache, and any of them may be killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from ..errors import InputDataError, NePhiError, StorageError
from ..files import explain, make_folder, write_json
from ..geometry import Frame, Grid, is_invertible
from ..images import check_same_grid, load_image, load_labels, load_mask
from ..presets import Preset
from ..presets.preparation import Prepared, affine_between, feature_channels, prepare
from ..reading import MOST_JSON_BYTES, parse_json, read_text
from .files import Files
from .subject import RESERVE, Subject, Thumbnail

AFFINES = 'affines.json'
"""Affines that were found, in the folder of a cache: each costs some seconds."""

_FORMAT = 'nephi-cache-1'
_META = 'entry.json'
_FINER = 0.75
"""Voxels of the encoder's copy in units of the distance of its nodes."""

_ABANDONED_S = 86_400.0
_FLOOR_BYTES = 50 << 20


def load_subjects(
    files: Sequence[Files], chosen: Preset, encoder_grid: int, folder: Path
) -> list[Subject]:
    """Every image from the cache, where it is put if it is not there yet.

    Parameters
    ----------
    files
        The images; the first one's world is the common one.
    chosen
        How images of this kind are prepared; features are those of its last level. Lungs are
        only compared within a person, whose first image's world is then the common one.
    encoder_grid
        Nodes along each axis of the encoder's cube.
    folder
        The cache.

    Raises
    ------
    NoInputError, InputDataError
        A file that is not there or cannot be used.
    StorageError
        There is no space left.
    """
    _remove_leftovers(make_folder(folder))
    affines = _Affines(folder / AFFINES)
    entries = [_entry(one, chosen, encoder_grid, folder) for one in files]
    subjects: list[Subject] = []
    firsts: dict[str, Files] = {}
    for one, entry in zip(files, entries, strict=True):
        first = firsts.setdefault(one.person if chosen.lungs else '', one)
        matrix = np.eye(4) if first is one else affines.between(first, one, chosen)
        subjects.append(replace(_open(entry), affine=matrix, person=one.person))
    return subjects


def prepared_of(one: Files, chosen: Preset) -> Prepared:
    """An image as ``nephi register`` prepares it, cropped to its mask."""
    image = load_image(one.image)
    mask = load_mask(one.mask, like=image).data if one.mask else None
    return prepare(image, mask, None, chosen).cropped()


def _entry(one: Files, chosen: Preset, encoder_grid: int, folder: Path) -> Path:
    """The folder of an image in the cache, made where there is none that can be used."""
    path = folder / _key(one, chosen, encoder_grid)
    try:
        _open(path)
    except (NePhiError, OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(path, ignore_errors=True)
        _build(one, chosen, encoder_grid, path)
    return path


def _key(one: Files, chosen: Preset, encoder_grid: int) -> str:
    settings = chosen.optimisation
    made_by = {
        'format': _FORMAT,
        'files': {kind: value for kind, value in one.checksums.items() if kind != 'name'},
        'similarity': settings.similarity,
        'window': settings.window,
        'level': asdict(settings.levels[-1]),
        'intensity_range': chosen.intensity_range,
        'margin_mm': chosen.margin_mm,
        'encoder_grid': encoder_grid,
    }
    if settings.similarity == 'mind':
        made_by['neighbours'] = 'of the world'
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:32]


def _build(one: Files, chosen: Preset, encoder_grid: int, path: Path) -> None:
    """Prepare one image; the entry gets its name when all of it is written."""
    prepared = prepared_of(one, chosen)
    settings = chosen.optimisation
    channels = feature_channels(prepared, settings.levels[-1], settings, 'cpu')
    channels = np.pad(channels.movedim(0, -1).half().numpy(), [(1, 1)] * 3 + [(0, 0)])
    grid = prepared.grid.cropped((-1,) * 3, np.array(prepared.grid.shape) + 1)
    mask = np.pad(prepared.mask, 1)
    hull = hull_of(prepared)
    apart_mm = 2 * RESERVE * Frame.around(hull, chosen.margin_mm).scale_mm / (encoder_grid - 1)
    small = thumbnail_of(prepared, _FINER * apart_mm)
    arrays = {
        'channels': channels,
        'inside': np.flatnonzero(mask).astype(np.int32),
        'hull': hull,
        'thumbnail': small.data,
    }
    if one.labels:
        arrays['labels'] = _labels_on(one, grid)
    meta = {
        'format': _FORMAT,
        'name': one.image.name,
        'shape': grid.shape,
        'affine': grid.affine,
        'thumbnail_affine': small.grid.affine,
        'arrays': sorted(arrays),
    }
    _check_space(path, sum(array.nbytes for array in arrays.values()))
    temporary = path.with_name(f'.{uuid.uuid4().hex[:8]}.partial.{path.name}')
    try:
        temporary.mkdir()
        for name, array in arrays.items():
            _save(temporary / f'{name}.npy', array)
        write_json(temporary / _META, meta)
        os.replace(temporary, path)
    except OSError as error:
        # Another process of the same training may have been faster.
        if not (path / _META).exists():
            raise explain(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what was being built when its process was killed, and nobody builds any more."""
    for path in folder.glob('.*.partial.*'):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path)


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, 'wb') as stream:
        np.save(stream, array)
        stream.flush()
        os.fsync(stream.fileno())


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed + _FLOOR_BYTES:
        raise StorageError(
            f'The cache "{path.parent}" needs {needed >> 20} MB for the next image, found '
            f'{free >> 20} MB free, expected {_FLOOR_BYTES >> 20} MB more than that. Free some '
            'space or choose another --cache folder, and run the same command again.'
        )


def _open(path: Path) -> Subject:
    """An entry, its large arrays mapped; any error where something is amiss."""
    meta = parse_json(read_text(path / _META, 'an entry of a cache', MOST_JSON_BYTES))
    if meta['format'] != _FORMAT:
        raise ValueError('another format')
    arrays = {name: _map(path, name) for name in meta['arrays']}
    grid = Grid(tuple(meta['shape']), np.array(meta['affine']))
    if arrays['channels'].shape[:3] != grid.shape:
        raise ValueError('arrays of another shape')
    small = np.array(arrays['thumbnail'])
    return Subject(
        grid,
        arrays['channels'],
        arrays['inside'],
        np.array(arrays['hull']),
        Thumbnail(small, Grid(small.shape, np.array(meta['thumbnail_affine']))),
        arrays.get('labels'),
        np.eye(4),
        meta['name'],
        '',
    )


def _map(path: Path, name: Any) -> np.ndarray:
    # Copy on write: torch wants arrays that could be written to, the file is never changed.
    mapped = np.lib.format.open_memmap(path / f'{name}.npy', mode='c')
    return mapped.view(np.ndarray)


def hull_of(prepared: Prepared) -> np.ndarray:
    """Vertices of the convex hull of a mask, (H, 3) mm."""
    # The hull of a solid is that of the first and last voxel of each of its rows.
    rows = np.argwhere(prepared.mask.any(axis=2))
    along = prepared.mask[tuple(rows.T)]
    ends = (along.argmax(axis=1), along.shape[1] - 1 - along[:, ::-1].argmax(axis=1))
    points = np.concatenate([np.column_stack([rows, end]) for end in ends])
    try:
        points = points[ConvexHull(points).vertices]
    except QhullError:  # a flat mask
        points = np.unique(points, axis=0)
    return prepared.grid.to_world(points)


def thumbnail_of(prepared: Prepared, spacing_mm: float) -> Thumbnail:
    """Means over blocks of voxels, about ``spacing_mm`` along each axis, as float32."""
    block = np.maximum(np.round(spacing_mm / prepared.grid.spacing).astype(int), 1)
    data = prepared.data
    data = np.pad(data, [(0, int(-n % b)) for n, b in zip(data.shape, block, strict=True)])
    shape = [part for n, b in zip(data.shape, block, strict=True) for part in (n // b, b)]
    small = data.reshape(shape).mean(axis=(1, 3, 5), dtype=np.float32)
    affine = prepared.grid.affine @ np.diag([*block, 1.0])
    affine[:3, 3] = prepared.grid.to_world((block - 1) / 2)
    return Thumbnail(small, Grid(small.shape, affine))


def _labels_on(one: Files, grid: Grid) -> np.ndarray:
    """A label map, cropped and padded to a grid that is its own but for its borders."""
    labels, image = load_labels(one.labels), load_image(one.image)
    check_same_grid(labels, image)
    most = np.iinfo(np.uint16).max
    if labels.data.max() > most:
        raise InputDataError(
            f'{labels.name} holds the label {labels.data.max()}; a training tells labels up to '
            f'{most} apart. Renumber the labels of all people alike.'
        )
    first = np.rint(image.grid.to_index(grid.to_world(np.zeros(3)))).astype(int)
    found = np.zeros(grid.shape, dtype=np.uint16)
    lower = np.maximum(first, 0)
    upper = np.minimum(first + grid.shape, image.grid.shape)
    there = tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))
    here = tuple(slice(a, b) for a, b in zip(lower - first, upper - first, strict=True))
    found[here] = np.maximum(labels.data[there], 0)
    return found


class _Affines:
    """Affines by what they depend on, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = parse_json(read_text(path, 'affines', MOST_JSON_BYTES))
        except (NePhiError, ValueError):
            found = {}
        found = found.items() if isinstance(found, dict) else ()
        self._known = {key: value for key, value in found if _is_affine(value)}
        self._first: tuple[Path, Prepared] | None = None

    def between(self, first: Files, other: Files, chosen: Preset) -> np.ndarray:
        """4x4, the first image's mm to the other's."""
        key = f'{first.aligned_by} {other.aligned_by}'
        if key not in self._known:
            if self._first is None or self._first[0] != first.image:
                self._first = first.image, prepared_of(first, chosen)
            a, b = self._first[1], prepared_of(other, chosen)
            self._known[key] = affine_between(a, b, chosen).tolist()
            write_json(self.path, self._known)
        return np.array(self._known[key], dtype=float)


def _is_affine(value: object) -> bool:
    try:
        matrix = np.array(value, dtype=float)
    except (ValueError, TypeError, OverflowError):
        return False
    return matrix.shape == (4, 4) and is_invertible(matrix)
