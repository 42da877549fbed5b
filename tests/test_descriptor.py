"""The Boutiques descriptor: valid, complete, and made into command lines that our parser takes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nephi_pipe import __version__, errors
from nephi_pipe.bids_app.cli import build_parser, main, parse_settings
from nephi_pipe.bids_app.descriptor import describe_parser
from nephi_pipe.demo import DATASET, LABELS, REFERENCE

SPECIFIED = {'AnalysisLevel', 'Help', 'InputDataset', 'OutputLocation', 'ToolVersion'}


@pytest.fixture(scope='module')
def descriptor():
    return describe_parser(build_parser())


@pytest.fixture
def bosh(tmp_path, descriptor):
    """Boutiques' own command, on the descriptor and an invocation."""
    pytest.importorskip('boutiques', reason='boutiques is not installed')
    (tmp_path / 'nephi_pipe.json').write_text(json.dumps(descriptor))

    def run(*arguments, invocation=None):
        (tmp_path / 'invocation.json').write_text(json.dumps(invocation))
        # It is a command, rather than a function, by the name that it is called by.
        code = (
            'import sys; from boutiques.bosh import bosh; sys.argv[0] = "bosh"; sys.exit(bosh())'
        )
        bin_folder = Path(sys.executable).parent
        done = subprocess.run(
            [sys.executable, '-c', code, *arguments],
            cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
            env={**os.environ, 'HOME': str(tmp_path),
                 'PATH': f'{bin_folder}{os.pathsep}{os.environ["PATH"]}'},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def simulate(bosh, invocation):
    """The arguments of the command line that Boutiques makes."""
    printed = bosh('exec', 'simulate', 'nephi_pipe.json', '-i', 'invocation.json',
                   invocation=invocation)  # fmt: skip
    (line,) = [each for each in printed.splitlines() if each.startswith('nephi-pipe ')]
    return shlex.split(line)[1:]


def test_what_the_specification_wants_is_there(descriptor):
    inputs = {each['id']: each for each in descriptor['inputs']}
    assert set(inputs) >= SPECIFIED | {'SubjectLabel', 'SessionLabel'}
    assert inputs['AnalysisLevel']['value-choices'] == ['subject', 'dataset']
    assert [key for key, each in inputs.items() if not each['optional']] == [
        'InputDataset', 'OutputLocation', 'AnalysisLevel',
    ]  # fmt: skip
    assert descriptor['custom']['BIDSApplicationVersion']
    assert descriptor['tool-version'] == __version__


def test_every_option_is_described_once(descriptor):
    flags = [each['command-line-flag'] for each in descriptor['inputs'] if each['optional']]
    options = {max(a.option_strings, key=len) for a in build_parser()._actions if a.option_strings}
    assert sorted(flags) == sorted(options - {'--bids-exec-spec'})
    keys = [each['value-key'] for each in descriptor['inputs']]
    assert descriptor['command-line'].split()[1:] == sorted(
        keys, key=descriptor['command-line'].find
    )
    members = [member for group in descriptor['groups'] for member in group['members']]
    assert sorted(members) == sorted(each['id'] for each in descriptor['inputs'])


def test_every_exit_code_is_explained(descriptor):
    codes = {each['code']: each['description'] for each in descriptor['error-codes']}
    raised = {error.exit_code for error in vars(errors).values() if isinstance(error, type)}
    assert set(codes) == raised | {0}
    assert codes[errors.NoInputError.exit_code] == errors.NoInputError.__doc__
    assert all(codes.values())


def test_the_command_prints_it_without_other_arguments(descriptor, capsys):
    with pytest.raises(SystemExit) as end:
        main(['--bids-exec-spec'])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == descriptor


def test_boutiques_finds_it_valid(bosh):
    assert bosh('validate', 'nephi_pipe.json').strip() == 'OK'


def test_command_lines_of_boutiques_are_understood(bosh, tmp_path):
    invocation = {
        'InputDataset': ['/data/my set'],
        'OutputLocation': "/out/it's here",
        'AnalysisLevel': ['subject', 'dataset'],
        'SubjectLabel': ['41', '43'],
        'Derivatives': ['a=/data/a b', 'b=/data/b'],
        'Reference': 'sub-45',
        'Steps': 3,
        'Mem': '7500M',
        'NoAffine': True,
        'Sloppy': False,
        'Verbose': True,
        'WorkDir': '/work',
        'XfmFormat': 'nii',
    }
    settings = parse_settings(simulate(bosh, invocation))
    assert settings == parse_settings([
        '/data/my set', "/out/it's here", 'participant', 'group',
        '--participant-label', '41', '43', '-d', 'a=/data/a b', 'b=/data/b',
        '--reference', 'sub-45', '--steps', '3', '--mem', '7.5G', '--no-affine', '-v',
        '-w', '/work', '--xfm-format', 'nii',
    ])  # fmt: skip


def test_boutiques_refuses_another_level(bosh, tmp_path):
    bad = {'InputDataset': ['x'], 'OutputLocation': 'y', 'AnalysisLevel': ['run']}
    with pytest.raises(AssertionError, match='AnalysisLevel'):
        simulate(bosh, bad)


@pytest.mark.slow
def test_boutiques_runs_the_command(bosh, tmp_path):
    """``bosh exec launch`` on the demo; the plan of the run shows that it understood."""
    invocation = {
        'InputDataset': [str(DATASET)],
        'OutputLocation': str(tmp_path / 'out'),
        'AnalysisLevel': ['subject'],
        'SubjectLabel': ['41'],
        'Derivatives': [f'meshnet={LABELS}'],
        'Reference': REFERENCE,
        'DryRun': True,
    }
    printed = bosh('exec', 'launch', '--no-container', '--skip-data-collection',
                   'nephi_pipe.json', 'invocation.json', invocation=invocation)  # fmt: skip
    assert 'sub-41/anat/sub-41_from-T1w_to-sub45_mode-image_xfm.h5' in printed
    assert 'Everything that was asked for is done.' in printed
