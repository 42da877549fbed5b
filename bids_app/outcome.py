"""How a run ends: one function decides the exit code and the sentence that goes with it."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import errors
from ..errors import NePhiError, OutputError, StorageError, TryAgainError

UNSPECIFIED = 1

_OURS = re.compile(r'nephi_pipe\.errors\.(\w+): (.+)')
_SYSTEM = re.compile(r'(?:OSError|IOError): \[Errno (\d+)\] (.+)')
_ANY = re.compile(r'^\s*((?:\w+\.)*\w+(?:Error|Exception|Interrupt|Exit)(?::.*)?)$')
_DIED = re.compile(r'The (?:worker process|SLURM job) that ran .+|SLURM did not accept .+')
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Stopped(BaseException):
    """A signal asked the run to stop."""


@dataclass(frozen=True)
class Failure:
    """Why one person's registration failed, and the exit code that this alone would give."""

    person: str
    sentence: str
    code: int = UNSPECIFIED
    details: Path | None = None

    def __str__(self) -> str:
        more = f' Details: {self.details}' if self.details else ''
        return f'{self.person}: {self.sentence}{more}'


@dataclass(frozen=True)
class Conclusion:
    """The exit code of a run and the sentence that explains it."""

    code: int
    message: str


def conclude(
    done: int = 0,
    total: int = 0,
    failures: Sequence[Failure] = (),
    error: BaseException | None = None,
) -> Conclusion:
    """Decide how a run ends.

    Parameters
    ----------
    done, total
        Pairs that are finished, and pairs that were asked for.
    failures
        What went wrong with single people.
    error
        What ended the run as a whole.

    >>> conclude(done=2, total=2).code
    0
    >>> conclude(done=1, total=2, failures=[Failure('sub-1', 'It is 4D.', 65)]).code
    1
    >>> conclude(total=1, failures=[Failure('sub-1', 'It is 4D.', 65)]).code
    65
    """
    if isinstance(error, NePhiError):
        return Conclusion(error.exit_code, str(error))
    if isinstance(error, (Stopped, KeyboardInterrupt)):
        return Conclusion(
            TryAgainError.exit_code,
            f'Stopped by a signal. {_kept(done, total)}; the same command with the same work '
            'folder goes on from here.',
        )
    if isinstance(error, OSError):
        return Conclusion(_code_of_oserror(error.errno), _sentence_of_oserror(error))
    if error is not None:
        return Conclusion(
            UNSPECIFIED,
            f'The run ended with {type(error).__name__}: {error}. This is a mistake of the '
            'program, not yours; please report it with the log.',
        )
    if failures:
        people = sorted({failure.person for failure in failures})
        return Conclusion(
            _code_of_failures(done, failures),
            f'{_pairs(done, total)} finished. Failed: {", ".join(people)}.',
        )
    if done < total:
        return Conclusion(UNSPECIFIED, f'{_pairs(done, total)} finished; the rest was not run.')
    return Conclusion(0, f'{_pairs(done, total)} finished.' if total else 'Done.')


def _code_of_failures(done: int, failures: Sequence[Failure]) -> int:
    """The failures' own code if it says all: nothing succeeded, or the output is the problem."""
    codes = {failure.code for failure in failures}
    storage = codes <= {OutputError.exit_code, StorageError.exit_code}
    return codes.pop() if len(codes) == 1 and (storage or not done) else UNSPECIFIED


def _kept(done: int, total: int) -> str:
    return f'{_pairs(done, total)} finished and kept' if total else 'What was finished is kept'


def _pairs(done: int, total: int) -> str:
    return f'{done} of {count(total, "pair")}'


def count(number: int, noun: str) -> str:
    """A number and what it counts.

    >>> count(1, 'pair'), count(2, 'pair')
    ('1 pair', '2 pairs')
    """
    return f'{number} {noun}{"" if number == 1 else "s"}'


def read_crash(path: Path) -> tuple[str, str, int]:
    """Node, sentence and exit code of a crash file that Nipype wrote."""
    try:
        text = path.read_text(encoding='utf-8', errors='replace')
    except OSError as error:
        return '', f'The crash file cannot be read ({error.strerror}).', UNSPECIFIED
    node = re.match(r'Node: (\S+)', text)
    return (node[1] if node else '', *_reason(text))


def _reason(text: str) -> tuple[str, int]:
    """The sentence for a person, from a traceback's text.

    >>> _reason('...\\nnephi_pipe.errors.InputDataError: "a.nii" is 4D.\\n')
    ('"a.nii" is 4D.', 65)
    >>> _reason('OSError: [Errno 28] No space left on device')[1]
    74
    """
    if ours := _OURS.findall(text):
        kind, sentence = ours[-1]
        return sentence.strip(), getattr(errors, kind, NePhiError).exit_code
    if died := _DIED.findall(text):
        sentence = died[-1].strip()
        return sentence.replace('n_procs or memory_gb', '--nprocs or --mem'), UNSPECIFIED
    if system := _SYSTEM.findall(text):
        number, reason = int(system[-1][0]), system[-1][1]
        return _sentence_of_oserror(OSError(number, reason)), _code_of_oserror(number)
    if 'MemoryError' in text or 'OutOfMemoryError' in text:
        return (
            'Memory ran out. Run fewer registrations at once (--nprocs, --omp-nthreads) or give '
            'more memory.',
            UNSPECIFIED,
        )
    lines = [found[1] for line in text.splitlines() if (found := _ANY.match(line))]
    last = lines[-1].strip() if lines else 'an unknown error'
    return f'The program failed with {last.rstrip(".")}.', UNSPECIFIED


def _code_of_oserror(number: int | None) -> int:
    denied = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
    return OutputError.exit_code if number in denied else StorageError.exit_code


def _sentence_of_oserror(error: OSError) -> str:
    where = f' "{error.filename}"' if error.filename else ''
    if error.errno in _FULL:
        return (
            f'The disk is full or the quota used up{where}. Free some space and run the same '
            'command again; finished results are kept.'
        )
    return f'A file cannot be read or written{where}: {error.strerror or error}.'
