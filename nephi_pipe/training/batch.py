"""A batch of pairs from a stack of images: who, in which poses, and what the encoder sees."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import BIAS_NODES, turn_and_mirror
from .settings import Augmentation
from .stack import Stack


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs of subjects in the normalised frame of their maps.

    Parameters
    ----------
    stack
        Where the images are.
    scale_mm
        Millimetres of a normalised unit; the frame's origin is the middle of the stack.
    indices
        The fixed and the moving subjects, (2, B).
    poses
        For both, normalised points of the frame to those of the stack, (2, B, 3, 4).
    at
        What earlier stages found: the moving images are seen through these samplings, one after
        the other, each grid_sample's coordinates (B, X, Y, Z, 3).
    """

    stack: Stack
    scale_mm: float
    indices: Tensor
    poses: Tensor
    at: tuple[Tensor, ...] = ()

    @classmethod
    def draw(
        cls,
        stack: Stack,
        scale_mm: float,
        size: int,
        augmentation: Augmentation,
        generator: torch.Generator,
    ) -> Batch:
        """Pairs of two different subjects; both turned and mirrored alike, each sheared a bit."""
        people = len(stack.images)
        pairs = [torch.randperm(people, generator=generator)[:2] for _ in range(size)]
        turns = torch.stack([turn_and_mirror(augmentation, generator) for _ in pairs])
        shift = augmentation.shift_mm / scale_mm * torch.randn(size, 3, 1, generator=generator)
        noise = augmentation.affine * torch.randn(2, size, 3, 4, generator=generator)
        shear = torch.eye(3) + noise[..., :3]
        poses = torch.cat([turns @ shear, turns @ noise[..., 3:] + shift], dim=-1)
        device = stack.images.device
        return cls(stack, scale_mm, torch.stack(pairs, dim=1).to(device), poses.to(device))

    def volumes(self, side: int) -> Tensor:
        """Intensity and weight of the fixed (0) or moving (1) images, (B, 2, X, Y, Z)."""
        return self._seen(self.stack.images[self.indices[side]].float(), side)

    def one_hot(self, side: int) -> Tensor:
        """A channel for each label but background, (B, K, X, Y, Z)."""
        numbers = self.stack.labels[self.indices[side]]
        classes = torch.arange(1, self.stack.classes + 1, device=numbers.device)
        hot = (numbers[:, None] == classes.view(-1, 1, 1, 1)).to(
            torch.half if numbers.is_cuda else torch.float
        )
        return self._seen(hot, side)

    @property
    def axes(self) -> list[Tensor]:
        """Normalised coordinates of the stack's voxels about the frame's origin."""
        halves = self.stack.half_mm / self.scale_mm
        shape = self.stack.images.shape[2:]
        return [
            torch.linspace(-half, half, count, device=self.poses.device)
            for half, count in zip(halves.tolist(), shape, strict=True)
        ]

    def warped(self, displacement: Tensor) -> Batch:
        """The same with the moving images seen through a map of the frame.

        They then lie on the stack's voxels about the frame's origin, in no pose.

        Parameters
        ----------
        displacement
            Of the map at these voxels, normalised, (B, X, Y, Z, 3).
        """
        nodes = torch.stack(torch.meshgrid(*self.axes, indexing='ij'), dim=-1) + displacement
        at = self._in_stack([nodes[..., axis, None] for axis in range(3)], 1)
        still = torch.eye(3, 4).to(self.poses).expand_as(self.poses[1])
        return replace(self, poses=torch.stack([self.poses[0], still]), at=(*self.at, at))

    def read(self, volumes: Tensor, points: Tensor, side: int) -> Tensor:
        """Channels (B, C, ...) of ``volumes`` at normalised points (B, ..., 3), zero outside."""
        at = self._in_stack([points[..., axis, None] for axis in range(3)], side)
        return F.grid_sample(volumes, at.to(volumes.dtype), align_corners=True)

    def cubes(
        self,
        volumes: tuple[Tensor, Tensor],
        size: int,
        augmentation: Augmentation,
        generator: torch.Generator,
    ) -> Tensor:
        """What the encoder sees, (B, 2, N, N, N), in other contrasts.

        ``generator`` lives on the device.
        """
        axis = torch.linspace(-1, 1, size, device=self.poses.device)
        shapes = ([-1, 1, 1, 1], [-1, 1, 1], [-1, 1])
        nodes = [axis.view(shape) for shape in shapes]
        found = [
            F.grid_sample(volume[:, :1], self._in_stack(nodes, side), align_corners=True)
            for side, volume in enumerate(volumes)
        ]
        return _contrasts(torch.cat(found, dim=1), augmentation, generator)

    def _seen(self, volumes: Tensor, side: int) -> Tensor:
        """Volumes of a side, those of the moving one through what earlier stages found."""
        for at in self.at if side else ():
            volumes = F.grid_sample(volumes, at.to(volumes.dtype), align_corners=True)
        return volumes

    def _in_stack(self, coordinates: list[Tensor], side: int) -> Tensor:
        """grid_sample's coordinates (B, ..., 3) of normalised x, y and z, each (..., 1).

        One axis after the other: a product of small matrices costs more than the reading.
        """
        units = torch.from_numpy(self.scale_mm / self.stack.half_mm).to(self.poses)
        theta = (self.poses[side] * units[:, None]).flip(1)[:, None, None, None]
        at = theta[..., 3]
        for number, along in enumerate(coordinates):
            at = at + along * theta[..., number]
        return at


def _contrasts(cubes: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Each of (B, 2, N, N, N) with another gamma, smooth factor and noise."""
    count, options = cubes.shape[0] * 2, {'generator': generator, 'device': cubes.device}
    flat = cubes.reshape(count, 1, *cubes.shape[2:])
    inside = flat > 0
    exponent = (augmentation.gamma * torch.randn(count, 1, 1, 1, 1, **options)).exp()
    flat = flat.clamp_min(1e-6) ** exponent
    nodes = torch.randn(count, 1, *[BIAS_NODES] * 3, **options)
    nodes = nodes / nodes.abs().amax(dim=(2, 3, 4), keepdim=True)
    nodes = nodes * augmentation.bias * torch.rand(count, 1, 1, 1, 1, **options)
    bias = F.interpolate(nodes, size=cubes.shape[2:], mode='trilinear', align_corners=True)
    flat = flat * bias.exp()
    deviation = augmentation.noise * torch.rand(count, 1, 1, 1, 1, **options)
    flat = flat + deviation * torch.randn(flat.shape, **options)
    return (flat * inside).view_as(cubes)
