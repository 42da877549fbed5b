"""How well affine maps align two images, and in which direction they would do so better."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .affine_levels import SPACINGS, Level, Subject, pyramid, single, upper_rows

LOWEST_SHARE = 0.4
"""When fewer of the points than this share meet something known, the cost rises."""


class Landscape(NamedTuple):
    """The cost of B maps and its surroundings.

    ``curvature`` (B, 12, 12) is close to the second derivative, ``square`` is the Gauss-Newton
    matrix: never negative, and larger the less two images share. Both are symmetric.
    """

    cost: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray
    square: np.ndarray


class Pair:
    """Two images at one resolution.

    ``ways`` says whether fixed points are looked up in the moving image, and the other way round.

    Derivatives are with respect to a generator that changes a map from the left: a shift in mm
    and a matrix (row by row, times ``radius``) about the centre of the moving points, so that a
    moving point y changes by d(y) = shift + matrix (y - center) / radius. The place A^-1 y of a
    moving point in the fixed image changes by -A^-1 d(y).
    """

    def __init__(
        self, fixed: Level, moving: Level, ways: tuple[bool, bool], spacing_mm: float
    ) -> None:
        self.fixed, self.moving, self.ways, self.spacing_mm = fixed, moving, ways, spacing_mm
        where = moving.points[:3].double().numpy()
        self.center = where.mean(axis=1)
        self.radius = float(np.sqrt(where.var(axis=1).sum()))

    def cost(self, maps: np.ndarray) -> np.ndarray:
        """Cost (B,) of maps (B, 4, 4): one minus the mean correlation, 0 at best."""
        back = np.linalg.inv(maps)
        both = ((self.fixed, self.moving, maps), (self.moving, self.fixed, back))
        costs = [_cost(*way) for way, used in zip(both, self.ways, strict=True) if used]
        return sum(costs) / len(costs)

    def landscape(self, maps: np.ndarray) -> Landscape:
        """Cost, gradient and curvature at maps (B, 4, 4)."""
        arm = np.eye(4)
        arm[:3] = np.c_[np.eye(3), -self.center] / self.radius
        back, still = np.linalg.inv(maps), np.tile(np.eye(3), (len(maps), 1, 1))
        there = (self.fixed, self.moving, maps, arm @ maps, still, back[:, :3, :3])
        arms = np.tile(arm, (len(maps), 1, 1))
        home = (self.moving, self.fixed, back, arms, -back[:, :3, :3], -still)
        ways = [way for way, used in zip((there, home), self.ways, strict=True) if used]
        parts = [_landscape(*way) for way in ways]
        return Landscape(*(sum(part) / len(parts) for part in zip(*parts, strict=True)))

    def share(self, one: np.ndarray) -> float:
        """The smaller share of points that meet something known in the other image."""
        there = self.moving.known(one[None], self.fixed.points).mean()
        back = self.fixed.known(np.linalg.inv(one)[None], self.moving.points).mean()
        return float(min(there, back))


def pairs(
    fixed: Subject, moving: Subject, finest_mm: float, seed: int, by_depth: bool = False
) -> list[Pair]:
    """The pair at each level, coarse to fine."""
    rng = np.random.default_rng(seed)
    ways = (fixed.masked or not moving.masked, moving.masked or not fixed.masked)
    pyramids = [
        pyramid(fixed, moving.masked, finest_mm, rng, by_depth),
        pyramid(moving, fixed.masked, finest_mm, rng, by_depth),
    ]
    return [
        Pair(fixed_level, moving_level, ways, finest_mm * factor)
        for fixed_level, moving_level, factor in zip(*pyramids, SPACINGS, strict=True)
    ]


def _cost(source: Level, target: Level, maps: np.ndarray) -> np.ndarray:
    """Cost of reading ``target`` at the mapped points of ``source``."""
    known = target.known(maps, source.points)
    found = target.read(maps, source.points, len(source.values))
    cost = _penalty(known)
    for i, expected in enumerate(source.values):
        e, _ = _standardised(expected[None], known)
        f, _ = _standardised(found[:, i], known)
        cost = cost + (1 - _double((known * e * f).sum(dim=1))) / len(source.values)
    return cost


def _landscape(
    source: Level,
    target: Level,
    maps: np.ndarray,
    arms: np.ndarray,
    turns: np.ndarray,
    source_turns: np.ndarray,
) -> Landscape:
    """Cost and derivatives of reading ``target`` at the mapped points of ``source``.

    ``arms`` (B, 4, 4) takes the points to (y - center) / radius; ``turns`` (B, 3, 3) takes d(y)
    to the change of the place in the target, ``source_turns`` to the same change in the source.
    """
    count = len(source.values)
    known = target.known(maps, source.points)
    read = target.read(maps, source.points, 4 * count)
    arm = upper_rows(arms) @ source.points
    turn, source_turn = single(turns).transpose(1, 2), single(source_turns).transpose(1, 2)
    parts = []
    for i in range(count):
        e, e_size = _standardised(source.values[i][None], known)
        f, f_size = _standardised(read[:, i], known)
        slopes = slice(3 * i, 3 * i + 3)
        e_rise = source_turn @ (source.slopes[slopes] / e_size[:, None])
        f_rise = turn @ (read[:, count:][:, slopes] / f_size[:, None])
        parts.append(_correlation(e, f, known, _jacobian(e_rise, arm), _jacobian(f_rise, arm)))
    cost, *rest = (sum(part) / count for part in zip(*parts, strict=True))
    return Landscape(cost + _penalty(known), *rest)


def _correlation(
    e: torch.Tensor,
    f: torch.Tensor,
    weights: torch.Tensor,
    e_jacobian: torch.Tensor,
    f_jacobian: torch.Tensor,
) -> Landscape:
    """One minus the weighted correlation of standardised features e and f (B, N), f moving.

    Gauss-Newton takes the product of the derivatives of f, less its parts along f and along a
    constant, for the second derivative. That is right for images that are alike; where they
    share little it is much too large, and steps are too short. Integration by parts gives the
    product of the derivative of e with that of f: what the images do not share drops out.
    """
    weighted = f_jacobian * weights[:, None]
    along_e, along_f = ((weighted @ one[..., None])[..., 0] for one in (e, f))
    amount = weights.sum(dim=1, keepdim=True) + 1e-6
    f_mean = weighted.sum(dim=2)
    e_mean = (e_jacobian * weights[:, None]).sum(dim=2) / amount
    square = weighted @ f_jacobian.mT - _outer(f_mean, f_mean / amount) - _outer(along_f, along_f)
    correlation = (weights * e * f).sum(dim=1)
    shared = weighted @ e_jacobian.mT - _outer(f_mean, e_mean)
    curvature = (shared + shared.mT) / 2
    curvature = curvature - correlation[:, None, None] * _outer(along_f, along_f)
    gradient = correlation[:, None] * along_f - along_e
    return Landscape(*(_double(part) for part in (1 - correlation, gradient, curvature, square)))


def _penalty(known: torch.Tensor) -> np.ndarray:
    """What it costs to leave the other field of view, where correlation means little, (B,)."""
    return 5 * np.maximum(LOWEST_SHARE - _double(known.mean(dim=1)), 0)


def _standardised(
    values: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (B, N) with weighted mean 0 and length 1, and their length before that (B, 1)."""
    amount = weights.sum(dim=1, keepdim=True) + 1e-6
    centered = values - (weights * values).sum(dim=1, keepdim=True) / amount
    size = (weights * centered * centered).sum(dim=1, keepdim=True).sqrt() + 1e-6
    return centered / size, size


def _jacobian(rise: torch.Tensor, arm: torch.Tensor) -> torch.Tensor:
    """Derivatives (B, 12, N) with respect to shift and matrix, of a slope (B, 3, N)."""
    return torch.cat([rise, (rise[:, :, None] * arm[:, None]).flatten(1, 2)], dim=1)


def _outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[:, :, None] * b[:, None]


def _double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()
