"""One family of errors, each with the exit code a command ends with.

Codes follow the BIDS execution specification and sysexits(3). A message names
the file, what was found, what was expected and what to do. What files hold and
are called gets into messages: control characters, which could end a line or
command a terminal, are shown as escapes.
"""

_LONGEST = 4000
"""Characters of a message; a file may hold a word of any length."""


class NePhiError(Exception):
    """Something the user can act on; shown as one sentence, never as a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(NePhiError):
    """Arguments that cannot be used, alone or together."""

    exit_code = 64


class UnknownLevelError(NePhiError):
    """An analysis level that does not exist."""

    exit_code = 17


class NothingSelectedError(NePhiError):
    """Filters and labels that match no file."""

    exit_code = 18


class InputDataError(NePhiError):
    """A file that was found but cannot be used."""

    exit_code = 65


class NoInputError(NePhiError):
    """A file or folder that does not exist or cannot be opened."""

    exit_code = 66


class OutputError(NePhiError):
    """An output folder or file that cannot be created."""

    exit_code = 73


class StorageError(NePhiError):
    """Reading or writing failed on the way: disk full, quota, I/O error."""

    exit_code = 74


class TryAgainError(NePhiError):
    """The same command may succeed later."""

    exit_code = 75


def one_line(text: str) -> str:
    """A text of one line that a terminal only shows.

    >>> one_line('"a\\nb\\x1b[2J.nii" is 4D.')
    '"a\\\\nb\\\\x1b[2J.nii" is 4D.'
    """
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f'{text[:half]} ... {text[-half:]}'
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
