"""Two directions of a step side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


class Workers:
    """Runs the tasks of the two directions, side by side where there are threads for it.

    What both directions share is done before and after, with all threads.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self.parallel = threads > 1 and device.type == 'cpu'
        self._threads, self._each = threads, max(threads // 2, 1)

    def __enter__(self) -> Workers:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        if self.parallel:
            self._pool = ThreadPoolExecutor(
                2, initializer=torch.set_num_threads, initargs=(self._each,)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.parallel:
            self._pool.shutdown()
        torch.set_num_threads(self._before)

    def map(self, task: Callable[[bool], tuple]) -> list[tuple]:
        """The task of the forward direction (False) and of the inverse one (True)."""
        return list((self._pool.map if self.parallel else map)(task, (False, True)))
