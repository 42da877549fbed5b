"""Random pairs of training images: two people, or one person and a known warp of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Frame, Grid, apply_affine
from ..learning.volume import Volume
from .augment import PointWarp, Warp, intensities, noisy_affine, shared_turn
from .settings import Augmentation
from .subject import Subject

Place = Callable[[Frame, list[float]], tuple[Frame, list[float]]]


class StoredVolume:
    """Channels of a subject, linearly interpolated at normalised points, zero outside.

    As :class:`nephi_pipe.learning.volume.Volume`, for channels that lie next to each other: only
    the voxels around the points are read.

    Parameters
    ----------
    channels
        (X, Y, Z, C) of any type of number; the outer voxels are zero.
    grid, frame
        Where the voxels are, and the coordinates in which points are given.
    world
        4x4, mm of the frame to mm of the grid.
    warp
        A deformation of the points, before everything else.
    """

    def __init__(
        self,
        channels: Tensor,
        grid: Grid,
        frame: Frame,
        world: np.ndarray,
        warp: PointWarp | None = None,
    ) -> None:
        self._shape = channels.shape[:3]
        self._flat = channels.reshape(-1, channels.shape[-1])
        to_index = grid.inverse_affine @ world
        matrix = to_index[:3, :3] * frame.scale_mm
        offset = apply_affine(to_index, np.array(frame.center_mm))
        device = channels.device
        self._matrix = torch.from_numpy(matrix.T.copy()).float().to(device)
        self._offset = torch.from_numpy(offset).float().to(device)
        self._warp = warp

    def sample(self, points: Tensor) -> Tensor:
        """Values (N, C) at normalised points (N, 3); differentiable in the points."""
        index, weights = self._corners(points)
        return (weights[..., None] * self._flat[index].float()).sum(dim=1)

    def shares(self, points: Tensor, classes: Tensor) -> Tensor:
        """Shares (N, K) of the labels ``classes`` (K,) in the first channel, differentiable."""
        index, weights = self._corners(points)
        same = self._flat[index][..., 0, None] == classes
        return (weights[..., None] * same).sum(dim=1)

    def nearest(self, points: Tensor) -> Tensor:
        """Values (N,) of the first channel in the voxels that weigh most."""
        index, weights = self._corners(points)
        best = weights.argmax(dim=1, keepdim=True)
        return self._flat[index.gather(1, best)[:, 0], 0]

    def _corners(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices and weights (N, 8) of the voxels around points."""
        if self._warp is not None:
            points = self._warp(points)
        position = torch.addmm(self._offset, points, self._matrix)
        index = torch.zeros(len(points), 1, dtype=torch.long, device=points.device)
        weights = torch.ones(len(points), 1, device=points.device)
        for axis, size in enumerate(self._shape):
            along = position[:, axis].clamp(0, size - 1)
            first = along.detach().floor().clamp_max(size - 2)
            t = along - first
            both = torch.stack([first.long(), first.long() + 1], dim=1)
            index = (index[:, :, None] * size + both[:, None]).flatten(1)
            weights = (weights[:, :, None] * torch.stack([1 - t, t], dim=1)[:, None]).flatten(1)
        return index, weights


@dataclass(frozen=True, eq=False)
class TrainingPair:
    """Two images, one fixed and one moving, in the frame of their maps.

    Parameters
    ----------
    fixed, moving
        The subjects; one and the same in a simulated pair.
    worlds
        4x4 each, mm of the frame to mm of the fixed and of the moving image.
    frame
        Normalised coordinates.
    extent
        Half the size of the box around both masks, normalised.
    warp
        In a simulated pair, the map from the fixed to the moving image; else None.
    moving_warp
        What earlier stages found: the moving image is seen through it. None before the first.
    """

    fixed: Subject
    moving: Subject
    worlds: tuple[np.ndarray, np.ndarray]
    frame: Frame
    extent: list[float]
    warp: Warp | None = None
    moving_warp: PointWarp | None = None

    def volumes(self, device: str) -> tuple[StoredVolume, StoredVolume]:
        """Feature channels of both images, read at points of the frame."""
        fixed, moving = (
            StoredVolume(side.channels_on(device), side.grid, self.frame, world, warp)
            for side, world, warp in self._sides
        )
        return fixed, moving

    def label_volumes(self, device: str) -> tuple[StoredVolume, StoredVolume]:
        """Label maps of both images, likewise; torch has no uint16 to compare with."""
        fixed, moving = (
            StoredVolume(
                torch.from_numpy(side.labels.view(np.int16))[..., None].to(device),
                side.grid, self.frame, world, warp,
            )
            for side, world, warp in self._sides
        )  # fmt: skip
        return fixed, moving

    def random_points(
        self, count: int, generator: torch.Generator, device: str
    ) -> tuple[Tensor, Tensor]:
        """Normalised points (N, 3) inside the fixed mask, and inside the moving mask."""
        found = []
        for side, world, warp in self._sides:
            points = side.random_points(count, generator)
            points = apply_affine(np.linalg.inv(world), points)
            points = (points - np.array(self.frame.center_mm)) / self.frame.scale_mm
            points = torch.from_numpy(points).float().to(device)
            found.append(points if warp is None else warp.back(points))
        return found[0], found[1]

    def cubes(
        self, size: int, device: str, augmentation: Augmentation, generator: torch.Generator
    ) -> Tensor:
        """What the encoder sees: (2, N, N, N), fixed and moving, x first."""
        axis = torch.linspace(-1, 1, size, device=device)
        nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), dim=-1)
        found = []
        for side, world, warp in self._sides:
            data = torch.from_numpy(side.thumbnail.data).to(device)
            volume = Volume(data[None], side.thumbnail.grid, self.frame, world)
            at = nodes if warp is None else nodes + _on_nodes(warp, size, device)
            cube = volume.sample(at.reshape(-1, 3)).view(size, size, size)
            found.append(intensities(cube, augmentation, generator))
        return torch.stack(found)

    def reached(self, points: Tensor) -> Tensor:
        """Points (N, 3) of the moving image as it is seen, in the image as it is."""
        return points if self.moving_warp is None else self.moving_warp(points)

    @property
    def labelled(self) -> bool:
        """Whether a Dice can be told."""
        return self.fixed.labels is not None and self.moving.labels is not None

    def dice(self, points: Tensor, displacement: Tensor) -> tuple[float, float]:
        """Mean Dice at points (N, 3) of the fixed mask: as they are, and displaced.

        Both after earlier stages, where there are some.
        """
        fixed = self._labels(points, 0)
        before, after = (self._labels(at, 1) for at in (points, points + displacement))
        return _mean_dice(fixed, before), _mean_dice(fixed, after)

    @property
    def _sides(self) -> tuple[tuple[Subject, np.ndarray, PointWarp | None], ...]:
        return (
            (self.fixed, self.worlds[0], self.warp),
            (self.moving, self.worlds[1], self.moving_warp),
        )

    def _labels(self, points: Tensor, side: int) -> np.ndarray:
        subject, world, warp = self._sides[side]
        points = points if warp is None else warp(points)
        world_mm = (
            points.detach().cpu().double().numpy() * self.frame.scale_mm + self.frame.center_mm
        )
        return subject.labels_at(apply_affine(world, world_mm))


def draw_pair(
    subjects: Sequence[Subject],
    margin_mm: float,
    place: Place,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> TrainingPair:
    """Two different subjects at random, or one twice, in a pose at random.

    ``place`` turns the frame that just fits, and its extents, into the one of the maps.
    """
    first, second = torch.randperm(len(subjects), generator=generator)[:2].tolist()
    simulated = float(torch.rand(1, generator=generator)) < augmentation.simulated
    fixed, moving = subjects[first], subjects[first if simulated else second]
    pair = place_pair(fixed, moving, margin_mm, place, augmentation, generator)
    if not simulated:
        return pair
    return simulate(pair, augmentation.simulated_mm, generator)


def place_pair(
    fixed: Subject,
    moving: Subject,
    margin_mm: float,
    place: Place,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> TrainingPair:
    """Two subjects in the fixed one's world, turned and sheared as the augmentation asks."""
    affine = moving.affine @ np.linalg.inv(fixed.affine)
    center = (fixed.hull_mm.min(axis=0) + fixed.hull_mm.max(axis=0)) / 2
    radius = float(np.ptp(fixed.hull_mm, axis=0).max() / 2)
    turn = shared_turn(augmentation, center, generator)
    worlds = tuple(
        pose @ turn @ noisy_affine(augmentation, center, radius, generator)
        for pose in (np.eye(4), affine)
    )
    points = np.concatenate(
        [
            apply_affine(np.linalg.inv(world), side.hull_mm)
            for side, world in zip((fixed, moving), worlds, strict=True)
        ]
    )
    frame = Frame.around(points, margin_mm)
    half = np.ptp(points, axis=0) / 2 + margin_mm
    frame, extent = place(frame, (half / frame.scale_mm).tolist())
    return TrainingPair(fixed, moving, worlds, frame, extent)


def simulate(pair: TrainingPair, largest_mm: float, generator: torch.Generator) -> TrainingPair:
    """The moving image of a pair as both images, the fixed one warped by a random map."""
    warp = Warp.random(largest_mm / pair.frame.scale_mm, pair.extent, generator)
    world = pair.worlds[1]
    return TrainingPair(pair.moving, pair.moving, (world, world), pair.frame, pair.extent, warp)


def _on_nodes(warp: PointWarp, size: int, device: str) -> Tensor:
    """Displacement of a warp at the nodes of a cube, (N, N, N, 3), from a coarser one."""
    nodes = min(warp.nodes, size)
    axis = torch.linspace(-1, 1, nodes, device=device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), dim=-1).view(-1, 3)
    coarse = (warp(points) - points).view(1, *[nodes] * 3, 3).movedim(-1, 1)
    fine = F.interpolate(coarse, size=(size,) * 3, mode='trilinear', align_corners=True)
    return fine[0].movedim(0, -1)


def _mean_dice(a: np.ndarray, b: np.ndarray) -> float:
    labels = np.union1d(a, b)
    found = [
        2 * np.sum((a == label) & (b == label)) / (np.sum(a == label) + np.sum(b == label))
        for label in labels[labels != 0]
    ]
    return float(np.mean(found)) if found else 0.0
