"""Checkpoints: what they say of themselves, and that damaged ones are refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import training_run as tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nephi_pipe import register
from nephi_pipe.errors import InputDataError, NoInputError
from nephi_pipe.field.encoder import EncoderConfig
from nephi_pipe.field.model import ModelConfig, NePhiModel
from nephi_pipe.training import train
from nephi_pipe.training.checkpoint import load_model, save_model
from nephi_pipe.training.records import HISTORY, WEIGHTS
from nephi_pipe.training.state import STATE

SHORT = {'epochs': 2, 'steps_per_epoch': 3, **tiny.TINY, 'threads': 1}
FIELD = tiny.FIELD


def test_a_checkpoint_says_what_it_is(people, quick, tmp_path) -> None:
    weights = train(output_dir=tmp_path, **people, **SHORT)
    with safe_open(weights, framework='pt') as stream:
        header = json.loads(stream.metadata()['nephi'])
    assert header['format'] == 'nephi-weights-1'
    assert header['architecture']['field']['local_size'] == 13
    encoder = {'grid': 25, 'norm': 'group', 'kind': 'pyramid'}
    assert header['architecture']['encoder'] == encoder
    assert header['architecture']['modality'] == 'brain'
    trained = header['training']
    assert trained['settings']['training']['seed'] == 1 and trained['last_epoch']['epoch'] == 2
    assert [one['name'] for one in trained['data']] == [f'{n}_images.nii.gz' for n in range(3)]
    assert all(len(one['image']) == len(one['mask']) == 64 for one in trained['data'])
    assert str(tmp_path.parent) not in json.dumps(header)
    model = load_model(weights)
    assert model.provenance == trained and not model.training
    last = json.loads((tmp_path / HISTORY).read_text())[-1]
    assert 0 < last['dice_before'] < 1 and 0 < last['dice_after'] < 1
    assert last['loss'] > last['similarity'] > 0
    copy = load_model(save_model(tmp_path / 'copy.safetensors', model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, copy.state_dict()[name]), name


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    """Weights that nobody trained."""
    config = ModelConfig(
        dataclasses.replace(FIELD, local_size=13), EncoderConfig(25), 80.0, 'brain'
    )
    model = NePhiModel(config, torch.Generator().manual_seed(0))
    return save_model(tmp_path_factory.mktemp('weights') / WEIGHTS, model, {'seed': 0})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5000] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b'')


def write_something_else(path: Path) -> None:
    path.write_text('weights')


def write_pickle(path: Path) -> None:
    torch.save({'weights': torch.zeros(3)}, path)


def write_foreign_tensors(path: Path) -> None:
    save_file({'weights': torch.zeros(3)}, path)


def rewrite(path: Path, change) -> None:
    """Change the header of a checkpoint, tensors and their checksum left as they are."""
    with safe_open(path, framework='pt') as stream:
        header = json.loads(stream.metadata()['nephi'])
    change(header)
    save_file(load_file(path), path, metadata={'nephi': json.dumps(header)})


def say_other_width(path: Path) -> None:
    rewrite(path, lambda header: header['architecture']['field'].update(width=64))


def say_absurd_width(path: Path) -> None:
    rewrite(path, lambda header: header['architecture']['field'].update(width=2_000_000))


def say_unknown_field(path: Path) -> None:
    rewrite(path, lambda header: header['architecture']['field'].update(colour='blue'))


def say_too_little(path: Path) -> None:
    rewrite(path, lambda header: header.pop('architecture'))


def say_later_format(path: Path) -> None:
    rewrite(path, lambda header: header.update(format='nephi-weights-2'))


@pytest.mark.parametrize(
    ('spoil', 'named'),
    [
        (cut, 'cannot be read|can be read'),
        (flip_a_bit, 'differ from their checksum'),
        (empty, 'can be read'),
        (write_something_else, 'can be read'),
        (write_pickle, 'can be read'),
        (write_foreign_tensors, 'can be read'),
        (say_other_width, 'do not fit the architecture'),
        (say_absurd_width, 'do not fit the architecture'),
        (say_unknown_field, 'do not fit the architecture'),
        (say_too_little, 'do not fit the architecture'),
        (say_later_format, 'format nephi-weights-2; expected nephi-weights-1'),
    ],
)
def test_a_damaged_checkpoint_is_refused(checkpoint, tmp_path, people, spoil, named) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(checkpoint.read_bytes())
    assert load_model(path).config.scale_mm == 80.0
    spoil(path)
    with pytest.raises(InputDataError, match=named) as refusal:
        register(*people['images'][:2], weights=path, steps=0, affine=False)
    assert str(path) in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


def test_a_missing_checkpoint_is_refused(people, tmp_path) -> None:
    with pytest.raises(NoInputError, match='There is no file'):
        register(*people['images'][:2], weights=tmp_path / 'none.safetensors', affine=False)


def test_a_field_is_not_taken_for_weights(checkpoint, people, tmp_path) -> None:
    found = register(*people['images'][:2], weights=checkpoint, steps=0, affine=False)
    path = found.save_field(tmp_path / 'field.safetensors')
    with pytest.raises(InputDataError, match='format nephi-field-1; expected nephi-weights-1'):
        load_model(path)


@pytest.mark.parametrize('spoil', [cut, flip_a_bit])
def test_a_damaged_state_is_refused_and_may_be_left_behind(people, quick, tmp_path, spoil) -> None:
    whole = train(people['images'], tmp_path, **SHORT).read_bytes()
    spoil(tmp_path / STATE)
    with pytest.raises(InputDataError, match=STATE):
        train(people['images'], tmp_path, **SHORT)
    assert train(people['images'], tmp_path, resume=False, **SHORT).read_bytes() == whole
