"""One run at a time for each person of an output folder, different people side by side."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import resource
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from ..errors import OutputError, TryAgainError
from ..files import make_folder

logger = logging.getLogger('nephi_pipe')

WAIT_S = 3.0
"""How long a lock may stay taken before we give up: the workers of a run that was killed need
about a second to notice and to leave."""

SPARE_FILES = 512
"""Open files that everything else needs."""

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def hold(
    folders: Iterable[Path], names: Iterable[str], run: str, wait_s: float | None = None
) -> Iterator[None]:
    """Hold a lock for each of ``names`` in each of ``folders``, all or none.

    The operating system gives a lock back when its process ends, however it ends, so there are
    no stale locks. The files say who holds them and are removed afterwards.

    Parameters
    ----------
    folders
        Where the files ``<name>.lock`` go.
    names
        What is locked, such as ``sub-41``.
    run
        Name of this run, for the message of the other one.
    wait_s
        How long a lock may stay taken before we give up, ``WAIT_S`` unless given.

    Raises
    ------
    TryAgainError
        Another process holds one of the locks.
    OutputError
        A lock's file cannot be created.
    """
    names, folders = sorted(set(names)), list(folders)
    _allow_open_files(len(names) * len(folders))
    with ExitStack() as stack:
        for name in names:
            for folder in folders:
                stack.enter_context(_hold_one(folder / f'{name}.lock', name, run, wait_s))
        yield


@contextmanager
def _hold_one(path: Path, name: str, run: str, wait_s: float | None) -> Iterator[None]:
    stream = _acquire(path, name, WAIT_S if wait_s is None else wait_s)
    try:
        holder = {'run': run, 'process': os.getpid(), 'host': socket.gethostname()}
        stream.truncate(0)
        stream.write(json.dumps(holder))
        stream.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        stream.close()


def _acquire(path: Path, name: str, wait_s: float) -> IO[str]:
    """Open and lock the file; wait for a moment if it is taken."""
    deadline = time.monotonic() + wait_s
    while True:
        make_folder(path.parent)
        try:
            stream = open(path, 'a+', encoding='utf-8')  # noqa: SIM115
        except OSError as error:
            if isinstance(error, FileNotFoundError) and time.monotonic() < deadline:
                continue  # a run that cleans up removed the folder just now
            raise OutputError(
                f'The lock "{path}" cannot be opened ({error.strerror}). Choose a folder that '
                'you may write to.'
            ) from error
        if _lock(stream, path) and _still_there(stream, path):
            return stream
        holder = _holder(path)
        stream.close()
        if time.monotonic() > deadline:
            raise TryAgainError(
                f'{name} is being processed by another run ({holder}) with the same output or '
                'work folder; wait for its end and run the same command again, or select other '
                'people with --participant-label.'
            )
        time.sleep(0.05)


def _allow_open_files(count: int) -> None:
    """Raise the soft limit of open files where a thousand people need more than usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _lock(stream: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            logger.warning(
                'The file system of "%s" has no locks: nothing stops a second run of the same '
                'person at the same time.', path.parent
            )  # fmt: skip
            return True
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _still_there(stream: IO[str], path: Path) -> bool:
    """Whether the file that was locked is still the one at ``path`` and not a removed one."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding='utf-8'))
        return f'process {holder["process"]} on {holder["host"]}, run {holder["run"]}'
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 'unknown'
