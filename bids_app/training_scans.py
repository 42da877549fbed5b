"""The scans of a data set that a network is trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputDataError, NothingSelectedError, UsageError
from ..presets import preset
from .query import SCANS, Catalogue, Scan, choose_participants, find_participants, shorten

logger = logging.getLogger(__name__)


def find_training_scans(
    bids_dir: Path,
    participants: Sequence[str] = (),
    derivatives: Sequence[str] = (),
    modality: str = 'brain',
) -> tuple[list[Path], list[Path] | None, list[Path] | None]:
    """Images of a data set, with masks and label maps where every image has one.

    Parameters
    ----------
    bids_dir
        The data set.
    participants
        Labels of the people who take part, all when empty.
    derivatives
        Data sets with masks and label maps, each ``PATH`` or ``NAME=PATH``.
    modality
        'brain' (T1w) or 'lung' (CT).

    Returns
    -------
    Images, sorted; masks and labels in the same order, or None. Of a person with several scans the
    first is taken, pairs are of different people; of lungs all are, pairs are of one person.

    Raises
    ------
    UsageError, NoInputError, NothingSelectedError, InputDataError
        Such a modality has no scans, a folder is missing, or it holds no scan; several files
        could be the mask or the labels of one.
    """
    if modality not in SCANS:
        raise UsageError(
            f'A BIDS folder has no scans of the modality "{modality}"; expected '
            f'{" or ".join(SCANS)}. Give a list of images.'
        )
    labels = [label.removeprefix('sub-') for label in participants]
    people = choose_participants(find_participants(bids_dir), labels)
    named = dict(_named(text) for text in derivatives)
    catalogue = Catalogue(bids_dir, people, derivatives=named, modality=modality)
    found = {label: catalogue.scans(label) for label in people}
    taken = None if preset(modality).lungs else 1
    scans = [scan for several in found.values() for scan in several[:taken]]
    if not scans:
        raise NothingSelectedError(
            f'No {catalogue.expected} matches in "{bids_dir}"; expected files like '
            f'{catalogue.example}. Check the folder.'
        )
    for scan in scans:
        if scan.problem:
            raise InputDataError(scan.problem)
    without = [label for label, several in found.items() if not several]
    if without:
        logger.warning('No %s for sub-%s: left out.', catalogue.expected, shorten(without))
    return [scan.path for scan in scans], _of_all(scans, 'mask'), _of_all(scans, 'labels')


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition('=')
    return (name, Path(path)) if equals else (Path(text).name, Path(text))


def _of_all(scans: Sequence[Scan], kind: str) -> list[Path] | None:
    """That file of each scan; None, with a warning where some have one, unless all have."""
    files = [getattr(scan, kind) for scan in scans]
    missing = [scan.stem for scan, file in zip(scans, files, strict=True) if file is None]
    if missing and len(missing) < len(scans):
        logger.warning('No %s for %s: none are used.', kind, shorten(missing))
    return None if missing else files
