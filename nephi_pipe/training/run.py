"""``train(images, folder)``: from a list of images to weights that predict deformations."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..field.model import ModelConfig, NePhiModel
from ..files import make_folder, remove_leftovers, sha256
from ..images import load_mask
from ..learning.optimise import Progress
from ..motion import read_motion
from ..presets import preset
from .breathing import Breaths
from .cache import load_subjects
from .checkpoint import load_model
from .config import TrainingConfig
from .files import FilePath, Files, files_of, split
from .loop import TrainingRun
from .records import WEIGHTS
from .signals import Stop
from .state import STATE
from .subject import scale_of

CACHE = 'cache'
"""Prepared images, in the folder of a training that is given no other."""

BREATHING_MM = 20.0
"""Largest mean displacement of a breath where motions are given and the augmentation says none."""

EXTRA = ('accelerate', 'tensorboardX')


def train(
    images: Sequence[FilePath],
    output_dir: FilePath,
    *,
    masks: Sequence[FilePath] | None = None,
    labels: Sequence[FilePath] | None = None,
    held_out: Sequence[str] = (),
    motions: Sequence[FilePath] | None = None,
    motion_lungs: Sequence[FilePath] | None = None,
    config: TrainingConfig | None = None,
    weights: FilePath | None = None,
    coarse: FilePath | None = None,
    cache: FilePath | None = None,
    device: str = 'cpu',
    threads: int | None = None,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> Path:
    """Train an encoder and the fields' networks on random pairs of images.

    A pair is registered in both directions by one code. The loss is that of instance optimisation
    at random points (NePhi, section 3.3): similarity, gradient inverse consistency, latent prior;
    beside it the known maps of simulated pairs, and label maps if ``dice_weight`` is given.

    Parameters
    ----------
    images
        Files, one for each person, on any grids.
    output_dir
        Gets ``weights.safetensors``, ``best.safetensors`` (the best validation),
        ``history.json`` and ``.csv`` (means of each epoch), ``config.toml``, ``tensorboard/``, and
        what is needed to go on, ``training.safetensors``.
    masks
        What is compared, one for each image on its grid; rough foregrounds when None.
    labels
        Label maps, one for each image on its grid. They are watched: the history then holds the
        mean Dice at the points of each epoch, before and after.
    held_out
        Images that are only validated on: paths, file names or labels of people.
    motions, motion_lungs
        How lungs breathe in simulated pairs: tables of landmarks in two states, expiration and
        inspiration (columns exp_x to insp_z, mm), and for each the mask of those lungs at
        expiration.
    config
        Architecture, loss, augmentation, schedule; the defaults of the modality when None.
    weights
        Weights of the same architecture to start from, with a fresh optimiser.
    coarse
        Weights of a coarse stage: its maps warp the moving images that are seen here, and it is
        carried along in what is written. It stays as it is unless ``joint`` is given.
    cache
        Folder of prepared images, which trainings may share; ``output_dir/cache`` when None.
    device
        'cpu', 'cuda' or 'cuda:N'.
    threads
        Processor threads; None for torch's own number.
    resume
        Go on where a training of the same folder, images and settings stopped.
    progress
        Called after each step; the level is the epoch.
    **changes
        Single values of the config by their names, such as ``epochs=10``, ``grid=81``,
        ``augmentation='none'``; see :class:`nephi_pipe.training.config.TrainingConfig`.

    Returns
    -------
    Path
        ``output_dir/weights.safetensors``. The same seed, threads and processor type give the same
        weights, whether the training was interrupted or not.

    Raises
    ------
    UsageError
        Fewer than two images or images of several modalities, numbers that cannot be, no such
        device, a folder that holds another training, weights of another architecture, or the extra
        ``train`` is not installed.
    InputDataError
        An image, mask or label map that cannot be used, or a damaged file of the training.
    StorageError
        There is no space left.
    TryAgainError
        A signal told it to stop; its state is saved.

    >>> train(['one.nii.gz'], 'weights')
    Traceback (most recent call last):
    nephi_pipe.errors.UsageError: Training was given 1 image(s); expected two images or more, ...
    """
    files = files_of(images, masks, labels)
    config = (config or TrainingConfig.of(changes.get('modality', 'brain'))).changed(**changes)
    if motions and not config.augmentation.breathing_mm:
        breathing = replace(config.augmentation, breathing_mm=BREATHING_MM)
        config = config.changed(augmentation=breathing)
    config = config.checked()
    moving = motion_files(motions, motion_lungs, config)
    used, kept = split(files, held_out)
    _check_extra()
    accelerator = _accelerator(device, config.training.precision)
    start = _start(weights, config)
    first = _coarse(coarse, start, config)
    breaths = breaths_of(moving)
    folder = make_folder(output_dir)
    if threads:
        torch.set_num_threads(threads)
    chosen = preset(config.modality)
    chosen = replace(chosen, optimisation=config.loss.for_points(chosen.optimisation))
    with accelerator.main_process_first():
        subjects = load_subjects(
            [*used, *kept], chosen, config.encoder.grid, Path(cache or folder / CACHE)
        )
    architecture = _architecture(config, scale_of(subjects, chosen.margin_mm), start, first)
    if start is not None:
        start = start.with_config(architecture)
    run = TrainingRun(
        folder,
        architecture,
        config,
        subjects[: len(used)],
        subjects[len(used) :],
        _described(training=used, validation=kept, motion=moving),
        chosen,
        accelerator,
        start,
        first,
        {name: sha256(path) for name, path in (('weights', weights), ('coarse', coarse)) if path},
        breaths,
    )
    if resume and (folder / STATE).exists():
        run.state.restore()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        # A folder that cannot be written to is found out now rather than after an epoch.
        remove_leftovers(folder)
        run.state.save()
        run.records.write_config()
        run.records.write()
    with Stop() as stop:
        run.go_on(progress, stop)
    return folder / WEIGHTS


def _architecture(
    config: TrainingConfig, scale_mm: float, start: NePhiModel | None, coarse: NePhiModel | None
) -> ModelConfig:
    """Sizes of the model; the scale is that of a stage there is, or of weights for the organ."""
    if start is not None:
        if start.coarse is not None or start.config.modality == config.modality:
            scale_mm = start.config.scale_mm
        return replace(start.config, scale_mm=scale_mm, modality=config.modality)
    if coarse is not None:
        scale_mm = coarse.config.scale_mm
    stage = coarse and coarse.config
    return ModelConfig(config.field, config.encoder, scale_mm, config.modality, stage)


def _coarse(
    path: FilePath | None, start: NePhiModel | None, config: TrainingConfig
) -> NePhiModel | None:
    """The first stage in a file, in float32."""
    if path is None:
        if config.training.joint and (start is None or start.coarse is None):
            raise UsageError(
                'Stages are to be trained jointly, but there is no coarse one; expected its '
                'weights. Give them, or leave joint out.'
            )
        return None
    if start is not None:
        raise UsageError(
            'Weights to start from and a coarse stage were given; expected one of the two, since '
            'weights bring their coarse stage along.'
        )
    model = load_model(path).float()
    if model.config.modality != config.modality:
        raise UsageError(
            f'"{os.fspath(path)}" is a stage for the modality {model.config.modality}; expected '
            f'{config.modality}, as it is trained here.'
        )
    return model


def _start(weights: FilePath | None, config: TrainingConfig) -> NePhiModel | None:
    """The model in a file, in float32.

    Convolutions of a U-Net do not know how many nodes they see: another grid is no other network.
    """
    if weights is None:
        return None
    model = load_model(weights)
    if model.config.encoder.kind == 'unet':
        encoder = replace(model.config.encoder, grid=config.encoder.grid)
        if len(encoder.channels) == len(model.config.encoder.channels):
            field = replace(model.config.field, local_size=encoder.local_size)
            model = model.with_config(replace(model.config, field=field, encoder=encoder))
    own, wanted = (
        {**one.field.as_dict(), **one.encoder.as_dict()} for one in (model.config, config)
    )
    if own != wanted:
        names = [
            f'{name} {own[name]!r} instead of {value!r}'
            for name, value in wanted.items()
            if own[name] != value
        ]
        raise UsageError(
            f'"{os.fspath(weights)}" has another architecture ({", ".join(names)}); expected that '
            'of this training. Give its config, or other weights.'
        )
    return model.float()


def _described(**files: Sequence[Files]) -> list[dict[str, str]]:
    """Names and checksums of all files, and what they were used for."""
    return [{**one.checksums, 'use': use} for use, several in files.items() for one in several]


def _check_extra() -> None:
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f'Training needs {" and ".join(missing)}, which registering does not; expected it to '
            f'be installed. Run: pip install {" ".join(missing)}'
        )


def motion_files(
    motions: Sequence[FilePath] | None,
    lungs: Sequence[FilePath] | None,
    config: TrainingConfig,
) -> list[Files]:
    """Landmarks and masks of motions; UsageError where they do not go together."""
    motions, lungs = motions or (), lungs or ()
    if len(motions) != len(lungs):
        raise UsageError(
            f'Training was given {len(motions)} motion(s) and {len(lungs)} mask(s) of their '
            'lungs; expected one for each in the same order.'
        )
    if config.augmentation.breathing_mm and not motions:
        raise UsageError(
            f'breathing_mm is {config.augmentation.breathing_mm:g} and there are no motions; '
            'expected landmarks in two breath states. Give --motions and --motion-lungs.'
        )
    return [Files(Path(one), Path(mask)) for one, mask in zip(motions, lungs, strict=True)]


def breaths_of(files: Sequence[Files]) -> Breaths | None:
    """What simulated pairs breathe like; None without motions."""
    if not files:
        return None
    return Breaths([read_motion(one.image, load_mask(one.mask)) for one in files])


def _accelerator(device: str, precision: str) -> Any:
    """Accelerate's own object for a device; processes that a launcher started find each other."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f'The device "{device}" cannot be used ({str(error).splitlines()[0]}); expected cpu, '
            'cuda or cuda:N. Use cpu, or make the GPU visible.'
        ) from error
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    # A second training of one process may ask for another device or precision.
    if not torch.distributed.is_initialized():
        for shared in (AcceleratorState, GradientState, PartialState):
            shared._reset_state()
    kind, _, number = device.partition(':')
    if kind == 'cuda' and number and 'LOCAL_RANK' not in os.environ:
        torch.cuda.set_device(int(number))
    try:
        return Accelerator(cpu=kind == 'cpu', mixed_precision=precision)
    except ValueError as error:
        raise UsageError(
            f'The precision {precision} cannot be had on "{device}" ({error}); use no.'
        ) from error
