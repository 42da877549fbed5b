"""Whole runs of ``nephi-pipe``, most of them around the stub: how they go and what they leave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import bids_stub
import pytest
from bids_data import make_dataset

STUB = Path(__file__).with_name('bids_stub.py')


class App:
    """``nephi-pipe`` on a small data set in a folder of its own."""

    def __init__(self, folder, monkeypatch, capsys):
        self.bids = make_dataset(folder / 'ds', ['01', '02', '03'])
        self.out, self.work, self.log = folder / 'out', folder / 'w', folder / 'log'
        self._environ, self._capsys = monkeypatch, capsys
        self.behave({})
        monkeypatch.setenv('STUB_LOG', str(self.log))

    def behave(self, behaviour):
        self._environ.setenv('STUB_BEHAVIOUR', json.dumps(behaviour))

    def line(self, *more, levels=('participant',)):
        return [
            str(self.bids), str(self.out), *levels, '-w', str(self.work), '--reference', 'sub-03',
            '--derivatives', f'seg={self.bids}/derivatives/seg', '--nprocs', '2', *more,
        ]  # fmt: skip

    def run(self, *more, **kind):
        """Exit code and everything that was said."""
        code = bids_stub.main(self.line(*more, **kind))
        said = self._capsys.readouterr()
        return code, said.out + said.err

    def start(self, *more):
        return subprocess.Popen(
            [sys.executable, str(STUB), *self.line(*more)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # Under nohup a SIGHUP would be ignored, as it is to be.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )  # fmt: skip

    def files(self):
        return {str(p.relative_to(self.out)) for p in self.out.rglob('*') if p.is_file()}

    def ran(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def t1w(self, person='01'):
        return self.bids / f'sub-{person}/anat/sub-{person}_T1w.nii.gz'


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.05)


def computed(work):
    """When each node had its result; sinks and pages, which always run, left out."""
    results = work.rglob('*_wf/**/result_*.pklz')
    return {str(path): path.stat().st_mtime_ns for path in results if path.exists()}


def check_valid(folder):
    """The BIDS validator finds no error in a data set."""
    validator = Path(sys.executable).with_name('bids-validator-deno')
    if not validator.exists():
        pytest.skip('bids-validator-deno is not installed')
    done = subprocess.run([str(validator), str(folder), '--json'], capture_output=True, text=True)
    issues = json.loads(done.stdout)['issues']['issues']
    assert [issue for issue in issues if issue['severity'] == 'error'] == []
    assert done.returncode == 0
