"""``--plugin SLURM`` on a real SLURM, around a stub of the registration, and once for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from bids_data import make_dataset

STUB = Path(__file__).with_name('bids_stub.py')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
]


@pytest.fixture(scope='module')
def slurm():
    with slurm_cluster.cluster() as conf:
        yield conf


class App:
    """``nephi-pipe --plugin SLURM`` as a process of its own, in a folder with a space and a %."""

    def __init__(self, folder, conf):
        self.folder = folder / "it's 100% ours"
        self.bids = make_dataset(self.folder / 'ds', ['01', '02', '03'])
        self.out, self.work, self.log = (self.folder / name for name in ('out', 'w', 'log'))
        # LOGNAME and USER are missing in many containers and cron jobs.
        self.environ = {k: v for k, v in os.environ.items() if k not in ('LOGNAME', 'USER')}
        self.environ |= {'SLURM_CONF': str(conf), 'STUB_LOG': str(self.log)}

    def start(self, *more, behaviour='{}', plugin='SLURM'):
        command = [
            sys.executable, str(STUB), str(self.bids), str(self.out), 'participant',
            '-w', str(self.work), '--reference', 'sub-03', '--omp-nthreads', '1',
            '--plugin', plugin, *more,
        ]  # fmt: skip
        return subprocess.Popen(
            command, env={**self.environ, 'STUB_BEHAVIOUR': behaviour},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *more, **kind):
        """Exit code and everything that was said."""
        process = self.start(*more, **kind)
        said = process.communicate(timeout=300)[0]
        return process.returncode, said

    def slurm(self, *command):
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    def jobs(self, node):
        """Numbers and states of the jobs whose name contains ``node``, the newest first."""
        rows = self.slurm('squeue', '-h', '--states=all', '--sort=-i', '-o', '%i %T %j')
        return [row.split()[:2] for row in rows.splitlines() if node in row and row.strip()]

    def running(self):
        return self.slurm('squeue', '-h', '-o', '%i').split()

    def ran(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def files(self):
        names = (p.relative_to(self.out) for p in self.out.rglob('*') if p.is_file())
        return {str(name) for name in names if 'log' not in name.parts and name.parts[0] != 'logs'}


@pytest.fixture
def app(tmp_path, slurm):
    app = App(tmp_path, slurm)
    yield app
    if left := app.running():
        app.slurm('scancel', *left)


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.2)


def test_same_results_as_with_the_other_plugins(app):
    code, said = app.run()
    assert code == 0, said
    assert '2 of 2 pairs finished.' in said and 'with jobs of SLURM' in said
    assert len(app.ran()) == 4 and len(app.jobs('optimize')) == 2
    (jobs,) = app.work.rglob('nephi_pipe/slurm')
    assert not list(jobs.iterdir()), 'nothing is left of jobs that went well'
    first = app.files()
    code, said = app.run()
    assert code == 0 and len(app.ran()) == 4, said
    assert said.count('finished (kept)') == 2 and 'started' not in said
    for plugin in ('MultiProc', 'Linear'):
        app.out = app.folder / plugin
        code, said = app.run(plugin=plugin)
        assert code == 0 and app.files() == first, said
        assert said.count('finished (kept)') == 2 and 'started' not in said
        assert len(app.ran()) == 4, 'the work folder serves all plugins'


def test_a_node_that_fails_or_dies(app):
    code, said = app.run(behaviour='{"01": "fail", "02": "kill"}')
    assert code == 1, said
    assert 'sub-01: The program failed with ValueError: an ordinary mistake.' in said
    assert 'sub-02: The SLURM job that ran "' in said
    assert 'was killed (SIGKILL), most probably because memory ran out' in said
    assert 'Traceback' not in said
    for person in ('01', '02'):
        assert len(list(app.out.glob(f'sub-{person}/log/*/crash-*.txt'))) == 1
    code, said = app.run()
    assert code == 0, said


def test_a_job_that_is_cancelled_fails_its_person_only(app):
    process = app.start(behaviour='{"02": "sleep"}')
    wait_for(lambda: 'register 02' in app.ran() and (app.out / 'sub-01.html').exists())
    # SLURM may go on to call sub-01's job running for a while after its answer is there.
    jobid, state = app.jobs('sub02_to_sub03.brain_wf.optimize')[0]
    assert state == 'RUNNING'
    app.slurm('scancel', jobid)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1, said
    assert 'was cancelled (scancel, or an administrator)' in said
    assert '1 of 2 pairs finished. Failed: sub-02.' in said
    before = app.ran()
    assert app.run()[0] == 0
    assert app.ran()[len(before) :] == ['register 02'], 'the same command goes on'


def test_sigterm_cancels_the_jobs(app):
    process = app.start('--participant-label', '02', behaviour='{"02": "sleep"}')
    wait_for(lambda: 'register 02' in app.ran())
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and 'Stopped by a signal' in said
    wait_for(lambda: not app.running(), 30)


def test_jobs_of_a_run_that_was_killed_do_not_write_beside_new_ones(app):
    process = app.start('--participant-label', '02', behaviour='{"02": "sleep"}')
    wait_for(lambda: 'register 02' in app.ran())
    process.kill()
    process.communicate(timeout=60)
    assert app.running(), 'SLURM knows nothing of it'
    code, said = app.run('--participant-label', '02')
    assert code == 0, said
    # SLURM may call a job running for a while after its answer is there.
    ended = ['COMPLETED', 'CANCELLED']
    wait_for(lambda: [state for _, state in app.jobs('optimize')][:2] == ended, 30)


def test_what_sbatch_refuses(app, tmp_path):
    plugin = tmp_path / 'plugin.yml'
    plugin.write_text(
        'plugin: SLURM\nplugin_args: {sbatch_args: --partition=nowhere, max_tries: 0}\n'
    )
    code, said = app.run('--participant-label', '01', '--use-plugin', str(plugin))
    assert code == 1, said
    assert 'SLURM did not accept the job of "' in said and 'invalid partition' in said


def test_a_job_that_would_wait_for_ever(app, tmp_path):
    plugin = tmp_path / 'plugin.yml'
    plugin.write_text(
        'plugin: SLURM\nplugin_args: {sbatch_args: --partition=short --time=5, max_tries: 0}\n'
    )
    code, said = app.run('--participant-label', '01', '--use-plugin', str(plugin))
    assert code == 1, said
    assert 'would wait for ever (PartitionTimeLimit)' in said
    assert not app.running()
