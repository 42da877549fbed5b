"""The stages before the one that is trained: their maps warp the moving images it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..field.deformation import NePhiField
from ..field.latent import smoothed
from ..field.model import PREDICTED_SMOOTHING, NePhiModel
from .augment import PointWarp
from .pairs import TrainingPair
from .settings import Augmentation


@dataclass(frozen=True, eq=False)
class FieldWarp:
    """The map of a predicted field, and what comes after it.

    Parameters
    ----------
    field
        Differentiable in what it was predicted from, where that is trained.
    then
        The map of the stage before; None for nothing.
    """

    field: NePhiField
    then: PointWarp | None = None

    @property
    def nodes(self) -> int:
        """As many along an axis as the code has: between them the map is smooth."""
        return self.field.config.local_size

    def __call__(self, points: Tensor) -> Tensor:
        """Where points (N, 3) go."""
        points = points + self.field.displacement(points)
        return points if self.then is None else self.then(points)

    def back(self, points: Tensor) -> Tensor:
        """About where points come from."""
        points = points if self.then is None else self.then.back(points)
        return points + self.field.displacement_in_chunks(points, inverse=True)


@dataclass(frozen=True, eq=False)
class StagePairs:
    """What one stage of a model sees of some pairs, and what it predicts for them.

    Parameters
    ----------
    model
        The stage.
    pairs
        With the moving images as earlier stages have warped them.
    fields
        The maps of the pairs.
    """

    model: NePhiModel
    pairs: list[TrainingPair]
    fields: list[NePhiField]


def predict_stages(
    model: NePhiModel,
    pairs: Sequence[TrainingPair],
    augmentation: Augmentation,
    generator: torch.Generator,
) -> list[StagePairs]:
    """What the stages of a model predict for pairs one after the other, coarse to fine."""
    found: list[StagePairs] = []
    seen = list(pairs)
    for stage in model.stages:
        if found:
            before = found[-1].fields
            seen = [
                replace(pair, moving_warp=FieldWarp(field, pair.moving_warp))
                for pair, field in zip(seen, before, strict=True)
            ]
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(stage)):
            fields = _predicted(stage, seen, augmentation, generator)
        found.append(StagePairs(stage, seen, fields))
    return found


def _predicted(
    model: NePhiModel,
    pairs: Sequence[TrainingPair],
    augmentation: Augmentation,
    generator: torch.Generator,
) -> list[NePhiField]:
    """The maps of one stage, in single precision."""
    device, size = model.frequencies.device, model.config.encoder.grid
    # Half precision is for the encoder: places in an image need all of theirs.
    with torch.autocast(device.type, enabled=False):
        cubes = [pair.cubes(size, str(device), augmentation, generator) for pair in pairs]
    global_codes, local_codes = codes_of(model, torch.stack(cubes))
    with torch.autocast(device.type, enabled=False):
        return model.fields(global_codes, local_codes, [pair.extent for pair in pairs])


def codes_of(model: NePhiModel, cubes: Tensor) -> tuple[Tensor, Tensor]:
    """Global and local codes, float32; those of a frozen stage as registering has them."""
    if not is_trained(model):
        model.eval()
    global_codes, local_codes = (code.float() for code in model.encoder(cubes))
    if model.config.field.code_skip and not is_trained(model):
        local_codes = smoothed(local_codes, PREDICTED_SMOOTHING)
    return global_codes, local_codes


def is_trained(model: NePhiModel) -> bool:
    """Whether a stage moves, rather than being frozen."""
    return next(model.networks.parameters()).requires_grad
