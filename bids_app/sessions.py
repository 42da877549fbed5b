"""Pairs within one person: later sessions to earlier ones, breath states of one session.

The earlier scan is fixed: changes are then those of the follow-up relative to the baseline, all of
them on the baseline's grid, where they can be compared and added up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import combinations, groupby
from pathlib import Path

from ..errors import NePhiError, NothingSelectedError, UsageError
from ..reading import read_table
from .query import Scan
from .reference import entities_of

logger = logging.getLogger('nephi_pipe')

Match = tuple[Scan, Scan]
"""A moving and a fixed scan of one person."""

POLICIES = ('baseline', 'consecutive', 'all')
COLUMNS = ('participant_id', 'fixed', 'moving')
"""Of a table of pairs."""

INDICES = ('run', 'echo', 'inv')
"""Entities whose values are numbers."""

_TIME = re.compile(
    r'(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d+))?(?:Z|[+-]\d\d:?\d\d)?)?'
)

FIRST = ('baseline', 'bl', 'pre')
"""Labels of sessions that come first whatever the alphabet says."""


def session_order(labels: Iterable[str], table: Path | None = None) -> list[str]:
    """Sessions in the order of time, the first one first.

    Parameters
    ----------
    labels
        Of the sessions, '' for scans without one.
    table
        The person's ``sub-XX_sessions.tsv``: its column ``acq_time`` counts where it has a time
        (ISO 8601, as BIDS asks for) for every session. Otherwise, with a warning, ``baseline``
        (or ``bl``, ``pre``) comes first, then the labels with their numbers as numbers.

    >>> session_order(['10', '2', 'baseline'])
    ['baseline', '2', '10']
    """
    labels = set(labels)
    times: dict[str, datetime] = {}
    if table is not None and table.is_file() and len(labels) > 1:
        times = _times(table, labels)
    return sorted(
        labels,
        key=lambda one: (
            times.get(one, datetime.min),
            one.lower() not in FIRST,
            _natural(one),
            one,
        ),
    )


def pair_sessions(scans: Sequence[Scan], policy: str, order: Sequence[str]) -> list[Match]:
    """Later sessions to earlier ones.

    Parameters
    ----------
    scans
        Of one person.
    policy
        ``baseline``: each later session to the first; ``consecutive``: to the one before;
        ``all``: to each one before.
    order
        The sessions, the first one first.
    """
    of = {label: [scan for scan in scans if scan.session == label] for label in order}
    places = {
        'baseline': [(0, later) for later in range(1, len(order))],
        'consecutive': [(later - 1, later) for later in range(1, len(order))],
        'all': list(combinations(range(len(order)), 2)),
    }[policy]
    return [
        match
        for earlier, later in places
        for match in _counterparts(of[order[later]], of[order[earlier]], _beside_session)
    ]


def pair_breaths(scans: Sequence[Scan], fixed_acq: str) -> list[Match]:
    """Within each session, the other acquisitions to the one that is fixed."""
    matches = []
    for _, group in groupby(sorted(scans, key=_session), key=_session):
        own = list(group)
        fixed = [scan for scan in own if _acquisition(scan) == fixed_acq]
        moving = [scan for scan in own if _acquisition(scan) not in ('', fixed_acq)]
        if not (fixed and moving):
            logger.warning(
                '%s: expected a scan of acq-%s and one of another breath state in the same '
                'session; left out of --fixed-acq.',
                ', '.join(scan.stem for scan in own),
                fixed_acq,
            )
        elif len(fixed) == 1:
            matches += [(scan, fixed[0]) for scan in moving]
        else:
            matches += _counterparts(moving, fixed, _beside_acquisition)
    return matches


def read_session_table(path: Path) -> list[tuple[str, str, str]]:
    """Rows of a table of pairs: person (without ``sub-``), fixed and moving.

    Raises
    ------
    NoInputError, UsageError
        There is no such file, or it lacks a column or a value.
    """
    expected = f'{", ".join(POLICIES)}, or a TSV file with the columns {", ".join(COLUMNS)}'
    header, *table = read_table(path, expected) or [[]]
    columns = [header.index(name) for name in COLUMNS if name in header]
    rows = [tuple(row[column] for column in columns if column < len(row)) for row in table]
    if not rows or not all(len(row) == len(COLUMNS) and all(row) for row in rows):
        raise UsageError(
            f'The table of sessions "{path}" needs the columns {", ".join(COLUMNS)}, separated by '
            'tabs, and a value in each row (such as sub-01, ses-1 and ses-2).'
        )
    return [(person.removeprefix('sub-'), fixed, moving) for person, fixed, moving in rows]


def pair_rows(
    scans: Sequence[Scan], rows: Sequence[tuple[str, str, str]], path: Path
) -> list[Match]:
    """The pairs that rows of a table name for one person.

    A cell is a session (``1`` or ``ses-1``), possibly with more entities (``1_acq-insp``), or
    entities alone (``acq-insp``).
    """
    matches: dict[tuple[Path, Path], Match] = {}
    for person, fixed_cell, moving_cell in rows:
        fixed, moving = (_named(cell, scans, path) for cell in (fixed_cell, moving_cell))
        found = _counterparts(moving, fixed, _beside_session)
        if not found:
            raise NothingSelectedError(
                f'The row sub-{person}, {fixed_cell}, {moving_cell} of "{path}" matches '
                f'{len(fixed)} fixed and {len(moving)} moving scans, and none that belong '
                'together; expected scans of two sessions with the same other entities. Correct '
                'the labels, or name more entities (such as ses-1_acq-insp).'
            )
        if any(one.path == other.path for one, other in found):
            raise UsageError(
                f'"{path}" pairs "{found[0][0].stem}" with itself; expected two scans.'
            )
        matches |= {(one.path, other.path): (one, other) for one, other in found}
    return list(matches.values())


def _counterparts(
    moving: Sequence[Scan], fixed: Sequence[Scan], key: Callable[[Scan], dict[str, str]]
) -> list[Match]:
    """Each moving scan with the fixed one of the same key; the only two, whatever their keys."""
    if len(moving) == len(fixed) == 1:
        if _acquisition(moving[0]) != _acquisition(fixed[0]):
            logger.warning(
                '%s goes to %s, the only scan there: is it the same breath state?',
                moving[0].stem,
                fixed[0].stem,
            )
        return [(moving[0], fixed[0])]
    matches = []
    for scan in moving:
        same = [other for other in fixed if key(other) == key(scan)]
        matches += [(scan, other) for other in same]
        if fixed and not same:
            logger.warning(
                '%s has no counterpart among %s: left out.',
                scan.stem,
                ', '.join(other.stem for other in fixed),
            )
    return matches


def _named(cell: str, scans: Sequence[Scan], path: Path) -> list[Scan]:
    """Scans that a cell of a table means."""
    text = cell if '-' in cell.split('_')[0] else f'ses-{cell}'
    wanted = entities_of(text if text.startswith('sub-') else f'sub-0_{text}')
    wanted.pop('subject', None)
    wanted = _plain(wanted)
    if not wanted:
        raise UsageError(
            f'"{cell}" in "{path}" names no session; expected a label (1 or ses-1), or entities '
            '(ses-1_acq-insp).'
        )
    return [scan for scan in scans if wanted.items() <= _entities(scan).items()]


def _times(table: Path, labels: Collection[str]) -> dict[str, datetime]:
    """Times of the sessions in a person's table; none where one lacks, which is told."""
    try:
        header, *rows = read_table(table, 'the sessions of a person') or [[]]
    except NePhiError:
        header, rows = [], []
    if 'session_id' in header and 'acq_time' not in header:
        return {}  # a table about other things
    found = {}
    if 'session_id' in header:
        label, time = header.index('session_id'), header.index('acq_time')
        for row in rows:
            with suppress(ValueError, IndexError):
                found[row[label].removeprefix('ses-')] = _moment(row[time])
    missing = sorted(set(labels) - set(found))
    if not missing:
        return found
    logger.warning(
        '"%s" has no acq_time like 2019-05-01T10:30:00 for %s: sessions are taken in the order of '
        'their labels.',
        table,
        ', '.join(f'ses-{label}' if label else 'scans without a session' for label in missing),
    )
    return {}


def _moment(text: str) -> datetime:
    """A date, with a time or without, as ISO 8601 and BIDS write it.

    What follows the minutes may lack or be a fraction of any length (Python 3.10 would refuse
    some); the zone is not heeded, since that of one person's scans is one.

    >>> _moment('2019-05-01T10:30:00.5Z') < _moment('2019-05-02')
    True
    """
    found = _TIME.fullmatch(text.strip())
    if not found:
        raise ValueError(text)
    day, clock, fraction = found.groups()
    moment = datetime.fromisoformat(f'{day}T{clock or "00:00"}')
    return moment.replace(microsecond=int(f'{fraction or "":0<6.6}'))


def _natural(label: str) -> list[tuple[bool, int, str]]:
    """A key that sorts numbers in a label as numbers, and before letters."""
    return [
        (False, int(part), '') if part.isdecimal() else (True, 0, part)
        for part in re.findall(r'\d+|\D+', label)
    ]


def _session(scan: Scan) -> str:
    return scan.session


def _acquisition(scan: Scan) -> str:
    return _entities(scan).get('acquisition', '')


def _entities(scan: Scan) -> dict[str, str]:
    return _plain(entities_of(scan.stem))


def _plain(entities: Mapping[str, str]) -> dict[str, str]:
    """Entities whose value is an index, without the zeros before it: run-01 is run-1."""
    return {
        name: str(int(value)) if name in INDICES and value.isdecimal() else value
        for name, value in entities.items()
    }


def _beside_session(scan: Scan) -> dict[str, str]:
    return {k: v for k, v in _entities(scan).items() if k not in ('subject', 'session')}


def _beside_acquisition(scan: Scan) -> dict[str, str]:
    return {k: v for k, v in _beside_session(scan).items() if k != 'acquisition'}
