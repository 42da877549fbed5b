"""The memory benchmark's measuring and tables; GradICON itself is in an environment of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import training_memory  # noqa: E402
from benchmarks.memory_cubes import FIELD_OF_VIEW_MM, cube_around, save_person  # noqa: E402
from nephi_pipe.geometry import Grid  # noqa: E402
from nephi_pipe.images import Image, load_image, load_mask  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='the kernel forgets peaks there')

CIRCUMSTANCES = {'threads': 2, 'processor': '2 x this', 'versions': {'torch': '2'}}
NEEDED = {'gradicon': (9000, 15000), 'nephi-brain': (2100, 3300), 'nephi-lung': (900, 900)}


def trainings() -> list[dict]:
    return [
        {'method': method, 'size': size, 'above_mib': above, **CIRCUMSTANCES}
        for method, both in NEEDED.items()
        for size, above in zip((160, 192), both, strict=True)
    ]


def instances(coarse: float, fine: float) -> list[dict]:
    others = {'images_mib': 10.0, 'features_mib': 20.0, 'peak_mib': 1000.0}
    return [
        {'method': 'instance', 'size': size, 'above_mib': above, **others, **CIRCUMSTANCES}
        for size, above in ((96, coarse), (256, fine))
    ]


GROWING = """\
import json, sys
sys.path.insert(0, 'benchmarks')
from memory_steps import grown
before = bytearray(200 * 2**20)
kept = bytearray(50 * 2**20)
del before
print(json.dumps(grown(lambda: len(bytearray(100 * 2**20)))))
print(json.dumps(grown(lambda: __import__('colorsys'))))
"""


def test_only_what_comes_after_the_imports_is_counted():
    run = subprocess.run(
        [sys.executable, '-c', GROWING], capture_output=True, text=True, cwd=ROOT, check=True
    )
    large, late = map(json.loads, run.stdout.splitlines())
    assert large['above_mib'] == pytest.approx(100, abs=5)
    assert 50 < large['held_mib'] < 150
    assert large['top_mib'] == pytest.approx(large['held_mib'] + large['above_mib'])
    assert (large['late_modules'], late['late_modules']) == (0, 1)
    assert late['above_mib'] < 5


def test_the_measuring_process_stays_small():
    code = (
        'import sys, benchmarks.training_memory\n'
        'print([name for name in ("numpy", "torch", "nephi_pipe") if name in sys.modules])'
    )
    run = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert run.stdout.strip() == '[]'


def test_cubes_of_every_size_see_the_same(tmp_path):
    image = Image(np.zeros((5, 6, 7), np.float32), Grid((5, 6, 7), np.diag([2.0, 2, 2, 1])))
    for size in (12, 25):
        cube = cube_around(image, size)
        assert cube.shape == (size,) * 3
        assert cube.size * cube.voxel_volume_mm3 == pytest.approx(FIELD_OF_VIEW_MM**3)
        np.testing.assert_allclose(cube.center_mm, image.grid.center_mm)
    values = save_person('sub-41', 24, tmp_path / 'fixed')
    assert 0 <= values.min() < 0.5 < values.max() <= 1
    brain = load_image(tmp_path / 'fixed_brain.nii')
    mask = load_mask(tmp_path / 'fixed_masks.nii', like=brain).data
    lung = load_image(tmp_path / 'fixed_lung.nii').data
    assert 500 < mask.sum() < 6000
    assert lung[values == 0].max() == -1000


def test_tables_compare_with_gradicon_size_by_size():
    text = training_memory.markdown(trainings())
    assert '| NePhi, `brain` (ships), with label maps | 2100 (0.233) | 3300 (0.220) |' in text
    assert 'The bar at 160³, 0.333 of GradICON, is met by all of ours.' in text
    assert 'missed by NePhi, `brain` (ships), with label maps by 10%.' in text


def test_without_gradicon_there_is_no_verdict():
    ours = [record for record in trainings() if record['method'] == 'nephi-lung']
    text = training_memory.markdown(ours)
    assert '| 900 | 900 |' in text
    assert 'bar' not in text


@pytest.mark.parametrize(('fine', 'said'), [(330.0, '1.10 times'), (420.0, '1.40 times')])
def test_growth_of_the_steps_alone(fine, said):
    text = training_memory.markdown(instances(300.0, fine))
    assert said in text
    assert text.rstrip().endswith('met.' if fine < 390 else 'missed.')


def test_what_is_measured_is_not_measured_again(tmp_path):
    for record in trainings():
        path = tmp_path / f'{record["method"]}_{record["size"]}.json'
        path.write_text(json.dumps(record))
    results = tmp_path / 'RESULTS.md'
    line = ['--out', str(tmp_path), '--finished', '--results']
    assert training_memory.main([*line, str(results)]) == 0
    assert '<!-- training-memory: begin -->' in results.read_text()
    assert (tmp_path / 'tables.md').read_text().strip() in results.read_text()


def test_gradicon_needs_a_python_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv('NEPHI_ICON_PYTHON', raising=False)
    with pytest.raises(SystemExit, match='icon_registration'):
        training_memory.main(['--out', str(tmp_path)])
