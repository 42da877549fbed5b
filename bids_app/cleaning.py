"""Removing what runs left: halves of files of a run that was killed, and the work folder."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import TryAgainError
from ..files import remove_leftovers
from ..workflows.slurm import end_leftover, jobs_folder
from .lock import hold
from .pairs import Pair
from .settings import Settings
from .workflow import NAME, REPORT, pair_node, person_node

logger = logging.getLogger('nephi_pipe')

SHARED = ('reference', 'home')
"""Folders of the work folder that belong to nobody in particular."""


def clean_people(output_dir: Path, people: Iterable[str]) -> None:
    """Remove what killed runs left half-written of ``people`` (``sub-41``), whose locks are held.

    >>> clean_people(Path('nowhere'), ['sub-41'])
    """
    for person in people:
        remove_leftovers(output_dir, f'{person}.html')
        for folder, _, _ in os.walk(output_dir / person):
            remove_leftovers(folder)


def end_jobs(settings: Settings, people: Iterable[str]) -> None:
    """End SLURM jobs that a killed run left behind for ``people``, whichever plugin runs now.

    Raises
    ------
    TryAgainError
        There may be such jobs, and none can be cancelled from here.
    """
    for marker in _job_files(settings, people, '.job'):
        if not shutil.which('scancel'):
            raise TryAgainError(
                f'An earlier run left "{marker}": a SLURM job may still write there, and there is '
                'no scancel on this machine. Run the command where SLURM is, or remove the file '
                'if that job has ended.'
            )
        logger.info('Cancelling a SLURM job of an earlier run ("%s").', marker)
        end_leftover(marker)
        marker.unlink(missing_ok=True)


def _job_files(settings: Settings, people: Iterable[str], end: str = '') -> list[Path]:
    """What SLURM jobs of ``people`` left in the work folder."""
    begins = tuple(f'{NAME}.{person_node(person.removeprefix("sub-"))}.' for person in people)
    folder = jobs_folder(settings.own_work_dir, NAME)
    return sorted(path for path in folder.glob(f'*{end}') if path.name.startswith(begins))


def clean_work(settings: Settings, pairs: Sequence[Pair], run: str) -> None:
    """Remove the intermediate files of ``pairs``, and what all share if nobody else is at work.

    Nothing else is touched: other people and pairs, other versions, other files. Someone who is
    in another run by now is left alone.
    """
    root, people = settings.own_work_dir, sorted({f'sub-{pair.moving.subject}' for pair in pairs})
    locks = root / 'locks'
    try:
        with hold([settings.output_dir / 'logs', locks], people, run):
            for pair in pairs:
                person = root / NAME / person_node(pair.moving.subject)
                _remove(person / pair_node(pair))
                _remove(person / REPORT)
                _remove_if_empty(person)
            for file in _job_files(settings, people):
                file.unlink(missing_ok=True)
            _remove_if_empty(jobs_folder(root, NAME))
            _clean_shared(root, locks, people, run)
    except TryAgainError as error:
        logger.warning('The work folder "%s" is kept: %s', root, error)
    for folder in (root / NAME, locks, root):
        _remove_if_empty(folder)


def _clean_shared(root: Path, locks: Path, people: Sequence[str], run: str) -> None:
    """Remove the shared folders, unless another run holds a lock and may need them.

    A run locks its people first and then, for a moment, what is shared: it is seen here, or it
    comes later and makes the folders anew.
    """
    with hold([locks], ['shared'], run):
        own = {f'{name}.lock' for name in ('shared', *people)}
        if {path.name for path in locks.iterdir()} <= own:
            for name in SHARED:
                _remove(root / name)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        logger.warning('"%s" could not be removed; do it by hand.', folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it is not empty, or not there
        folder.rmdir()
