"""NePhi beside Greedy, elastix and ConvexAdam on lungs of one person: two real registrations (one
pair, both directions) and twelve simulated breaths: ``python -m benchmarks lung --help``.

As for brains, each method registers each pair in a process of its own, one after the other on the
same machine with the same number of threads; then the same code scores the transform that it saved
(``benchmarks/lung_scoring.py``).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .side_by_side import PACKAGE, common_options, kept, run_and_score

METHODS = ('nephi', 'nephi-none', 'greedy', 'elastix', 'convexadam')
PEERS = ('elastix', 'convexadam')
"""Methods that --peers-python runs."""

NUMBERS, FULL_NUMBERS = range(10), range(10, 12)
"""Simulated pairs: breaths of given means, and one of each case as far as its landmarks say."""


@dataclass(frozen=True)
class Scan:
    """The files of one scan."""

    image: Path
    mask: Path
    landmarks: Path


@dataclass(frozen=True)
class Pair:
    """Two scans of one person, and what they are called."""

    fixed_name: str
    moving_name: str
    fixed: Scan
    moving: Scan

    @property
    def name(self) -> str:
        """What files of this pair begin with."""
        return f'{self.fixed_name}_from-{self.moving_name}'


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, then print and write the tables."""
    given = _parser().parse_args(argv)
    if set(given.methods) & set(PEERS) and not (given.peers_python or given.finished):
        sys.exit(
            'elastix and ConvexAdam need --peers-python or NEPHI_PEERS_PYTHON: a Python that has '
            'itk-elastix, convexAdam and picsl-greedy.'
        )
    given.out.mkdir(parents=True, exist_ok=True)
    records = []
    for pair in _pairs(given):
        for method in given.methods:
            path = given.out / f'{pair.name}_{method}.json'
            if given.finished and not path.exists():
                continue
            title = f'{method}: {pair.moving_name} to {pair.fixed_name}'
            names = {'fixed': pair.fixed_name, 'moving': pair.moving_name}
            records.append(kept(path, title, names, partial(run, method, pair, given)))
    # Only now, when everything is measured, this process may grow.
    from .lung_tables import markdown
    from .tables import replace_section

    text = markdown(records)
    (given.out / 'tables.md').write_text(text)
    if given.results:
        replace_section(given.results, 'lung', text)
    print(text)
    return 0


def run(method: str, pair: Pair, given: argparse.Namespace) -> dict:
    """Register one pair by one method, measured, and score what it saved."""
    fixed, moving = pair.fixed, pair.moving
    files = [method, fixed.image, moving.image, fixed.mask, moving.mask]
    steps = [] if given.steps is None else [f'--steps={given.steps}']
    return run_and_score(
        method,
        ['-m', 'benchmarks.lung_peers', *steps, *files],
        ['-m', 'benchmarks.lung_scoring', *files, fixed.landmarks, moving.landmarks],
        given,
        given.peers_python if method in PEERS else sys.executable,
    )


def real_scan(data: Path, session: str) -> Scan:
    """One session of the real pair."""
    name = f'sub-01_ses-{session}'
    manual = data / f'lungct/derivatives/manual/sub-01/ses-{session}/ct'
    return Scan(
        data / f'lungct/sub-01/ses-{session}/ct/{name}_ct.nii.gz',
        manual / f'{name}_label-lung_mask.nii.gz',
        manual / f'{name}_landmarks.tsv',
    )


def simulated_pair(folder: Path, data: Path | None, number: int) -> Pair:
    """A simulated pair, made where it is not there yet; ``data`` is None where it need not be."""
    scans = [
        Scan(*(folder / f'{side}_{end}' for end in ('ct.nii.gz', 'lungs.nii.gz', 'landmarks.tsv')))
        for side in ('fixed', 'moving')
    ]
    if data is not None and not scans[0].landmarks.exists():
        parts = data / 'lungparts'
        if not parts.is_dir():
            sys.exit(f'There is no folder "{parts}"; expected lungct and lungparts in --data.')
        print(f'simulated pair {number} ...', flush=True)
        command = [sys.executable, '-m', 'benchmarks.lung_pairs', parts, folder]
        made = subprocess.run([*map(str, command), str(number)], env={**os.environ, **PACKAGE})
        if made.returncode:
            sys.exit(f'Simulated pair {number} could not be made.')
    return Pair(f'sim-{number}', f'breath-{number}', *scans)


def _pairs(given: argparse.Namespace) -> list[Pair]:
    pairs = []
    for fixed, moving in [('baseline', 'followup'), ('followup', 'baseline')][: given.real]:
        scans = [real_scan(given.data, session) for session in (fixed, moving)]
        for path in (path for scan in scans for path in (scan.image, scan.mask, scan.landmarks)):
            if not path.is_file():
                sys.exit(f'There is no file "{path}"; expected lungct and lungparts in --data.')
        pairs.append(Pair(fixed, moving, *scans))
    for number in given.simulated:
        folder = given.out / 'pairs' / f'sim-{number}'
        data = None if given.finished else given.data
        pairs.append(simulated_pair(folder, data, number))
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks lung',
        description=' '.join(__doc__.split(':')[0].split()),
        epilog='Measured (method, pair)s and simulated pairs are kept in --out: an interrupted '
        'run goes on where it was. Delete a JSON file to measure it again.',
    )
    parser.add_argument(
        '--data', type=Path, required=True, help='the folder of lungct and lungparts'
    )
    parser.add_argument(
        '--real', type=int, choices=(0, 1, 2), default=2,
        help='directions of the real pair, follow-up as moving image first (default: both)',
    )  # fmt: skip
    parser.add_argument(
        '--simulated', type=int, nargs='*', metavar='N',
        choices=[*NUMBERS, *FULL_NUMBERS], default=[*NUMBERS, *FULL_NUMBERS],
        help='simulated pairs, 0 to 9, and the full breaths 10 and 11 (default: all)',
    )  # fmt: skip
    parser.add_argument(
        '--methods', nargs='+', choices=METHODS, default=[m for m in METHODS if m != 'nephi-none']
    )
    parser.add_argument('--steps', type=int, metavar='N', help='of NePhi, for a quick look')
    parser.add_argument(
        '--finished', action='store_true',
        help='measure nothing: tables of what is in --out; means are over the pairs of a method',
    )  # fmt: skip
    common_options(parser)
    parser.add_argument(
        '--peers-python', default=os.environ.get('NEPHI_PEERS_PYTHON'), metavar='PYTHON',
        help='a Python that has itk-elastix, convexAdam and picsl-greedy (default: '
        'NEPHI_PEERS_PYTHON)',
    )  # fmt: skip
    return parser
