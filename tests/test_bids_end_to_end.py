"""``nephi-pipe`` with the real registration."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from bids_data import SHAPE, ball, make_dataset, save
from bids_runs import check_valid

from nephi_pipe.bids_app import progress
from nephi_pipe.bids_app.cli import main
from nephi_pipe.bids_app.dataset import read_json


@pytest.fixture
def line(tmp_path):
    """A quick run of sub-01 to sub-02."""
    data = make_dataset(tmp_path / 'ds')
    return [
        str(data), str(tmp_path / 'out'), 'participant', '-w', str(tmp_path / 'w'),
        '--reference', 'sub-02', '--derivatives', f'seg={data}/derivatives/seg', '--sloppy',
        '--nprocs', '1', '--weights', 'none',
    ]  # fmt: skip


def test_a_workflow_is_built_without_torch(line, tmp_path):
    code = (
        'import sys\n'
        'from nephi_pipe.bids_app.cli import parse_settings\n'
        'from nephi_pipe.bids_app.pairs import select_pairs\n'
        'from nephi_pipe.bids_app.workflow import build_workflow\n'
        f'settings = parse_settings({line!r})\n'
        'workflow = build_workflow(settings, select_pairs(settings), "run")\n'
        'assert "torch" not in sys.modules and "niworkflows" not in sys.modules\n'
        'print(*sorted(workflow.list_node_names()))\n'
        'node = workflow.get_node("sub_01.sub01_to_sub02.sink")\n'
        'print(node.config["execution"]["crashdump_dir"])\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, crashes = done.stdout.splitlines()
    own = {name.split('.')[-1] for name in names.split()}
    assert {'fixed_brain', 'moving_brain', 'affine_init', 'optimize', 'evaluate', 'sink'} <= own
    assert crashes == str(tmp_path / 'out' / 'sub-01' / 'log' / 'run')


def test_a_mask_that_misses_the_brain(line, tmp_path, capfd):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[:3, :3, :3] = 1
    save(tmp_path / 'ds/derivatives/seg/sub-01/anat/sub-01_desc-brain_mask.nii.gz', mask)
    assert main([*line, '--no-affine']) == 65
    said = capfd.readouterr().err
    assert 'Error: sub-01: The mask "' in said and 'misses what' in said


@pytest.mark.slow
def test_two_people_to_a_third_and_again(line, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, 'TOLD_EVERY_S', 0.05)
    image, labels = ball(5)
    data, out = tmp_path / 'ds', tmp_path / 'out'
    save(data / 'sub-03/anat/sub-03_T1w.nii.gz', image)
    save(
        data / 'derivatives/seg/sub-03/anat/sub-03_desc-ball_dseg.nii.gz', labels.astype(np.int16)
    )
    line = [*line[:3], 'group', *line[3:]]
    assert main(line) == 0, capfd.readouterr().err
    for person in ('01', '03'):
        anat = out / f'sub-{person}' / 'anat'
        metrics = read_json(anat / f'sub-{person}_space-sub02_desc-nephi_metrics.json')
        dice = metrics['dice']
        assert dice['after']['mean'] > dice['before']['mean'] - 0.01
        assert metrics['folds']['exact']['count'] == 0
        assert metrics['provenance']['sloppy'] is True
        assert (out / f'sub-{person}.html').stat().st_size > 10_000
        warped = read_json(anat / f'sub-{person}_space-sub02_desc-nephi_T1w.json')
        assert warped['SkullStripped'] is True
    assert (out / 'group_desc-nephi_metrics.tsv').read_text().count('\n') == 3
    assert 'of 12, similarity 0.' in capfd.readouterr().out
    assert main(line) == 0
    said = capfd.readouterr().out
    assert said.count('finished (kept)') == 2 and 'started' not in said
    assert main([*line, '--xfm-format', 'nii']) == 0
    said = capfd.readouterr().out
    assert said.count('transform files ...') == 2 and 'deformation ...' not in said
    check_valid(out)
