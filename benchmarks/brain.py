"""NePhi beside Greedy and ANTs SyN on real brains: ``python -m benchmarks brain --help``.

Each method registers each person in a process of its own, one after the other on the same machine
with the same number of threads; then the same code scores the transform that it saved
(``benchmarks/scoring.py``). This process stays small, for the memory of its children is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .side_by_side import common_options, kept, run_and_score
from .tables import markdown, replace_section

METHODS = ('nephi', 'nephi-20', 'nephi-0', 'greedy', 'syn')
_HERE = Path(__file__).parent
_LABELS = 'derivatives/meshnet/{0}/anat/{0}_desc-meshnet18_dseg.nii.gz'


@dataclass(frozen=True)
class Person:
    """The files of one person of the data set."""

    image: Path
    labels: Path

    @classmethod
    def find(cls, data: Path, label: str) -> Person:
        """The T1w image and the label map; SystemExit where one is not there."""
        person = f'sub-{label.removeprefix("sub-")}'
        found = cls(data / f'{person}/anat/{person}_T1w.nii.gz', data / _LABELS.format(person))
        for path in (found.image, found.labels):
            if not path.is_file():
                sys.exit(f'There is no file "{path}"; expected ds002748 in --data.')
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, then print and write the tables."""
    given = _parser().parse_args(argv)
    fixed = Person.find(given.data, given.fixed)
    moving = {label: Person.find(given.data, label) for label in given.moving}
    if 'syn' in given.methods and not given.ants_python:
        sys.exit('SyN needs --ants-python or NEPHI_ANTS_PYTHON: a Python that has antspyx.')
    given.out.mkdir(parents=True, exist_ok=True)
    records = []
    for label, person in moving.items():
        for method in given.methods:
            path = given.out / f'sub-{given.fixed}_from-sub-{label}_{method}.json'
            title = f'{method}: sub-{label} to sub-{given.fixed}'
            pair = {'fixed': given.fixed, 'moving': label}
            make = partial(run, method, fixed, person, given)
            records.append(kept(path, title, pair, make))
    text = markdown(records)
    (given.out / 'tables.md').write_text(text)
    if given.results:
        replace_section(given.results, 'brain', text)
    print(text)
    return 0


def run(method: str, fixed: Person, moving: Person, given: argparse.Namespace) -> dict:
    """Register one pair by one method, measured, and score what it saved."""
    images = [method, fixed.image, moving.image]
    return run_and_score(
        method,
        [_HERE / 'peers.py', *images],
        ['-m', 'benchmarks.scoring', *images, fixed.labels, moving.labels],
        given,
        *([given.ants_python, {}] if method == 'syn' else []),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks brain',
        description=__doc__.splitlines()[0],
        epilog='Measured (method, pair)s are kept in --out: an interrupted run goes on where it '
        'was. Delete a JSON file to measure it again.',
    )
    parser.add_argument('--data', type=Path, required=True, help='the folder of ds002748')
    parser.add_argument('--fixed', default='45', metavar='LABEL')
    parser.add_argument(
        '--moving', nargs='+', default=['41', '42', '43', '44', '46', '47', '48'], metavar='LABEL'
    )
    parser.add_argument(
        '--methods', nargs='+', choices=METHODS, default=('nephi', 'greedy', 'syn')
    )
    common_options(parser)
    parser.add_argument(
        '--ants-python', default=os.environ.get('NEPHI_ANTS_PYTHON'), metavar='PYTHON',
        help='a Python that has antspyx (default: NEPHI_ANTS_PYTHON)',
    )  # fmt: skip
    return parser
