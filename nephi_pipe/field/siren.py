"""Fourier features and the modulated sine network of one direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import FieldConfig


def draw_frequencies(config: FieldConfig, generator: torch.Generator) -> Tensor:
    """Fixed Gaussian frequencies times 2 pi, shape (d, frequencies) (Tancik et al. 2020)."""
    draw = torch.empty(config.ndim, config.frequencies)
    if not draw.is_meta:  # without data PyTorch would load its compiler to draw nothing
        draw.normal_(generator=generator)
    return draw.mul_(2 * math.pi * config.frequency_scale)


def fourier_features(points: Tensor, frequencies: Tensor) -> Tensor:
    """sin and cos of the projections: (N, d) -> (N, 2 F)."""
    phase = points @ frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def fourier_features_with_gradient(points: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """The features (N, 2 F) and their derivative along each axis (d, N, 2 F)."""
    phase = points @ frequencies
    sin, cos = phase.sin(), phase.cos()
    slope = torch.cat([cos, -sin], dim=1)
    return torch.cat([sin, cos], dim=1), torch.cat([frequencies, frequencies], 1)[:, None] * slope


class SineLayer(nn.Module):
    """``sin(omega (W x + b))`` with the initialisation of Sitzmann et al. 2020."""

    def __init__(
        self, inputs: int, outputs: int, omega: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        bound = 1 / inputs if omega == 1 else math.sqrt(6 / inputs) / omega
        self.omega = omega
        self.weight = nn.Parameter(_uniform((outputs, inputs), bound, generator))
        self.bias = nn.Parameter(_uniform((outputs,), bound, generator))

    def phase(self, x: Tensor) -> Tensor:
        """The argument of the sine; omega scales the weights, which are fewer than the values."""
        return torch.addmm(self.omega * self.bias, x, (self.omega * self.weight).T)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        return self.phase(x).sin()

    def with_tangents(self, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N, outputs) and directional derivatives (d, N, outputs)."""
        phase = self.phase(x)
        return phase.sin(), phase.cos() * (tangents @ (self.omega * self.weight).T)


class ModulatedSiren(nn.Module):
    """One MLP of the pair: features and code at a point -> displacement there.

    The synthesis part reads the Fourier features; the modulation part reads code and features
    and gives the gates that multiply the synthesis part's hidden layers (after Mehta et al. 2021;
    its later layers add the first one). The output layer starts at zero, so that a fresh field
    is the identity.
    """

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        features, width = 2 * config.frequencies, config.width
        self.config = config

        def stack() -> nn.ModuleList:
            return nn.ModuleList(
                SineLayer(width, width, config.omega, generator)
                for _ in range(config.hidden_layers)
            )

        self.first = SineLayer(features, width, config.omega_first, generator)
        self.hidden = stack()
        self.modulation_first = SineLayer(
            config.code_channels + features, width, config.omega, generator
        )
        self.modulation = stack()
        self.output = nn.Linear(width, config.ndim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if config.code_skip:
            self.skip = nn.Linear(config.local_channels, config.ndim, bias=False)
            nn.init.zeros_(self.skip.weight)

    def forward(self, features: Tensor, local: Tensor, code: Tensor) -> Tensor:
        """Features (N, 2 F), local code (N, Cl), global code (Cg,) -> displacement (N, d).

        Where points belong to different pairs, the global code is (N, Cg).
        """
        first_gate = self._modulation_phase(features, local, code).sin()
        gate, value = first_gate, self.first(features)
        for layer, modulation in zip(self.hidden, self.modulation, strict=True):
            gate = modulation(gate) + first_gate
            value = layer(value) * gate
        found = self.output(value)
        return found + self.skip(local) if self.config.code_skip else found

    def with_tangents(
        self, features: Tensor, d_features: Tensor, local: Tensor, d_local: Tensor, code: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Displacement (N, d) and its exact derivatives (axis, N, d), in forward mode."""
        phase = self._modulation_phase(features, local, code)
        weight_code, weight_local, weight_features = self._split()
        d_phase = d_features @ weight_features.T + d_local @ weight_local.T
        first_gate = phase.sin()
        d_first_gate = phase.cos() * d_phase
        gate, d_gate = first_gate, d_first_gate
        value, d_value = self.first.with_tangents(features, d_features)
        for layer, modulation in zip(self.hidden, self.modulation, strict=True):
            gate, d_gate = modulation.with_tangents(gate, d_gate)
            gate, d_gate = gate + first_gate, d_gate + d_first_gate
            value, d_value = layer.with_tangents(value, d_value)
            value, d_value = value * gate, d_value * gate + value * d_gate
        found, d_found = self.output(value), d_value @ self.output.weight.T
        if self.config.code_skip:
            found, d_found = found + self.skip(local), d_found + d_local @ self.skip.weight.T
        return found, d_found

    def _split(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the first modulation layer times omega: of both codes and the features."""
        config, layer = self.config, self.modulation_first
        sizes = [config.global_channels, config.local_channels, 2 * config.frequencies]
        return (layer.omega * layer.weight).split(sizes, dim=1)

    def _modulation_phase(self, features: Tensor, local: Tensor, code: Tensor) -> Tensor:
        """The first modulation layer; the global code is a constant of the pair, so a bias."""
        layer = self.modulation_first
        weight_code, weight_local, weight_features = self._split()
        bias = layer.omega * layer.bias + code @ weight_code.T
        return torch.addmm(bias, features, weight_features.T).addmm_(local, weight_local.T)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator).mul_(2).sub_(1).mul_(bound)
