"""Memory of a training step beside GradICON's: ``python -m benchmarks training-memory --help``.

Each method makes a few steps on one pair of each size in a process of its own, which tells its
peak of resident memory above what it held after its imports (``benchmarks/memory_steps.py``). This
process stays small, for its children begin with its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from .measure import limited_to, measured
from .side_by_side import PACKAGE, common_options, kept, processor
from .tables import replace_section

TRAININGS = {
    'gradicon': 'GradICON, published network',
    'nephi-brain': 'NePhi, `brain` (ships), with label maps',
    'nephi-brain-unlabelled': 'NePhi, `brain`, without',
    'nephi-lung': 'NePhi, `lung-single-res` (published)',
}
INSTANCE = 'instance'
BARS = {160: 1 / 3, 192: 1 / 5}
"""What a training of ours may need of what GradICON's needs."""

MOST_GROWTH = 1.3
_HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, then print and write the tables."""
    given = _parser().parse_args(argv)
    if 'gradicon' in given.methods and not (given.icon_python or given.finished):
        sys.exit(
            'GradICON needs --icon-python or NEPHI_ICON_PYTHON: a Python that has '
            'icon_registration.'
        )
    given.out.mkdir(parents=True, exist_ok=True)
    records = []
    for method in given.methods:
        sizes = given.instance_sizes if method == INSTANCE else given.sizes
        for size in sizes:
            path = given.out / f'{method}_{size}.json'
            if given.finished and not path.exists():
                continue
            what = {'method': method, 'size': size}
            make = partial(run, method, size, given)
            records.append(kept(path, f'{method}: {size} voxels per side', what, make))
    text = markdown(records)
    (given.out / 'tables.md').write_text(text)
    if given.results:
        replace_section(given.results, 'training-memory', text)
    print(text)
    return 0


def run(method: str, size: int, given: argparse.Namespace) -> dict:
    """The steps of one method on cubes of one size, measured."""
    pair = cubes(size, given.out)
    if method.startswith('nephi'):  # the first run leaves its images in the cache
        _child(method, pair, given)
    return _child(method, pair, given)


def cubes(size: int, out: Path) -> Path:
    """The folder of a pair of so many voxels per side, made where it is not there yet."""
    folder = out / f'cubes-{size}'
    if not (folder / 'pair.npy').exists():
        command = [sys.executable, '-m', 'benchmarks.memory_cubes', str(size), folder]
        measured(command, out / 'cubes.log', PACKAGE)
    return folder


def _child(method: str, pair: Path, given: argparse.Namespace) -> dict:
    threads = limited_to(given.threads)
    interpreter, environment = sys.executable, PACKAGE
    if method == 'gradicon':
        interpreter, environment = given.icon_python, {}
    with tempfile.TemporaryDirectory(dir=given.out, prefix=f'{method}-') as scratch:
        command = [
            interpreter, _HERE / 'memory_steps.py', method, pair.resolve(), scratch,
            '--threads', str(given.threads),
        ]  # fmt: skip
        usage = measured(command, given.out / f'{method}.log', threads | environment)
        found = json.loads((Path(scratch) / 'memory.json').read_text())
    return {**asdict(usage), **found, 'threads': given.threads, 'processor': processor()}


def markdown(records: Sequence[dict]) -> str:
    """The section of RESULTS.md: circumstances, trainings, instance optimisation."""
    trainings = [record for record in records if record['method'] in TRAININGS]
    instances = [record for record in records if record['method'] == INSTANCE]
    parts = [circumstances(records)] if records else []
    if trainings:
        parts += ['MiB above the imports, the peak of a training:', training_table(trainings)]
        parts += [sentence for sentence in map(partial(verdict, trainings), BARS) if sentence]
    if instances:
        parts += [
            'MiB of an instance optimisation with the defaults for brains:',
            instance_table(instances),
            growth(instances),
        ]
    return '\n\n'.join(parts) + '\n'


def circumstances(records: Sequence[dict]) -> str:
    """Machine and versions."""
    versions: dict[str, str] = {}
    for record in records:
        versions |= record['versions']
    of = '; '.join(sorted({f'{r["processor"]}, {r["threads"]} threads' for r in records}))
    return f'{of}; {", ".join(f"{name} {v}" for name, v in sorted(versions.items()))}.'


def training_table(records: Sequence[dict]) -> str:
    """A row for each method; behind what it needs, its part of what GradICON needs."""
    sizes = sorted({record['size'] for record in records})
    found = {(record['method'], record['size']): record['above_mib'] for record in records}
    rows = [['method', *(f'{size}³' for size in sizes)], ['---', *('---:' for _ in sizes)]]
    for method, name in TRAININGS.items():
        cells = [_cell(found, method, size) for size in sizes]
        if any(cell != '-' for cell in cells):
            rows.append([name, *cells])
    return _table(rows)


def _cell(found: dict[tuple[str, int], float], method: str, size: int) -> str:
    value, gradicon = found.get((method, size)), found.get(('gradicon', size))
    if value is None:
        return '-'
    part = f' ({value / gradicon:.3f})' if gradicon and method != 'gradicon' else ''
    return f'{value:.0f}{part}'


def verdict(records: Sequence[dict], size: int) -> str:
    """One sentence: our trainings of one size against the bar."""
    found = {r['method']: r['above_mib'] for r in records if r['size'] == size}
    gradicon = found.pop('gradicon', None)
    if not gradicon or not found:
        return ''
    limit = BARS[size] * gradicon
    missed = [f'{TRAININGS[name]} by {value / limit - 1:.0%}' for name, value in found.items()
              if value > limit]  # fmt: skip
    said = f'missed by {"; ".join(missed)}' if missed else 'met by all of ours'
    return f'The bar at {size}³, {BARS[size]:.3f} of GradICON, is {said}.'


def instance_table(records: Sequence[dict]) -> str:
    """A row for each size."""
    rows = [
        ['voxels per side', 'images, masks, affine', 'features', 'steps above these',
         'peak of the process'],
        ['---:'] * 5,
    ]  # fmt: skip
    for record in sorted(records, key=lambda record: record['size']):
        names = ('images_mib', 'features_mib', 'above_mib', 'peak_mib')
        rows.append([f'{record["size"]}', *(f'{record[name]:.0f}' for name in names)])
    return _table(rows)


def growth(records: Sequence[dict]) -> str:
    """One sentence: how much more the steps need on the finest voxels than on the coarsest."""
    first, last = (pick(records, key=lambda record: record['size']) for pick in (min, max))
    ratio = last['above_mib'] / first['above_mib']
    said = 'met' if ratio < MOST_GROWTH else 'missed'
    return (
        f'From {first["size"]} to {last["size"]} voxels per side the steps need {ratio:.2f} times '
        f'as much; the bar of {MOST_GROWTH} is {said}.'
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks training-memory',
        description=__doc__.splitlines()[0],
        epilog='Measured (method, size)s are kept in --out: an interrupted run goes on where it '
        'was. Delete a JSON file to measure it again.',
    )
    every = (*TRAININGS, INSTANCE)
    parser.add_argument('--methods', nargs='+', choices=every, default=every)
    parser.add_argument(
        '--sizes', type=int, nargs='+', default=[96, 128, 160, 192], metavar='N',
        help='voxels per side for the trainings',
    )  # fmt: skip
    parser.add_argument(
        '--instance-sizes', type=int, nargs='+', default=[96, 256], metavar='N',
        help='voxels per side for the instance optimisation',
    )  # fmt: skip
    parser.add_argument(
        '--finished', action='store_true', help='only make the tables of what is measured'
    )
    common_options(parser)
    parser.add_argument(
        '--icon-python', default=os.environ.get('NEPHI_ICON_PYTHON'), metavar='PYTHON',
        help='a Python that has icon_registration (default: NEPHI_ICON_PYTHON)',
    )  # fmt: skip
    return parser
