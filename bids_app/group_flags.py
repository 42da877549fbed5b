"""Which pairs somebody should look at, and why."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputDataError, UsageError
from ..reading import read_json
from ..report_numbers import show
from .group_table import COLUMNS

THRESHOLDS: dict[str, tuple[float, str]] = {
    'dice_after_min': (0.6, 'Mean Dice after registration is below this'),
    'dice_gain_min': (0.0, 'Mean Dice rises by no more than this'),
    'mask_dice_after_min': (0.9, 'Dice of the masks after registration is below this'),
    'tre_mean_mm_max': (3.0, 'Mean landmark error after registration, in mm, is above this'),
    'tre_gain_mm_min': (0.0, 'Mean landmark error falls by no more than this, in mm'),
    'volume_mismatch_max': (
        0.1,
        'Volume ratios by the Jacobian and by the masks differ by more than this share',
    ),
    'folds_max': (0, 'More folds than this, by any definition'),
    'sd_log_jacobian_max': (0.6, 'SDlogJ of the deformation is above this'),
    'inverse_consistency_mean_mm_max': (
        1.0,
        'Mean inverse consistency error, in mm, is above this',
    ),
    'robust_z_max': (3.5, 'A figure is worse than the median by more than this robust z'),
    'robust_z_min_pairs': (8, 'Number of pairs from which on robust z is used'),
}
"""Name, default, and when a pair is flagged."""


def load_thresholds(
    given: Mapping[str, Any] | str | os.PathLike | None = None,
) -> dict[str, float | None]:
    """The thresholds with the changes of a mapping or a JSON file; null switches one off.

    >>> load_thresholds({'dice_after_min': 0.7})['dice_after_min']
    0.7

    Raises
    ------
    NoInputError, InputDataError
        The file is missing, or not a JSON object.
    UsageError
        A name is unknown or a value is not a number.
    """
    changes, origin = _changes(given)
    unknown = sorted(set(changes) - set(THRESHOLDS))
    if unknown:
        raise UsageError(
            f'There is no threshold "{unknown[0]}" ({origin}); expected some of '
            f'{", ".join(THRESHOLDS)}. Correct the name.'
        )
    for name, value in changes.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise UsageError(
                f'The threshold "{name}" is {value!r} ({origin}); expected a number, or null to '
                'switch it off. Correct the value.'
            )
    return {**{name: default for name, (default, _) in THRESHOLDS.items()}, **changes}


def judge(
    pairs: Sequence[Mapping[str, float | None]], thresholds: Mapping[str, float | None]
) -> list[list[str]]:
    """The reasons to look at each pair; an empty list is a pass.

    Parameters
    ----------
    pairs
        Figures of each pair by column.
    thresholds
        As from `load_thresholds`.
    """
    reasons = [_own_reasons(values, thresholds) for values in pairs]
    fewest, limit = thresholds['robust_z_min_pairs'], thresholds['robust_z_max']
    if limit is not None and fewest is not None:
        for column in COLUMNS:
            if column.better:
                values = [pair[column.name] for pair in pairs]
                known = [i for i, value in enumerate(values) if value is not None]
                if len(known) < fewest:
                    continue
                found = np.array([values[i] for i in known], dtype=float)
                worse = robust_z(found) * (-1 if column.better == 'high' else 1)
                for i, z in zip(known, worse, strict=True):
                    if z > limit:
                        median = show(float(np.median(found)), column.form)
                        reasons[i].append(
                            f'{column.label} {show(values[i], column.form)} is an outlier '
                            f'(median {median}, robust z {z:.1f})'
                        )
    return reasons


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distances from the median in units of the scaled median absolute deviation.

    Iglewicz and Hoaglin, "How to detect and handle outliers", 1993. Where more than half of the
    values are equal, the mean absolute deviation takes its place; zeros if all are equal.

    >>> robust_z(np.array([1.0, 2, 3, 4, 100])).round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 65.43]
    """
    off = values - np.median(values)
    scale = 1.4826 * np.median(np.abs(off)) or 1.2533 * np.mean(np.abs(off))
    return off / scale if scale > 0 else np.zeros_like(off)


def _own_reasons(
    values: Mapping[str, float | None], thresholds: Mapping[str, float | None]
) -> list[str]:
    """What is wrong with a pair whatever the others are like."""
    if all(value is None for value in values.values()):
        return ['its metrics hold no figure']
    reasons = []
    for column, threshold, low, text in (
        ('dice_after', 'dice_after_min', True, 'mean Dice after is {value:.3f}, below {limit:g}'),
        (
            'mask_dice_after', 'mask_dice_after_min', True,
            'Dice of the masks after is {value:.3f}, below {limit:g}',
        ),
        (
            'tre_after_mm', 'tre_mean_mm_max', False,
            'mean landmark error after is {value:.2f} mm, above {limit:g}',
        ),
        ('folds_max', 'folds_max', False, '{value:,.0f} folds by one definition, over {limit:g}'),
        (
            'jacobian_deformation_sd_log', 'sd_log_jacobian_max', False,
            'SDlogJ is {value:.3f}, above {limit:g}',
        ),
        (
            'inverse_consistency_mean_mm', 'inverse_consistency_mean_mm_max', False,
            'mean inverse consistency error is {value:.2f} mm, above {limit:g}',
        ),
    ):  # fmt: skip
        value, limit = values[column], thresholds[threshold]
        if value is not None and limit is not None and (value < limit if low else value > limit):
            reasons.append(text.format(value=value, limit=limit))
    return reasons + _missed(values, thresholds)


def _missed(
    values: Mapping[str, float | None], thresholds: Mapping[str, float | None]
) -> list[str]:
    """Gains that did not come, and volumes that do not agree."""
    reasons = []
    gain, limit = values['dice_gain'], thresholds['dice_gain_min']
    if gain is not None and limit is not None and gain <= limit:
        reasons.append(f'mean Dice did not improve enough ({gain:+.3f})')
    before, after = values['tre_before_mm'], values['tre_after_mm']
    limit = thresholds['tre_gain_mm_min']
    if None not in (before, after, limit) and before - after <= limit:
        reasons.append(f'mean landmark error did not fall enough ({after - before:+.2f} mm)')
    mismatch, limit = values['volume_mismatch'], thresholds['volume_mismatch_max']
    if mismatch is not None and limit is not None and abs(mismatch) > limit:
        reasons.append(
            f'the volume ratio by the Jacobian is {100 * mismatch:+.0f} % off that by the masks'
        )
    return reasons


def _changes(given: Mapping[str, Any] | str | os.PathLike | None) -> tuple[dict[str, Any], str]:
    if given is None or isinstance(given, Mapping):
        return dict(given or {}), 'as given'
    path = Path(given)
    content = read_json(path, 'thresholds as JSON, such as {"dice_after_min": 0.7}')
    if not isinstance(content, dict):
        raise InputDataError(
            f'"{path}" holds a JSON {type(content).__name__}; expected an object such as '
            '{"dice_after_min": 0.7}. Correct the file.'
        )
    return content, f'in "{path}"'
