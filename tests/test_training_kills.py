"""A training is killed at any moment, and ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_people import make_people

from nephi_pipe.errors import TryAgainError
from nephi_pipe.training.signals import Stop, requeue

SCRIPT = Path(__file__).with_name('training_run.py')
ENDS = ('history.json', 'history.csv', 'weights.safetensors', 'best.safetensors')
WAIT_S = 600


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    """One training of three people and one kept out; its cache is ready after the first run."""
    folder = tmp_path_factory.mktemp('people')
    images = [str(path) for path in make_people(folder, 4)['images']]
    return {
        'images': images,
        'held_out': [images[3]],
        'epochs': 3,
        'steps_per_epoch': 4,
        'eval_every': 1,
        'augmentation': 'mixed',
        'cache': str(folder / 'cache'),
    }


def start(settings, folder: Path) -> subprocess.Popen:
    arguments = json.dumps({**settings, 'output_dir': str(folder)})
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )


def finish(settings, folder: Path) -> dict[str, bytes]:
    process = start(settings, folder)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    assert not list(folder.glob('.*partial*'))
    return {name: (folder / name).read_bytes() for name in ENDS}


@pytest.fixture(scope='module')
def whole(settings, tmp_path_factory):
    return finish(settings, tmp_path_factory.mktemp('whole'))


def stop_after(settings, folder: Path, steps: int, number: int, later_s: float = 0.0):
    """Start a training, send a signal after some of its steps, and wait for its end."""
    process = start(settings, folder)
    for line in process.stdout:
        if int(line) >= steps:
            break
    time.sleep(later_s)
    process.send_signal(number)
    _, said = process.communicate(timeout=WAIT_S)
    return process.returncode, said


def whole_files(folder: Path) -> None:
    """Every file that has its name is complete."""
    from nephi_pipe.training.checkpoint import load_model, read_tensors
    from nephi_pipe.training.state import STATE, STATE_FORMAT

    header, _ = read_tensors(folder / STATE, STATE_FORMAT)
    assert len(header['history']) == header['step'] // 4
    for path in folder.glob('*.json'):
        json.loads(path.read_text())
    for name in ('weights.safetensors', 'best.safetensors'):
        if (folder / name).exists():
            load_model(folder / name)


@pytest.mark.slow
def test_sigkill_again_and_again_changes_nothing(settings, whole, tmp_path) -> None:
    # Within an epoch, and while the end of one is written.
    for steps, later_s in ((3, 0.0), (8, 0.03)):
        code, _ = stop_after(settings, tmp_path, steps, signal.SIGKILL, later_s)
        assert code == -signal.SIGKILL
        whole_files(tmp_path)
    assert finish(settings, tmp_path) == whole


def test_sigterm_saves_within_an_epoch(settings, whole, tmp_path) -> None:
    code, said = stop_after(settings, tmp_path, 6, signal.SIGTERM)
    assert code == 1 and 'told to stop and has saved its state' in said
    whole_files(tmp_path)
    process = start(settings, tmp_path)
    assert int(process.stdout.readline()) > 6
    process.communicate(timeout=WAIT_S)
    assert {name: (tmp_path / name).read_bytes() for name in ENDS} == whole


def test_a_slurm_job_goes_back_into_the_queue(tmp_path, monkeypatch) -> None:
    called = tmp_path / 'called'
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {called}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    for job, array in (({'SLURM_JOB_ID': '17'}, '17'), (
        {'SLURM_ARRAY_JOB_ID': '8', 'SLURM_ARRAY_TASK_ID': '3', 'SLURM_JOB_ID': '9'}, '8_3'
    )):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name, value in job.items():
                patch.setenv(name, value)
            assert requeue() and called.read_text() == f'requeue {array}\n'
    called.unlink()
    assert not requeue()
    monkeypatch.setenv('SLURM_JOB_ID', '17; true')
    assert not requeue() and not called.exists()
    with pytest.raises(TryAgainError, match='in the queue again'), Stop() as stop:
        monkeypatch.setenv('SLURM_JOB_ID', '17')
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.told == signal.SIGUSR1
        stop.leave()
    assert called.read_text() == 'requeue 17\n'
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.slow
def test_sigkill_at_any_moment(settings, whole, tmp_path) -> None:
    took = time.monotonic()
    finish(settings, tmp_path / 'timed')
    took = time.monotonic() - took
    folder = tmp_path / 'killed'
    folder.mkdir()
    for part in range(12):
        process = start(settings, folder)
        time.sleep(took * (part + 1) / 14)
        process.kill()
        process.communicate(timeout=WAIT_S)
        if (folder / 'training.safetensors').exists():
            whole_files(folder)
    assert finish(settings, folder) == whole


@pytest.mark.slow
def test_the_cache_survives_a_kill_while_it_is_built(settings, whole, tmp_path) -> None:
    alone = {**settings, 'cache': str(tmp_path / 'cache')}
    process = start(alone, tmp_path / 'out')
    while not list(tmp_path.glob('cache/.*partial*')) and process.poll() is None:
        pass
    process.kill()
    process.communicate(timeout=WAIT_S)
    assert finish(alone, tmp_path / 'out') == whole
