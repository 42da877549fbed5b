"""Training images: read and prepared once, aligned to the first of them, and paired at random."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import NePhiError, UsageError
from ..files import sha256, write_json
from ..geometry import Frame, apply_affine, is_invertible
from ..images import Image, check_same_grid, load_image, load_labels, load_mask
from ..learning import affine as affine_stage
from ..learning.volume import Volume
from ..presets import Preset
from ..presets.preparation import Prepared, feature_channels, frame_of, prepare
from ..reading import MOST_JSON_BYTES, parse_json, read_text

FilePath = str | os.PathLike

AFFINES = 'affines.json'
"""Affines that were found, in the folder of a training: each costs some seconds."""

_RESERVE = 1.1


@dataclass(frozen=True)
class Files:
    """An image with what belongs to it."""

    image: Path
    mask: Path | None = None
    labels: Path | None = None

    @cached_property
    def checksums(self) -> dict[str, str]:
        """Name of the image and SHA-256 of each file."""
        paths = {'image': self.image, 'mask': self.mask, 'labels': self.labels}
        sums = {kind: sha256(path) for kind, path in paths.items() if path is not None}
        return {'name': self.image.name, **sums}

    @property
    def aligned_by(self) -> str:
        """What an affine of this image depends on, as one word."""
        return '+'.join(
            self.checksums[kind] for kind in ('image', 'mask') if kind in self.checksums
        )


def files_of(
    images: Sequence[FilePath],
    masks: Sequence[FilePath] | None,
    labels: Sequence[FilePath] | None,
) -> list[Files]:
    """The images with what belongs to them, in order.

    Raises
    ------
    UsageError
        There are fewer than two images, or not one mask or label map for each.
    """
    if len(images) < 2:
        raise UsageError(
            f'Training was given {len(images)} image(s); expected two images or more, each of '
            'another person. Add some.'
        )
    columns = [images]
    for kind, paths in (('masks', masks), ('label maps', labels)):
        if paths and len(paths) != len(images):
            raise UsageError(
                f'Training was given {len(paths)} {kind} for {len(images)} images; expected one '
                'for each image in the same order, or none.'
            )
        columns.append(paths or [None] * len(images))
    return [
        Files(*(None if path is None else Path(path) for path in row))
        for row in zip(*columns, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Subject(Prepared):
    """A training image: prepared, with its feature channels and its place in the common world.

    ``channels`` is (C + 1, X, Y, Z), the weight last; ``affine`` takes points of the first image's
    world to this one's, mm; ``labels`` is a label map or None.
    """

    channels: Tensor
    affine: np.ndarray
    labels: Image | None

    def mask_points(self) -> np.ndarray:
        """As of any prepared image, but found once: each pair asks for them."""
        return self._mask_points

    @cached_property
    def _mask_points(self) -> np.ndarray:
        return super().mask_points()

    @cached_property
    def _inside(self) -> np.ndarray:
        return np.flatnonzero(self.mask)

    def random_points(self, count: int, generator: torch.Generator) -> np.ndarray:
        """World positions (N, 3) mm inside the mask, not at voxel centres; at most one a voxel."""
        count = min(count, len(self._inside))
        chosen = torch.randint(len(self._inside), (count,), generator=generator).numpy()
        index = np.stack(np.unravel_index(self._inside[chosen], self.mask.shape), axis=-1)
        jitter = torch.rand(count, 3, generator=generator).numpy() - 0.5
        return self.grid.to_world(index + jitter)

    def labels_at(self, points_mm: np.ndarray) -> np.ndarray:
        """Labels of the voxels that hold the points (N, 3), 0 outside of the image."""
        grid = self.labels.grid
        index = np.rint(grid.to_index(points_mm)).astype(int)
        inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
        found = np.zeros(len(index), dtype=int)
        found[inside] = self.labels.data[tuple(index[inside].T)]
        return found


def load_subjects(
    files: Sequence[Files],
    chosen: Preset,
    device: str,
    folder: Path,
) -> list[Subject]:
    """Read, prepare and align all images.

    Parameters
    ----------
    files
        The images; the first one's world is the common one.
    chosen
        How images of this kind are prepared; features are those of its last level.
    device
        Where the feature channels are kept.
    folder
        Where the affines are kept for the next time.
    """
    subjects: list[Subject] = []
    affines, settings = _Affines(folder / AFFINES), chosen.optimisation
    for one in files:
        image = load_image(one.image)
        mask = load_mask(one.mask, like=image).data if one.mask else None
        prepared = prepare(image, mask, None, chosen)
        prepared = prepared.cropped()
        labels = load_labels(one.labels) if one.labels else None
        if labels is not None:
            check_same_grid(labels, image)
        matrix = np.eye(4)
        if subjects:
            matrix = affines.between(files[0], subjects[0], one, prepared)
        subjects.append(
            Subject(
                prepared.data,
                prepared.grid,
                prepared.mask,
                None,
                feature_channels(prepared, settings.levels[-1], settings, device),
                matrix,
                labels,
            )
        )
    return subjects


class _Affines:
    """Affines by what they depend on, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = parse_json(read_text(path, 'affines', MOST_JSON_BYTES))
        except (NePhiError, ValueError):
            found = {}
        found = found.items() if isinstance(found, dict) else ()
        self._known = {key: value for key, value in found if _is_affine(value)}

    def between(
        self, first_files: Files, first: Prepared, other_files: Files, other: Prepared
    ) -> np.ndarray:
        """4x4, the first image's mm to the other's."""
        key = f'{first_files.aligned_by} {other_files.aligned_by}'
        if key not in self._known:
            self._known[key] = affine_stage.estimate_affine(
                first.data, first.grid, other.data, other.grid, first.weight, other.weight
            ).tolist()
            write_json(self.path, self._known)
        return np.array(self._known[key], dtype=float)


@dataclass(frozen=True, eq=False)
class TrainingPair:
    """Two subjects, one fixed and one moving, in the frame of their maps.

    Parameters
    ----------
    fixed, moving
        The subjects.
    affine
        4x4, fixed mm to moving mm.
    frame
        Normalised coordinates of the fixed world.
    extent
        Half the size of the box around both masks, normalised.
    """

    fixed: Subject
    moving: Subject
    affine: np.ndarray
    frame: Frame
    extent: list[float]

    def volumes(self) -> tuple[Volume, Volume]:
        """Feature channels of both images, read at points of the frame."""
        sides = ((self.fixed, np.eye(4)), (self.moving, self.affine))
        fixed, moving = (
            Volume(side.channels, side.grid, self.frame, world) for side, world in sides
        )
        return fixed, moving

    def random_points(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normalised points (N, 3) inside the fixed mask, and inside the moving mask."""
        fixed = self.fixed.random_points(count, generator)
        moving = self.moving.random_points(count, generator)
        back = apply_affine(np.linalg.inv(self.affine), moving)
        a, b = (
            torch.from_numpy((points - np.array(self.frame.center_mm)) / self.frame.scale_mm)
            for points in (fixed, back)
        )
        device = self.fixed.channels.device
        return a.float().to(device), b.float().to(device)

    @property
    def labelled(self) -> bool:
        """Whether a Dice can be told."""
        return self.fixed.labels is not None and self.moving.labels is not None

    def dice(self, points: Tensor, displacement: Tensor) -> tuple[float, float]:
        """Mean Dice at points (N, 3) of the fixed mask: by the affine alone, and displaced too."""
        world, warped = (
            at.detach().cpu().double().numpy() * self.frame.scale_mm + self.frame.center_mm
            for at in (points, points + displacement)
        )
        fixed = self.fixed.labels_at(world)
        before, after = (
            _mean_dice(fixed, self.moving.labels_at(apply_affine(self.affine, at)))
            for at in (world, warped)
        )
        return before, after


def draw_pair(
    subjects: Sequence[Subject],
    margin_mm: float,
    place: Callable[[Frame, list[float]], tuple[Frame, list[float]]],
    generator: torch.Generator,
) -> TrainingPair:
    """Two different subjects at random, one fixed and one moving.

    ``place`` turns the frame that just fits, and its extents, into the one of the maps.
    """
    first, second = torch.randperm(len(subjects), generator=generator)[:2].tolist()
    fixed, moving = subjects[first], subjects[second]
    affine = moving.affine @ np.linalg.inv(fixed.affine)
    frame, extent = place(*frame_of(fixed, moving, affine, margin_mm))
    return TrainingPair(fixed, moving, affine, frame, extent)


def scale_of(subjects: Sequence[Subject], margin_mm: float) -> float:
    """A scale in mm for the frames of all pairs: a tenth more than the largest subject needs."""
    sizes = [Frame.around(one.mask_points(), margin_mm).scale_mm for one in subjects]
    return float(np.ceil(_RESERVE * max(sizes)))


def _is_affine(value: object) -> bool:
    try:
        matrix = np.array(value, dtype=float)
    except (ValueError, TypeError, OverflowError):
        return False
    return matrix.shape == (4, 4) and is_invertible(matrix)


def _mean_dice(a: np.ndarray, b: np.ndarray) -> float:
    labels = np.union1d(a, b)
    found = [
        2 * np.sum((a == label) & (b == label)) / (np.sum(a == label) + np.sum(b == label))
        for label in labels[labels != 0]
    ]
    return float(np.mean(found)) if found else 0.0
