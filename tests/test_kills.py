"""Real runs that are killed, with SIGKILL or as the kernel does it: nothing is lost by it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bids_data import small_demo
from bids_runs import computed, wait_for

from nephi_pipe.bids_app.dataset import read_json

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.workers import workers_of  # noqa: E402

KILLS = 20


class Demo:
    """``nephi-pipe`` on real brains at 4 mm, as a process of its own."""

    def __init__(self, data, folder):
        self.data, self.out, self.work = data, folder / 'out', folder / 'work'
        self.log = folder / 'said.txt'
        folder.mkdir()

    def start(self, *more, levels=('participant', 'group')):
        labels = f'meshnet={self.data}/derivatives/meshnet'
        line = [
            str(self.data), str(self.out), *levels, '-w', str(self.work), '--sloppy',
            '--derivatives', labels, '--reference', 'sub-45', '--nprocs', '2',
            '--omp-nthreads', '1', *more,
        ]  # fmt: skip
        with open(self.log, 'wb') as stream:
            return subprocess.Popen(
                [sys.executable, '-m', 'nephi_pipe.bids_app.cli', *line],
                stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def run(self, *more, **kind):
        return self.start(*more, **kind).wait(timeout=600)

    def said(self):
        return self.log.read_text(errors='replace')

    def computed(self):
        return computed(self.work)

    def files(self):
        """Contents by name, without what tells times and names of runs."""
        found = {str(p.relative_to(self.out)): p for p in self.out.rglob('*') if p.is_file()}
        run = re.compile(r'logs/\d{8}-\d{6}_[0-9a-f]{8}\.(toml|log)')
        return {
            name: without_times(path)
            for name, path in found.items()
            if not run.fullmatch(name)
        }  # fmt: skip


def without_times(path):
    """The bytes of a file; in a text the seconds that a registration took are taken out."""
    content = path.read_bytes()
    if path.suffix == '.json':
        return re.sub(rb'"seconds": (\{[^}]*\}|[\d.]+)', b'"seconds": 0', content)
    if path.name == 'group_desc-nephi_metrics.tsv':
        rows = [line.split(b'\t') for line in content.splitlines()]
        column = rows[0].index(b'seconds')
        return [row[:column] + row[column + 1 :] for row in rows]
    if path.suffix == '.html':
        for pattern in (
            rb'<svg [^>]*aria-label="Time:.*?</figcaption>',  # the chart of everybody's seconds
            rb'(?:\d+ min )?\d+(?:\.\d)? s(?=</(?:strong|td)>)',
            rb'<td data-value="[\d.]+">\d+(?=</td></tr>)',  # last column of the group's table
            rb'seconds / \w+</th><td colspan="1">[\d.]+(?=</td>)',
        ):
            content = re.sub(pattern, b'', content, flags=re.DOTALL)
    return content


def different(one, other):
    """Names of files that only one has, or whose contents differ."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def kill(process):
    process.kill()
    process.wait()


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    demo = Demo(small_demo(folder / 'ds'), folder / 'run')
    assert demo.run() == 0, demo.said()
    return demo


@pytest.mark.slow
def test_twenty_kills_leave_the_bytes_of_an_undisturbed_run(undisturbed, tmp_path):
    demo, nodes = Demo(undisturbed.data, tmp_path / 'run'), len(undisturbed.computed())
    moments, hit = random.Random(6), []

    def come_far_enough(process):
        """The first kills come while this share is computed, the last at the group level."""
        share = int(len(hit) / (KILLS - 3) * nodes)
        if share < nodes:
            return process.poll() is not None or len(demo.computed()) >= share
        return process.poll() is not None or '2 of 2.' in demo.said()

    while len(hit) < KILLS:
        process = demo.start()
        wait_for(lambda process=process: come_far_enough(process), 300)
        time.sleep(moments.uniform(0, 1.5 if len(hit) < KILLS - 3 else 0.4))
        if process.poll() is None:
            kill(process)
            hit.append((len(demo.computed()), '2 of 2.' in demo.said()))
        else:
            assert process.returncode == 0, demo.said()
    assert hit[0][0] < nodes / 3 and [late for _, late in hit[-3:]] == [True] * 3, hit
    assert demo.run() == 0, demo.said()
    assert different(demo.files(), undisturbed.files()) == []
    assert not list(demo.out.rglob('.*.partial.*')) and not list(demo.out.rglob('*.lock'))
    assert not list(demo.out.rglob('crash-*'))


@pytest.mark.slow
def test_a_copy_of_the_data_computes_nothing_and_gives_the_same(undisturbed, tmp_path):
    """Other paths and other times, the same content."""
    before = undisturbed.computed()
    again = Demo(small_demo(tmp_path / 'moved'), tmp_path / 'run')
    again.work = undisturbed.work
    assert again.run() == 0, again.said()
    assert again.computed() == before and len(before) >= 12
    assert 'started' not in again.said() and again.said().count('finished (kept)') == 2
    changed = different(again.files(), undisturbed.files())
    assert changed == ['dataset_description.json'], 'which names the folder of the data'


@pytest.mark.slow
def test_workers_killed_in_a_run_of_several_people(undisturbed, tmp_path):
    """Two of three people lose their worker in the middle of a computation, as by the kernel."""
    if not Path('/proc/self/task').exists():
        pytest.skip('the workers of a run are found in /proc')
    data = small_demo(tmp_path / 'ds')
    for path in sorted(data.rglob('sub-41*.nii.gz')):  # the same brain once more
        new = Path(str(path).replace('sub-41', 'sub-51'))
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(path.read_bytes())
    demo = Demo(data, tmp_path / 'run')
    process = demo.start()
    # Both busy workers, each in the optimisation of its pair.
    wait_for(lambda: demo.said().count('deformation ...') >= 2 or process.poll() is not None, 300)
    time.sleep(1.0)
    for pid in workers_of(process):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=600) == 1, demo.said()
    said = demo.said()
    assert '1 of 3 pairs finished. Failed: sub-41, sub-43.' in said
    assert said.count('was killed (SIGKILL), most probably because memory ran out') == 2
    crashes = sorted(demo.out.glob('sub-*/log/*/crash-*.txt'))
    assert [path.parents[2].name for path in crashes] == ['sub-41', 'sub-43']
    assert all('SIGKILL' in path.read_text() for path in crashes)
    assert (demo.out / 'sub-51.html').exists()
    finished = demo.computed()
    assert demo.run() == 0, demo.said()
    assert finished.items() <= demo.computed().items(), 'what was finished is kept'
    own = {
        name: content
        for name, content in undisturbed.files().items()
        if re.match(r'sub-4[13](/anat/|/figures/|\.html)', name)
    }
    mine = {name: content for name, content in demo.files().items() if name in own}
    assert different(own, mine) == []
    metrics = read_json(demo.out / 'sub-51/anat/sub-51_space-sub45_desc-nephi_metrics.json')
    assert (
        metrics['dice']['after']
        == read_json(demo.out / 'sub-41/anat/sub-41_space-sub45_desc-nephi_metrics.json')['dice'][
            'after'
        ]
    )
