"""What the subcommands of ``nephi`` do; each function takes the parsed arguments.

Engine and numerics are imported inside the functions: a usage error needs none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from .errors import UsageError
from .weights import chosen_weights

_REFRESH_S = 0.2
_LINE_S = 10.0


def register(arguments: argparse.Namespace) -> None:
    """``nephi register``: find the map between two images and write what follows from it."""
    weights = arguments.weights or ['default']
    weights = weights if len(weights) > 1 else weights[0]
    if arguments.steps == 0 and not chosen_weights(weights, arguments.modality, 0):
        raise UsageError(
            '--steps 0 without weights would be the affine alone; give --weights or some --steps'
        )
    from .pair_files import load_pair, write_registration

    pair = load_pair(arguments)

    from .files import make_folder

    make_folder(arguments.output)

    from .registration import register
    from .threads import torch_threads

    started = time.monotonic()
    with torch_threads(arguments.threads):
        registration = register(
            pair.scored['fixed'],
            pair.scored['moving'],
            fixed_mask=pair.masks[0],
            moving_mask=pair.masks[1],
            exclude_mask=arguments.exclude_mask,
            modality=arguments.modality,
            weights=weights,
            steps=arguments.steps,
            structures=arguments.structures,
            affine=arguments.affine,
            initial_transform=arguments.initial_transform,
            initial_inverse=arguments.initial_inverse,
            device=arguments.device,
            seed=arguments.seed,
            progress=ProgressLine(),
        )
        write_registration(registration, pair, arguments)
    print(f'Done in {time.monotonic() - started:.0f} s; the results are in {arguments.output}')


def apply(arguments: argparse.Namespace) -> None:
    """``nephi apply``: resample an image or map a table of points."""
    from .apply import apply_to_image, apply_to_points, read_chain, read_grid

    points = arguments.input.suffix == '.tsv'
    if not points and arguments.reference is None:
        raise UsageError(
            'an image needs --reference GRID: the image whose grid the result gets (the fixed '
            'image of the first transform)'
        )
    chain = read_chain(arguments.transforms)
    if points:
        apply_to_points(arguments.input, chain, arguments.output)
    else:
        grid = read_grid(arguments.reference)
        apply_to_image(
            arguments.input,
            chain,
            grid,
            arguments.output,
            arguments.interpolation,
            arguments.outside,
        )


def evaluate(arguments: argparse.Namespace) -> None:
    """``nephi evaluate``: score any chain of transforms."""
    from .pair_files import landmark_and_organ_scores, load_pair

    pair = load_pair(arguments)

    from .apply import read_chain
    from .files import write_json
    from .metrics import evaluate
    from .pair_scores import maps_of_transform
    from .transforms import read_affine

    chain = read_chain(arguments.transforms)
    affine = read_affine(arguments.affine) if arguments.affine else _last_affine(chain)
    inverse = read_chain(arguments.inverse) if arguments.inverse else None
    scores = evaluate(
        chain, **pair.scored, inverse=inverse, fixed_mask=pair.masks[0], affine=affine
    )
    scores |= landmark_and_organ_scores(maps_of_transform(chain, affine, inverse), pair)
    if arguments.output:
        write_json(arguments.output, scores)
    else:
        print(json.dumps(scores, indent=2))


def landmarks(arguments: argparse.Namespace) -> None:
    """``nephi landmarks``: convert index files of DIR-Lab to tables of points."""
    from .dirlab import dirlab_grid, read_dirlab_pair, read_dirlab_points
    from .landmarks import write_points

    count = len(arguments.indices)
    _check_landmarks(arguments, count)
    if arguments.like:
        from .apply import read_grid

        grids = [read_grid(path) for path in arguments.like]
        grids *= count // len(grids)
    else:
        grids = [dirlab_grid(arguments.size, arguments.spacing)] * count
    tables = (
        read_dirlab_pair(arguments.indices, grids)
        if count == 2
        else [read_dirlab_points(arguments.indices[0], grids[0])]
    )
    for path, table in zip(arguments.output, tables, strict=True):
        write_points(path, table)


def _check_landmarks(arguments: argparse.Namespace, count: int) -> None:
    """What argparse cannot check of ``nephi landmarks``."""
    if count > 2:
        raise UsageError(f'{count} files of landmarks are given; give one, or the two of a pair')
    if len(arguments.output) != count:
        raise UsageError(
            f'{count} files of landmarks need as many tables after --output, not '
            f'{len(arguments.output)}'
        )
    if arguments.like and (arguments.size or arguments.spacing):
        raise UsageError('--like goes without --size and --spacing: the image has both')
    if not arguments.like and not (arguments.size and arguments.spacing):
        raise UsageError('where the voxels lie is not known; give --like, or --size and --spacing')
    if arguments.like and len(arguments.like) not in (1, count):
        raise UsageError(f'--like takes one image, or one for each of {count} files')


def hpc_script(arguments: argparse.Namespace) -> None:
    """``nephi hpc-script``: write a SLURM job array for a BIDS data set."""
    from .bids_app.hpc_script import Request, write_script

    print(
        write_script(
            Request(
                arguments.bids_dir,
                arguments.output_dir,
                arguments.output.absolute(),
                arguments.work_dir,
                arguments.options,
                arguments.image,
                arguments.cpus,
                arguments.mem,
                arguments.time,
                arguments.at_once,
                arguments.local_scratch,
                arguments.sbatch,
            )
        )
    )


def info(arguments: argparse.Namespace) -> None:
    """``nephi info``: say what files are."""
    from .describe import describe

    for path in arguments.files:
        print(describe(path))


def train(arguments: argparse.Namespace) -> None:
    """``nephi train``: train weights on a list of images or a BIDS data set."""
    if arguments.devices > 1 and 'LOCAL_RANK' not in os.environ:
        _start_processes(arguments.devices)
    if len(arguments.images) < 2 and not arguments.images[0].is_dir():
        raise UsageError('training needs two images or more')

    from .training.config import PRESETS, read_config

    config = PRESETS.get(arguments.preset)
    if arguments.config:
        config = read_config(arguments.config)
    modality = arguments.modality or (config.modality if config else 'brain')
    images, masks, labels = _training_files(arguments, modality)

    from .training import train

    given = {name: getattr(arguments, name) for name in TRAINING_OPTIONS}
    weights = train(
        images,
        arguments.output / (arguments.name or ''),
        masks=masks,
        labels=labels,
        held_out=arguments.validation,
        motions=arguments.motions,
        motion_lungs=arguments.motion_lungs,
        config=config,
        weights=arguments.weights,
        coarse=arguments.coarse,
        cache=arguments.cache,
        device=arguments.device,
        threads=arguments.threads,
        resume=arguments.resume,
        progress=ProgressLine(),
        **{name: value for name, value in given.items() if value is not None},
    )
    if os.environ.get('RANK', '0') == '0':
        print(f'The weights are in {weights}')


def _training_files(arguments: argparse.Namespace, modality: str) -> tuple[Any, Any, Any]:
    """Images, masks and label maps, as they are listed or as a data set has them."""
    images, masks, labels = arguments.images, arguments.masks, arguments.labels
    if not (len(images) == 1 and images[0].is_dir()):
        if arguments.derivatives or arguments.participant_label:
            raise UsageError('--derivatives and --participant-label are for a BIDS folder')
        return images, masks, labels
    if masks or labels:
        raise UsageError(
            '--masks and --labels are for a list of images; give --derivatives with a BIDS folder'
        )

    from .bids_app.training_scans import find_training_scans

    people, derivatives = arguments.participant_label, arguments.derivatives
    return find_training_scans(images[0], people, derivatives, modality)


TRAINING_OPTIONS = (
    'modality', 'field', 'grid', 'epochs', 'steps_per_epoch', 'batch_size', 'learning_rate',
    'learning_rate_step', 'warm_up', 'augmentation', 'dice_weight', 'eval_every', 'save_every',
    'seed', 'precision', 'joint',
)  # fmt: skip
"""Options that are values of a train config."""


def _start_processes(count: int) -> None:
    """Become torch's launcher, which starts this command once for each device."""
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={count}']
    command = [sys.executable, *launcher, '-m', 'nephi_pipe', *sys.argv[1:]]
    os.execv(sys.executable, command)


class ProgressLine:
    """Shows where an optimisation is, on standard error.

    On a terminal one line is written over and over; elsewhere a line follows every ten seconds,
    and one at the end.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = -_LINE_S

    def __call__(self, progress: Any) -> None:
        last = progress.step == progress.total_steps
        if progress.step == 1:
            self._shown = -_LINE_S
        pause = _REFRESH_S if self._terminal else _LINE_S
        if not last and progress.seconds - self._shown < pause:
            return
        self._shown = progress.seconds
        text = (
            f'step {progress.step}/{progress.total_steps}  level {progress.level}  similarity '
            f'{progress.similarity:.4f}  {_clock(progress.seconds_left)} left'
        )
        if self._terminal:
            text = f'\r\x1b[K{text}'
        print(text, file=sys.stderr, end='\n' if last or not self._terminal else '', flush=True)


def _clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> _clock(75.2)
    '1:15'
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes}:{seconds:02d}'


def _last_affine(chain: Any) -> Any:
    """The affine that a chain ends with: what it starts from, where it was made as ours are.

    The identity where it ends otherwise.
    """
    import numpy as np

    last = chain.steps[-1] if chain.steps else None
    return last if isinstance(last, np.ndarray) else np.eye(4)
