"""What a transform, field or weights file is, in words for ``nephi info``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputDataError, one_line
from .tensor_file import read_header
from .transforms import DisplacementField, read_transform

_FORMATS = {
    'nephi-field-1': 'the field of one registration',
    'nephi-field-2': 'the field of one registration and its pre-alignment',
    'nephi-weights-1': 'trained weights',
    'nephi-structures-1': 'a network that finds structures',
    'nephi-training-2': 'a training that can go on',
}
_LONG = ('history', 'rows')
_LONGEST = 200
_DEEPEST = 12
"""Spaces before what is nested most; below it stays on one line."""


def describe(path: str | os.PathLike) -> str:
    """A few lines about one file.

    Raises
    ------
    NoInputError, InputDataError
        It is not there, or is none of the files that ``nephi`` reads.
    """
    path = Path(path)
    lines = _tensors(path) if path.suffix == '.safetensors' else _steps(path)
    return '\n  '.join(lines)


def describe_affine(affine: np.ndarray) -> str:
    """Shift, rotation and stretch of a 4x4 matrix, fixed mm to moving mm.

    >>> quarter = np.array([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    >>> describe_affine(quarter)
    'shift 5.00 0.00 0.00 mm, rotation 90.0 degrees, stretch 1.000 1.000 2.000'
    """
    left, stretch, right = np.linalg.svd(affine[:3, :3])
    turn = left @ right
    mirror = ', mirrored' if np.linalg.det(turn) < 0 else ''
    turn = turn * np.sign(np.linalg.det(turn))
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    shift = ' '.join(f'{value:.2f}' for value in affine[:3, 3])
    scales = ' '.join(f'{value:.3f}' for value in sorted(stretch))
    return f'shift {shift} mm, rotation {angle:.1f} degrees, stretch {scales}{mirror}'


def _steps(path: Path) -> Iterator[str]:
    transform = read_transform(path)
    yield f'{path}: maps fixed points to moving points, RAS+ mm, in {_count(transform.steps)}'
    for number, step in enumerate(transform.steps, start=1):
        if isinstance(step, DisplacementField):
            yield f'{number}. {_describe_field(step)}'
        else:
            yield f'{number}. affine: {describe_affine(step)}'


def _describe_field(field: DisplacementField) -> str:
    nodes = ' x '.join(str(n) for n in field.grid.shape)
    spacing = ' x '.join(f'{value:.2f}' for value in field.grid.spacing)
    lengths = np.linalg.norm(field.vectors, axis=-1)
    return (
        f'displacement field: {nodes} nodes, {spacing} mm apart; '
        f'length {lengths.mean():.2f} mm on average, {lengths.max():.2f} mm at most'
    )


def _tensors(path: Path) -> Iterator[str]:
    """The header of one of our safetensors files; torch is not needed for it."""
    try:
        header, parts = read_header(path, 'a field or weights (.safetensors)')
    except ValueError as error:
        raise InputDataError(
            f'"{path}" is not a file that nephi wrote ({error}); expected a field or weights '
            '(.safetensors). Copy or make it again.'
        ) from error
    form = header.pop('format')
    numbers = sum(int(np.prod(part.get_shape())) for part in parts)
    kinds = ', '.join(sorted({part.get_dtype() for part in parts}))
    yield f'{path}: {_FORMATS.get(form, "tensors")} ({_cut(form)}), {numbers} numbers ({kinds})'
    for key, value in header.items():
        if key == 'affine':
            yield f'affine: {_affine(value)}'
        elif key not in _LONG:
            yield f'{_cut(key)}: {_short(value)}'


def _affine(value: Any) -> str:
    try:
        return describe_affine(np.array(value, dtype=float).reshape(4, 4))
    except (ValueError, TypeError, OverflowError, np.linalg.LinAlgError):
        return 'not a matrix'


def _short(value: Any, indent: str = '    ') -> str:
    """A value on one line, nested ones and lists of them on a line each."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return ''.join(f'\n{indent}{_cut(one)}' for one in value)
    if isinstance(value, dict) and len(indent) < _DEEPEST:
        inner = indent + '  '
        return ''.join(
            f'\n{indent}{_cut(key)}: {_short(one, inner)}'
            for key, one in value.items()
            if key not in _LONG
        )
    return _cut(value)


def _cut(value: Any) -> str:
    text = one_line(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'


def _count(steps: tuple) -> str:
    return '1 step' if len(steps) == 1 else f'{len(steps)} steps, first to last'
