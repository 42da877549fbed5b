"""Reading a grid of codes at points, twice differentiable in both.

torch's grid_sample has no second derivative, which gradient inverse consistency
needs in its plain form; it is also written here with its exact derivative, for
Jacobians in forward mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NEGLIGIBLE = 1e-15
"""Weights of a spline below this are none."""

_POINTS_AT_ONCE = 256
"""So many points' nodes (2 MB of a cubic reading of 32 channels) stay in a processor's cache."""


def read_grid(
    grid: Tensor, points: Tensor, kind: str = 'linear', which: Tensor | None = None
) -> Tensor:
    """Interpolate a grid at points, with border padding.

    Parameters
    ----------
    grid
        Values of shape (S1, ..., Sd, C); its first and last nodes lie at -1 and 1.
    points
        Normalised coordinates of shape (N, d).
    kind
        'linear', or 'cubic': the uniform cubic B-spline with these coefficients, which is smooth
        to the second derivative.
    which
        When ``grid`` is a stack of grids (G, S1, ..., Sd, C): which one each point reads, (N,).

    Returns
    -------
    Tensor of shape (N, C).

    >>> ramp = torch.linspace(-1, 1, 5)[:, None]
    >>> read_grid(ramp, torch.tensor([[0.25], [2.0]])).ravel()
    tensor([0.2500, 1.0000])
    """
    shape = grid.shape[-1 - points.shape[1] : -1]
    first, weights, _ = _taps(shape, points, kind)
    index = _indices(shape, first, weights.shape[0], which)
    factors = _outer(weights, range(weights.shape[2]))
    return _WeightedRows.apply(grid.reshape(-1, grid.shape[-1]), index, factors)


def read_grid_with_gradient(
    grid: Tensor, points: Tensor, kind: str = 'linear', which: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`read_grid`, and its derivative along each axis, shape (d, N, C).

    Where a coordinate is outside of [-1, 1] the derivative along it is zero.
    """
    shape = grid.shape[-1 - points.shape[1] : -1]
    first, weights, slopes = _taps(shape, points, kind)
    axes = range(weights.shape[2])
    products = [_outer(weights, axes)]
    for axis in axes:
        factors = weights.clone()
        factors[:, :, axis] = slopes[:, :, axis]
        products.append(_outer(factors, axes))
    index = _indices(shape, first, weights.shape[0], which)
    flat = grid.reshape(-1, grid.shape[-1])
    nodes = flat.index_select(0, index.flatten()).view(*index.shape, -1)
    read = torch.stack(products, dim=1) @ nodes
    return read[:, 0], read[:, 1:].movedim(1, 0)


def _taps(shape: torch.Size, points: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """First node (N, d) of each axis, and weights and slopes of its taps, (taps, N, d)."""
    sizes = torch.tensor(shape, device=points.device)
    scale = (sizes - 1).to(points.dtype) / 2
    position = (points + 1) * scale
    inside = ((position >= 0) & (position <= sizes - 1)).to(points.dtype)
    position = torch.minimum(position.clamp_min(0), (sizes - 1).to(points.dtype))
    first = torch.minimum(position.detach().floor().long(), sizes - 2).clamp_min(0)
    t = position - first
    if kind == 'linear':
        weights, slopes = (1 - t, t), (-torch.ones_like(t), torch.ones_like(t))
    else:
        first, weights, slopes = first - 1, bspline_taps(t), bspline_slopes(t)
    return first, torch.stack(weights), torch.stack(slopes) * (scale * inside)


def _indices(shape: torch.Size, first: Tensor, taps: int, which: Tensor | None) -> Tensor:
    """Flat indices of the nodes around each point, (N, taps^d)."""
    index = torch.zeros(len(first), 1, dtype=torch.long, device=first.device)
    if which is not None:
        index = which[:, None]
    reach = torch.arange(taps, device=first.device)
    for axis, size in enumerate(shape):
        along = (first[:, axis, None] + reach).clamp(0, size - 1)
        index = (index[:, :, None] * size + along[:, None]).flatten(1)
    return index


class _WeightedRows(torch.autograd.Function):
    """Weighted sums of the rows of a table that (N, K) indices name: (N, C).

    All N K rows are never held at once, which a cubic reading of a volume would be slow for: 64
    rows a point. Its derivative is made of what torch can differentiate again.
    """

    @staticmethod
    def forward(ctx, table, index, weights):  # noqa: ANN001, ANN205
        ctx.save_for_backward(table, index, weights)
        return F.embedding_bag(index, table, mode='sum', per_sample_weights=weights)

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        table, *saved = ctx.saved_tensors
        of_table, of_weights = torch.zeros_like(table), []
        parts = [tensor.split(_POINTS_AT_ONCE) for tensor in (*saved, gradient)]
        for index, weights, wanted in zip(*parts, strict=True):
            rows = index.flatten()
            if ctx.needs_input_grad[0]:
                share = (weights[:, :, None] * wanted[:, None]).flatten(0, 1)
                of_table.scatter_add_(0, rows[:, None].expand_as(share), share)
            if ctx.needs_input_grad[2]:
                read = table.index_select(0, rows).view(*index.shape, -1)
                of_weights.append((read * wanted[:, None]).sum(dim=-1))
        return of_table, None, torch.cat(of_weights) if of_weights else None


def _outer(factors: Tensor, axes: range) -> Tensor:
    """Products over the axes of every combination of taps: (taps, N, d) -> (N, taps^d)."""
    result = factors.new_ones(factors.shape[1], 1)
    for axis in axes:
        result = (result[:, :, None] * factors[:, :, axis].T[:, None]).flatten(1)
    return result


def bspline_taps(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the four nodes around a point of a uniform cubic B-spline; t in [0, 1]."""
    return (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )


def bspline_slopes(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of :func:`bspline_taps` by t."""
    return (
        -((1 - t) ** 2) / 2,
        (3 * t**2 - 4 * t) / 2,
        (-3 * t**2 + 2 * t + 1) / 2,
        t**2 / 2,
    )


def code_weights(positions: Tensor, nodes: int, kind: str) -> Tensor:
    """Matrix (len(positions), nodes) that reads a code along one axis, as `read_grid` does."""
    if kind == 'linear':
        return linear_weights(positions, nodes)
    position = positions.clamp(0, nodes - 1)
    first = position.floor().long().clamp(0, nodes - 2)
    matrix = torch.zeros(len(positions), nodes, dtype=positions.dtype, device=positions.device)
    rows = torch.arange(len(positions), device=positions.device)
    for offset, weight in zip((-1, 0, 1, 2), bspline_taps(position - first), strict=True):
        columns = (first + offset).clamp(0, nodes - 1)
        matrix.index_put_((rows, columns), weight, accumulate=True)
    return matrix


def linear_weights(positions: Tensor, nodes: int) -> Tensor:
    """Matrix (len(positions), nodes) that interpolates linearly between nodes.

    ``positions`` counts in nodes from the first; beyond the ends the last value is held.
    """
    position = positions.clamp(0, nodes - 1)
    first = position.floor().long().clamp(0, max(nodes - 2, 0))
    fraction = position - first
    rows = torch.arange(len(positions), device=positions.device)
    matrix = torch.zeros(len(positions), nodes, dtype=positions.dtype, device=positions.device)
    matrix[rows, first] = 1 - fraction
    matrix[rows, (first + 1).clamp_max(nodes - 1)] += fraction
    return matrix


def cubic_weights(positions: Tensor, nodes: int) -> Tensor:
    """Matrix (len(positions), nodes) of the local interpolating cubic (Keys 1981, a = -1/2)."""
    first = positions.floor()
    t = positions - first
    taps = (
        (-1, -0.5 * t + t**2 - 0.5 * t**3),
        (0, 1 - 2.5 * t**2 + 1.5 * t**3),
        (1, 0.5 * t + 2 * t**2 - 1.5 * t**3),
        (2, -0.5 * t**2 + 0.5 * t**3),
    )
    matrix = torch.zeros(len(positions), nodes, dtype=positions.dtype, device=positions.device)
    rows = torch.arange(len(positions), device=positions.device)
    for offset, weight in taps:
        columns = (first.long() + offset).clamp(0, nodes - 1)
        matrix.index_put_((rows, columns), weight, accumulate=True)
    return matrix


def spline_weights(positions: Tensor, nodes: int, derivative: bool = False) -> Tensor:
    """Matrix (len(positions), nodes) of the cubic spline through the nodes' values.

    Uniform cubic B-spline with the mirror boundary (Unser 1999, box 2): the weights at the
    positions times the inverse of the nodes' own weights. ``derivative`` gives d/dposition.
    """
    at_nodes = _bspline_weights(torch.arange(nodes, dtype=torch.float64), nodes, False)
    wanted = _bspline_weights(positions.double().cpu(), nodes, derivative)
    matrix = torch.linalg.solve(at_nodes.T, wanted.T).T
    # They fall by 3.7 from node to node, and products with subnormal numbers are ten times slower.
    matrix = matrix.where(matrix.abs() > _NEGLIGIBLE, 0)
    return matrix.to(device=positions.device, dtype=positions.dtype)


def _bspline_weights(positions: Tensor, nodes: int, derivative: bool) -> Tensor:
    first = positions.floor()
    t = positions - first
    taps = bspline_slopes(t) if derivative else bspline_taps(t)
    matrix = torch.zeros(len(positions), nodes, dtype=positions.dtype)
    rows = torch.arange(len(positions))
    period = max(2 * (nodes - 1), 1)
    for offset, weight in zip((-1, 0, 1, 2), taps, strict=True):
        column = (first.long() + offset).abs() % period
        column = torch.where(column > nodes - 1, period - column, column)
        matrix.index_put_((rows, column), weight, accumulate=True)
    return matrix


def separable(values: Tensor, matrices: list[Tensor]) -> Tensor:
    """Apply one matrix along each axis of ``values`` (S1, ..., Sd, C); result (T1, ..., Td, C).

    Each product takes the first axis and puts the new one last, so that nothing is copied between
    them; in memory the result has its channels first.
    """
    for matrix in matrices:
        flat = values.reshape(values.shape[0], -1)
        values = (flat.T @ matrix.T).view(*values.shape[1:], len(matrix))
    return values.movedim(0, -1)
