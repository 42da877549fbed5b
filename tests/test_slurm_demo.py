"""The demo set, really registered, on a real SLURM: as an array and node by node."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster

import nephi_pipe.demo
from nephi_pipe.bids_app.dataset import read_json
from nephi_pipe.cli import main

DEMO = Path(nephi_pipe.demo.__file__).parent / 'ds'
OPTIONS = (
    '--reference', 'sub-45', '--sloppy', '--omp-nthreads', '1', '--weights', 'none',
    '--derivatives', f'meshnet={DEMO}/derivatives/meshnet',
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
]


@pytest.fixture(scope='module')
def environ():
    with slurm_cluster.cluster() as conf:
        yield {**os.environ, 'SLURM_CONF': str(conf)}


def pipe(environ, output, work, *more):
    command = [sys.executable, '-m', 'nephi_pipe.bids_app.cli', str(DEMO), str(output)]
    command += ['participant', 'group', '-w', str(work), *OPTIONS, *more]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def contents(output):
    """Every file that is the same whoever computed it, by name; of metrics what is no time."""
    found = {}
    for path in sorted(output.rglob('*')):
        name = str(path.relative_to(output))
        if path.is_file() and path.name.startswith('sub-') and path.suffix in ('.h5', '.gz'):
            found[name] = path.read_bytes()
        elif path.name.endswith('_metrics.json') and path.name.startswith('sub-'):
            metrics = read_json(path)
            found[name] = {key: metrics[key] for key in ('dice', 'folds', 'moving', 'fixed')}
        elif path.is_file() and 'logs' not in path.parts:
            found[name] = None
    return found


def test_array_plugin_and_one_process_agree(environ, tmp_path):
    pipe(environ, tmp_path / 'plain', tmp_path / 'w1', '--nprocs', '2')
    plain = contents(tmp_path / 'plain')
    assert sum(name.endswith('.h5') for name in plain) == 4

    pipe(environ, tmp_path / 'plugin', tmp_path / 'w2', '--plugin', 'SLURM')
    assert contents(tmp_path / 'plugin') == plain

    script = tmp_path / 'array.sh'
    line = ['hpc-script', str(DEMO), str(tmp_path / 'array'), '-w', str(tmp_path / 'w3')]
    assert main([*line, '-o', str(script), '--cpus', '1', '--', *OPTIONS]) == 0
    subprocess.run(['bash', str(script)], env=environ, check=True, timeout=60)
    command = ['squeue', '-h', '-o', '%i']
    end = time.monotonic() + 900
    while subprocess.run(command, env=environ, capture_output=True, check=True).stdout.strip():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.5)
    logs = ''.join(path.read_text() for path in (tmp_path / 'array/logs/slurm').iterdir())
    assert logs.count('1 of 1 pair finished.') == 2, logs
    assert contents(tmp_path / 'array') == plain
