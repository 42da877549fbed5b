"""The paper's claims, on real brains: ``python -m benchmarks claims --help``.

NePhi from scratch, its forward pass alone and with 20 steps (what instance optimisation adds), a
lattice of free displacements at the same loss and budget (what the neural field adds), and IDIR.
All start from the same affine, with the same masks; each runs in a process of its own, saves its
displacement at the fixed voxels (``benchmarks/field_peers.py``) and is scored from it by the same
code (``benchmarks/field_scoring.py``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .brain import Person
from .side_by_side import common_options, kept, run_at_voxels
from .tables import COLUMNS, Column, circumstances, replace_section, table

METHODS = ('nephi-none', 'nephi-0', 'nephi-20', 'voxel', 'idir')
PAIRS = ('45:41', '42:46', '48:43')

CLAIM_COLUMNS: tuple[Column, ...] = (
    ('steps', lambda record: record['phases']['steps'], '.0f'),
    ('deformation s', lambda record: record['phases']['deformable_s'], '.1f'),
    ('at voxels s', lambda record: record['phases']['dense_s'], '.1f'),
    *(column for column in COLUMNS if column[0] != '/ Greedy'),
    ('exact folds %', lambda record: exact(record, 'percent'), '.4f'),
    ('least exact det', lambda record: exact(record, 'min'), '.3f'),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, then print and write the tables."""
    given = _parser().parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    records = []
    for pair in given.pairs:
        fixed, moving = pair.split(':')
        people = [Person.find(given.data, label) for label in (fixed, moving)]
        labels = ['--labels', *(person.labels for person in people)]
        for method in given.methods:
            path = given.out / f'sub-{fixed}_from-sub-{moving}_{method}.json'
            title = f'{method}: sub-{moving} to sub-{fixed}'
            names = {'fixed': fixed, 'moving': moving}
            images = [method, *(person.image for person in people)]
            records.append(kept(path, title, names, partial(run_at_voxels, images, labels, given)))
    text = markdown(records)
    (given.out / 'tables.md').write_text(text)
    if given.results:
        replace_section(given.results, 'claims', text)
    print(text)
    return 0


def exact(record: dict, name: str) -> float | None:
    """What the network's own derivative says of folds; None for methods that have none."""
    found = record['scores']['folds'].get('exact')
    return found and found[name]


def markdown(records: list[dict]) -> str:
    """The section of RESULTS.md: circumstances, every pair, means."""
    methods = list(dict.fromkeys(record['method'] for record in records))
    return f'{circumstances(records)}\n\n{table(records, methods, CLAIM_COLUMNS, "mean")}\n'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks claims',
        description=__doc__.split(':')[0] + '.',
        epilog='Measured (method, pair)s are kept in --out: an interrupted run goes on where it '
        'was. Delete a JSON file to measure it again.',
    )
    parser.add_argument('--data', type=Path, required=True, help='the folder of ds002748')
    parser.add_argument('--pairs', nargs='+', default=PAIRS, metavar='FIXED:MOVING')
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    common_options(parser)
    return parser
