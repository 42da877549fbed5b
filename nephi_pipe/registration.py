"""``register(fixed, moving)``: from two images to a deformation. Everything else calls this."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .ct import mend_ct
from .errors import InputDataError, UsageError
from .geometry import Frame, apply_affine
from .images import Image, check_same_grid, load_image, load_mask
from .initial import FilePaths, InitialTransform, freed, listed, start_of
from .lung_sides import lungs_of_pair
from .presets import Preset, preset
from .result import Registration, load_registration
from .threads import torch_threads
from .weights import SHIPPED, chosen_weights

if TYPE_CHECKING:
    from .field.deformation import NePhiField
    from .field.model import NePhiModel
    from .learning.optimise import Progress
    from .presets.preparation import Prepared

__all__ = ['Registration', 'load_registration', 'register']

logger = logging.getLogger(__name__)

ImageLike = Image | str | os.PathLike

REPAIR_ROUNDS = 5
"""How often optimisation goes on where folds were found (issue: at most five rounds)."""

REPAIR_STEPS = 20


def register(
    fixed: ImageLike,
    moving: ImageLike,
    *,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    exclude_mask: ImageLike | None = None,
    modality: str = 'brain',
    weights: str | os.PathLike = 'default',
    steps: int | None = None,
    affine: bool = True,
    initial_transform: InitialTransform | None = None,
    initial_inverse: FilePaths | None = None,
    device: str = 'cpu',
    threads: int | None = None,
    seed: int = 0,
    sloppy: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Registration:
    """Find the map from ``fixed`` to ``moving`` and its inverse.

    Parameters
    ----------
    fixed, moving
        Images (or their files) on any grids. ``moving`` will be resampled onto ``fixed``.
    fixed_mask, moving_mask
        What is compared, each on the grid of its image. When None a rough foreground; of modality
        'lung' the lungs, found in CTs that are mended where needed (:mod:`nephi_pipe.ct`), and of
        both scans the same ones (:mod:`nephi_pipe.lung_sides`).
    exclude_mask
        Lesion or resection on the grid of either image: takes no part in the similarity.
    modality
        'brain', 'lung' or 'other': preparation, similarity and settings.
    weights
        A checkpoint, 'none' (a fresh field), or 'default': the shipped ones for up to 100 steps,
        where there are any, else a fresh field.
    steps
        Steps of instance optimisation; None for the preset's number, 0 for the forward pass only.
    affine
        Estimate an affine transform first. Otherwise start from the initial one, or the identity.
    initial_transform
        Where to start from; no affine is estimated then. An affine: a 4x4 matrix (fixed mm to
        moving mm, RAS+) or ITK's file. Or a non-linear pre-alignment that stays as it is and
        follows the field, ``phi = pre o field``: another registration, its field file, or ITK's
        files, listed from the fixed to the moving image. It must not fold in the fixed mask.
    initial_inverse
        The way back of displacement fields, listed from the moving to the fixed image; inverted
        point by point when None.
    device
        'cpu', 'cuda' or 'cuda:N'.
    threads
        Processor threads; None for torch's own number.
    seed
        Of all random draws. The same seed, threads and processor type give the same bytes.
    sloppy
        Tiny settings for tests, and no weights but given ones.
    progress
        Called after each step with a :class:`nephi_pipe.learning.optimise.Progress`.

    Returns
    -------
    Registration

    Raises
    ------
    NePhiError
        Files, masks or arguments that cannot be used; the message says which and why.
    """
    chosen = preset(modality, sloppy)
    fixed, moving = _image(fixed), _image(moving)
    masks = [_mask(fixed_mask, fixed), _mask(moving_mask, moving)]
    excluded = _excluded(exclude_mask, fixed, moving)
    if chosen.lungs:
        fixed, moving = mend_ct(fixed)[0], mend_ct(moving)[0]
        masks = list(lungs_of_pair(fixed, moving, *masks))
    # Those that ship are no tiny network.
    weights = 'none' if sloppy and weights == 'default' else weights
    weights = chosen_weights(weights, modality, steps)
    model = _model(weights, modality)
    if steps == 0 and model is None:
        raise UsageError(
            'Zero steps without weights would be the affine alone; expected weights or at least '
            'one step. Give weights, or leave the number of steps out.'
        )
    _check_device(device)

    from .presets.preparation import prepare

    with torch_threads(threads) as threads:
        started = time.monotonic()
        prepared = [
            prepare(image, mask and mask.data, out, chosen)
            for image, mask, out in zip((fixed, moving), masks, excluded, strict=True)
        ]
        masks = [Image(side.outline, side.grid) for side in prepared]
        matrix, base = start_of(initial_transform, initial_inverse, masks[0])
        if base is not None:
            prepared[1] = freed(prepared[1], base)
        estimated = affine and matrix is None
        if matrix is None:
            matrix = _affine(*prepared, seed) if affine else np.eye(4)
        seconds = {'affine': time.monotonic() - started} if estimated else {}
        field, frame = _fresh(prepared, fixed, moving, matrix, chosen, model, seed, device)
        registration = Registration(
            field, frame, matrix, fixed.grid, moving.grid, *masks, base=base
        )
        if model is not None:
            model.predict_into(registration.field, prepared, registration.frame, matrix)
        settings = chosen.settings(model is not None)
        if steps is None:
            # Thick slices still show what is fine within them.
            finest = [float(image.grid.spacing.min()) for image in (fixed, moving)]
            settings = settings.for_voxels(max(finest))
        settings = settings.with_steps(steps)
        if settings.steps:
            _optimise(registration, prepared, settings, seed, threads, device, progress)
        seconds['total'] = time.monotonic() - started
    registration.field.to('cpu')
    registration.provenance = _provenance(
        modality, _name_of(weights), settings.steps, seed, device, threads, seconds
    )
    if base is not None and isinstance(initial_transform, str | os.PathLike | Sequence):
        names = [os.fspath(path) for path in listed(initial_transform)]
        registration.provenance['initial_transform'] = names
    return registration


def _image(image: ImageLike) -> Image:
    return image if isinstance(image, Image) else load_image(image)


def _mask(mask: ImageLike | None, image: Image) -> Image | None:
    if mask is None:
        return None
    mask = mask if isinstance(mask, Image) else load_mask(mask)
    check_same_grid(mask, image)
    inside = image.data[mask.data > 0]
    if inside.size < 100 or inside.min() == inside.max():
        raise InputDataError(
            f'The mask {mask.name} misses what {image.name} shows: its {inside.size} voxels '
            'hold a single value; expected a mask of the brain or lung in that image. Check that '
            'both belong together.'
        )
    return mask.with_data(mask.data > 0)


def _excluded(
    mask: ImageLike | None, fixed: Image, moving: Image
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The exclusion mask for the image(s) whose grid it lies on."""
    if mask is None:
        return None, None
    mask = mask if isinstance(mask, Image) else load_mask(mask)
    sides = tuple(
        mask.data > 0 if mask.grid.same_as(image.grid) else None for image in (fixed, moving)
    )
    if all(side is None for side in sides):
        raise InputDataError(
            f'The exclusion mask {mask.name} (shape {mask.grid.shape}) lies neither on the grid '
            f'of {fixed.name} nor of {moving.name}; expected the voxels of one of them. '
            'Resample it with nearest neighbour.'
        )
    return sides


def _model(weights: str | os.PathLike | None, modality: str) -> NePhiModel | None:
    """The trained network to start from, or None for a fresh field."""
    if weights is None:
        return None
    from .training.checkpoint import load_model

    model = load_model(weights).float()
    if model.config.modality != modality:
        logger.warning(
            'The weights "%s" were trained for the modality "%s" and are used for "%s": what they '
            'predict may be far off.',
            weights,
            model.config.modality,
            modality,
        )
    return model


def _check_device(device: str) -> None:
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f'There is no device "{device}"; expected cpu, cuda or cuda:N.'
        ) from error
    visible = torch.cuda.device_count()
    if wanted.type == 'cuda' and (wanted.index or 0) >= visible:
        raise UsageError(
            f'The device "{device}" was asked for, but {visible} CUDA devices are visible; '
            'expected it among them. Use --device cpu, or make the GPU visible (--gpus all, --nv).'
        )


def _affine(fixed: Prepared, moving: Prepared, seed: int) -> np.ndarray:
    from .learning.affine import estimate_affine

    return estimate_affine(
        fixed.data,
        fixed.grid,
        moving.data,
        moving.grid,
        fixed.mask,
        moving.mask,
        fixed_excluded=fixed.excluded,
        moving_excluded=moving.excluded,
        seed=seed,
    )


def _fresh(
    prepared: list[Prepared],
    fixed: Image,
    moving: Image,
    affine: np.ndarray,
    chosen: Preset,
    model: NePhiModel | None,
    seed: int,
    device: str,
) -> tuple[NePhiField, Frame]:
    """A field of its own for a pair, and where it lies."""
    import torch

    from .field.deformation import NePhiField
    from .presets.preparation import frame_of

    _check_overlap(prepared, affine, fixed, moving)
    frame, extent = frame_of(*prepared, affine, chosen.margin_mm)
    config = chosen.field
    if model is not None:
        frame, extent = model.frame_for(frame, extent)
        config = model.config.field
    generator = torch.Generator().manual_seed(seed)
    return NePhiField(config, generator, extent).to(device), frame


def _check_overlap(prepared, affine: np.ndarray, fixed: Image, moving: Image) -> None:
    points = apply_affine(affine, prepared[0].mask_points())
    index = np.rint(prepared[1].grid.to_index(points)).astype(int)
    inside = ((index >= 0) & (index < prepared[1].grid.shape)).all(axis=1)
    overlap = prepared[1].mask[tuple(index[inside].T)].sum() / len(points)
    if overlap < 0.05:
        raise InputDataError(
            f'After the initial alignment {fixed.name} and {moving.name} hardly overlap '
            f'({100 * overlap:.0f} % of the fixed mask); expected images of the same organ. Check '
            'masks and initial transform, or let the affine be estimated.'
        )


def _optimise(
    registration: Registration,
    prepared: list[Prepared],
    settings,
    seed: int,
    threads: int,
    device: str,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Optimise, then look for folds and go on where there are any, at most five rounds."""
    from dataclasses import replace

    import torch

    from .learning.optimise import optimise
    from .presets.preparation import pair_builder

    frame = registration.frame
    builder = pair_builder(*prepared, registration.affine, frame, settings, device)

    def run(chosen, number: int, watch) -> None:
        history = optimise(
            registration.field,
            builder,
            chosen,
            frame.scale_mm,
            seed=seed + number,
            threads=threads,
            progress=progress,
            watch=watch,
        )
        registration.history += [entry.as_dict() for entry in history]
        registration.forget_lattices()

    run(settings, 0, None)
    repair = replace(
        settings,
        levels=settings.levels[-2:][:1],
        steps=REPAIR_STEPS,
        network_rate=0.2 * settings.network_rate,
        code_rate=0.2 * settings.code_rate,
        barrier_weight=30 * settings.barrier_weight,
    )
    for number in range(1, REPAIR_ROUNDS + 1):
        # Maps are looked at on the processor.
        registration.field.to('cpu')
        points = registration.folded_points(seed)
        registration.field.to(device)
        if not len(points):
            return
        logger.info('Round %d: the map folds at %d points; going on there.', number, len(points))
        run(repair, number, torch.from_numpy(points).float().to(device))


def _name_of(weights: str | os.PathLike | None) -> str:
    """Of weights in a record: those that ship lie elsewhere on each machine."""
    if weights is None:
        return 'none'
    path = Path(weights)
    return f'shipped, {path.name}' if path.parent == SHIPPED else os.fspath(weights)


def _provenance(modality, weights, steps, seed, device, threads, seconds) -> dict:
    import torch

    from . import __version__

    return {
        'version': __version__,
        'modality': modality,
        'weights': weights,
        'steps': steps,
        'seed': seed,
        'device': device,
        'threads': threads,
        'torch': torch.__version__,
        'seconds': seconds,
    }
