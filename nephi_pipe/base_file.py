"""A pre-alignment within a field file: its affines in the header, its fields as tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .geometry import Grid, flaw_of_grid, is_invertible
from .held_field import HeldField
from .image_file import MOST_VOXELS
from .prealignment import PreAlignment, Step, is_linear
from .transforms import DisplacementField

if TYPE_CHECKING:
    import torch


def packed_chain(
    base: PreAlignment, tolerance_mm: float
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a chain and of its way back, in its forward direction.

    Parameters
    ----------
    base
        The chain.
    tolerance_mm
        Half precision is used where it moves no node by more.
    """
    forward = base.inverse if base.inverted else base
    header, tensors = {'affine': forward.affine.tolist()}, {}
    for name, steps in (('steps', forward.steps), ('back', forward.back)):
        header[name] = None if steps is None else []
        for number, step in enumerate(steps or ()):
            if is_linear(step):
                header[name].append({'affine': step.tolist()})
                continue
            grid = step.grid
            header[name].append({'shape': grid.shape, 'grid': grid.affine.tolist()})
            tensors[f'{name}.{number}'] = _vectors(step, tolerance_mm)
    return header, tensors


def unpacked_chain(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> PreAlignment:
    """The inverse of :func:`packed_chain`; any error where the two do not make a chain."""

    def steps(name: str) -> list[Step] | None:
        if header[name] is None and name == 'back':
            return None
        found: list[Step] = []
        for number, step in enumerate(header[name]):
            if 'affine' in step:
                found.append(read_affine_matrix(step['affine']))
                continue
            grid = read_grid({'shape': step['shape'], 'affine': step['grid']})
            vectors = tensors.pop(f'{name}.{number}').float().numpy()
            found.append(HeldField(DisplacementField(vectors, grid)))
        return found

    chain = steps('steps'), steps('back')
    if tensors or not chain[0]:
        raise ValueError('its pre-alignment is not complete')
    return PreAlignment(*chain, read_affine_matrix(header['affine']))


def read_affine_matrix(found: list) -> np.ndarray:
    """A 4x4 matrix of a header."""
    affine = np.array(found, dtype=float)
    if affine.shape != (4, 4) or not is_invertible(affine):
        raise ValueError('an affine cannot be used')
    return affine


def read_grid(found: dict) -> Grid:
    """A grid of a header."""
    shape, affine = found['shape'], np.array(found['affine'], dtype=float)
    if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f'a grid has the shape {shape}')
    if math.prod(shape) > MOST_VOXELS:
        raise ValueError(f'a grid has the shape {shape}')
    if flaw := flaw_of_grid(shape, affine):
        raise ValueError(f'a grid has an affine that {flaw}')
    return Grid(tuple(shape), affine)


def _vectors(step: HeldField, tolerance_mm: float) -> torch.Tensor:
    import torch

    vectors = torch.from_numpy(np.ascontiguousarray(step.field.vectors))
    half = vectors.half()
    near = (half.float() - vectors).norm(dim=-1).max() < tolerance_mm
    return half if near else vectors
