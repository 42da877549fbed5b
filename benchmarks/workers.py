"""The worker processes of a running ``nephi-pipe``, found in /proc; Linux only."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from subprocess import Popen


def workers_of(process: Popen) -> list[int]:
    """Process ids of a run's workers, in the order in which they were started."""
    found = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [int(pid) for pid in found]


def worker_in(process: Popen, folder: Path) -> int | None:
    """The worker that computes in a node's folder just now, if there is one."""
    for pid in workers_of(process):
        with suppress(FileNotFoundError):  # it has ended
            if os.path.realpath(folder) == os.readlink(f'/proc/{pid}/cwd'):
                return pid
    return None
