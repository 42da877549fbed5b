"""A step at single points, as it is and with one of its savings taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nephi_pipe.field.config import FieldConfig
from nephi_pipe.field.deformation import CHUNK, NePhiField
from nephi_pipe.field.interpolate import read_grid
from nephi_pipe.field.siren import ModulatedSiren, fourier_features
from nephi_pipe.learning.regularity import gradient_inverse_consistency
from nephi_pipe.learning.similarity import global_ncc_loss
from nephi_pipe.learning.volume import Volume

REGULARITY, PRIOR = 10.0, 0.01
"""The published weights."""


class Unfolded(ModulatedSiren):
    """The first modulation layer as it is written down: codes and features side by side."""

    def _modulation_phase(self, features: Tensor, local: Tensor, code: Tensor) -> Tensor:
        beside = [code.expand(len(local), -1), local, features]
        return self.modulation_first.phase(torch.cat(beside, dim=1))


class OnTheGrid(ModulatedSiren):
    """The similarity reads, as ``local``, what the layer makes of the code at each node."""

    def _modulation_phase(self, features: Tensor, local: Tensor, code: Tensor) -> Tensor:
        if local.shape[1] != self.config.width:  # the regulariser reads the code itself
            return super()._modulation_phase(features, local, code)
        layer = self.modulation_first
        weight_code, _, weight_features = self._split()
        bias = layer.omega * layer.bias + code @ weight_code.T
        return local.addmm(features, weight_features.T) + bias

    def of_grid(self, grid: Tensor) -> Tensor:
        """The local code's part of the layer at every node."""
        return grid @ self._split()[1].T


@dataclass(frozen=True)
class Variant:
    """What of a step is not as in the package."""

    networks: type[ModulatedSiren] = ModulatedSiren
    shared: bool = True
    double_backward: bool = False


VARIANTS = {
    'as it is': Variant(),
    'codes and features side by side, no folding': Variant(networks=Unfolded),
    'local code folded on its whole grid': Variant(networks=OnTheGrid),
    'features and code read by each direction': Variant(shared=False),
    'regulariser by double backward': Variant(double_backward=True),
    'none of these savings': Variant(Unfolded, shared=False, double_backward=True),
}


def double_backward_consistency(field: NePhiField, points: Tensor, inverse: bool) -> Tensor:
    """The regulariser written plainly: backward passes through the composition that are kept."""
    points = points.detach().requires_grad_()
    there = points + field.displacement(points, inverse)
    back = there + field.displacement(there, not inverse) - points
    rows = [
        torch.autograd.grad(back[:, axis].sum(), points, create_graph=True)[0]
        for axis in range(points.shape[1])
    ]
    return torch.stack(rows, dim=1).square().mean()


class PointStep:
    """Similarity, regulariser, prior and optimiser of both directions, at points that are given.

    Parameters
    ----------
    config
        Sizes of the maps.
    volumes
        Features and, last, the weight of the fixed and of the moving image.
    points, gradient_points
        Normalised, (N, 3): of the similarity, and of the regulariser.
    variant
        Which savings are taken back.
    """

    def __init__(
        self,
        config: FieldConfig,
        volumes: tuple[Volume, Volume],
        points: Tensor,
        gradient_points: Tensor,
        variant: Variant,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.field = NePhiField(config, generator).to(points.dtype)
        for network in self.field.networks:
            network.__class__ = variant.networks
            torch.nn.init.normal_(network.output.weight, std=1e-3, generator=generator)
        self.volumes, self.points = volumes, points
        self.gradient_points, self.variant = gradient_points, variant
        self.targets = [volume.sample(points) for volume in volumes]
        self.optimiser = torch.optim.Adam(self.field.parameters(), lr=1e-5, fused=True)

    def __call__(self) -> float:
        """One step; the loss before it."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.similarity() + REGULARITY * self.regularity()
        loss = loss + PRIOR * self.field.code.prior()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    def similarity(self) -> Tensor:
        """1 - NCC, the mean of both directions."""
        shared = self._shared() if self.variant.shared else None
        parts = [
            self._dissimilarity(inverse, *(shared or self._shared())) for inverse in (False, True)
        ]
        return (parts[0] + parts[1]) / 2

    def regularity(self) -> Tensor:
        """Gradient inverse consistency, the mean of both orders."""
        consistency: Callable = _forward_mode
        if self.variant.double_backward:
            consistency = double_backward_consistency
        parts = [
            consistency(self.field, self.gradient_points, inverse) for inverse in (False, True)
        ]
        return (parts[0] + parts[1]) / 2

    def _shared(self) -> tuple[list[Tensor], Tensor | None]:
        features = [
            fourier_features(part, self.field.frequencies) for part in self.points.split(CHUNK)
        ]
        grid, kind = self.field.code.local_code, self.field.config.code_reading
        on_grid = self.variant.networks is OnTheGrid
        return features, None if on_grid else read_grid(grid, self.points, kind)

    def _dissimilarity(
        self, inverse: bool, features: list[Tensor], local: Tensor | None
    ) -> Tensor:
        network, code = self.field.networks[inverse], self.field.code
        if local is None:
            grid = network.of_grid(code.local_code)
            local = read_grid(grid, self.points, self.field.config.code_reading)
        displacement = torch.cat([
            network(part, read, code.global_code)
            for part, read in zip(features, local.split(CHUNK), strict=True)
        ])  # fmt: skip
        target, source = self.targets[inverse], self.volumes[not inverse]
        warped = source.sample(self.points + displacement, slice(0, -1))
        return global_ncc_loss(target[:, :-1], warped, target[:, -1])


def _forward_mode(field: NePhiField, points: Tensor, inverse: bool) -> Tensor:
    return gradient_inverse_consistency(field, points, inverse)[0]
