"""The template benchmark: what it registers, overlap of people there, its tables."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from small_pair import small_brain

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from field_records import cells, person, record  # noqa: E402

from benchmarks import template  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.template_images import coarse, write_pair, write_template  # noqa: E402
from benchmarks.template_tables import markdown, pairwise_dice  # noqa: E402
from nephi_pipe.geometry import Grid  # noqa: E402
from nephi_pipe.images import load_image, save_image  # noqa: E402
from nephi_pipe.metrics import read_landmarks, tre_mm  # noqa: E402

# --- what is registered -----------------------------------------------------------


def test_a_person_becomes_a_pair_of_two_millimetres(tmp_path):
    image, labels = small_brain(4.0)
    smaller, parts = coarse(image, labels)
    assert smaller.grid.spacing == pytest.approx(2.0) and parts.grid.same_as(smaller.grid)
    assert set(np.unique(parts.data)) == set(np.unique(labels.data))
    assert (smaller.data[[0, -1]] == 0).all()
    write_pair(tmp_path, image, labels, 3)
    points = [read_landmarks(tmp_path / f'{side}_landmarks.tsv') for side in ('fixed', 'moving')]
    apart = tre_mm(*points, lambda points: points)
    assert 2.0 < apart.mean() < apart.max() <= 12.2


def test_the_template_is_a_brain_alone(tmp_path):
    pytest.importorskip('nilearn')
    write_template(tmp_path / 'template.nii.gz')
    found = load_image(tmp_path / 'template.nii.gz')
    assert found.grid.spacing == pytest.approx(1.0)
    litres = (found.data > 0).sum() / 1e6
    assert 1.5 < litres < 2.2 and (found.data[0] == 0).all()


# --- tables and runs ----------------------------------------------------------------------------


def test_overlap_of_every_pair_of_maps():
    maps = {'a': np.array([0, 1, 1, 2]), 'b': np.array([1, 1, 0, 2]), 'c': np.array([3, 3, 0, 0])}
    found = pairwise_dice(maps)
    assert found == {('a', 'b'): 0.75, ('a', 'c'): 0.0, ('b', 'c'): 0.0}


def test_the_template_s_table_compares_people_with_each_other(tmp_path):
    maps = {'41': [0, 1, 1, 2], '42': [1, 1, 0, 2], '43': [0, 1, 1, 2]}
    for label, values in maps.items():
        data = np.array(values, dtype=np.uint8).reshape(4, 1, 1).repeat(2, 1).repeat(2, 2)
        for end in ('', '_affine'):
            path = tmp_path / f'MNI152_from-sub-{label}_nephi-0{end}.nii.gz'
            save_image(path, data, Grid(data.shape, np.eye(4)))
    records = [record('nephi-0', 'MNI152', label) for label in maps]
    tre = {'raw': {'mean': 5.0}, 'before': {'mean': 4.0}}
    tre['after'] = {'mean': 1.0, 'median': 0.9, 'p90': 2.0}
    records.append(record('nephi-20', 'sim-41', '41', tre_mm=tre))
    text = markdown(records, tmp_path)
    header, row = cells(text, 'method'), cells(text, 'NePhi, weights alone')
    assert row[header.index('Dice')] == f'{(0.75 + 1 + 0.75) / 3:.4f}'
    assert row[header.index('folds, digital %')] == '0.5000'
    assert '3 people' in text and cells(text, '41 to sim-41')[4] == '1.000'


def test_everything_is_kept(tmp_path, monkeypatch):
    done = []

    def fake(images, scored, given):
        done.append(scored[0])
        return record(images[0], '', '')

    monkeypatch.setattr(template, 'run_at_voxels', fake)
    monkeypatch.setattr(template.Person, 'find', partial(person, tmp_path))
    monkeypatch.setattr(template, 'made', lambda *_: None)
    monkeypatch.setattr('benchmarks.template_tables.markdown', lambda *_: 'tables\n')
    out = tmp_path / 'out'
    command = ['template', '--data', str(tmp_path), '--out', str(out), '--people', '41']
    command += ['--methods', 'greedy', '--simulated', '42', '--simulated-methods', 'nephi-0']
    assert main(command) == 0 and main(command) == 0
    assert done == ['--warped', '--landmarks']
    names = ['MNI152_from-sub-41_greedy.json', 'sim-42_nephi-0.json', 'tables.md']
    assert sorted(path.name for path in out.iterdir()) == names
