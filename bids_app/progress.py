"""What a run tells while it works: when a pair starts and ends, and how far it is between."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..interfaces.register import PROGRESS
from ..report_numbers import find
from .dataset import read_json
from .names import Names
from .pairs import Pair
from .resources import duration
from .workflow import REPORT, SINK, pair_node, person_node

logger = logging.getLogger('nephi_pipe')

TOLD_EVERY_S = 20.0
"""How often a run says how far its optimisations are."""

OPTIMIZE = 'optimize'

STEPS = {
    'fixed_brain': 'brain of the fixed scan',
    'moving_brain': 'brain of the moving scan',
    'fixed_lung': 'lungs of the fixed scan',
    'moving_lung': 'lungs of the moving scan',
    'common_lungs': 'lungs of both scans',
    'affine_init': 'affine',
    OPTIMIZE: 'deformation',
    'transforms': 'transform files',
    'evaluate': 'scores',
}

SCORES = (
    ('Dice', '', '.3f', (('dice',), 'mean')),
    ('landmark error', ' mm', '.2f', (('tre_mm',), 'mean')),
    ('Dice of the masks', '', '.3f', (('masks', 'dice'),)),
    ('similarity', '', '.3f', (('similarity',),)),
)
"""What is told of a pair that is finished: the first of these that it has."""


class Progress:
    """Follows the nodes of a run; give it to the plugin as its ``status_callback``.

    While it is used as a context, it also tells how far the optimisations are.

    Parameters
    ----------
    pairs
        The pairs of the run, with the names of their files.
    check
        Called at each news; raises to end the run.

    Attributes
    ----------
    done
        Pairs of which everything is stored.
    """

    def __init__(self, pairs: Sequence[Names], check: Callable[[], None]) -> None:
        self._check = check
        self._names = {self._key(names.pair): names for names in pairs}
        self._started: dict[tuple[str, str], float] = {}
        self._failed: set[tuple[str, str]] = set()
        self._begin = time.monotonic()
        self._computed = 0
        self._running: dict[str, Path] = {}
        self._told: dict[str, int] = {}
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)
        self.done: list[Pair] = []

    def __enter__(self) -> Progress:
        self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._teller.join()

    def _tell(self) -> None:
        while not self._over.wait(TOLD_EVERY_S):
            for pair, folder in list(self._running.items()):
                self._tell_steps(pair, folder)

    def _tell_steps(self, pair: str, folder: Path) -> None:
        """A line for a pair that has gone on since the last one."""
        try:
            news = json.loads((folder / PROGRESS).read_text())
        except FileNotFoundError:
            return  # its first step is not done
        if news['step'] != self._told.get(pair):
            self._told[pair] = news['step']
            logger.info(
                '%s: step %d of %d, similarity %.3f, about %s left for the deformation.',
                pair,
                news['step'],
                news['total_steps'],
                news['similarity'],
                duration(news['seconds_left']),
            )

    @staticmethod
    def _key(pair: Pair) -> tuple[str, str]:
        return person_node(pair.moving.subject), pair_node(pair)

    def __call__(self, node: Any, status: str) -> None:
        self._check()
        parts = node.fullname.split('.')
        key = tuple(parts[1:3])
        if key not in self._names:
            if status == 'exception' and parts[-1] == REPORT:
                logger.error('%s: the report could not be written.', parts[1])
            return
        names = self._names[key]
        if parts[-1] == OPTIMIZE:
            self._follow(names.pair.name, node, status)
        if status == 'exception':
            self._failed.add(key)
            logger.error('%s: failed.', names.pair.name)
        elif status == 'start':
            if not node.run_without_submitting:
                self._on_start(key, names, parts[-1])
        elif parts[-1] == SINK and key not in self._failed:
            self._on_stored(key, names)

    def _follow(self, pair: str, node: Any, status: str) -> None:
        if status == 'start':
            folder = Path(node.output_dir())
            (folder / PROGRESS).unlink(missing_ok=True)  # of an earlier run
            self._running[pair] = folder
        else:
            self._running.pop(pair, None)

    def _on_start(self, key: tuple[str, str], names: Names, node: str) -> None:
        if key not in self._started:
            self._started[key] = time.monotonic()
            logger.info('%s: started.', names.pair.name)
        if node in STEPS:
            logger.info('%s: %s ...', names.pair.name, STEPS[node])

    def _on_stored(self, key: tuple[str, str], names: Names) -> None:
        self.done.append(names.pair)
        self._computed += key in self._started
        took = f'{time.monotonic() - self._started[key]:.0f} s' if key in self._started else 'kept'
        logger.info(
            '%s: finished (%s)%s. %s', names.pair.name, took, self._scores(names), self._rest()
        )

    def _scores(self, names: Names) -> str:
        metrics = read_json(names.metrics)
        for label, unit, form, keys in SCORES:
            outer, *inner = keys
            before, after = (find(metrics, *outer, when, *inner) for when in ('before', 'after'))
            if before is not None and after is not None:
                return f', {label} {before:{form}} -> {after:{form}}{unit}'
        return ''

    def _rest(self) -> str:
        """How many are done, and the time left if the rest takes as long as those run so far."""
        total, done = len(self._names), len(self.done)
        text = f'{done} of {total}'
        if self._computed and done < total:
            pace = (time.monotonic() - self._begin) / self._computed
            text += f', about {duration(pace * (total - done))} left'
        return text + '.'
