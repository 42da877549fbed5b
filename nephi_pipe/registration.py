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
from .images import (
    Image,
    bounding_box,
    check_same_grid,
    check_values,
    load_image,
    load_mask,
)
from .initial import FilePaths, InitialTransform, listed, start_of
from .lung_sides import lungs_of_pair
from .presets import Preset, preset
from .result import Registration, load_registration
from .stages import StagedPair
from .threads import torch_threads
from .weights import SHIPPED, chosen_structures, chosen_weights

if TYPE_CHECKING:
    from .field.model import NePhiModel
    from .learning.optimise import Progress
    from .learning.settings import OptimisationSettings
    from .learning.structure_net import StructureNet
    from .presets.preparation import Prepared

__all__ = ['Registration', 'load_registration', 'register']

logger = logging.getLogger(__name__)

ImageLike = Image | str | os.PathLike

_LEAST_SAMPLES = 2
"""Of the coarsest level, along the shortest side of what is compared."""


def register(
    fixed: ImageLike,
    moving: ImageLike,
    *,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    exclude_mask: ImageLike | None = None,
    modality: str = 'brain',
    weights: FilePaths = 'default',
    steps: int | None = None,
    structures: bool = True,
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
        where there are any, else a fresh field. Several checkpoints, coarse to fine, predict
        stage by stage, each on the moving image that the stages before have warped; a checkpoint
        may also bring its coarse stages along, and 'none' may stand last, for a fresh field. Only
        the last stage is optimised.
    steps
        Steps of instance optimisation; None for the preset's number, 0 for the forward pass only.
    structures
        Compare the structures of brains, which a shipped network finds, beside intensities. They
        never are with the weights 'none': nothing that was trained takes part then.
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
    finder = chosen_structures(structures, weights, modality, steps, sloppy)
    weights = chosen_weights(weights, modality, steps)
    *coarse, model = _models(weights, modality)
    network = finder and _structure_net(finder)
    if steps == 0 and model is None:
        raise UsageError(
            'Zero steps without weights would be the affine alone; expected weights or at least '
            'one step. Give weights, or leave the number of steps out.'
        )
    _check_device(device)

    from .presets.preparation import affine_between, prepare

    with torch_threads(threads) as threads:
        started = time.monotonic()
        prepared = [
            prepare(image, mask and mask.data, out, chosen)
            for image, mask, out in zip((fixed, moving), masks, excluded, strict=True)
        ]
        for image, one in zip((fixed, moving), prepared, strict=True):
            _check_size(image, one, chosen)
        outline = Image(prepared[0].outline, prepared[0].grid)
        matrix, base = start_of(initial_transform, initial_inverse, outline)
        pre_aligned = base is not None
        estimated = affine and matrix is None
        if matrix is None:
            matrix = affine_between(*prepared, chosen, seed) if affine else np.eye(4)
        seconds = {'affine': time.monotonic() - started} if estimated else {}
        pair = StagedPair((fixed, moving), prepared, matrix, chosen, seed, device, network)
        settings = _settings(chosen, model, steps, fixed, moving)
        for one in coarse:
            stage = pair.stage(one, base)
            if settings.steps:
                stage.repair(settings, threads, progress)
            base = stage.found
            base.field.to('cpu')
        stage = pair.stage(model, base)
        if settings.steps and not stage.optimise(settings, threads, progress):
            finder = None
        registration = stage.found
        seconds['total'] = time.monotonic() - started
    registration.field.to('cpu')
    trained = (_name_of(weights), _name_of(finder))
    registration.provenance = _provenance(
        modality, trained, settings.steps, seed, device, threads, seconds
    )
    if pre_aligned and isinstance(initial_transform, str | os.PathLike | Sequence):
        names = [os.fspath(path) for path in listed(initial_transform)]
        registration.provenance['initial_transform'] = names
    return registration


def _image(image: ImageLike) -> Image:
    if not isinstance(image, Image):
        return load_image(image)
    check_values(image)
    return image


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


def _check_size(image: Image, prepared: Prepared, chosen: Preset) -> None:
    """Refuse what the coarsest lattice would fall beside."""
    coarsest_mm = max(level.sample_mm for level in chosen.optimisation.levels)
    voxels = [part.stop - part.start for part in bounding_box(prepared.weight)]
    size_mm = float((np.array(voxels) * prepared.grid.spacing).min())
    if size_mm < _LEAST_SAMPLES * coarsest_mm:
        raise InputDataError(
            f'What is compared of {image.name} is {size_mm:.3g} mm thick; expected at least '
            f'{_LEAST_SAMPLES * coarsest_mm:g} mm, since images are compared every '
            f'{coarsest_mm:g} mm at first. Check mask and voxel sizes; for small animals multiply '
            'the voxel sizes of both images by 10 or so.'
        )


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


def _models(weights: FilePaths | None, modality: str) -> list[NePhiModel | None]:
    """The trained networks to start from, coarse to fine; None for a fresh field."""
    if weights is None:
        return [None]
    if isinstance(weights, str | os.PathLike):
        return [*_model(weights, modality).stages]
    *coarse, last = weights or ['none']
    if {*coarse, last} & {'default'} or 'none' in coarse or (last == 'none' and not coarse):
        raise UsageError(
            f'The weights of {len(weights)} stages hold no file for each; expected checkpoints, '
            'coarse to fine, of which the last may be "none".'
        )
    files = [*coarse, None if last == 'none' else last]
    return [stage for one in files for stage in _models(one, modality)]


def _model(weights: str | os.PathLike, modality: str) -> NePhiModel:
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


def _structure_net(path: Path) -> StructureNet:
    from .training.checkpoint import load_structure_net

    return load_structure_net(path)[0]


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


def _settings(
    chosen: Preset, model: NePhiModel | None, steps: int | None, fixed: Image, moving: Image
) -> OptimisationSettings:
    """Those of the instance optimisation of a pair."""
    # Thick slices still show what is fine within them.
    finest_mm = max(float(image.grid.spacing.min()) for image in (fixed, moving))
    return chosen.settings(model is not None).for_voxels(finest_mm).with_steps(steps)


def _name_of(weights: FilePaths | None) -> str:
    """Of weights in a record: those that ship lie elsewhere on each machine."""
    if weights is None:
        return 'none'
    if not isinstance(weights, str | os.PathLike):
        return ', '.join(map(_name_of, weights))
    path = Path(weights)
    return f'shipped, {path.name}' if path.parent == SHIPPED else os.fspath(weights)


def _provenance(modality, trained, steps, seed, device, threads, seconds) -> dict:
    import torch

    from . import __version__

    return {
        'version': __version__,
        'modality': modality,
        'weights': trained[0],
        'structures': trained[1],
        'steps': steps,
        'seed': seed,
        'device': device,
        'threads': threads,
        'torch': torch.__version__,
        'seconds': seconds,
    }
