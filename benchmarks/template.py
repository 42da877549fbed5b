"""What the network never saw: people to the MNI152 template, and 2 mm pairs with a known truth:
``python -m benchmarks template --help``.

Each registration runs in a process of its own, as for brains, and the same code scores what it
saved (``benchmarks/field_scoring.py``). At the template the label maps of the people are
compared with each other, every pair of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from .brain import Person
from .side_by_side import PACKAGE, common_options, kept, run_at_voxels

METHODS = ('nephi-0', 'nephi-20', 'nephi', 'greedy')
TEMPLATE = 'MNI152'


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, then print and write the tables."""
    given = _parser().parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    records = [*to_template(given), *simulated(given)]
    # Only now, when everything is measured, this process may grow.
    from .tables import replace_section
    from .template_tables import markdown

    text = markdown(records, given.out)
    (given.out / 'tables.md').write_text(text)
    if given.results:
        replace_section(given.results, 'template', text)
    print(text)
    return 0


def to_template(given: argparse.Namespace) -> Iterator[dict]:
    """The records of everybody's registration to the template."""
    template = given.out / 'template.nii.gz'
    for label in given.people:
        person = Person.find(given.data, label)
        made(template, 'template', template)
        for method in given.methods:
            stem = given.out / f'{TEMPLATE}_from-sub-{label}_{method}'
            images = [method, template, person.image]
            names = {'fixed': TEMPLATE, 'moving': label}
            title = f'{method}: sub-{label} to {TEMPLATE}'
            make = partial(run_at_voxels, images, ['--warped', person.labels, stem], given)
            yield kept(stem.with_name(f'{stem.name}.json'), title, names, make)


def simulated(given: argparse.Namespace) -> Iterator[dict]:
    """The records of the simulated pairs."""
    for label in given.simulated:
        person = Person.find(given.data, label)
        folder = given.out / 'pairs' / f'sub-{label}'
        points = [folder / f'{side}_landmarks.tsv' for side in ('fixed', 'moving')]
        made(points[0], 'simulated', person.image, person.labels, folder, label)
        for method in given.simulated_methods:
            images = [method, folder / 'fixed.nii.gz', folder / 'moving.nii.gz']
            names = {'fixed': f'sim-{label}', 'moving': label}
            title = f'{method}: the simulated pair of sub-{label}'
            path = given.out / f'sim-{label}_{method}.json'
            yield kept(
                path, title, names, partial(run_at_voxels, images, ['--landmarks', *points], given)
            )


def made(path: Path, *arguments: str | Path) -> None:
    """Let ``benchmarks/template_images.py`` make ``path`` where it is not there yet."""
    if not path.exists():
        print(f'{path} ...', flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, '-m', 'benchmarks.template_images', *map(str, arguments)]
        subprocess.run(command, check=True, env={**os.environ, **PACKAGE})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks template',
        description=' '.join(__doc__.split('``')[0].split()),
        epilog='What is measured is kept in --out: an interrupted run goes on where it was. '
        'Delete a JSON file to measure it again.',
    )
    parser.add_argument('--data', type=Path, required=True, help='the folder of ds002748')
    people = [str(number) for number in range(41, 49)]
    parser.add_argument('--people', nargs='*', default=people, metavar='LABEL')
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS[:2])
    parser.add_argument(
        '--simulated', nargs='*', default=['41', '44', '47'], metavar='LABEL',
        help='people of whom a 2 mm pair with a known truth is made',
    )  # fmt: skip
    parser.add_argument('--simulated-methods', nargs='+', choices=METHODS, default=METHODS[:3])
    common_options(parser)
    return parser
