"""Whole runs of ``nephi-pipe`` around the stub, for the tests of how they go and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import bids_stub
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
