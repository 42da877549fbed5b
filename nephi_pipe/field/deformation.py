"""The pair of maps: displacement, exact Jacobian, both directions, dense evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import FieldConfig
from .interpolate import code_weights, read_grid, read_grid_with_gradient, separable
from .latent import LatentCode
from .siren import (
    ModulatedSiren,
    draw_frequencies,
    fourier_features,
    fourier_features_with_gradient,
)

CHUNK = 4096
"""Points evaluated at once: the activations then stay in a processor's cache."""


class NePhiField(nn.Module):
    """``phi_AB(x) = x + MLP_AB(x, z(x))`` and ``phi_BA`` likewise, on normalised coordinates.

    Parameters
    ----------
    config
        Sizes.
    generator
        Source of every random number of the initialisation.
    extent
        Half the size of the box the field is made for, per axis, in normalised units. A point
        outside of it is displaced like the nearest point of the box.
    """

    def __init__(
        self,
        config: FieldConfig,
        generator: torch.Generator,
        extent: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer('frequencies', draw_frequencies(config, generator))
        self.register_buffer('extent', torch.tensor(extent or [1.0] * config.ndim))
        self.networks = nn.ModuleList(ModulatedSiren(config, generator) for _ in range(2))
        self.code = LatentCode.fresh(config, generator)

    def displacement(self, points: Tensor, inverse: bool = False) -> Tensor:
        """Displacement at ``points`` (N, d), same units, differentiable (twice)."""
        points = torch.maximum(torch.minimum(points, self.extent), -self.extent)
        features = fourier_features(points, self.frequencies)
        return self.networks[int(inverse)](features, *self._codes(points))

    def displacement_and_gradient(
        self, points: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Displacement (N, d) and its exact Jacobian (N, d, d), in forward mode.

        ``gradient[n, i, j]`` is the derivative of component i along axis j.
        """
        inside = (points.abs() <= self.extent).to(points.dtype)
        points = torch.maximum(torch.minimum(points, self.extent), -self.extent)
        features, d_features = fourier_features_with_gradient(points, self.frequencies)
        codes = self._codes_with_gradient(points)
        network = self.networks[int(inverse)]
        value, tangents = network.with_tangents(features, d_features, *codes)
        return value, tangents.permute(1, 2, 0) * inside[:, None, :]

    def _codes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Local code at points (N, Cl), and the global code."""
        local = read_grid(self.code.local_code, points, self.config.code_reading)
        return local, self.code.global_code

    def _codes_with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Likewise, with the local code's derivative along each axis (d, N, Cl) between them."""
        local = read_grid_with_gradient(self.code.local_code, points, self.config.code_reading)
        return *local, self.code.global_code

    @torch.no_grad()
    def displacement_in_chunks(self, points: Tensor, inverse: bool = False) -> Tensor:
        """Displacement at many points (N, d), without gradients and with little memory."""
        return torch.cat([self.displacement(part, inverse) for part in points.split(CHUNK)])

    @torch.no_grad()
    def displacement_on_axes(self, axes: Sequence[Tensor], inverse: bool = False) -> Tensor:
        """Displacement at every node of a lattice along the frame's axes, (n1, ..., nd, d).

        The code is read one axis after the other, which is many times faster than point by point.
        """
        size, kind = self.config.local_size, self.config.code_reading
        held = [
            axis.clamp(-half, half) for axis, half in zip(axes, self.extent.tolist(), strict=True)
        ]
        matrices = [code_weights((axis + 1) / 2 * (size - 1), size, kind) for axis in held]
        per_plane = max(math.prod(len(axis) for axis in held[1:]), 1)
        planes = max(CHUNK // per_plane, 1)
        slabs = []
        for start in range(0, len(held[0]), planes):
            slab = slice(start, start + planes)
            local = separable(self.code.local_code, [matrices[0][slab], *matrices[1:]])
            mesh = torch.meshgrid(held[0][slab], *held[1:], indexing='ij')
            points = torch.stack(mesh, dim=-1).reshape(-1, len(held)).split(CHUNK)
            codes = local.reshape(-1, local.shape[-1]).split(CHUNK)
            slabs += [
                self.networks[int(inverse)](
                    fourier_features(part, self.frequencies), code, self.code.global_code
                )
                for part, code in zip(points, codes, strict=True)
            ]
        return torch.cat(slabs).view(*(len(axis) for axis in axes), -1)

    @torch.no_grad()
    def gradient_in_chunks(self, points: Tensor, inverse: bool = False) -> Tensor:
        """Exact Jacobians of the displacement (N, d, d), with little memory."""
        parts = points.split(CHUNK // 4)
        return torch.cat([self.displacement_and_gradient(part, inverse)[1] for part in parts])
