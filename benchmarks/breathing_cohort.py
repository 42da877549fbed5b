"""Lungs of three people, two or three sessions each, through every level of ``nephi-pipe``.

One worker is killed (SIGKILL) in the middle of a registration: the others finish, and the same
command redoes what was lost, and nothing else. Linux only.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nephi_pipe.bids_app.query import space_label

from .tables import replace_section
from .workers import worker_in

KILLED = 'sub-01_ses-2'
"""Whose worker is killed: the person has another pair, which finishes."""

ENDS = (1, 0, 0, 0, 0)
"""Exit codes of the steps as they should be."""

LOOK_EVERY_S = 0.05

FIGURES = (
    ('landmarks', 'landmarks', '.0f'),
    ('raw mm', 'tre_raw_mm', '.2f'),
    ('affine mm', 'tre_before_mm', '.2f'),
    ('NePhi mm', 'tre_after_mm', '.2f'),
    ('median mm', 'tre_median_after_mm', '.2f'),
    ('lung Dice, affine', 'mask_dice_before', '.3f'),
    ('lung Dice', 'mask_dice_after', '.3f'),
    ('folds', 'folds_max', '.0f'),
    ('volume by Jacobian', 'volume_ratio', '.3f'),
    ('by masks', 'volume_ratio_masks', '.3f'),
    ('seconds', 'seconds', '.0f'),
)
"""Title, column of the group's table, and form of what is told of each pair."""


@dataclass(frozen=True)
class Step:
    """One call of ``nephi-pipe``.

    Parameters
    ----------
    name
        What was called.
    seconds, code
        On the clock, and how it ended.
    started
        Pairs of which anything had to be computed.
    pairs
        What came of them, in its own words or as rows of a table.
    said
        All of its output.
    """

    name: str
    seconds: float
    code: int
    started: int
    pairs: str
    said: str


@dataclass(frozen=True)
class Cohort:
    """The data set and the folders of its runs, all of them in one."""

    folder: Path
    options: tuple[str, ...] = ()

    @property
    def data(self) -> Path:
        """The data set."""
        return self.folder / 'ds'

    @property
    def table(self) -> Path:
        """What the group level writes."""
        return self.folder / 'out' / 'group_desc-nephi_metrics.tsv'

    def steps(self) -> Iterator[Step]:
        """Every call, made when it is asked for."""
        yield self.participant('`participant`, one worker killed', self._kill)
        yield self.group('`group`')
        yield self.participant('`participant` again')
        yield self.group('`group` again')
        yield self.participant('`participant` once more')

    def participant(
        self, name: str, disturb: Callable[[subprocess.Popen], None] | None = None
    ) -> Step:
        """Register everybody; ``disturb`` is called with the process while it runs."""
        seconds, code, said = self._call('participant', disturb)
        found = re.search(r'\d+ of \d+ pairs finished.*', said)
        return Step(name, seconds, code, said.count(': started.'), found[0] if found else '', said)

    def group(self, name: str) -> Step:
        """Gather what there is."""
        seconds, code, said = self._call('group')
        return Step(name, seconds, code, 0, f'{len(self.rows())} rows', said)

    def rows(self) -> list[dict[str, str]]:
        """The group's table."""
        with open(self.table) as stream:
            return list(csv.DictReader(stream, delimiter='\t'))

    def _call(
        self, level: str, disturb: Callable[[subprocess.Popen], None] | None = None
    ) -> tuple[float, int, str]:
        line = [
            str(self.data), str(self.folder / 'out'), level, '--modality', 'lung',
            '--derivatives', f'lungs={self.data}/derivatives/lungs',
            '-w', str(self.folder / 'work'), '--nprocs', '2', '--omp-nthreads', '1', *self.options,
        ]  # fmt: skip
        log, started = self.folder / 'said.txt', time.monotonic()
        with open(log, 'wb') as stream:
            process = subprocess.Popen(
                [sys.executable, '-m', 'nephi_pipe.bids_app.cli', *line],
                stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip
            if disturb:
                disturb(process)
            code = process.wait()
        return time.monotonic() - started, code, log.read_text(errors='replace')

    def _kill(self, process: subprocess.Popen) -> None:
        """Kill the worker that optimises the deformation of one pair, after its first steps."""
        place = f'{space_label(KILLED)}_to_*/**/optimize/progress.json'
        while process.poll() is None:
            for progress in (self.folder / 'work').rglob(place):
                if worker := worker_in(process, progress.parent):
                    os.kill(worker, signal.SIGKILL)
                    return
            time.sleep(LOOK_EVERY_S)


def main(argv: Sequence[str]) -> int:
    """Make the data set, run every step, and print what came of it."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks breathing-cohort', description=__doc__.split('\n\n')[0]
    )
    parser.add_argument('--data', type=Path, required=True, help='holds lungct and lungparts')
    parser.add_argument('--out', type=Path, required=True, help='a folder that does not exist yet')
    parser.add_argument('--spacing-mm', type=float, default=3.0, metavar='MM', help='of the scans')
    parser.add_argument('--sloppy', action='store_true', help='tiny settings: a trial only')
    parser.add_argument('--results', type=Path, metavar='FILE.md', help='put the tables there')
    given = parser.parse_args(argv)
    try:
        given.out.mkdir(parents=True)
    except FileExistsError:
        sys.exit(f'"{given.out}" exists; expected a new folder, so that nothing is done already.')
    load = os.getloadavg()[0]
    cohort = make_cohort(given.data, given.out, given.spacing_mm, given.sloppy)
    steps = list(cohort.steps())
    text = markdown(steps, cohort.rows(), describe(given, load))
    print(text)
    if given.results:
        replace_section(given.results, 'breathing-cohort', text)
    return 0 if tuple(step.code for step in steps) == ENDS else 1


def make_cohort(data: Path, folder: Path, spacing_mm: float, sloppy: bool) -> Cohort:
    """Write the data set."""
    from .cohort_data import write_cohort

    cohort = Cohort(folder, ('--sloppy',) if sloppy else ())
    write_cohort(data, cohort.data, spacing_mm)
    return cohort


def describe(given: argparse.Namespace, load: float) -> str:
    """How it was run."""
    settings = 'the tiny settings of `--sloppy`' if given.sloppy else 'default settings'
    return (
        f'Voxels of at least {given.spacing_mm:g} mm, {settings}, `--nprocs 2 --omp-nthreads 1`; '
        f'load of the machine before it {load:.1f}.'
    )


def markdown(steps: Sequence[Step], rows: Sequence[dict[str, str]], circumstances: str) -> str:
    """The steps, then the pairs as the group's table has them."""
    done = [
        [s.name, s.pairs.rstrip('.'), str(s.started), str(s.code), f'{s.seconds:.0f}']
        for s in steps
    ]
    header = ['step', 'what came of it', 'pairs started', 'exit code', 'seconds']
    pairs = [
        [f'{row["moving"]} to {row["fixed"]}', *(format(float(row[c]), f) for _, c, f in FIGURES)]
        for row in rows
    ]
    titles = ['pair', *(title for title, _, _ in FIGURES)]
    parts = [circumstances, _table([header, *done], texts=2), _table([titles, *pairs], texts=1)]
    return '\n\n'.join(parts) + '\n'


def _table(rows: Sequence[Sequence[str]], texts: int) -> str:
    """Rows below their header; the columns after the first ``texts`` hold numbers."""
    rule = ['---' if column < texts else '---:' for column in range(len(rows[0]))]
    return '\n'.join(f'| {" | ".join(row)} |' for row in [rows[0], rule, *rows[1:]])
