"""The array of ``nephi hpc-script`` on a real SLURM, around a stub of the registration."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import slurm_cluster
from bids_data import make_dataset

from nephi_pipe.cli import main

STUB = Path(__file__).with_name('bids_stub.py')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
]


@pytest.fixture(scope='module')
def slurm():
    with slurm_cluster.cluster() as conf:
        yield conf


class Array:
    """A script for sub-01, sub-02 and sub-03, and what becomes of its jobs."""

    def __init__(self, folder, conf):
        self.folder = folder / "it's 100% ours"
        self.bids = make_dataset(self.folder / 'ds', ['01', '02', '03', '04'])
        self.out, self.work, self.log = (self.folder / name for name in ('out', 'w', 'log'))
        self.script = self.folder / 'array.sh'
        self.environ = {**os.environ, 'SLURM_CONF': str(conf), 'STUB_LOG': str(self.log)}
        self.environ['TMPDIR'] = str(folder)

    def write(self, *more):
        """The script itself, with the stub in the place of nephi-pipe."""
        line = [
            'hpc-script', str(self.bids), str(self.out), '-w', str(self.work),
            '-o', str(self.script), '--cpus', '1', '--mem', '1G', *more,
            '--', '--reference', 'sub-04',
        ]  # fmt: skip
        assert main(line) == 0
        text = self.script.read_text()
        assert text.count('-m nephi_pipe.bids_app.cli') == 1
        self.script.write_text(text.replace('-m nephi_pipe.bids_app.cli', str(STUB)))

    def submit(self, **behaviour):
        """Numbers of the array and of the group's job."""
        environ = {**self.environ, 'STUB_BEHAVIOUR': json.dumps(behaviour)}
        said = self.call('bash', str(self.script), env=environ)
        words = said.split()
        return words[words.index('array') + 1], words[words.index('group') + 1].rstrip('.')

    def call(self, *command, env=None):
        done = subprocess.run(
            command, env=env or self.environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self, *jobs):
        """How each job and each task is, by its number."""
        said = self.call('squeue', '-h', '--states=all', '-o', '%i %T', '--jobs=' + ','.join(jobs))
        return dict(line.split() for line in said.splitlines())

    def ends(self, array, group):
        """States of the tasks and of the group, when all have ended."""
        states = {}

        def over():
            states.clear()
            states.update(self.states(array, group))
            return len(states) == 4 and not set(states.values()) & ALIVE

        wait_for(over)
        return [states[f'{array}_{task}'] for task in range(3)], states[group]

    def ran(self):
        return sorted(self.log.read_text().splitlines()) if self.log.exists() else []

    def people_in_table(self):
        rows = (self.out / 'group_desc-nephi_metrics.tsv').read_text().splitlines()[1:]
        return sorted(row.split('\t')[0] for row in rows)


ALIVE = {'PENDING', 'RUNNING', 'COMPLETING', 'CONFIGURING', 'REQUEUED'}


@pytest.fixture
def array(tmp_path, slurm):
    array = Array(tmp_path, slurm)
    yield array
    if left := array.call('squeue', '-h', '-o', '%i').split():
        array.call('scancel', *left)


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.3)


def test_a_broken_scan_fails_its_task_only(array):
    scan = array.bids / 'sub-02/anat/sub-02_T1w.nii.gz'
    whole = scan.read_bytes()
    array.write('--at-once', '2')
    scan.write_bytes(whole[: len(whole) // 2])
    jobs = array.submit()
    assert array.ends(*jobs) == (['COMPLETED', 'FAILED', 'COMPLETED'], 'COMPLETED')
    assert array.people_in_table() == ['sub-01', 'sub-03'], 'the group is what is there'
    said = next((array.out / 'logs/slurm').glob('*_1.log')).read_text()
    assert 'cannot be read to its end' in said and 'Traceback' not in said
    assert '(65)' not in said and not list((array.out / 'logs').glob('*.lock'))
    scan.write_bytes(whole)
    jobs = array.submit()
    assert array.ends(*jobs) == (['COMPLETED'] * 3, 'COMPLETED')
    assert array.people_in_table() == ['sub-01', 'sub-02', 'sub-03']
    assert sum(line.startswith('register') for line in array.ran()) == 3, 'the others were kept'


def test_a_task_that_is_cancelled_and_submitted_again(array):
    array.write()
    jobs = array.submit(**{'02': 'sleep'})
    wait_for(lambda: 'register 02' in array.ran())
    array.call('scancel', f'{jobs[0]}_1')
    assert array.ends(*jobs) == (['COMPLETED', 'CANCELLED', 'COMPLETED'], 'COMPLETED')
    assert array.people_in_table() == ['sub-01', 'sub-03']
    before = array.ran()
    jobs = array.submit()
    assert array.ends(*jobs) == (['COMPLETED'] * 3, 'COMPLETED')
    assert array.ran() == sorted([*before, 'register 02']), 'it went on where it was'
    assert array.people_in_table() == ['sub-01', 'sub-02', 'sub-03']


def test_a_task_that_reaches_its_time_limit_goes_on_by_itself(array):
    """The signal that ``--signal=B:TERM@120`` announces the limit with, sent by hand."""
    array.write('--local-scratch')
    jobs = array.submit(**{'02': 'sleep once'})
    wait_for(lambda: 'register 02' in array.ran())
    array.call('scancel', '--batch', '--signal=TERM', f'{jobs[0]}_1')
    assert array.ends(*jobs) == (['COMPLETED'] * 3, 'COMPLETED')
    said = next((array.out / 'logs/slurm').glob('*_1.log')).read_text()
    assert 'Stopped by a signal' in said and 'goes back to the queue' in said
    assert 'try 2' in said and '1 of 1 pair finished.' in said
    ran = array.ran()
    assert ran.count('register 02') == 2 and ran.count('brain sub-02_T1w.nii.gz') == 1
    assert array.people_in_table() == ['sub-01', 'sub-02', 'sub-03'], 'the group waited for it'
    assert not list(array.folder.parent.glob('nephi_*')), 'nothing is left on the node'
