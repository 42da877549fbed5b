"""Nipype nodes as jobs of a SLURM cluster, in a way that always comes to an end.

Nipype's own ``SLURM`` takes the result file of an earlier run for that of a job that was
cancelled before it began, asks the queue about each job alone, and leaves jobs behind when it is
stopped. Here each job leaves an answer of its own, one look at the queue is for all of them, and a
job that dies or disappears fails its node, with a sentence that says how.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import shlex
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from traceback import format_exc
from typing import Any

from nipype.pipeline.engine import Node
from nipype.pipeline.plugins.base import DistributedPluginBase

from .plugin import SafePool, failure

logger = logging.getLogger('nephi_pipe')

LOOK_EVERY_S = 5.0
"""Pause between two looks at the queue; answers are looked for in between."""

ANSWER_S = 60.0
"""How long a shared file system may take to show the answer of a job that has ended."""

COMPLETING_S = 300.0
"""How long a job may be cleaned up after; then its node is given up."""

OUTAGE_S = 3600.0
"""How long the controller may be silent, or accept no job because there are too many."""

FULL_S = 30.0
"""Pause after it accepted none because there are too many."""

CALL_S = 120.0
"""How long a command of SLURM may take; SLURM's own time-out is shorter."""

LEAST_MB = 1024
"""Memory asked for by the smallest node: an interpreter with nipype, and some to spare."""

MEMORY_FACTOR = 1.25
"""Asked for on top of what a node declares; a job is killed when it needs more."""

ALIVE = {
    'CONFIGURING', 'PENDING', 'REQUEUED', 'REQUEUE_FED', 'RESIZING', 'RESV_DEL_HOLD', 'RUNNING',
    'SIGNALING', 'STAGE_OUT', 'STOPPED', 'SUSPENDED',
}  # fmt: skip

HOPELESS = {
    'BadConstraints', 'DependencyNeverSatisfied', 'JobHoldMaxRequeue', 'PartitionTimeLimit',
    'launch failed requeued held',
}  # fmt: skip
"""Reasons for which a job would wait for ever."""

TELL = 'echo "The node ended with status $?."'
"""Last line of the log of a job whose process died; a shell tells a signal by 128 and more."""

_KILLED = re.compile(r'^The node ended with status 137\.$', re.MULTILINE)
_LIMIT = re.compile('MaxSubmitJob|MaxJobCount', re.IGNORECASE)
_AGAIN = 'run the same command again with the same work folder: finished nodes are kept.'


@dataclass
class _Job:
    """A job that was submitted, and its files."""

    jobid: str
    node: str
    mem_gb: float
    files: _Files
    state: str = 'PENDING'
    reason: str = ''
    since: float = field(default_factory=time.monotonic)

    def update(self, state: str, reason: str) -> None:
        if state != self.state:
            self.state, self.since = state, time.monotonic()
        self.reason = reason

    @property
    def over(self) -> bool:
        """Whether no answer is to be expected any more."""
        if self.state in ALIVE:
            return self.reason in HOPELESS
        waits = {'COMPLETED': ANSWER_S, 'GONE': ANSWER_S, 'COMPLETING': COMPLETING_S}
        return time.monotonic() - self.since > waits.get(self.state, 0.0)


class _Files:
    """What a job of the node ``name`` keeps in ``folder``."""

    def __init__(self, folder: Path, name: str) -> None:
        stem = f'{name}-{uuid.uuid4().hex[:8]}'
        self.task, self.answer = folder / f'{stem}.task', folder / f'{stem}.answer'
        self.script, self.log = folder / f'{stem}.sh', folder / f'{stem}.log'
        self.marker = folder / f'{name}.job'

    def clear(self, log: bool) -> None:
        """Remove all, the ``log`` only where nobody will want to read it."""
        for path in (self.task, self.answer, self.script, self.marker, *([self.log] * log)):
            path.unlink(missing_ok=True)


class SafeSLURM(SafePool, DistributedPluginBase):
    """Runs each node as a SLURM job and waits for all of them.

    Give an instance to ``workflow.run``. ``plugin_args`` are those of Nipype's ``SLURM``:

    - ``sbatch_args``: options for every ``sbatch``, such as ``'--partition=long --time=60'``;
    - ``template``: first lines of the job's shell script, or a file with them;
    - ``max_jobs``: most jobs at a time;
    - ``max_tries``, ``retry_timeout``: how often, and after how many seconds, a submission that
      failed is tried again.

    Processors, memory and a GPU are asked for as each node declares them (``n_procs``, ``mem_gb``,
    ``use_gpu``); ``node.plugin_args`` adds ``sbatch_args`` for one node, or with ``overwrite``
    replaces all others. The Python of this process must be there on every node of the cluster, and
    so must the work folder. Jobs that still run when the run ends are cancelled.

    >>> SafeSLURM({'sbatch_args': '--partition=long'}).max_jobs
    inf
    """

    _room, _full_until = 0, 0.0

    def __init__(self, plugin_args: dict | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._template = self.plugin_args.get('template', '#!/bin/bash')
        if os.path.isfile(self._template):
            self._template = Path(self._template).read_text(encoding='utf-8')
        self._tries = 1 + int(self.plugin_args.get('max_tries', 2))
        self._pause_s = float(self.plugin_args.get('retry_timeout', 2))
        self._jobs: dict[int, _Job] = {}
        self._failed: dict[int, dict] = {}
        self._taskid = 0
        self._looked = 0.0
        self._heard = time.monotonic()
        self._full_since: float | None = None

    @property
    def max_jobs(self) -> float:
        """Most jobs at a time; the base class asks before it submits any."""
        return self._room if time.monotonic() < self._full_until else self._most

    @max_jobs.setter
    def max_jobs(self, most: float) -> None:
        self._most = most

    def run(self, graph: Any, config: dict, updatehash: bool = False) -> None:
        """Execute the nodes of ``graph``; called by ``workflow.run``."""
        self._begin()
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            self._cancel([job.jobid for job in self._jobs.values()])

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        self._finish_cached(graph)
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)

    # ---- submitting ------------------------------------------------------------------------

    def _submit_job(self, node: Node, updatehash: bool = False) -> int | None:
        if len(self.pending_tasks) >= self.max_jobs:
            return None
        self._taskid += 1
        try:
            job = self._submit(node, updatehash)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout or '').strip() or f'status {error.returncode}'
            if _LIMIT.search(said) and self._may_wait(said):
                return None
            self._failed[self._taskid] = failure(
                f'SLURM did not accept the job of "{node.fullname}": {" ".join(said.split())}; '
                f'change the options of sbatch (sbatch_args), then {_AGAIN}'
            )
        except Exception:
            self._failed[self._taskid] = failure(format_exc())
        else:
            self._jobs[self._taskid] = job
            self._full_since = None
        return self._taskid

    def _may_wait(self, said: str) -> bool:
        """Submit no more for a while: the cluster holds as many jobs as it allows us.

        They may be those of somebody else, so this is no failure before it has lasted for long.
        """
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
            logger.warning('SLURM accepts no more jobs for now (%s); waiting.', said.strip())
        if not self.pending_tasks and now - self._full_since > OUTAGE_S:
            return False
        self._room, self._full_until = len(self.pending_tasks), now + FULL_S
        return True

    def _submit(self, node: Node, updatehash: bool) -> _Job:
        folder = jobs_folder(Path(node.base_dir), node.fullname.partition('.')[0])
        folder.mkdir(parents=True, exist_ok=True)
        files = _Files(folder, node.fullname)
        end_leftover(files.marker)
        try:
            with open(files.task, 'wb') as stream:
                pickle.dump((node, updatehash), stream)
            command = [sys.executable, '-m', 'nephi_pipe.workflows.slurm_job']
            command += [str(files.task), str(files.answer)]
            own = node.plugin_args or {}
            template = own.get('template', self._template).rstrip('\n')
            script = f'{template}\n{shlex.join(command)} || {{ {TELL}; exit 1; }}\n'
            files.script.write_text(script, encoding='utf-8')
            jobid = self._sbatch([*self._options(node, own, files), str(files.script)])
            files.marker.write_text(jobid)
        except BaseException:
            files.clear(log=True)
            raise
        return _Job(jobid, node.fullname, node.mem_gb, files)

    def _options(self, node: Node, own: dict, files: _Files) -> list[str]:
        """Options of ``sbatch`` for a node; of two that contradict, the later one counts."""
        megabytes = max(LEAST_MB, math.ceil(MEMORY_FACTOR * node.mem_gb_runtime * 1024))
        log = str(files.log).replace('%', '%%')
        options = [f'--job-name={node.fullname}', f'--output={log}', f'--error={log}']
        options += [f'--cpus-per-task={node.n_procs}', f'--mem={megabytes}M']
        options += ['--gres=gpu:1'] * node.is_gpu_node()
        if own.get('overwrite'):
            return [*options[:3], *shlex.split(own.get('sbatch_args', ''))]
        for arguments in (self.plugin_args, own):
            options += shlex.split(arguments.get('sbatch_args', ''))
        return options

    def _sbatch(self, arguments: list[str]) -> str:
        """Submit, and return the job's number."""
        # What SLURM told this process about its own job is not for others.
        environ = {
            name: value
            for name, value in os.environ.items()
            if name == 'SLURM_CONF' or not name.startswith('SLURM_')
        }
        for left in reversed(range(self._tries)):
            try:
                said = _run(['sbatch', '--parsable', *arguments], env=environ)
                return said.strip().splitlines()[-1].partition(';')[0]
            except subprocess.CalledProcessError as error:
                if not left or _LIMIT.search(error.stderr or ''):
                    raise
                time.sleep(self._pause_s)
        raise AssertionError('unreachable')

    # ---- waiting ---------------------------------------------------------------------------

    def _get_result(self, taskid: int) -> dict | None:
        if taskid in self._failed:
            return self._failed[taskid]
        job = self._jobs[taskid]
        if job.files.answer.exists():
            with open(job.files.answer, 'rb') as stream:
                return pickle.load(stream)
        self._look()
        if not job.over:
            return None
        self._cancel([job.jobid])
        return failure(_cause_of_death(job), worker_died=True)

    def _look(self) -> None:
        """Find out how all jobs are, now and then."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        jobs = list(self._jobs.values())
        try:
            queue = _queue([job.jobid for job in jobs])
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, 'stderr', None) or error
            logger.warning('squeue does not answer (%s); waiting.', str(said).strip())
            queue = {} if now - self._heard > OUTAGE_S else None
        else:
            self._heard = now
        if queue is not None:
            for job in jobs:
                job.update(*queue.get(job.jobid, ('GONE', '')))

    def _clear_task(self, taskid: int) -> None:
        failed = self._failed.pop(taskid, None)
        if (job := self._jobs.pop(taskid, None)) is not None:
            job.files.clear(log=failed is None and job.files.answer.exists())

    def _cancel(self, jobids: list[str]) -> None:
        if jobids:
            with suppress(OSError, subprocess.SubprocessError):
                _run(['scancel', *jobids])


def jobs_folder(base_dir: Path, workflow: str) -> Path:
    """Where the jobs of a workflow keep their files."""
    return base_dir / workflow / 'slurm'


def end_leftover(marker: Path) -> None:
    """Cancel the job of a run that was killed, so that two do not write one folder.

    Parameters
    ----------
    marker
        ``NODE.job`` in :func:`jobs_folder`, which names a job that was not heard of to its end.
    """
    with suppress(OSError, subprocess.SubprocessError):
        jobid, name = marker.read_text().strip(), marker.stem
        _run(['scancel', f'--name={name}', jobid])
        end = time.monotonic() + ANSWER_S
        while _queue([jobid]).get(jobid, ('GONE', ''))[0] in ALIVE | {'COMPLETING'}:
            if time.monotonic() > end:
                return
            time.sleep(0.5)


def _run(command: list[str], **more: Any) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=CALL_S, **more
    )
    return done.stdout


def _queue(jobids: list[str]) -> dict[str, tuple[str, str]]:
    """State and reason of those jobs that SLURM still knows."""
    command = ['squeue', '--noheader', '--states=all', '--format=%i|%T|%r']
    try:
        said = _run([*command, f'--jobs={",".join(jobids)}'])
    except subprocess.CalledProcessError as error:
        if 'Invalid job id' in error.stderr:
            return {}
        raise
    rows = (line.strip().split('|', 2) for line in said.splitlines() if line.count('|') >= 2)
    return {jobid: (state, reason) for jobid, state, reason in rows}


def _cause_of_death(job: _Job) -> str:
    """What the crash file says about a job that left no answer."""
    said = ''
    with suppress(OSError):
        said = job.files.log.read_text(encoding='utf-8', errors='replace')[-4000:]
    memory = (
        f'its node was expected to need {job.mem_gb:.1f} GB; ask for more, --mem in sbatch_args'
    )
    how = {
        'CANCELLED': 'was cancelled (scancel, or an administrator)',
        'TIMEOUT': 'reached its time limit (ask for more, --time in sbatch_args)',
        'OUT_OF_MEMORY': f'was killed because memory ran out ({memory})',
        'NODE_FAIL': 'was lost with its compute node',
        'PREEMPTED': 'had to make way for others',
        'COMPLETED': 'ended without a result',
        'GONE': 'disappeared from the queue without a result',
        'COMPLETING': 'does not come to an end',
    }.get(job.state, f'ended as {job.state} without a result')
    if job.state in ALIVE:
        how = f'would wait for ever ({job.reason})'
    elif job.state == 'FAILED' and _KILLED.search(said):
        how = f'was killed (SIGKILL), most probably because memory ran out ({memory})'
    return (
        f'The SLURM job that ran "{job.node}" (number {job.jobid}) {how}; when '
        f'that is settled, {_AGAIN}\n\n{job.files.log}:\n{said or "(empty)"}'
    )
