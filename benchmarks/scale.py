"""What a large data set costs besides registration: indexing, dry run, workflow, group level."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from nephi_pipe.files import make_folder, write_json

SHAPE = (6, 6, 6)
"""Voxels of a simulated scan: its header is real, and nothing is ever computed from it."""

HEADINGS = ('people', 'step', 'seconds', 'milliseconds a person', 'what came of it')


def main(argv: list[str]) -> int:
    """Make data sets of several sizes, time every step on them, and print a table."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks scale', description=__doc__)
    parser.add_argument('--people', type=int, nargs='+', default=[250, 500, 1000], metavar='N')
    parser.add_argument('--out', type=Path, required=True, help='an empty folder for the data')
    given = parser.parse_args(argv)
    print(f'| {" | ".join(HEADINGS)} |\n|{" --- |" * len(HEADINGS)}')
    for people in given.people:
        folder = given.out / str(people)
        make_dataset(folder / 'ds', people)
        for step, seconds, what in measure(folder):
            each = f'{1000 * seconds / people:.1f}'
            print(f'| {people} | {step} | {seconds:.1f} | {each} | {what} |', flush=True)
    return 0


def make_dataset(root: Path, people: int) -> Path:
    """A valid data set of so many people, and label maps and masks for them in derivatives/seg."""
    write_json(root / 'dataset_description.json', {'Name': 'scale', 'BIDSVersion': '1.10.0'})
    seg = root / 'derivatives' / 'seg'
    about = {'Name': 'seg', 'BIDSVersion': '1.10.0', 'DatasetType': 'derivative'}
    write_json(seg / 'dataset_description.json', {**about, 'GeneratedBy': [{'Name': 'seg'}]})
    labels = [f'{number:04d}' for number in range(1, people + 1)]
    ages = ''.join(f'sub-{label}\t{20 + int(label) % 60}\n' for label in labels)
    (root / 'participants.tsv').write_text('participant_id\tage\n' + ages)
    scan, mask, dseg = map(simulated_image, (np.float32, np.uint8, np.int16))
    for label in labels:
        stem = f'sub-{label}/anat/sub-{label}'
        for path, content in (
            (root / f'{stem}_T1w.nii.gz', scan),
            (seg / f'{stem}_desc-brain_mask.nii.gz', mask),
            (seg / f'{stem}_desc-seg_dseg.nii.gz', dseg),
        ):
            make_folder(path.parent)
            path.write_bytes(content)
    return root


def simulated_image(kind: type) -> bytes:
    """A small NIfTI file, compressed."""
    image = nib.Nifti1Image(np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(kind), np.eye(4))
    image.set_sform(image.affine, code=1)
    return gzip.compress(image.to_bytes(), mtime=0)


def measure(folder: Path) -> Iterator[tuple[str, float, str]]:
    """Each step's name, seconds, and what came of it."""
    import bids.layout  # noqa: F401  (its import is no part of the indexing)

    from nephi_pipe.bids_app.cli import parse_settings
    from nephi_pipe.bids_app.group import build_group
    from nephi_pipe.bids_app.pairs import select_pairs
    from nephi_pipe.bids_app.preflight import check_pairs
    from nephi_pipe.bids_app.workflow import build_workflow

    line = [
        str(folder / 'ds'), str(folder / 'out'), 'participant', '-w', str(folder / 'work'),
        '--reference', 'sub-0001', '--derivatives', f'seg={folder}/ds/derivatives/seg',
    ]  # fmt: skip
    settings = parse_settings(line)
    seconds, pairs = timed(lambda: select_pairs(settings))
    yield 'index, select pairs', seconds, f'{len(pairs)} pairs'
    seconds, (good, _) = timed(lambda: check_pairs(pairs))
    yield 'check headers', seconds, f'{len(good)} good pairs'
    seconds, text = timed(lambda: dry_run(line))
    yield '`--dry-run`, both of these again', seconds, f'{text.count(chr(10))} lines'
    seconds, workflow = timed(lambda: build_workflow(settings, pairs, 'run'))
    yield 'build the workflow', seconds, f'{len(workflow._get_all_nodes())} nodes'
    store_metrics(folder / 'out', pairs)
    seconds, paths = timed(lambda: build_group(folder / 'out'))
    yield 'group level', seconds, f'{paths["html"].stat().st_size / 1e6:.2f} MB of HTML'


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds on the clock, and what the step returned."""
    started = time.monotonic()
    result = step()
    return time.monotonic() - started, result


def dry_run(line: Sequence[str]) -> str:
    """What ``nephi-pipe --dry-run`` prints.

    Raises
    ------
    RuntimeError
        It did not succeed.
    """
    from nephi_pipe.bids_app.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main([*line, '--dry-run'])
    if code:
        raise RuntimeError(f'the dry run ended with code {code}')
    return said.getvalue()


def store_metrics(output_dir: Path, pairs: Sequence[Any]) -> None:
    """Simulated scores of every pair, with the keys that real ones have."""
    from nephi_pipe.bids_app.names import Names

    rng = random.Random(0)
    for pair in pairs:
        write_json(Names(output_dir, pair).metrics, simulated_metrics(rng))


def simulated_metrics(rng: random.Random) -> dict[str, Any]:
    """Scores of one pair: 17 structures, folds by every definition, and the rest."""
    labels = {str(label): rng.gauss(0.8, 0.03) for label in range(1, 18)}
    spread = {'min': rng.gauss(0.4, 0.05), 'p01': 0.65, 'p99': 1.5, 'max': 1.8, 'sd_log': 0.17}
    distances = {'mean': rng.gauss(2.0, 0.2), 'p95': 3.5, 'max': 6.2}
    return {
        'seconds': {'affine': 9.0, 'total': rng.gauss(200, 20)},
        'dice': {
            'before': {'mean': rng.gauss(0.68, 0.02), 'labels': labels},
            'after': {'mean': rng.gauss(0.8, 0.02), 'labels': labels},
        },
        'folds': {
            'exact': {'points': 55000, 'count': 0, 'percent': 0.0, 'min': 0.1},
            'lattice': {'voxels': 150000, 'count': 0, 'percent': 0.0},
            'finite_difference': {'central_count': 0, 'central_percent': 0.0, 'ndv_percent': 0.0},
        },
        'jacobian': {'total': spread, 'deformation': spread},
        'similarity': {'before': rng.gauss(0.5, 0.02), 'after': rng.gauss(0.6, 0.02)},
        'displacement_mm': distances,
        'inverse_consistency_mm': {'mean': rng.gauss(0.7, 0.1), 'p95': 1.9, 'max': 4.0},
    }


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
