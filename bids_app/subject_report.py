"""A person's page, built from nothing but what lies in the output folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputDataError, NoInputError
from ..files import write_text
from ..report import Figure, load_figure, pair_section
from ..report_html import escape, page, table
from ..report_numbers import find, provenance_rows, show
from .stored import StoredPair, figure_files, label_names, read_pairs

logger = logging.getLogger(__name__)


def write_subject_report(
    output_dir: str | os.PathLike, subject: str, settings: Mapping[str, Any] | None = None
) -> Path:
    """Write ``OUT/sub-<subject>.html`` about all of the person's pairs.

    Parameters
    ----------
    output_dir
        The derivative data set.
    subject
        The moving person's label, with or without ``sub-``.
    settings
        What the run was asked for; shown at the end.

    Raises
    ------
    NoInputError
        The person has no pair in the output folder.
    """
    output_dir, label = Path(output_dir), subject.removeprefix('sub-')
    pairs, complaints = read_pairs(output_dir, label)
    if not pairs and not complaints:
        raise NoInputError(
            f'There are no metrics of sub-{label} in "{output_dir}"; expected files '
            f'"sub-{label}/**/*_metrics.json". Run the participant level for this person first.'
        )
    sections = []
    for pair in pairs:
        section, missing = _section(output_dir, pair)
        sections.append(section)
        complaints += missing
    body = [_complaints(complaints), _contents(pairs), *sections]
    if settings:
        body.append(table('Settings of the run', ('', ''), provenance_rows(settings), folded=True))
    html = page(f'sub-{label}', 'Registration with NePhi fields', ''.join(body))
    return write_text(output_dir / f'sub-{label}.html', html)


def _section(output_dir: Path, pair: StoredPair) -> tuple[str, list[str]]:
    """A pair's section, and sentences about figures that cannot be shown."""
    figures, missing = _figures(output_dir, pair)
    provenance = pair.metrics.get('provenance')
    html = pair_section(
        figures,
        pair.metrics,
        title=pair.title,
        facts=[('Moving', pair.image_name('moving')), ('Fixed', pair.image_name('fixed'))],
        provenance=provenance if isinstance(provenance, Mapping) else None,
        seconds=pair.metrics.get('seconds'),
        label_names=label_names(pair),
        anchor=pair.anchor,
    )
    return html, missing


def _figures(output_dir: Path, pair: StoredPair) -> tuple[list[Figure], list[str]]:
    figures, missing = [], []
    for path in figure_files(output_dir, pair):
        try:
            figures.append(load_figure(path))
        except InputDataError as error:
            logger.warning('%s', error)
            missing.append(str(error))
    return figures, missing


def _complaints(complaints: list[str]) -> str:
    return ''.join(f'<p class="warn">{escape(text)}</p>\n' for text in complaints)


def _contents(pairs: list[StoredPair]) -> str:
    """Links to the pairs, when there is more than one."""
    if len(pairs) < 2:
        return ''
    items = []
    for pair in pairs:
        dice, error = (find(pair.metrics, key, 'after', 'mean') for key in ('dice', 'tre_mm'))
        text = f'Dice {show(dice)}' if dice is not None else ''
        if error is not None and not text:
            text = f'landmark error {show(error, ".2f", "mm")}'
        note = f' <span class="note">{text}</span>' if text else ''
        items.append(f'<li><a href="#{escape(pair.anchor)}">{escape(pair.title)}</a>{note}</li>')
    return f'<nav aria-label="Pairs"><ul class="pairs">{"".join(items)}</ul></nav>\n'
