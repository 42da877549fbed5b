"""Fields and weights made to do harm."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hostile
import hostile_makers
import numpy as np
from hostile_files import CRAFTED, crafted

from nephi_pipe.errors import InputDataError, NoInputError


def rewritten(path: Path, change: Callable[[dict, dict], None], weights: bool = False) -> None:
    """A valid file whose header and tensors were changed, with a checksum that fits again."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from nephi_pipe.training import checkpoint

    (hostile_makers.make_weights if weights else hostile_makers.make_field)(path)
    with safe_open(path, framework='pt') as stream:
        header = json.loads(stream.metadata()['nephi'])
        tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
    change(header, tensors)
    if weights:
        header['sha256'] = checkpoint._checksum(tensors)
    save_file(tensors, path, metadata={'nephi': json.dumps(header)})


def _set(*keys: str, value: object) -> Callable[[dict, dict], None]:
    def change(header: dict, tensors: dict) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


def _not_finite(header: dict, tensors: dict) -> None:
    name = next(name for name in tensors if name.endswith('weight'))
    tensors[name].view(-1)[0] = float('nan')


def _of_integers(header: dict, tensors: dict) -> None:
    name = next(name for name in tensors if name.endswith('weight'))
    tensors[name] = tensors[name].bool()


def _wide(header: dict, tensors: dict) -> None:
    tensors['extent'][:] = 1e9


FIELDS = {
    'a mask of a terabyte': _set('fixed_grid', 'shape', value=[10_000, 10_000, 10_000]),
    'a mask that is too short': _set('fixed_grid', 'shape', value=[7, 8, 90]),
    'a grid of two axes': _set('fixed_grid', 'shape', value=[7, 8]),
    'a grid of text': _set('fixed_grid', 'shape', value='789'),
    'a grid without an inverse': _set('moving_grid', 'affine', value=np.zeros((4, 4)).tolist()),
    'a code of a terabyte': _set('config', 'local_size', value=100_000),
    'a billion layers': _set('config', 'hidden_layers', value=1_000_000_000),
    'a width that is text': _set('config', 'width', value='8'),
    'a width that is True': _set('config', 'width', value=True),
    'a size nobody knows': _set('config', 'colour', value=1),
    'a plane': _set('config', 'ndim', value=2),
    'a frame of a kilometre': _set('frame', 'scale_mm', value=1e6),
    'a frame of no size': _set('frame', 'scale_mm', value=0),
    'a frame that is not finite': _set('frame', 'center_mm', value=[0, float('nan'), 0]),
    'an affine without an inverse': _set('affine', value=np.zeros((4, 4)).tolist()),
    'an affine of three rows': _set('affine', value=np.eye(3).tolist()),
    'a history of numbers': _set('history', value=[1, 2]),
    'provenance that is a list': _set('provenance', value=[]),
    'a direction that is text': _set('inverted', value='no'),
    'weights that are not finite': _not_finite,
    'weights that are bits': _of_integers,
    'a box of a billion': _wide,
}
WEIGHTS = {
    'an encoder of a billion nodes': _set('architecture', 'encoder', 'grid', value=10**9),
    'an architecture that is a list': _set('architecture', value=[]),
    'an architecture of a billion layers': _set(
        'architecture', 'field', 'hidden_layers', value=10**9
    ),
    'a scale that is not finite': _set('architecture', 'scale_mm', value=float('inf')),
    'a scale below zero': _set('architecture', 'scale_mm', value=-1),
    'a modality that is a list': _set('architecture', 'modality', value=['brain']),
    'weights of a model that are not finite': _not_finite,
    'weights of a model that are bits': _of_integers,
}
for _cases, _weights, _load in (
    (FIELDS, False, hostile.load_field),
    (WEIGHTS, True, hostile.load_weights),
):
    CRAFTED += [
        (
            'heavy',
            _case,
            'x.safetensors',
            partial(rewritten, change=_change, weights=_weights),
            _load,
            InputDataError,
        )
        for _case, _change in _cases.items()
    ]


def tensor_file(path: Path, header: bytes, size: int | None = None) -> None:
    path.write_bytes(struct.pack('<Q', len(header) if size is None else size) + header)


@crafted('lie.safetensors', hostile.load_field, group='heavy')
def a_header_longer_than_the_file(path):
    tensor_file(path, b'{}', 1 << 60)


@crafted('tensor.safetensors', hostile.load_field, group='heavy')
def a_tensor_longer_than_the_file(path):
    part = {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 1 << 42]}
    tensor_file(path, json.dumps({'x': part}).encode())


@crafted('deep.safetensors', hostile.load_field, group='heavy')
def a_header_of_a_hundred_thousand_levels(path):
    tensor_file(path, json.dumps({'__metadata__': {'nephi': '[' * 100_000}}).encode())


@crafted('deep2.safetensors', hostile.load_weights, group='heavy')
def a_header_of_nine_hundred_levels(path):
    text = '{"format": ' + '[' * 900 + ']' * 900 + '}'
    tensor_file(path, json.dumps({'__metadata__': {'nephi': text}}).encode())


@crafted('lists.safetensors', hostile.load_weights, group='heavy')
def a_header_of_ten_million_lists(path):
    text = '[' + '[],' * 10_000_000 + '[]]'
    tensor_file(path, json.dumps({'__metadata__': {'nephi': text}}).encode())


@crafted('pipe.safetensors', hostile.load_field, NoInputError, group='heavy')
def a_pipe_for_a_field(path):
    os.mkfifo(path)


@crafted('pickle.safetensors', hostile.load_weights, group='heavy')
def a_pickle_that_would_run(path):
    import torch

    class Run:
        def __reduce__(self):
            return os.mkdir, (str(path.with_name('ran')),)

    torch.save(Run(), path)
