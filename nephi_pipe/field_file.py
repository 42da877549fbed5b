"""The field itself as a small file: networks, code, geometry and provenance (.safetensors).

Half precision is used where it moves no checked point by 0.02 mm or more. The file can be
evaluated at any resolution, and holds both directions.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputDataError, NoInputError
from .files import atomic
from .geometry import Frame, Grid
from .images import Image

if TYPE_CHECKING:
    import torch

    from .result import Registration

FORMAT = 'nephi-field-1'

HALF_TOLERANCE_MM = 0.02
"""Largest displacement error for which half precision is used."""

_CHECKED = 2000


def write_field(path: str | os.PathLike, registration: Registration) -> Path:
    """Write a registration atomically; see :func:`nephi_pipe.load_registration`."""
    from safetensors.torch import save

    forward = registration.inverse if registration.inverted else registration
    tensors = dict(forward.field.state_dict())
    half = {name: value.half() if name != 'extent' else value for name, value in tensors.items()}
    if _half_error_mm(forward, half) < HALF_TOLERANCE_MM:
        tensors = half
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    for side in ('fixed', 'moving'):
        tensors[f'{side}_mask'] = _packed(getattr(forward, f'{side}_mask').data)
    header = {
        'format': FORMAT,
        'config': forward.field.config.as_dict(),
        'frame': asdict(forward.frame),
        'affine': forward.affine.tolist(),
        'inverted': registration.inverted,
        'history': forward.history,
        'provenance': forward.provenance,
    }
    for side in ('fixed', 'moving'):
        grid = getattr(forward, f'{side}_grid')
        header[f'{side}_grid'] = {'shape': grid.shape, 'affine': grid.affine.tolist()}
    # Not save_file: the error of a full disk must come from Python to be understood.
    content = save(tensors, metadata={'nephi': json.dumps(header)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def read_field(path: str | os.PathLike) -> Registration:
    """Read what :func:`write_field` wrote.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It is damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise NoInputError(f'There is no file "{path}"; expected a field file. Check the path.')
    try:
        with safe_open(path, framework='pt') as stream:
            header = json.loads((stream.metadata() or {})['nephi'])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        if header['format'] != FORMAT:
            raise KeyError(header['format'])
        return _restore(header, tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, zlib.error) as error:
        raise InputDataError(
            f'"{path}" is not a field that can be read ({type(error).__name__}: {error}); '
            f'expected a file of the format {FORMAT}. Write it again with "nephi register".'
        ) from error


def _restore(header: dict, tensors: dict) -> Registration:
    import torch

    from .field.config import FieldConfig
    from .field.deformation import NePhiField
    from .result import Registration

    grids = [
        Grid(tuple(header[f'{side}_grid']['shape']), np.array(header[f'{side}_grid']['affine']))
        for side in ('fixed', 'moving')
    ]
    masks = [
        Image(_unpacked(tensors.pop(f'{side}_mask'), grid.shape), grid)
        for side, grid in zip(('fixed', 'moving'), grids, strict=True)
    ]
    field = NePhiField(FieldConfig(**header['config']), torch.Generator())
    field.load_state_dict({name: value.float() for name, value in tensors.items()})
    frame = Frame(tuple(header['frame']['center_mm']), header['frame']['scale_mm'])
    forward = Registration(
        field,
        frame,
        np.array(header['affine']),
        *grids,
        *masks,
        history=header['history'],
        provenance=header['provenance'],
    )
    return forward.inverse if header['inverted'] else forward


def _half_error_mm(forward: Registration, half: dict) -> float:
    """Largest change of either displacement at random points of the box."""
    import copy

    import torch

    generator = torch.Generator().manual_seed(0)
    field = forward.field
    points = (torch.rand(_CHECKED, 3, generator=generator) * 2 - 1) * field.extent
    rounded = copy.deepcopy(field)
    rounded.load_state_dict({name: value.float() for name, value in half.items()})
    change = max(
        (
            field.displacement_in_chunks(points, inverse)
            - rounded.displacement_in_chunks(points, inverse)
        )
        .norm(dim=1)
        .max()
        for inverse in (False, True)
    )
    return float(change) * forward.frame.scale_mm


def _packed(mask: np.ndarray) -> torch.Tensor:
    import torch

    squeezed = zlib.compress(np.packbits(mask).tobytes(), 6)
    return torch.from_numpy(np.frombuffer(squeezed, dtype=np.uint8).copy())


def _unpacked(packed: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    limit = (size + 7) // 8
    raw = zlib.decompressobj().decompress(packed.numpy().tobytes(), limit)
    bits = np.frombuffer(raw, dtype=np.uint8)
    return np.unpackbits(bits, count=size).reshape(shape).astype(bool)
