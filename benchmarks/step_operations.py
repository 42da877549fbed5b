"""Floating-point operations that a step cannot do without: those of its matrix products.

Counted after folding (the global code is a bias, the local code's part of the first modulation
layer is applied at the fewer of points and nodes), in forward mode, with Fourier features that
both directions share. Sines, products of two numbers, interpolation and the optimiser are left
out: the fraction of the machine's speed that is told is smaller for it, never larger.
"""

from __future__ import annotations

from dataclasses import dataclass

from nephi_pipe.field.config import FieldConfig


@dataclass(frozen=True)
class Rows:
    """How many points a step evaluates in one direction.

    Parameters
    ----------
    values
        Points at which the displacement is asked for: the similarity.
    gradients
        Points at which the Jacobian of one map and then of the other is: the regulariser.
    """

    values: int
    gradients: int


def step_operations(config: FieldConfig, rows: Rows) -> tuple[int, int]:
    """Of the similarity and of the regulariser, both directions, forward and backward."""
    similarity = 2 * value_operations(config, rows.values)
    similarity += 2 * rows.values * config.ndim * config.frequencies
    there, back = (gradient_operations(config, rows.gradients, moved) for moved in (False, True))
    return similarity, 2 * (there + back)


def value_operations(config: FieldConfig, points: int) -> int:
    """One network at given points, forward and backward, without the Fourier features."""
    fixed, moving = _weights(config)
    nodes = min(points, config.local_size**config.ndim)
    # Forward, and backward to the weights and, where something moves below, to the input.
    products = points * (2 * fixed + 3 * moving)
    products += nodes * 3 * config.local_channels * config.width
    if config.code_skip:
        products += points * 3 * config.local_channels * config.ndim
    return 2 * (products + 3 * config.global_channels * config.width)


def gradient_operations(config: FieldConfig, points: int, moved: bool) -> int:
    """One network with its derivative along each axis, forward and backward.

    ``moved`` says whether the points are where the other network moved them: then its gradients
    pass through the features, and its own displacement there takes no part.
    """
    fixed, moving = _weights(config)
    local = config.local_channels * (config.width + config.ndim * config.code_skip)
    features = config.ndim * config.frequencies * (2 if moved else 1)
    each = (1 + config.ndim) * ((3 if moved else 2) * fixed + 3 * moving + 3 * local) + features
    if moved:
        # Neither the output layer nor the skip is asked for the value.
        each -= 3 * config.ndim * (config.width + config.local_channels * config.code_skip)
    return 2 * (points * each + 3 * config.global_channels * config.width)


def _weights(config: FieldConfig) -> tuple[int, int]:
    """Weights that act on the features, and on what other layers give."""
    features = 2 * config.frequencies * config.width
    hidden = 2 * config.hidden_layers * config.width**2
    return 2 * features, hidden + config.width * config.ndim
