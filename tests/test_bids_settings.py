"""Settings: defaults, files, the command line, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from nephi_pipe.bids_app.cli import main, parse_settings
from nephi_pipe.bids_app.device import check_device
from nephi_pipe.bids_app.resources import available_cpus, available_memory_gb
from nephi_pipe.bids_app.settings import (
    Settings,
    make_settings,
    parse_memory,
    read_settings,
    write_settings,
)
from nephi_pipe.errors import InputDataError, NoInputError, UnknownLevelError, UsageError

BASE = ['ds', 'out', 'participant']


def test_every_option_arrives(tmp_path):
    line = (
        f'{tmp_path}/ds {tmp_path}/out participant group --modality brain '
        '--participant-label sub-01 02 --participant-label 03 --session-label ses-a '
        '--bids-filter-file f.json --derivatives a=A b=B -d c=C=D --pairs all '
        '--whole-head --weights none --steps 7 --no-structures --no-affine '
        '--initial-transform a.txt '
        '--xfm-format nii --xfm-grid 2.5 --dry-run --nprocs 3 --omp-nthreads 2 --mem 7500M '
        f'--plugin Linear --use-plugin p.yml '
        f'-w {tmp_path}/w --device cuda:1 --random-seed 5 --sloppy --write-graph '
        '--stop-on-first-crash --skip-bids-validation --reports-only -vv'
    )
    assert parse_settings(line.split()) == Settings(
        bids_dir=tmp_path / 'ds', output_dir=tmp_path / 'out', levels=('participant', 'group'),
        modality='brain', participant_label=('01', '02', '03'), session_label=('a',),
        bids_filter_file=Path('f.json'),
        derivatives={'a': Path('A'), 'b': Path('B'), 'c': Path('C=D')},
        pairs='all', whole_head=True, weights='none', steps=7, structures=False, affine=False,
        initial_transform=Path('a.txt'), xfm_format='nii', xfm_grid='2.5', dry_run=True, nprocs=3,
        omp_nthreads=2, mem_gb=7.5, work_dir=tmp_path / 'w', device='cuda:1', random_seed=5,
        plugin='Linear', use_plugin=Path('p.yml'),
        sloppy=True, write_graph=True, stop_on_first_crash=True, skip_bids_validation=True,
        reports_only=True, verbose=2,
    )  # fmt: skip


def test_paths_lead_from_the_root(tmp_path, monkeypatch):
    """Nodes run in folders of their own, and a file of settings is used from any folder."""
    monkeypatch.chdir(tmp_path)
    for name in ('mine.safetensors', 'pairs.tsv'):
        (tmp_path / name).touch()
    line = (
        '--derivatives a=A --weights mine.safetensors --pairs pairs.tsv --initial-transform a.txt'
    )
    settings = parse_settings([*BASE, *line.split()])
    assert settings.weights == str(tmp_path / 'mine.safetensors')
    assert settings.pairs == str(tmp_path / 'pairs.tsv')
    assert settings.derivatives == {'a': tmp_path / 'A'}
    assert settings.initial_transform == tmp_path / 'a.txt'
    written = write_settings(tmp_path / 'run.toml', settings, {})
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    again = make_settings(
        {'bids_dir': settings.bids_dir, 'output_dir': settings.output_dir}, written
    )
    assert again == settings
    assert parse_settings([*BASE, '--weights', 'none']).weights == 'none'


def test_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse_settings(BASE)
    assert settings.bids_dir == tmp_path / 'ds'
    assert settings.work_dir == tmp_path / 'work'
    assert (settings.reference, settings.pairs) == ('MNI152', 'to-reference')
    assert settings.device == 'cpu'
    assert (settings.weights, settings.xfm_format, settings.xfm_grid) == ('default', 'h5', 'auto')
    assert settings.affine and settings.random_seed == 0 and settings.steps is None
    assert settings.nprocs == available_cpus()
    assert settings.omp_nthreads == min(settings.nprocs, 8)
    assert settings.mem_gb == available_memory_gb()


@pytest.mark.parametrize(
    ('arguments', 'code', 'words'),
    [
        (['ds'], 64, 'required'),
        ([*BASE, '--no-such-option'], 64, 'unrecognized arguments: --no-such-option'),
        ([*BASE, '--steps', 'many'], 64, "invalid int value: 'many'"),
        ([*BASE, '--xfm-format', 'mif'], 64, "invalid choice: 'mif'"),
        ([*BASE, '--derivatives', 'meshnet'], 64, 'expected NAME=PATH'),
        ([*BASE, '--derivatives', 'raw=meshnet'], 64, 'cannot be called "raw"'),
        ([*BASE, '--pairs', 'all', '--reference', 'sub-1'], 64, 'no meaning with --pairs all'),
        ([*BASE, '--mem', 'lots'], 64, '"lots" is not an amount of memory'),
        ([*BASE, '--nprocs', '0'], 64, 'nprocs is 0; expected 1 or more'),
        ([*BASE, '--xfm-grid', 'fine'], 64, 'expected auto, native or a spacing in mm'),
        (
            [*BASE, '--plugin', 'SLURMGraph'],
            64,
            'expected SLURM, or a job array, which nephi hpc-',
        ),
        ([*BASE, '--plugin', 'PBS'], 64, 'no plugin "PBS" in --plugin; expected one of MultiProc'),
        ([*BASE, '--device', 'tpu'], 64, 'expected auto, cpu, cuda or cuda:N'),
        ([*BASE, '--weights', 'none', '--steps', '0'], 64, 'the affine alone'),
        (['ds', 'out', 'participant', 'session'], 17, 'There is no analysis level "session"'),
        ([*BASE, '--config-file', 'missing.toml'], 66, 'There is no file "missing.toml"'),
        (['ds', 'ds', 'participant'], 64, 'is the input data set itself'),
        (['ds', 'ds/../ds/', 'participant'], 64, 'is the input data set itself'),
        (['ds', 'ds/sub-01/out', 'participant'], 64, "lies among the input's own data"),
        (['ds', 'ds/sourcedata/out', 'participant'], 64, "lies among the input's own data"),
        ([*BASE, '-w', 'ds/work'], 64, 'lies inside the input data set'),
        (['.', 'out', 'participant'], 64, 'lies inside the input data set'),
    ],
)
def test_refused_arguments(arguments, code, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith('nephi-pipe: ') and message.count('\n') == 1


def test_output_equal_to_input_through_a_link(tmp_path, capsys):
    (tmp_path / 'ds').mkdir()
    (tmp_path / 'link').symlink_to('ds')
    assert main([f'{tmp_path}/ds', f'{tmp_path}/link', 'participant']) == 64
    assert 'is the input data set itself' in capsys.readouterr().err


def test_derivatives_of_the_input_are_a_normal_output(tmp_path):
    line = f'{tmp_path}/ds {tmp_path}/ds/derivatives/nephi participant -w {tmp_path}/w'
    settings = parse_settings(line.split())
    assert settings.output_dir == tmp_path / 'ds' / 'derivatives' / 'nephi'


@pytest.mark.parametrize('option', ['--help', '--version'])
def test_quick_answers_load_nothing_heavy(option):
    code = (
        'import sys\n'
        'from nephi_pipe.bids_app.cli import main\n'
        'try:\n'
        f'    main([{option!r}])\n'
        'finally:\n'
        '    heavy = {"torch", "nipype", "bids", "numpy", "nibabel"} & set(sys.modules)\n'
        '    assert not heavy, heavy\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'nephi-pipe' in done.stdout


def test_toml_round_trip(tmp_path):
    settings = Settings(
        bids_dir=tmp_path / 'ds', output_dir=tmp_path / 'out', levels=('participant', 'group'),
        participant_label=('01', 'B2'), session_label=('a',), reference='sub-05', steps=7,
        derivatives={'prep': Path('/p q/"x"'), 'ä b': Path('/z\\y')}, affine=False, mem_gb=3.5,
        nprocs=2, omp_nthreads=1, thresholds={'dice': 0.5}, work_dir=tmp_path / 'w',
        initial_transform=Path('/a.txt'), sloppy=True,
    )  # fmt: skip
    path = write_settings(tmp_path / 's.toml', settings, {'name': 'r1', 'command': 'a "b"\n\x7f'})
    assert make_settings(
        {'bids_dir': settings.bids_dir, 'output_dir': settings.output_dir,
         'levels': settings.levels}, path
    ) == settings  # fmt: skip


def test_command_line_comes_before_the_file(tmp_path):
    path = tmp_path / 's.toml'
    path.write_text('[settings]\nreference = "sub-01"\nsteps = 3\nmem_gb = 4\n')
    settings = parse_settings([*BASE, '--config-file', str(path), '--steps', '9'])
    assert (settings.reference, settings.steps, settings.mem_gb) == ('sub-01', 9, 4.0)


@pytest.mark.parametrize(
    ('text', 'error', 'words'),
    [
        ('[settings]\nstep = 3\n', UsageError, '"step" that does not exist'),
        ('[setings]\nsteps = 3\n', UsageError, '"setings" that does not exist'),
        ('[settings]\nsteps = "3"\n', UsageError, "is '3'; expected a value of the type int"),
        ('[settings]\naffine = 1\n', UsageError, 'expected a value of the type bool'),
        ('steps: 3\n', InputDataError, 'is not TOML'),
    ],
)
def test_bad_configuration_files(tmp_path, text, error, words):
    path = tmp_path / 's.toml'
    path.write_text(text)
    with pytest.raises(error, match=words):
        read_settings(path)


def test_labels_from_a_file(tmp_path):
    people = tmp_path / 'people.txt'
    people.write_text('sub-01\n\n 02 \n')
    settings = parse_settings(
        [*BASE, '--participant-label', '07', str(people), '--session-label', 'a']
    )
    assert settings.participant_label == ('07', '01', '02')
    assert settings.session_label == ('a',)
    with pytest.raises(NoInputError, match=r'no file "x\.txt"; expected labels after'):
        parse_settings([*BASE, '--participant-label', 'x.txt'])


def test_levels_by_the_names_of_the_execution_specification():
    assert parse_settings(['ds', 'out', 'subject', 'dataset']).levels == ('participant', 'group')


def test_no_setting_is_lost_in_the_help():
    from nephi_pipe.bids_app.cli import build_parser

    options = {action.dest for action in build_parser()._actions}
    assert {item.name for item in fields(Settings)} - options == {'thresholds'}


def test_levels_are_checked_before_anything_else():
    with pytest.raises(UnknownLevelError):
        Settings(bids_dir='x', output_dir='x', levels=('everything',))


@pytest.mark.parametrize(
    ('text', 'gigabytes'), [('8', 8), ('8G', 8), ('8gb', 8), ('512M', 0.512), ('1.5T', 1500)]
)
def test_memory_sizes(text, gigabytes):
    assert parse_memory(text) == pytest.approx(gigabytes)


def test_device(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert check_device('auto') == 'cpu'
    with pytest.raises(UsageError, match='0 CUDA devices can be seen'):
        check_device('cuda')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    assert check_device('auto') == 'cuda'
    assert check_device('cuda:1') == 'cuda:1'
    with pytest.raises(UsageError, match='2 CUDA devices can be seen'):
        check_device('cuda:2')


def _fake_system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_limits_of_control_groups_version_2(tmp_path):
    root = _fake_system(
        tmp_path,
        {
            'proc/self/cgroup': '0::/user/job\n',
            'proc/meminfo': 'MemTotal:       64000000 kB\n',
            'sys/fs/cgroup/user/job/cpu.max': 'max 100000\n',
            'sys/fs/cgroup/user/cpu.max': '100000 100000\n',
            'sys/fs/cgroup/user/job/memory.max': '800000000\n',
            'sys/fs/cgroup/user/memory.max': 'max\n',
        },
    )
    assert available_cpus(root, {}) == 1
    assert available_memory_gb(root, {}) == pytest.approx(0.72)


def test_limits_of_control_groups_version_1(tmp_path):
    root = _fake_system(
        tmp_path,
        {
            'proc/self/cgroup': '5:cpu,cpuacct:/job\n3:memory:/job\n',
            'proc/meminfo': 'MemTotal:       64000000 kB\n',
            'sys/fs/cgroup/cpu/job/cpu.cfs_quota_us': '150000\n',
            'sys/fs/cgroup/cpu/job/cpu.cfs_period_us': '100000\n',
            'sys/fs/cgroup/memory/job/memory.limit_in_bytes': '400000000\n',
            'sys/fs/cgroup/memory/memory.limit_in_bytes': '9223372036854771712\n',
        },
    )
    assert available_cpus(root, {}) == 1
    assert available_memory_gb(root, {}) == pytest.approx(0.36)


def test_limits_of_a_slurm_job_in_version_2(tmp_path):
    job = 'system.slice/slurmstepd.scope/job_7'
    root = _fake_system(
        tmp_path,
        {
            'proc/self/cgroup': f'0::/{job}/step_batch/user/task_0\n',
            'proc/meminfo': 'MemTotal:       64000000 kB\n',
            f'sys/fs/cgroup/{job}/memory.max': '900000000\n',
            f'sys/fs/cgroup/{job}/step_batch/memory.high': 'max\n',
            f'sys/fs/cgroup/{job}/step_batch/user/cpu.max': '50000 100000\n',
        },
    )
    assert available_cpus(root, {'SLURM_CPUS_PER_TASK': '8'}) == 1
    assert available_memory_gb(root, {'SLURM_MEM_PER_NODE': '4000'}) == pytest.approx(0.81)


def test_limits_of_a_container_in_version_1(tmp_path):
    """The path is that of the host, and the container sees its own group as the top."""
    root = _fake_system(
        tmp_path,
        {
            'proc/self/cgroup': '5:cpu,cpuacct:/docker/1a2b\n3:memory:/docker/1a2b\n0::/\n',
            'proc/meminfo': 'MemTotal:       64000000 kB\n',
            'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
            'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
            'sys/fs/cgroup/memory/memory.limit_in_bytes': '500000000\n',
        },
    )
    assert available_cpus(root, {}) == available_cpus(tmp_path / 'nothing', {})
    assert available_memory_gb(root, {}) == pytest.approx(0.45)


def test_limits_of_slurm(tmp_path):
    root = _fake_system(tmp_path, {'proc/meminfo': 'MemTotal:       64000000 kB\n'})
    everything = available_cpus(root, {})
    assert available_cpus(root, {'SLURM_CPUS_PER_TASK': '1', 'SLURM_CPUS_ON_NODE': '64'}) == 1
    assert available_cpus(root, {'SLURM_CPUS_ON_NODE': '1'}) == 1
    assert available_cpus(root, {'SLURM_CPUS_PER_TASK': '4096'}) == everything
    assert (
        available_cpus(root, {'SLURM_CPUS_PER_TASK': '', 'SLURM_CPUS_ON_NODE': 'two'})
        == everything
    )
    per_node = available_memory_gb(root, {'SLURM_MEM_PER_NODE': '500'})
    assert per_node == pytest.approx(0.9 * 500 * 2**20 / 1e9, abs=0.01)
    per_cpu = available_memory_gb(root, {'SLURM_MEM_PER_CPU': '300', 'SLURM_CPUS_PER_TASK': '1'})
    assert per_cpu == pytest.approx(0.9 * 300 * 2**20 / 1e9, abs=0.01)
    on_node = available_memory_gb(root, {'SLURM_MEM_PER_CPU': '300', 'SLURM_CPUS_ON_NODE': '4'})
    assert on_node == pytest.approx(0.9 * 1200 * 2**20 / 1e9, abs=0.01)
    whole_node = available_memory_gb(root, {'SLURM_MEM_PER_NODE': '0'})
    assert whole_node == available_memory_gb(root, {})
