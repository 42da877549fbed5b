"""The door for tensor files (.safetensors) with our header: fields, weights, trainings.

The library checks that tensors lie inside of the file. Here the header is bounded, and what the
tensors hold is looked at: plain kinds of numbers, all of them finite.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .reading import existing_file, parse_json

if TYPE_CHECKING:
    import torch

KINDS = ('F16', 'F32', 'F64', 'U8', 'I64')
"""What we store: weights, packed masks, counters."""


def read_header(path: str | os.PathLike, expected: str) -> tuple[dict[str, Any], list[Any]]:
    """The header, and a slice of each tensor whose shape and type can be asked; without torch.

    Raises
    ------
    NoInputError
        There is no such file.
    ValueError
        It is damaged or something else.
    """
    from safetensors import safe_open

    path = existing_file(path, expected)
    try:
        with safe_open(path, framework='np') as stream:
            slices = [stream.get_slice(name) for name in stream.keys()]  # noqa: SIM118
            return _header(stream), slices
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(_reason(error)) from error


def read_tensors(
    path: str | os.PathLike, expected: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header and the tensors.

    Raises
    ------
    NoInputError
        There is no such file.
    ValueError
        It is damaged or something else, or holds numbers that are not finite.
    """
    from safetensors import safe_open

    path = existing_file(path, expected)
    try:
        with safe_open(path, framework='pt') as stream:
            names = list(stream.keys())
            strange = {stream.get_slice(name).get_dtype() for name in names} - set(KINDS)
            if strange:
                raise ValueError(f'it holds numbers of the type {min(strange)}')
            header = _header(stream)
            tensors = {name: stream.get_tensor(name) for name in names}
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(_reason(error)) from error
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f'"{name}" holds numbers that are not finite')
    return header, tensors


def _header(stream: Any) -> dict[str, Any]:
    header = parse_json((stream.metadata() or {})['nephi'])
    if not isinstance(header, dict) or not isinstance(header.get('format'), str):
        raise ValueError('its header does not say what it is')
    return header


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return 'nephi did not write it'
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
