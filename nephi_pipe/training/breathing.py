"""Breaths of training images: motions that experts marked, carried into any lungs at random.

Each motion becomes a velocity (see :mod:`nephi_pipe.motion`). A breath is a random mixture of
them, in or out, with a random smooth part, followed as a
:class:`nephi_pipe.training.augment.Warp`: invertible, whatever was drawn. Density goes with the
volume as in :mod:`nephi_pipe.simulate_breathing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..field.interpolate import read_grid, separable, spline_weights
from ..motion import LandmarkMotion, box_of, fit_diffeomorphism
from ..simulate import Diffeomorphism
from .augment import PointWarp, Warp

_NODES = 17
"""Of a breath along an axis of the frame: some 20 mm apart, as the motions' own."""

_RANDOM_NODES = (4, 7)
_MOST_RANDOM = 0.3
_LEAST = 0.2
"""The random part's largest share of a breath, and the smallest breath in units of the largest."""

_LUNG_POINTS = 4000
_NARROW = 1.0
"""Both lungs are wider than deep, one is not."""

_PARENCHYMA, _SOLID = 0.3, 0.8
"""-700 and -200 HU where 0 is -1000 HU and 1 is 0 HU: below all tissue holds air, above none."""


@dataclass(frozen=True, eq=False)
class Breath:
    """A motion from one state of some lungs to another.

    Parameters
    ----------
    phi
        The motion, in mm of the world where it was marked.
    boxes
        Boxes (2, 3) of both lungs, the left and the right one, in the first and the second state:
        by name and by whether it is the second.
    """

    phi: Diffeomorphism
    boxes: dict[tuple[str, bool], np.ndarray]

    @classmethod
    def of(cls, motion: LandmarkMotion) -> Breath:
        """The smooth map close to the landmarks."""
        phi = fit_diffeomorphism(motion)
        lungs = motion.lungs[:: max(1, len(motion.lungs) // _LUNG_POINTS)]
        left = lungs[:, 0] < box_of(motion.lungs).mean(axis=0)[0]
        after = phi.map_points(lungs)
        parts = {'both': slice(None), 'left': left, 'right': ~left}
        boxes = {
            (name, second): box_of(points[part])
            for name, part in parts.items()
            for second, points in enumerate((lungs, after))
        }
        return cls(phi, {(name, bool(second)): box for (name, second), box in boxes.items()})

    def velocity(self, nodes: np.ndarray, box: np.ndarray, part: str, out: bool) -> np.ndarray:
        """Velocity at nodes (..., 3) of other lungs whose box (2, 3) is given, in their units.

        ``out`` is the way from the second state to the first.
        """
        low, high = self.boxes[part, out]
        scale = (high - low) / (box[1] - box[0])
        found = self.phi.velocity_at(low + (nodes - box[0]) * scale) / scale
        return -found if out else found


class Breaths:
    """Random breaths made of some motions.

    Parameters
    ----------
    motions
        Landmarks in two states, each of another person.
    """

    def __init__(self, motions: Sequence[LandmarkMotion]) -> None:
        self._breaths = [Breath.of(motion) for motion in motions]

    def warp(
        self,
        lungs: Tensor,
        largest: float,
        mirrored: bool,
        generator: torch.Generator,
    ) -> Warp:
        """A random breath of the lungs whose points are given.

        Parameters
        ----------
        lungs
            Points all over the lungs, normalised, (N, 3).
        largest
            Largest mean displacement of them, normalised; the least is a fifth of it.
        mirrored
            Whether the images' left is their right.
        generator
            Of all random draws.

        Returns
        -------
        Warp
            From the fixed image to the moving one, where the points are.
        """
        wanted = largest * (_LEAST + (1 - _LEAST) * float(torch.rand(1, generator=generator)))
        draws = torch.rand(len(self._breaths), generator=generator).clamp_min(1e-6)
        shares = draws.log().square().numpy()  # mostly one of them, with some of the others
        out = bool(torch.randint(2, (1,), generator=generator))
        box = box_of(lungs.numpy().astype(float))
        wide, deep, _ = box[1] - box[0]
        part = 'both' if wide > _NARROW * deep else 'right'
        # A mask does not tell which lung it is, and the image may be mirrored.
        if part == 'right' and float(torch.rand(1, generator=generator)) < 0.5:
            part = 'left'
        axis = np.linspace(-1, 1, _NODES)
        nodes = np.stack(np.meshgrid(axis, axis, axis, indexing='ij'), axis=-1)
        flip = np.array([-1.0 if mirrored else 1.0, 1.0, 1.0])
        box = np.sort(box * flip, axis=0)
        velocity = sum(
            share * breath.velocity(nodes * flip, box, part, out) * flip
            for share, breath in zip(shares / shares.sum(), self._breaths, strict=True)
        )
        return _scaled(torch.from_numpy(velocity).float(), lungs, wanted, generator)


@dataclass(frozen=True, eq=False)
class AffineMap:
    """An affine of normalised points, (3, 4)."""

    matrix: Tensor

    nodes: ClassVar[int] = 2

    @classmethod
    def closest(cls, points: Tensor, moved: Tensor) -> AffineMap:
        """The one that takes points (N, 3) nearest to others, by least squares."""
        ones = torch.ones(len(points), 1, dtype=torch.double)
        known = torch.cat([points.double(), ones], dim=1)
        return cls(torch.linalg.lstsq(known, moved.double()).solution.T.float())

    def __call__(self, points: Tensor) -> Tensor:
        """Where points (N, 3) go."""
        matrix = self.matrix.to(points)
        return torch.addmm(matrix[:, 3], points, matrix[:, :3].T)

    def back(self, points: Tensor) -> Tensor:
        """Where they come from."""
        matrix = self.matrix.to(points)
        return (points - matrix[:, 3]) @ torch.linalg.inv(matrix[:, :3]).T

    def after(self, other: AffineMap) -> AffineMap:
        """This one, where the other has been before."""
        row = self.matrix.new_tensor([[0.0, 0.0, 0.0, 1.0]])
        return AffineMap(self.matrix @ torch.cat([other.matrix, row]))

    @property
    def inverse(self) -> AffineMap:
        """The other way."""
        turned = torch.linalg.inv(self.matrix[:, :3])
        return AffineMap(torch.cat([turned, -turned @ self.matrix[:, 3:]], dim=1))


@dataclass(frozen=True, eq=False)
class Chain:
    """Maps of points, one after the other."""

    parts: tuple[PointWarp, ...]

    @property
    def nodes(self) -> int:
        """As many as the finest part has."""
        return max((part.nodes for part in self.parts), default=2)

    def __call__(self, points: Tensor) -> Tensor:
        """Where points (N, 3) go."""
        for part in self.parts:
            points = part(points)
        return points

    def back(self, points: Tensor) -> Tensor:
        """About where they come from."""
        for part in reversed(self.parts):
            points = part.back(points)
        return points


def log_volume(warp: Warp, nodes: int) -> Tensor:
    """Logarithm of a warp's determinant at the nodes of a lattice over [-1, 1], (n, n, n, 1)."""
    axis = torch.linspace(-1, 1, nodes)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), dim=-1)
    there = warp(points.view(-1, 3)).view(points.shape)
    plain = torch.eye(nodes)
    slope = spline_weights(torch.arange(nodes).float(), nodes, derivative=True) * ((nodes - 1) / 2)
    moved = there - points
    columns = [
        separable(moved, [slope if one == other else plain for other in range(3)])
        for one in range(3)
    ]
    jacobian = torch.eye(3) + torch.stack(columns, dim=-1)
    return torch.linalg.det(jacobian).clamp_min(0.1).log()[..., None]


def with_density(values: Tensor, log_determinant: Tensor) -> Tensor:
    """Intensities (-1000 HU is 0, 0 HU is 1) of lungs whose volume changed; the mass stays.

    As :func:`nephi_pipe.simulate_breathing.with_density`: what holds no air keeps its value.
    """
    air_filled = ((_SOLID - values) / (_SOLID - _PARENCHYMA)).clamp(0, 1)
    return values * (1 + air_filled * (log_determinant.exp() - 1))


def _scaled(velocity: Tensor, lungs: Tensor, wanted: float, generator: torch.Generator) -> Warp:
    """With a random part, and as large as is wanted in the mean."""
    fewest, most = _RANDOM_NODES
    count = int(torch.randint(fewest, most + 1, (1,), generator=generator))
    noise = torch.randn(1, 3, count, count, count, generator=generator)
    noise = F.interpolate(noise, size=velocity.shape[:3], mode='trilinear', align_corners=True)
    noise = noise[0].movedim(0, -1)
    share = _MOST_RANDOM * float(torch.rand(1, generator=generator))
    sizes = [read_grid(part, lungs, 'cubic').norm(dim=1).mean() for part in (velocity, noise)]
    velocity = velocity * (wanted / sizes[0]) + noise * (share * wanted / sizes[1])
    for _ in range(3):  # again, because a path bends
        warp = Warp.of(velocity)
        velocity = velocity * (wanted / (warp.back(lungs) - lungs).norm(dim=1).mean())
    return Warp.of(velocity)
