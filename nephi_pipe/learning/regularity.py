"""Inverse consistency, its gradient by exact Jacobians, and the barrier against folds."""

from __future__ import annotations

import torch
from torch import Tensor

from ..field.deformation import NePhiField
from .settings import OptimisationSettings

FOLD_MARGIN = 0.2
"""The barrier begins below this determinant: what is above it at sampled points seldom folds
between them."""


def gradient_inverse_consistency(
    field: NePhiField, points: Tensor, inverse: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean squared entry of ``d(phi_BA(phi_AB(x)) - x)/dx`` (GradICON), or of the other order.

    The Jacobian of the composition is the product of the two exact Jacobians (NePhi, eq. 6;
    Tian et al., CVPR 2023).

    Parameters
    ----------
    field
        The pair of maps.
    points
        Normalised points (N, d).
    inverse
        Whether ``phi_BA`` comes first.

    Returns
    -------
    The mean; the determinants of the first map at the points, (N,); the gradients of its
    displacement there, (N, d, d); and how far both maps lead each point from itself, (N, d).
    """
    identity = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    there, there_gradient = field.displacement_and_gradient(points, inverse)
    back, back_gradient = field.displacement_and_gradient(points + there, not inverse)
    jacobian = identity + there_gradient
    product = (identity + back_gradient) @ jacobian
    loss = (product - identity).square().mean()
    return loss, torch.linalg.det(jacobian), there_gradient, there + back


def point_regularity(
    field: NePhiField,
    points: Tensor,
    inverse: bool,
    settings: OptimisationSettings,
    unit: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything that ``settings`` ask of one direction at points (N, d).

    Parameters
    ----------
    field, points, inverse
        As for :func:`gradient_inverse_consistency`.
    settings
        The weights.
    unit
        In which the distance between a point and where both maps lead it is counted, in normalised
        coordinates; None: it does not count.

    Returns
    -------
    The weighted sum; gradient inverse consistency, unweighted; the determinants (N,).
    """
    consistency, determinants, gradient, apart = gradient_inverse_consistency(
        field, points, inverse
    )
    total = (
        settings.regularity_weight * consistency
        + settings.diffusion_weight * gradient.square().mean()
        + settings.barrier_weight * fold_barrier(determinants)
    )
    if unit is not None and settings.consistency_weight:
        distance = (apart / unit).square().sum(dim=1).mean()
        total = total + settings.consistency_weight * distance
    return total, consistency, determinants


def fold_barrier(determinants: Tensor, margin: float = FOLD_MARGIN) -> Tensor:
    """Mean squared shortfall of the determinants below ``margin``, relative to it."""
    return (1 - determinants / margin).clamp_min(0).square().mean()


def bending_energy(displacement: Tensor, used: Tensor, scale: float) -> Tensor:
    """Mean squared second derivative of a displacement on a lattice, by differences.

    Fills in smoothly where the images say nothing and lets linear motion pass. Every evaluated
    node takes part, so it costs next to nothing and has little noise.

    Parameters
    ----------
    displacement
        On the lattice, (n1, ..., nd, d), or of several pairs there, (n1, ..., nd, pairs * d).
    used
        Nodes that were evaluated, (n1, ..., nd) bool.
    scale
        Turns second differences into derivatives times a length, a number without unit.
    """
    ndim = used.ndim
    total = displacement.new_zeros(())
    for i in range(ndim):
        slope, both = _difference(displacement, used, i)
        for j in range(i, ndim):
            bend, complete = _difference(slope, both, j)
            factor = (1 if i == j else 2) / ndim**2
            total = total + factor * _mean_square(bend * scale, complete)
    return total


def _difference(values: Tensor, used: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    count = values.shape[axis] - 1
    first, last = (slice(0, count), slice(1, count + 1))
    pick = [slice(None)] * used.ndim
    before, after = list(pick), list(pick)
    before[axis], after[axis] = first, last
    before, after = tuple(before), tuple(after)
    return values[after] - values[before], used[after] & used[before]


def _mean_square(values: Tensor, used: Tensor) -> Tensor:
    return (values.square().mean(dim=-1) * used).sum() / used.sum()
