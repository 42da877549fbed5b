"""``--plugin`` and ``--use-plugin``: what is understood, and what is refused."""

from __future__ import annotations

import dataclasses
import os

import pytest

from nephi_pipe.bids_app.plugin import InOrder, PersonFirst, make_plugin
from nephi_pipe.bids_app.plugin_file import Plugin, check_queue, choose_plugin, read_plugin
from nephi_pipe.bids_app.run import _on_this_machine
from nephi_pipe.bids_app.settings import Settings
from nephi_pipe.errors import InputDataError, NoInputError, UsageError
from nephi_pipe.workflows.slurm import SafeSLURM


def settings(**more):
    return Settings(bids_dir='ds', output_dir='out', nprocs=4, **more)


def written(tmp_path, text, name='plugin.yml'):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_files_of_other_apps(tmp_path):
    yaml = 'plugin: MultiProc\nplugin_args: {n_procs: 3, memory_gb: 6, raise_insufficient: no}\n'
    expected = Plugin('MultiProc', {'n_procs': 3, 'memory_gb': 6.0})
    assert read_plugin(written(tmp_path, yaml)) == expected
    json = '{"plugin": "MultiProc",\t"plugin_args": {"n_procs": 3, "memory_gb": 6}}'
    assert read_plugin(written(tmp_path, json, 'plugin.json')) == expected
    assert read_plugin(written(tmp_path, 'plugin: Linear\n')) == Plugin('Linear', {})
    queue = (
        'plugin: SLURM\nplugin_args:\n  sbatch_args: "-p long --comment=\'a b\'"\n  max_jobs: 9\n'
    )
    assert read_plugin(written(tmp_path, queue)).arguments['max_jobs'] == 9


def test_file_and_option(tmp_path):
    path = written(tmp_path, 'plugin: Linear\n')
    assert choose_plugin(settings()) == Plugin('MultiProc')
    assert choose_plugin(settings(plugin='SLURM')) == Plugin('SLURM')
    assert choose_plugin(settings(plugin='Linear', use_plugin=path)) == Plugin('Linear')
    with pytest.raises(UsageError, match='--plugin is SLURM, but ".*" names Linear'):
        choose_plugin(settings(plugin='SLURM', use_plugin=path))


BOMB = 'a: &a [x, x]\n' + ''.join(
    f'{b}: &{b} [{", ".join(["*" + a] * 9)}]\n'
    for a, b in zip('abcdefgh', 'bcdefghi', strict=True)
)


@pytest.mark.parametrize(
    ('text', 'error', 'words'),
    [
        ('plugin: !!python/object/apply:os.system ["true"]\n', InputDataError, 'not plain YAML'),
        ('plugin: [unclosed\n', InputDataError, 'not plain YAML or JSON'),
        (b'\xff\xfe\x00', InputDataError, 'cannot be read as text'),
        ('[' * 5000, InputDataError, 'not plain YAML or JSON'),
        ('#' * (2 << 20), InputDataError, 'more than the 1048576'),
        ('', InputDataError, 'no name of a plugin'),
        ('- SLURM\n', InputDataError, 'no name of a plugin'),
        ('plugin: 7\n', InputDataError, 'no name of a plugin'),
        (BOMB, InputDataError, 'no name of a plugin'),
        ('plugin: SLURMGraph\n', UsageError, 'nephi hpc-script writes'),
        ('plugin: ../evil\n', UsageError, 'There is no plugin "../evil"'),
        ('plugin: Linear\nos: 1\n', UsageError, 'has "os"; expected plugin and plugin_args only'),
        ('plugin: Linear\nplugin_args: [1]\n', UsageError, 'no table of names and values'),
        ('plugin: SLURM\nplugin_args: {n_procs: 2}\n', UsageError, 'no argument of SLURM'),
        ('plugin: MultiProc\nplugin_args: {n_procs: 0}\n', UsageError, 'a number of 1 or more'),
        ('plugin: MultiProc\nplugin_args: {n_procs: true}\n', UsageError, 'a number of 1 or more'),
        ('plugin: MultiProc\nplugin_args: {memory_gb: .nan}\n', UsageError, 'a number of 0.1'),
        ('plugin: SLURM\nplugin_args: {template: 5}\n', UsageError, 'expected a text'),
        ('plugin: SLURM\nplugin_args: {sbatch_args: "\'"}\n', UsageError, 'cannot be split'),
        ('plugin: SLURM\nplugin_args: {sbatch_args: --wrap=x}\n', UsageError, "has '--wrap=x'"),
        ('plugin: SLURM\nplugin_args: {sbatch_args: -a 1-9}\n', UsageError, "has '-a'"),
        ('plugin: SLURM\nplugin_args: {sbatch_args: --arr=1-9}\n', UsageError, "has '--arr=1-9'"),
    ],
)
def test_what_is_refused(tmp_path, text, error, words):
    with pytest.raises(error) as caught:
        read_plugin(written(tmp_path, text))
    message = str(caught.value)
    assert words in message and '\n' not in message and len(message) < 500


def test_a_missing_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe.yml')
    with pytest.raises(NoInputError, match='a pipe'):
        read_plugin(tmp_path / 'pipe.yml')
    with pytest.raises(NoInputError, match='no file'):
        read_plugin(tmp_path / 'missing.yml')


def test_the_plugin_that_runs(tmp_path, monkeypatch):
    def callback(node, status):
        """Nothing to tell."""

    ours = make_plugin(settings(mem_gb=3.0), Plugin(), callback)
    assert isinstance(ours, PersonFirst) and ours.processors == 4 and ours.memory_gb == 3.0
    assert isinstance(make_plugin(settings(), Plugin('Linear'), callback), InOrder)
    queue = make_plugin(settings(), Plugin('SLURM', {'max_jobs': 3}), callback)
    assert isinstance(queue, SafeSLURM) and queue.max_jobs == 3
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UsageError, match='no sbatch on this machine'):
        check_queue(Plugin('SLURM'))
    check_queue(Plugin('Linear'))


def test_resources_of_a_file_and_the_device_of_this_machine(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    asked = Plugin('MultiProc', {'n_procs': 2, 'memory_gb': 5.0})
    found = _on_this_machine(settings(), asked)
    assert (found.nprocs, found.omp_nthreads, found.mem_gb) == (2, 2, 5.0)
    cuda = settings(device='cuda')
    with pytest.raises(UsageError, match='0 CUDA devices can be seen'):
        _on_this_machine(cuda, Plugin())
    assert _on_this_machine(cuda, Plugin('SLURM')) == cuda, 'the node of the job decides'
    assert _on_this_machine(settings(device='auto'), Plugin('SLURM')).device == 'cpu'
    assert dataclasses.replace(cuda, device='cuda:1').gpu
