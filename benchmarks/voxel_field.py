"""NePhi with its networks taken away: a lattice of free displacements, found by the same loss.

Everything else is what ``nephi register --weights none`` does: affine, levels, sampling, losses
and their weights, number of steps, Adam, and the rounds that mend folds. The displacements of both
directions are the coefficients of uniform cubic B-splines, read as NePhi reads its local code.
The latent prior has no counterpart and is left out.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from nephi_pipe import registration as engine
from nephi_pipe.field.config import FieldConfig
from nephi_pipe.field.deformation import NePhiField
from nephi_pipe.field.latent import LatentCode
from nephi_pipe.images import Image
from nephi_pipe.learning.settings import OptimisationSettings
from nephi_pipe.presets import preset
from nephi_pipe.presets.preparation import Prepared, affine_between, frame_of, prepare
from nephi_pipe.stages import Stage
from nephi_pipe.threads import torch_threads

SPACING_MM = 2.0

RATE_MM = 0.2
"""Adam's learning rate, mm a step; the only one run so far, on sub-37 to sub-38."""


class VoxelField(NePhiField):
    """Both displacements as channels of one lattice over the cube [-1, 1]^3.

    Parameters
    ----------
    nodes
        Along each axis of the cube.
    extent
        Half the size of the box, as of a NePhi field.
    """

    def __init__(self, nodes: int, extent: list[float]) -> None:
        nn.Module.__init__(self)
        self.config = FieldConfig(
            frequencies=1, global_channels=0, local_channels=6, local_size=nodes,
            code_reading='cubic',
        )  # fmt: skip
        self.register_buffer('frequencies', torch.zeros(3, 1))
        self.register_buffer('extent', torch.tensor(extent))
        self.networks = nn.ModuleList(_Channels(3 * number) for number in range(2))
        self.code = _Displacements(torch.zeros(nodes, nodes, nodes, 6))


class _Displacements(LatentCode):
    """The lattice where a NePhi field has its latent code."""

    def __init__(self, lattice: Tensor) -> None:
        nn.Module.__init__(self)
        self.register_buffer('global_code', lattice.new_zeros(0))
        self.local_code = nn.Parameter(lattice)

    def prior(self) -> Tensor:
        """Nothing: a displacement is no code."""
        return self.local_code.new_zeros((), requires_grad=True)


class _Channels(nn.Module):
    """What a NePhi field has its network for: the displacement is read already."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.part = slice(first, first + 3)

    def forward(self, features: Tensor, local: Tensor, code: Tensor) -> Tensor:
        """Displacement (N, 3) out of what is read (N, 6)."""
        return local[:, self.part]

    def with_tangents(
        self, features: Tensor, d_features: Tensor, local: Tensor, d_local: Tensor, code: Tensor
    ) -> tuple[Tensor, Tensor]:
        """And its derivatives (axis, N, 3)."""
        return local[:, self.part], d_local[..., self.part]


def register(
    fixed: Image,
    moving: Image,
    threads: int,
    spacing_mm: float = SPACING_MM,
    rate_mm: float = RATE_MM,
    steps: int | None = None,
) -> tuple[engine.Registration, float]:
    """Find the map, and how many seconds the affine took."""
    with torch_threads(threads) as threads:
        started = time.monotonic()
        prepared, affine = prepared_pair(fixed, moving)
        seconds = time.monotonic() - started
        frame, extent = frame_of(*prepared, affine, preset('brain').margin_mm)
        nodes = math.ceil(2 * frame.scale_mm / spacing_mm) + 1
        masks = [Image(side.outline, side.grid) for side in prepared]
        found = engine.Registration(
            VoxelField(nodes, extent), frame, affine, fixed.grid, moving.grid, *masks
        )
        settings = settings_for(fixed, moving, rate_mm / frame.scale_mm).with_steps(steps)
        Stage(found, prepared).optimise(settings, threads, None)
    return found, seconds


def settings_for(fixed: Image, moving: Image, rate: float) -> OptimisationSettings:
    """NePhi's own from scratch, but for the learning rate, normalised units a step."""
    finest = max(float(image.grid.spacing.min()) for image in (fixed, moving))
    return replace(preset('brain').settings(False).for_voxels(finest), code_rate=rate)


def prepared_pair(fixed: Image, moving: Image) -> tuple[list[Prepared], np.ndarray]:
    """Both images and the affine between them as ``nephi register`` has them."""
    chosen = preset('brain')
    prepared = [prepare(image, None, None, chosen) for image in (fixed, moving)]
    return prepared, affine_between(*prepared, chosen)
