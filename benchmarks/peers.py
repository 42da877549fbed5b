"""One registration by one method, in a process of its own.

    PYTHON benchmarks/peers.py METHOD FIXED MOVING FOLDER --threads N

writes the method's transform and ``phases.json`` (seconds and versions) into FOLDER. PYTHON is one
that has the method's package: antspyx caps numpy below what nephi_pipe's environment holds, so
this file imports nothing of nephi_pipe at its top and needs no package around it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

GREEDY_AFFINE = '-a -dof 12 -ia-image-centers -m NCC 2x2x2 -n 100x50x10'
GREEDY_DEFORMABLE = '-m WNCC 2x2x2 -n 100x50x10 -s 1.732vox 0.7071vox'


def save_nephi(registration: Any, folder: Path) -> dict:
    """Write both transforms and the field; what is told of a registration by NePhi."""
    started = time.monotonic()
    registration.displacement(registration.fixed_grid)  # kept for the files that follow
    dense_s = time.monotonic() - started
    for name, inverse in (('transform', False), ('inverse', True)):
        registration.save_transform(folder / f'{name}.h5', inverse=inverse)
    registration.save_field(folder / 'field.safetensors')
    seconds = registration.provenance['seconds']
    phases = {
        'affine_s': seconds['affine'],
        'deformable_s': seconds['total'] - seconds['affine'],
        'dense_s': dense_s,
        'steps': len(registration.history),
    }
    return phases | {'versions': {name: version(name) for name in ('nephi-pipe', 'torch')}}


def nephi(
    fixed: Path,
    moving: Path,
    folder: Path,
    threads: int,
    steps: int | None = None,
    weights: str = 'default',
    save: Callable[[Any, Path], dict] = save_nephi,
) -> dict:
    """What ``nephi register FIXED MOVING`` does before it scores: both transforms, and the field.

    The field file is read afterwards for the exact Jacobians; its writing counts too.
    """
    from nephi_pipe import register

    registration = register(fixed, moving, threads=threads, steps=steps, weights=weights)
    return save(registration, folder)


def greedy(fixed: Path, moving: Path, folder: Path, threads: int) -> dict:
    """Greedy's affine, then its deformable registration with windowed NCC."""
    return run_greedy(
        f'-i {fixed} {moving} -threads {threads}', GREEDY_AFFINE, GREEDY_DEFORMABLE, folder
    )


def run_greedy(common: str, affine: str, deformable: str, folder: Path) -> dict:
    """Greedy's two stages with their options, timed."""
    from picsl_greedy import Greedy3D

    program, matrix = Greedy3D(), folder / 'affine.mat'
    started = time.monotonic()
    program.execute(f'{common} {affine} -o {matrix}')
    aligned = time.monotonic()
    program.execute(f'{common} {deformable} -it {matrix} -o {folder / "warp.nii.gz"}')
    phases = {'affine_s': aligned - started, 'deformable_s': time.monotonic() - aligned}
    return phases | {'versions': {'picsl-greedy': version('picsl-greedy')}}


def syn(fixed: Path, moving: Path, folder: Path, threads: int) -> dict:
    """ANTs SyN with antspyx's defaults; its affine is part of the one call, and not timed apart.

    The number of threads comes from the environment, where ITK looks for it.
    """
    import ants

    images = [ants.image_read(str(path)) for path in (fixed, moving)]
    ants.registration(*images, type_of_transform='SyN', outprefix=f'{folder}/syn_')
    return {'versions': {'antspyx': version('antspyx')}}


METHODS = {
    'nephi': nephi,
    'nephi-0': partial(nephi, steps=0),
    'nephi-20': partial(nephi, steps=20),
    'nephi-30': partial(nephi, steps=30),
    'nephi-none-150': partial(nephi, steps=150, weights='none'),
    'greedy': greedy,
    'syn': syn,
}


def main(methods: dict[str, Callable[..., dict]], description: str) -> None:
    """Read the arguments, register by the method, write what can be said of the time."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument('method', choices=methods)
    for name in ('fixed', 'moving', 'folder'):
        parser.add_argument(name, type=Path)
    parser.add_argument('--threads', type=int, required=True)
    given = parser.parse_args()
    phases = methods[given.method](given.fixed, given.moving, given.folder, given.threads)
    (given.folder / 'phases.json').write_text(json.dumps(phases))


if __name__ == '__main__':
    main(METHODS, __doc__)
