"""The numbers of a report: which are shown, under which name, in which unit.

All functions take the metrics as they are read from JSON and skip what is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .report_html import Row
from .report_values import find as find
from .report_values import is_number as is_number
from .report_values import look_up as look_up
from .report_values import show as show
from .report_volume import volume_rows


class Structures(NamedTuple):
    """The table of single structures."""

    columns: tuple[str, ...]
    rows: list[Row]


def total_seconds(seconds: Mapping[str, Any] | float | None) -> float | None:
    """The time in total: the entry ``total``, or the sum of the stages."""
    if not isinstance(seconds, Mapping):
        return find({'total': seconds}, 'total')
    stages = [value for key in seconds if (value := find(seconds, key)) is not None]
    total = find(seconds, 'total')
    return total if total is not None else (sum(stages) if stages else None)


def headline(
    metrics: Mapping[str, Any], seconds: Mapping[str, Any] | float | None = None
) -> list[tuple[str, str, str]]:
    """The few numbers on top: (label, value, remark)."""
    tiles = []
    for key, label, form, unit in (
        ('dice', 'Mean Dice', '.3f', ''),
        ('tre_mm', 'Mean landmark error', '.2f', 'mm'),
        ('masks', 'Dice of the masks', '.3f', ''),
        ('similarity', 'Correlation of the images', '.3f', ''),
    ):
        values = _staged(metrics, key)
        if values[1] is not None and not (key == 'similarity' and tiles):
            tiles.append((label, _arrow(*values, form, unit), 'before → after'))
    folds = fold_counts(metrics)
    if folds:
        worst = max(folds, key=lambda fold: fold[1])
        how = worst[0] if worst[1] else 'by every definition below'
        tiles.append(('Folds', show(worst[1], 'count'), how))
    change = find(metrics, 'volume', 'ratio_by_jacobian')
    if change is not None:
        masks = show(find(metrics, 'volume', 'ratio_by_masks'), '.3f')
        tiles.append(('Volume, moving to fixed', show(change, '.3f'), f'masks: {masks}'))
    spread = find(metrics, 'jacobian', 'deformation', 'sd_log')
    if spread is not None:
        tiles.append(('SDlogJ', show(spread, '.2f'), 'spread of log det J'))
    mean = find(metrics, 'inverse_consistency_mm', 'mean')
    if mean is not None:
        tiles.append(('Inverse consistency', show(mean, '.2f', 'mm'), 'mean error'))
    time = total_seconds(seconds)
    if time is not None:
        tiles.append(('Time', duration(time), 'in total'))
    return tiles


def fold_counts(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Number of folds by each definition that was evaluated: (name, count)."""
    names = (
        ('exact derivative', ('exact', 'count')),
        ('spline lattice', ('lattice', 'count')),
        ('central differences', ('finite_difference', 'central_count')),
        ('digital diffeomorphism', ('finite_difference', 'digital_count')),
    )
    found = [(name, find(metrics, 'folds', *keys)) for name, keys in names]
    return [(name, count) for name, count in found if count is not None]


def key_figures(
    metrics: Mapping[str, Any], seconds: Mapping[str, Any] | float | None = None
) -> list[Row]:
    """All figures of the pair, under headings."""
    rows: list[Row] = []
    for heading, group in (
        ('Agreement', _agreement(metrics)),
        ('Change of volume', volume_rows(metrics)),
        ('Folds inside the fixed mask', _folds(metrics)),
        ('Jacobian determinant', _jacobians(metrics)),
        ('Map', _map(metrics)),
        ('Time', _times(seconds)),
    ):
        own = list(group)
        rows += [Row(heading), *own] if own else []
    return rows


def per_structure(
    metrics: Mapping[str, Any], label_names: Mapping[int, str] | None = None
) -> Structures:
    """Dice and HD95 of every structure before and after."""
    columns = {
        (key, stage): f'{name} {stage}'
        for key, name in (('dice', 'Dice'), ('hd95_mm', 'HD95 (mm)'))
        for stage in ('before', 'after')
        if labels_of(metrics, key, stage)
    }
    found = {label for key, stage in columns for label in labels_of(metrics, key, stage)}
    rows = []
    for label in sorted(found, key=_order):
        values = (
            show(labels_of(metrics, key, stage).get(label), '.3f' if key == 'dice' else '.2f')
            for key, stage in columns
        )
        rows.append(Row(label_name(label, label_names), tuple(values)))
    return Structures(tuple(columns.values()), rows)


def labels_of(metrics: Mapping[str, Any], key: str, stage: str) -> dict[str, float]:
    """The finite values of one figure by label, as text keys."""
    part = metrics.get(key)
    part = part.get(stage) if isinstance(part, Mapping) else None
    labels = part.get('labels') if isinstance(part, Mapping) else None
    if not isinstance(labels, Mapping):
        return {}
    return {str(k): v for k in labels if (v := find(labels, k)) is not None}


def label_name(label: str, names: Mapping[int, str] | None) -> str:
    """The name of a label, or its number.

    >>> label_name('8', {8: 'Caudate'}), label_name('9', {8: 'Caudate'})
    ('Caudate', 'label 9')
    """
    names = {str(key): value for key, value in (names or {}).items()}
    return str(names.get(str(label)) or f'label {label}')


def provenance_rows(provenance: Mapping[str, Any]) -> list[Row]:
    """Nested facts as rows, ``outer / inner``; lists on one line."""
    return [Row(name, (value,)) for name, value in _flat(provenance)]


def duration(seconds: float) -> str:
    """Time for people.

    >>> duration(3.21), duration(95), duration(7300)
    ('3.2 s', '1 min 35 s', '2 h 2 min')
    """
    if seconds < 60:
        return f'{seconds:.1f} s'
    if seconds < 3600:
        return '{} min {} s'.format(*divmod(round(seconds), 60))
    return '{} h {} min'.format(*divmod(round(seconds / 60), 60))


def _staged(metrics: Mapping[str, Any], key: str) -> tuple[float | None, float | None]:
    """The one figure of a kind that stands for all, before and after."""
    if key == 'masks':
        return _pair(look_up(metrics, 'masks') or {}, 'dice')
    return _pair(metrics, key, *(() if key == 'similarity' else ('mean',)))


def _pair(metrics: Mapping[str, Any], key: str, *inner: str) -> tuple[float | None, float | None]:
    return find(metrics, key, 'before', *inner), find(metrics, key, 'after', *inner)


def _arrow(before: float | None, after: float | None, form: str, unit: str) -> str:
    shown = show(after, form, unit)
    return shown if before is None else f'{show(before, form)} → {shown}'


def _agreement(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for name, keys, form, note in (
        ('Mean Dice', ('dice', 'mean'), '.3f', 'over the structures present in either image'),
        ('Mean HD95, mm', ('hd95_mm', 'mean'), '.2f', '95th percentile Hausdorff distance'),
        (
            'Landmark error (TRE), mean, mm',
            ('tre_mm', 'mean'),
            '.2f',
            'continuous map, no rounding' + _raw_note(metrics),
        ),
        ('Landmark error, median, mm', ('tre_mm', 'median'), '.2f', ''),
        ('Landmark error, 90th percentile, mm', ('tre_mm', 'p90'), '.2f', ''),
        ('Landmark error, maximum, mm', ('tre_mm', 'max'), '.2f', ''),
        ('Landmark error back, mean, mm', ('tre_inverse_mm', 'mean'), '.2f', 'by the inverse'),
        ('Landmark error back, median, mm', ('tre_inverse_mm', 'median'), '.2f', ''),
        ('Landmarks', ('tre_mm', 'n'), 'count', ''),
        ('Correlation of the images', ('similarity',), '.3f', 'global NCC in the fixed mask'),
    ):
        before, after = _pair(metrics, *keys)
        if before is not None or after is not None:
            yield Row(name, (show(before, form), show(after, form)), note)
    before, after = _staged(metrics, 'masks')
    if after is not None:
        yield Row('Dice of the masks', (show(before), show(after)), 'moved mask on the fixed one')


def _raw_note(metrics: Mapping[str, Any]) -> str:
    raw = find(metrics, 'tre_mm', 'raw', 'mean')
    return '' if raw is None else f'; {raw:.2f} without any registration'


def _folds(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for part, total, name, prefix, note in (
        ('exact', 'points', 'Exact', '', 'the network’s own derivative at sampled points'),
        ('lattice', 'voxels', 'Spline lattice', '', 'analytic derivative of what the warp uses'),
        ('finite_difference', 'voxels', 'Central differences', 'central_', 'of the saved map'),
        (
            'finite_difference', 'voxels', 'Digital diffeomorphism', 'digital_',
            'any of ten finite-difference determinants not positive (Liu et al. 2024)',
        ),
    ):  # fmt: skip
        count = find(metrics, 'folds', part, f'{prefix}count')
        if count is None:
            continue
        size = find(metrics, 'folds', part, total)
        percent = find(metrics, 'folds', part, f'{prefix}percent')
        text = show(count, 'count') + (f' of {show(size, "count")} {total}' if size else '')
        text += f' ({percent:.2g} %)' if percent else ''
        yield Row(name, (text,), note)
    lowest = [
        f'{show(value, ".3g")} ({name})'
        for part, name in (('exact', 'exact'), ('lattice', 'spline lattice'))
        if (value := find(metrics, 'folds', part, 'min')) is not None
    ]
    if lowest:
        yield Row('Lowest det J', (', '.join(lowest),))
    volume = find(metrics, 'folds', 'finite_difference', 'ndv_mm3')
    if volume is not None:
        percent = find(metrics, 'folds', 'finite_difference', 'ndv_percent')
        text = show(volume, '.3g', 'mm³') + (f' ({percent:.2g} %)' if percent else '')
        yield Row('Non-diffeomorphic volume', (text,), 'finite differences (Liu et al. 2024)')


def _jacobians(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for key, name in (('deformation', 'Deformation alone'), ('total', 'Total map')):
        values = {k: find(metrics, 'jacobian', key, k) for k in ('min', 'p01', 'p99', 'max')}
        note = 'affine left out' if key == 'deformation' else 'fixed to moving, with its affine'
        if values['min'] is not None and values['max'] is not None:
            text = f'{values["min"]:.3g} to {values["max"]:.3g}'
            yield Row(f'{name}: range', (text,), note)
        if values['p01'] is not None and values['p99'] is not None:
            text = f'{values["p01"]:.3g} to {values["p99"]:.3g}'
            yield Row(f'{name}: 1st to 99th percentile', (text,))
        spread = find(metrics, 'jacobian', key, 'sd_log')
        if spread is not None:
            yield Row(f'{name}: SDlogJ', (show(spread),), 'standard deviation of ln det J')


def _map(metrics: Mapping[str, Any]) -> Iterator[Row]:
    for key, name in (
        ('inverse_consistency_mm', 'Inverse consistency error'),
        ('displacement_mm', 'Displacement without the affine'),
    ):
        found = [
            f'{word} {value:.2f}'
            for part, word in (('mean', 'mean'), ('p95', '95th percentile'), ('max', 'maximum'))
            if (value := find(metrics, key, part)) is not None
        ]
        if found:
            yield Row(f'{name}, mm', (', '.join(found),))


def _times(seconds: Mapping[str, Any] | float | None) -> Iterator[Row]:
    if isinstance(seconds, Mapping):
        for key in seconds:
            if key != 'total' and (value := find(seconds, key)) is not None:
                yield Row(str(key).replace('_', ' ').capitalize(), (duration(value),))
    total = total_seconds(seconds)
    if total is not None:
        yield Row('Total', (duration(total),))


def _flat(facts: Any, path: str = '') -> Iterator[tuple[str, str]]:
    if isinstance(facts, Mapping):
        for key, value in facts.items():
            yield from _flat(value, f'{path} / {key}' if path else str(key))
    elif isinstance(facts, list | tuple):
        yield path, ' '.join(str(item) for item in facts)
    elif facts is not None:
        yield path, str(facts)


def _order(label: str) -> tuple[int, str]:
    return (int(label), '') if label.lstrip('-').isdigit() else (1 << 30, label)
