"""Who is registered to whom: to one reference, all to all, or a table of pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..errors import NothingSelectedError, UsageError
from ..reading import read_table
from .query import Catalogue, Scan, choose_participants, find_participants, shorten
from .reference import resolve_reference, resolve_scans, subject_of
from .settings import Settings

logger = logging.getLogger('nephi_pipe')


@dataclass(frozen=True)
class Pair:
    """One registration: results are stored under the moving person."""

    moving: Scan
    fixed: Scan

    @property
    def name(self) -> str:
        """For messages: ``sub-41 to sub45``."""
        return f'{self.moving.stem} to {self.fixed.space}'


def select_pairs(settings: Settings) -> list[Pair]:
    """The pairs that ``settings`` ask for, sorted by the moving scan.

    Raises
    ------
    NoInputError
        No data set, or a file that was named is missing.
    NothingSelectedError
        Labels and filters match no scan.
    UsageError
        A reference that is several scans, a table that cannot be read, two fixed images with
        one name.
    """
    available = find_participants(settings.bids_dir)
    people = choose_participants(available, settings.participant_label)
    rows = None
    if settings.pairs not in ('to-reference', 'all'):
        rows = _selected_rows(settings, people)
        people = [p for p in people if p in {subject_of(m, settings.bids_dir) for m, _ in rows}]
    fixed_people = _fixed_people(settings, rows)
    choose_participants(available, fixed_people)
    catalogue = Catalogue(
        settings.bids_dir,
        {*people, *fixed_people},
        derivatives=settings.derivatives,
        modality=settings.modality,
        sessions=settings.session_label,
        filter_file=settings.bids_filter_file,
    )
    if rows is not None:
        pairs = _pairs_of_table(settings, catalogue, rows)
    else:
        pairs = _pairs_of_policy(settings, catalogue, people)
    _check_names(pairs)
    return pairs


def _fixed_people(settings: Settings, rows: Sequence[tuple[str, str]] | None) -> list[str]:
    names = [fixed for _, fixed in rows] if rows is not None else [settings.reference]
    if settings.pairs == 'all':
        names = []
    return sorted({subject_of(name, settings.bids_dir) for name in names} - {''})


def _pairs_of_policy(
    settings: Settings, catalogue: Catalogue, people: Sequence[str]
) -> list[Pair]:
    scans = _scans_of(catalogue, people, bool(settings.participant_label))
    if settings.pairs == 'all':
        pairs = [Pair(moving, fixed) for moving, fixed in combinations(scans, 2)]
    else:
        fixed = resolve_reference(settings.reference, catalogue, settings.own_work_dir)
        pairs = [Pair(moving, fixed) for moving in scans if moving.path != fixed.path]
    if not pairs:
        raise NothingSelectedError(
            f'Nothing to register: the only scan selected is {shorten([s.stem for s in scans])}, '
            'and a scan is not registered to itself. Select more people or another --reference.'
        )
    return pairs


def _scans_of(catalogue: Catalogue, people: Sequence[str], asked_for: bool) -> list[Scan]:
    """Scans of these people; someone without one is an error if all are, or if asked for."""
    scans = {label: catalogue.scans(label) for label in people}
    without = [f'sub-{label}' for label, found in scans.items() if not found]
    if without and (asked_for or len(without) == len(people)):
        raise NothingSelectedError(
            f'No {catalogue.expected} matches for {shorten(without)} in "{catalogue.bids_dir}"; '
            f'expected files like {catalogue.example}. Check the folder, --session-label and '
            '--bids-filter-file.'
        )
    if without:
        logger.warning('No %s matches for %s: left out.', catalogue.expected, shorten(without))
    return [scan for found in scans.values() for scan in found]


def _selected_rows(settings: Settings, people: Sequence[str]) -> list[tuple[str, str]]:
    """Rows of the table whose moving person is selected."""
    rows = _read_table(Path(settings.pairs))
    kept = [row for row in rows if subject_of(row[0], settings.bids_dir) in people]
    if not kept:
        raise NothingSelectedError(
            f'None of the moving scans in "{settings.pairs}" '
            f'({shorten([moving for moving, _ in rows], 4)}) belongs to a person who is in the '
            'data set and selected.'
        )
    return kept


def _read_table(path: Path) -> list[tuple[str, str]]:
    expected = 'to-reference, all, or a TSV file with the columns moving and fixed'
    header, *table = read_table(path, expected) or [[]]
    columns = [header.index(name) for name in ('moving', 'fixed') if name in header]
    rows = [tuple(row[column] for column in columns if column < len(row)) for row in table]
    if not rows or not all(len(row) == 2 and all(row) for row in rows):
        raise UsageError(
            f'The table of pairs "{path}" needs the columns moving and fixed, separated by tabs, '
            'and a value in each row (such as sub-01 and sub-02).'
        )
    return rows


def _pairs_of_table(
    settings: Settings, catalogue: Catalogue, rows: Sequence[tuple[str, str]]
) -> list[Pair]:
    pairs: dict[tuple[Path, Path], Pair] = {}
    for moving_name, fixed_name in rows:
        fixed = resolve_reference(fixed_name, catalogue, settings.own_work_dir)
        moving = resolve_scans(moving_name, catalogue)
        if not moving:
            raise NothingSelectedError(
                f'"{moving_name}" in "{settings.pairs}" matches no scan; expected a person '
                '(sub-01), entities (sub-01_ses-1), or a path inside the data set.'
            )
        for scan in moving:
            if scan.path == fixed.path:
                raise UsageError(
                    f'"{settings.pairs}" pairs "{scan.stem}" with itself; expected two scans.'
                )
            pairs[scan.path, fixed.path] = Pair(scan, fixed)
    return sorted(pairs.values(), key=lambda pair: pair.name)


def _check_names(pairs: Sequence[Pair]) -> None:
    """Two fixed images must not share the name of their space, or results would mix."""
    seen: dict[str, Path] = {}
    for pair in pairs:
        other = seen.setdefault(pair.fixed.space, pair.fixed.path)
        if other != pair.fixed.path:
            raise UsageError(
                f'"{other}" and "{pair.fixed.path}" would both be called '
                f'space-{pair.fixed.space}; rename one of them.'
            )
