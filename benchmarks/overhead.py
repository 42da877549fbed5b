"""What the pipeline adds to a registration: Nipype, pybids and files, in seconds for each pair."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from .measure import Usage, limited_to, measured

STEP = 2
"""Every second voxel of the demo's brains is taken (4 mm): overhead does not depend on voxels."""

REFERENCE = 'sub-45'


def main(argv: list[str]) -> int:
    """Time runs of the app and of its computations alone, and a run that finds all of it done."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks overhead', description=__doc__)
    parser.add_argument('--pairs', type=int, default=6, metavar='N')
    parser.add_argument('--kept', type=int, default=12, metavar='N', help='finished pairs, rerun')
    parser.add_argument('--out', type=Path, required=True, help='an empty folder')
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    app = run_app(given.out / 'app', given.pairs, nprocs=1)
    plain = run_plain(given.out / 'plain', given.pairs)
    each = (app.wall_s - plain.wall_s) / given.pairs
    processor = (app.cpu_s - plain.cpu_s) / given.pairs
    print(f'{given.pairs} pairs, one at a time: {app.wall_s:.1f} s as `nephi-pipe`, ')
    print(f'{plain.wall_s:.1f} s as the same computations in one Python process: ')
    print(f'**{each:.2f} s a pair** on the clock, {processor:.2f} s of a processor', flush=True)
    run_app(given.out / 'kept', given.kept, nprocs=2)
    again = run_app(given.out / 'kept', given.kept, nprocs=2)
    print(f'{given.kept} pairs, all of them done already: {again.wall_s:.1f} s, ')
    print(f'{again.wall_s / given.kept:.2f} s a pair')
    return 0


def make_dataset(root: Path, people: int) -> Path:
    """So many people with the demo's two brains in turn, and the third one as the reference."""
    from nephi_pipe.demo import DATASET

    if root.exists():
        return root
    shutil.copytree(DATASET, root)
    for path in sorted(root.rglob('*.nii.gz')):
        image = nib.load(path)
        data = np.asarray(image.dataobj)[::STEP, ::STEP, ::STEP]
        affine = image.affine @ np.diag([STEP, STEP, STEP, 1.0])
        nib.save(nib.Nifti1Image(data, affine, dtype=image.get_data_dtype()), path)
    for number in range(people):
        source, target = ('sub-41', 'sub-43')[number % 2], f'sub-{1001 + number}'
        for path in sorted(root.rglob(f'{source}*.nii.gz')):
            new = Path(str(path).replace(source, target))
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new)
    for source in ('sub-41', 'sub-43'):
        for folder in sorted(root.rglob(source)):
            shutil.rmtree(folder)
    return root


def run_app(folder: Path, pairs: int, nprocs: int) -> Usage:
    """``nephi-pipe`` over all pairs, with every report."""
    data = make_dataset(folder / 'ds', pairs)
    command = [
        sys.executable, '-m', 'nephi_pipe.bids_app.cli', data, folder / 'out', 'participant',
        '--derivatives', f'meshnet={data}/derivatives/meshnet', '--reference', REFERENCE,
        '-w', folder / 'work', '--sloppy', '--nprocs', nprocs, '--omp-nthreads', '1',
    ]  # fmt: skip
    return measured(list(map(str, command)), folder / 'said.txt', limited_to(1))


def run_plain(folder: Path, pairs: int) -> Usage:
    """What the nodes compute, one after the other in a process that knows no workflow."""
    make_dataset(folder / 'ds', pairs)
    command = [sys.executable, '-m', 'benchmarks.overhead', 'plain', str(folder)]
    return measured(command, folder / 'said.txt', limited_to(1))


def compute(folder: Path) -> None:
    """Every pair's computations, called as the nodes call them."""
    data = folder / 'ds'
    labels = data / 'derivatives' / 'meshnet'
    fixed = files_of(data, labels, REFERENCE, 'fixed')
    for person in sorted(path.name for path in data.glob('sub-1*')):
        out = folder / 'out' / person
        compute_pair({**fixed, **files_of(data, labels, person, 'moving')}, out)


def files_of(data: Path, labels: Path, person: str, side: str) -> dict[str, str]:
    """The scan and the label map of one person, by the names of the interfaces' inputs."""
    return {
        f'{side}_image': str(data / person / 'anat' / f'{person}_T1w.nii.gz'),
        f'{side}_labels': str(labels / person / 'anat' / f'{person}_desc-meshnet18_dseg.nii.gz'),
    }


def compute_pair(files: dict[str, str], out: Path) -> None:
    """Masks, affine, deformation, transforms, scores and figures of one pair."""
    from nephi_pipe.interfaces import (
        AffineInit,
        BrainMask,
        EvaluateRegistration,
        NePhiOptimize,
        PairReport,
        WriteTransforms,
    )

    def run(name, interface, **inputs):
        cwd = out / name
        cwd.mkdir(parents=True)
        return interface(**inputs).run(cwd=str(cwd)).outputs

    images = {name: path for name, path in files.items() if name.endswith('image')}
    masks = {
        f'{side}_mask': run(f'{side}_mask', BrainMask, image=files[f'{side}_image']).mask
        for side in ('fixed', 'moving')
    }
    start = run('affine', AffineInit, **images, **masks)
    found = run(
        'optimize', NePhiOptimize, **images, **masks, sloppy=True, xfm_format='field',
        initial_transform=start.affine,
    )  # fmt: skip
    saved = run('transforms', WriteTransforms, field=found.field)
    scores = run(
        'evaluate', EvaluateRegistration, **files, field=found.field,
        transforms=[saved.forward_transform],
    )  # fmt: skip
    run(
        'report', PairReport, **files, field=found.field, warped_image=found.warped_image,
        jacobian=found.jacobian, history=found.history, metrics=scores.metrics,
        warped_labels=scores.warped_labels,
    )  # fmt: skip


if __name__ == '__main__':
    started = time.monotonic()
    compute(Path(sys.argv[2]))
    print(f'{time.monotonic() - started:.1f} s')
