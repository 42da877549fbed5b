"""The latent code that both directions share."""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor, nn

from .config import FieldConfig

FRESH_CODE_SCALE = 0.01
"""Standard deviation of a code that no encoder predicted."""

SOFTENED_NODES = 3
"""Nodes as far as this from a point where a map folds stay as they are."""

_SOFTENING = 0.25
"""Share of either neighbour in a node that is softened."""


class LatentCode(nn.Module):
    """Hybrid code: one global vector (Cg,), one local grid (S, ..., S, Cl) over [-1, 1]."""

    def __init__(self, global_code: Tensor, local_code: Tensor) -> None:
        super().__init__()
        self.global_code = nn.Parameter(global_code)
        self.local_code = nn.Parameter(local_code)

    @classmethod
    def fresh(cls, config: FieldConfig, generator: torch.Generator) -> LatentCode:
        """A small random code."""
        grid = (config.local_size,) * config.ndim
        return cls(
            FRESH_CODE_SCALE * torch.randn(config.global_channels, generator=generator),
            FRESH_CODE_SCALE * torch.randn(*grid, config.local_channels, generator=generator),
        )

    def prior(self) -> Tensor:
        """Norm of the global code plus the mean norm over the local grid (NePhi, L_prior)."""
        return self.global_code.norm() + self.local_code.norm(dim=-1).mean()

    @torch.no_grad()
    def soften(self, points: Tensor) -> None:
        """Bring the local code nearer to its mean over neighbours around points (N, d); in place.

        A map folds where neighbouring nodes want too different things. What lies
        ``SOFTENED_NODES`` or more nodes from all of the points keeps its code. There is at least
        one point.
        """
        code = self.local_code
        sizes = torch.tensor(code.shape[:-1], device=points.device)
        nodes = ((points + 1) / 2 * (sizes - 1)).round().long()
        nodes = torch.minimum(nodes.clamp_min(0), sizes - 1).cpu()
        clear = torch.ones(code.shape[:-1], dtype=torch.bool)
        clear[tuple(nodes.T)] = False
        apart = torch.from_numpy(ndimage.distance_transform_edt(clear.numpy())).to(code)
        share = (1 - apart / SOFTENED_NODES).clamp_min(0)[..., None]
        code.lerp_(smoothed(code[None], _SOFTENING)[0], share)


def smoothed(codes: Tensor, share: float) -> Tensor:
    """Local codes (B, S, ..., S, C) with a share of either neighbour along each axis."""
    for axis, count in enumerate(codes.shape[1:-1], start=1):
        nodes = torch.arange(count, device=codes.device)
        sides = ((nodes - 1).clamp_min(0), (nodes + 1).clamp_max(count - 1))
        beside = sum(codes.index_select(axis, side) for side in sides)
        codes = (1 - 2 * share) * codes + share * beside
    return codes
