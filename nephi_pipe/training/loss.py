"""What training minimises: the loss of instance optimisation, at random points.

What needs a lattice of points is left out: windows of the similarity, and bending energy.
"""

from __future__ import annotations

from torch import Tensor

from ..field.deformation import NePhiField
from ..learning.regularity import point_regularity
from ..learning.settings import OptimisationSettings
from ..learning.similarity import global_ncc_loss, mean_difference_loss
from ..learning.volume import Volume

Volumes = tuple[Volume, Volume]
Points = tuple[Tensor, Tensor]


def pair_losses(
    field: NePhiField, volumes: Volumes, points: Points, settings: OptimisationSettings
) -> dict[str, Tensor]:
    """Similarity, regularity, prior, and the loss as a whole, each the mean of both directions.

    Parameters
    ----------
    field
        The maps of the pair.
    volumes
        Features and, as the last channel, the weight of the fixed and of the moving image.
    points
        Normalised points (N, 3) inside the fixed mask, and inside the moving mask.
    settings
        Similarity, weights, and the number of points at which exact Jacobians are taken.
    """
    similarity = (
        _similarity(field, volumes, points, settings.similarity, False)
        + _similarity(field, volumes, points, settings.similarity, True)
    ) / 2
    half = settings.regularity_points // 2
    there, back = (
        point_regularity(field, side[:half], inverse, settings)
        for side, inverse in zip(points, (False, True), strict=True)
    )
    regularity = (there[1] + back[1]) / 2
    prior = field.code.prior()
    total = similarity + (there[0] + back[0]) / 2 + settings.prior_weight * prior
    return {'loss': total, 'similarity': similarity, 'regularity': regularity, 'prior': prior}


def _similarity(
    field: NePhiField, volumes: Volumes, points: Points, kind: str, inverse: bool
) -> Tensor:
    target_volume, source_volume = reversed(volumes) if inverse else volumes
    here = points[int(inverse)]
    target = target_volume.sample(here)
    warped = source_volume.sample(here + field.displacement(here, inverse))
    compare = mean_difference_loss if kind == 'mind' else global_ncc_loss
    return compare(target[:, :-1], warped[:, :-1], target[:, -1])
