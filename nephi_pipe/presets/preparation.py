"""From an image and its masks to what an optimisation compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage

from ..ct import mend_ct
from ..errors import InputDataError
from ..geometry import Frame, Grid, apply_affine
from ..images import Image, bounding_box, foreground, normalise
from ..learning import affine as affine_stage
from ..learning.optimise import Pair
from ..learning.settings import Level, OptimisationSettings
from ..learning.structures import Structures, StructuresOfPair
from ..learning.volume import (
    Volume,
    locally_normalised,
    mind_features,
    mind_geometry,
    smooth,
)
from ..lung_mask import lung_mask
from ..morphology import dilated
from . import Preset

_MASK_STRIDE = 7
_BORDER_VOXELS = 4

_DEEP_MM = 40.0
"""What lies deeper in an organ counts as this deep."""

_DEPTH_STEP_MM = 2.0
"""Depths are measured on voxels of about this size, where a scan has smaller ones."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image made ready: intensities about [0, 1] inside ``mask``, zero outside.

    ``excluded`` marks voxels that take no part in the similarity, or is None. ``organ`` is the
    mask as it was before a rim was added to it, None where there is no rim.
    """

    data: np.ndarray
    grid: Grid
    mask: np.ndarray
    excluded: np.ndarray | None
    organ: np.ndarray | None = None

    @property
    def outline(self) -> np.ndarray:
        """The mask without its rim: what scores are taken in, bool."""
        return self.mask if self.organ is None else self.organ

    @property
    def weight(self) -> np.ndarray:
        """Where the similarity is asked for, bool."""
        return self.mask if self.excluded is None else self.mask & ~self.excluded

    def cropped(self) -> Prepared:
        """The part around the mask, with a border of a few voxels: all that is ever compared."""
        box = bounding_box(self.mask)
        lower = np.maximum([part.start - _BORDER_VOXELS for part in box], 0)
        upper = np.minimum([part.stop + _BORDER_VOXELS for part in box], self.grid.shape)
        part = tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))
        data, mask, excluded, organ = (
            None if array is None else np.ascontiguousarray(array[part])
            for array in (self.data, self.mask, self.excluded, self.organ)
        )
        return Prepared(data, self.grid.cropped(lower, upper), mask, excluded, organ)

    @cached_property
    def mask_points(self) -> np.ndarray:
        """World positions of some voxels of the mask, (N, 3) mm."""
        box = bounding_box(self.mask)
        inside = np.argwhere(self.mask[box]) + [part.start for part in box]
        extremes = np.concatenate([inside.argmin(axis=0), inside.argmax(axis=0)])
        return self.grid.to_world(np.concatenate([inside[::_MASK_STRIDE], inside[extremes]]))


def prepare(
    image: Image, mask: np.ndarray | None, excluded: np.ndarray | None, settings: Preset
) -> Prepared:
    """Normalise intensities inside the mask (the foreground or the lungs where none is given).

    Excluded voxels get the median of the others: nothing of what they hold is left, neither for
    the affine nor where images are smoothed across their border.
    """
    if settings.lungs:
        image, _ = mend_ct(image)
    if mask is None:
        mask = lung_mask(image).data > 0 if settings.lungs else foreground(image)
    organ = mask if settings.rim_mm else None
    if settings.rim_mm:
        mask = dilated(mask, settings.rim_mm, image.grid.spacing)
    kept = mask if excluded is None else mask & ~excluded
    if not kept.any():
        raise InputDataError(
            f'Nothing of {image.name} stands out; expected an organ. Give a mask of it.'
            if excluded is None
            else f'The exclusion mask covers all that is compared of {image.name}; expected '
            'voxels of the organ beside it. Give a smaller one.'
        )
    if settings.intensity_range is None:
        data = normalise(image.data, kept)
    else:
        low, high = settings.intensity_range
        data = (np.clip(image.data, low, high) - low) / (high - low)
    data = np.where(mask, data, 0).astype(np.float32)
    if excluded is not None:
        data[mask & excluded] = np.median(data[kept])
    return Prepared(data, image.grid, mask, excluded, organ)


def affine_between(
    fixed: Prepared, moving: Prepared, settings: Preset, seed: int = 0
) -> np.ndarray:
    """The affine (4x4, fixed mm to moving mm) that aligns two images, from any starting pose.

    Air that is breathed in changes what lungs look like, everywhere at once: of them the depth in
    the masks is compared instead of intensities as they are.
    """
    return affine_stage.estimate_affine(
        fixed.data,
        fixed.grid,
        moving.data,
        moving.grid,
        fixed.mask,
        moving.mask,
        fixed_excluded=fixed.excluded,
        moving_excluded=moving.excluded,
        by_depth=settings.lungs,
        seed=seed,
    )


def frame_of(
    fixed: Prepared, moving: Prepared, affine: np.ndarray, margin_mm: float
) -> tuple[Frame, list[float]]:
    """The normalised frame around both masks in the fixed world, and its half extents."""
    back = apply_affine(np.linalg.inv(affine), moving.mask_points)
    points = np.concatenate([fixed.mask_points, back])
    frame = Frame.around(points, margin_mm)
    half = (points.max(axis=0) - points.min(axis=0)) / 2 + margin_mm
    return frame, (half / frame.scale_mm).tolist()


def pair_builder(
    fixed: Prepared,
    moving: Prepared,
    affine: np.ndarray,
    frame: Frame,
    settings: OptimisationSettings,
    device: str,
    structures: StructuresOfPair | None = None,
) -> Callable[[Level], Pair]:
    """A function that makes the volumes of a level, with structures of both images or none."""
    coarser_mm = max(_voxel_mm(fixed), _voxel_mm(moving))
    of_fixed, of_moving = structures or (None, None)

    def volume(side: Prepared, world: np.ndarray, level: Level) -> Volume:
        channels = feature_channels(side, level, settings, device, world, coarser_mm)
        return Volume(channels, side.grid, frame, world)

    def excluded(side: Prepared, world: np.ndarray) -> Volume | None:
        if side.excluded is None:
            return None
        keep = torch.from_numpy(~side.excluded).float().to(device)
        return Volume(keep[None], side.grid, frame, world)

    def shares(side: Structures | None, world: np.ndarray, level: Level) -> Volume | None:
        if side is None:
            return None
        return Volume(side.smoothed(level.smoothing_mm), side.grid, frame, world)

    def pair_at(level: Level) -> Pair:
        return Pair(
            volume(fixed, np.eye(4), level),
            volume(moving, affine, level),
            excluded(fixed, np.eye(4)),
            excluded(moving, affine),
            shares(of_fixed, np.eye(4), level),
            shares(of_moving, affine, level),
        )

    return pair_at


def feature_channels(
    side: Prepared,
    level: Level,
    settings: OptimisationSettings,
    device: str,
    world: np.ndarray | None = None,
    voxel_mm: float | None = None,
) -> torch.Tensor:
    """Feature channels and, last, the weight: (C + 1, X, Y, Z).

    Features that look at neighbours (MIND) look along the axes of a common world, from which
    ``world`` (4x4, mm) leads to that of the image (None: its own), in steps of ``voxel_mm``
    (None: the image's own): two images are then comparable however each is stored.
    """
    data = torch.from_numpy(side.data).to(device)
    weight = torch.from_numpy(side.weight).float().to(device)
    spacing = side.grid.spacing
    if level.smoothing_mm:
        data = smooth(data[None], level.smoothing_mm / spacing)[0]
    if settings.similarity == 'mind':
        geometry = mind_geometry(
            side.grid, np.eye(4) if world is None else world, voxel_mm or _voxel_mm(side)
        )
        return torch.cat([mind_features(data, *geometry), weight[None]])
    features = [data]
    if settings.similarity == 'local-ncc':
        mask = torch.from_numpy(side.mask).to(device)
        local = locally_normalised(data, mask, settings.window * level.sample_mm / spacing)
        features.append(local)
        if level.by_depth:
            features.append(torch.from_numpy(depth_in(side.outline, spacing)).to(device))
    return torch.stack([*features, weight])


def depth_in(organ: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """How deep voxels lie in an organ: 0 outside to 1 from 40 mm on, float32.

    >>> depth_in(np.arange(8) > 1, np.array([10.0]))
    array([0.  , 0.  , 0.25, 0.5 , 0.75, 1.  , 1.  , 1.  ], dtype=float32)
    """
    every = np.maximum(np.rint(_DEPTH_STEP_MM / spacing).astype(int), 1)
    coarse = organ[tuple(slice(None, None, step) for step in every)]
    depth = ndimage.distance_transform_edt(coarse, spacing * every)
    depth = (depth.clip(max=_DEEP_MM) / _DEEP_MM).astype(np.float32)
    for axis, (step, count) in enumerate(zip(every, organ.shape, strict=True)):
        depth = depth.repeat(step, axis).take(np.arange(count), axis)
    return depth * organ


def _voxel_mm(side: Prepared) -> float:
    """The side of a cube as large as a voxel."""
    return float(np.cbrt(side.grid.spacing.prod()))
