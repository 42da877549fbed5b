"""Values of metrics as they are read from JSON: found under their keys, written as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any


def find(metrics: Mapping[str, Any], *keys: str) -> float | None:
    """The finite number under nested keys, or None.

    >>> find({'dice': {'after': {'mean': 0.8}}}, 'dice', 'after', 'mean')
    0.8
    >>> find({'dice': None}, 'dice', 'after') is None
    True
    """
    value = look_up(metrics, *keys)
    try:
        number = float(value) if is_number(value) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def look_up(metrics: Mapping[str, Any], *keys: str) -> Any:
    """Whatever lies under nested keys, or None."""
    value: Any = metrics
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def is_number(value: Any) -> bool:
    """Whether this is a number, of Python or numpy, finite or not; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def show(value: float | None, form: str = '.3f', unit: str = '') -> str:
    """A number as text, or a dash.

    >>> show(0.8123), show(50000, 'count'), show(1.5, '.2f', 'mm'), show(None)
    ('0.812', '50,000', '1.50 mm', '–')
    """
    if value is None:
        return '–'
    text = f'{value:,.0f}' if form == 'count' else f'{value:{form}}'
    return f'{text} {unit}'.strip()
