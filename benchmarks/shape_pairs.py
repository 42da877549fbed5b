"""Circles and triangles, filled or hollow, as formulas: images of any size, and insides without
pixels.

Coordinates are normalised, [-1, 1] along both axes, x first; pixels lie at the nodes, the outer
ones at -1 and 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 128
"""Pixels along each axis."""

AREA_RADII = (0.35, 0.5)
"""Radii of circles of the same area as the filled shape, least and largest."""

CENTER = 0.15
"""Centres lie in [-CENTER, CENTER] along each axis; no shape then leaves the image."""

WALL = 0.12
"""Thickness of a hollow shape's wall."""

BLUR_PIXELS = 1.0
"""Standard deviation of the Gaussian that blurs the edges."""

_TRIANGLE = math.sqrt(4 * math.pi / math.sqrt(27))
"""Circumradius of an equilateral triangle of the area of the circle of radius 1."""


@dataclass(frozen=True)
class Shapes:
    """Some shapes, one an image.

    Attributes
    ----------
    center
        (B, 2).
    radius
        Of the circle of the same area, (B,).
    turn
        Angle of the first corner, radians, (B,).
    triangle, hollow
        Whether it is a triangle (else a circle) and whether only its wall is bright, (B,) bool.
    """

    center: Tensor
    radius: Tensor
    turn: Tensor
    triangle: Tensor
    hollow: Tensor

    @classmethod
    def draw(cls, hollow: Tensor, generator: torch.Generator) -> Shapes:
        """One random shape for each entry of ``hollow`` (B,), circles as often as triangles."""
        center, radius, turn, kind = torch.rand(4, 2, len(hollow), generator=generator)
        least, largest = AREA_RADII
        return cls(
            center=(2 * center.T - 1) * CENTER,
            radius=least + (largest - least) * radius[0],
            turn=2 * math.pi * turn[0],
            triangle=kind[0] < 0.5,
            hollow=hollow,
        )

    def __len__(self) -> int:
        return len(self.radius)

    def outside_by(self, points: Tensor) -> Tensor:
        """Distance of points (B, N, 2) from the outline, negative inside, (B, N).

        Beyond the corner of a triangle, the distance from the nearer side's line.
        """
        offset = points - self.center[:, None]
        round_ones = torch.hypot(*offset.unbind(dim=-1)) - self.radius[:, None]
        angles = self.turn[:, None] + math.pi * (1 + 2 * torch.arange(3)) / 3
        normals = torch.stack([angles.cos(), angles.sin()], dim=-1)
        inradius = _TRIANGLE / 2 * self.radius[:, None]
        angular_ones = (offset @ normals.mT).amax(dim=-1) - inradius
        return torch.where(self.triangle[:, None], angular_ones, round_ones)

    def contain(self, points: Tensor) -> Tensor:
        """Whether points (B, N, 2) lie within the outline, hollow or not, bool (B, N)."""
        return self.outside_by(points) < 0

    def images(self, size: int = SIZE) -> Tensor:
        """Intensities from 0 to 1 with blurred edges, (B, size, size), x first."""
        blur = BLUR_PIXELS * 2 / (size - 1)
        distance = self.outside_by(pixels(size).expand(len(self), -1, -1))
        filled = _blurred_step(-distance / blur)
        walls = filled - _blurred_step((-distance - WALL) / blur)
        return torch.where(self.hollow[:, None], walls, filled).view(-1, size, size)


def draw_pairs(count: int, generator: torch.Generator) -> tuple[Shapes, Shapes]:
    """Fixed and moving shapes of so many pairs: both filled in even ones, both hollow in odd ones.

    A circle may be paired with a triangle.
    """
    hollow = torch.arange(count) % 2 == 1
    return Shapes.draw(hollow, generator), Shapes.draw(hollow, generator)


def pixels(size: int = SIZE) -> Tensor:
    """Where the pixels lie, (size^2, 2), x first."""
    axis = torch.linspace(-1, 1, size)
    return torch.cartesian_prod(axis, axis)


def _blurred_step(distance: Tensor) -> Tensor:
    """A step from 0 to 1 that a Gaussian of standard deviation 1 has blurred."""
    return torch.special.ndtr(distance)
