"""The numbers of a report about an organ's change of volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .report_html import Row
from .report_values import find


def volume_rows(metrics: Mapping[str, Any]) -> Iterator[Row]:
    """Total and local change of the organ's volume from the fixed to the moving image."""
    values = {
        name: find(metrics, 'volume', name)
        for name in ('fixed_ml', 'moving_ml', 'ratio_by_masks', 'ratio_by_jacobian', 'mismatch')
    }
    if None in values.values():
        return
    text = f'{values["fixed_ml"]:,.0f} → {values["moving_ml"]:,.0f}'
    yield Row('Volume of the masks, fixed → moving, ml', (text,))
    for name, key, note in (
        ('Ratio by the Jacobian', 'ratio_by_jacobian', 'integral of det J over the fixed mask'),
        ('Ratio by the masks', 'ratio_by_masks', 'above 1: the moving image is larger'),
    ):
        change = 100 * (values[key] - 1)
        yield Row(name, (f'{values[key]:.3f} ({change:+.1f} %)',), note)
    yield Row('Jacobian against masks', (f'{100 * values["mismatch"]:+.1f} %',))
    local = {key: find(metrics, 'volume', 'local', key) for key in ('p05', 'median', 'p95')}
    if None not in local.values():
        text = f'{local["median"]:.3f} ({local["p05"]:.3f} to {local["p95"]:.3f})'
        yield Row('Local change, median (5th to 95th percentile)', (text,))
