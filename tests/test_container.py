"""The image, built and run for real; what came out is checked on the outside."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nephi_pipe import __version__
from nephi_pipe.cli import main as nephi
from nephi_pipe.demo import DATASET

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'tests' / 'container' / 'build_and_run.sh'
UID = 12345
MAX_GB = 1.6
"""Of the image for the CPU, unpacked; docs/containers.md says what it is made of."""


def test_label_has_the_version() -> None:
    dockerfile = (ROOT / 'Dockerfile').read_text()
    assert dockerfile.count('ARG VERSION=') == 2
    assert dockerfile.count(f'ARG VERSION={__version__}\n') == 2


def test_base_is_pinned_by_its_content() -> None:
    (line,) = [x for x in (ROOT / 'Dockerfile').read_text().splitlines() if x[:9] == 'ARG BASE=']
    assert '@sha256:' in line


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The folder with everything that the script leaves."""
    out = tmp_path_factory.mktemp('container')
    done = subprocess.run(
        ['bash', SCRIPT, out, sys.executable], capture_output=True, text=True, timeout=1500
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
@pytest.mark.container
def test_image_says_what_it_is(built) -> None:
    config = json.loads((built / 'image.json').read_text())['OCIv1']['config']
    labels = {key.rpartition('.')[2]: text for key, text in config['Labels'].items()}
    assert config['Entrypoint'] == ['nephi-pipe']
    assert labels['version'] == __version__
    assert labels['revision'] == 'test'
    assert (labels['title'], labels['licenses'], labels['torch']) == ('nephi_pipe', 'MIT', 'cpu')
    versions = (built / 'version.txt').read_text().splitlines()
    assert versions == [f'nephi-pipe {__version__}', f'nephi {__version__}']


@pytest.mark.slow
@pytest.mark.container
def test_image_is_small(built) -> None:
    size, unit = (built / 'size.txt').read_text().split()
    assert float(size) * {'MB': 1e-3, 'GB': 1.0}[unit] < MAX_GB


@pytest.mark.slow
@pytest.mark.container
def test_place_is_as_strict_as_promised(built) -> None:
    """Another uid, no file that could be written in the image, the loop-back device alone."""
    assert (built / 'place.txt').read_text().split() == [str(UID), '1']


@pytest.mark.slow
@pytest.mark.container
def test_demo_went_through_both_levels(built) -> None:
    with open(built / 'out' / 'group_desc-nephi_metrics.tsv', newline='') as stream:
        rows = list(csv.DictReader(stream, delimiter='\t'))
    assert len(rows) == 2
    for person in ('sub-41', 'sub-43'):
        (path,) = (built / 'out' / person).glob('anat/*_metrics.json')
        dice = json.loads(path.read_text())['dice']
        assert dice['after']['mean'] > dice['before']['mean'] > 0.5
        assert (built / 'out' / f'{person}.html').stat().st_uid == UID
    (made_by,) = json.loads((built / 'out/dataset_description.json').read_text())['GeneratedBy']
    assert made_by['Container']['Tag'] == f'nephi_pipe:{made_by["Version"]}'


@pytest.mark.slow
@pytest.mark.container
def test_transforms_are_the_same_outside(built, tmp_path) -> None:
    """A transform made inside, applied outside, gives the image that was warped inside."""
    (transform,) = (built / 'out' / 'sub-43').glob('anat/*_from-T1w_to-sub45_*_xfm.h5')
    (inside,) = (built / 'out' / 'sub-43').glob('anat/*_space-sub45_desc-nephi_T1w.nii.gz')
    moving, fixed = (
        DATASET / person / 'anat' / f'{person}_T1w.nii.gz' for person in ('sub-43', 'sub-45')
    )
    outside = tmp_path / 'outside.nii.gz'
    line = ['apply', transform, moving, '--reference', fixed, '-o', outside]
    assert nephi([str(word) for word in line]) == 0
    ours, theirs = (nib.load(path).get_fdata() for path in (outside, inside))
    # Stored transforms err by up to 0.05 mm.
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


@pytest.mark.slow
@pytest.mark.container
def test_nothing_asks_for_a_home(built) -> None:
    said = (built / 'app.txt').read_text() + (built / 'pair.txt').read_text()
    assert 'WARNING' not in said and '/home' not in said
    made = {path.name for path in (built / 'pair').iterdir()}
    assert {'transform.h5', 'inverse.h5', 'warped.nii.gz', 'report.html'} <= made


def test_report_of_two_files_needs_no_home(tmp_path, monkeypatch) -> None:
    """matplotlib gets a folder for its caches that is gone afterwards."""
    seen = {}

    def register(arguments) -> None:
        seen.update(folder=Path(os.environ['MPLCONFIGDIR']))
        assert seen['folder'].is_dir()

    monkeypatch.setattr('nephi_pipe.commands.register', register)
    monkeypatch.delenv('MPLCONFIGDIR', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'nowhere'))
    assert nephi(['register', 'fixed', 'moving', '-o', 'out']) == 0
    assert not seen['folder'].exists()
    assert 'MPLCONFIGDIR' not in os.environ
