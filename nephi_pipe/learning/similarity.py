"""How alike fixed and warped moving values are, at samples; 0 is identical, lower is better."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NOTHING = 1e-6
"""Where no sample counts, nothing pulls."""

_FLAT = 4e-4
"""Variance (of intensities scaled to about [0, 1]) below which a window counts as flat."""


def global_ncc_loss(target: Tensor, warped: Tensor, weight: Tensor) -> Tensor:
    """Mean over channels of 1 - NCC over all samples; (N, C), (N, C) and (N,)."""
    weight = (weight / weight.sum().clamp_min(_NOTHING))[:, None]
    target = target - (target * weight).sum(dim=0)
    warped = warped - (warped * weight).sum(dim=0)
    covariance = (target * warped * weight).sum(dim=0)
    variances = (target**2 * weight).sum(dim=0) * (warped**2 * weight).sum(dim=0)
    return (1 - covariance / (variances + 1e-12).sqrt()).mean()


def mean_difference_loss(target: Tensor, warped: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean absolute difference over channels, for MIND features."""
    return ((target - warped).abs().mean(dim=1) * weight).sum() / weight.sum().clamp_min(_NOTHING)


def overlap_loss(target: Tensor, warped: Tensor, weight: Tensor) -> Tensor:
    """1 - the mean soft Dice of structures whose shares at samples are (N, C) each; (N,).

    One that neither image shows counts as matched.
    """
    weight = weight[:, None]
    both = (target * warped * weight).sum(dim=0)
    each = ((target**2 + warped**2) * weight).sum(dim=0)
    return 1 - ((2 * both + 1) / (each + 1)).mean()


def windowed_ncc_loss(
    target: Tensor,
    warped: Tensor,
    weight: Tensor,
    chosen: Tensor,
    shape: tuple[int, ...],
    windows: list[Tensor],
) -> Tensor:
    """Mean of 1 - NCC |NCC| over Gaussian windows on a regular grid of samples.

    Squaring lets windows that match already speak louder than those that never will; the sign is
    kept, so that inverted contrast does not count as a match. A window counts by the share of it
    that was chosen, and not at all below a half. Differentiable in ``warped``, once.

    Parameters
    ----------
    target, warped, weight
        Intensities and weights of the chosen samples, each (N,).
    chosen
        Flat indices of these samples in the grid, (N,), each one once.
    shape
        The grid's shape.
    windows
        One smoothing matrix an axis, see :func:`gaussian_windows`.
    """
    return _WindowedNCC.apply(warped, target, weight, chosen, shape, windows)


class _WindowedNCC(torch.autograd.Function):
    """The loss with its derivative written out: half of the smoothing, no graph of products."""

    @staticmethod
    def forward(ctx, warped, target, weight, chosen, shape, windows):  # noqa: ANN001, ANN205
        of_t, of_w = weight * target, weight * warped
        products = (weight, of_t, of_w, of_t * target, of_w * warped, of_w * target)
        grid = warped.new_zeros(6, math.prod(shape))
        for row, product in zip(grid, products, strict=True):
            row.index_copy_(0, chosen, product)
        means = _smoothed(grid.view(6, *shape), windows)
        inside = means[0] + 1e-3
        mean_t, mean_w, square_t, square_w, product = means[1:] / inside
        spread_t = (square_t - mean_t**2).clamp_min(0) + _FLAT
        spread_w = (square_w - mean_w**2).clamp_min(0) + _FLAT
        scale = (spread_t * spread_w).rsqrt()
        local = (product - mean_t * mean_w) * scale
        counted = means[0] * (means[0] > 0.5)
        counted = counted / counted.sum().clamp_min(1e-6)
        # Derivatives of the loss by the three means that hold `warped`.
        slope = -2 * local.abs() * counted / inside
        bent = slope * local / spread_w
        ctx.slopes = torch.stack([bent * mean_w - slope * scale * mean_t, -bent, slope * scale])
        ctx.windows = windows
        ctx.save_for_backward(warped, target, weight, chosen)
        return 1 - (local * local.abs() * counted).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, factor):  # noqa: ANN001, ANN205
        warped, target, weight, chosen = ctx.saved_tensors
        spread = _smoothed(ctx.slopes, [matrix.T for matrix in ctx.windows])
        mean, square, product = (part.reshape(-1)[chosen] for part in spread)
        gradient = factor * weight * (mean + warped * square + target * product)
        return gradient, None, None, None, None, None


def _smoothed(channels: Tensor, matrices: list[Tensor]) -> Tensor:
    """One matrix along each axis of (C, S1, ..., Sd): (C, T1, ..., Td), contiguous."""
    for matrix in reversed(matrices):
        flat = channels.reshape(-1, channels.shape[-1])
        channels = (matrix @ flat.T).view(len(matrix), *channels.shape[:-1])
    return channels.movedim(-1, 0).contiguous()


def gaussian_windows(shape: tuple[int, ...], sigma: float, every: int = 1) -> list[Tensor]:
    """One matrix an axis: the means of a grid's values in Gaussian windows.

    Parameters
    ----------
    shape
        Samples along each axis.
    sigma
        Standard deviation of a window in samples; it is cut at 2.5 of them.
    every
        Samples from one window to the next; windows lie in the middle of so many samples.
    """

    def kernel(distance: Tensor) -> Tensor:
        return torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= 2.5 * sigma)

    first, reach = (every - 1) / 2, math.ceil(2.5 * sigma) + every
    whole = kernel(torch.arange(-reach, reach + 1) + first % 1).sum()
    return [
        kernel(torch.arange(first, count, every)[:, None] - torch.arange(count)) / whole
        for count in shape
    ]
