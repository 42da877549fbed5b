"""The table of all pairs: its columns, what they mean, and how a value is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..report_numbers import find, fold_counts, is_number, look_up, total_seconds
from .stored import StoredPair

Value = float | str | None


@dataclass(frozen=True)
class Column:
    """A figure of each pair.

    Parameters
    ----------
    name, description, units
        As in the TSV and its data dictionary.
    keys
        Where the metrics have it; empty when it is computed.
    label
        Short name on the page; empty for columns that only the TSV has.
    form
        How the page writes it.
    better
        Which end is good; None where neither is.
    """

    name: str
    description: str
    units: str = ''
    keys: tuple[str, ...] = ()
    label: str = ''
    form: str = '.3f'
    better: Literal['high', 'low'] | None = None


_BEFORE, _AFTER = 'with the affine only', 'after NePhi'


def _staged() -> list[Column]:
    """Figures that exist before and after."""
    columns = []
    for name, what, units, keys, label, better in (
        ('dice', 'Mean Dice overlap of the structures', '', ('dice', 'mean'), 'Dice', 'high'),
        (
            'hd95', 'Mean 95th percentile Hausdorff distance of the structures', 'mm',
            ('hd95_mm', 'mean'), 'HD95', 'low',
        ),
        ('tre', 'Mean landmark error', 'mm', ('tre_mm', 'mean'), 'Landmark error', 'low'),
        (
            'mask_dice', 'Dice overlap of the masks of the organ', '', ('masks', 'dice'),
            'Mask Dice', 'high',
        ),
        (
            'similarity', 'Normalised cross-correlation of the images in the fixed mask', '',
            ('similarity',), 'NCC', 'high',
        ),
    ):  # fmt: skip
        form = '.2f' if units else '.3f'
        for stage, when in (('before', _BEFORE), ('after', _AFTER)):
            own = ('masks', 'dice', stage) if keys[0] == 'masks' else (keys[0], stage, *keys[1:])
            end = f'_{units}' if units else ''
            good = better if stage == 'after' else None
            shown = f'{label} {stage}'
            columns.append(
                Column(f'{name}_{stage}{end}', f'{what} {when}', units, own, shown, form, good)
            )
    return columns


def _landmarks() -> list[Column]:
    """Errors of landmarks beside their mean before and after."""
    columns = [
        Column('landmarks', 'Number of landmarks', keys=('tre_mm', 'after', 'n')),
        Column(
            'tre_raw_mm', 'Mean distance of the landmarks without any registration', 'mm',
            ('tre_mm', 'raw', 'mean'),
        ),
    ]  # fmt: skip
    for name, key, what in (
        ('tre', 'tre_mm', ''),
        ('tre_inverse', 'tre_inverse_mm', ', moving landmarks brought back by the inverse'),
    ):
        for part, word in (
            ('mean', 'Mean'),
            ('median', 'Median'),
            ('p90', '90th percentile of the'),
            ('max', 'Largest'),
        ):
            if (key, part) != ('tre_mm', 'mean'):
                text = f'{word} landmark error {_AFTER}{what}'
                where = (key, 'after', part)
                columns.append(Column(f'{name}_{part}_after_mm', text, 'mm', where))
    return columns


def _volumes() -> list[Column]:
    """The organ's change of volume from the fixed to the moving image."""
    return [
        Column('fixed_ml', 'Volume of the fixed mask', 'ml', ('volume', 'fixed_ml')),
        Column('moving_ml', 'Volume of the moving mask', 'ml', ('volume', 'moving_ml')),
        Column(
            'volume_ratio_masks', 'Volume of the moving over that of the fixed mask',
            keys=('volume', 'ratio_by_masks'),
        ),
        Column(
            'volume_ratio', 'Moving over fixed volume by the Jacobian of the map',
            keys=('volume', 'ratio_by_jacobian'), label='Volume ratio',
        ),
        Column(
            'volume_mismatch', 'Volume ratio by the Jacobian over that by the masks, minus 1',
            keys=('volume', 'mismatch'), label='Volume mismatch', form='+.3f',
        ),
        Column(
            'folds_organ_count', 'Number of voxels of the organ that fold (spline lattice)',
            keys=('volume', 'folds', 'count'),
        ),
    ]  # fmt: skip


def _folds() -> list[Column]:
    columns = [
        Column(
            'folds_max', 'Largest count of folds among the definitions evaluated', '',
            label='Folds', form='count',
        )
    ]  # fmt: skip
    for name, what, keys in (
        ('exact', 'sampled points where the exact determinant', ('exact', '')),
        ('lattice', 'voxels where the determinant of the spline lattice', ('lattice', '')),
        (
            'central', 'voxels where the determinant by central differences',
            ('finite_difference', 'central_'),
        ),
        (
            'digital', 'voxels where any determinant of the digital diffeomorphism criterion',
            ('finite_difference', 'digital_'),
        ),
    ):  # fmt: skip
        for part, word, units in (('count', 'Number', ''), ('percent', 'Percentage', '%')):
            text = f'{word} of {what} is not positive, inside the fixed mask'
            where = ('folds', keys[0], f'{keys[1]}{part}')
            columns.append(Column(f'folds_{name}_{part}', text, units, where))
    where = ('folds', 'finite_difference')
    columns += [
        Column('ndv_mm3', 'Non-diffeomorphic volume', 'mm^3', (*where, 'ndv_mm3')),
        Column(
            'ndv_percent',
            'Non-diffeomorphic volume in the fixed mask',
            '%',
            (*where, 'ndv_percent'),
        ),
    ]
    return columns


def _jacobians() -> list[Column]:
    columns = []
    for key, what in (
        ('deformation', 'of the deformation without its affine'),
        ('total', 'of the total map from fixed to moving'),
    ):
        for part, word in (
            ('min', 'Minimum'),
            ('p01', '1st percentile'),
            ('p99', '99th percentile'),
            ('max', 'Maximum'),
        ):
            text = f'{word} of the Jacobian determinant {what}'
            columns.append(Column(f'jacobian_{key}_{part}', text, '', ('jacobian', key, part)))
        text = f'Standard deviation of the natural logarithm of the Jacobian determinant {what}'
        shown = 'SDlogJ' if key == 'deformation' else ''
        good = 'low' if shown else None
        where = ('jacobian', key, 'sd_log')
        columns.append(Column(f'jacobian_{key}_sd_log', text, '', where, shown, '.3f', good))
    return columns


def _distances() -> list[Column]:
    columns = []
    for name, what, label in (
        ('inverse_consistency', 'inverse consistency error', 'Inverse consistency'),
        ('displacement', 'displacement without the affine', 'Displacement'),
    ):
        for part, word in (
            ('mean', 'Mean'),
            ('p95', '95th percentile of the'),
            ('max', 'Maximum'),
        ):
            shown, good = (label, 'low') if part == 'mean' else ('', None)
            where = (f'{name}_mm', part)
            text = f'{word} {what} inside the fixed mask'
            columns.append(Column(f'{name}_{part}_mm', text, 'mm', where, shown, '.2f', good))
    return columns


COLUMNS: tuple[Column, ...] = (
    *_staged(),
    Column('dice_gain', 'Mean Dice after minus before', label='Dice gain', form='+.3f'),
    *_landmarks(),
    *_volumes(),
    *_folds(),
    *_jacobians(),
    *_distances(),
    Column('seconds', 'Time taken in total', 's', label='Time', form='.0f'),
)
"""Every figure of a pair, in the order of the TSV."""

_IDENTITY = {
    'participant_id': 'The person whose image was moved',
    'session_id': 'Session of the moving image',
    'moving': 'The moving image: the entities that its outputs begin with',
    'fixed': 'The fixed image: the label of the space that its outputs carry',
}
_VERDICT = {
    'flag': 'Whether somebody should look at the pair',
    'reasons': 'Why; several are separated by semicolons',
    'metrics_file': 'Where the figures were read from, relative to this file',
}
NAMES: tuple[str, ...] = (*_IDENTITY, *(column.name for column in COLUMNS), *_VERDICT)
"""The header of the TSV."""


def read_values(pair: StoredPair) -> dict[str, float | None]:
    """All figures of a pair by column; None where there is none."""
    values = {c.name: find(pair.metrics, *c.keys) if c.keys else None for c in COLUMNS}
    before, after = values['dice_before'], values['dice_after']
    if before is not None and after is not None:
        values['dice_gain'] = after - before
    values['folds_max'] = max((count for _, count in fold_counts(pair.metrics)), default=None)
    values['seconds'] = total_seconds(pair.metrics.get('seconds'))
    return values


def not_finite(pair: StoredPair) -> list[str]:
    """The columns whose number is stored as NaN or infinite."""
    return [
        column.name
        for column in COLUMNS
        if is_number(look_up(pair.metrics, *column.keys))
        and find(pair.metrics, *column.keys) is None
    ]


def table_row(
    pair: StoredPair, values: dict[str, float | None], reasons: Sequence[str], file: str
) -> dict[str, Value]:
    """A pair as a row of the TSV."""
    return {
        'participant_id': pair.person,
        'session_id': pair.entity('ses'),
        'moving': pair.moving,
        'fixed': pair.fixed,
        **values,
        'flag': 'review' if reasons else 'pass',
        'reasons': '; '.join(reasons) or None,
        'metrics_file': file,
    }


def to_tsv(rows: Sequence[dict[str, Value]]) -> str:
    """The rows as tab-separated text; what is missing is ``n/a``."""
    lines = [list(NAMES), *([_cell(row[name]) for name in NAMES] for row in rows)]
    return ''.join('\t'.join(line) + '\n' for line in lines)


def data_dictionary(thresholds: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The JSON that describes each column, BIDS style."""
    entries: dict[str, dict[str, Any]] = {}
    described = {**_IDENTITY, **{c.name: c.description for c in COLUMNS}, **_VERDICT}
    units = {c.name: c.units for c in COLUMNS}
    for name in NAMES:
        entries[name] = {'Description': f'{described[name]}.'}
        if units.get(name):
            entries[name]['Units'] = units[name]
    entries['flag']['Levels'] = {
        'pass': 'Nothing exceeds the thresholds.',
        'review': 'At least one threshold is exceeded, see reasons.',
    }
    entries['flag']['Thresholds'] = thresholds
    return entries


def _cell(value: Value) -> str:
    if value is None:
        return 'n/a'
    if isinstance(value, float):
        return f'{value:.6g}' if abs(value) < 1e6 else f'{value:.0f}'
    text = ' '.join(str(value).split()).encode('utf-8', 'replace').decode('utf-8')
    return text or 'n/a'
