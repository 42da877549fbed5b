"""Files of weights and of unfinished trainings: safetensors with a JSON header, never pickle.

The header (key ``nephi``) holds the format, the architecture, how it was trained and a checksum of
all tensors, so that a damaged file is refused instead of predicting nonsense.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputDataError
from ..field.model import ModelConfig, NePhiModel
from ..files import atomic
from ..learning.structure_net import StructureNet
from ..tensor_file import read_tensors as _read_tensors

FORMAT = 'nephi-weights-1'
STRUCTURES_FORMAT = 'nephi-structures-1'


def save_model(
    path: str | os.PathLike, model: NePhiModel, provenance: dict[str, Any] | None = None
) -> Path:
    """Write a model's weights atomically.

    Parameters
    ----------
    path
        Ends in .safetensors.
    model
        The model.
    provenance
        How it was trained, plain values; the model's own when None.
    """
    header = {
        'architecture': model.config.as_dict(),
        'training': model.provenance if provenance is None else provenance,
    }
    return write_tensors(path, FORMAT, header, model.state_dict())


def load_model(path: str | os.PathLike) -> NePhiModel:
    """Read weights that :func:`save_model` wrote.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It is truncated, damaged, something else, or its weights do not fit its architecture.
    """
    header, tensors = read_tensors(path, FORMAT)
    try:
        config = ModelConfig.from_dict(header['architecture'])
        # No memory is taken for what a damaged header asks for.
        with torch.device('meta'):
            model = NePhiModel(config, torch.Generator())
        model.load_state_dict(tensors, assign=True)
    except Exception as error:
        raise InputDataError(
            f'The weights in "{path}" do not fit the architecture they name '
            f'({_first_line(error)}); expected a checkpoint of "nephi train" of this version. '
            'Train again, or give other weights.'
        ) from error
    model.requires_grad_()
    model.provenance = header.get('training', {})
    return model.eval()


def save_structure_net(
    path: str | os.PathLike,
    network: StructureNet,
    names: Sequence[str],
    provenance: dict[str, Any],
) -> Path:
    """Write a network that finds the structures ``names`` atomically, in half precision."""
    header = {'structures': list(names), 'training': provenance}
    tensors = {name: value.half() for name, value in network.state_dict().items()}
    return write_tensors(path, STRUCTURES_FORMAT, header, tensors)


def load_structure_net(path: str | os.PathLike) -> tuple[StructureNet, list[str]]:
    """Read what :func:`save_structure_net` wrote: a network in float32, and what it finds.

    Raises
    ------
    NoInputError, InputDataError
        As of :func:`load_model`.
    """
    header, tensors = read_tensors(path, STRUCTURES_FORMAT)
    try:
        names = [str(name) for name in header['structures']]
        with torch.random.fork_rng(devices=[]):
            network = StructureNet(len(names))
        network.load_state_dict(tensors)
    except Exception as error:
        raise InputDataError(
            f'The weights in "{path}" do not fit a network that finds structures '
            f'({_first_line(error)}); expected those that ship. Install nephi_pipe again.'
        ) from error
    network = network.to(memory_format=torch.channels_last_3d)
    return network.requires_grad_(False).eval(), names


def write_tensors(
    path: str | os.PathLike, kind: str, header: dict[str, Any], tensors: dict[str, Tensor]
) -> Path:
    """Write tensors under a header atomically; see :func:`read_tensors`."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {'format': kind, **header, 'sha256': _checksum(tensors)}
    # Not save_file: the error of a full disk must come from Python to be understood.
    content = save(tensors, metadata={'nephi': json.dumps(header)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def read_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of the given kind.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It is truncated, damaged or of another kind.
    """
    try:
        header, tensors = _read_tensors(path, 'a checkpoint (.safetensors)')
    except ValueError as error:
        raise InputDataError(
            f'"{path}" is not a checkpoint that can be read ({error}); expected a file of the '
            f'format {kind}. The file is truncated, damaged or something else: copy or make it '
            'again.'
        ) from error
    found = header['format']
    if found != kind:
        raise InputDataError(
            f'"{path}" has the format {found}; expected {kind}. Give a file that "nephi train" '
            'wrote.'
        )
    if header.get('sha256') != _checksum(tensors):
        raise InputDataError(
            f'"{path}" is damaged: its numbers differ from their checksum; expected the file as '
            'it was written. Copy or make it again.'
        )
    return header, tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f'{name} {value.dtype} {tuple(value.shape)};'.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__
