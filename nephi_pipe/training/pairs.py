"""Random pairs of training images: two people, or one person and a known warp of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..field.interpolate import separable, spline_weights
from ..geometry import Frame, apply_affine
from ..learning.volume import Volume
from .augment import PointWarp, Warp, intensities, noisy_affine, shared_turn
from .breathing import AffineMap, Breaths, Chain, log_volume, with_density
from .settings import Augmentation
from .stored import StoredVolume
from .subject import Subject

_COARSE = 21
"""Nodes along an axis at which a warp is evaluated for the encoder, which sees no finer."""

_PROBES = 1000
_MISALIGNED = 0.2
"""Noise on the affine between two breath states, in units of that on poses."""

Place = Callable[[Frame, list[float]], tuple[Frame, list[float]]]


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
    shown
        How points are moved before the fixed and the moving image are read, None for not at all.
    breath
        The part of the first of them that the fixed image's density follows.
    moving_warp
        What earlier stages found: the moving image is seen through it. None before the first.
    """

    fixed: Subject
    moving: Subject
    worlds: tuple[np.ndarray, np.ndarray]
    frame: Frame
    extent: list[float]
    warp: PointWarp | None = None
    shown: tuple[PointWarp | None, PointWarp | None] = (None, None)
    breath: Warp | None = None
    moving_warp: PointWarp | None = None

    @cached_property
    def log_volumes(self) -> tuple[Tensor | None, None]:
        """Of both images what the density follows, on a coarse lattice."""
        return (None if self.breath is None else log_volume(self.breath, _COARSE)), None

    def volumes(self, device: str) -> tuple[StoredVolume, StoredVolume]:
        """Feature channels of both images, read at points of the frame."""
        fixed, moving = (
            StoredVolume(side.channels_on(device), side.grid, self.frame, world, warp, change)
            for (side, world, warp), change in zip(self._sides, self.log_volumes, strict=True)
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
            points = self._normalised(points, world).to(device)
            found.append(points if warp is None else warp.back(points))
        return found[0], found[1]

    def normalised(self, points_mm: np.ndarray, side: int) -> Tensor:
        """Points (N, 3) of the fixed (0) or moving (1) image's world, before they are moved."""
        return self._normalised(points_mm, self.worlds[side])

    def _normalised(self, points_mm: np.ndarray, world: np.ndarray) -> Tensor:
        points = apply_affine(np.linalg.inv(world), points_mm)
        points = (points - np.array(self.frame.center_mm)) / self.frame.scale_mm
        return torch.from_numpy(points).float()

    def cubes(
        self, size: int, device: str, augmentation: Augmentation, generator: torch.Generator
    ) -> Tensor:
        """What the encoder sees: (2, N, N, N), fixed and moving, x first."""
        axis = torch.linspace(-1, 1, size, device=device)
        nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), dim=-1)
        found = []
        for (side, world, warp), change in zip(self._sides, self.log_volumes, strict=True):
            data = torch.from_numpy(side.thumbnail.data).to(device)
            volume = Volume(data[None], side.thumbnail.grid, self.frame, world)
            at = nodes if warp is None else nodes + _on_nodes(warp, size, device)
            cube = volume.sample(at.reshape(-1, 3)).view(size, size, size)
            if change is not None:
                cube = with_density(cube, _finer(change.to(device), size)[..., 0])
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
        fixed, moving = self.shown
        if self.moving_warp is not None:
            moving = self.moving_warp if moving is None else Chain((self.moving_warp, moving))
        return (self.fixed, self.worlds[0], fixed), (self.moving, self.worlds[1], moving)

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
    *,
    within: bool = False,
    breaths: Breaths | None = None,
) -> TrainingPair:
    """Two different subjects at random, or one twice, in a pose at random.

    Parameters
    ----------
    subjects
        To draw from.
    margin_mm, place
        ``place`` turns the frame that just fits, and its extents, into the one of the maps.
    augmentation, generator
        How pairs are varied, and the source of all draws.
    within
        Draw two scans of one person; of whom there is one scan, it is taken twice and warped.
    breaths
        Motions of simulated pairs.
    """
    first, second = torch.randperm(len(subjects), generator=generator)[:2].tolist()
    simulated = float(torch.rand(1, generator=generator)) < augmentation.simulated
    fixed, moving = subjects[first], subjects[second]
    if within:
        others = [one for one in subjects if one.person == fixed.person and one is not fixed]
        simulated = simulated or not others
        if others:
            moving = others[int(torch.randint(len(others), (1,), generator=generator))]
    if simulated:
        moving = fixed
    pair = place_pair(fixed, moving, margin_mm, place, augmentation, generator)
    return simulate(pair, augmentation, generator, breaths) if simulated else pair


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


def simulate(
    pair: TrainingPair,
    augmentation: Augmentation,
    generator: torch.Generator,
    breaths: Breaths | None = None,
) -> TrainingPair:
    """The moving image of a pair as both images, the fixed one warped by a random map."""
    world = pair.worlds[1]
    pair = replace(pair, fixed=pair.moving, worlds=(world, world))
    if breaths is not None:
        return _breathing(pair, augmentation, generator, breaths)
    largest = augmentation.simulated_mm / pair.frame.scale_mm
    warp = Warp.random(largest, pair.extent, generator)
    return replace(pair, warp=warp, shown=(warp, None))


def _breathing(
    pair: TrainingPair, augmentation: Augmentation, generator: torch.Generator, breaths: Breaths
) -> TrainingPair:
    """One image in two breath states, aligned by an affine that is about the best there is."""
    scale_mm, world = pair.frame.scale_mm, pair.worlds[1]
    anatomy: PointWarp = Chain(())
    if augmentation.anatomy_mm:
        anatomy = Warp.random(augmentation.anatomy_mm / scale_mm, pair.extent, generator)
    probes = pair.normalised(pair.moving.random_points(_PROBES, generator), 1)
    lungs = anatomy.back(probes)
    largest = augmentation.breathing_mm / scale_mm
    warp = breaths.warp(lungs, largest, np.linalg.det(world[:3, :3]) < 0, generator)
    affine = AffineMap.closest(warp.back(lungs), lungs)
    noise = replace(augmentation, affine=_MISALIGNED * augmentation.affine)
    noise = noisy_affine(noise, np.zeros(3), 1.0, generator)[:3]
    affine = affine.after(AffineMap(torch.from_numpy(noise).float()))
    shown = Chain((warp, anatomy)), Chain((affine, anatomy))
    hull = pair.normalised(pair.moving.hull_mm, 1)
    margin = torch.tensor(pair.extent) - hull.abs().amax(dim=0)
    reach = torch.cat([one.back(torch.cat([hull, probes])).abs() for one in shown]).amax(dim=0)
    return replace(
        pair,
        extent=(reach + margin).clamp_max(1).tolist(),
        warp=Chain((warp, affine.inverse)),
        shown=shown,
        breath=warp,
    )


def _on_nodes(warp: PointWarp, size: int, device: str) -> Tensor:
    """Displacement of a warp at the nodes of a cube, (N, N, N, 3), from a coarser one."""
    nodes = min(warp.nodes, size)
    axis = torch.linspace(-1, 1, nodes, device=device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), dim=-1).view(-1, 3)
    return _finer((warp(points) - points).view(*[nodes] * 3, 3), size)


def _finer(coarse: Tensor, size: int) -> Tensor:
    """What is given on a coarse lattice (n, n, n, C), by cubic splines on a cube's nodes."""
    nodes = len(coarse)
    matrix = spline_weights(torch.linspace(0, nodes - 1, size), nodes).to(coarse)
    return separable(coarse, [matrix] * 3)


def _mean_dice(a: np.ndarray, b: np.ndarray) -> float:
    labels = np.union1d(a, b)
    found = [
        2 * np.sum((a == label) & (b == label)) / (np.sum(a == label) + np.sum(b == label))
        for label in labels[labels != 0]
    ]
    return float(np.mean(found)) if found else 0.0
