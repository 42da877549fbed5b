"""Random poses, contrasts and warps of training images; none touches a native volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..field.interpolate import read_grid
from .settings import Augmentation

BIAS_NODES = 4
_WARP_NODES = (5, 9)
"""Fewest and most nodes of a warp along an axis of the frame."""

_CONTRACTION = 0.5
_PROBES = 1000


class PointWarp(Protocol):
    """A map of normalised points, and about its inverse."""

    @property
    def nodes(self) -> int:
        """Nodes along an axis between which the map is smooth enough for an encoder."""

    def __call__(self, points: Tensor) -> Tensor:
        """Where points (N, 3) go."""

    def back(self, points: Tensor) -> Tensor:
        """About where points (N, 3) come from."""


def shared_turn(
    augmentation: Augmentation, center_mm: np.ndarray, generator: torch.Generator
) -> np.ndarray:
    """4x4: an axis permutation with flips about a point, a rotation and a mirror, or nothing."""
    matrix = np.eye(3)
    if float(torch.rand(1, generator=generator)) < augmentation.flips:
        order = torch.randperm(3, generator=generator).numpy()
        signs = torch.randint(2, (3,), generator=generator).numpy() * 2 - 1
        matrix = np.eye(3)[order] * signs
    if augmentation.turn_degrees or augmentation.mirror:
        matrix = matrix @ turn_and_mirror(augmentation, generator).double().numpy()
    return _about(matrix, center_mm)


def turn_and_mirror(augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """3x3: a small rotation about a random axis and a change of size, maybe a mirror across x."""
    axis = F.normalize(torch.randn(3, generator=generator), dim=0)
    angle = torch.deg2rad(augmentation.turn_degrees * torch.randn(1, generator=generator))
    x, y, z = (axis * angle).tolist()
    rotation = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    size = torch.exp(augmentation.affine * torch.randn(1, generator=generator))
    mirrored = float(torch.rand(1, generator=generator)) < augmentation.mirror
    return rotation * size * torch.tensor([-1.0 if mirrored else 1.0, 1.0, 1.0])


def noisy_affine(
    augmentation: Augmentation,
    center_mm: np.ndarray,
    radius_mm: float,
    generator: torch.Generator,
) -> np.ndarray:
    """4x4: the identity with noise on all twelve entries, translations in units of a radius."""
    if not augmentation.affine:
        return np.eye(4)
    noise = augmentation.affine * torch.randn(3, 4, generator=generator).double().numpy()
    matrix = _about(np.eye(3) + noise[:, :3], center_mm)
    matrix[:3, 3] += noise[:, 3] * radius_mm
    return matrix


def intensities(cube: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """A cube with another gamma, a smooth factor and noise; what is zero stays zero."""
    if augmentation.gamma:
        exponent = math.exp(augmentation.gamma * float(torch.randn(1, generator=generator)))
        cube = cube.clamp_min(0) ** exponent
    if augmentation.bias:
        nodes = torch.randn(1, 1, *[BIAS_NODES] * 3, generator=generator).to(cube.device)
        field = F.interpolate(nodes, size=cube.shape, mode='trilinear', align_corners=True)[0, 0]
        largest = augmentation.bias * float(torch.rand(1, generator=generator))
        cube = cube * (field * (largest / field.abs().max())).exp()
    if augmentation.noise:
        noise = torch.randn(cube.shape, generator=generator).to(cube.device)
        deviation = augmentation.noise * float(torch.rand(1, generator=generator))
        cube = cube + deviation * noise * (cube != 0)
    return cube


@dataclass(frozen=True, eq=False)
class Warp:
    """A diffeomorphism of the frame: a smooth velocity, followed in equal steps.

    No step changes differences by more than a half, so each is invertible and with it the whole
    (see :mod:`nephi_pipe.simulate`, whose maps live in mm and on the processor).

    Parameters
    ----------
    coefficients
        Of the cubic B-spline of one step, (n, n, n, 3), nodes over [-1, 1].
    steps
        How many.
    """

    coefficients: Tensor
    steps: int

    nodes: ClassVar[int] = 21

    @classmethod
    def random(cls, largest: float, extent: Sequence[float], generator: torch.Generator) -> Warp:
        """A random one whose largest displacement in the box is up to ``largest``, normalised."""
        fewest, most = _WARP_NODES
        nodes = int(torch.randint(fewest, most + 1, (1,), generator=generator))
        wanted = largest * (0.25 + 0.75 * float(torch.rand(1, generator=generator)))
        velocity = wanted * torch.randn(nodes, nodes, nodes, 3, generator=generator)
        probes = (torch.rand(_PROBES, 3, generator=generator) * 2 - 1) * torch.tensor(extent)
        for _ in range(2):  # the second time takes in that a path bends
            warp = cls.of(velocity)
            reached = (warp(probes) - probes).norm(dim=1).max()
            velocity = velocity * (wanted / reached)
        return cls.of(velocity)

    @classmethod
    def of(cls, velocity: Tensor) -> Warp:
        """That of a velocity's coefficients, (n, n, n, 3), in as many steps as it needs."""
        # A derivative of a B-spline is a mean of differences of its coefficients (de Boor).
        apart = 2 / (len(velocity) - 1)
        bound = [velocity.diff(dim=axis).norm(dim=-1).max() / apart for axis in range(3)]
        steps = max(1, math.ceil(float(torch.stack(bound).norm()) / _CONTRACTION))
        return cls(velocity / steps, steps)

    def __call__(self, points: Tensor) -> Tensor:
        """Where points (N, 3) go."""
        coefficients = self.coefficients.to(points)
        for _ in range(self.steps):
            points = points + read_grid(coefficients, points, 'cubic')
        return points

    def back(self, points: Tensor) -> Tensor:
        """About where points come from; :meth:`__call__` says where they really go."""
        coefficients = self.coefficients.to(points)
        for _ in range(self.steps):
            points = points - read_grid(coefficients, points, 'cubic')
        return points


def _about(matrix: np.ndarray, center_mm: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = center_mm - matrix @ center_mm
    return affine
