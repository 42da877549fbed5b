"""A guard of an optimisation against single gradients that would lead it away."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from torch import nn

LONGEST = 2.0
"""A gradient may be this many times as long as usual."""

_REMEMBERED, _LEAST_KNOWN = 20, 5
"""Usual is the median of so many gradients before, once so many are known."""


class GradientClip:
    """Shortens a gradient that is much longer than those before it.

    Where a map begins to fold, a few points of the barrier pull tens of times as hard as all of
    the images. Adam would go their way for ten steps and, since it divides by what it has seen,
    hardly move for a hundred. The limit comes from the gradients themselves, as in AutoClip
    (Seetharaman et al., MLSP 2020); what is remembered of a clipped one is the limit, which so
    rises where all gradients become longer.

    Parameters
    ----------
    parameters
        What is optimised; their ``grad`` are shortened together, the direction stays.

    Examples
    --------
    >>> import torch
    >>> number, found = nn.Parameter(torch.zeros(1)), []
    >>> clip = GradientClip([number])
    >>> for length in (3.0, 2.0, 3.0, 3.0, 2.5, 60.0, 4.0):
    ...     number.grad = torch.tensor([length])
    ...     clip()
    ...     found.append(round(float(number.grad), 3))
    >>> found
    [3.0, 2.0, 3.0, 3.0, 2.5, 6.0, 4.0]
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._lengths: deque[float] = deque(maxlen=_REMEMBERED)

    def __call__(self) -> None:
        known = len(self._lengths) >= _LEAST_KNOWN
        limit = LONGEST * statistics.median(self._lengths) if known else math.inf
        length = float(nn.utils.clip_grad_norm_(self._parameters, limit))
        self._lengths.append(min(length, limit))
