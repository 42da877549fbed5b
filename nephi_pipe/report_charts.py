"""Charts of a pair as small SVG files: Dice, landmark errors, the course of the optimisation.

They are drawn narrow, so that they can be read on a phone, follow light and dark
themes by themselves, and carry their title and caption along.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .reading import read_text
from .report_html import escape
from .report_numbers import find, label_name, labels_of

_STYLE = (
    'text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#18212b}'
    '.s{fill:#526070;font-size:12px}.k{font-weight:700}.g{stroke:#dfe4ea}.a{fill:#0b7f8b}.b{fill:#98a3b1}'
    '.l{stroke:#0b7f8b;fill:none;stroke-width:2}.m{stroke:#a64b00;fill:none;stroke-width:2}'
    '.n{stroke:#98a3b1;fill:none;stroke-width:2}.v{fill:#526070;opacity:.1}'
    '@media(prefers-color-scheme:dark){text{fill:#e6ebf0}.s{fill:#a3b0be}.g{stroke:#303b47}'
    '.a{fill:#4cc3ce}.b{fill:#7d8998}.n{stroke:#7d8998}.l{stroke:#4cc3ce}.m{stroke:#ffb35c}'
    '.v{fill:#a3b0be}}'
)
_MOST_BYTES = 1 << 23
_WIDTH = 440
_MAX_POINTS = 400


def dice_chart(metrics: Mapping[str, Any], names: Mapping[int, str] | None = None) -> str:
    """Bars of Dice before and after for every structure, best first; '' without Dice."""
    before, after = (labels_of(metrics, 'dice', stage) for stage in ('before', 'after'))
    # Not a set: where values are equal, its order differs from process to process.
    labels = sorted(before | after, key=lambda k: -after.get(k, before.get(k, 0)))
    if not labels:
        return ''
    rows = [(label_name(k, names), before.get(k), after.get(k)) for k in labels]
    mean = [find(metrics, 'dice', stage, 'mean') for stage in ('before', 'after')]
    rows.insert(0, ('Mean', *mean))
    left, right, top, pitch = 172, _WIDTH - 92, 44, 23
    bottom = top + pitch * len(rows)
    parts = [
        '<rect class="b" x="172" y="9" width="16" height="7"/><text x="194" y="17">before</text>'
        '<rect class="a" x="256" y="7" width="16" height="10"/><text x="278" y="17">after</text>'
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + (right - left) * tick
        parts.append(f'<path class="g" d="M{x:.1f} {top - 6}V{bottom}"/>')
        parts.append(
            f'<text class="s" x="{x:.1f}" y="{top - 10}" text-anchor="middle">{tick:g}</text>'
        )
    for i, (name, first, last) in enumerate(rows):
        parts.append(_bars(name, first, last, top + pitch * i, left, right - left, bold=i == 0))
    caption = (
        'Overlap of the moved with the fixed structures, 0 to 1, before (affine only, thin grey '
        'bar) and after NePhi (thick bar), best first.'
    )
    return _svg('dice', 'Dice of each structure', caption, bottom + 6, parts)


def landmark_chart(before: Sequence[float], after: Sequence[float]) -> str:
    """How many landmarks come within which distance, mm; '' without two of them."""
    if min(len(before), len(after)) < 2:
        return ''
    left, right, top, height = 58, _WIDTH - 12, 34, 190
    bottom = top + height
    across = _scale(0.0, max(*before, *after), left, right)
    up = _scale(0.0, 100.0, bottom, top)
    parts = [
        '<rect class="b" x="58" y="9" width="16" height="7"/><text x="80" y="17">before</text>'
        '<rect class="a" x="142" y="9" width="16" height="7"/><text x="164" y="17">after</text>'
    ]
    for tick in ticks(0, 100, 4):
        y = up(tick)
        parts.append(f'<path class="g" d="M{left} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="s" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g} %</text>'
        )
    for tick in ticks(0, max(*before, *after), 6):
        x = across(tick)
        parts.append(
            f'<text class="s" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        )
    for errors, style in ((before, 'n'), (after, 'l')):
        steps, share = sorted(float(error) for error in errors), 100 / len(errors)
        line = f'M{left} {bottom}' + ''.join(
            f'H{across(error):.1f}V{up(share * (i + 1)):.1f}' for i, error in enumerate(steps)
        )
        parts.append(f'<path class="{style}" d="{line}H{right}"/>')
    parts.append(f'<text class="s" x="{right}" y="{bottom + 33}" text-anchor="end">mm</text>')
    caption = (
        f'Share of the {len(after)} landmarks that come closer to their counterpart than the '
        'distance below, before (affine only, grey) and after NePhi.'
    )
    return _svg('landmarks', 'Landmark errors', caption, bottom + 40, parts)


def curve_chart(history: Sequence[Mapping[str, Any]]) -> str:
    """Similarity and regularity against steps, levels shaded in turn; '' without two steps."""
    steps = _steps(history)
    series = [
        (name, style, [find(entry, name) for entry in history])
        for name, style in (('similarity', 'l'), ('regularity', 'm'))
    ]
    series = [item for item in series if sum(value is not None for value in item[2]) > 1]
    if len(history) < 2 or not series:
        return ''
    left, right, top, height = 58, _WIDTH - 12, 34, 150
    parts, bottom = [], top
    across = _scale(steps[0], steps[-1], left, right)
    bands = _levels(history, steps)
    for name, style, values in series:
        for i, (_, first, last) in enumerate(bands):
            if i % 2 == 0:
                x, width = across(first), across(last) - across(first)
                size = f'width="{width:.1f}" height="{height}"'
                parts.append(f'<rect class="v" x="{x:.1f}" y="{top}" {size}/>')
        parts += _curve(name, style, steps, values, across, (left, right, top, height))
        bottom, top = top + height, top + height + 44
    for label, first, last in bands if len(bands) > 1 else []:
        x = (across(first) + across(last)) / 2
        text = f'level {escape(label)}'
        parts.append(f'<text class="s" x="{x:.1f}" y="12" text-anchor="middle">{text}</text>')
    for tick in ticks(steps[0], steps[-1], 5):
        parts.append(
            f'<text class="s" x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">'
            f'{tick:g}</text>'
        )
    parts.append(f'<text class="s" x="{right}" y="{bottom + 33}" text-anchor="end">step</text>')
    caption = 'Similarity and regularity at each step; shading and labels mark the levels.'
    return _svg('curve', 'Course of the optimisation', caption, bottom + 40, parts)


def read_chart_note(path: Path) -> dict[str, str]:
    """Key, title and caption of an SVG chart."""
    root = ElementTree.fromstring(read_text(path, 'a chart', _MOST_BYTES))
    space = '{http://www.w3.org/2000/svg}'
    return {
        'key': root.attrib['data-key'],
        'title': root.findtext(f'{space}title') or '',
        'caption': root.findtext(f'{space}desc') or '',
    }


def _svg(key: str, title: str, caption: str, height: float, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
        f'width="{_WIDTH}" height="{height:.0f}" role="img" data-key="{key}">\n'
        f'<title>{escape(title)}</title>\n<desc>{escape(caption)}</desc>\n<style>{_STYLE}</style>\n'
        + '\n'.join(parts)
        + '\n</svg>\n'
    )


def _bars(
    name: str, before: float | None, after: float | None, y: int, left: int, width: int, bold: bool
) -> str:
    shown = name if len(name) <= 25 else f'{name[:24]}…'
    weight = ' class="k"' if bold else ''
    parts = [
        f'<g><title>{escape(name)}</title><text x="{left - 8}" y="{y + 15}" text-anchor="end"'
        f'{weight}>{escape(shown)}</text>'
    ]
    for value, style, offset, thick in ((before, 'b', 3, 5), (after, 'a', 8, 9)):
        if value is not None:
            length = width * min(max(value, 0), 1)
            parts.append(
                f'<rect class="{style}" x="{left}" y="{y + offset}" width="{length:.1f}" '
                f'height="{thick}" rx="1.5"/>'
            )
    values = ' → '.join(f'{value:.2f}' for value in (before, after) if value is not None)
    parts.append(
        f'<text x="{_WIDTH - 4}" y="{y + 15}" text-anchor="end"{weight}>{values}</text></g>'
    )
    return ''.join(parts)


def _steps(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """The steps as recorded, or a plain count where they are missing or start again."""
    steps = [find(entry, 'step') for entry in history]
    if any(a is None or b is None or b <= a for a, b in zip(steps, steps[1:], strict=False)):
        return [float(i) for i in range(len(history))]
    return [float(step) for step in steps if step is not None]


def _levels(
    history: Sequence[Mapping[str, Any]], steps: list[float]
) -> list[tuple[Any, float, float]]:
    """Runs of the same level: (level, first step, last step)."""
    bands: list[tuple[Any, float, float]] = []
    for entry, step in zip(history, steps, strict=True):
        level = entry.get('level')
        if bands and bands[-1][0] == level:
            bands[-1] = (level, bands[-1][1], step)
        else:
            start = bands[-1][2] if bands else step
            bands.append((level, start, step))
    return bands


def _curve(
    name: str,
    style: str,
    steps: list[float],
    values: list[float | None],
    across: Any,
    box: tuple[int, int, int, int],
) -> list[str]:
    left, right, top, height = box
    known = [value for value in values if value is not None]
    logarithmic = min(known) > 0 and max(known) > 30 * min(known)
    turn = math.log10 if logarithmic else float
    low, high = turn(min(known)), turn(max(known))
    room = 0.06 * (high - low) or 0.5
    up = _scale(low - room, high + room, top + height, top)
    parts = [
        f'<text x="{left}" y="{top - 8}" class="k">{name.capitalize()}'
        f'{" (logarithmic)" if logarithmic else ""}</text>'
    ]
    for tick in ticks(low, high, 4):
        y, text = up(tick), 10**tick if logarithmic else tick
        parts.append(f'<path class="g" d="M{left} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="s" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text:.3g}</text>'
        )
    stride = max(1, math.ceil(len(values) / _MAX_POINTS))
    kept = sorted({*range(0, len(values), stride), len(values) - 1})
    points = ' '.join(
        f'{across(steps[i]):.1f},{up(turn(values[i])):.1f}' for i in kept if values[i] is not None
    )
    return [*parts, f'<polyline class="{style}" points="{points}"/>']


def _scale(low: float, high: float, first: float, last: float) -> Any:
    width = (high - low) or 1.0
    return lambda value: first + (value - low) / width * (last - first)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values in [low, high], about ``count`` of them.

    >>> ticks(0, 150, 4)
    [0.0, 50.0, 100.0, 150.0]
    """
    if high <= low:
        return [float(low)]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999), default=raw)
    first = math.ceil(low / step - 1e-9)
    return [round(float(i * step), 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
