"""The lung benchmark: pairs, scores of every peer's files, tables; peers run in slow tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data import AFFINE, SmoothWarp, make_grid, make_image
from scipy import ndimage

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import lung  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.lung_pairs import Recipe, continued_below, write_pair  # noqa: E402
from benchmarks.lung_scoring import score  # noqa: E402
from benchmarks.lung_tables import markdown, paired_interval  # noqa: E402
from nephi_pipe.geometry import LPS_FROM_RAS, Grid  # noqa: E402
from nephi_pipe.images import Image, load_mask, save_image  # noqa: E402
from nephi_pipe.landmarks import PointTable, read_points, write_points  # noqa: E402
from nephi_pipe.lung_mask import lung_mask  # noqa: E402
from nephi_pipe.metrics import random_points  # noqa: E402
from nephi_pipe.motion import LandmarkMotion, lung_points  # noqa: E402
from nephi_pipe.transforms import Transform, resample  # noqa: E402

WARP = SmoothWarp(3.0, 20.0)
TRUTH = Transform([WARP.map_points, AFFINE])


# --- scoring ------------------------------------------------------------------------------------


def save_points(path: Path, points: np.ndarray) -> Path:
    return write_points(path, PointTable(['x', 'y', 'z'], [[''] * 3 for _ in points], points))


@pytest.fixture(scope='module')
def scene(tmp_path_factory) -> tuple[dict[str, Path], Grid]:
    """A pair whose masks and landmarks agree under ``TRUTH``, and the arguments of ``score``."""
    folder = tmp_path_factory.mktemp('scene')
    moving_grid = make_grid('LPS', (44, 40, 36), 2.0, center=(10.0, -20.0, 33.0))
    fixed_grid = make_grid('oblique LAS', (34, 32, 30), 2.2)
    moving = make_image(moving_grid)
    ball = np.linalg.norm(moving_grid.points() - moving_grid.center_mm, axis=-1) < 24
    images = {
        'moving': moving,
        'moving_mask': Image(ball.astype(np.uint8), moving_grid),
        'fixed': resample(moving, TRUTH, fixed_grid),
        'fixed_mask': resample(
            Image(ball.astype(np.uint8), moving_grid), TRUTH, fixed_grid, 'labels'
        ),
    }
    paths = {
        name: save_image(folder / f'{name}.nii.gz', image.data, image.grid)
        for name, image in images.items()
    }
    points = random_points(fixed_grid, images['fixed_mask'].data > 0, 80, seed=2)
    paths['fixed_landmarks'] = save_points(folder / 'fixed.tsv', points)
    paths['moving_landmarks'] = save_points(folder / 'moving.tsv', TRUTH.map_points(points))
    return paths, fixed_grid


def write_peer_files(method: str, folder: Path, grid: Grid, to_lps: bool = True) -> None:
    """``TRUTH`` as the tool saves it: elastix all of it as a field, others beside an affine."""
    points = grid.points()
    whole = TRUTH.map_points(points) if method == 'elastix' else WARP.map_points(points)
    vectors = (whole - points) * (np.diag(LPS_FROM_RAS)[:3] if to_lps else 1)
    data = vectors.astype(np.float32)[..., None, :]
    save_image(folder / 'warp.nii.gz', data, grid, intent='vector')
    if method != 'elastix':
        np.savetxt(folder / 'affine.mat', AFFINE)


@pytest.mark.parametrize('method', ['greedy', 'elastix', 'convexadam'])
def test_a_peer_is_scored_by_the_map_that_it_means(scene, tmp_path, method):
    paths, grid = scene
    write_peer_files(method, tmp_path, grid)
    scores = score(method, tmp_path, **paths)
    assert np.mean(scores['landmark_mm']) < 0.08
    assert np.mean(scores['raw_landmark_mm']) > 10
    affine = np.mean(scores['affine_landmark_mm'])
    assert affine == pytest.approx(np.mean(scores['raw_landmark_mm'])) or 1 < affine < 10
    assert scores['dice']['after']['mean'] > 0.99
    assert scores['folds']['finite_difference']['digital_count'] == 0
    write_peer_files(method, tmp_path, grid, to_lps=False)
    assert np.mean(score(method, tmp_path, **paths)['landmark_mm']) > 2


def test_landmarks_are_scored_one_by_one_and_never_rounded(scene, tmp_path):
    paths, grid = scene
    write_peer_files('greedy', tmp_path, grid)
    moved = read_points(paths['moving_landmarks']).points
    moved[7, 2] += 5.0
    moved[8:, 0] += 0.3
    other = {**paths, 'moving_landmarks': save_points(tmp_path / 'other.tsv', moved)}
    errors = np.array(score('greedy', tmp_path, **other)['landmark_mm'])
    assert errors.argmax() == 7 and errors[7] == pytest.approx(5, abs=0.2)
    assert errors[8:].mean() == pytest.approx(0.3, abs=0.05)


# --- tables -------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_is_of_the_pairs():
    rng = np.random.default_rng(0)
    hard = rng.exponential(3.0, 300)
    mean, low, high = paired_interval(hard, hard + rng.normal(0.2, 0.5, 300))
    # Landmarks differ by 3 mm from each other, methods by .2: paired they can be told apart.
    assert low < mean < high < 0
    assert mean == pytest.approx(-0.2, abs=0.06)
    assert high - low == pytest.approx(4 * 0.5 / np.sqrt(300), rel=0.15)


def record(method: str, pair: tuple[str, str], errors: list[float], seconds: float) -> dict:
    finite = {'central_percent': 0.0, 'digital_percent': 0.5, 'ndv_percent': 0.0}
    scores = {
        'raw_landmark_mm': [35.0] * len(errors),
        'landmark_mm': errors,
        'dice': {'after': {'mean': 0.95}},
        'folds': {'finite_difference': finite},
        'jacobian': {'total': {'sd_log': 0.1}},
    }
    if method == 'nephi':
        exact = {'count': 0, 'points': 55000, 'min': 0.4}
        scores['folds'] |= {'exact': exact, 'lattice': exact}
        scores['inverse_consistency_mm'] = {'mean': 0.1, 'p95': 0.2}
    return {
        'fixed': pair[0],
        'moving': pair[1],
        'method': method,
        'wall_s': seconds,
        'cpu_s': seconds,
        'peak_mib': 10.0,
        'phases': {'versions': {method: '1.0'}},
        'scores': scores,
        'threads': 2,
        'processor': '2 x Some CPU',
        'load_before': 0.1,
    }


@pytest.fixture
def records() -> list[dict]:
    real, simulated = ('baseline', 'followup'), ('sim-0', 'breath-0')
    own = [1.0] * 51
    own[20] = 12.0
    rng = np.random.default_rng(1)
    worse = [value + shift for value, shift in zip(own, rng.uniform(0.1, 0.3, 51), strict=True)]
    return [
        record('nephi', real, own, 30.0),
        record('elastix', real, worse, 80.0),
        record('nephi', simulated, [0.5, 1.5, 1.0], 60.0),
        record('elastix', simulated, [1.0, 1.6, 2.0], 200.0),
    ]


def cells(text: str, *start: str) -> list[str]:
    rows = [[cell.strip(' *') for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    return next(row for row in rows if row[:2] == list(start))


def test_tables_hold_errors_with_and_without_the_suspect_row(records):
    text = markdown(records)
    header = cells(text, 'pair', 'method')
    column = {name: header.index(name) for name in header}
    own = cells(text, 'followup to baseline', 'NePhi')
    assert own[column['TRE mm']] == f'{62 / 51:.3f}'
    assert own[column['without row 20']] == '1.000'
    assert own[column['median']] == '1.000' and own[column['raw mm']] == '35.00'
    simulated = cells(text, 'breath-0 to sim-0', 'elastix')
    assert simulated[column['without row 20']] == '-'
    assert simulated[column['TRE mm']] == '1.533' and simulated[column['90 %']] == '1.920'
    assert text.count('without row 20 -0.') == 1
    assert 'NePhi against elastix' in text and 'breath-0 to sim-0 -0.533' in text


def test_full_breaths_have_a_table_and_comparisons_of_their_own(records):
    full = ('sim-11', 'breath-11')
    records += [record('nephi', full, [2.0, 3.0], 60.0), record('elastix', full, [9.0, 9.5], 90.0)]
    before, _, after = markdown(records).partition('Simulated breathing, as far as')
    assert 'breath-0 to sim-0' in before and 'sim-11' not in before
    assert 'breath-11 to sim-11 -6.750' in after and 'sim-0' not in after


# --- the whole run ------------------------------------------------------------------------------


def test_ten_recipes_cover_both_cases_all_means_and_both_directions():
    recipes = [Recipe.of(number) for number in lung.NUMBERS]
    assert {(r.case, r.magnitude_mm) for r in recipes} == {
        (case, mean) for case in (4, 5) for mean in (8, 11, 14, 17, 20)
    }
    assert sum(r.start == 'exp' for r in recipes) == 5 and len({r.seed for r in recipes}) == 10


def test_full_breaths_go_as_far_as_the_landmarks_of_each_case():
    recipes = [Recipe.of(number) for number in lung.FULL_NUMBERS]
    assert [(r.case, r.magnitude_mm) for r in recipes] == [(4, None), (5, None)]
    assert {r.start for r in recipes} == {'exp', 'insp'}


@pytest.fixture(scope='module')
def chest() -> Image:
    """A small chest: two lungs with vessels and an airway in a body in air, 4.5 mm."""
    grid = Grid((56, 44, 44), np.diag([4.5, 4.5, 4.5, 1.0]))
    points = grid.points() - grid.center_mm
    lungs = [np.linalg.norm((points - [x, 0, 0]) / [40, 60, 80], axis=-1) < 1 for x in (-52, 52)]
    noise = np.random.default_rng(0).normal(size=grid.shape)
    texture = ndimage.gaussian_filter(noise, 1.0)
    lung = -840 + 900 * np.clip(texture / texture.std() - 1.2, 0, 1)
    data = np.where(lungs[0] | lungs[1], lung, 30.0)
    data[(np.linalg.norm(points[..., :2] - [0, 30], axis=-1) < 6) & (points[..., 2] > 20)] = -1000
    data[np.linalg.norm(points[..., :2] / [115, 88], axis=-1) > 1] = -1000
    return Image(data.astype(np.float32), grid)


def test_a_scan_is_continued_below_where_it_is(chest):
    cut = Image(chest.data[..., 20:], chest.grid.cropped((0, 0, 20), chest.grid.shape))
    lungs = lung_mask(chest).data[..., 20:]
    longer, mask = continued_below(cut, cut.with_data(lungs), 20.0)
    assert longer.grid.shape == mask.grid.shape == (56, 44, 28)
    np.testing.assert_array_equal(longer.data[..., 4:], cut.data)
    np.testing.assert_array_equal(mask.data[..., 4:], lungs)
    assert lungs[..., 0].any() and not mask.data[..., :4].any()
    # The lungs end where the scan did, body and air around go on.
    assert (longer.data[..., :4][lungs[..., 0] > 0] == 40).all()
    around = longer.data[0, 0, :4]
    np.testing.assert_array_equal(around, cut.data[0, 0, 0])
    np.testing.assert_allclose(longer.grid.to_world([3, 5, 4]), cut.grid.to_world([3, 5, 0]))


@pytest.fixture(scope='module')
def made(chest, tmp_path_factory) -> Path:
    """A simulated pair as the benchmark keeps it."""
    lungs = lung_mask(chest)
    start = random_points(chest.grid, lungs.data, 200, seed=4)
    depth = (chest.grid.to_world([0, 0, 43])[2] - start[:, 2:]) / 190
    motion = LandmarkMotion(start, start + depth**1.5 * [0.0, 5.0, -20.0], lung_points(lungs))
    folder = tmp_path_factory.mktemp('data') / 'out' / 'pairs' / 'sim-0'
    write_pair(folder, chest, motion, Recipe(4, 'exp', 'insp', 8.0, 0))
    return folder


def test_a_simulated_pair_is_kept_as_files(made, chest):
    pair = lung.simulated_pair(made, Path('nowhere'), 0)
    fixed, moving = (read_points(scan.landmarks).points for scan in (pair.fixed, pair.moving))
    assert len(fixed) == len(moving) == 300
    assert np.linalg.norm(fixed - moving, axis=1).mean() == pytest.approx(8, rel=0.1)
    mask = load_mask(pair.moving.mask)
    index = np.rint(mask.grid.to_index(moving)).astype(int)
    assert mask.data[tuple(index.T)].mean() > 0.95
    assert pair.name == 'sim-0_from-breath-0'


def arguments(made: Path, *methods: str) -> list[str]:
    out = made.parents[1]
    common = ['--data', str(out.parent), '--out', str(out), '--threads', '1', '--real', '0']
    return ['lung', *common, '--simulated', '0', '--methods', *methods]


def test_a_run_goes_on_where_it_was_interrupted(made, monkeypatch, capsys):
    done = []

    def fake(method, pair, given):
        done.append(method)
        if len(done) == 2:
            raise RuntimeError('killed')
        return record(method, ('', ''), [1.0, 2.0, 2.5], 5.0)

    monkeypatch.setattr(lung, 'run', fake)
    with pytest.raises(RuntimeError):
        main(arguments(made, 'nephi', 'greedy'))
    assert main([*arguments(made, 'nephi', 'greedy'), '--finished']) == 0
    assert done == ['nephi', 'greedy']
    assert 'Greedy' not in (made.parents[1] / 'tables.md').read_text()
    assert main(arguments(made, 'nephi', 'greedy')) == 0
    assert main(arguments(made, 'nephi', 'greedy')) == 0
    assert done == ['nephi', 'greedy', 'greedy']
    out = made.parents[1]
    assert (out / 'tables.md').read_text() in capsys.readouterr().out
    for path in out.glob('*.json'):
        path.unlink()


def test_missing_data_and_peers_are_told(made, monkeypatch):
    monkeypatch.delenv('NEPHI_PEERS_PYTHON', raising=False)
    with pytest.raises(SystemExit, match='NEPHI_PEERS_PYTHON'):
        main(arguments(made, 'elastix'))
    with pytest.raises(SystemExit, match='no file'):
        main([*arguments(made, 'greedy'), '--real', '1'])
    with pytest.raises(SystemExit, match='no folder .*lungparts'):
        main([*arguments(made, 'greedy'), '--simulated', '7'])


def test_a_missing_file_of_the_simulated_pairs_is_told(made, tmp_path, capfd):
    (tmp_path / 'lungparts').mkdir()
    elsewhere = ['--data', str(tmp_path), '--simulated', '7']
    with pytest.raises(SystemExit, match='pair 7 could not be made'):
        main([*arguments(made, 'greedy'), *elsewhere])
    said = capfd.readouterr().err
    assert 'popi_phase00_256.nii.gz' in said
    assert 'Expected lungct and lungparts' in said
    assert 'Traceback' not in said


def test_finished_measures_and_makes_nothing(made, tmp_path):
    with pytest.raises(SystemExit, match='Nothing is measured yet'):
        main([*arguments(made, 'greedy'), '--out', str(tmp_path), '--finished'])
    assert list(tmp_path.iterdir()) == []


def test_the_peers_module_needs_no_package_for_its_help():
    run = subprocess.run(
        [sys.executable, '-S', '-m', 'benchmarks.lung_peers', '--help'],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert 'convexadam' in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize('method', ['nephi', 'greedy', 'elastix', 'convexadam'])
def test_a_method_finds_a_breath_that_is_known(made, method):
    """Of the truth that the pair was made with: whatever reads a transform wrongly fails here."""
    if method == 'greedy':
        pytest.importorskip('picsl_greedy')
    if method in lung.PEERS and not os.environ.get('NEPHI_PEERS_PYTHON'):
        pytest.skip(f'NEPHI_PEERS_PYTHON does not name a Python with what {method} needs')
    steps = ['--steps', '60'] if method == 'nephi' else []
    assert main([*arguments(made, method), *steps]) == 0
    out = made.parents[1]
    path = out / f'sim-0_from-breath-0_{method}.json'
    found = json.loads(path.read_text())
    path.unlink()
    assert np.mean(found['scores']['raw_landmark_mm']) > 7
    assert np.mean(found['scores']['landmark_mm']) < 4
    assert found['wall_s'] > 0 and found['phases']['versions']
    assert not list(out.glob(f'{method}-*'))
