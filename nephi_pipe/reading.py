"""The doors for small files that others wrote: regular, of a sane size, text, JSON, tables.

A name may lead to a pipe that never ends or to a file of any size, and a parser may be sent into
any depth: what is read here is bounded before it is read.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from .errors import InputDataError, NoInputError

MOST_TEXT_BYTES = 1 << 28
"""Of a table: some millions of rows."""

MOST_JSON_BYTES = 1 << 24
"""Of JSON and TOML, which take up to 25 times as much memory when they are read."""

DEEPEST = 64
"""Levels of nested lists and objects; whoever walks through them may do so by recursion."""

_DIGITS = 10
"""Of the largest label that a table may name."""


def existing_file(path: str | os.PathLike, expected: str) -> Path:
    """The path of a regular file that may be read.

    Parameters
    ----------
    path
        The file.
    expected
        What it should be, for the message: "an image".

    Raises
    ------
    NoInputError
        There is none, it is a folder, a pipe or a device, or may not be read.
    """
    path = Path(path)
    try:
        if path.is_file():
            if os.access(path, os.R_OK):
                return path
            found = f'The file "{path}" may not be read by you; expected {expected}. Change its '
            raise NoInputError(found + 'permissions, or ask its owner.')
        if not path.exists() and path.is_symlink():
            raise NoInputError(
                f'"{path}" is a link to "{os.readlink(path)}", which is not there; expected the '
                'file itself. Fetch its content first (for example with "datalad get").'
            )
        kind = 'a folder' if path.is_dir() else 'a pipe or a device' if path.exists() else ''
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise NoInputError(
            f'"{path}" cannot be opened ({error}); expected {expected}. Check the path.'
        ) from error
    if kind:
        raise NoInputError(f'"{path}" is {kind}; expected {expected}. Check the path.')
    raise NoInputError(f'There is no file "{path}"; expected {expected}. Check the path.')


def read_text(path: str | os.PathLike, expected: str, most: int = MOST_TEXT_BYTES) -> str:
    """The content of a UTF-8 text file of at most so many bytes, without a byte order mark.

    Raises
    ------
    NoInputError
        As :func:`existing_file`, or it cannot be opened.
    InputDataError
        It is longer, or not UTF-8.
    """
    path = existing_file(path, expected)
    try:
        with open(path, 'rb') as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise NoInputError(
            f'"{path}" cannot be read ({error.strerror}); expected {expected}.'
        ) from error
    if len(content) > most:
        raise InputDataError(
            f'"{path}" has {path.stat().st_size} bytes, more than the {most} that are read; '
            f'expected {expected}. Check that the right file was given.'
        )
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputDataError(
            f'"{path}" cannot be read as text ({error.reason} at byte {error.start}); expected '
            f'{expected} in UTF-8.'
        ) from error


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text holds.

    Raises
    ------
    ValueError
        It is no TOML, or too deep.

    >>> parse_toml('a = [1, 2]')
    {'a': [1, 2]}
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises
    ------
    ValueError
        It is no JSON, too long or too deep.

    >>> parse_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> parse_json('[' * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    if len(text) > MOST_JSON_BYTES:
        raise ValueError(f'it has more than {MOST_JSON_BYTES} characters')
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    inner = [content]
    for _ in range(DEEPEST):
        holders = [one for one in inner if isinstance(one, dict | list)]
        if not holders:
            return content
        inner = [
            value for one in holders for value in (one.values() if isinstance(one, dict) else one)
        ]
    raise ValueError('it is nested too deeply')


def read_json(path: str | os.PathLike, expected: str) -> Any:
    """What a JSON file holds.

    Raises
    ------
    NoInputError, InputDataError
        As :func:`read_text`, or it is no JSON.
    """
    text = read_text(path, expected, MOST_JSON_BYTES)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputDataError(
            f'"{path}" cannot be read as JSON ({error}); expected {expected}. Correct the file.'
        ) from error


def read_table(path: str | os.PathLike, expected: str) -> list[list[str]]:
    """The rows of a tab-separated table, its header first; empty ones are left out.

    Raises
    ------
    NoInputError, InputDataError
        As :func:`read_text`, or it is no table.
    """
    text = read_text(path, expected)
    try:
        return [row for row in csv.reader(io.StringIO(text), delimiter='\t') if any(row)]
    except csv.Error as error:
        raise InputDataError(
            f'"{path}" cannot be read as a table ({error}); expected {expected}.'
        ) from error


def read_label_names(path: str | os.PathLike) -> dict[int, str]:
    """Names of structures from a table with the columns ``index`` and ``name``.

    Raises
    ------
    NoInputError, InputDataError
        As :func:`read_table`.
    """
    header, *rows = read_table(path, 'a table with the columns index and name') or [[]]
    if not {'index', 'name'} <= set(header):
        return {}
    index, name = header.index('index'), header.index('name')
    return {
        int(row[index]): row[name]
        for row in rows
        if len(row) > max(index, name)
        and row[name]
        and row[index].isdecimal()
        and len(row[index]) <= _DIGITS
    }
