"""From two images to the latent code of their pair of maps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .config import FieldConfig

NORMS = ('batch', 'group')
KINDS = ('pyramid', 'unet')

_SLOPE = 0.2
_HIDDEN = 256
_FIRST_CHANNELS, _LAST_CHANNELS = 8, 256
_PUBLISHED_LAYERS = 6
_CHANNELS_A_GROUP = 8
_UNET_CHANNELS = (32, 64, 96, 128)
_UNET_FIRST = 16
_SMALL = 0.1
_UNET_FINE = 128
"""A U-Net sees grids above this through one more convolution, before its own sizes begin."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder (NePhi, section 3 and its supplement).

    Parameters
    ----------
    grid
        Nodes of the images along each axis. 2^k m + 1 keeps the code's nodes on the images' own.
    norm
        'batch' (published, for batches of many pairs) or 'group' (each pair by itself).
    kind
        'pyramid' (published): the local code is what the convolutions know when they have its
        size. 'unet': it is brought there from the smallest size, so that each of its nodes knows
        the whole pair, with connections from the convolutions of the same size.

    Raises
    ------
    UsageError
        The grid is too small for a local code, or there is no such normalisation or kind.

    >>> EncoderConfig().channels
    (8, 16, 32, 64, 128, 256)
    >>> EncoderConfig().sizes, EncoderConfig().local_size
    ((88, 44, 22, 11, 6, 3), 22)
    >>> EncoderConfig(112, 'group', 'unet').sizes
    (56, 28, 14, 7)
    >>> EncoderConfig(224, 'group', 'unet').channels
    (16, 32, 64, 96, 128)
    """

    grid: int = 175
    norm: str = 'batch'
    kind: str = 'pyramid'

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(
                f'There is no normalisation "{self.norm}"; expected one of {", ".join(NORMS)}.'
            )
        if self.kind not in KINDS:
            raise UsageError(
                f'There is no encoder "{self.kind}"; expected one of {", ".join(KINDS)}.'
            )
        if self.grid < 1 or self.local_layer < 1:
            raise UsageError(
                f'An encoder grid of {self.grid} nodes is too small for a local code; expected 23 '
                'or more.'
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels after each convolution: doubled up to 256, more layers for large images."""
        if self.kind == 'unet':
            return (_UNET_FIRST,) * (self.local_layer - 1) + _UNET_CHANNELS
        layers = _PUBLISHED_LAYERS + max(0, round(math.log2(self.grid)) - 7)
        return tuple(min(_FIRST_CHANNELS * 2**layer, _LAST_CHANNELS) for layer in range(layers))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Nodes along an axis after each convolution."""
        sizes = [self.grid]
        for _ in self.channels:
            sizes.append((sizes[-1] + 1) // 2)
        return tuple(sizes[1:])

    @property
    def local_layer(self) -> int:
        """Number of the convolution, from 1, whose features become the local code."""
        if self.kind == 'unet':
            return 2 if self.grid > _UNET_FINE else 1
        return round(math.log2(self.grid)) - 4

    @property
    def local_size(self) -> int:
        """Nodes of the local code along an axis."""
        return self.sizes[self.local_layer - 1]

    def as_dict(self) -> dict[str, int | str]:
        """Plain values, for files."""
        return asdict(self)


class Encoder(nn.Module):
    """Convolutions with stride 2; a local code from one of them, a global code from the last.

    Parameters
    ----------
    field
        Sizes of the code that is predicted; its ``local_size`` is the encoder's.
    config
        Sizes of the encoder.
    generator
        Source of every random number of the initialisation.

    Raises
    ------
    UsageError
        The encoder gives a local code of another size than the field has.
    """

    def __init__(
        self, field: FieldConfig, config: EncoderConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        if config.local_size != field.local_size:
            raise UsageError(
                f'An encoder grid of {config.grid} nodes gives a local code of '
                f'{config.local_size} nodes, the field has {field.local_size}; expected the same '
                'number. Change one.'
            )
        self.field, self.config = field, config
        channels = config.channels
        unet, inputs = config.kind == 'unet', (2, *channels)

        def block(before: int, after: int) -> nn.Sequential:
            return _layer(field.ndim, before, after, 1, config.norm)

        self.layers = nn.ModuleList(
            _layer(field.ndim, before, after, 2, config.norm)
            for before, after in zip(inputs, channels, strict=False)
        )
        local_channels = channels[config.local_layer - 1]
        if unet:
            within = channels[config.local_layer - 1 :]
            pairs = list(zip(within, within[1:], strict=False))
            self.beside = nn.ModuleList(block(count, count) for count in within)
            self.narrow = nn.ModuleList(block(coarse, fine) for fine, coarse in pairs)
            self.join = nn.ModuleList(block(2 * fine, fine) for fine, _ in pairs)
            self.refine = nn.ModuleList(block(fine, fine) for fine, _ in pairs)
            self.to_local = {2: nn.Conv2d, 3: nn.Conv3d}[field.ndim](
                local_channels, field.local_channels, 3, padding=1
            )
        else:
            self.to_local = block(local_channels, field.local_channels)
        nodes = 1 if unet else config.sizes[-1] ** field.ndim
        self.to_global = nn.Sequential(
            nn.Linear(channels[-1] * nodes, _HIDDEN),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(_HIDDEN, field.global_channels),
        )
        _initialise(self, generator)
        if unet:
            # Nothing normalises these: large random codes would make the first maps rough.
            for last in (self.to_local, self.to_global[-1]):
                last.weight.data *= _SMALL

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict codes.

        Parameters
        ----------
        images
            Fixed and moving image on [-1, 1] along each axis, x first: (B, 2, N, ..., N).

        Returns
        -------
        Global codes (B, Cg) and local codes (B, S, ..., S, Cl), x first.
        """
        if self.config.kind == 'unet':
            return self._by_unet(images)
        for number, layer in enumerate(self.layers, start=1):
            images = layer(images)
            if number == self.config.local_layer:
                local = self.to_local(images).movedim(1, -1).contiguous()
        return self.to_global(images.flatten(1)), local

    def _by_unet(self, features: Tensor) -> tuple[Tensor, Tensor]:
        known, first = [], self.config.local_layer - 1
        for layer in self.layers[:first]:
            features = layer(features)
        for layer, beside in zip(self.layers[first:], self.beside, strict=True):
            features = layer(features)
            features = features + beside(features)
            known.append(features)
        global_codes = self.to_global(features.flatten(2).mean(dim=2))
        for number in reversed(range(len(known) - 1)):
            finer = known[number]
            features = F.interpolate(self.narrow[number](features), size=finer.shape[2:])
            features = self.join[number](torch.cat([finer, features], dim=1))
            features = features + self.refine[number](features)
        return global_codes, self.to_local(features).movedim(1, -1).contiguous()


def _layer(ndim: int, before: int, after: int, stride: int, norm: str) -> nn.Sequential:
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    normalisation: nn.Module
    if norm == 'batch':
        normalisation = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[ndim](after)
    else:
        # Groups span channels too: one node a channel, as in the last layers, is no trouble.
        groups = after // _CHANNELS_A_GROUP if after % _CHANNELS_A_GROUP == 0 else 1
        normalisation = nn.GroupNorm(groups, after)
    return nn.Sequential(
        convolution(before, after, 3, stride=stride, padding=1),
        normalisation,
        nn.LeakyReLU(_SLOPE),
    )


@torch.no_grad()
def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Kaiming's uniform weights for leaky rectifiers (He et al. 2015), biases of zero."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            bound = math.sqrt(6 / ((1 + _SLOPE**2) * part.weight[0].numel()))
            draw = torch.rand(part.weight.shape, generator=generator)
            part.weight.copy_(draw.mul_(2).sub_(1).mul_(bound))
            part.bias.zero_()
