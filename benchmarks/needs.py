"""What one pair needs as a job of a queue: time, processors, memory and disk of ``nephi-pipe``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .measure import limited_to

HEADINGS = ('pair', 'threads', 'seconds', 'processor seconds', 'peak GB', 'output MB', 'work MB')

EVERY_S = 0.5
"""How often memory is looked at."""


def main(argv: Sequence[str]) -> int:
    """Run ``nephi-pipe`` on the pair once for each number of threads, and print a table."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks needs', description=__doc__)
    parser.add_argument('bids', type=Path, help='a BIDS data set')
    parser.add_argument('--moving', required=True, metavar='LABEL')
    parser.add_argument('--fixed', required=True, metavar='LABEL')
    parser.add_argument('--derivatives', metavar='NAME=PATH', help='label maps')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2], metavar='N')
    parser.add_argument('--title', default='', help='first column of the table')
    given = parser.parse_args(argv)
    print(f'| {" | ".join(HEADINGS)} |\n|{" --- |" * len(HEADINGS)}')
    for threads in given.threads:
        with tempfile.TemporaryDirectory(prefix='nephi-needs-') as scratch:
            used = needs(given, threads, Path(scratch))
        title = given.title or f'sub-{given.moving} to sub-{given.fixed}'
        print(f'| {title} | {threads} | {" | ".join(used)} |', flush=True)
    return 0


def needs(given: argparse.Namespace, threads: int, scratch: Path) -> list[str]:
    """The cells of one row, after a run of one job with so many processors."""
    out, work = scratch / 'out', scratch / 'work'
    command = [
        sys.executable, '-m', 'nephi_pipe.bids_app.cli', given.bids, out, 'participant',
        '--participant-label', given.moving, '--reference', f'sub-{given.fixed}',
        '-w', work, '--nprocs', threads, '--omp-nthreads', threads,
    ]  # fmt: skip
    if given.derivatives:
        command += ['--derivatives', given.derivatives]
    seconds, processor, peak = watched(list(map(str, command)), threads, scratch / 'said.txt')
    return [
        f'{seconds:.0f}', f'{processor:.0f}', f'{peak / 1e9:.2f}',
        f'{size(out) / 1e6:.0f}', f'{size(work) / 1e6:.0f}',
    ]  # fmt: skip


def watched(command: list[str], threads: int, log: Path) -> tuple[float, float, int]:
    """Seconds on the clock and of all processors, and the most memory of all processes, bytes.

    Pages that processes share are counted once (proportional set size): this is what a queue's
    limit on the whole job is held against.
    """
    started = time.monotonic()
    with open(log, 'wb') as stream:
        child = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **limited_to(threads)},
            start_new_session=True,
        )
        peak = 0
        while True:
            pid, status, used = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, sum(map(_memory, _session(child.pid))))
            time.sleep(EVERY_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f'nephi-pipe ended with code {child.returncode}:\n{log.read_text()[-2000:]}')
    return time.monotonic() - started, used.ru_utime + used.ru_stime, peak


def _session(leader: int) -> list[int]:
    """Every process of a session; Linux only."""
    found = []
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def _memory(process: int) -> int:
    """Proportional set size in bytes; 0 for a process that has just ended."""
    try:
        lines = Path(f'/proc/{process}/smaps_rollup').read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith('Pss:'))


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
