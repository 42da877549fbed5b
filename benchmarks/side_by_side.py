"""What every comparison does: run methods one after the other, measure, score, keep the records.

Import nothing heavy here: the process that measures stays small (see ``benchmarks/measure.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from .measure import limited_to, measured

_ROOT = Path(__file__).parents[1]

PACKAGE = {'PYTHONPATH': os.pathsep.join([str(_ROOT), os.environ.get('PYTHONPATH', '')])}
"""What is not installed is found beside this folder, for the children as for us."""


def common_options(parser: argparse.ArgumentParser) -> None:
    """Options that every comparison has."""
    parser.add_argument('--threads', type=int, default=2, metavar='N', help='of each method')
    parser.add_argument('--out', type=Path, required=True, help='folder for results and tables')
    parser.add_argument(
        '--results', type=Path, metavar='FILE.md',
        help='also put the tables between the marks of this file (benchmarks/RESULTS.md)',
    )  # fmt: skip


def kept(path: Path, title: str, pair: dict, make: Callable[[], dict]) -> dict:
    """The record in ``path``; where there is none, ``pair`` and what is made are written first."""
    if not path.exists():
        print(f'{title} ...', flush=True)
        _write(path, pair | make())
    return json.loads(path.read_text())


def run_and_score(
    method: str,
    peer: Sequence[str | Path],
    scorer: Sequence[str | Path],
    given: argparse.Namespace,
    interpreter: str = sys.executable,
    environment: dict[str, str] = PACKAGE,
) -> dict:
    """One registration by one method, measured, and the scores of what it saved.

    Parameters
    ----------
    method
        Its name.
    peer, scorer
        Arguments of Python that register and score; the folder between them is added to both,
        the number of threads to the first.
    given
        ``out`` and ``threads``.
    interpreter, environment
        The Python that has the method's package, and its environment variables.
    """
    threads = limited_to(given.threads)
    with tempfile.TemporaryDirectory(dir=given.out, prefix=f'{method}-') as scratch:
        folder = Path(scratch)
        load = os.getloadavg()[0]
        command = [interpreter, *peer, folder, '--threads', str(given.threads)]
        usage = measured(command, given.out / f'{method}.log', threads | environment)
        scoring = [sys.executable, *scorer, folder]
        measured(scoring, given.out / 'scoring.log', threads | PACKAGE)
        return {
            'method': method,
            **asdict(usage),
            'phases': json.loads((folder / 'phases.json').read_text()),
            'scores': json.loads((folder / 'scores.json').read_text()),
            'threads': given.threads,
            'processor': processor(),
            'load_before': load,
        }


def run_at_voxels(images: Sequence, scored: Sequence, given: argparse.Namespace) -> dict:
    """Register one pair by a method of ``benchmarks/field_peers.py``, and score what it saved.

    Parameters
    ----------
    images
        The method, and the files of the fixed and of the moving image.
    scored
        Further arguments of ``benchmarks/field_scoring.py``.
    given
        As for :func:`run_and_score`.
    """
    peer, scorer = (['-m', f'benchmarks.field_{name}', *images] for name in ('peers', 'scoring'))
    return run_and_score(images[0], peer, [*scorer, *scored], given)


def processor() -> str:
    """The processor's name and how many there are."""
    name = platform.processor() or platform.machine()
    information = Path('/proc/cpuinfo')
    if information.exists():
        lines = information.read_text().splitlines()
        names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
        name = names[0] if names else name
    return f'{os.cpu_count()} x {name}'


def _write(path: Path, record: dict) -> None:
    """Under another name first: a file that is there is whole."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(record, indent=2) + '\n')
    partial.replace(path)
