"""What the network of structures learns from: whole brains in many poses, shapes and contrasts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from nephi_pipe.geometry import Grid
from nephi_pipe.images import foreground, load_image, load_labels, normalise

SHAPE = (144, 176, 144)
"""Voxels of 1 mm that a training looks at."""

_KEPT = (176, 208, 176)
_COARSE = (8, 9, 8)
"""Places along each axis where another anatomy is drawn."""

_TURN_DEGREES, _SHIFT_MM, _SCALE, _SHEAR = 7.0, 3.0, 0.06, 0.025
_ANATOMY_MM = 2.5
_GAMMA, _BIAS, _NOISE = 0.25, 0.15, 0.05


@dataclass(frozen=True, eq=False)
class Person:
    """Intensities (float16), labels (uint8) and the brain (uint8, 1 where it is) on
    176 x 208 x 176 voxels of 1 mm, RAS.
    """

    image: Tensor
    labels: Tensor
    brain: Tensor


def person(image: Path, labels: Path) -> Person:
    """A skull-stripped scan and its labels, the brain in the middle of the voxels."""
    scan, known = load_image(image), load_labels(labels)
    mask = foreground(scan)
    data = normalise(scan.data, mask) * mask
    inside = scan.grid.to_world(np.argwhere(mask))
    middle_mm = (inside.min(axis=0) + inside.max(axis=0)) / 2
    to_world = np.eye(4)
    to_world[:3, 3] = middle_mm - (np.array(_KEPT) - 1) / 2

    def on_voxels(values: np.ndarray, grid: Grid, order: int) -> Tensor:
        to_index = grid.inverse_affine @ to_world
        matrix, offset = to_index[:3, :3], to_index[:3, 3]
        found = ndimage.affine_transform(values, matrix, offset, output_shape=_KEPT, order=order)
        return torch.from_numpy(found)

    return Person(
        on_voxels(data, scan.grid, 1).half(),
        on_voxels(known.data.astype(np.uint8), known.grid, 0),
        on_voxels(mask.astype(np.uint8), scan.grid, 0),
    )


def shares(labels: Tensor, count: int) -> Tensor:
    """Share of each label in voxels of 2 mm: (X, Y, Z) -> (1, count, X / 2, Y / 2, Z / 2)."""
    sizes = [size // 2 for size in labels.shape]
    blocks = labels.view(sizes[0], 2, sizes[1], 2, sizes[2], 2).permute(1, 3, 5, 0, 2, 4)
    blocks = blocks.reshape(8, -1).long()
    found = torch.zeros(count, blocks.shape[1])
    return found.scatter_add_(0, blocks, torch.full(blocks.shape, 1 / 8)).view(1, count, *sizes)


def middle(one: Person) -> tuple[Tensor, Tensor]:
    """The image (1, 1, X, Y, Z) and labels (X, Y, Z) as they are, in as many voxels."""
    part = tuple(
        slice((whole - size) // 2, (whole + size) // 2)
        for whole, size in zip(one.image.shape, SHAPE, strict=True)
    )
    return one.image[part].float()[None, None], one.labels[part]


@torch.no_grad()
def augmented(one: Person, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """An image (1, 1, X, Y, Z) in another pose, shape and contrast, and the shares of labels."""
    draw = _Draw(generator)
    places = _places(one, draw)[None]
    image = F.grid_sample(one.image.float()[None, None], places, align_corners=True)
    labels, brain = (
        F.grid_sample(values.float()[None, None], places, mode='nearest', align_corners=True)
        for values in (one.labels, one.brain)
    )
    inside = brain > 0
    image = _contrast(_coarser(image, draw), draw)
    some = image[inside][::97].quantile(torch.tensor([0.01, 0.99]))
    image = ((image - some[0]) / (some[1] - some[0])).clamp(-0.1, 1.5)
    if draw.chance(0.3):
        width = 1 + 2 * (1 + draw.whole(2))
        inside = -F.max_pool3d(-inside.float(), width, 1, width // 2) > 0
    return image * inside, shares(labels[0, 0].byte(), count)


class _Draw:
    """Random numbers of one example."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def chance(self, of: float) -> bool:
        return self.uniform() < of

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def whole(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._generator))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def rising(self, count: int) -> Tensor:
        steps = 0.4 + torch.rand(count, generator=self._generator)
        return torch.cat([torch.zeros(1), steps.cumsum(0)]) / steps.sum()


def _places(one: Person, draw: _Draw) -> Tensor:
    """Where each voxel is read, (X, Y, Z, 3) in grid_sample's coordinates."""
    x, y, z = (draw.normal(3) * math.radians(_TURN_DEGREES)).tolist()
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))
    scale = torch.diag((draw.normal(3) * _SCALE).exp())
    matrix = turn @ scale @ (torch.eye(3) + draw.normal(3, 3) * _SHEAR)
    if draw.chance(0.5):
        matrix[:, 0] *= -1
    axes = [
        torch.linspace(-(size - 1) / 2, (size - 1) / 2, places)
        for size, places in zip(SHAPE, _COARSE, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1) @ matrix.T
    points = points + draw.normal(3) * _SHIFT_MM
    if draw.chance(0.7):
        points = points + draw.normal(*points.shape) * draw.uniform(0, _ANATOMY_MM)
    half = (torch.tensor(one.image.shape) - 1) / 2
    coarse = (points / half).flip(-1).movedim(-1, 0)[None]
    fine = F.interpolate(coarse, size=SHAPE, mode='trilinear', align_corners=True)
    return fine[0].movedim(0, -1)


def _coarser(image: Tensor, draw: _Draw) -> Tensor:
    """As a scanner with larger voxels, or thicker slices along one axis, sees it; every other."""
    if not draw.chance(0.5):
        return image
    sigma = draw.uniform(0.3, 1.3)
    kernel = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    for axis in range(3) if draw.chance(0.5) else [draw.whole(3)]:
        shape, padding = [1] * 5, [0] * 3
        shape[axis + 2], padding[axis] = -1, 3
        image = F.conv3d(image, kernel.view(shape), padding=padding)
    return image


def _contrast(image: Tensor, draw: _Draw) -> Tensor:
    """Another gamma, sometimes another rising curve, a bias field, noise."""
    image = image.clamp_min(0) ** float((draw.normal(1) * _GAMMA).exp())
    if draw.chance(0.5):
        knots = draw.rising(6) * 1.5
        place = (image / 1.5 * 6).clamp(0, 5.999)
        below = place.long()
        image = torch.lerp(knots[below], knots[below + 1], place - below)
    bias = F.interpolate(draw.normal(1, 1, 4, 4, 4) * _BIAS, size=SHAPE, mode='trilinear')
    return image * bias.exp() + draw.normal(*image.shape) * draw.uniform(0, _NOISE)
