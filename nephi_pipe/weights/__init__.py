"""Trained weights that ship, one file for each modality, with a model card beside each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

SHIPPED = Path(__file__).parent

MOST_STEPS = 100
"""Up to so many steps an optimisation ends better from weights than from a fresh field."""


def shipped_weights(modality: str) -> Path | None:
    """The checkpoint that ships for a modality, None for none.

    >>> shipped_weights('brain').name, shipped_weights('other')
    ('brain.safetensors', None)
    """
    path = SHIPPED / f'{modality}.safetensors'
    return path if path.exists() else None


def chosen_structures(
    wanted: bool,
    weights: str | os.PathLike | Sequence[str | os.PathLike],
    modality: str,
    steps: int | None,
    sloppy: bool = False,
) -> Path | None:
    """The network that finds the structures that are compared, None where none are.

    Parameters
    ----------
    wanted
        Whether structures are compared where they can be.
    weights, modality, steps
        As of :func:`chosen_weights`; with the weights 'none' nothing that was trained takes part.
    sloppy
        Whether the settings are those for tests, which compare none.

    >>> chosen_structures(True, 'default', 'brain', None).name
    'brain_structures.safetensors'
    >>> chosen_structures(True, 'none', 'brain', None) is None
    True
    """
    if sloppy or not wanted or weights == 'none' or steps == 0:
        return None
    return shipped_weights(f'{modality}_structures')


def chosen_weights(
    weights: str | os.PathLike | Sequence[str | os.PathLike], modality: str, steps: int | None
) -> str | os.PathLike | Sequence[str | os.PathLike] | None:
    """The checkpoint that the option ``weights`` means, None for a fresh field.

    Parameters
    ----------
    weights
        A checkpoint, or one for each of several stages, 'none', or 'default': those that ship,
        where they help. The full optimisation (``steps`` None) ends a little better from a fresh
        field.
    modality
        Of the images.
    steps
        Steps of the optimisation.

    >>> chosen_weights('default', 'brain', 20).name, chosen_weights('default', 'brain', None)
    ('brain.safetensors', None)
    """
    if weights == 'none':
        return None
    if weights != 'default':
        return weights
    few = steps is not None and steps <= MOST_STEPS
    return shipped_weights(modality) if few else None
