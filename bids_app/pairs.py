"""Who is registered to whom: to one reference, all to all, a table, or within each person."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path

from ..errors import NothingSelectedError, UsageError
from ..reading import read_table
from .query import Catalogue, Scan, choose_participants, find_participants, shorten
from .reference import resolve_reference, resolve_scans, subject_of
from .sessions import (
    POLICIES,
    Match,
    pair_breaths,
    pair_rows,
    pair_sessions,
    read_session_table,
    session_order,
)
from .settings import Settings

logger = logging.getLogger('nephi_pipe')


EXAMPLE_MASKS = {'brain': 'desc-brain_mask', 'lung': 'label-lung_mask'}
"""How masks are called, for messages."""


@dataclass(frozen=True)
class Pair:
    """One registration: results are stored under the moving person."""

    moving: Scan
    fixed: Scan

    @property
    def name(self) -> str:
        """For messages: ``sub-41 to sub45``."""
        return f'{self.moving.stem} to {self.fixed.space}'

    @property
    def has_landmarks(self) -> bool:
        """Whether there are landmarks of both, and not one table for both."""
        tables = {self.moving.landmarks, self.fixed.landmarks}
        return None not in tables and len(tables) == 2


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
    if settings.modality == 'lung':
        pairs = _pairs_within_people(settings, people)
    else:
        pairs = _pairs_between_people(settings, available, people)
    _check_names(pairs)
    _warn_of_companions(settings, pairs)
    return pairs


def _warn_of_companions(settings: Settings, pairs: Sequence[Pair]) -> None:
    """Tell what was given and takes no part: a mistyped name, or landmarks of one side."""
    pairs = [pair for pair in pairs if not (pair.moving.problem or pair.fixed.problem)]
    scans = [scan for pair in pairs for scan in (pair.moving, pair.fixed)]
    uris = [uri for scan in scans for uri in (*scan.companion_uris, scan.landmarks_uri) if uri]
    used = {uri.split(':')[1] for uri in uris}
    for name, path in settings.derivatives.items():
        if scans and name not in used:
            mask = EXAMPLE_MASKS[settings.modality]
            logger.warning(
                'The derivatives %s ("%s") give nothing to the scans that are selected; expected '
                'files like %s/%s_%s.nii.gz, ..._dseg.nii.gz or ..._landmarks.tsv.',
                name, path, scans[0].folder, scans[0].stem, mask,
            )  # fmt: skip
    alone = [p.name for p in pairs if (p.moving.landmarks is None) != (p.fixed.landmarks is None)]
    if alone:
        logger.warning(
            'Landmarks are given of one scan only and not scored: %s.', shorten(alone, 4)
        )


def _catalogue(settings: Settings, subjects: Iterable[str]) -> Catalogue:
    return Catalogue(
        settings.bids_dir,
        subjects,
        derivatives=settings.derivatives,
        modality=settings.modality,
        sessions=settings.session_label,
        filter_file=settings.bids_filter_file,
    )


def _pairs_between_people(
    settings: Settings, available: Sequence[str], people: Sequence[str]
) -> list[Pair]:
    rows = None
    if settings.pairs not in ('to-reference', 'all'):
        rows = _selected_rows(settings, people)
        people = [p for p in people if p in {subject_of(m, settings.bids_dir) for m, _ in rows}]
    fixed_people = _fixed_people(settings, rows)
    choose_participants(available, fixed_people, '--reference' if rows is None else '--pairs')
    catalogue = _catalogue(settings, {*people, *fixed_people})
    if rows is not None:
        return _pairs_of_table(settings, catalogue, rows)
    return _pairs_of_policy(settings, catalogue, people)


def _pairs_within_people(settings: Settings, people: Sequence[str]) -> list[Pair]:
    """Pairs of scans of the same person; ``--session-label`` names sessions of the moving one."""
    table, rows = None, []
    if settings.session_pairs not in (None, *POLICIES):
        table = Path(settings.session_pairs)
        rows = read_session_table(table)
        _warn_of_strangers([row[0] for row in rows], settings)
        rows = [row for row in rows if row[0] in people]
        people = _people_of_table(settings, people, {row[0] for row in rows})
    catalogue = _catalogue(settings, people)
    scans = _scans_of(catalogue, people, bool(settings.participant_label), any_session=True)
    _warn_of_sessions(settings, scans)
    pairs, without = [], []
    for label, group in groupby(scans, key=lambda scan: scan.subject):
        own = list(group)
        mine = [row for row in rows if row[0] == label]
        matches = _matches(settings, label, own, mine)
        chosen = [Pair(*match) for match in matches if _is_chosen(settings, match)]
        pairs += sorted(chosen, key=lambda pair: pair.name)
        without += [] if chosen else [_why_none(settings, label, own)]
    if without and (not pairs or settings.participant_label):
        raise NothingSelectedError(' '.join(without))
    for sentence in without:
        logger.warning('%s', sentence)
    return pairs


def _people_of_table(
    settings: Settings, people: Sequence[str], with_rows: Collection[str]
) -> list[str]:
    """Whose scans are paired where there is a table of sessions."""
    if settings.fixed_acq is not None:
        return list(people)  # breath states are paired beside it
    if not with_rows:
        raise NothingSelectedError(
            f'None of the people in "{settings.session_pairs}" is in the data set and selected.'
        )
    without = [f'sub-{label}' for label in people if label not in with_rows]
    if without and settings.participant_label:
        raise NothingSelectedError(
            f'"{settings.session_pairs}" has no row of {shorten(without)}; expected one of each '
            'person who is selected. Add rows, or select others.'
        )
    return sorted(with_rows)


def _warn_of_strangers(labels: Iterable[str], settings: Settings) -> None:
    """Tell of people in a table whom the data set does not have: a mistyped label perhaps."""
    available = find_participants(settings.bids_dir)
    strangers = sorted({f'sub-{label}' for label in labels if label not in available})
    if strangers:
        logger.warning(
            'The data set has no %s, of whom the table of pairs has rows.', shorten(strangers)
        )


def _matches(
    settings: Settings,
    label: str,
    scans: Sequence[Scan],
    rows: Sequence[tuple[str, str, str]],
) -> list[Match]:
    matches = []
    policy = settings.session_pairs
    if settings.fixed_acq is not None:
        chosen = settings.session_label
        own = [scan for scan in scans if not chosen or scan.session in chosen]
        matches += pair_breaths(own, settings.fixed_acq)
    if policy not in (None, *POLICIES):
        known = {(one.path, other.path) for one, other in matches}
        return matches + [
            match
            for match in pair_rows(scans, rows, Path(policy))
            if (match[0].path, match[1].path) not in known
        ]
    if policy is not None or settings.fixed_acq is None:
        table = settings.bids_dir / f'sub-{label}' / f'sub-{label}_sessions.tsv'
        order = session_order({scan.session for scan in scans}, table)
        matches += pair_sessions(scans, policy or POLICIES[0], order)
    return matches


def _warn_of_sessions(settings: Settings, scans: Sequence[Scan]) -> None:
    """Tell of sessions that were asked for and that no scan has."""
    found = {scan.session for scan in scans}
    unknown = [f'ses-{label}' for label in settings.session_label if label not in found]
    if unknown:
        logger.warning('No scan is of %s, as --session-label asks for.', ', '.join(unknown))


def _is_chosen(settings: Settings, match: Match) -> bool:
    return not settings.session_label or match[0].session in settings.session_label


def _why_none(settings: Settings, label: str, scans: Sequence[Scan]) -> str:
    found = 'the only scan that matches is ' if len(scans) == 1 else 'scans that match are '
    found += shorten([scan.stem for scan in scans], 6)
    expected = (
        f'acq-{settings.fixed_acq} and another breath state in one session'
        if settings.fixed_acq is not None
        else 'scans of two sessions'
    )
    chosen = ', the later one selected by --session-label' if settings.session_label else ''
    return (
        f'Nothing to register of sub-{label}: {found}; expected {expected}'
        f'{chosen}. Check the data, --session-pairs, --fixed-acq and --bids-filter-file.'
    )


def _fixed_people(settings: Settings, rows: Sequence[tuple[str, str]] | None) -> list[str]:
    names = [fixed for _, fixed in rows] if rows is not None else [settings.reference]
    if settings.pairs == 'all':
        names = []
    return sorted({subject_of(name, settings.bids_dir) for name in names} - {''})


def _pairs_of_policy(
    settings: Settings, catalogue: Catalogue, people: Sequence[str]
) -> list[Pair]:
    scans = _scans_of(catalogue, people, bool(settings.participant_label))
    _warn_of_sessions(settings, scans)
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


def _scans_of(
    catalogue: Catalogue, people: Sequence[str], asked_for: bool, any_session: bool = False
) -> list[Scan]:
    """Scans of these people; someone without one is an error if all are, or if asked for."""
    scans = {label: catalogue.scans(label, any_session) for label in people}
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
    people_of_rows = [subject_of(name, settings.bids_dir) for row in rows for name in row]
    _warn_of_strangers(filter(None, people_of_rows), settings)
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
