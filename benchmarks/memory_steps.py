"""What steps of one method need in memory, told by a process of its own.

    PYTHON benchmarks/memory_steps.py METHOD PAIR FOLDER --threads N

PAIR is a folder that ``benchmarks/memory_cubes.py`` made; ``memory.json`` is written into FOLDER.
PYTHON is one that has the method's package, so this file imports nothing of nephi_pipe at its top
and needs no package around it. Linux only: the kernel is told to forget a peak.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIDES = ('fixed', 'moving')

STEPS = 2
"""Of a training: Adam's moments are there from the second on."""

OPTIMISATION_STEPS = 20
"""Enough that each level has more than one."""


def forget_peak() -> None:
    """From now on the kernel's peak is that of what follows."""
    Path('/proc/self/clear_refs').write_text('5')


def memory_mib(what: str = 'VmRSS') -> float:
    """Resident memory now, or with 'VmHWM' its peak since it was last forgotten, MiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(f'{what}:'))
    return int(found.split()[1]) / 1024


def grown(task: Callable[[], object]) -> dict[str, float]:
    """What is held before a task, the peak during it, and what is above, MiB.

    Beside these, how many modules it imported: 0 where everything was imported before.
    """
    modules = len(sys.modules)
    forget_peak()
    held = memory_mib()
    task()
    peak = memory_mib('VmHWM')
    return {
        'held_mib': held,
        'top_mib': peak,
        'above_mib': peak - held,
        'late_modules': len(sys.modules) - modules,
    }


def gradicon(pair: Path, folder: Path, threads: int) -> dict:
    """Steps of GradICON's published network: three resolutions and a second stage, LNCC."""
    import numpy as np
    import torch
    from icon_registration.pretrained_models.lung_ct import make_network

    _first_step()

    def steps() -> None:
        torch.set_num_threads(threads)
        fixed, moving = torch.from_numpy(np.load(pair / 'pair.npy'))[:, None, None]
        network = make_network()
        network.assign_identity_map(fixed.shape)
        network.train()
        optimiser = torch.optim.Adam(network.parameters(), lr=5e-5)
        for _ in range(STEPS):
            optimiser.zero_grad()
            network(moving, fixed).all_loss.mean().backward()
            optimiser.step()

    return grown(steps) | _versions('icon_registration', 'torch')


def nephi(preset: str, beside: str, pair: Path, folder: Path, threads: int) -> dict:
    """Steps of ``nephi train --preset PRESET`` with a pair a step.

    ``beside`` is what images are given with: 'labels' or 'masks'. The first run prepares the
    images, which the cache then holds.
    """
    import accelerate.utils  # noqa: F401  (what trainings import as they begin)
    import tensorboardX  # noqa: F401

    from nephi_pipe.training import train
    from nephi_pipe.training.config import PRESETS

    _first_step()
    config = PRESETS[preset].changed(batch_size=1, epochs=1, steps_per_epoch=STEPS, eval_every=-1)
    images, others = (
        [pair / f'{side}_{kind}.nii' for side in SIDES] for kind in (config.modality, beside)
    )

    def steps() -> None:
        train(
            images, folder, config=config, cache=pair / 'cache', threads=threads,
            **{beside: others},
        )  # fmt: skip

    return grown(steps) | _versions('nephi-pipe', 'torch')


def instance(pair: Path, folder: Path, threads: int) -> dict:
    """Steps of an instance optimisation with the defaults for brains, images and features apart.

    At each level: the peak of its steps but the first (which still holds the features of the
    level before), less what the process held as the optimisation began (images and masks, what
    is imported, the field), less the bytes of the level's features.
    """
    import nephi_pipe.learning.optimise as stage
    from nephi_pipe import register

    _first_step()
    held, levels, original = memory_mib(), [], stage.optimise

    def watched(field: Any, pair_at: Callable, *rest: Any, **options: Any) -> Any:
        _trim()
        before = memory_mib()

        def features_of(level: Any) -> Any:
            found = pair_at(level)
            _trim()
            volumes = [one for one in vars(found).values() if one is not None]
            size = sum(one.channels.nbytes for one in volumes) / 2**20
            levels.append({'before_mib': before, 'features_mib': size, 'peaks_mib': []})
            return found

        def seen(_: Any) -> None:
            levels[-1]['peaks_mib'].append(memory_mib('VmHWM'))
            forget_peak()

        return original(field, features_of, *rest, **options | {'progress': seen})

    stage.optimise = watched
    images = [pair / f'{side}_brain.nii' for side in SIDES]
    register(*images, weights='none', steps=OPTIMISATION_STEPS, threads=threads)
    for level in levels:
        others = level['before_mib'] + level['features_mib']
        level['steps_mib'] = max(level['peaks_mib'][1:]) - others
    most = max(levels, key=lambda level: level['steps_mib'])
    return {
        'held_mib': held,
        'images_mib': most['before_mib'] - held,
        'features_mib': most['features_mib'],
        'above_mib': most['steps_mib'],
        'levels': levels,
    } | _versions('nephi-pipe', 'torch')


def _first_step() -> None:
    """A step of Adam on one number: what torch imports only then is an import too."""
    import torch

    number = torch.nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.Adam([number])
    number.square().backward()
    optimiser.step()


def _trim() -> None:
    """Give back to the kernel what was freed and kept for later: it belongs to nothing now."""
    ctypes.CDLL(None).malloc_trim(0)


def _versions(*packages: str) -> dict[str, dict[str, str]]:
    return {'versions': {name: version(name) for name in packages}}


METHODS = {
    'gradicon': gradicon,
    'nephi-brain': partial(nephi, 'brain', 'labels'),
    'nephi-brain-unlabelled': partial(nephi, 'brain', 'masks'),
    'nephi-lung': partial(nephi, 'lung-single-res', 'masks'),
    'instance': instance,
}


def main() -> None:
    """Read the arguments, run one method, write what it needed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('method', choices=METHODS)
    for name in ('pair', 'folder'):
        parser.add_argument(name, type=Path)
    parser.add_argument('--threads', type=int, required=True)
    given = parser.parse_args()
    record = METHODS[given.method](given.pair, given.folder, given.threads)
    (given.folder / 'memory.json').write_text(json.dumps(record))


if __name__ == '__main__':
    main()
