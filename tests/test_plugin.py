"""SafeMultiProc: a killed worker fails its node, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import load_resultfile

from nephi_pipe.workflows.plugin import SafeMultiProc

LIMIT_S = 60


@pytest.fixture(autouse=True)
def limit():
    """A run that hangs fails the test instead of the whole session."""

    def stop(signum, frame):
        raise TimeoutError('the run did not end')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _add(value, folder, seconds=0.0):
    import os
    import time

    with open(os.path.join(folder, f'started-{value}-{os.getpid()}'), 'w'):
        pass
    time.sleep(seconds)
    return value + 1


def _die(value, number, folder):
    import os
    import time

    with open(os.path.join(folder, f'dying-{value}-{os.getpid()}'), 'w'):
        pass
    time.sleep(0.3)
    os.kill(os.getpid(), number)


def _leave(value):
    import os

    os._exit(3)


def _fail(value):
    raise ValueError('an ordinary mistake')


def _node(function, name, **inputs):
    names = list(function.__code__.co_varnames[: function.__code__.co_argcount])
    node = pe.Node(Function(names, ['out'], function=function), name=name)
    node.inputs.trait_set(**inputs)
    return node


def _workflow(tmp_path, **execution):
    workflow = pe.Workflow('wf', base_dir=str(tmp_path / 'work'))
    workflow.config['execution'] = {
        'crashdump_dir': str(tmp_path / 'crash'),
        'stop_on_first_crash': False,
        'check_version': False,
        **execution,
    }
    return workflow


def _run(workflow, context=None, n_procs=2, **arguments):
    plugin = SafeMultiProc(
        {'n_procs': n_procs, 'memory_gb': 4.0, 'mp_context': context, **arguments}
    )
    return workflow.run(plugin=plugin)


def _crashes(tmp_path):
    return [path.read_text() for path in sorted((tmp_path / 'crash').glob('crash-*.txt'))]


def _result(tmp_path, name):
    return load_resultfile(tmp_path / 'work' / 'wf' / name / f'result_{name}.pklz').outputs.out


@pytest.mark.parametrize('context', ['fork', 'forkserver', 'spawn'])
def test_values_travel_down_a_graph(tmp_path, context):
    workflow = _workflow(tmp_path)
    first = _node(_add, 'first', value=1, folder=str(tmp_path))
    second = _node(_add, 'second', folder=str(tmp_path))
    workflow.connect(first, 'out', second, 'value')
    _run(workflow, context)
    assert _result(tmp_path, 'second') == 3


def test_map_nodes_use_all_workers(tmp_path):
    workflow = _workflow(tmp_path)
    node = pe.MapNode(
        Function(['value', 'folder', 'seconds'], ['out'], function=_add), 'value', name='many'
    )
    node.inputs.trait_set(value=[1, 2, 3, 4], folder=str(tmp_path), seconds=0.3)
    workflow.add_nodes([node])
    _run(workflow)
    assert _result(tmp_path, 'many') == [2, 3, 4, 5]
    workers = {path.name.rsplit('-', 1)[1] for path in tmp_path.glob('started-*')}
    assert len(workers) == 2


@pytest.mark.parametrize('context', ['fork', 'forkserver'])
def test_killed_worker_fails_its_node_only(tmp_path, context):
    workflow = _workflow(tmp_path)
    folder = str(tmp_path)
    victim = _node(_die, 'victim', value=0, number=int(signal.SIGKILL), folder=folder)
    after = _node(_add, 'after', folder=folder)
    workflow.connect(victim, 'out', after, 'value')
    # In flight while the victim dies: it must neither fail nor start a second time.
    workflow.add_nodes([_node(_add, 'beside', value=10, folder=folder, seconds=1.5)])
    workflow.add_nodes([_node(_add, f'later{i}', value=20 + i, folder=folder) for i in range(4)])
    with pytest.raises(RuntimeError, match='was killed'):
        _run(workflow, context)
    assert _result(tmp_path, 'beside') == 11
    assert len(list(tmp_path.glob('started-10-*'))) == 1
    assert [_result(tmp_path, f'later{i}') for i in range(4)] == [21, 22, 23, 24]
    assert not list(tmp_path.glob('started-None-*'))
    (crash,) = _crashes(tmp_path)
    assert '"wf.victim" was killed (SIGKILL)' in crash
    assert 'memory ran out' in crash
    assert 'smaller n_procs' in crash


def test_two_workers_killed_at_once_and_again_in_the_next_run(tmp_path):
    folder = str(tmp_path)

    def build():
        workflow = _workflow(tmp_path)
        for i in range(3):
            number = int(signal.SIGKILL)
            workflow.add_nodes([_node(_die, f'victim{i}', value=i, number=number, folder=folder)])
        workflow.add_nodes([_node(_add, 'survivor', value=1, folder=folder)])
        return workflow

    for rounds in (1, 2):
        workflow = build()
        with pytest.raises(RuntimeError, match='3 raised'):
            _run(workflow)
        assert _result(tmp_path, 'survivor') == 2
        assert len(_crashes(tmp_path)) == 3 * rounds
        assert len(list(tmp_path.glob('dying-*'))) == 3 * rounds
    assert len(list(tmp_path.glob('started-1-*'))) == 1


def test_killed_sub_node_of_a_map_node(tmp_path):
    workflow = _workflow(tmp_path)
    node = pe.MapNode(
        Function(['value', 'number', 'folder'], ['out'], function=_die), 'number', name='many'
    )
    # Signal 0 kills nobody.
    node.inputs.trait_set(value=1, number=[0, int(signal.SIGKILL), 0], folder=str(tmp_path))
    workflow.add_nodes([node, _node(_add, 'beside', value=1, folder=str(tmp_path))])
    with pytest.raises(RuntimeError, match='was killed'):
        _run(workflow)
    assert len(_crashes(tmp_path)) == 1
    assert _result(tmp_path, 'beside') == 2


@pytest.mark.parametrize(
    ('node', 'words'),
    [
        (_node(_die, 'odd', value=0, number=int(signal.SIGSEGV), folder='/tmp'), 'SIGSEGV'),
        (_node(_leave, 'odd', value=0), 'ended with status 3'),
    ],
)
def test_other_deaths_say_what_was_seen(tmp_path, node, words):
    workflow = _workflow(tmp_path)
    if node.interface.inputs.trait_get().get('folder'):
        node.inputs.folder = str(tmp_path)
    workflow.add_nodes([node])
    with pytest.raises(RuntimeError, match=words):
        _run(workflow)
    assert words in _crashes(tmp_path)[0]


def test_an_ordinary_mistake_is_reported_as_ever(tmp_path):
    workflow = _workflow(tmp_path, crashfile_format='txt')
    workflow.add_nodes(
        [_node(_fail, 'wrong', value=1), _node(_add, 'right', value=1, folder=str(tmp_path))]
    )
    with pytest.raises(RuntimeError, match='an ordinary mistake'):
        _run(workflow)
    assert 'an ordinary mistake' in _crashes(tmp_path)[0]
    assert _result(tmp_path, 'right') == 2


def test_a_node_that_cannot_be_pickled_fails_alone(tmp_path):
    workflow = _workflow(tmp_path, crashfile_format='txt')
    bad = _node(_add, 'bad', folder=str(tmp_path))
    bad.inputs.value = lambda: None
    workflow.add_nodes([bad, _node(_add, 'good', value=1, folder=str(tmp_path))])
    with pytest.raises(RuntimeError, match='[Pp]ickle'):
        _run(workflow)
    assert _result(tmp_path, 'good') == 2


def test_first_crash_stops_the_run_and_its_workers(tmp_path):
    workflow = _workflow(tmp_path, stop_on_first_crash=True)
    folder = str(tmp_path)
    workflow.add_nodes(
        [
            _node(_die, 'victim', value=0, number=int(signal.SIGKILL), folder=folder),
            _node(_add, 'long', value=7, folder=folder, seconds=50.0),
        ]
    )
    with pytest.raises(RuntimeError, match='was killed'):
        _run(workflow)
    (started,) = tmp_path.glob('started-7-*')
    assert not _alive(int(started.name.rsplit('-', 1)[1]))


def test_finished_nodes_cost_no_rounds(tmp_path):
    def run():
        workflow = _workflow(tmp_path, hash_method='content')
        workflow.add_nodes(
            [_node(_add, f'node{i}', value=i, folder=str(tmp_path)) for i in range(12)]
        )
        plugin = SafeMultiProc({'n_procs': 2, 'memory_gb': 4.0})
        rounds = []
        plugin._sort_jobs = lambda jobs, scheduler: rounds.append(len(jobs)) or jobs
        workflow.run(plugin=plugin)
        return rounds

    assert max(run()) == 12
    assert sum(run()) == 0
    assert len(list(tmp_path.glob('started-*'))) == 12


def test_resumes_without_running_finished_nodes_again(tmp_path):
    def build(number):
        workflow = _workflow(tmp_path, hash_method='content')
        folder = str(tmp_path)
        workflow.add_nodes(
            [
                _node(_add, 'steady', value=1, folder=folder),
                _node(_die, 'victim', value=0, number=number, folder=folder),
            ]
        )
        return workflow

    with pytest.raises(RuntimeError, match='was killed'):
        _run(build(int(signal.SIGKILL)))
    _run(build(0))
    assert len(list(tmp_path.glob('started-1-*'))) == 1
    assert len(list(tmp_path.glob('dying-0-*'))) == 2


def test_a_worker_killed_while_it_is_free_is_replaced(tmp_path):
    workflow = _workflow(tmp_path)
    folder = str(tmp_path)
    long = _node(_add, 'long', value=7, folder=folder, seconds=1.5)
    workflow.add_nodes([_node(_add, 'first', value=1, folder=folder), long])
    for i in range(2):
        workflow.connect(long, 'out', _node(_add, f'after{i}', folder=folder), 'value')

    def kill_the_free_one():
        while not (started := list(tmp_path.glob('started-1-*'))):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(int(started[0].name.rsplit('-', 1)[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_free_one)
    killer.start()
    _run(workflow)
    killer.join()
    assert [_result(tmp_path, name) for name in ('first', 'after0', 'after1')] == [2, 9, 9]


def _alive(pid):
    stat = Path(f'/proc/{pid}/stat')
    return stat.exists() and stat.read_text().rsplit(')', 1)[1].split()[0] != 'Z'


SCRIPT = """
import signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_plugin import _add, _node, _run, _workflow

def stop(number, frame):
    raise SystemExit(143)

if {handled}:
    signal.signal(signal.SIGTERM, stop)
if __name__ == '__main__':
    folder = Path({folder!r})
    workflow = _workflow(folder)
    workflow.add_nodes(
        [_node(_add, f'long{{i}}', value=i, folder=str(folder), seconds=50.0) for i in range(2)]
    )
    _run(workflow, {context!r})
"""


@pytest.mark.parametrize('context', ['fork', 'forkserver'])
@pytest.mark.parametrize(
    ('number', 'handled'),
    [(signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGKILL, False)],
)
def test_no_worker_outlives_the_run(tmp_path, context, number, handled):
    script = tmp_path / 'run.py'
    script.write_text(
        SCRIPT.format(
            tests=str(Path(__file__).parent),
            handled=handled,
            folder=str(tmp_path),
            context=context,
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL)
    while len(list(tmp_path.glob('started-*'))) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    os.kill(parent.pid, number)
    parent.wait(timeout=10)
    workers = [int(path.name.rsplit('-', 1)[1]) for path in tmp_path.glob('started-*')]
    deadline = time.monotonic() + 10
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))
    assert parent.returncode == (143 if handled else -number)


class _GpuInputSpec(BaseInterfaceInputSpec):
    folder = traits.Str()
    use_gpu = traits.Bool(True, usedefault=True)


class _GpuOutputSpec(TraitedSpec):
    done = traits.Bool()


class OnGpu(SimpleInterface):
    """Fails if another one of its kind runs at the same time."""

    input_spec, output_spec = _GpuInputSpec, _GpuOutputSpec

    def _run_interface(self, runtime):
        lock = os.path.join(self.inputs.folder, 'gpu')
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        time.sleep(0.3)
        os.unlink(lock)
        self._results['done'] = True
        return runtime


def test_gpu_nodes_wait_for_a_slot(tmp_path):
    def workflow(name):
        nodes = [pe.Node(OnGpu(folder=str(tmp_path)), f'n{k}', n_procs=1) for k in range(3)]
        made = pe.Workflow(name=name, base_dir=str(tmp_path))
        made.add_nodes(nodes)
        return made

    workflow('one').run(plugin=SafeMultiProc({'n_procs': 3, 'memory_gb': 4, 'n_gpu_procs': 1}))
    with pytest.raises(RuntimeError, match='Insufficient GPU resources'):
        workflow('none').run(
            plugin=SafeMultiProc({'n_procs': 3, 'memory_gb': 4, 'n_gpu_procs': 0})
        )
