"""Locks between real processes."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading

import pytest

from nephi_pipe.bids_app import lock
from nephi_pipe.bids_app.lock import hold
from nephi_pipe.errors import OutputError, TryAgainError

HOLD = """
import os, signal, sys, time
from pathlib import Path
from nephi_pipe.bids_app.lock import hold
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell's "&"
with hold([Path(sys.argv[1])], sys.argv[2].split(','), 'first-run'):
    if len(sys.argv) > 3:
        if os.fork() == 0:
            time.sleep(float(sys.argv[3]))
            os._exit(0)
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Starts processes that hold locks in ``tmp_path``, and ends them afterwards."""
    running = []

    def start(names, *more):
        process = subprocess.Popen(
            [sys.executable, '-c', HOLD, str(tmp_path), names, *more],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        assert process.stdout.readline() == 'held\n'
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_same_person_twice_is_refused_and_the_holder_named(tmp_path, other, monkeypatch):
    monkeypatch.setattr(lock, 'WAIT_S', 0.1)
    first = other('sub-01,sub-02')
    with pytest.raises(TryAgainError) as raised, hold([tmp_path], ['sub-03', 'sub-02'], 'second'):
        pass
    assert raised.value.exit_code == 75
    assert 'sub-02 is being processed by another run' in str(raised.value)
    assert f'process {first.pid}' in str(raised.value) and 'first-run' in str(raised.value)
    assert not (tmp_path / 'sub-03.lock').exists(), 'all or none'


def test_different_people_side_by_side(tmp_path, other):
    other('sub-01')
    with hold([tmp_path], ['sub-02'], 'second'):
        assert {path.name for path in tmp_path.iterdir()} == {'sub-01.lock', 'sub-02.lock'}
    assert {path.name for path in tmp_path.iterdir()} == {'sub-01.lock'}


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, other):
    first = other('sub-01')
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / 'sub-01.lock').exists()
    with hold([tmp_path], ['sub-01'], 'second'):
        assert 'second' in (tmp_path / 'sub-01.lock').read_text()
    assert not (tmp_path / 'sub-01.lock').exists()


def test_a_worker_that_outlives_its_run_for_a_moment_is_waited_for(tmp_path, other):
    first = other('sub-01', '1.0')
    first.send_signal(signal.SIGKILL)
    first.wait()
    with hold([tmp_path], ['sub-01'], 'second'):
        pass


def test_waiting_for_a_run_that_is_about_to_end(tmp_path, other, monkeypatch):
    monkeypatch.setattr(lock, 'WAIT_S', 100.0)  # the machine may be busy
    first = other('sub-01')
    first.send_signal(signal.SIGINT)  # its lock's file is removed on the way out
    with hold([tmp_path], ['sub-01'], 'second'):
        assert (tmp_path / 'sub-01.lock').exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OutputError), hold([tmp_path / 'file'], ['sub-01'], 'run'):
        pass


def test_more_people_than_files_may_be_open(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip('the hard limit of open files is too low here')
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with hold([tmp_path], [f'sub-{n:04d}' for n in range(600)], 'run'):
            assert len(list(tmp_path.iterdir())) == 600
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_many_that_start_at_once_wait_for_their_turn(tmp_path, other, monkeypatch):
    monkeypatch.setattr(lock, 'WAIT_S', 0.1)
    first = other('dataset_description')
    threading.Timer(1.0, first.terminate).start()
    with hold([tmp_path], ['dataset_description'], 'second', wait_s=60):
        assert first.wait() == -signal.SIGTERM


def test_a_folder_of_locks_that_is_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    folder, make = tmp_path / 'locks', lock.make_folder
    made = []

    def made_and_removed_once(path):
        make(path)
        made.append(path)
        if len(made) == 1:
            path.rmdir()

    monkeypatch.setattr(lock, 'make_folder', made_and_removed_once)
    with hold([folder], ['sub-01'], 'run'):
        assert (folder / 'sub-01.lock').exists()
    assert len(made) == 2
