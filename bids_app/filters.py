"""Filter files: entities by which people choose among scans, and what pybids makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..reading import MOST_JSON_BYTES, parse_json, read_text

CONFIG = Path(__file__).with_name('bids_config.json')
"""Our own entities for pybids, alone: they know the data type ``ct``, which pybids' do not."""


def read_filters(path: Path | None, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Entities of a filter file for each query name; null is "without", ``"*"`` is "with any".

    Raises
    ------
    NoInputError, UsageError
        There is no such file, or it is not ``{query: {entity: value}}`` in JSON.
    """
    if path is None:
        return {name: {} for name in names}
    text = read_text(path, 'filters as JSON', MOST_JSON_BYTES)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UsageError(f'The filter file "{path}" is not JSON ({error}).') from error
    wrong = [name for name in content if name not in names] if isinstance(content, dict) else ['']
    if wrong or not all(isinstance(filters, dict) for filters in content.values()):
        raise UsageError(
            f'The filter file "{path}" has to hold {{query: {{entity: value}}}} with the queries '
            f'{", ".join(names)}; found {", ".join(filter(None, wrong)) or "something else"}.'
        )
    filters = {name: content.get(name, {}) for name in names}
    for query in filters.values():
        for entity, value in query.items():
            _check_filter(path, entity, value)
    return {
        name: {entity: query_value(value) for entity, value in query.items()}
        for name, query in filters.items()
    }


def _check_filter(path: Path, entity: str, value: Any) -> None:
    """What pybids would take for an argument of its own, or hand to its data base, is refused."""
    known = {one['name'] for one in parse_json(CONFIG.read_text(encoding='utf-8'))['entities']}
    if entity not in known:
        raise UsageError(
            f'The filter file "{path}" names the entity "{entity}", which does not exist; '
            f'expected some of {", ".join(sorted(known))}.'
        )
    values = value if isinstance(value, list) else [value]
    if not all(one is None or type(one) in (str, int) and len(str(one)) < 1000 for one in values):
        raise UsageError(
            f'The filter file "{path}" has {json.dumps(value)} for the entity "{entity}"; '
            'expected text, a whole number, null, or a list of these.'
        )


def query_value(value: Any) -> Any:
    """What pybids asks for where a filter says null (without) or "*" (with any)."""
    from bids.layout import Query

    if isinstance(value, list):
        return [query_value(item) for item in value]
    return {None: Query.NONE, '*': Query.ANY}.get(value, value)
