"""Writing so that nothing half-written is ever seen."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import OutputError, StorageError

_FULL = {errno.ENOSPC: 'the disk is full', errno.EDQUOT: 'the quota is used up'}


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success flush it and rename it.

    The temporary name ends like ``path`` does, so that writers which look at the
    suffix work. When the body raises, the temporary file is removed and what was
    at ``path`` before is still there. A process that is killed leaves the temporary
    file, see :func:`remove_leftovers`. Once this has returned, the file survives
    even a machine that loses its power.

    Raises
    ------
    OutputError
        The folder cannot be created or written to.
    StorageError
        The disk is full, the quota used up, or another I/O error.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f'.{uuid.uuid4().hex[:8]}.partial.{path.name}')
    try:
        yield temporary
        with open(temporary, 'rb') as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Let the new name reach the disk too, so that files appear in the order they are written."""
    with suppress(OSError):  # some network file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: str | os.PathLike, names: str = '*') -> list[Path]:
    """Remove what writers of ``names`` (a pattern) left in a folder when they were killed.

    The caller makes sure that nobody writes such files there at the moment. Returns what was
    removed.
    """
    found = sorted(Path(folder).glob(f'.{"[0-9a-f]" * 8}.partial.{names}'))
    for path in found:
        path.unlink(missing_ok=True)
    return found


def make_folder(folder: str | os.PathLike) -> Path:
    """Create ``folder`` and its parents; a clear error where that is not allowed."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, folder) from error
    return folder


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a UTF-8 text file atomically.

    Halves of surrogate pairs, which JSON from elsewhere may hold, become escapes: valid in JSON.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding='utf-8', errors='backslashreplace')
    return Path(path)


def write_json(path: str | os.PathLike, content: Any) -> Path:
    """Write a JSON file atomically; numpy scalars and arrays are converted."""
    text = json.dumps(content, indent=2, default=_plain, ensure_ascii=False)
    return write_text(path, text + '\n')


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, 'tolist'):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f'{type(value).__name__} cannot be written as JSON')


def explain(error: OSError, path: Path) -> OutputError | StorageError:
    """What a failure to write means for the user."""
    if error.errno in _FULL:
        return StorageError(
            f'Cannot write "{path}": {_FULL[error.errno]}. Free some space and run the same '
            'command again; finished results are kept.'
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return OutputError(
            f'Cannot create "{path}": {error.strerror}. Choose a folder that you may write to.'
        )
    return StorageError(f'Writing "{path}" failed: {error.strerror or error}.')
