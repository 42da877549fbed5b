"""Records of runs as Markdown, and Markdown into the marked section of a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

NAMES = {
    'nephi': 'NePhi',
    'nephi-none': 'NePhi without weights',
    'nephi-0': 'NePhi, weights alone',
    'nephi-20': 'NePhi, weights and 20 steps',
    'nephi-30': 'NePhi, weights and 30 steps',
    'nephi-none-150': 'NePhi, fresh field and 150 steps',
    'greedy': 'Greedy',
    'syn': 'ANTs SyN',
    'elastix': 'elastix',
    'convexadam': 'ConvexAdam',
    'voxel': 'voxel field',
    'idir': 'IDIR',
}

Column = tuple[str, Callable[[dict], float | None], str]


def finite(name: str) -> Callable[[dict], float]:
    """Folds by finite differences under one of their names."""
    return lambda record: record['scores']['folds']['finite_difference'][name]


COST_AND_FOLDS: tuple[Column, ...] = (
    ('of it affine', lambda record: record['phases'].get('affine_s'), '.1f'),
    ('CPU seconds', lambda record: record['cpu_s'], '.1f'),
    ('peak MiB', lambda record: record['peak_mib'], '.0f'),
    ('folds, central %', finite('central_percent'), '.4f'),
    ('folds, digital %', finite('digital_percent'), '.4f'),
    ('NDV %', finite('ndv_percent'), '.4f'),
    ('SDlogJ', lambda record: record['scores']['jacobian']['total']['sd_log'], '.3f'),
)
"""What every table ends with."""

COLUMNS: tuple[Column, ...] = (
    ('Dice, affine', lambda record: record['scores']['dice']['before']['mean'], '.4f'),
    ('Dice', lambda record: record['scores']['dice']['after']['mean'], '.4f'),
    ('seconds', lambda record: record['wall_s'], '.1f'),
    ('/ Greedy', lambda record: record.get('time_ratio'), '.2f'),
    *COST_AND_FOLDS,
)

NETWORK_COLUMNS: tuple[Column, ...] = (
    ('exact folds', lambda record: record['scores']['folds']['exact']['count'], 'g'),
    ('of points', lambda record: record['scores']['folds']['exact']['points'], 'g'),
    ('least exact det', lambda record: record['scores']['folds']['exact']['min'], '.3f'),
    ('lattice folds', lambda record: record['scores']['folds']['lattice']['count'], 'g'),
    ('least lattice det', lambda record: record['scores']['folds']['lattice']['min'], '.3f'),
    (
        'inverse consistency, mean mm',
        lambda record: record['scores']['inverse_consistency_mm']['mean'],
        '.3f',
    ),
    ('95 %', lambda record: record['scores']['inverse_consistency_mm']['p95'], '.3f'),
)


def markdown(records: list[dict]) -> str:
    """The section of RESULTS.md: circumstances, every pair, means and medians, comparison."""
    records = with_ratios(records)
    methods = list(dict.fromkeys(record['method'] for record in records))
    parts = [circumstances(records), table(records, methods, COLUMNS, 'mean', 'median')]
    own = [record for record in records if 'exact' in record['scores']['folds']]
    if own:
        parts.append('What only the network itself tells:')
        parts.append(table(own, [m for m in methods if m.startswith('nephi')], NETWORK_COLUMNS))
    parts += [_comparison(records, method) for method in methods if method != 'greedy']
    return '\n\n'.join(part for part in parts if part) + '\n'


def replace_section(path: Path, name: str, text: str) -> None:
    """Put ``text`` between the marks ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Where the file or the marks are missing, they are added at its end.
    """
    begin, end = (f'<!-- {name}: {which} -->' for which in ('begin', 'end'))
    content = path.read_text() if path.exists() else ''
    if begin not in content or end not in content:
        content = f'{content}\n{begin}\n{end}\n'.lstrip()
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f'{before}{begin}\n\n{text.strip()}\n\n{end}{after}')


def with_ratios(records: list[dict]) -> list[dict]:
    """Records with their time relative to Greedy's on the same pair."""
    greedy = {_pair(r): r['wall_s'] for r in records if r['method'] == 'greedy'}
    return [
        r | ({'time_ratio': r['wall_s'] / greedy[_pair(r)]} if _pair(r) in greedy else {})
        for r in records
    ]


def _pair(record: dict) -> tuple[str, str]:
    return record['fixed'], record['moving']


def circumstances(records: list[dict]) -> str:
    """Machine, versions and load of the records; without any the program ends."""
    if not records:
        sys.exit('Nothing is measured yet, so that there is no table to make.')
    versions = {}
    for record in records:
        versions |= record['phases']['versions']
    loads = [record['load_before'] for record in records]
    of = '; '.join(sorted({f'{r["processor"]}, {r["threads"]} threads' for r in records}))
    return (
        f'{of}; {", ".join(f"{name} {v}" for name, v in sorted(versions.items()))}; load of the '
        f'machine before a run {min(loads):.1f} to {max(loads):.1f}. Seconds are those of the '
        'whole process, reading, affine and writing included.'
    )


def table(records: list[dict], methods: list[str], columns: tuple, *summaries: str) -> str:
    """Markdown: a row for each record, then for each method its mean and median."""
    rows = [
        [
            f'{record["moving"]} to {record["fixed"]}',
            NAMES[record['method']],
            *_cells(values, columns),
        ]
        for record in records
        for values in [[value(record) for _, value, _ in columns]]
    ]
    for summary in summaries:
        for method in methods:
            own = [record for record in records if record['method'] == method]
            values = [_summary(summary, [value(r) for r in own]) for _, value, _ in columns]
            cells = [f'**{cell}**' for cell in _cells(values, columns)]
            rows.append([f'**{summary}**', f'**{NAMES[method]}**', *cells])
    header = ['pair', 'method', *(title for title, _, _ in columns)]
    rule = ['---', '---', *('---:' for _ in columns)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in [header, rule, *rows])


def _cells(values: list[float | None], columns: tuple) -> list[str]:
    return [
        '-' if value is None else format(value, form)
        for value, (_, _, form) in zip(values, columns, strict=True)
    ]


def _summary(name: str, values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return {'mean': mean, 'median': median}[name](present) if present else None


def _comparison(records: list[dict], method: str) -> str:
    """One sentence: a method against Greedy over the pairs that both registered."""
    by_method = {
        name: {_pair(r): r for r in records if r['method'] == name} for name in (method, 'greedy')
    }
    both = sorted(by_method[method].keys() & by_method['greedy'].keys())
    if not both:
        return ''

    def pairs(value: Callable[[dict], float]) -> list[tuple[float, float]]:
        return [tuple(value(by_method[name][pair]) for name in by_method) for pair in both]

    gain = [own - other for own, other in pairs(lambda r: r['scores']['dice']['after']['mean'])]
    seconds = [own / other for own, other in pairs(lambda r: r['wall_s'])]
    memory = [own / other for own, other in pairs(lambda r: r['peak_mib'])]
    return (
        f'{NAMES[method]} against Greedy over {len(both)} pairs: mean Dice {mean(gain):+.4f} '
        f'(pairs {min(gain):+.4f} to {max(gain):+.4f}), {median(seconds):.2f} of its time and '
        f'{median(memory):.2f} of its peak memory (medians).'
    )
