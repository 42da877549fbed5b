"""Whole runs of ``nephi-pipe`` around a stub of the registration, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bids_stub
import numpy as np
import pytest
from bids_data import affine, ball, describe, save
from bids_runs import STUB, check_valid, wait_for

from nephi_pipe.bids_app import derivatives
from nephi_pipe.bids_app.dataset import container, read_json
from nephi_pipe.bids_app.outcome import conclude, read_crash
from nephi_pipe.files import sha256


def test_files_of_a_run(app):
    code, said = app.run()
    assert code == 0, said
    assert '2 of 2 pairs finished.' in said
    assert 'sub-01 to sub03: finished' in said and 'Dice 0.500 -> 0.750' in said
    own = {
        f'sub-{n}/anat/sub-{n}_{name}'
        for n in ('01', '02')
        for name in (
            'from-T1w_to-sub03_mode-image_xfm.h5', 'from-T1w_to-sub03_mode-image_xfm.json',
            'from-sub03_to-T1w_mode-image_xfm.h5', 'from-sub03_to-T1w_mode-image_xfm.json',
            'space-sub03_desc-nephi_T1w.nii.gz', 'space-sub03_desc-nephi_T1w.json',
            'space-sub03_desc-nephi_dseg.nii.gz', 'space-sub03_desc-nephi_dseg.json',
            'space-sub03_desc-nephi_dseg.tsv', 'space-sub03_desc-nephi_jacobian.nii.gz',
            'space-sub03_desc-nephi_jacobian.json', 'space-sub03_desc-nephi_metrics.json',
        )
    }  # fmt: skip
    shared = {'dataset_description.json', '.bidsignore', 'descriptions.tsv', 'README.md',
              'logs/CITATION.md', 'sub-01.html', 'sub-02.html'}  # fmt: skip
    logs = {name for name in app.files() if name.endswith(('.toml', '.log'))}
    assert len(logs) == 2
    assert app.files() - logs == own | shared


def test_sidecars_metrics_and_descriptions(app):
    assert app.run('--random-seed', '7')[0] == 0
    anat = app.out / 'sub-01' / 'anat'
    warped = read_json(anat / 'sub-01_space-sub03_desc-nephi_T1w.json')
    assert warped['SpatialReference'] == 'bids:raw:sub-03/anat/sub-03_T1w.nii.gz'
    assert warped['SkullStripped'] is True
    assert warped['Sources'][0] == 'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
    labels = read_json(anat / 'sub-01_space-sub03_desc-nephi_dseg.json')
    assert labels['Sources'][-1] == 'bids:seg:sub-01/anat/sub-01_desc-ball_dseg.nii.gz'
    transform = read_json(anat / 'sub-01_from-T1w_to-sub03_mode-image_xfm.json')
    assert (transform['FromSpace'], transform['ToSpace']) == ('sub01', 'sub03')
    assert transform['SpacingMm'] == 3.0, 'what the engine says is kept'
    inverse = read_json(anat / 'sub-01_from-sub03_to-T1w_mode-image_xfm.json')
    assert (inverse['FromSpace'], inverse['ToSpace']) == ('sub03', 'sub01')
    metrics = read_json(anat / 'sub-01_space-sub03_desc-nephi_metrics.json')
    assert metrics['moving'] == 'sub-01/anat/sub-01_T1w.nii.gz'
    assert metrics['fixed'] == 'sub-03/anat/sub-03_T1w.nii.gz'
    assert metrics['dice']['after']['mean'] == 0.75
    assert metrics['seconds'] == 1.5
    assert metrics['provenance']['seed'] == 7
    assert metrics['provenance']['checksums']['sub-01_T1w.nii.gz'] == sha256(app.t1w())
    description = read_json(app.out / 'dataset_description.json')
    assert description['DatasetType'] == 'derivative'
    assert description['GeneratedBy'][0]['Name'] == 'nephi_pipe'
    assert set(description['DatasetLinks']) == {'raw', 'seg'}
    ignored = (app.out / '.bidsignore').read_text().splitlines()
    assert 'figures' in ignored and not [line for line in ignored if line.endswith('/')]


def test_the_container_that_made_it_is_named(tmp_path):
    image = {'NEPHI_IMAGE': 'nephi_pipe:1.2.3'}
    assert container({}, tmp_path) == {}
    assert container(image, tmp_path) == {'Container': {'Tag': 'nephi_pipe:1.2.3'}}
    named = container({**image, 'APPTAINER_CONTAINER': '/images/nephi.sif'}, tmp_path)
    assert named == {'Container': {'Type': 'apptainer', 'Tag': 'nephi_pipe:1.2.3'}}
    (tmp_path / '.dockerenv').touch()
    assert container(image, tmp_path)['Container']['Type'] == 'docker'


def test_settings_of_a_run_repeat_it(app):
    assert app.run('--random-seed', '7', '--participant-label', '02')[0] == 0
    toml = next((app.out / 'logs').glob('*.toml'))
    again = [str(app.bids), str(app.out) + '2', 'participant', '--config-file', str(toml)]
    assert bids_stub.main(again) == 0
    first, second = (Path(str(app.out) + end) for end in ('', '2'))
    name = 'sub-02/anat/sub-02_space-sub03_desc-nephi_metrics.json'
    assert read_json(first / name) == read_json(second / name)
    assert not (second / 'sub-01').exists()


@pytest.mark.parametrize(('kind', 'end'), [('nii', '.nii.gz'), ('field', '.safetensors')])
def test_formats_of_transforms(app, kind, end):
    assert app.run('--xfm-format', kind, '--participant-label', '01')[0] == 0
    assert (app.out / f'sub-01/anat/sub-01_from-T1w_to-sub03_mode-image_xfm{end}').exists()


def test_another_format_replaces_the_first(app):
    assert app.run('--participant-label', '01')[0] == 0
    for kind, end in (('nii', '.nii.gz'), ('field', '.safetensors'), ('h5', '.h5')):
        assert app.run('--participant-label', '01', '--xfm-format', kind)[0] == 0
        found = [path.name for path in (app.out / 'sub-01/anat').glob('*_xfm.*')]
        assert len(found) == 4 and len([name for name in found if name.endswith(end)]) == 2


def test_what_another_registration_left_is_removed(app):
    assert app.run('--participant-label', '01')[0] == 0
    picture = app.out / 'sub-01/figures/sub-01_space-sub03_desc-landmarks_T1w.png'
    picture.parent.mkdir(exist_ok=True)
    picture.touch()
    kept = app.out / 'sub-01/figures/sub-01_space-sub04_desc-landmarks_T1w.png'
    kept.touch()
    line = app.line('--participant-label', '01', '--xfm-format', 'nii', '--random-seed', '7')
    start = line.index('--derivatives')
    assert bids_stub.main(line[:start] + line[start + 2 :]) == 0
    found = {path.name for path in (app.out / 'sub-01/anat').iterdir()}
    assert 'sub-01_from-T1w_to-sub03_mode-image_xfm.nii.gz' in found
    assert not [name for name in found if name.endswith('.h5') or 'dseg' in name]
    assert not picture.exists() and kept.exists()


def test_the_same_command_again_computes_nothing(app):
    assert app.run()[0] == 0
    stamps = {p: p.stat().st_mtime_ns for p in (app.out / 'sub-01').rglob('*') if p.is_file()}
    ran = app.ran()
    code, said = app.run()
    assert code == 0 and app.ran() == ran
    assert 'sub-01 to sub03: finished (kept), Dice 0.500 -> 0.750' in said
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, 'nothing is written again'


def test_only_what_changed_is_computed_again(app):
    assert app.run()[0] == 0
    before = len(app.ran())
    image, _ = ball(9)
    save(app.t1w('02'), image)
    os.utime(app.t1w('01'))
    assert app.run()[0] == 0
    assert app.ran()[before:] == ['brain sub-02_T1w.nii.gz', 'register 02']
    assert app.run('--random-seed', '3', '--participant-label', '01')[0] == 0
    assert app.ran()[before + 2 :] == ['register 01']


def test_a_deleted_result_comes_back(app):
    assert app.run()[0] == 0
    path = app.out / 'sub-01/anat/sub-01_space-sub03_desc-nephi_T1w.nii.gz'
    content = path.read_bytes()
    path.unlink()
    before = app.ran()
    assert app.run()[0] == 0
    assert path.read_bytes() == content and app.ran() == before


def test_group_level_and_reports_only(app):
    code, said = app.run(levels=['participant', 'group'])
    assert code == 0, said
    assert (app.out / 'group_desc-nephi_metrics.tsv').read_text().count('\n') == 3
    page = app.out / 'sub-01.html'
    page.unlink()
    before = app.ran()
    assert app.run('--reports-only')[0] == 0
    assert page.exists() and app.ran() == before


def test_group_level_without_results(app):
    code, said = app.run(levels=['group'])
    assert code == 66 and 'expected the results of the participant level' in said


def test_a_dry_run_of_the_group_says_what_it_reads(app):
    assert app.run('--dry-run', levels=['group'])[0] == 66
    assert app.run()[0] == 0
    before = sorted(app.out.rglob('*'))
    code, said = app.run('--dry-run', levels=['group'])
    assert code == 0 and sorted(app.out.rglob('*')) == before
    assert f'Group level: 2 pairs in {app.out}.' in said and 'group_desc-nephi_metrics.tsv' in said


def test_dry_run_writes_nothing(app):
    code, said = app.run('--dry-run')
    assert code == 0
    assert not app.out.exists() and not app.work.exists()
    assert 'sub-01_T1w.nii.gz  sub-03_T1w.nii.gz' in said
    assert 'sub-01/anat/sub-01_from-T1w_to-sub03_mode-image_xfm.h5' in said
    for word in ('2 pairs', 'Memory:', 'Disk:', 'Time:'):
        assert word in said
    image, _ = ball(0)
    save(app.t1w(), np.stack([image] * 2, -1), affine())
    assert 'Cannot be registered: sub-01: ' in app.run('--dry-run')[1]
    template = bids_stub.main([str(app.bids), str(app.out), 'participant', '--dry-run'])
    assert template == 0 and not app.out.exists()


def test_dry_run_knows_how_long_pairs_took(app):
    assert app.run('--participant-label', '01')[0] == 0
    said = app.run('--dry-run')[1]
    assert 'from the median of 1 pair in the output folder' in said
    rows = [line.split() for line in said.splitlines() if line.startswith('sub-0')]
    assert [row[-1] for row in rows] == ['yes', 'no']


# ---- outputs ------------------------------------------------------------------------------------


def test_output_that_cannot_be_made(app):
    app.out.write_text('a file')
    code, said = app.run()
    assert code == 73 and f'Cannot create "{app.out}"' in said


def test_output_that_cannot_be_written(app):
    app.out.mkdir()
    app.out.chmod(0o500)
    try:
        if os.access(app.out, os.W_OK):
            app.out = Path('/sys/nephi_out')  # root may write everywhere but here
        code, said = app.run()
    finally:
        (app.bids.parent / 'out').chmod(0o700)
    assert code == 73 and 'Error: ' in said


def test_output_of_another_tool(app):
    describe(app.out, DatasetType='derivative', GeneratedBy=[{'Name': 'fMRIPrep'}])
    code, said = app.run()
    assert code == 73 and 'holds another data set (made by fMRIPrep)' in said


# ---- processes ----------------------------------------------------------------------------------


def test_a_killed_worker_ends_its_person_only(app):
    app.behave({'01': 'kill'})
    code, said = app.run()
    assert code == 1, said
    assert '1 of 2 pairs finished. Failed: sub-01.' in said
    assert 'was killed (SIGKILL), most probably because memory ran out' in said
    crash = list((app.out / 'sub-01' / 'log').glob('*/crash-*.txt'))
    assert len(crash) == 1 and 'SIGKILL' in crash[0].read_text()
    (log,) = (app.out / 'logs').glob('*.log')
    kept = log.read_text()
    assert 'Error: sub-01: The worker process that ran' in kept
    assert kept.endswith('Error: 1 of 2 pairs finished. Failed: sub-01.\n')
    assert (app.out / 'sub-02.html').exists() and not (app.out / 'sub-02/log').exists()
    app.behave({})
    assert app.run()[0] == 0, 'the same command goes on'


def test_a_mistake_of_the_program(app):
    app.behave({'01': 'fail'})
    code, said = app.run('--participant-label', '01')
    assert code == 1
    assert 'sub-01: The program failed with ValueError: an ordinary mistake.' in said


def test_stop_on_first_crash(app):
    app.behave({'01': 'fail'})
    code, said = app.run('--stop-on-first-crash', '--nprocs', '1')
    assert code == 1 and 'register 02' not in app.ran()


def test_the_same_person_in_two_runs_at_once(app):
    app.behave({'01': 'sleep'})
    first = app.start('--participant-label', '01')
    try:
        wait_for(lambda: 'register 01' in app.ran())
        code, said = app.run('--participant-label', '01')
        assert code == 75, said
        assert 'sub-01 is being processed by another run' in said
        assert app.run('--participant-label', '02')[0] == 0, 'other people may be'
    finally:
        first.kill()
        first.communicate()
    app.behave({})
    code, said = app.run('--participant-label', '01')
    assert code == 0, said


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_soon_and_keeps_what_is_done(app, number):
    app.behave({'02': 'sleep'})
    process = app.start()
    wait_for(lambda: 'register 02' in app.ran() and (app.out / 'sub-01.html').exists())
    begin = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 75, said
    assert time.monotonic() - begin < 10
    assert 'Stopped by a signal. 1 of 2 pairs finished and kept' in said
    assert not list((app.out / 'logs').glob('*.lock'))
    before = app.ran()
    app.behave({})
    assert app.run()[0] == 0
    assert app.ran()[len(before) :] == ['register 02']


def test_sigterm_while_results_are_stored(app, monkeypatch):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    with monkeypatch.context() as patch:
        patch.setattr(derivatives, 'store_pair', interrupted)
        code, said = app.run('--participant-label', '01')
    assert code == 75 and 'Stopped by a signal. 0 of 1 pair finished' in said
    assert app.run('--participant-label', '01')[0] == 0


def test_people_are_finished_one_after_the_other(app):
    assert app.run('--nprocs', '1')[0] == 0
    assert app.ran() == [
        'brain sub-01_T1w.nii.gz', 'register 01', 'brain sub-02_T1w.nii.gz', 'register 02'
    ]  # fmt: skip


def test_home_that_cannot_be_written(app, tmp_path):
    code = (
        'import os, sys\n'
        f'sys.path.insert(0, {str(STUB.parent)!r})\n'
        'from pathlib import Path\n'
        'from nephi_pipe.bids_app.run import _use_writable_home\n'
        f'_use_writable_home(Path({str(app.work)!r}))\n'
        'print(os.environ["HOME"], os.environ["MPLCONFIGDIR"], os.environ["XDG_CACHE_HOME"])\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True,
        env={**os.environ, 'HOME': '/nonexistent'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(word.startswith(str(app.work / 'home')) for word in done.stdout.split())
    assert (app.work / 'home').is_dir()


# ---- the rest -----------------------------------------------------------------------------------


def test_the_validator_accepts_the_output(app):
    assert app.run('--write-graph', levels=['participant', 'group'])[0] == 0
    check_valid(app.out)


def test_conclusions():
    assert conclude(done=3, total=3).message == '3 of 3 pairs finished.'
    assert conclude(error=OSError(28, 'No space left on device', '/x')).code == 74
    assert conclude(error=PermissionError(13, 'Permission denied', '/x')).code == 73
    assert conclude(error=KeyboardInterrupt()).code == 75
    assert conclude(error=ZeroDivisionError('division by zero')).code == 1
    assert conclude(done=1, total=2).code == 1


def test_crash_files_that_say_little(tmp_path):
    path = tmp_path / 'crash.txt'
    path.write_text('Node: a.b.c\nTraceback ...\n\ttorch.OutOfMemoryError: CUDA out of memory\n')
    node, sentence, code = read_crash(path)
    assert (node, code) == ('a.b.c', 1) and sentence.startswith('Memory ran out')
    path.write_text('')
    assert read_crash(path)[1] == 'The program failed with an unknown error.'
    assert read_crash(tmp_path / 'missing')[2] == 1
