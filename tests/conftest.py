"""What every test run needs before anything is imported, and fixtures of several files."""

import logging
import os
import subprocess

import pytest

for name in ('NO_ET', 'NIPYPE_NO_ET'):
    os.environ.setdefault(name, '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')

# Imported after this file: fixtures of several files, each beside what it is made of.
pytest_plugins = ['registration_runs', 'prealigned', 'training_people']


@pytest.fixture(autouse=True)
def own_log():
    """A run of the app in this process leaves its handlers, on streams that are closed then."""
    yield
    logger = logging.getLogger('nephi_pipe')
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, where this process may mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'a small disk cannot be mounted here: {error}')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


@pytest.fixture
def app(tmp_path, monkeypatch, capsys):
    """``nephi-pipe`` with a stub of the registration, on a small data set."""
    from bids_runs import App

    return App(tmp_path, monkeypatch, capsys)
