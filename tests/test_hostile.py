"""Damaged and malicious files, and names made to be misread, are refused or shown as they are."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hostile
import hostile_fields  # noqa: F401  (adds its cases)
import hostile_files
import hostile_makers
import numpy as np
import pytest
from bids_data import describe, make_dataset, touch
from report_data import HOSTILE, check_page, chromium, rendered

from nephi_pipe import cli
from nephi_pipe.bids_app.dataset import check_output, write_dataset_files
from nephi_pipe.bids_app.pairs import select_pairs
from nephi_pipe.bids_app.preflight import check_dataset
from nephi_pipe.bids_app.settings import Settings
from nephi_pipe.errors import InputDataError, NoInputError, OutputError, one_line
from nephi_pipe.overlap import hd95_mm

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
GROUPS = {'light': hostile.LIGHT, 'heavy': hostile.HEAVY}
QUICK, LONG = 15, 1500
"""Examples of each kind of file."""

LONGEST_S = 1200
"""A run that takes longer hangs."""


def names(group: str, door: bool) -> list[str]:
    if door:
        return [one.name for one in GROUPS[group]]
    return [case for case, _ in hostile_files.cases(group)]


def try_group(group: str, examples: int) -> dict[str, str]:
    """What went wrong with each case; a process of its own, since a library may crash it."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(HERE)}
    run = subprocess.run(
        [sys.executable, str(HERE / 'hostile.py'), group, str(examples)],
        capture_output=True, text=True, timeout=LONGEST_S, env=environment,
    )  # fmt: skip
    found: dict[str, str] = {}
    for line in run.stdout.splitlines():
        case, problem = json.loads(line)
        if case == 'begin':
            found[problem] = f'the process ended with {run.returncode}\n{run.stderr[-3000:]}'
        else:
            found[case] = problem
    return found


@pytest.fixture(scope='module')
def light():
    return try_group('light', QUICK)


@pytest.fixture(scope='module')
def heavy():
    return try_group('heavy', QUICK)


@pytest.mark.parametrize('case', names('light', True) + names('light', False))
def test_damaged_files(case, light):
    assert light.get(case, 'was not tried') == ''


@pytest.mark.parametrize('case', names('heavy', True) + names('heavy', False))
def test_damaged_fields_and_weights(case, heavy):
    assert heavy.get(case, 'was not tried') == ''


@pytest.mark.slow
@pytest.mark.parametrize('group', GROUPS)
def test_thousands_of_damaged_files(group):
    found = try_group(group, LONG)
    assert {case: problem for case, problem in found.items() if problem} == {}
    assert set(found) == {*names(group, True), *names(group, False)}


def test_a_training_that_was_tampered_with_is_not_resumed(tmp_path):
    import copy

    import torch

    from nephi_pipe.training.checkpoint import read_tensors, write_tensors
    from nephi_pipe.training.config import TrainingConfig
    from nephi_pipe.training.state import STATE, STATE_FORMAT, State

    model = hostile_makers.small_model()
    optimiser = torch.optim.Adam(model.parameters())
    config = TrainingConfig.of('brain')
    state = State(tmp_path, model, copy.deepcopy(model), optimiser, config, [])
    state.save()
    header, tensors = read_tensors(tmp_path / STATE, STATE_FORMAT)
    state.restore()
    moments = {'step': torch.zeros(()), 'exp_avg': torch.zeros(3), 'exp_avg_sq': torch.zeros(3)}
    for change, more in (
        ({'history': 5}, {}),
        ({'history': [1]}, {}),
        ({'settings': []}, {}),
        ({'step': -1}, {}),
        ({'step': 1 << 70}, {}),
        ({'rows': None}, {}),
        ({'best': []}, {}),
        ({}, {f'adam.0.{name}': value for name, value in moments.items()}),
        ({}, {f'adam.999.{name}': value for name, value in moments.items()}),
        ({}, {'nothing': torch.zeros(3)}),
        ({}, {'foreign.weights': torch.zeros(3)}),
    ):
        write_tensors(tmp_path / STATE, STATE_FORMAT, {**header, **change}, {**tensors, **more})
        with pytest.raises(InputDataError, match='does not hold what its header says'):
            state.restore()


def test_labels_in_the_billions_take_no_memory_for_each():
    labels = np.zeros((9, 3, 3), dtype=np.int32)
    labels[1], labels[7] = 2**31 - 1, 5
    found = hd95_mm(labels, np.roll(labels, 1, axis=0), np.array([2.0, 1.0, 1.0]))
    assert found == {5: 2.0, 2**31 - 1: 2.0}


def test_messages_are_one_line_that_a_terminal_only_shows(tmp_path, capsys):
    name = 'a\nnephi_pipe.errors.OutputError: no\x1b]0;x\x07\u202e.nii.gz'
    (tmp_path / name).write_bytes(b'x')
    arguments = ['register', str(tmp_path / name), str(tmp_path / name), '-o', str(tmp_path)]
    assert cli.main(arguments) == 65
    message = capsys.readouterr().err
    assert message.count('\n') == 1 and message[:-1].isprintable()
    assert len(str(InputDataError('x' * 10**7))) < 5000
    assert one_line('Grüße, "日本.nii"') == 'Grüße, "日本.nii"'


def calls() -> set[str]:
    """Names of everything that our code calls or imports, with the attributes' owners."""
    found = set()
    for room in ('nephi_pipe', 'workflows', 'bids_app'):
        for path in (ROOT / room).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
                if isinstance(node, ast.Call):
                    found.add(ast.unparse(node.func))
                    found |= {f'{key.arg}={ast.unparse(key.value)}' for key in node.keywords}
                elif isinstance(node, ast.Import | ast.ImportFrom):
                    names = [getattr(node, 'module', None) or '', *(a.name for a in node.names)]
                    found |= {f'import {name}' for name in names}
    return found


def test_nothing_that_we_read_is_run():
    """No pickles, no evaluated text, no shell."""
    found = calls()
    assert 'subprocess.run' in found
    forbidden = {
        'eval', 'exec', 'torch.load', 'torch.save', 'np.load', 'np.fromregex', 'os.system',
        'os.popen', 'yaml.load', 'allow_pickle=True', 'shell=True', 'import pickle',
        'import CommandLine', 'import joblib', 'import dill', 'import marshal', 'import shelve',
    }  # fmt: skip
    assert found & forbidden <= {'import pickle'}
    # A job of SLURM and its run hand nodes to each other in the work folder, as Nipype does.
    paths = [
        p for room in ('nephi_pipe', 'workflows', 'bids_app') for p in (ROOT / room).rglob('*.py')
    ]
    found = {p.name for p in paths if '\nimport pickle' in p.read_text(encoding='utf-8')}
    assert found == {'slurm.py', 'slurm_job.py'}


DESCRIPTIONS = {
    'a list': '[]',
    'a word': '"x"',
    'nothing': '',
    'no JSON': '{',
    'other bytes': '\xff',
    'levels without end': '[' * 100_000,
    'nine hundred levels': '{"Name":' * 900 + '1' + '}' * 900,
    'a derivative of numbers': '{"DatasetType": "derivative", "GeneratedBy": [1, 2]}',
    'a derivative of a number': '{"DatasetType": "derivative", "GeneratedBy": 7}',
    'fields of other types': '{"Name": 5, "GeneratedBy": {}, "License": NaN, "DatasetDOI": []}',
    'a pipe': None,
}


@pytest.mark.parametrize('what', DESCRIPTIONS)
@pytest.mark.parametrize('where', ['.', 'derivatives/seg'])
def test_descriptions_of_data_sets(what, where, tmp_path):
    """They are used or refused; what pybids and a later run read of ours is used too."""
    touch(tmp_path / 'ds', [f'sub-{one}/anat/sub-{one}_T1w.nii.gz' for one in ('01', '02')])
    touch(tmp_path / 'ds/derivatives/seg', ['sub-01/anat/sub-01_dseg.nii.gz'])
    describe(tmp_path / 'ds'), describe(tmp_path / 'ds/derivatives/seg')
    path = tmp_path / 'ds' / where / 'dataset_description.json'
    path.unlink()
    if DESCRIPTIONS[what] is None:
        os.mkfifo(path)
    else:
        path.write_text(DESCRIPTIONS[what], encoding='latin-1')
    settings = Settings(
        tmp_path / 'ds',
        tmp_path / 'out',
        reference='sub-01',
        derivatives={'seg': tmp_path / 'ds/derivatives/seg'},
        work_dir=tmp_path / 'work',
    )
    try:
        assert len(select_pairs(settings)) == 1
    except (InputDataError, NoInputError) as error:
        hostile.check_sentence(error)
        assert str(path.parent) in str(error)
        return
    check_dataset(tmp_path / 'ds')
    write_dataset_files(settings, 'run', 'now')
    check_output(tmp_path / 'out')


@pytest.mark.parametrize('what', [what for what in DESCRIPTIONS if DESCRIPTIONS[what]])
def test_an_output_folder_of_somebody_else_is_refused(what, tmp_path):
    path = tmp_path / 'dataset_description.json'
    path.write_text(DESCRIPTIONS[what], encoding='latin-1')
    with pytest.raises(OutputError, match='holds another data set'):
        check_output(tmp_path)


# data sets whose names are made to be misread

NAME = 'a \'b\' "c" $(touch pwned) `touch pwned` ; touch pwned #\n-rf * <i>&amp;é日'

LABELS = (
    '</script><script>alert(1)</script>', '<img src=x onerror=alert(2)>', '$(touch pwned)', '-rf'
)  # fmt: skip


def hostile_dataset(folder: Path) -> tuple[Path, Path]:
    """A data set of two people in a folder of that name, and a folder for results beside it."""
    dataset = make_dataset(folder / NAME / '-ds', people=('01', '02'))
    rows = ['index\tname', *(f'{i}\t{name}' for i, name in enumerate(LABELS, start=1))]
    rows += ['²\tx', '9' * 5000 + '\ty']
    (dataset / 'derivatives/seg/desc-ball_dseg.tsv').write_text('\n'.join(rows))
    describe(dataset, name=HOSTILE, License='<b>', Authors=HOSTILE)
    for name in ('sub-$(touch pwned)', 'sub-<script>', "sub-'; touch pwned", 'sub-..'):
        (dataset / name / 'anat').mkdir(parents=True)
    return dataset, folder / NAME / 'out'


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """The run of the whole app on it, and everything that was there afterwards."""
    folder = tmp_path_factory.mktemp('hostile')
    dataset, output = hostile_dataset(folder)
    dot = folder / 'bin' / 'dot'
    dot.parent.mkdir()
    dot.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/arguments"\n')
    dot.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{dot.parent}:{os.environ["PATH"]}'}
    run = subprocess.run(
        [
            sys.executable, '-m', 'nephi_pipe.bids_app.cli', str(dataset), str(output),
            'participant', 'group', '--reference', 'sub-01', '--sloppy', '--steps', '4',
            '--nprocs', '1', '--xfm-grid', '8', '--write-graph', '-w', str(folder / NAME / 'work'),
            '--derivatives', f'seg={dataset}/derivatives/seg',
        ],
        capture_output=True, text=True, cwd=folder, timeout=LONGEST_S, env=environment,
    )  # fmt: skip
    return folder, output, run


@pytest.mark.slow
def test_a_data_set_of_hostile_names_is_registered(results):
    folder, output, run = results
    assert run.returncode == 0, run.stdout + run.stderr
    assert [path for path in folder.rglob('*') if path.name == 'pwned'] == []
    assert 'Traceback' not in run.stderr
    drawn = (folder / 'bin' / 'arguments').read_text()
    assert drawn.startswith('-Tsvg\n-o') and NAME in drawn
    (metrics,) = output.glob('sub-02/anat/*_metrics.json')
    assert json.loads(metrics.read_text())['dice']['after']['labels']
    assert json.loads((output / 'dataset_description.json').read_text())['License'] == '<b>'


@pytest.mark.slow
def test_its_pages_show_what_they_must_not_run(results):
    _, output, _ = results
    person = check_page(output / 'sub-02.html')
    assert all(label in person.text for label in LABELS)
    assert 'sub-02 → sub01' in check_page(output / 'group_desc-nephi_report.html').text


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason='no Chromium')
def test_its_pages_run_nothing_in_a_browser(results, tmp_path):
    """With the policy taken out: escaping alone must do."""
    _, output, _ = results
    trap = '<script>window.alert = () => document.body.setAttribute("data-" + "hit", "1")</script>'
    unescaped = '<main><script>alert(1)</script></main>'
    (tmp_path / 'control.html').write_text(f'<html><head>{trap}</head><body>{unescaped}</body>')
    for name in ('sub-02.html', 'group_desc-nephi_report.html'):
        html = (output / name).read_text(encoding='utf-8')
        html = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', lambda _: trap, html)
        assert trap in html
        (tmp_path / name).write_text(html, encoding='utf-8')
        shown = rendered(tmp_path / name, tmp_path)
        assert '<main>' in shown and 'data-hit' not in shown
    assert 'data-hit' in rendered(tmp_path / 'control.html', tmp_path)


@pytest.mark.slow
def test_report_of_single_files_shows_their_names(tmp_path):
    dataset = make_dataset(tmp_path / 'ds')
    names = ['<script>alert(1)</script>.nii.gz', '\'"><img src=x onerror=alert(2)>.nii.gz']
    names = [name.replace('/', '\u2044') for name in names]
    for name, person in zip(names, ('01', '02'), strict=True):
        (dataset / f'sub-{person}/anat/sub-{person}_T1w.nii.gz').rename(tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    output = tmp_path / '-o <out>'
    options = ['--report', '--weights', 'none', '--steps', '2', '--threads', '1']
    assert cli.main(['register', *paths, '-o', str(output), *options]) == 0
    page = check_page(output / 'report.html')
    assert all(name in page.text for name in names)
