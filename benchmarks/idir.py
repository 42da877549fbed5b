"""IDIR by its published recipe (Wolterink, Zwienenberg and Brune, MIDL 2022), our own writing.

One sine network 3-256-256-256-3 gives the displacement at a point, both in coordinates that run
from -1 to 1 along each axis of the fixed image. Each of 2,500 steps compares 10,000 random voxels
of the fixed mask by their normalised cross-correlation; Adam moves the weights by 1e-5. There is
no regulariser, as by default there. It starts from our affine, and both images are prepared as for
NePhi.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from nephi_pipe.field.siren import SineLayer
from nephi_pipe.geometry import Frame, Grid
from nephi_pipe.images import bounding_box
from nephi_pipe.learning.similarity import global_ncc_loss
from nephi_pipe.learning.volume import Volume
from nephi_pipe.presets.preparation import Prepared

WIDTH, OMEGA = 256, 32.0
STEPS, POINTS, RATE = 2500, 10_000, 1e-5

MARGIN_VOXELS = 8
"""Around the fixed mask: beyond it the displacement of the edge is held."""

_CHUNK = 16_384


class Siren(nn.Module):
    """The displacement (N, 3) at points (N, 3); initialised after Sitzmann et al. 2020."""

    def __init__(self, generator: torch.Generator, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            SineLayer(3, width, OMEGA, generator),
            SineLayer(width, width, OMEGA, generator),
            SineLayer(width, width, OMEGA, generator),
            nn.Linear(width, 3),
        )
        first, last = self.layers[0], self.layers[-1]
        bounds = {first.weight: 1 / 3, last.weight: math.sqrt(6 / width) / OMEGA}
        for weight, bound in bounds.items():
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        nn.init.zeros_(last.bias)

    def forward(self, points: Tensor) -> Tensor:
        """Displacement in the units of the points."""
        return self.layers(points)


def optimise(
    fixed: Prepared,
    moving: Prepared,
    affine: np.ndarray,
    *,
    steps: int = STEPS,
    points: int = POINTS,
    rate: float = RATE,
    width: int = WIDTH,
    seed: int = 0,
) -> tuple[Siren, list[float]]:
    """Move a fresh network until both images agree; it, and the loss of every step.

    ``affine`` (4x4) takes fixed mm to moving mm.
    """
    generator = torch.Generator().manual_seed(seed)
    network = Siren(generator, width)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
    to_world = from_unit(fixed.grid)
    target, source = (
        Volume(torch.from_numpy(side.data)[None], side.grid, Frame((0.0, 0.0, 0.0), 1.0), world)
        for side, world in ((fixed, to_world), (moving, affine @ to_world))
    )
    voxels = torch.from_numpy(np.argwhere(fixed.mask))
    scale = 2 / (torch.tensor(fixed.grid.shape) - 1)
    losses = []
    for _ in range(steps):
        chosen = voxels[torch.randint(len(voxels), (points,), generator=generator)]
        here = (chosen * scale - 1).float()
        warped = source.sample(here + network(here))
        loss = global_ncc_loss(target.sample(here), warped, torch.ones(len(here)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return network, losses


def from_unit(grid: Grid) -> np.ndarray:
    """4x4: coordinates from -1 at the first voxel of each axis to 1 at the last, to mm."""
    half = (np.array(grid.shape) - 1) / 2
    to_index = np.diag([*half, 1.0])
    to_index[:3, 3] = half
    return grid.affine @ to_index


@torch.no_grad()
def displacement(network: Siren, grid: Grid, mask: np.ndarray) -> np.ndarray:
    """The displacement at every voxel, float32 mm (X, Y, Z, 3): the network's own near the mask.

    Beyond ``MARGIN_VOXELS`` around the mask the value at the edge of that box is held.
    """
    box = bounding_box(mask)
    lower = np.maximum([part.start - MARGIN_VOXELS for part in box], 0)
    upper = np.minimum([part.stop + MARGIN_VOXELS for part in box], grid.shape)
    half = (np.array(grid.shape) - 1) / 2
    axes = [
        torch.arange(low, high) / middle - 1
        for low, high, middle in zip(lower, upper, half, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1).float().view(-1, 3)
    moved = torch.cat([network(part) for part in points.split(_CHUNK)])
    inner = moved.numpy() @ from_unit(grid)[:3, :3].T.astype(np.float32)
    outside = [*zip(lower, np.array(grid.shape) - upper, strict=True), (0, 0)]
    return np.pad(inner.reshape(*(upper - lower), 3), outside, mode='edge')
