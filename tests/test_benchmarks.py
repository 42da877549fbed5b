"""The benchmark's measuring, scoring and tables; the peers themselves run in slow tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data import AFFINE, SmoothWarp, make_grid, make_image, make_labels
from scipy.io import savemat

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import brain, needs, peers, weights  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.measure import THREAD_VARIABLES, limited_to, measured  # noqa: E402
from benchmarks.scoring import score  # noqa: E402
from benchmarks.tables import markdown, replace_section  # noqa: E402
from nephi_pipe.geometry import LPS_FROM_RAS, flip_ras_lps  # noqa: E402
from nephi_pipe.images import Image, save_image  # noqa: E402
from nephi_pipe.transforms import Transform, resample  # noqa: E402

WARP = SmoothWarp(3.0, 20.0)
TRUTH = Transform([WARP.map_points, AFFINE])


def python(code: str) -> list[str]:
    return [sys.executable, '-c', code]


# --- measuring ----------------------------------------------------------------------------------


MEASURING = """\
import pathlib, sys
from benchmarks.measure import measured
for code in sys.argv[2:]:
    usage = measured([sys.executable, '-c', code], pathlib.Path(sys.argv[1]), {})
    print(usage.wall_s, usage.cpu_s, usage.peak_mib)
"""


def test_time_and_memory_of_a_child_are_its_own(tmp_path):
    """Measured from a small process, as the benchmark is: children begin with its peak."""
    codes = ['import time; time.sleep(0.4)', 'block = bytearray(150 * 2**20)']
    command = [*python(MEASURING), str(tmp_path / 'log'), *codes]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    idle, large = (list(map(float, line.split())) for line in run.stdout.splitlines())
    assert idle[0] > 0.4 > idle[1]
    assert large[2] - idle[2] == pytest.approx(150, abs=10)


def test_processor_time_is_counted_over_children(tmp_path):
    burn = 'import time\nwhile time.process_time() < 0.3: pass'
    code = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {burn!r}])'
    assert 0.3 < measured(python(code), tmp_path / 'log', {}).cpu_s < 3


def test_a_failure_says_what_the_child_said(tmp_path):
    with pytest.raises(RuntimeError, match='(?s)code 3.*no such brain'):
        measured(python('print("no such brain"); raise SystemExit(3)'), tmp_path / 'log', {})


def test_threads_reach_the_child(tmp_path):
    code = f'import os; print([os.environ[name] for name in {THREAD_VARIABLES!r}])'
    measured(python(code), tmp_path / 'log', limited_to(7))
    assert (tmp_path / 'log').read_text().count("'7'") == len(THREAD_VARIABLES)


def test_the_measuring_process_stays_small():
    """A child begins with the peak memory of its parent: no numpy or torch there."""
    code = (
        'import sys, benchmarks.brain, benchmarks.lung\n'
        'print([name for name in ("numpy", "torch", "nephi_pipe") if name in sys.modules])'
    )
    run = subprocess.run(python(code), capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == '[]'


def test_peers_need_no_package_around_them(tmp_path):
    run = subprocess.run(
        [sys.executable, '-I', '-S', ROOT / 'benchmarks/peers.py', '--help'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert 'syn' in run.stdout


# --- scoring ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """A pair of which the labels agree under ``TRUTH``, and the arguments of ``score``."""
    folder = tmp_path_factory.mktemp('scene')
    moving_grid = make_grid('LPS', (44, 40, 36), 2.0, center=(10.0, -20.0, 33.0))
    fixed_grid = make_grid('oblique LAS', (34, 32, 30), 2.2)
    moving, moving_labels = make_image(moving_grid), make_labels(moving_grid)
    paths = {
        'moving': save_image(folder / 'moving.nii.gz', moving.data, moving_grid),
        'moving_labels': save_image(folder / 'ml.nii.gz', moving_labels.data, moving_grid),
    }
    fixed = resample(moving, TRUTH, fixed_grid)
    labels = resample(moving_labels, TRUTH, fixed_grid, 'labels')
    paths['fixed'] = save_image(folder / 'fixed.nii.gz', fixed.data, fixed_grid)
    paths['fixed_labels'] = save_image(folder / 'fl.nii.gz', labels.data, fixed_grid)
    return paths, fixed_grid


def write_peer_files(method: str, folder: Path, grid) -> None:
    """``TRUTH`` as the tool writes it: an ITK field in LPS mm on the fixed grid, and an affine."""
    vectors = (WARP.on_grid(grid) * np.diag(LPS_FROM_RAS)[:3]).astype(np.float32)
    name = {'greedy': 'warp.nii.gz', 'syn': 'syn_1Warp.nii.gz'}[method]
    save_image(folder / name, vectors[..., None, :], grid, intent='vector')
    if method == 'greedy':
        np.savetxt(folder / 'affine.mat', AFFINE)
        return
    lps = flip_ras_lps(AFFINE)
    parameters = np.r_[lps[:3, :3].ravel(), lps[:3, 3]][:, None]
    content = {'AffineTransform_double_3_3': parameters, 'fixed': np.zeros((3, 1))}
    savemat(folder / 'syn_0GenericAffine.mat', content, format='4')


@pytest.mark.parametrize('method', ['greedy', 'syn'])
def test_a_peer_is_scored_by_the_map_that_it_means(scene, tmp_path, method):
    paths, grid = scene
    write_peer_files(method, tmp_path, grid)
    scores = score(method, **paths, folder=tmp_path)
    assert scores['dice']['after']['mean'] > 0.999
    assert scores['dice']['before']['mean'] < 0.95
    assert scores['folds']['finite_difference']['digital_count'] == 0
    deformation = scores['jacobian']['deformation']
    total = scores['jacobian']['total']
    ratio = np.linalg.det(AFFINE[:3, :3])
    assert total['max'] == pytest.approx(ratio * deformation['max'], rel=1e-4)


def test_greedy_s_warp_is_not_taken_for_ras(scene, tmp_path):
    paths, grid = scene
    write_peer_files('greedy', tmp_path, grid)
    wrong = WARP.on_grid(grid).astype(np.float32)[..., None, :]
    save_image(tmp_path / 'warp.nii.gz', wrong, grid, intent='vector')
    assert score('greedy', **paths, folder=tmp_path)['dice']['after']['mean'] < 0.97


# --- tables -------------------------------------------------------------------------------------


def record(method: str, moving: str, dice: float, seconds: float, **folds: float) -> dict:
    finite = {'central_percent': 0.0, 'digital_percent': 0.0, 'ndv_percent': 0.0} | folds
    scores = {
        'dice': {'before': {'mean': 0.7}, 'after': {'mean': dice}},
        'folds': {'finite_difference': finite},
        'jacobian': {'total': {'sd_log': 0.4}},
    }
    if method == 'nephi':
        exact = {'count': 0, 'points': 55000, 'min': 0.1}
        scores['folds'] |= {'exact': exact, 'lattice': exact}
        scores['inverse_consistency_mm'] = {'mean': 0.2, 'p95': 0.5}
    return {
        'fixed': '45',
        'moving': moving,
        'method': method,
        'wall_s': seconds,
        'cpu_s': 2 * seconds,
        'peak_mib': 100 * seconds,
        'phases': {'versions': {method: '1.0'}, **({} if method == 'syn' else {'affine_s': 9.0})},
        'scores': scores,
        'threads': 2,
        'processor': '2 x Some CPU',
        'load_before': 0.3,
    }


@pytest.fixture
def records():
    return [
        record('nephi', '41', 0.84, 50.0),
        record('greedy', '41', 0.82, 200.0, digital_percent=0.5),
        record('nephi', '42', 0.85, 60.0),
        record('greedy', '42', 0.86, 100.0),
        record('syn', '41', 0.72, 130.0),
    ]


def cells(text: str, *start: str) -> list[str]:
    rows = [[cell.strip(' *') for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    return next(row for row in rows if row[:2] == list(start))


def test_tables_hold_pairs_means_medians_and_ratios(records):
    text = markdown(records)
    header = cells(text, 'pair', 'method')
    column = {name: header.index(name) for name in header}
    assert cells(text, '41 to 45', 'NePhi')[column['/ Greedy']] == '0.25'
    assert cells(text, '41 to 45', 'ANTs SyN')[column['of it affine']] == '-'
    assert cells(text, '41 to 45', 'Greedy')[column['folds, digital %']] == '0.5000'
    assert cells(text, 'mean', 'NePhi')[column['Dice']] == '0.8450'
    assert cells(text, 'median', 'Greedy')[column['seconds']] == '150.0'
    assert 'NePhi against Greedy over 2 pairs: mean Dice +0.0050 (pairs -0.0100 to' in text
    assert 'ANTs SyN against Greedy over 1 pairs' in text
    assert '2 x Some CPU, 2 threads' in text and 'greedy 1.0, nephi 1.0, syn 1.0' in text


def test_one_method_alone_has_a_table_too(records):
    text = markdown([entry for entry in records if entry['method'] == 'syn'])
    assert cells(text, '41 to 45', 'ANTs SyN') and 'against Greedy' not in text
    assert 'network' not in text


def test_a_section_is_replaced_and_the_rest_kept(tmp_path):
    path = tmp_path / 'RESULTS.md'
    replace_section(path, 'brain', 'first\n')
    path.write_text('# Results\n\n' + path.read_text() + '\nafterwards\n')
    replace_section(path, 'brain', 'second\n')
    text = path.read_text()
    assert text.startswith('# Results\n') and text.endswith('afterwards\n')
    assert 'first' not in text and text.count('second') == 1
    replace_section(path, 'affine', 'third')
    assert 'second' in path.read_text() and 'third' in path.read_text()


# --- the whole run ------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    """Two persons in the layout of ds002748, 5 mm: the demo brain and itself, shifted."""
    from small_pair import small_brain

    image, labels = small_brain()
    for person, shift in (('01', 0), ('02', 1)):
        name = f'sub-{person}'
        data, parts = (np.roll(array, shift, axis=1) for array in (image.data, labels.data))
        target = brain.Person(
            tmp_path / f'data/{name}/anat/{name}_T1w.nii.gz',
            tmp_path / f'data/{brain._LABELS.format(name)}',
        )
        save_image(target.image, data, image.grid)
        save_image(target.labels, parts.astype(np.uint8), image.grid)
    return tmp_path / 'data'


def arguments(dataset: Path, *methods: str) -> list[str]:
    common = ['--data', str(dataset), '--out', str(dataset.parent / 'out'), '--threads', '1']
    return ['brain', *common, '--fixed', '01', '--moving', '02', '--methods', *methods]


def test_a_run_goes_on_where_it_was_interrupted(dataset, monkeypatch, capsys):
    done = []

    def fake(method, fixed, moving, given):
        if method == 'greedy' and not done:
            done.append(method)
            raise RuntimeError('killed')
        done.append(method)
        return record(method, '02', 0.8, 10.0)

    monkeypatch.setattr(brain, 'run', fake)
    with pytest.raises(RuntimeError):
        main(arguments(dataset, 'greedy', 'nephi'))
    assert main(arguments(dataset, 'nephi', 'greedy')) == 0
    assert main(arguments(dataset, 'nephi', 'greedy')) == 0
    assert done == ['greedy', 'nephi', 'greedy']
    out = dataset.parent / 'out'
    assert sorted(path.name for path in out.iterdir()) == [
        'sub-01_from-sub-02_greedy.json',
        'sub-01_from-sub-02_nephi.json',
        'tables.md',
    ]
    assert (out / 'tables.md').read_text() in capsys.readouterr().out


def test_missing_files_and_peers_are_told(dataset, monkeypatch):
    monkeypatch.delenv('NEPHI_ANTS_PYTHON', raising=False)
    with pytest.raises(SystemExit, match='NEPHI_ANTS_PYTHON'):
        main(arguments(dataset, 'syn'))
    with pytest.raises(SystemExit, match='no file'):
        main([*arguments(dataset, 'greedy'), '--fixed', '99'])


def test_the_command_lists_its_benchmarks(capsys):
    assert main([]) == 64 and main(['--help']) == 0
    assert 'brain' in capsys.readouterr().out


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='Linux only')
def test_memory_of_all_processes_together_counts(tmp_path):
    child = 'import time; held = bytearray(b"x") * (150 << 20); time.sleep(3)'
    two = f'import subprocess as s, sys; p = [s.Popen([sys.executable, "-c", {child!r}]) '
    two += 'for _ in (1, 2)]; sys.exit(any([one.wait() for one in p]))'
    seconds, processor, peak = needs.watched([sys.executable, '-c', two], 1, tmp_path / 'log')
    assert 300 << 20 < peak < 420 << 20
    assert seconds > 3 > processor > 0
    with pytest.raises(SystemExit, match='ended with code 3'):
        needs.watched([sys.executable, '-c', 'raise SystemExit(3)'], 1, tmp_path / 'log')


@pytest.mark.slow
@pytest.mark.parametrize('method', brain.METHODS)
def test_a_method_is_run_measured_and_scored(dataset, method):
    if method == 'greedy':
        pytest.importorskip('picsl_greedy')
    if method == 'syn' and not os.environ.get('NEPHI_ANTS_PYTHON'):
        pytest.skip('NEPHI_ANTS_PYTHON does not name a Python with antspyx')
    assert main([*arguments(dataset, method)]) == 0
    out = dataset.parent / 'out'
    found = json.loads((out / f'sub-01_from-sub-02_{method}.json').read_text())
    # The brain and itself, 5 mm apart: an affine does it.
    assert found['scores']['dice']['after']['mean'] > 0.9
    assert found['scores']['folds']['finite_difference']['digital_count'] == 0
    assert found['wall_s'] > 0 and found['peak_mib'] > 50
    assert found['phases']['versions']
    assert not [path for path in out.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_greedy_s_own_labels_are_ours(dataset, tmp_path):
    greedy = pytest.importorskip('picsl_greedy')
    persons = [brain.Person.find(dataset, label) for label in ('01', '02')]
    fixed, moving = persons
    peers.greedy(fixed.image, moving.image, tmp_path, 1)
    greedy.Greedy3D().execute(
        f'-rf {fixed.image} -ri NN -rm {moving.labels} {tmp_path}/theirs.nii.gz '
        f'-r {tmp_path}/warp.nii.gz {tmp_path}/affine.mat -threads 1'
    )
    from benchmarks.scoring import saved_transform
    from nephi_pipe.images import load_labels

    transform, _ = saved_transform('greedy', tmp_path)
    target = load_labels(fixed.labels)
    ours = resample(load_labels(moving.labels), transform, target.grid, 'labels')
    theirs: Image = load_labels(tmp_path / 'theirs.nii.gz')
    different = np.count_nonzero(ours.data != theirs.data)
    assert different < 0.002 * np.count_nonzero(theirs.data)


# --- the weights on drawn pairs -----------------------------------------------------------------


def test_drawn_pairs_are_the_same_each_time_and_never_of_one_person():
    pairs = weights.drawn_pairs(16, 0)
    assert pairs == weights.drawn_pairs(16, 0) != weights.drawn_pairs(16, 1)
    assert len(set(pairs)) == 16
    assert all(fixed != moving for fixed, moving in pairs)


def test_the_weights_tables_say_how_far_a_forward_pass_goes():
    alone, greedy = record('nephi-0', '41', 0.77, 12.0), record('greedy', '41', 0.82, 90.0)
    alone['phases'] |= {'deformable_s': 2.0, 'dense_s': 1.5}
    alone['scores']['folds']['lattice'] = {'percent': 0.002}
    text = weights.markdown([alone, greedy])
    assert '| 41 to 45 | 0.7000 | 0.7700 | 0.8200 |' in text
    assert 'median 3.5 s' in text
    assert 'of the determinants at every voxel 0.0020 % are negative' in text
    assert '58 % of the way from their affine to Greedy' in text
