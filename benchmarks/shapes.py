"""NePhi on circles and triangles: ``python -m benchmarks shapes --help``.

A network learns, without labels, to register pairs of random shapes of 128x128 pixels, once for
each number of points at which the regulariser is taken. Told of unseen pairs: Dice and folds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from nephi_pipe.threads import torch_threads
from nephi_pipe.training.checkpoint import load_model, save_model

from .shape_figure import draw
from .shape_learning import Learning, score, train
from .side_by_side import common_options, kept, processor
from .tables import replace_section

COLUMNS = (
    ('Dice before', 'dice_before', '.4f'),
    ('Dice', 'dice', '.4f'),
    ('least', 'dice_least', '.4f'),
    ('folds, %', 'folds_percent', '.4f'),
    ('maps with folds', 'maps_with_folds', 'd'),
    ('of maps', 'maps', 'd'),
    ('least determinant', 'least_determinant', '.3f'),
)
"""Title, name and form of what is told of each setting."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score what is not there yet, then print and write the table and the figure."""
    given = _parser().parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    records = []
    for points in given.points:
        learning = Learning(points, seed=given.seed)
        if given.steps:
            learning = replace(learning, steps=given.steps)
        path = given.out / f'points-{points}.json'
        title, names = f'{points} regulariser points', {'points': points}
        records.append(kept(path, title, names, partial(run, learning, given)))
    text = markdown(records)
    (given.out / 'tables.md').write_text(text)
    if given.results:
        replace_section(given.results, 'shapes', text)
    if given.figure:
        draw(load_model(_weights(given.out, max(given.points))), given.figure)
    print(text)
    return 0


def run(learning: Learning, given: argparse.Namespace) -> dict:
    """Train and score one setting; its weights stay in the folder."""
    with torch_threads(given.threads):
        model, training = train(learning)
        save_model(_weights(given.out, learning.points), model, asdict(learning))
        scores = score(model, given.test_pairs)
    return {
        'learning': asdict(learning),
        'threads': given.threads,
        'processor': processor(),
        **training,
        'scores': scores,
    }


def markdown(records: Sequence[dict]) -> str:
    """How it was run, and a row for each setting and kind of shapes."""
    header = ['points', 'shapes', *(title for title, *_ in COLUMNS), 'minutes', 'CPU minutes']
    rows = [header, ['---:', '---', *('---:' for _ in header[2:])]]
    for record in records:
        cost = [f'{record[name] / 60:.1f}' for name in ('wall_s', 'cpu_s')]
        for kind, found in record['scores'].items():
            cells = [format(found[name], form) for _, name, form in COLUMNS]
            rows.append([str(record['points']), kind, *cells, *cost])
    table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
    return f'{_circumstances(records)}\n\n{table}\n'


def _circumstances(records: Sequence[dict]) -> str:
    learned = {(r['learning']['steps'], r['learning']['pairs']) for r in records}
    how = '; '.join(f'{steps} steps of {pairs} new pairs' for steps, pairs in sorted(learned))
    of = '; '.join(sorted({f'{r["processor"]}, {r["threads"]} threads' for r in records}))
    loads = [record['load_before'] for record in records]
    return (
        f'{of}; load of the machine before a training {min(loads):.1f} to {max(loads):.1f}. '
        f'{how}; minutes are those of the training.'
    )


def _weights(folder: Path, points: int) -> Path:
    return folder / f'points-{points}.safetensors'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks shapes',
        description=__doc__.split('\n\n')[1],
        epilog='Settings that are done are kept in --out: an interrupted run goes on where it '
        'was. Delete a JSON file to train and score it again.',
    )
    parser.add_argument(
        '--points', type=int, nargs='+', default=[16, 64, 512], metavar='N',
        help='regulariser points a pair and step, one training for each (default: 16 64 512)',
    )  # fmt: skip
    parser.add_argument('--figure', type=Path, metavar='PNG', help='draw some unseen pairs there')
    parser.add_argument('--steps', type=int, metavar='N', help='of a training, for a quick look')
    parser.add_argument('--test-pairs', type=int, default=200, metavar='N', help='(default: 200)')
    parser.add_argument('--seed', type=int, default=0, metavar='N')
    common_options(parser)
    return parser
