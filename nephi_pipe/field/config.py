"""Sizes of a NePhi field, with the published ones by name."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ..errors import UsageError

READINGS = ('linear', 'cubic')

_BOUNDS = {
    'ndim': (2, 3),
    'frequencies': (1, 1 << 14),
    'width': (1, 1 << 14),
    'hidden_layers': (0, 64),
    'global_channels': (0, 1 << 14),
    'local_channels': (0, 1 << 14),
    'local_size': (2, 1 << 10),
}
"""Sizes beyond these come from a damaged file."""

_MOST_FREQUENCY = 1e4


@dataclass(frozen=True)
class FieldConfig:
    """Architecture of a pair of fields (NePhi, section 3 and its supplement).

    Parameters
    ----------
    ndim
        2 or 3 spatial axes.
    frequencies
        Number of fixed Gaussian Fourier frequencies (twice as many features).
    frequency_scale
        Their standard deviation, cycles per unit of normalised coordinate.
    width
        Neurons of each layer of both parts of an MLP.
    hidden_layers
        Gated sine layers of the synthesis part, and layers of the modulation part after its first.
    omega_first, omega
        Sine frequencies: of the first synthesis layer, and of all others.
    global_channels, local_channels
        Length of the global code, channels of the local one.
    local_size
        Nodes of the local code along each axis over [-1, 1].
    code_reading
        How the local code is read between its nodes: 'linear' as published, or 'cubic', which
        makes the whole map smooth to the second derivative.
    code_skip
        Whether the local code also moves points directly, by a linear layer beside the MLP
        (not published): an encoder then learns where things go before the MLP can say more.

    Raises
    ------
    UsageError
        A size that cannot be.

    >>> FieldConfig().code_channels
    64
    """

    ndim: int = 3
    frequencies: int = 128
    frequency_scale: float = 1.0
    width: int = 128
    hidden_layers: int = 2
    omega_first: float = 1.0
    omega: float = 30.0
    global_channels: int = 32
    local_channels: int = 32
    local_size: int = 22
    code_reading: str = 'linear'
    code_skip: bool = False

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(
                    f"The field's {name} is {value!r}; expected a whole number from {least} to "
                    f'{most}.'
                )
        for name in ('frequency_scale', 'omega_first', 'omega'):
            value = getattr(self, name)
            known = isinstance(value, int | float) and math.isfinite(value)
            if not known or not 0 < value <= _MOST_FREQUENCY:
                raise UsageError(
                    f"The field's {name} is {value!r}; expected a number above 0 and at most "
                    f'{_MOST_FREQUENCY:g}.'
                )
        if self.code_reading not in READINGS:
            raise UsageError(
                f"The field's code is read as {self.code_reading!r}; expected one of "
                f'{", ".join(READINGS)}.'
            )
        if type(self.code_skip) is not bool:
            raise UsageError(
                f"The field's code_skip is {self.code_skip!r}; expected true or false."
            )

    @property
    def code_channels(self) -> int:
        """Channels of the latent code at a point: global and local together."""
        return self.global_channels + self.local_channels

    def as_dict(self) -> dict[str, float | int | str]:
        """Plain values, for files."""
        return asdict(self)


PUBLISHED = FieldConfig()
"""The single-resolution lung configuration of the paper."""

COMPACT = FieldConfig(frequencies=64, width=64, local_size=44, code_reading='cubic')
"""Narrower MLPs and a finer local code, read smoothly: a quarter of the work a point, more detail,
and a map that a coarse lattice holds."""

CONFIGURATIONS = {'published': PUBLISHED, 'compact': COMPACT}
