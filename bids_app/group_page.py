"""The page of the group level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ..report_html import Row, escape, page, table
from ..report_numbers import show
from .group_flags import THRESHOLDS
from .group_plots import Strip, strip_chart
from .group_table import COLUMNS, Column
from .stored import StoredPair

Values = Mapping[str, float | None]

_LIMITS = {
    'dice_after': ('dice_after_min', 'below'),
    'dice_gain': ('dice_gain_min', 'below'),
    'mask_dice_after': ('mask_dice_after_min', 'below'),
    'tre_after_mm': ('tre_mean_mm_max', 'above'),
    'folds_max': ('folds_max', 'above'),
    'jacobian_deformation_sd_log': ('sd_log_jacobian_max', 'above'),
    'inverse_consistency_mean_mm': ('inverse_consistency_mean_mm_max', 'above'),
}


def group_page(
    pairs: Sequence[StoredPair],
    values: Sequence[Values],
    reasons: Sequence[Sequence[str]],
    pages: Sequence[str | None],
    thresholds: Mapping[str, float | None],
    complaints: Sequence[str],
) -> str:
    """The HTML: what to review, distributions, all pairs, thresholds.

    Parameters
    ----------
    pairs, values, reasons, pages
        One entry a pair: what it is, its figures, why it should be looked at, and the name of
        its person's page.
    thresholds
        What was judged by.
    complaints
        Sentences about metrics that could not be read.
    """
    flagged = [bool(why) for why in reasons]
    body = [
        _tiles(pairs, flagged, complaints),
        ''.join(f'<p class="warn">{escape(text)}</p>' for text in complaints),
        _review(pairs, reasons, pages),
        _distributions(pairs, values, flagged, thresholds),
        _all_pairs(pairs, values, reasons, pages),
        _thresholds(thresholds),
    ]
    return page(
        'Group summary',
        'Registration with NePhi fields',
        ''.join(body),
        _asset('group.js'),
        _asset('group.css'),
    )


def _tiles(pairs: Sequence[StoredPair], flagged: Sequence[bool], complaints: Sequence[str]) -> str:
    people = len({pair.person for pair in pairs})
    tiles = [
        ('Pairs', len(pairs), f'of {people} {"person" if people == 1 else "people"}'),
        ('Pass', flagged.count(False), 'within all thresholds'),
        ('Review', flagged.count(True), 'somebody should look'),
    ]
    if complaints:
        tiles.append(('Not readable', len(complaints), 'named below, left out'))
    cards = ''.join(
        f'<li><span class="label">{label}</span><strong>{count}</strong>'
        f'<span class="note">{note}</span></li>'
        for label, count, note in tiles
    )
    return f'<ul class="tiles">{cards}</ul>\n'


def _review(
    pairs: Sequence[StoredPair], reasons: Sequence[Sequence[str]], pages: Sequence[str | None]
) -> str:
    rows = []
    for pair, why, target in zip(pairs, reasons, pages, strict=True):
        if why:
            items = ''.join(f'<li>{escape(reason)}</li>' for reason in why)
            rows.append(f'<dt>{_link(pair, target)}</dt><dd><ul>{items}</ul></dd>')
    shown = f'<dl class="review">{"".join(rows)}</dl>' if rows else '<p>No pair is flagged.</p>'
    return f'<h2>To review</h2>\n{shown}\n'


def _distributions(
    pairs: Sequence[StoredPair],
    values: Sequence[Values],
    flagged: Sequence[bool],
    thresholds: Mapping[str, float | None],
) -> str:
    names = [pair.title for pair in pairs]
    cards = []
    for title, columns in _cards():
        strips = [
            Strip(column, [own[column.name] for own in values], column.label.split()[-1])
            for column in columns
        ]
        strips = [strip for strip in strips if len(strip.known)]
        if strips:
            limit = _limit(strips[-1].column, thresholds)
            chart = strip_chart(strips, names, flagged, limit)
            units = strips[-1].column.units
            heading = f'{title}, {units}' if units else title
            cards.append(
                f'<figure><h3>{escape(heading)}</h3>{chart}'
                f'<figcaption>{escape(_caption(strips[-1], limit))}</figcaption></figure>'
            )
    intro = (
        '<p class="note">Every dot is a pair (orange diamonds are flagged); the box is the middle '
        'half with the median; the dashed line is the threshold. Before: affine only; after: '
        'NePhi.</p>'
    )
    return f'<h2>Distributions</h2>\n{intro}\n<div class="strips">{"".join(cards)}</div>\n'


def _cards() -> list[tuple[str, list[Column]]]:
    """What is drawn together: before and after on one axis, the others alone."""
    cards: dict[str, list[Column]] = {}
    for column in COLUMNS:
        if column.label:
            title = column.label.removesuffix(' before').removesuffix(' after')
            cards.setdefault(title, []).append(column)
    return list(cards.items())


def _limit(column: Column, thresholds: Mapping[str, float | None]) -> tuple[float, str] | None:
    name, side = _LIMITS.get(column.name, ('', ''))
    value = thresholds.get(name)
    return None if value is None else (value, side)


def _caption(strip: Strip, limit: tuple[float, str] | None) -> str:
    median = show(float(np.median(strip.known)), strip.column.form, strip.column.units)
    text = f'Median {median}, {len(strip.known)} pairs'
    side = 'at or below' if strip.column.name == 'dice_gain' else limit and limit[1]
    return text + (f'; flagged {side} {limit[0]:g}' if limit else '')


def _all_pairs(
    pairs: Sequence[StoredPair],
    values: Sequence[Values],
    reasons: Sequence[Sequence[str]],
    pages: Sequence[str | None],
) -> str:
    """Every pair with the figures that any of them has; sorted by a click with the script."""
    columns = [c for c in COLUMNS if c.label and any(own[c.name] is not None for own in values)]
    names = ['Pair', 'Flag', *(f'{c.label}{f" ({c.units})" if c.units else ""}' for c in columns)]
    head = ''.join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for i, (pair, own, why, target) in enumerate(zip(pairs, values, reasons, pages, strict=True)):
        flag = 'review' if why else 'pass'
        cells = ''.join(_cell(own[column.name], column) for column in columns)
        rows.append(
            f'<tr data-pair="{i}"><th scope="row">{_link(pair, target)}</th>'
            f'<td><span class="flag {flag}">{flag}</span></td>{cells}</tr>'
        )
    return (
        '<h2>All pairs</h2>\n<p class="note">The columns sort by a click; '
        '<code>group_desc-nephi_metrics.tsv</code> has them all, and more.</p>\n'
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div>\n'
    )


def _cell(value: float | None, column: Column) -> str:
    if value is None:
        return '<td>–</td>'
    return f'<td data-value="{value!r}">{escape(show(value, column.form))}</td>'


def _link(pair: StoredPair, target: str | None) -> str:
    if target is None:
        return escape(pair.title)
    address = f'./{quote(target)}#{quote(pair.anchor)}'
    return f'<a href="{escape(address)}">{escape(pair.title)}</a>'


def _thresholds(thresholds: Mapping[str, float | None]) -> str:
    rows = [
        Row(name, ('off' if thresholds[name] is None else f'{thresholds[name]:g}',), text)
        for name, (_, text) in THRESHOLDS.items()
    ]
    note = (
        '<p class="note">Other thresholds can be given as JSON, for example '
        '<code>{"dice_after_min": 0.7, "robust_z_max": null}</code>; null switches one off. '
        'Robust z: distance from the median over 1.4826 times the median absolute deviation, on '
        'the bad side only.</p>\n'
    )
    return table('Thresholds', ('A pair is flagged when', 'Value'), rows) + note


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding='utf-8')
