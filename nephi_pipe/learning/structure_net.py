"""A network that finds the structures of an organ, so that they can be compared too."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (16, 48, 96, 128)
"""At voxels of 2, 4, 8 and 16 mm."""

_SLOPE = 0.1
_CHANNELS_A_GROUP = 8
_SIDE = 2


class StructureNet(nn.Module):
    """A U-Net from intensities on voxels of 1 mm to shares of structures on voxels of 2 mm.

    The eight small voxels of each large one are its first channels, so that nothing is computed
    on the small ones. Features of a resolution are added to those brought up from the coarser one.

    Parameters
    ----------
    structures
        How many there are, background apart.
    channels
        Features at each resolution, fine to coarse.

    >>> import torch
    >>> with torch.no_grad():
    ...     found = StructureNet(3, (8, 16))(torch.zeros(1, 1, 8, 12, 8))
    >>> found.shape
    torch.Size([1, 4, 4, 6, 4])
    """

    def __init__(self, structures: int, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        steps = list(zip(channels, channels[1:], strict=False))
        self.multiple = _SIDE ** len(channels)
        self.first = _layer(_SIDE**3, channels[0])
        self.down = nn.ModuleList(nn.Conv3d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.beside = nn.ModuleList(_layer(count, count) for count in channels)
        self.again = nn.ModuleList(_layer(count, count) for count in channels[1:])
        self.up = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in steps)
        self.join = nn.ModuleList(_layer(count, count) for count in channels[:-1])
        self.last = nn.Conv3d(channels[0], structures + 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of background and structures.

        Parameters
        ----------
        images
            Intensities about [0, 1], 0 outside of the organ, axes to the right, the front and the
            head: (B, 1, X, Y, Z), each size a multiple of ``multiple``.

        Returns
        -------
        (B, structures + 1, X / 2, Y / 2, Z / 2).
        """
        features = self.first(_in_blocks(images))
        features = features + self.beside[0](features)
        known = [features]
        for down, beside, again in zip(self.down, self.beside[1:], self.again, strict=True):
            features = down(features)
            features = features + beside(features)
            features = features + again(features)
            known.append(features)
        for number in reversed(range(len(self.up))):
            raised = F.interpolate(self.up[number](features), scale_factor=2, mode='trilinear')
            features = known[number] + raised
            features = features + self.join[number](features)
        return self.last(features)


def _in_blocks(images: Tensor) -> Tensor:
    """(B, 1, X, Y, Z) -> (B, 8, X / 2, Y / 2, Z / 2)."""
    sizes = [part for size in images.shape[2:] for part in (size // _SIDE, _SIDE)]
    blocks = images.reshape(len(images), *sizes).permute(0, 2, 4, 6, 1, 3, 5)
    return blocks.flatten(1, 3)


def _layer(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, after, 3, padding=1),
        nn.GroupNorm(after // _CHANNELS_A_GROUP, after),
        nn.LeakyReLU(_SLOPE, inplace=True),
    )
