"""Records of lung registrations as Markdown, with intervals of the differences between methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

from .lung import FULL_NUMBERS
from .tables import COST_AND_FOLDS, NAMES, NETWORK_COLUMNS, Column, circumstances, table

SUSPECT_ROW = 20
"""Of the real pair: 11 to 14 mm off under every registration tried, probably a wrong landmark."""

_RESAMPLES = 9999
_REAL = ('baseline', 'followup')


def errors_of(record: dict, suspect: bool = True) -> np.ndarray:
    """Error of every landmark, mm; of the real pair without the suspect one where asked."""
    errors = np.array(record['scores']['landmark_mm'])
    return errors if suspect or not is_real(record) else np.delete(errors, SUSPECT_ROW)


def is_real(record: dict) -> bool:
    """Whether the pair is not a simulated one."""
    return record['fixed'] in _REAL


def is_full(record: dict) -> bool:
    """Whether the pair is a simulated breath as far as its landmarks say."""
    return record['fixed'] in {f'sim-{number}' for number in FULL_NUMBERS}


_PARTS: tuple[tuple[str, Callable[[dict], bool]], ...] = (
    ('The real pair', is_real),
    ('Simulated breathing', lambda record: not is_real(record) and not is_full(record)),
    ('Simulated breathing, as far as the landmarks say', is_full),
)


def _tre(measure: Callable[[np.ndarray], float], suspect: bool = True) -> Callable:
    return lambda record: float(measure(errors_of(record, suspect)))


COLUMNS: tuple[Column, ...] = (
    ('raw mm', lambda record: float(np.mean(record['scores']['raw_landmark_mm'])), '.2f'),
    ('TRE mm', _tre(np.mean), '.3f'),
    ('median', _tre(np.median), '.3f'),
    ('90 %', _tre(lambda errors: np.percentile(errors, 90)), '.3f'),
    ('without row 20', lambda r: _tre(np.mean, False)(r) if is_real(r) else None, '.3f'),
    ('lung Dice', lambda record: record['scores']['dice']['after']['mean'], '.4f'),
    ('seconds', lambda record: record['wall_s'], '.1f'),
    *COST_AND_FOLDS,
)


def markdown(records: list[dict]) -> str:
    """The section of RESULTS.md: circumstances, real and simulated pairs, comparisons."""
    methods = list(dict.fromkeys(record['method'] for record in records))
    parts = [circumstances(records)]
    for title, belongs in _PARTS:
        own = [record for record in records if belongs(record)]
        if not own:
            continue
        parts += [f'{title}:', table(own, methods, COLUMNS, 'mean', 'median')]
        networks = [record for record in own if 'exact' in record['scores']['folds']]
        if networks:
            parts.append('What only the network itself tells:')
            parts.append(table(networks, methods, NETWORK_COLUMNS))
        parts += _comparisons(own, methods)
    return '\n\n'.join(parts) + '\n'


def paired_interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Difference of two means over the same landmarks, and its 95 % bootstrap interval (BCa).

    Efron, J Am Stat Assoc 82, 1987. Below zero: ours are closer.
    """
    difference = np.asarray(ours) - np.asarray(theirs)
    if np.ptp(difference) == 0:
        return (float(difference[0]),) * 3
    found = bootstrap(
        (difference,), np.mean, n_resamples=_RESAMPLES, rng=np.random.default_rng(0)
    ).confidence_interval
    return float(difference.mean()), float(found.low), float(found.high)


def _comparisons(records: list[dict], methods: Sequence[str]) -> list[str]:
    """One paragraph for each peer: NePhi's landmarks against its, pair by pair and together."""
    own = {_pair(record): record for record in records if record['method'] == 'nephi'}
    lines, real = [], is_real(records[0])
    for method in methods:
        theirs = {_pair(record): record for record in records if record['method'] == method}
        both = [pair for pair in own if pair in theirs]
        if method == 'nephi' or not both:
            continue
        found = [_differences([(own[p], theirs[p])], p[1] + ' to ' + p[0], real) for p in both]
        if len(both) > 1:
            found.append(_differences([(own[p], theirs[p]) for p in both], 'together', real))
        lines.append(
            f'NePhi against {NAMES[method]}, difference of mean TRE in mm and its 95 % interval '
            f'(paired bootstrap over landmarks): {"; ".join(found)}.'
        )
    return lines


def _differences(pairs: list[tuple[dict, dict]], name: str, real: bool) -> str:
    texts = []
    for suspect in (True, False) if real else (True,):
        ours, theirs = (
            np.concatenate([errors_of(r, suspect) for r in side])
            for side in zip(*pairs, strict=True)
        )
        mean, low, high = paired_interval(ours, theirs)
        texts.append(f'{mean:+.3f} ({low:+.3f} to {high:+.3f})')
    return f'{name} {", without row 20 ".join(texts)}'


def _pair(record: dict) -> tuple[str, str]:
    return record['fixed'], record['moving']
