"""The benchmarks of a large data set and of the pipeline's overhead do run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import overhead, scale  # noqa: E402


def test_every_step_of_a_large_data_set(tmp_path, capsys):
    assert scale.main(['--people', '3', '5', '--out', str(tmp_path)]) == 0
    rows = [line.split(' | ') for line in capsys.readouterr().out.splitlines()[2:]]
    steps = [row[1] for row in rows if row[0] == '| 5']
    assert steps == [
        'index, select pairs', 'check headers', '`--dry-run`, both of these again',
        'build the workflow', 'group level',
    ]  # fmt: skip
    assert {row[4] for row in rows if row[1] == 'check headers'} == {
        '2 good pairs |', '4 good pairs |'
    }  # fmt: skip
    table = tmp_path / '5' / 'out' / 'group_desc-nephi_metrics.tsv'
    assert table.read_text().count('\n') == 5


@pytest.mark.slow
def test_the_pipeline_and_the_plain_computation_give_the_same(tmp_path, capsys):
    assert overhead.main(['--pairs', '1', '--kept', '1', '--out', str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r'\*\*-?[\d.]+ s a pair\*\* on the clock', said)
    assert '1 pairs, all of them done already' in said
    (app,) = (tmp_path / 'app/work').rglob('optimize/warped.nii.gz')
    plain = tmp_path / 'plain/out/sub-1001/optimize/warped.nii.gz'
    assert app.read_bytes() == plain.read_bytes()
