"""The field itself as a small file: networks, code, geometry and provenance (.safetensors).

Half precision is used where it moves no checked point by 0.02 mm or more. The file can be
evaluated at any resolution, and holds both directions.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .base_file import packed_chain, read_affine_matrix, read_grid, unpacked_chain
from .errors import InputDataError, NoInputError
from .files import atomic
from .geometry import Frame, flaw_of_grid
from .images import Image
from .prealignment import PreAlignment
from .tensor_file import read_tensors

if TYPE_CHECKING:
    import torch

    from .field.deformation import NePhiField
    from .prealignment import BaseMap
    from .result import Registration

FORMAT = 'nephi-field-1'
COMPOSED = 'nephi-field-2'
"""With a pre-alignment."""

HALF_TOLERANCE_MM = 0.02
"""Largest displacement error for which half precision is used."""

_CHECKED = 2000
_BASE = 'base.'
"""What the names of a pre-alignment's tensors begin with."""


def write_field(path: str | os.PathLike, registration: Registration) -> Path:
    """Write a registration atomically; see :func:`nephi_pipe.load_registration`."""
    from safetensors.torch import save

    header, tensors = _packed_registration(registration)
    # What reads the first format alone must not take the field for the whole map.
    header = {'format': FORMAT if registration.base is None else COMPOSED, **header}
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
    try:
        header, tensors = read_tensors(path, 'a field file')
        if header['format'] not in (FORMAT, COMPOSED):
            raise ValueError(f'its format is {header["format"]}')
        return _restore(header, tensors)
    except (NoInputError, MemoryError):
        raise
    except Exception as error:  # whatever is missing, of another type or of another size
        raise InputDataError(
            f'"{path}" is not a field that can be read ({type(error).__name__}: {error}); '
            f'expected a file of the format {FORMAT}. Write it again with "nephi register".'
        ) from error


def _packed_registration(registration: Registration) -> tuple[dict, dict]:
    """Header and tensors of a registration, those of its pre-alignment within them."""
    forward = registration.inverse if registration.inverted else registration
    tensors = dict(forward.field.state_dict())
    half = {name: value.half() if name != 'extent' else value for name, value in tensors.items()}
    if _half_error_mm(forward, half) < HALF_TOLERANCE_MM:
        tensors = half
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    for side in ('fixed', 'moving'):
        tensors[f'{side}_mask'] = _packed(getattr(forward, f'{side}_mask').data)
    header = {
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
    if forward.base is not None:
        header['base'], within = _packed_base(forward.base)
        tensors |= {_BASE + name: value for name, value in within.items()}
    return header, tensors


def _packed_base(base: BaseMap) -> tuple[dict, dict]:
    if isinstance(base, PreAlignment):
        header, tensors = packed_chain(base, HALF_TOLERANCE_MM)
        return {'kind': 'chain', 'inverted': base.inverted, **header}, tensors
    header, tensors = _packed_registration(base)
    return {'kind': 'field', **header}, tensors


def _restored_base(header: dict, tensors: dict) -> BaseMap:
    if header['kind'] == 'field':
        return _restore(header, tensors)
    if header['kind'] != 'chain' or type(header['inverted']) is not bool:
        raise ValueError('its pre-alignment has no direction, or is of a kind that is not known')
    chain = unpacked_chain(header, tensors)
    return chain.inverse if header['inverted'] else chain


def _restore(header: dict, tensors: dict) -> Registration:
    """The registration; any error where header and tensors do not make one."""
    from .result import Registration

    fixed_grid, moving_grid = (read_grid(header[f'{side}_grid']) for side in ('fixed', 'moving'))
    masks = [
        Image(_unpacked(tensors.pop(f'{side}_mask'), grid.shape), grid)
        for side, grid in (('fixed', fixed_grid), ('moving', moving_grid))
    ]
    affine = read_affine_matrix(header['affine'])
    if type(header['inverted']) is not bool:
        raise ValueError('it has no direction')
    history, provenance = header['history'], header['provenance']
    if not isinstance(provenance, dict) or not all(isinstance(step, dict) for step in history):
        raise ValueError('it does not say how it was made')
    base = None
    within = [name for name in tensors if name.startswith(_BASE)]
    within = {name.removeprefix(_BASE): tensors.pop(name) for name in within}
    if within or 'base' in header:
        base = _restored_base(header['base'], within)
        affine = base.affine
    field = _field(header['config'], tensors)
    frame = _frame(header['frame'], field)
    forward = Registration(
        field,
        frame,
        affine,
        fixed_grid,
        moving_grid,
        *masks,
        history=history,
        provenance=provenance,
        base=base,
    )
    return forward.inverse if header['inverted'] else forward


def _field(config: dict, tensors: dict) -> NePhiField:
    import torch

    from .field.config import FieldConfig
    from .field.deformation import NePhiField

    sizes = FieldConfig(**config)
    if sizes.ndim != 3:
        raise ValueError(f'it is a field of {sizes.ndim} axes')
    # No memory is taken for what a damaged header asks for.
    with torch.device('meta'):
        field = NePhiField(sizes, torch.Generator())
    weights = {name: value.float() for name, value in tensors.items()}
    field.load_state_dict(weights, assign=True)
    return field.requires_grad_()


def _frame(found: dict, field: NePhiField) -> Frame:
    frame = Frame(tuple(map(float, found['center_mm'])), float(found['scale_mm']))
    sides = 2 * frame.scale_mm * field.extent.numpy()
    box = np.eye(4)
    box[:3, 3] = frame.center_mm
    box[[0, 1, 2], [0, 1, 2]] = sides
    if not (sides > 0).all() or (flaw := flaw_of_grid((1, 1, 1), box)):
        raise ValueError('its frame ' + (flaw if (sides > 0).all() else 'is empty'))
    return frame


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
    size = math.prod(shape)
    limit = (size + 7) // 8
    raw = zlib.decompressobj().decompress(packed.numpy().tobytes(), limit)
    if len(raw) != limit:
        raise ValueError(f'a mask holds {len(raw)} bytes, expected {limit}')
    bits = np.frombuffer(raw, dtype=np.uint8)
    return np.unpackbits(bits, count=size).reshape(shape).astype(bool)
