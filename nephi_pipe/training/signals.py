"""Being told to stop: SIGTERM, and on a cluster SIGUSR1 shortly before the time is over."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from types import FrameType, TracebackType

from ..errors import TryAgainError

_SIGNALS = ('SIGTERM', 'SIGUSR1')
_REQUEUE_S = 30


class Stop:
    """Within its ``with`` block a signal is noted; what it asks for is done between two steps.

    Attributes
    ----------
    told
        Number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.told = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        # Handlers can be set in the main thread only; elsewhere a signal ends the process.
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def leave(self) -> None:
        """End with an error that says how to go on; on SLURM, SIGUSR1 puts the job back first.

        Raises
        ------
        TryAgainError
            Always.
        """
        again = ''
        if self.told == getattr(signal, 'SIGUSR1', -1) and requeue():
            again = ' The job is in the queue again.'
        raise TryAgainError(
            f'The training was told to stop and has saved its state.{again} The same command goes '
            'on from there.'
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = number


def requeue() -> bool:
    """Put this SLURM job back into the queue; whether that was done."""
    array, task = os.environ.get('SLURM_ARRAY_JOB_ID'), os.environ.get('SLURM_ARRAY_TASK_ID')
    job = f'{array}_{task}' if array else os.environ.get('SLURM_JOB_ID', '')
    if not re.fullmatch(r'\d+(_\d+)?', job) or os.environ.get('SLURM_PROCID', '0') != '0':
        return False
    try:
        done = subprocess.run(['scontrol', 'requeue', job], timeout=_REQUEUE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
