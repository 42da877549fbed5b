"""SafeSLURM: what each state of a job means, without a cluster."""

from __future__ import annotations

import subprocess

import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline.engine import Node, Workflow

from nephi_pipe.workflows import slurm
from nephi_pipe.workflows.slurm import SafeSLURM
from nephi_pipe.workflows.slurm_job import run_task


def _add(value):
    return value + 1


@pytest.fixture
def node(tmp_path):
    node = Node(Function(function=_add), name='add', n_procs=3, mem_gb=2.0)
    node.base_dir = str(tmp_path / '100%')
    node.inputs.value = 1
    return node


@pytest.fixture
def plugin(monkeypatch):
    monkeypatch.setattr(slurm, 'LOOK_EVERY_S', 0.0)
    plugin = SafeSLURM({'sbatch_args': '--partition=long --comment="a b"', 'max_tries': 0})
    plugin.called = []

    def run(command, **more):
        plugin.called.append(command)
        return '7;cluster\n'

    monkeypatch.setattr(slurm, '_run', run)
    return plugin


def refuse(said):
    def run(command, **more):
        raise subprocess.CalledProcessError(1, command, stderr=said)

    return run


def text_of(result):
    return ''.join(result['traceback'])


def test_what_sbatch_is_told(plugin, node):
    plugin._submit_job(node)
    (command,) = plugin.called
    assert command[:2] == ['sbatch', '--parsable']
    assert {'--cpus-per-task=3', '--mem=2560M', '--partition=long', '--comment=a b'} < set(command)
    assert not any(word.startswith('--gres') for word in command)
    assert '/100%%/' in next(word for word in command if word.startswith('--output='))
    node.plugin_args = {'sbatch_args': '--time=9'}
    plugin._submit_job(node)
    assert plugin.called[1][:2] == ['scancel', '--name=add'], 'the one before is not heard of'
    assert plugin.called[-1][-2] == '--time=9' and '--mem=2560M' in plugin.called[-1]
    node.plugin_args['overwrite'] = True
    plugin._submit_job(node)
    assert '--time=9' in plugin.called[-1] and '--mem=2560M' not in plugin.called[-1]


def test_an_answer_is_what_counts(plugin, node):
    task = plugin._submit_job(node)
    assert plugin._jobs[task].jobid == '7'
    files = plugin._jobs[task].files
    assert 'slurm_job' in files.script.read_text() and files.marker.read_text() == '7'
    run_task(files.task, files.answer)
    result = plugin._get_result(task)
    assert result['traceback'] is None and result['result'].outputs.out == 2
    plugin._clear_task(task)
    assert not list(files.task.parent.iterdir())


@pytest.mark.parametrize(
    ('state', 'reason', 'words'),
    [
        ('PENDING', 'Priority', ''),
        ('SUSPENDED', 'None', ''),
        ('COMPLETING', 'None', ''),
        ('COMPLETED', 'None', ''),
        ('PENDING', 'BadConstraints', 'would wait for ever (BadConstraints)'),
        ('CANCELLED', 'None', 'was cancelled'),
        ('TIMEOUT', 'TimeLimit', 'reached its time limit'),
        ('OUT_OF_MEMORY', 'OutOfMemory', 'expected to need 2.0 GB'),
        ('NODE_FAIL', 'NodeDown', 'was lost with its compute node'),
        ('BOOT_FAIL', 'None', 'ended as BOOT_FAIL'),
    ],
)
def test_states(plugin, node, monkeypatch, state, reason, words):
    task = plugin._submit_job(node)
    monkeypatch.setattr(slurm, '_queue', lambda jobids: {'7': (state, reason)})
    result = plugin._get_result(task)
    if not words:
        assert result is None
        return
    assert words in text_of(result) and result['worker_died']
    assert ['scancel', '7'] in plugin.called


def test_a_job_that_disappears(plugin, node, monkeypatch):
    task = plugin._submit_job(node)
    monkeypatch.setattr(slurm, '_run', refuse('slurm_load_jobs error: Invalid job id specified'))
    assert plugin._get_result(task) is None, 'the file system may be slow'
    monkeypatch.setattr(slurm, 'ANSWER_S', -1.0)
    plugin._jobs[task].files.log.write_text('last words')
    text = text_of(plugin._get_result(task))
    assert 'disappeared from the queue without a result' in text and 'last words' in text


def test_a_controller_that_is_silent(plugin, node, monkeypatch):
    task = plugin._submit_job(node)
    monkeypatch.setattr(slurm, '_run', refuse('Socket timed out'))
    monkeypatch.setattr(slurm, 'ANSWER_S', -1.0)
    assert plugin._get_result(task) is None, 'it may come back'
    monkeypatch.setattr(slurm, 'OUTAGE_S', -1.0)
    assert 'disappeared' in text_of(plugin._get_result(task))


def test_no_more_jobs_than_are_allowed(plugin, node, monkeypatch):
    said = 'error: QOSMaxSubmitJobPerUserLimit'
    accepts = slurm._run
    monkeypatch.setattr(slurm, '_run', refuse(said))
    assert plugin._submit_job(node) is None, 'the jobs may be those of somebody else'
    assert plugin.max_jobs == 0, 'no more are tried in this round'
    plugin.pending_tasks = [(1, 1), (2, 2)]
    monkeypatch.setattr(slurm, 'FULL_S', 0.0)
    plugin._full_until = 0.0
    assert plugin._submit_job(node) is None
    monkeypatch.setattr(slurm, '_run', accepts)
    assert plugin._submit_job(node) is not None and plugin.max_jobs == float('inf')
    plugin.pending_tasks = []
    monkeypatch.setattr(slurm, '_run', refuse(said))
    monkeypatch.setattr(slurm, 'OUTAGE_S', -1.0)
    text = text_of(plugin._get_result(plugin._submit_job(node)))
    assert f'SLURM did not accept the job of "{node.fullname}": {said}' in text


def test_after_a_pause_more_jobs_are_tried(plugin, node, monkeypatch):
    accepts = slurm._run
    monkeypatch.setattr(slurm, '_run', refuse('error: MaxJobCount'))
    monkeypatch.setattr(slurm, 'FULL_S', 0.5)
    said = []

    def run(command, **more):
        said.append(command[0])
        if len(said) < 3:
            raise subprocess.CalledProcessError(1, command, stderr='error: MaxJobCount')
        monkeypatch.setattr(slurm, '_run', refuse_nothing)
        return accepts(command)

    def refuse_nothing(command, **more):
        if command[0] == 'sbatch':
            return '7\n'
        task = next(job for job in plugin._jobs.values() if not job.files.answer.exists())
        run_task(task.files.task, task.files.answer)
        return '7|RUNNING|None\n'

    monkeypatch.setattr(slurm, '_run', run)
    workflow = Workflow(name='wf', base_dir=node.base_dir)
    workflow.config['execution'] = {'poll_sleep_duration': '0.1'}
    workflow.add_nodes([node])
    workflow.run(plugin=plugin)
    assert said == ['sbatch'] * 3
