"""What is computed again, and what the work folder keeps, for whom."""

from __future__ import annotations

import shutil

import pytest

from nephi_pipe.bids_app import dataset, settings
from nephi_pipe.bids_app.dataset import read_json
from nephi_pipe.bids_app.lock import hold
from nephi_pipe.files import remove_leftovers

METRICS = 'sub-01/anat/sub-01_space-sub03_desc-nephi_metrics.json'


def another_version(monkeypatch):
    for module in (dataset, settings):
        monkeypatch.setattr(module, '__version__', '9.9.9')


def test_a_data_set_that_moved_and_was_touched(app):
    assert app.run()[0] == 0
    before = app.ran()
    moved = app.bids.with_name('elsewhere')
    shutil.copytree(app.bids, moved, copy_function=shutil.copyfile)  # new times
    shutil.rmtree(app.bids)
    app.bids = moved
    code, said = app.run()
    assert code == 0 and app.ran() == before
    assert said.count('finished (kept)') == 2


def test_another_output_folder_computes_nothing(app):
    assert app.run()[0] == 0
    before = app.ran()
    app.out = app.out.with_name('other')
    assert app.run()[0] == 0 and app.ran() == before
    assert (app.out / METRICS).exists()


@pytest.mark.parametrize('plugin', ['MultiProc', 'Linear'])
@pytest.mark.parametrize('spoil', ['lost', 'damaged'])
def test_work_files_that_were_deleted_or_damaged_are_made_again(app, spoil, plugin):
    assert app.run()[0] == 0
    (warped,) = app.work.rglob('sub_01/*/*/optimize/warped_image.nii.gz')
    content = warped.read_bytes()
    (app.out / 'sub-01/anat/sub-01_space-sub03_desc-nephi_T1w.nii.gz').unlink()
    if spoil == 'lost':
        warped.unlink()
    else:
        warped.with_name('result_optimize.pklz').write_bytes(b'no pickle')
    before = len(app.ran())
    code, said = app.run('--plugin', plugin)
    assert code == 0, said
    assert app.ran()[before:] == ['register 01'] and warped.read_bytes() == content


def test_versions_do_not_mix_in_the_output_silently(app, monkeypatch):
    assert app.run('--participant-label', '01')[0] == 0
    first = read_json(app.out / 'dataset_description.json')['GeneratedBy'][0]['Version']
    another_version(monkeypatch)
    code, said = app.run('--participant-label', '02')
    assert code == 0
    assert f'holds results of nephi_pipe {first}, this is 9.9.9' in said
    made_by = read_json(app.out / 'dataset_description.json')['GeneratedBy']
    assert made_by[0]['Version'] == '9.9.9' and len(made_by) == 2


def test_a_version_reuses_nothing_of_another_one(app, monkeypatch):
    assert app.run('--participant-label', '01')[0] == 0
    before = app.ran()
    with monkeypatch.context() as patch:
        another_version(patch)
        assert app.run('--participant-label', '01')[0] == 0
    assert app.ran() == [*before, *before], 'all of it is computed again'
    assert app.run('--participant-label', '01')[0] == 0
    assert app.ran() == [*before, *before], 'and the first one has still its own'


# ---- half-written files -------------------------------------------------------------------------


def test_what_killed_runs_left_is_removed_and_nothing_else(app):
    assert app.run()[0] == 0
    own = [
        app.out / name
        for name in (
            '.0a1b2c3d.partial.sub-01.html', '.0a1b2c3d.partial.README.md',
            'sub-01/anat/.0a1b2c3d.partial.x.nii.gz', 'sub-01/figures/.0a1b2c3d.partial.x.png',
            'logs/.0a1b2c3d.partial.x.toml', '.0a1b2c3d.partial.group_desc-nephi_report.html',
        )
    ]  # fmt: skip
    others = [
        app.out / name
        for name in (
            '.0a1b2c3d.partial.sub-02.html', 'sub-02/.0a1b2c3d.partial.x.nii.gz',
            'sub-01/anat/.mine.partial.x.nii.gz', 'notes.partial.txt',
        )
    ]  # fmt: skip
    for path in [*own, *others]:
        path.parent.mkdir(exist_ok=True)
        path.write_text('half of it')
    assert app.run('--participant-label', '01', levels=['participant', 'group'])[0] == 0
    assert not [path for path in own if path.exists()]
    assert all(path.exists() for path in others)


def test_remove_leftovers_tells_what_it_removed(tmp_path):
    for name in ('.0a1b2c3d.partial.a.txt', '.0a1b2c3d.partial.b.txt', 'a.txt'):
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path, 'a.*') == [tmp_path / '.0a1b2c3d.partial.a.txt']
    assert len(list(tmp_path.iterdir())) == 2


def test_metrics_of_an_earlier_result_go_before_its_files_change(app, monkeypatch):
    """Killed between two files: no metrics claim that all is there."""
    from nephi_pipe.bids_app import derivatives

    one = ('--participant-label', '01')
    assert app.run(*one)[0] == 0

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(derivatives, 'write_if_new', killed)
        assert app.run(*one, '--random-seed', '5')[0] != 0
    assert not (app.out / METRICS).exists()
    assert app.run(*one, '--random-seed', '5')[0] == 0
    assert read_json(app.out / METRICS)['provenance']['seed'] == 5


# ---- --clean-workdir ----------------------------------------------------------------------------


def test_slurm_jobs_of_a_killed_run_are_ended_whatever_runs_now(app, tmp_path, monkeypatch):
    folder = app.work / f'nephi_pipe_{dataset.__version__}' / 'nephi_pipe' / 'slurm'
    folder.mkdir(parents=True)
    own, other = (folder / f'nephi_pipe.sub_{one}.pair.optimize.job' for one in ('01', '99'))
    own.write_text('12')
    other.write_text('13')
    (folder / 'nephi_pipe.sub_01.pair.optimize-1a2b.log').touch()
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    code, said = app.run()
    assert code == 75 and 'no scancel on this machine' in said and str(own) in said
    assert not app.ran(), 'nothing is computed beside it'
    (tmp_path / 'bin').mkdir()
    for name, body in {'scancel': f'echo "$@" >> {tmp_path}/called', 'squeue': ''}.items():
        (tmp_path / 'bin' / name).write_text(f'#!/bin/sh\n{body}\n')
        (tmp_path / 'bin' / name).chmod(0o755)
    code, said = app.run('--clean-workdir')
    assert code == 0 and 'Cancelling a SLURM job of an earlier run' in said
    assert (tmp_path / 'called').read_text() == f'--name={own.stem} 12\n'
    assert list(folder.iterdir()) == [other], "another person's is left alone"


def test_clean_workdir_after_success(app):
    app.work.mkdir()
    mine = app.work / 'notes.txt'
    mine.write_text('somebody wrote this')
    code, said = app.run('--clean-workdir', levels=['participant', 'group'])
    assert code == 0, said
    assert list(app.work.iterdir()) == [mine]
    assert (app.out / METRICS).exists()


def test_clean_workdir_removes_this_runs_pairs_only(app):
    assert app.run('--participant-label', '02')[0] == 0
    (root,) = app.work.glob('nephi_pipe_*')
    mine = root / 'nephi_pipe' / 'sub_01' / 'notes.txt'
    mine.parent.mkdir()
    mine.write_text('somebody wrote this')
    assert app.run('--participant-label', '01', '--clean-workdir')[0] == 0
    assert list(mine.parent.iterdir()) == [mine]
    before = app.ran()
    assert app.run('--participant-label', '02')[0] == 0 and app.ran() == before


def test_clean_workdir_keeps_all_when_somebody_failed(app):
    app.behave({'01': 'fail'})
    assert app.run('--clean-workdir')[0] == 1
    before = app.ran()
    app.behave({})
    assert app.run('--clean-workdir')[0] == 0
    assert app.ran()[len(before) :] == ['register 01']
    assert not list(app.work.iterdir())


def test_clean_workdir_leaves_what_another_run_uses(app):
    (root,) = [app.work / f'nephi_pipe_{settings.__version__}']
    shared = root / 'reference' / 'template.nii.gz'
    shared.parent.mkdir(parents=True)
    shared.touch()
    with hold([root / 'locks'], ['sub-02'], 'another'):
        assert app.run('--participant-label', '01', '--clean-workdir')[0] == 0
    assert shared.exists()
    assert app.run('--participant-label', '01', '--clean-workdir')[0] == 0
    assert not root.exists()


def test_reports_of_results_that_are_not_there_make_no_folder(app):
    code, said = app.run('--reports-only')
    assert code == 66 and 'expected the results of the participant level' in said
    assert not app.out.exists()


def test_dry_runs_and_reports_clean_nothing(app):
    assert app.run()[0] == 0
    held = sorted(app.work.rglob('*'))
    for option in ('--dry-run', '--reports-only'):
        assert app.run(option, '--clean-workdir')[0] == 0
    assert sorted(app.work.rglob('*')) == held
