"""A process pool for Nipype that survives a killed worker.

Nipype's own ``MultiProc`` waits for ever when a worker is killed, for example
by the kernel because memory ran out: the whole pool breaks, and no node ever
hears of it. Here each worker has its own pipe. A worker that dies fails the
node it was running and nothing else: other nodes keep running, and a fresh
worker takes the dead one's place.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from traceback import format_exc
from typing import Any

import numpy as np
from nipype.pipeline.engine import MapNode, Node
from nipype.pipeline.engine.utils import load_resultfile
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

POLL_S = 0.02
"""Pause between two looks at the queue; in between, the pool sleeps until something happens."""

WAIT_S = 1.0
"""Longest sleep of the pool while nodes are running."""

GRACE_S = 5.0
"""How long a worker that was asked to stop may take before it is killed."""

OWN_SIGNAL_S = 0.5
"""A queue that stops a job signals all of its processes at once; a worker may die of it before
the signal of the run itself has arrived."""

_PR_SET_PDEATHSIG = 1


class SafePool:
    """What the plugins here share: cached nodes first, and crash files that can be read."""

    def _begin(self) -> None:
        self._looked_at: set[int] = set()

    def _finish_cached(self, graph: Any, seconds: float = math.inf) -> None:
        """Finish nodes that have their results; the base classes do a few in a round.

        Returns after ``seconds`` at most, so that the workers get something to do.
        """
        deadline = time.monotonic() + seconds
        while fresh := [job for job in self._ready() if job not in self._looked_at]:
            for job in fresh:
                if time.monotonic() > deadline:
                    return
                self._looked_at.add(job)
                self.proc_done[job] = self.proc_pending[job] = True
                if not self._local_hash_check(job, graph):
                    self.proc_done[job] = self.proc_pending[job] = False

    def _local_hash_check(self, jobid: int, graph: Any) -> bool:
        forget_incomplete(self.procs[jobid])
        return super()._local_hash_check(jobid, graph)

    def _ready(self) -> list[int]:
        waits = np.asarray(self.depidx.sum(axis=0)).ravel() > 0
        jobs = np.flatnonzero(~self.proc_done & ~waits)
        return [int(job) for job in jobs if not isinstance(self.procs[job], MapNode)]

    def _report_crash(self, node: Node, result: dict | None = None) -> str:
        if result is not None and result.get('worker_died'):
            # A pickle of a node that never answered holds nothing worth loading.
            execution = {**node.config['execution'], 'crashfile_format': 'txt'}
            node.config = {**node.config, 'execution': execution}
        return super()._report_crash(node, result=result)


class SafeMultiProc(SafePool, MultiProcPlugin):
    """Nipype's ``MultiProc`` with workers that may be killed at any moment.

    Takes the ``plugin_args`` of ``MultiProc`` (``n_procs``, ``memory_gb``, ``n_gpu_procs``,
    ``mp_context``, ...). Give an instance to ``workflow.run``. A node whose worker died becomes
    a failed node with a text crash file; the run goes on and ends with Nipype's usual error.
    No worker outlives the run, nor the process that started it.

    >>> plugin = SafeMultiProc({'n_procs': 2, 'memory_gb': 4.0})
    >>> plugin.processors
    2
    """

    def __init__(self, plugin_args: dict | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown(wait=False)
        self.pool = None
        self._context = get_context(self.plugin_args.get('mp_context'))
        self._workers: list[_Worker] = []
        self._settled: tuple | None = None

    def run(self, graph: Any, config: dict, updatehash: bool = False) -> None:
        """Execute the nodes of ``graph``; called by ``workflow.run``."""
        execution = {**config['execution'], 'poll_sleep_duration': POLL_S}
        self._settled = None
        self._begin()
        gc.freeze()  # the base class collects garbage in every round, 0.1 s with a large graph
        try:
            super().run(graph, {**config, 'execution': execution}, updatehash=updatehash)
        finally:
            gc.unfreeze()
            self._stop_workers()

    def _submit_job(self, node: Node, updatehash: bool = False) -> int:
        self._taskid += 1
        if getattr(node.interface, 'terminal_output', '') == 'stream':
            node.interface.terminal_output = 'allatonce'
        try:
            worker = self._free_worker()
            worker.submit(self._taskid, node, updatehash)
        except Exception:
            self._taskresult[self._taskid] = failure(format_exc())
        else:
            self._task_obj[self._taskid] = worker
        return self._taskid

    def _free_worker(self) -> _Worker:
        self._workers = [w for w in self._workers if w.taskid or w.process.is_alive()]
        for worker in self._workers:
            if not worker.taskid:
                return worker
        self._workers.append(_Worker(self._context, self._cwd))
        return self._workers[-1]

    def _get_result(self, taskid: int) -> dict | None:
        if taskid not in self._taskresult:
            result = self._task_obj[taskid].result()
            if result is None:
                return None
            self._taskresult[taskid] = result
        return self._taskresult[taskid]

    def _clear_task(self, taskid: int) -> None:
        self._taskresult.pop(taskid, None)
        self._task_obj.pop(taskid, None)

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        """Look for nodes to start, or sleep until a running one is heard of."""
        self._finish_cached(graph, WAIT_S)
        state = (
            len(self.procs),
            int(self.proc_done.sum()),
            int(self.proc_pending.sum()),
            len(self.pending_tasks),
        )
        if state != self._settled:
            self._settled = state
            super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        elif self.pending_tasks:
            wait([thing for w in self._workers if w.taskid for thing in w.signs], WAIT_S)

    def _postrun_check(self) -> None:
        """The base class closes its pool here; ours is closed by ``run`` in any case."""

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.ask_to_stop()
        deadline = time.monotonic() + GRACE_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers.clear()
        self._task_obj.clear()
        self._taskresult.clear()


class _Worker:
    """One process, its pipe, and the task it is running (None when it is free)."""

    def __init__(self, context: BaseContext, cwd: str) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, cwd), name='nephi-worker')
        self.process.start()
        theirs.close()
        self.taskid: int | None = None
        self._node = ''
        self._mem_gb = 0.0

    @property
    def signs(self) -> tuple:
        """What becomes ready when the worker answers or dies."""
        return self.connection, self.process.sentinel

    def submit(self, taskid: int, node: Node, updatehash: bool) -> None:
        self._node, self._mem_gb = node.fullname, node.mem_gb
        with suppress(BrokenPipeError, ConnectionResetError):  # result() reports that it died
            self.connection.send((node, updatehash, taskid))
        self.taskid = taskid

    def result(self) -> dict | None:
        """The node's result, a failure if the worker died, or None while it is running."""
        alive = self.process.is_alive()
        try:
            if self.connection.poll():
                self.taskid = None
                return self.connection.recv()
        except (EOFError, OSError):
            alive = False
        return None if alive else self._died()

    def ask_to_stop(self) -> None:
        if self.taskid:
            self.process.terminate()
            return
        with suppress(OSError):  # it is gone already
            self.connection.send(None)

    def _died(self) -> dict:
        self.process.join(GRACE_S)
        self.taskid = None
        if self.process.exitcode == -signal.SIGTERM:
            time.sleep(OWN_SIGNAL_S)
        return failure(
            _cause_of_death(self._node, self.process.exitcode, self._mem_gb), worker_died=True
        )


def forget_incomplete(node: Node) -> None:
    """Let a node run again if files that it made are gone, instead of failing those after it.

    Scratch disks of clusters delete what nobody has used for some weeks.
    """
    folder = node.output_dir()
    path = Path(folder, f'result_{node.name}.pklz')
    if not path.exists():
        return
    try:
        made = list(_strings(load_resultfile(path).outputs.get().values()))
        complete = all(os.path.exists(file) for file in made if file.startswith(folder))
    except Exception:  # a damaged pickle raises anything
        complete = False
    if not complete:
        path.unlink(missing_ok=True)


def _strings(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _strings(value)


def failure(text: str, **more: Any) -> dict:
    """The result of a node that failed for the reason in ``text``."""
    return {'result': None, 'traceback': text.splitlines(keepends=True), **more}


def _cause_of_death(node: str, exitcode: int | None, mem_gb: float) -> str:
    """What the crash file says about a worker that ended without an answer.

    >>> print(_cause_of_death('wf.optimize', -9, 2.0))  # doctest: +ELLIPSIS
    The worker process that ran "wf.optimize" was killed (SIGKILL), most probably because ...
    """
    again = 'then run the same command again with the same work folder: finished nodes are kept.'
    if exitcode == -signal.SIGKILL:
        return (
            f'The worker process that ran "{node}" was killed (SIGKILL), most probably because '
            f'memory ran out (this node was expected to need {mem_gb:.1f} GB). Run fewer nodes at '
            'once (smaller n_procs or memory_gb) or ask the machine or queue for more memory, '
            f'{again}'
        )
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return (
            f'The worker process that ran "{node}" was ended by the signal {name}. If nobody sent '
            f'it, a library crashed; {again}'
        )
    return (
        f'The worker process that ran "{node}" ended with status {exitcode} before it gave a '
        f'result; look above for its last messages, {again}'
    )


def _work(connection: Any, cwd: str) -> None:
    """The life of a worker: run the nodes that arrive until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    process_initializer(cwd)
    with suppress(Exception):  # Linux: at once, even in the middle of a computation
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        except Exception:
            connection.send(failure(format_exc()))
            continue
        if task is None:
            return
        try:
            connection.send(run_node(*task))
        except Exception:
            connection.send(failure(format_exc()))
        _give_back_memory()


def _give_back_memory() -> None:
    """Return what a node has freed to the system; glibc would keep it beside the next node's."""
    gc.collect()
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _end_with_parent(parent: int) -> None:
    """Leave at once when the process that started this worker is gone.

    A forked worker gets another parent then; the one of a fork server keeps it.
    """
    while os.getppid() == parent and parent_process().is_alive():
        time.sleep(WAIT_S)
    os._exit(1)
