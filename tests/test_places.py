"""Places where a run may not write, has little room, or finds links instead of files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from bids_runs import STUB
from bids_stub import main

from nephi_pipe.bids_app.console import log_file, logger

NOBODY = 65534


def mounted(folder, *command):
    """Mount something at ``folder``; skips where this process may not."""
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(['mount', *command, str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'nothing can be mounted here: {error}')


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    disk = tmp_path / 'disk'
    mounted(disk, '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs')
    yield disk
    subprocess.run(['umount', str(disk)], check=True)


@pytest.fixture
def read_only():
    """Makes folders read-only, for root too, and writable again afterwards."""
    made = []

    def make(folder):
        mounted(folder, '--bind', str(folder))
        made.append(folder)
        subprocess.run(['mount', '-o', 'remount,ro,bind', str(folder)], check=True)

    yield make
    for folder in made:
        subprocess.run(['umount', str(folder)], check=True)


@pytest.fixture
def quota(tmp_path):
    """A folder on a file system with much room, that may hold 3 MB."""
    if not (shutil.which('mkfs.btrfs') and shutil.which('btrfs')):
        pytest.skip('mkfs.btrfs (btrfs-progs) is missing')
    image, disk = tmp_path / 'image', tmp_path / 'quota'
    with open(image, 'wb') as stream:
        stream.truncate(120 << 20)
    subprocess.run(['mkfs.btrfs', '-q', str(image)], check=True, capture_output=True)
    mounted(disk, '-o', 'loop', str(image))
    own = disk / 'own'
    try:
        for command in (
            ['quota', 'enable', disk], ['subvolume', 'create', own], ['qgroup', 'limit', '3M', own]
        ):  # fmt: skip
            subprocess.run(['btrfs', *map(str, command)], check=True, capture_output=True)
        yield own
    finally:
        subprocess.run(['umount', str(disk)], check=True)


def half_written(app):
    return [name for name in app.files() if 'partial' in name or '_metrics' in name]


def test_disk_full(app, small_disk):
    app.out = small_disk / 'out'
    app.behave({'01': 'large', '02': 'large'})
    code, said = app.run()
    assert code == 74, said
    assert 'the disk is full' in said and 'finished results are kept' in said
    assert 'Traceback' not in said and not half_written(app)


def test_disk_of_the_work_folder_full(app, small_disk):
    app.work = small_disk / 'w'
    app.behave({'01': 'large'})
    code, said = app.run('--participant-label', '01')
    assert code == 74, said
    assert 'disk is full' in said


def test_the_log_on_a_full_disk_says_nothing_of_it(small_disk, capsys, monkeypatch):
    monkeypatch.setattr(logger, 'handlers', [])
    monkeypatch.setattr(logger, 'propagate', False)
    with pytest.raises(OSError, match='No space left'):
        (small_disk / 'all').write_bytes(bytes(4 << 20))
    with log_file(small_disk / 'run.log'):
        for _ in range(1000):
            logger.error('a line that finds no room')
    assert 'Traceback' not in capsys.readouterr().err


def test_quota_used_up(app, quota):
    app.out = quota / 'out'
    app.behave({'01': 'large', '02': 'large'})
    code, said = app.run()
    assert code == 74, said
    assert 'the quota is used up' in said and 'finished results are kept' in said
    assert 'Traceback' not in said and not half_written(app)


def test_read_only_output(app, read_only):
    read_only(app.out)
    code, said = app.run()
    assert code == 73, said
    assert f'The folder "{app.out}" cannot be written to (Read-only file system)' in said


def test_an_output_that_becomes_read_only(app, read_only):
    assert app.run('--participant-label', '01')[0] == 0
    read_only(app.out)
    code, said = app.run(levels=['group'])
    assert code == 73, said
    assert 'Read-only file system' in said and 'Traceback' not in said


def test_read_only_input(app, read_only):
    read_only(app.bids)
    code, said = app.run(levels=['participant', 'group'])
    assert code == 0, said


# ---- homes and temporary folders ----------------------------------------------------------------


def run_as(app, user, environ, *more):
    """Run as a process of another user, everything of the test being open to that user."""
    command = [sys.executable, str(STUB), *app.line('--participant-label', '01', *more)]
    if user is not None:
        if os.geteuid() or not shutil.which('setpriv'):
            pytest.skip('setpriv and root are needed to become another user')
        os.chmod(app.bids.parent, 0o777)
        for folder in app.bids.parent.parents:  # pytest's own, of which xdist makes one more
            if 'pytest' in str(folder):
                os.chmod(folder, 0o711)
        command = ['setpriv', f'--reuid={user}', f'--regid={user}', '--clear-groups', *command]
        probe = [*command[:4], sys.executable, '-c', '']
        if subprocess.run(probe, capture_output=True).returncode:
            pytest.skip('another user cannot start this Python')
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=app.bids)
    return done.returncode, done.stdout + done.stderr


def without(*names):
    return {name: value for name, value in os.environ.items() if name not in names}


def test_no_home(app):
    code, said = run_as(app, None, without('HOME', 'MPLCONFIGDIR', 'XDG_CACHE_HOME'))
    assert code == 0, said


def test_a_home_that_cannot_be_written_and_another_user(app, tmp_path):
    home = tmp_path / 'home'
    home.mkdir(mode=0o755)
    environ = {**without('MPLCONFIGDIR', 'XDG_CACHE_HOME'), 'HOME': str(home)}
    code, said = run_as(app, NOBODY, environ)
    assert code == 0, said
    assert not list(home.iterdir()) and 'Matplotlib' not in said
    assert {path.stat().st_uid for path in app.out.rglob('*')} == {NOBODY}


@pytest.mark.parametrize('name', ['TMPDIR', 'HOME'])
def test_a_folder_of_the_environment_that_does_not_exist(app, tmp_path, name):
    missing = tmp_path / 'missing'
    code, said = run_as(app, None, {**os.environ, name: str(missing)})
    assert code == 0, said
    assert not missing.exists()


# ---- links --------------------------------------------------------------------------------------


def annex(app):
    """Turn every image into a link into an annex, as ``datalad clone`` has them."""
    for path in sorted(app.bids.rglob('*.nii.gz')):
        key = app.bids / '.git' / 'annex' / 'objects' / path.name / f'MD5E-s1--{path.name}'
        key.parent.mkdir(parents=True, exist_ok=True)
        path.rename(key)
        key.chmod(0o444)
        path.symlink_to(os.path.relpath(key, path.parent))


def test_a_data_set_of_links(app):
    annex(app)
    code, said = app.run()
    assert code == 0, said
    assert 'sub-02.html' in app.files()


@pytest.mark.parametrize('what', ['T1w', 'desc-ball_dseg'])
def test_a_broken_link_is_named_and_how_to_fetch_it(app, what):
    annex(app)
    link = next(path for path in app.bids.rglob(f'sub-01_{what}.nii.gz') if path.is_symlink())
    link.resolve().unlink()
    code, said = app.run()
    assert code == 1, said
    assert f'Error: sub-01: "{link}" is a link to "../' in said and 'datalad get' in said
    assert 'sub-02.html' in app.files()


def test_an_annexed_file_whose_content_is_not_there(app):
    """An unlocked annex keeps a line of text in the place of such a file."""
    app.t1w().write_text('/annex/objects/MD5E-s259034--d41d8cd98f00b204e9800998ecf8427e.nii.gz\n')
    code, said = app.run('--participant-label', '01')
    assert code == 66, said
    assert f'"{app.t1w()}" holds no image but a pointer to one' in said and 'datalad get' in said


def test_a_data_set_behind_a_link(app, tmp_path):
    link = tmp_path / 'link'
    link.symlink_to(app.bids)
    app.bids = link
    assert app.run()[0] == 0
    assert main(app.line('--dry-run')) == 0
