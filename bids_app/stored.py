"""Finding and reading what pairs left in the output folder; the reports are built from it."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputDataError, NePhiError
from ..reading import MOST_JSON_BYTES, parse_json, read_label_names, read_text

logger = logging.getLogger(__name__)

_NAME = re.compile(r'(?P<moving>sub-[^_]+.*?)_space-(?P<fixed>[^_]+)_(?:.*_)?metrics\.json')


@dataclass(frozen=True)
class StoredPair:
    """One pair as it lies on disk.

    Parameters
    ----------
    path
        Its metrics, ``sub-41/anat/sub-41_space-sub45_desc-nephi_metrics.json``.
    moving, fixed
        As in the file's name: ``sub-41_ses-1_run-1`` and ``sub45``.
    metrics
        What the file holds.
    """

    path: Path
    moving: str
    fixed: str
    metrics: Mapping[str, Any] = field(repr=False)

    @property
    def title(self) -> str:
        """``sub-41 → sub45``."""
        return f'{self.moving} → {self.fixed}'

    @property
    def anchor(self) -> str:
        """What a link to the pair's section of the person's page ends with."""
        return re.sub('[^A-Za-z0-9-]+', '-', f'{self.moving}-to-{self.fixed}')

    @property
    def person(self) -> str:
        """``sub-41``: the folder that the pair is stored in."""
        return next((p.name for p in self.path.parents if p.name.startswith('sub-')), self.moving)

    def entity(self, key: str) -> str | None:
        """``sub-41`` for ``sub``; None when the name has no such entity."""
        found = re.search(rf'(?:^|_)({key}-[^_]+)', self.moving)
        return found[1] if found else None

    def image_name(self, side: str) -> str:
        """What the metrics call the ``moving`` or ``fixed`` image."""
        value = self.metrics.get(side)
        if isinstance(value, Mapping):
            value = value.get('file') or value.get('name')
        return str(value or getattr(self, side))


def find_metrics(output_dir: Path, subject: str | None = None) -> list[Path]:
    """The metrics of every pair of a person (label without ``sub-``) or of all, sorted."""
    person = '*' if subject is None else glob.escape(subject)
    found = output_dir.glob(f'sub-{person}/**/*_metrics.json')
    return sorted(path for path in found if not path.name.startswith('.'))


def read_pair(path: Path) -> StoredPair:
    """Read the metrics of one pair.

    Raises
    ------
    InputDataError
        The file cannot be read, or does not hold a JSON object.
    """
    try:
        metrics = parse_json(read_text(path, 'metrics', MOST_JSON_BYTES))
    except (NePhiError, ValueError) as error:
        raise InputDataError(
            f'"{path}" cannot be read ({error}); expected the metrics of a pair as JSON. Remove '
            'it and run that person again.'
        ) from error
    if not isinstance(metrics, dict):
        raise InputDataError(
            f'"{path}" holds a JSON {type(metrics).__name__}; expected an object with the metrics '
            'of a pair. Remove it and run that person again.'
        )
    named = _NAME.fullmatch(path.name)
    moving, fixed = (named['moving'], named['fixed']) if named else (path.name, 'fixed')
    return StoredPair(path, moving, fixed, metrics)


def read_pairs(output_dir: Path, subject: str | None = None) -> tuple[list[StoredPair], list[str]]:
    """All pairs that can be read, and a sentence about each that cannot (also logged)."""
    pairs, complaints = [], []
    for path in find_metrics(output_dir, subject):
        try:
            pairs.append(read_pair(path))
        except InputDataError as error:
            logger.warning('%s', error)
            complaints.append(str(error))
    return pairs, complaints


def figure_files(output_dir: Path, pair: StoredPair) -> Iterator[Path]:
    """The pair's files in the person's ``figures`` folder, sorted."""
    folder = output_dir / pair.path.relative_to(output_dir).parts[0] / 'figures'
    moving, fixed = re.escape(pair.moving), re.escape(pair.fixed)
    name = re.compile(rf'{moving}(?:_from-[^_]+_to|_space)-{fixed}_desc-.+\.(?:png|svg)')
    for path in sorted(folder.glob('sub-*')):
        if name.fullmatch(path.name):
            yield path


def label_names(pair: StoredPair) -> dict[int, str]:
    """Names of the structures from the table beside the warped labels; {} without one."""
    table = pair.path.with_name(pair.path.name.replace('_metrics.json', '_dseg.tsv'))
    return names_in(table) if table.is_file() else {}


def names_in(table: Path) -> dict[int, str]:
    """Names of structures in a table; a broken one names none, and a warning says so."""
    try:
        return read_label_names(table)
    except NePhiError as error:
        logger.warning('%s Structures are shown by their numbers.', error)
        return {}
