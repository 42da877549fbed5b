"""SIGTERM in every phase of a run, and workers that the kernel kills because memory ran out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bids_data import make_dataset, small_demo
from bids_runs import STUB, wait_for
from test_kills import Demo

LIMIT_S = 20
"""Ten seconds are promised; a machine that is busy with other tests may take more."""

CGROUP = Path('/sys/fs/cgroup')


def descendants(pid):
    """Process ids below a process."""
    try:
        own = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except OSError:
        return []
    return [int(child) for child in own] + [one for child in own for one in descendants(child)]


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def stopped(process, whole_group=False):
    """Send SIGTERM; how long it took to end, with its workers."""
    workers, begin = descendants(process.pid), time.monotonic()
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    took = time.monotonic() - begin
    print(f'stopped in {took:.1f} s')  # seen with pytest -s
    wait_for(lambda: not any(map(alive, workers)), 5)
    return took, workers


def half_written(folder):
    return [*folder.rglob('.*.partial.*'), *folder.rglob('*.lock'), *folder.rglob('crash-*')]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('phase', 'line', 'seconds'),
    [
        ('affine', 'affine ...', 1.0),
        ('optimisation', 'deformation ...', 1.5),
        ('transforms', 'transform files ...', 1.0),
        ('scores and figures', 'scores ...', 0.5),
    ],
)
def test_sigterm_in_the_middle_of_a_computation(tmp_path, phase, line, seconds):
    if not Path('/proc/self/task').exists():
        pytest.skip('the workers of a run are found in /proc')
    demo = Demo(small_demo(tmp_path / 'ds'), tmp_path / 'run')
    process = demo.start()
    wait_for(lambda: line in demo.said() or process.poll() is not None, 300)
    time.sleep(seconds)
    took, workers = stopped(process)
    assert process.returncode == 75, demo.said()
    assert took < LIMIT_S and len(workers) == 2
    assert 'Stopped by a signal. 0 of 2 pairs finished and kept; the same command' in demo.said()
    assert 'Traceback' not in demo.said() and not half_written(demo.out)


def start(code, *line):
    """A run in a process of its own, with a phase of it drawn out by ``code``."""
    program = (
        f'import sys, time\nsys.path.insert(0, {str(STUB.parent)!r})\nimport bids_stub\n'
        f'def wait(*_, **__):\n    print("waiting", flush=True)\n    time.sleep(60)\n'
        f'{code}\nsys.exit(bids_stub.main({list(map(str, line))!r}))\n'
    )
    return subprocess.Popen(
        [sys.executable, '-c', program], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


PHASES = {
    'start': 'import nephi_pipe.bids_app.run as r; r.check_device = wait',
    'indexing': 'import nephi_pipe.bids_app.query as q; q._index = wait',
    'a library that swallows it': (
        'import nephi_pipe.bids_app.query as q\n'
        'def deaf(*_):\n'
        '    while True:\n'
        '        try:\n'
        '            wait()\n'
        '        except BaseException:\n'
        '            pass\n'
        'q._index = deaf'
    ),
    'headers': 'import nephi_pipe.bids_app.run as r; r.check_pairs = wait',
    'building the workflow': 'import nephi_pipe.bids_app.workflow as w; w.build_workflow = wait',
    'storing': 'import nephi_pipe.bids_app.derivatives as d; d.store_pair = wait',
    'a page': 'import nephi_pipe.bids_app.subject_report as s; s.write_subject_report = wait',
    'group': 'import nephi_pipe.bids_app.group as g; g.group_page = wait',
}


@pytest.mark.parametrize('phase', PHASES)
def test_sigterm_around_the_computation(app, phase):
    process = start(PHASES[phase], *app.line(levels=['participant', 'group']))
    said = ''
    while 'waiting' not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    took, _ = stopped(process)
    said += process.communicate()[0]
    assert process.returncode == 75, said
    assert took < LIMIT_S and 'Stopped by a signal. ' in said
    assert 'Traceback' not in said
    done = '2 of 2 pairs finished' if phase == 'group' else ''
    assert done in said
    if phase != 'a library that swallows it' and app.out.exists():
        assert not half_written(app.out)
    assert app.run(levels=['participant', 'group'])[0] == 0
    assert not half_written(app.out)


def test_sigterm_for_all_processes_at_once_is_no_crash(app):
    """A queue that cancels a job signals the workers too."""
    app.behave({'01': 'sleep', '02': 'sleep'})
    process = subprocess.Popen(
        [sys.executable, str(STUB), *app.line('--omp-nthreads', '1')], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: {'register 01', 'register 02'} <= set(app.ran()))
    took, workers = stopped(process, whole_group=True)
    said = process.communicate()[0]
    assert process.returncode == 75, said
    assert took < LIMIT_S and len(workers) == 2
    assert 'Stopped by a signal. 0 of 2 pairs' in said and not half_written(app.out)


def test_workers_end_with_a_run_that_is_killed_in_the_middle_of_a_library_call(app):
    """One that never lets another thread of Python run."""
    app.behave({'01': 'deep'})
    process = app.start('--participant-label', '01')
    wait_for(lambda: 'register 01' in app.ran())
    workers = descendants(process.pid)
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, workers)), 5)
    assert workers
    app.behave({})
    code, said = app.run('--participant-label', '01')
    assert code == 0, said


# ---- memory -------------------------------------------------------------------------------------


@pytest.fixture
def memory_group():
    """A control group of 1 GB, version 1 or 2, that a process can be put into."""
    top = CGROUP / 'memory' if (CGROUP / 'memory').is_dir() else CGROUP
    group = top / f'nephi_pipe_test_{os.getpid()}'
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f'no control group can be made here: {error}')
    limit = next(
        (f for n in ('memory.limit_in_bytes', 'memory.max') if (f := group / n).exists()), None
    )
    try:
        if limit is None:
            pytest.skip('control groups do not limit memory here')
        limit.write_text(str(1 << 30))
        yield group
    finally:
        wait_for(lambda: not (group / 'cgroup.procs').read_text().split(), 20)
        group.rmdir()


def test_the_kernel_kills_workers_for_their_memory(app, memory_group):
    """Two of four people need more than there is; the others are done, and so are all later."""
    app.bids = make_dataset(app.bids.parent / 'five', ['01', '02', '03', '04', '05'])
    app.behave({'01': 'eat', '04': 'eat'})

    line = app.line('--mem', '0.9G', '--omp-nthreads', '1')

    def run():
        return subprocess.run(
            [sys.executable, str(STUB), *line], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
            preexec_fn=lambda: (memory_group / 'cgroup.procs').write_text(str(os.getpid())),
        )  # fmt: skip

    done = run()
    said = done.stdout
    assert done.returncode == 1, said
    assert '2 of 4 pairs finished. Failed: sub-01, sub-04.' in said
    assert said.count('was killed (SIGKILL), most probably because memory ran out') == 2
    crashes = sorted(app.out.glob('sub-*/log/*/crash-*.txt'))
    assert [path.parents[2].name for path in crashes] == ['sub-01', 'sub-04']
    assert (app.out / 'sub-05.html').exists()
    before = app.ran()
    app.behave({})
    done = run()
    assert done.returncode == 0, done.stdout
    assert sorted(app.ran()[len(before) :]) == ['register 01', 'register 04']


@pytest.mark.slow
def test_memory_that_is_refused_ends_its_person(app):
    """Where a queue limits addresses (ulimit -v), Python is told instead of killed."""
    app.behave({'01': 'eat'})
    done = subprocess.run(
        ['bash', '-c', 'ulimit -v 5000000; exec "$@"', '-', sys.executable, STUB, *app.line()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert 'sub-01: Memory ran out. Run fewer registrations at once' in said
    assert '1 of 2 pairs finished. Failed: sub-01.' in said
    assert json.loads((app.out / 'dataset_description.json').read_text())['GeneratedBy']
