"""Where a step looks: a jittered lattice of field nodes, and finer image samples between them.

A NePhi deformation is smooth, so a step evaluates the networks at the nodes of a coarse lattice
and interpolates the displacement to the samples of the images, which are many and cheap. Lattice
and samples are shifted together at random at each step, so that no position is preferred and what
the network does between the nodes is seen too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..field.interpolate import code_weights, cubic_weights, separable
from .volume import Volume

_MARGIN = 2
"""Nodes beyond the box on each side: a cubic needs one, the shift another."""

_SLAB_PERIOD = 24
"""Nodes from one slab to the next."""

_TAPS = 4
"""Nodes a cubic reads along each axis."""


@dataclass
class Lattice:
    """Nodes and samples on axis-aligned regular grids of the normalised frame.

    Attributes
    ----------
    nodes, samples
        Coordinates along each axis.
    step
        Distance of two nodes; the samples are ``ratio`` times denser.
    """

    nodes: list[Tensor]
    samples: list[Tensor]
    step: float
    ratio: int

    @classmethod
    def draw(cls, extent: Tensor, step: float, ratio: int, generator: torch.Generator) -> Lattice:
        """A lattice over [-extent, extent], shifted at random by up to one step on each axis."""
        return cls.around(extent, torch.rand(len(extent), generator=generator) * step, step, ratio)

    @classmethod
    def around(cls, extent: Tensor, shift: Tensor, step: float, ratio: int) -> Lattice:
        """A lattice over [-extent, extent], shifted by up to one step on each axis."""
        nodes, samples = [], []
        for half, offset in zip(extent.tolist(), shift.tolist(), strict=True):
            inner = int(2 * half / step) + 2
            count = inner + 2 * _MARGIN - 1
            first = -half - _MARGIN * step + offset
            nodes.append(first + step * torch.arange(count))
            fine = (torch.arange(inner * ratio) + 0.5) / ratio
            samples.append(first + step * (_MARGIN - 1 + fine))
        return cls(nodes, samples, step, ratio)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Number of samples along each axis."""
        return tuple(len(axis) for axis in self.samples)

    @property
    def node_shape(self) -> tuple[int, ...]:
        """Number of nodes along each axis."""
        return tuple(len(axis) for axis in self.nodes)

    def sample_points(self) -> Tensor:
        """All samples, (prod(sample_shape), d)."""
        return _mesh(self.samples)

    def node_points(self) -> Tensor:
        """All nodes, (prod(node_shape), d)."""
        return _mesh(self.nodes)

    def nodes_for(self, samples: Tensor) -> Tensor:
        """Which nodes the interpolation at the chosen samples reads; both bool and flat."""
        cells = samples.view(1, 1, *self.sample_shape).float()
        pool = getattr(F, f'max_pool{len(self.nodes)}d')
        cells = pool(cells, self.ratio, self.ratio)
        padded = F.pad(cells, (_TAPS - 1, _TAPS - 1) * len(self.nodes))
        return pool(padded, _TAPS, 1).flatten() > 0

    def in_slabs(self, samples: Tensor, coverage: float, generator: torch.Generator) -> Tensor:
        """Those of ``samples`` (flat indices) in slabs that hold this part of the volume.

        The slabs lie across a random axis at a random place. Slabs rather than blocks: fewer nodes
        serve their borders alone. Something so small that slabs miss most of it is kept whole.
        """
        axis = int(torch.randint(len(self.nodes), (), generator=generator))
        cells = torch.arange(len(self.samples[axis])) // self.ratio
        first = torch.randint(_SLAB_PERIOD, (), generator=generator)
        inside = (cells + first) % _SLAB_PERIOD < coverage * _SLAB_PERIOD
        shape = [1] * len(self.nodes)
        shape[axis] = -1
        chosen = samples[inside.view(shape).expand(self.sample_shape).flatten()[samples]]
        return chosen if len(chosen) > 0.5 * coverage * len(samples) else samples

    def to_samples(self, device: torch.device) -> list[Tensor]:
        """One matrix an axis that interpolates (cubic) from nodes to samples."""
        return [
            cubic_weights((samples - nodes[0]) / self.step, len(nodes)).to(device)
            for samples, nodes in zip(self.samples, self.nodes, strict=True)
        ]

    def read_code(self, code: Tensor, extent: Tensor, kind: str) -> Tensor:
        """The local code (S, ..., S, C) at every node, (prod(node_shape), C)."""
        size = code.shape[0]
        matrices = [
            code_weights((nodes.clamp(-half, half) + 1) / 2 * (size - 1), size, kind).to(code)
            for nodes, half in zip(self.nodes, extent.tolist(), strict=True)
        ]
        return separable(code, matrices).reshape(-1, code.shape[-1])


@dataclass
class Occupancy:
    """Cells of a fixed lattice that masks may reach, so that samples elsewhere are left alone.

    Attributes
    ----------
    cells
        Bool of the cells' shape.
    first
        Lower corner of the first cell on each axis.
    step
        Size of a cell.
    """

    cells: Tensor
    first: list[float]
    step: float

    @classmethod
    def of(cls, volumes: Sequence[Volume], extent: Tensor, step: float, ratio: int) -> Occupancy:
        """The cells that hold, or touch one that holds, a sample with a weight above a half."""
        lattice = Lattice.around(extent, torch.zeros(len(extent)), step, ratio)
        points = lattice.sample_points()
        weights = [v.sample(points.to(v.channels), slice(-1, None))[:, 0] for v in volumes]
        inside = (torch.stack(weights).amax(dim=0) > 0.5).float().cpu()
        pool = getattr(F, f'max_pool{len(extent)}d')
        cells = pool(inside.view(1, 1, *lattice.sample_shape), ratio, ratio)
        cells = pool(cells, 3, 1, 1)[0, 0] > 0
        first = [float(axis[0]) - 0.5 * step / ratio for axis in lattice.samples]
        return cls(cells, first, step)

    def at(self, samples: Sequence[Tensor]) -> Tensor:
        """Flat indices of the samples (coordinates along each axis) that lie in such a cell."""
        found = self.cells
        for axis, (coordinates, first) in enumerate(zip(samples, self.first, strict=True)):
            index = ((coordinates - first) / self.step).floor().long()
            found = found.index_select(axis, index.clamp(0, self.cells.shape[axis] - 1))
        return found.flatten().nonzero()[:, 0]


def _mesh(axes: list[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1).reshape(-1, len(axes))
