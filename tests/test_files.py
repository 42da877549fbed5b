"""Writing: all of it or nothing, and a sentence where it cannot be."""

import contextlib
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from data import AFFINE, GRIDS, SmoothWarp, make_image

from nephi_pipe.apply import apply_to_image
from nephi_pipe.errors import OutputError, StorageError
from nephi_pipe.files import atomic, make_folder, sha256, write_json, write_text
from nephi_pipe.images import save_image
from nephi_pipe.transforms import DisplacementField, Transform, write_transform

GRID = GRIDS['oblique']
FIELD = DisplacementField(SmoothWarp().on_grid(GRID), GRID)
IMAGE = make_image(GRID)


def test_a_failure_on_the_way_leaves_nothing(tmp_path):
    path = tmp_path / 'new' / 'x.txt'
    with pytest.raises(RuntimeError, match='on the way'), atomic(path) as temporary:
        temporary.write_text('half of it')
        raise RuntimeError('on the way')
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(errno.EIO, 'Input/output error')])
def test_what_was_there_before_stays(error, tmp_path):
    path = tmp_path / 'x.txt'
    path.write_text('before')
    with pytest.raises((KeyboardInterrupt, StorageError)), atomic(path) as temporary:
        temporary.write_text('half of it')
        raise error
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_has_the_suffix_and_vanishes(tmp_path):
    with atomic(tmp_path / 'x.nii.gz') as temporary:
        assert temporary.name.endswith('.nii.gz')
        assert temporary.parent == tmp_path
        temporary.write_bytes(b'all of it')
        assert not (tmp_path / 'x.nii.gz').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['x.nii.gz']
    assert sha256(tmp_path / 'x.nii.gz') == (
        '07630777646b9ad0ad5940c20f7703e5ba431d90dc8f191af6916bffca3e859c'
    )


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / 'x.txt'
    with atomic(path) as first, atomic(path) as second:
        assert first != second
        first.write_text('first')
        second.write_text('second')
    assert path.read_text() == 'first'


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OutputError, match='Choose a folder that you may write to') as caught:
        write_text(tmp_path / 'file' / 'deeper' / 'x.txt', 'text')
    assert caught.value.exit_code == 73
    with pytest.raises(OutputError, match='Cannot create'):
        make_folder(tmp_path / 'file')


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / 'x.json').mkdir()
    with pytest.raises((OutputError, StorageError), match=str(tmp_path / 'x.json')):
        write_json(tmp_path / 'x.json', {})
    assert [path.name for path in tmp_path.iterdir()] == ['x.json']


def test_a_folder_that_may_not_be_written_to(tmp_path):
    if os.geteuid() == 0:
        pytest.skip('root may write anywhere')
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match='Choose a folder that you may write to'):
        write_text(tmp_path / 'x.txt', 'text')


def test_json_takes_arrays_numbers_and_paths(tmp_path):
    content = {
        'array': np.arange(3),
        'number': np.float32(0.5),
        'flag': np.bool_(True),
        'path': Path('a/b'),
        'name': 'Zoë',
    }
    path = write_json(tmp_path / 'x.json', content)
    assert json.loads(path.read_text(encoding='utf-8')) == {
        'array': [0, 1, 2],
        'number': 0.5,
        'flag': True,
        'path': 'a/b',
        'name': 'Zoë',
    }
    assert 'Zoë' in path.read_text(encoding='utf-8')
    with pytest.raises(TypeError, match='object cannot be written as JSON'):
        write_json(tmp_path / 'y.json', object())
    assert not (tmp_path / 'y.json').exists()


WRITERS = {
    'composite': lambda path: write_transform(path / 'x.h5', AFFINE, FIELD),
    'field': lambda path: write_transform(path / 'x.nii.gz', AFFINE, FIELD),
    'image': lambda path: save_image(path / 'x.nii.gz', IMAGE.data, GRID),
    'plain image': lambda path: save_image(path / 'x.nii', IMAGE.data, GRID),
    'text': lambda path: write_text(path / 'x.txt', 'text ' * 100_000),
}


def check_full_disk(write, folder: Path) -> None:
    """What was there stays, nothing is added, and the sentence says that the disk is full."""
    (folder / 'before.txt').write_text('before')
    with pytest.raises(StorageError, match='the disk is full. Free some space') as caught:
        write(folder)
    assert caught.value.exit_code == 74
    assert [path.name for path in folder.iterdir()] == ['before.txt']
    assert (folder / 'before.txt').read_text() == 'before'


@pytest.mark.parametrize('kind', WRITERS)
def test_a_full_disk(kind, small_disk):
    check_full_disk(WRITERS[kind], small_disk)


def test_a_full_disk_while_resampling(small_disk, tmp_path):
    source = save_image(tmp_path / 'x.nii.gz', IMAGE.data, GRID)
    check_full_disk(
        lambda folder: apply_to_image(source, Transform(), GRID, folder / 'y.nii.gz'), small_disk
    )


def test_a_full_disk_without_a_small_one(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    check_full_disk(WRITERS['composite'], tmp_path)


@pytest.mark.parametrize('kind', WRITERS)
def test_the_same_content_gives_the_same_bytes(kind, tmp_path):
    sums = set()
    for name in ('first', 'second'):
        folder = make_folder(tmp_path / name)
        sums.add(sha256(WRITERS[kind](folder)))
    assert len(sums) == 1


def test_an_interrupted_write_can_be_repeated(tmp_path):
    path = tmp_path / 'x.h5'
    with contextlib.suppress(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_bytes(b'half')
        raise KeyboardInterrupt
    assert write_transform(path, AFFINE, FIELD).stat().st_size > 10_000
