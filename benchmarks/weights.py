"""The shipped brain weights on drawn pairs of people: ``python -m benchmarks weights --help``.

Ordered pairs of the people kept for scoring (sub-41 to 48), drawn with a fixed seed; the weights
alone and with few steps beside a fresh field and Greedy, each in a process of its own (see
``benchmarks/brain.py``).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from statistics import mean, median

from .brain import Person, run
from .side_by_side import common_options, kept
from .tables import COLUMNS, NAMES, circumstances, replace_section, table, with_ratios

PEOPLE = ('41', '42', '43', '44', '45', '46', '47', '48')
METHODS = ('nephi-0', 'nephi-20', 'nephi-30', 'nephi-none-150', 'greedy')
_FEW = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, then print and write the tables."""
    given = _parser().parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    people = {label: Person.find(given.data, label) for label in PEOPLE}
    records = []
    for number, (fixed, moving) in enumerate(drawn_pairs(given.pairs, given.seed)):
        for method in given.methods:
            if method in ('nephi-30', 'nephi-none-150') and number >= _FEW:
                continue
            path = given.out / f'sub-{fixed}_from-sub-{moving}_{method}.json'
            if given.finished and not path.exists():
                continue
            make = partial(run, method, people[fixed], people[moving], given)
            title = f'{method}: sub-{moving} to sub-{fixed}'
            records.append(kept(path, title, {'fixed': fixed, 'moving': moving}, make))
    text = markdown(with_ratios(records))
    (given.out / 'tables.md').write_text(text)
    if given.results:
        replace_section(given.results, 'weights', text)
    print(text)
    return 0


def drawn_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """So many different ordered pairs (fixed, moving) of the people kept for scoring.

    With a larger count the first ones stay.
    """
    pairs = list(permutations(PEOPLE, 2))
    random.Random(seed).shuffle(pairs)
    return pairs[:count]


def markdown(records: list[dict]) -> str:
    """Means of each method, the Dice of every pair, and what the bars ask."""
    methods = [name for name in METHODS if any(r['method'] == name for r in records)]
    summary = table(records, methods, COLUMNS, 'mean', 'median').splitlines()
    parts = [
        circumstances(records),
        '\n'.join(summary[:2] + [line for line in summary if line.startswith('| **')]),
        _few(records, methods),
        'Dice of every pair:',
        _every_pair(records, methods),
        _forward(records),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _dice(record: dict, when: str = 'after') -> float:
    return record['scores']['dice'][when]['mean']


def _by_pair(records: list[dict]) -> dict[tuple[str, str], dict[str, dict]]:
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for record in records:
        found.setdefault((record['fixed'], record['moving']), {})[record['method']] = record
    return found


def _few(records: list[dict], methods: list[str]) -> str:
    pairs = [own for own in _by_pair(records).values() if len(own) == len(methods)]
    if not pairs:
        return ''
    rows = [
        f'| {NAMES[name]} | {mean(_dice(own[name]) for own in pairs):.4f} '
        f'| {mean(own[name]["phases"].get("steps", 0) for own in pairs):.0f} '
        f'| {median(own[name]["wall_s"] for own in pairs):.1f} |'
        for name in methods
    ]
    return '\n'.join(
        [
            f'The {len(pairs)} pairs alone that every method registered (with steps of repairs):',
            '',
            '| method | mean Dice | steps | median seconds |',
            '| --- | ---: | ---: | ---: |',
            *rows,
        ]
    )


def _every_pair(records: list[dict], methods: list[str]) -> str:
    shown = [name for name in methods if name not in ('nephi-30', 'nephi-none-150')]
    lines = [
        f'| pair | affine | {" | ".join(NAMES[name] for name in shown)} |',
        f'| --- | {" | ".join(["---:"] * (len(shown) + 1))} |',
    ]
    for (fixed, moving), own in _by_pair(records).items():
        affine = next(iter(own.values()))
        cells = [f'{_dice(own[name]):.4f}' if name in own else '-' for name in shown]
        lines.append(
            f'| {moving} to {fixed} | {_dice(affine, "before"):.4f} | {" | ".join(cells)} |'
        )
    return '\n'.join(lines)


def _forward(records: list[dict]) -> str:
    """From aligned arrays to the dense displacement, and the way from the affine to Greedy."""
    alone = [record for record in records if record['method'] == 'nephi-0']
    if not alone:
        return ''
    seconds = [r['phases']['deformable_s'] + r['phases']['dense_s'] for r in alone]
    share = [r['scores']['folds']['lattice']['percent'] for r in alone]
    sentences = [
        'The weights alone, from loaded and aligned arrays to the displacement at every voxel: '
        f'median {median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}); '
        f'of the determinants at every voxel {mean(share):.4f} % are negative (median of the '
        f'pairs {median(share):.4f} %).'
    ]
    pairs = [own for own in _by_pair(records).values() if {'nephi-0', 'greedy'} <= own.keys()]
    if pairs:
        # Each method's own affine: Greedy's is the better one here.
        ways = [
            (_dice(own['nephi-0']) - _dice(own['greedy'], 'before'))
            / (_dice(own['greedy']) - _dice(own['greedy'], 'before'))
            for own in pairs
        ]
        own_ways = [
            (_dice(own['nephi-0']) - _dice(own['nephi-0'], 'before'))
            / (_dice(own['greedy']) - _dice(own['nephi-0'], 'before'))
            for own in pairs
        ]
        sentences.append(
            f'They go {100 * mean(own_ways):.0f} % of the way from their affine to Greedy '
            f"({100 * mean(ways):.0f} % from Greedy's own affine; means over {len(pairs)} pairs)."
        )
    return ' '.join(sentences)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks weights',
        description=__doc__.splitlines()[0],
        epilog='What is measured is kept in --out: an interrupted run goes on where it was.',
    )
    parser.add_argument('--data', type=Path, required=True, help='the folder of ds002748')
    parser.add_argument('--pairs', type=int, default=16, metavar='N', help='how many are drawn')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    parser.add_argument(
        '--finished', action='store_true', help='only make the tables of what is measured'
    )
    common_options(parser)
    return parser
