"""The benchmark with lungs of three people: its data, and its run with a killed worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bids_runs import check_valid, computed, wait_for
from data import GRIDS
from scipy import ndimage

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.breathing_cohort import ENDS, main, make_cohort, markdown  # noqa: E402
from benchmarks.cohort_data import coarser  # noqa: E402
from benchmarks.workers import worker_in  # noqa: E402
from nephi_pipe.images import Image, load_image, load_mask  # noqa: E402
from nephi_pipe.landmarks import read_points  # noqa: E402

DATA = ROOT.parent / 'shared' / 'data'
SCANS = ['sub-01_ses-1', 'sub-01_ses-2', 'sub-01_ses-3', 'sub-02_ses-1', 'sub-02_ses-2',
         'sub-03_ses-1', 'sub-03_ses-2']  # fmt: skip
KILLED, *FINISHED = [stem for stem in SCANS if 'ses-1' not in stem]


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
    if not (DATA / 'lungparts').is_dir():
        pytest.skip('the real scans are not here')
    return make_cohort(DATA, tmp_path_factory.mktemp('cohort'), 8.0, sloppy=True)


def load(cohort, stem):
    """A scan, the voxels of its lungs, and its landmarks by name."""
    person, session = stem.split('_')
    image = load_image(cohort.data / person / session / 'ct' / f'{stem}_ct.nii.gz')
    derived = cohort.data / 'derivatives' / 'lungs' / person / session / 'ct'
    lungs = load_mask(derived / f'{stem}_label-lung_mask.nii.gz', image)
    return image, lungs, read_points(derived / f'{stem}_landmarks.tsv')


def test_three_people_in_two_or_three_sessions(cohort):
    paths = cohort.data.glob('sub-*/ses-*/ct/*_ct.nii.gz')
    assert sorted(path.name.removesuffix('_ct.nii.gz') for path in paths) == SCANS
    check_valid(cohort.data)
    check_valid(cohort.data / 'derivatives' / 'lungs')


@pytest.mark.parametrize('stem', SCANS)
def test_landmarks_lie_in_the_lungs(cohort, stem):
    image, lungs, table = load(cohort, stem)
    index = np.rint(image.grid.to_index(table.points)).astype(int)
    near = ndimage.binary_dilation(lungs.data, iterations=1)
    assert len(index) > 45 and near[tuple(index.T)].mean() > 0.97


@pytest.mark.parametrize(('person', 'grows'), [('sub-02', True), ('sub-03', False)])
def test_lungs_that_grow_lose_density(cohort, person, grows):
    volumes, densities = [], []
    for session in (1, 2):
        image, lungs, _ = load(cohort, f'{person}_ses-{session}')
        volumes.append(lungs.data.sum() * image.grid.voxel_volume_mm3)
        inner = ndimage.binary_erosion(lungs.data, iterations=2)
        densities.append(np.median(image.data[inner]) + 1000)
    assert (volumes[1] > 1.05 * volumes[0]) == grows != (volumes[1] < 0.95 * volumes[0])
    assert (densities[1] < 0.95 * densities[0]) == grows != (densities[1] > 1.05 * densities[0])


@pytest.mark.parametrize('grid', ['LPS', 'oblique anisotropic'])
def test_coarser_voxels_show_the_same_at_the_same_places(grid):
    grid = GRIDS[grid]
    ball = np.linalg.norm(grid.points() - grid.center_mm, axis=-1) < 15
    fine = Image(ball.astype(np.float32), grid)
    coarse = coarser(fine, 4.0)
    assert coarse.grid.spacing == pytest.approx(np.maximum(grid.spacing, 4.0))
    for image in (fine, coarse):
        weights = image.data / image.data.sum()
        assert (weights[..., None] * image.grid.points()).sum(axis=(0, 1, 2)) == pytest.approx(
            grid.center_mm, abs=0.3
        )
        volume = image.data.sum() * image.grid.voxel_volume_mm3
        assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.04)


def test_a_worker_is_found_by_the_folder_that_it_works_in(tmp_path):
    if not Path('/proc/self/task').exists():
        pytest.skip('the workers of a run are found in /proc')
    child = f'import subprocess; subprocess.run(["sleep", "60"], cwd={str(tmp_path)!r})'
    process = subprocess.Popen([sys.executable, '-c', child])
    wait_for(lambda: worker_in(process, tmp_path))
    assert worker_in(process, tmp_path.parent) is None
    os.kill(worker_in(process, tmp_path), signal.SIGKILL)
    assert process.wait(timeout=60) == 0


def test_nothing_may_be_there_already(tmp_path):
    with pytest.raises(SystemExit, match='expected a new folder'):
        main(['--data', str(DATA), '--out', str(tmp_path)])


@pytest.mark.slow
def test_a_killed_worker_costs_its_pair_alone_and_is_redone(cohort):
    """On real lungs with 6 mm voxels and tiny settings, two processes."""
    if not Path('/proc/self/task').exists():
        pytest.skip('the workers of a run are found in /proc')
    run, out = cohort.steps(), cohort.folder / 'out'

    first = next(run)
    assert (first.code, first.started) == (1, 4), first.said
    assert first.pairs == '3 of 4 pairs finished. Failed: sub-01.'
    assert first.said.count('was killed (SIGKILL), most probably because memory ran out') == 1
    assert f'{KILLED} to sub01ses1: failed.' in first.said
    (crash,) = out.glob('sub-*/log/*/crash-*.txt')
    assert crash.parents[2].name == 'sub-01' and 'optimize' in crash.name
    assert not list(out.glob(f'sub-01/ses-2/ct/{KILLED}_*_metrics.json'))
    assert all((out / f'sub-0{person}.html').is_file() for person in (1, 2, 3))
    finished = computed(cohort.folder / 'work')

    assert next(run).code == 0
    early = cohort.rows()
    assert [row['moving'] for row in early] == FINISHED

    again = next(run)
    assert (again.code, again.started) == (0, 1), again.said
    assert again.pairs == '4 of 4 pairs finished.' and again.said.count('finished (kept)') == 3
    assert f'{KILLED} to sub01ses1: deformation ...' in again.said
    assert 'affine ...' not in again.said, 'what the killed pair had finished is kept'
    everything = computed(cohort.folder / 'work')
    assert finished.items() < everything.items()

    assert next(run).code == 0
    rows = cohort.rows()
    assert [row['moving'] for row in rows] == [KILLED, *FINISHED]
    for row in rows:
        assert float(row['tre_after_mm']) < float(row['tre_before_mm']) < 6
        assert float(row['mask_dice_after']) > 0.93 and row['folds_max'] == '0'

    last = next(run)
    assert (last.code, last.started) == (0, 0), last.said
    assert last.said.count('finished (kept)') == 4
    assert computed(cohort.folder / 'work') == everything
    assert next(run, None) is None
    check_valid(out)
    steps = [first, again, last]
    assert tuple(step.code for step in steps) == (ENDS[0], *ENDS[2::2])
    text = markdown(steps, rows, 'Here.')
    assert '| `participant` again | 4 of 4 pairs finished | 1 | 0 |' in text
