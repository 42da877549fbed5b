"""``nephi hpc-script``: what it writes, and what its shell does, without a cluster."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bids_data import ball, make_dataset, save

from nephi_pipe.bids_app.cli import parse_settings
from nephi_pipe.bids_app.hpc_script import to_arguments
from nephi_pipe.bids_app.pairs import select_pairs
from nephi_pipe.bids_app.settings import parse_memory
from nephi_pipe.cli import main

NASTY = 'it\'s "a" $HOME `true` \\ % & ;\n# folder'


class Script:
    """A script for three people in a folder whose name is hard to quote."""

    def __init__(self, folder):
        self.folder = folder / NASTY
        self.bids = make_dataset(self.folder / 'ds', ['01', '02', '03'])
        self.out, self.work = self.folder / 'out', self.folder / 'w'
        self.path = self.folder / 'array.sh'

    def write(self, *more, options=('--reference', 'sub-03')):
        return main(
            [
                'hpc-script', str(self.bids), str(self.out), '-o', str(self.path),
                '-w', str(self.work), *more, '--', *options,
            ]
        )  # fmt: skip

    def directive(self, name):
        lines = self.path.read_text().splitlines()
        start = f'#SBATCH --{name}='
        return next(line.removeprefix(start) for line in lines if line.startswith(start))

    def program(self, name, body):
        """A program that stands for one of the cluster, in a folder for PATH."""
        path = self.folder / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, *arguments, **environ):
        """Run the script itself."""
        path = f'{self.folder / "bin"}:{os.environ["PATH"]}'
        return subprocess.run(
            ['bash', str(self.path), *arguments],
            env={**os.environ, 'PATH': path, **environ},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


RECORD = r'printf "%s\0" "$@" >> "$RECORDED"; printf "\n\0" >> "$RECORDED"'


def recorded(path):
    """The calls that were recorded, each a list of its arguments."""
    calls = path.read_text().removesuffix('\n\0').split('\n\0')
    return [call.removesuffix('\0').split('\0') for call in calls]


def test_what_is_asked_for(script, capsys):
    assert script.write('--cpus', '3', '--at-once', '7', '--sbatch=--partition=long') == 0
    said = capsys.readouterr().out
    assert '2 tasks with 3 processors' in said and 'Submit them with: bash ' in said
    assert script.directive('array') == '0-1%7'
    assert script.directive('cpus-per-task') == '3'
    assert script.directive('partition') == 'long'
    assert script.directive('signal') == 'B:TERM@120'
    short = int(script.directive('time'))
    assert 15 < short <= 60
    small = int(script.directive('mem').removesuffix('M'))
    assert 1500 < small < 3000
    image, _ = ball(1)
    save(script.bids / 'sub-01/anat/sub-01_T1w.nii.gz', np.tile(image, (6, 6, 5)))
    assert script.write() == 0
    large = int(script.directive('mem').removesuffix('M'))
    assert small + 600 < large < small + 1350, '64 bytes a voxel'
    assert short < int(script.directive('time')) < 2 * short, 'voxels take a little time'
    assert script.write(options=('--reference', 'sub-03', '--steps', '5000')) == 0
    assert int(script.directive('time')) > 5 * short, 'steps take most of it'
    assert script.write('--mem', '10G', '--time', '1-00:00:00') == 0
    assert (script.directive('mem'), script.directive('time')) == ('9600M', '1-00:00:00')


def test_submitting(script, tmp_path):
    assert script.write('--sbatch=--account="my lab"') == 0
    script.program('sbatch', f'{RECORD}; echo "${{NUMBER:-12}};cluster"')
    done = script.run(RECORDED=str(tmp_path / 'r'))
    assert done.returncode == 0, done.stderr
    array, group = recorded(tmp_path / 'r')
    logs = f'{script.out}/logs/slurm'
    assert Path(logs).is_dir() and script.work.is_dir()
    assert array == [
        '--parsable',
        f'--output={logs.replace("%", "%%")}/%A_%a.log',
        str(script.path),
    ]
    assert '--dependency=afterany:12' in group and '--account=my lab' in group
    wrapped = group[-1].removeprefix('--wrap=')
    said = subprocess.run(
        ['sh', '-c', f'set -- {wrapped}; printf "%s|" "$@"'], capture_output=True
    )
    assert said.stdout.decode() == f'bash|{script.path}|group|', 'for any shell'


def _fake_python(script, body):
    """Let the script start something else in the place of nephi-pipe."""
    text = script.path.read_text()
    start = text.index('    exec ')
    end = text.index('\n', start)
    script.path.write_text(text[:start] + body + text[end:])


def test_a_task_and_the_group(script, tmp_path, monkeypatch):
    (script.folder / 'p q.json').write_text('{}')
    config = script.folder / 'c.toml'
    config.write_text('[thresholds]\ndice_after_min = 0.5\n')
    monkeypatch.chdir(script.folder)
    (script.folder / 'brain').touch()
    options = (
        '--reference', 'sub-03', '-d', 'seg=ds/derivatives/seg', '--bids-filter-file', 'p q.json',
        '--config-file', 'c.toml', '--no-affine', '-vv', '--participant-label', '01', '02',
    )  # fmt: skip
    assert script.write(options=options) == 0
    _fake_python(script, f'    {RECORD}; exit 7')
    task = {'SLURM_ARRAY_TASK_ID': '1', 'SLURM_ARRAY_JOB_ID': '5', 'SLURM_JOB_ID': '6'}
    done = script.run(RECORDED=str(tmp_path / 'r'), **task)
    assert done.returncode == 7 and 'sub-02 on ' in done.stdout, done.stderr
    done = script.run('group', RECORDED=str(tmp_path / 'r'))
    assert done.returncode == 7, done.stderr
    person, group = recorded(tmp_path / 'r')
    memory = next(word for word in person if word.startswith('--mem=')).removeprefix('--mem=')
    assert parse_memory(memory) == pytest.approx(1.95, abs=0.3)
    assert person == [
        str(script.bids), str(script.out), 'participant', '--participant-label', '02',
        '-w', str(script.work), f'--bids-filter-file={script.folder}/p q.json',
        '--derivatives', f'seg={script.bids}/derivatives/seg', '--reference=sub-03',
        '--no-affine', '--nprocs=2', f'--mem={memory}', '--plugin=MultiProc',
        f'--config-file={config}', '--verbose', '--verbose',
    ]  # fmt: skip
    assert parse_settings(person).participant_label == ('02',)
    assert group == [
        str(script.bids), str(script.out), 'group', '-w', str(script.work),
        f'--config-file={config}', '--verbose', '--verbose',
    ]  # fmt: skip


@pytest.mark.parametrize('name', ['session_pairs', 'pairs', 'weights'])
def test_files_among_the_options_are_absolute(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine').touch()
    option = f'--{name.replace("_", "-")}'
    assert to_arguments({name: 'mine'}) == [f'{option}={tmp_path}/mine']
    assert to_arguments({name: 'all'}) == [f'{option}=all']


def test_local_scratch_is_kept_when_a_task_stops(script, tmp_path):
    assert script.write('--local-scratch') == 0
    _fake_python(
        script,
        '    for word; do [[ ${before:-} == -w ]] && here=$word; before=$word; done\n'
        '    cat "$here/node" 2> /dev/null; echo kept > "$here/node"; exit "$CODE"',
    )
    task = {
        'SLURM_ARRAY_TASK_ID': '0', 'SLURM_ARRAY_JOB_ID': '5', 'SLURM_JOB_ID': '6',
        'TMPDIR': str(tmp_path), 'SLURM_TMPDIR': '',
    }  # fmt: skip
    kept = script.work / 'scratch' / 'sub-01'
    first = script.run(CODE='1', **task)
    assert first.returncode == 1 and 'kept' not in first.stdout, first.stderr
    assert (kept / 'node').read_text() == 'kept\n'
    second = script.run(CODE='0', **task)
    assert second.returncode == 0 and 'kept' in second.stdout
    assert not list(tmp_path.glob('nephi_*'))
    assert not list(kept.parent.iterdir()), 'it is not needed any more'


@pytest.mark.parametrize('engine', ['apptainer', 'singularity'])
def test_in_a_container(tmp_path, monkeypatch, engine):
    """The engine itself is not to be had here: what it would be called with."""
    script = Script.__new__(Script)
    script.folder = tmp_path / "it's $1"
    script.bids = make_dataset(script.folder / 'ds', ['01', '02'])
    script.out, script.work = script.folder / 'ds/derivatives/nephi', script.folder / 'w'
    script.path, image = script.folder / 'array.sh', script.folder / 'nephi.sif'
    image.touch()
    other = save(tmp_path / 'elsewhere' / 'fixed.nii.gz', ball(3)[0])
    seg, config = script.bids / 'derivatives/seg', tmp_path / 'more.toml'
    config.write_text(f'[derivatives]\nseg = "{seg}"\n')
    options = ('--reference', str(other), '--device', 'cuda', '--config-file', str(config))
    assert script.write('--image', str(image), options=options) == 0
    assert script.directive('gres') == 'gpu:1'
    names = ('CPUS_PER_TASK', 'MEM_PER_NODE')
    inside = ''.join(f'echo "${engine.upper()}ENV_SLURM_{name}";' for name in names)
    script.program(engine, f'{RECORD}; {inside}')
    task = {'SLURM_ARRAY_TASK_ID': '0', 'SLURM_ARRAY_JOB_ID': '5', 'SLURM_JOB_ID': '6'}
    granted = {'SLURM_CPUS_PER_TASK': '2', 'SLURM_MEM_PER_NODE': '3000'}
    done = script.run(RECORDED=str(tmp_path / 'r'), **task, **granted)
    assert done.returncode == 0 and done.stdout.endswith('2\n3000\n'), done.stderr
    (call,) = recorded(tmp_path / 'r')
    split = call.index(str(image))
    bound = [call[i + 1] for i, word in enumerate(call[:split]) if word == '--bind']
    read = (config, script.bids, other, seg)
    assert sorted(bound[:-2]) == sorted(f'{path}:{path}:ro' for path in read)
    assert bound.index(f'{script.bids}:{script.bids}:ro') < bound.index(f'{seg}:{seg}:ro')
    assert bound[-2:] == [str(script.out), str(script.work)]
    assert {'--cleanenv', '--nv'} <= set(call[:split])
    assert call[split + 1 : split + 3] == ['nephi-pipe', str(script.bids)]


@pytest.mark.parametrize(
    ('line', 'words'),
    [('use_plugin = "p.yml"', 'has use_plugin'), ('dry_run = true', 'nephi-pipe --dry-run')],
)
def test_a_configuration_that_is_not_for_an_array(script, tmp_path, capsys, line, words):
    config = tmp_path / 'c.toml'
    config.write_text(f'[settings]\n{line}\n')
    options = ('--reference', 'sub-03', '--config-file', str(config))
    assert script.write(options=options) == 64
    assert words in capsys.readouterr().err and not script.path.exists()


def test_no_engine_on_the_node(script, tmp_path):
    image = tmp_path / 'nephi.sif'
    image.touch()
    script.folder = tmp_path / 'plain'
    script.bids = make_dataset(script.folder / 'ds', ['01', '02'])
    script.out, script.work = script.folder / 'out', script.folder / 'w'
    script.path = script.folder / 'array.sh'
    assert script.write('--image', str(image), options=('--reference', 'sub-02')) == 0
    done = script.run(SLURM_ARRAY_TASK_ID='0', SLURM_ARRAY_JOB_ID='5', SLURM_JOB_ID='6')
    assert done.returncode == 127 and 'no apptainer and no singularity' in done.stderr


def test_pairs_of_all_with_all(script):
    assert script.write(options=('--pairs', 'all')) == 0
    assert script.directive('array') == '0-1', 'sub-03 moves to nobody'
    base = [str(script.bids), str(script.out), 'participant', '-w', str(script.work)]
    table = ['--pairs', str(script.folder / 'array_pairs.tsv')]
    each = [
        pair.name
        for label in ('01', '02')
        for pair in select_pairs(parse_settings([*base, *table, '--participant-label', label]))
    ]
    together = select_pairs(parse_settings([*base, '--pairs', 'all']))
    assert each == [pair.name for pair in together] and len(each) == 3


@pytest.mark.parametrize(
    ('more', 'options', 'code', 'words'),
    [
        ((), ('--reference', 'sub-99'), 18, 'sub-99'),
        ((), ('--no-such-option',), 64, 'unrecognized arguments'),
        ((), ('group',), 64, 'Only options of nephi-pipe'),
        ((), ('--nprocs', '3'), 64, 'expected --cpus, before the --'),
        ((), ('--dry-run',), 64, '--dry-run is not passed on'),
        ((), ('--use-plugin', 'x'), 64, '--use-plugin is not passed on'),
        (('--time', 'soon'), (), 64, "--time is 'soon'"),
        (('--mem', 'lots'), (), 64, '"lots" is not an amount of memory'),
        (('--cpus', '0'), (), 64, 'whole number of 1 or more'),
        (('--sbatch=partition'), (), 64, 'expected one option of sbatch'),
        (('--sbatch=--array=0-0'), (), 64, "--sbatch has '--array=0-0'"),
        (("--sbatch=--comment='a"), (), 64, '--sbatch cannot be split into words'),
        ((), ('--initial-transform', '/no.txt'), 66, 'no file "/no.txt"'),
        (('--image', '/nowhere.sif'), (), 66, 'no image "/nowhere.sif"'),
        (('--image', '/bin/sh'), (), 64, 'which a container cannot bind'),
    ],
)
def test_what_is_refused(script, more, options, code, words, capsys):
    more = (more,) if isinstance(more, str) else more
    assert script.write(*more, options=options or ('--reference', 'sub-03')) == code
    said = capsys.readouterr().err
    assert words in said and 'Traceback' not in said
    assert not script.path.exists()
