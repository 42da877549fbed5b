"""Between two registrations: a smooth path of deformations through the latent space."""

from __future__ import annotations

import copy

import numpy as np
from scipy.linalg import expm, logm

from .errors import UsageError
from .geometry import Frame
from .result import Registration


def interpolate(first: Registration, second: Registration, share: float) -> Registration:
    """The registration that lies ``share`` of the way from one to another (NePhi, section 4).

    Latent codes (and what an optimisation changed of the networks) are mixed linearly, affines
    along the geodesic ``exp((1 - t) log A + t log B)``. Both ends are met exactly, and what lies
    between depends smoothly on ``share``: networks are smooth in their codes.

    Parameters
    ----------
    first, second
        Two registrations to the same fixed grid that begin with the same weights, best two forward
        passes (``steps=0``): codes of one network speak the same language.
    share
        From 0, ``first``, to 1, ``second``.

    Returns
    -------
    Registration
        Its moving side (grid and mask, what the inverse starts from) is that of the nearer end.

    Raises
    ------
    UsageError
        The share is out of range, or the two do not belong together.
    """
    _check(first, second, share)
    near = first if share < 0.5 else second
    weights = (1 - share, share)
    field = copy.deepcopy(first.field)
    ends = [one.field.state_dict() for one in (first, second)]
    field.load_state_dict({name: _mixed([end[name] for end in ends], weights) for name in ends[0]})
    centre = _mixed([np.array(one.frame.center_mm) for one in (first, second)], weights)
    scale_mm = _mixed([one.frame.scale_mm for one in (first, second)], weights)
    logarithm = _mixed([logm(one.affine) for one in (first, second)], weights)
    return Registration(
        field,
        Frame(tuple(centre.tolist()), scale_mm),
        near.affine if share in (0, 1) else expm(logarithm).real,
        first.fixed_grid,
        near.moving_grid,
        first.fixed_mask,
        near.moving_mask,
        inverted=first.inverted,
        provenance={
            'interpolated': {'share': share, 'ends': [first.provenance, second.provenance]}
        },
    )


def _mixed(ends: list, weights: tuple[float, float]):  # noqa: ANN202 - whatever the ends are
    return sum(weight * end for weight, end in zip(weights, ends, strict=True))


def _check(first: Registration, second: Registration, share: float) -> None:
    import torch

    if first.base is not None or second.base is not None:
        raise UsageError(
            'One of the two registrations has a pre-alignment, which no code stands for; expected '
            'two fields after an affine.'
        )
    if not 0 <= share <= 1:
        raise UsageError(f'The share is {share:g}; expected a number from 0 to 1.')
    fields = first.field, second.field
    alike = fields[0].config == fields[1].config and first.inverted == second.inverted
    if not alike or not torch.equal(fields[0].frequencies, fields[1].frequencies):
        raise UsageError(
            'The two registrations were not made with the same weights; expected two forward '
            'passes of one model in the same direction. Register both with the same --weights.'
        )
    if not first.fixed_grid.same_as(second.fixed_grid):
        raise UsageError(
            f'The two registrations have different fixed grids ({first.fixed_grid.shape} and '
            f'{second.fixed_grid.shape}); expected two maps of one fixed image.'
        )
