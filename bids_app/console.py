"""What a run says: short lines on the terminal, and the same in a file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError, one_line
from ..files import make_folder

logger = logging.getLogger('nephi_pipe')


def start_log(verbose: int) -> None:
    """News go to standard output, warnings and errors to standard error."""
    news, problems = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    news.addFilter(lambda record: record.levelno < logging.WARNING)
    problems.setLevel(logging.WARNING)
    logger.handlers = [news, problems]
    for handler in logger.handlers:
        handler.setFormatter(_Format())
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


class _Format(logging.Formatter):
    """``12:30:59 sentence``, with the level in front of what is not plain information."""

    def format(self, record: logging.LogRecord) -> str:
        level = '' if record.levelno == logging.INFO else f'{record.levelname.capitalize()}: '
        clock = time.strftime('%H:%M:%S', time.localtime(record.created))
        text = '\n'.join(map(one_line, record.getMessage().split('\n')))
        return f'{clock} {level}{text}'


class _LogFile(logging.FileHandler):
    """A log on a disk that is full says nothing of it: the run itself does, in one sentence."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Keep what is said during a run in a file too."""
    try:
        handler = _LogFile(make_folder(path.parent) / path.name, encoding='utf-8')
    except OSError as error:
        raise OutputError(f'The log "{path}" cannot be written ({error.strerror}).') from error
    handler.setFormatter(_Format())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def quieten_nipype(verbose: int) -> None:
    """Nipype tells a lot; what went wrong we say ourselves."""
    import nipype  # noqa: F401  (sets its own levels when it is imported)

    level = (logging.CRITICAL, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    for name in ('nipype.workflow', 'nipype.interface', 'nipype.utils'):
        logging.getLogger(name).setLevel(level)
