"""The group level: one table over all pairs, its data dictionary, and a page to look at."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputDataError, NoInputError
from ..files import write_json, write_text
from .group_flags import judge, load_thresholds
from .group_page import group_page
from .group_table import data_dictionary, not_finite, read_values, table_row, to_tsv
from .outcome import count
from .stored import read_pairs

logger = logging.getLogger(__name__)

STEM = 'group_desc-nephi'

ENDS = {'tsv': 'metrics.tsv', 'json': 'metrics.json', 'html': 'report.html'}
"""How the files of a group end, after ``STEM``."""


def build_group(
    output_dir: str | os.PathLike,
    thresholds: Mapping[str, Any] | str | os.PathLike | None = None,
) -> dict[str, Path]:
    """Summarise every pair in ``output_dir``.

    Parameters
    ----------
    output_dir
        The derivative data set, with ``sub-*/**/*_metrics.json`` in it.
    thresholds
        Changes to `nephi_pipe.bids_app.group_flags.THRESHOLDS`, or a JSON file with them.

    Returns
    -------
    dict
        The files written: ``tsv``, ``json`` (data dictionary) and ``html``. A pair whose metrics
        cannot be read is named in the page and in a warning, and left out of the table.

    Raises
    ------
    NoInputError
        There is no such folder, or no metrics in it.
    InputDataError
        None of the metrics can be read.
    UsageError
        A threshold is unknown or not a number.
    """
    output_dir = Path(output_dir)
    limits = load_thresholds(thresholds)
    pairs, complaints = read_pairs(output_dir)
    if not pairs:
        _refuse(output_dir, complaints)
    values = [read_values(pair) for pair in pairs]
    reasons = [
        [*(f'{name} is not a finite number' for name in not_finite(pair)), *why]
        for pair, why in zip(pairs, judge(values, limits), strict=True)
    ]
    rows = [
        table_row(pair, own, why, pair.path.relative_to(output_dir).as_posix())
        for pair, own, why in zip(pairs, values, reasons, strict=True)
    ]
    pages = [_page_of(output_dir, pair) for pair in pairs]
    paths = {kind: output_dir / f'{STEM}_{end}' for kind, end in ENDS.items()}
    write_text(paths['tsv'], to_tsv(rows))
    write_json(paths['json'], data_dictionary(limits))
    write_text(paths['html'], group_page(pairs, values, reasons, pages, limits, complaints))
    flagged = sum(bool(why) for why in reasons)
    pairs_said = count(len(pairs), 'pair')
    logger.info('%s, %d to review; see "%s".', pairs_said, flagged, paths['html'])
    return paths


def describe_group(output_dir: Path) -> str:
    """What :func:`build_group` would read and write, as text; nothing is written."""
    pairs, complaints = read_pairs(output_dir)
    if not pairs:
        _refuse(output_dir, complaints)
    lines = [f'Group level: {count(len(pairs), "pair")} in {output_dir}.']
    lines += [f'Left out: {complaint}' for complaint in complaints]
    lines += ['', 'Files of the group:']
    return '\n'.join(lines + [f'  {STEM}_{end}' for end in ENDS.values()])


def _refuse(output_dir: Path, complaints: list[str]) -> None:
    if complaints:
        raise InputDataError(
            f'None of the {len(complaints)} metrics files in "{output_dir}" can be read. The '
            f'first: {complaints[0]}'
        )
    what = 'no metrics of any pair in' if output_dir.is_dir() else 'no folder'
    raise NoInputError(
        f'There is {what} "{output_dir}"; expected files "sub-*/**/*_metrics.json". Run the '
        'participant level first, or check the path.'
    )


def _page_of(output_dir: Path, pair: Any) -> str | None:
    """Name of the person's page, where there is one."""
    name = f'{pair.person}.html'
    return name if (output_dir / name).is_file() else None
