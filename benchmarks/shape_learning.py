"""A NePhi of two axes that learns from pairs of shapes, and how well it registers others.

The loss is the published one (NePhi, section 3): 1 - NCC, ten times gradient inverse consistency
at a few random points, and a hundredth of the latent prior, each the mean of both directions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nephi_pipe.field.config import FieldConfig
from nephi_pipe.field.encoder import EncoderConfig
from nephi_pipe.field.interpolate import separable
from nephi_pipe.field.model import ModelConfig, NePhiModel
from nephi_pipe.learning.regularity import gradient_inverse_consistency
from nephi_pipe.learning.sampling import Lattice
from nephi_pipe.learning.schedule import rate_at
from nephi_pipe.learning.similarity import global_ncc_loss
from nephi_pipe.training.lattice_loss import FieldBatch

from .shape_pairs import SIZE, Shapes, draw_pairs, pixels

_COARSER = 2
"""Pixels an axis that one of the encoder's averages."""

ENCODER = EncoderConfig(SIZE // _COARSER, 'group', 'unet')
FIELD = FieldConfig(
    ndim=2,
    frequencies=64,
    width=64,
    local_size=ENCODER.local_size,
    code_reading='cubic',
    code_skip=True,
)
"""Encoder and field as the weights for brains have them, with two axes."""

WEIGHTS = {'similarity': 1.0, 'regularity': 10.0, 'prior': 0.01}
"""Of the published loss."""

EXTENT = torch.ones(2)
"""The images fill the whole of the normalised coordinates."""

_PIXELS_AT_ONCE = 256
_TOLD = 10
"""Parts of a training of which mean losses are told."""

TEST_SEED = 1 << 20
"""Far from any that a training is given."""


@dataclass(frozen=True)
class Learning:
    """How a training goes.

    Parameters
    ----------
    points
        Random points a pair and step at which exact Jacobians are taken, half of them for each
        order of the two maps.
    steps, pairs
        Steps, and new pairs for each of them.
    rate, warm_up
        Adam's learning rate, and the steps in which it rises; then it falls along a cosine.
    node_pixels, ratio
        Distance of the nodes at which the networks are evaluated, and how many samples of the
        images lie between two of them; both are shifted at random at each step.
    seed
        Of the first weights and of all that is drawn.
    """

    points: int
    steps: int = 1000
    pairs: int = 16
    rate: float = 1e-3
    warm_up: int = 50
    node_pixels: float = 6.0
    ratio: int = 3
    seed: int = 0


def train(learning: Learning) -> tuple[NePhiModel, dict]:
    """A model that learned as told; what it cost, and mean losses of each tenth of its steps.

    Every step sees pairs that no other step saw.
    """
    # Whatever is drawn to look at, pairs are the same for every number of points.
    generator, looks = (torch.Generator().manual_seed(learning.seed + each) for each in (0, 1))
    model = NePhiModel(ModelConfig(FIELD, ENCODER, SIZE / 2), generator)
    optimiser = torch.optim.Adam(model.parameters())
    load, clock, processor = os.getloadavg()[0], time.monotonic(), time.process_time()
    history, rows = [], []
    for step in range(learning.steps):
        rate = learning.rate * rate_at(step, learning.steps, learning.warm_up)
        optimiser.param_groups[0]['lr'] = rate
        optimiser.zero_grad()
        total, row = losses(model, draw_pairs(learning.pairs, generator), learning, looks)
        total.backward()
        optimiser.step()
        rows.append(row)
        if _TOLD * (step + 1) // learning.steps > _TOLD * step // learning.steps:
            history.append({'step': step + 1} | _means(rows))
            said = ', '.join(f'{name} {mean:.4g}' for name, mean in history[-1].items())
            print(f'  {said}', flush=True)
            rows = []
    usage = {
        'wall_s': time.monotonic() - clock,
        'cpu_s': time.process_time() - processor,
        'load_before': load,
    }
    return model.eval(), usage | {'losses': history}


def losses(
    model: NePhiModel,
    pair: tuple[Shapes, Shapes],
    learning: Learning,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of some pairs, differentiable, and its parts."""
    images = torch.stack([shapes.images() for shapes in pair], dim=1)
    field = field_of(model, images)
    lattice = Lattice.draw(
        EXTENT, learning.node_pixels * 2 / (SIZE - 1), learning.ratio, generator
    )
    half = len(images) * (learning.points // 2)
    parts = {'similarity': 0.0, 'regularity': 0.0, 'prior': field.prior()}
    for inverse in (False, True):
        parts['similarity'] += _dissimilarity(field, images, lattice, inverse) / 2
        points = 2 * torch.rand(half, 2, generator=generator) - 1
        parts['regularity'] += gradient_inverse_consistency(field, points, inverse)[0] / 2
    total = sum(WEIGHTS[name] * value for name, value in parts.items())
    return total, {name: value.item() for name, value in ({'loss': total} | parts).items()}


def field_of(model: NePhiModel, images: Tensor) -> FieldBatch:
    """The predicted maps of pairs of images (B, 2, X, Y), fixed and moving."""
    return FieldBatch(model, *model.encoder(F.avg_pool2d(images, _COARSER)))


def read(images: Tensor, points: Tensor) -> Tensor:
    """Images (B, X, Y) at points (B, N, 2), bilinear, zero outside: (B, N)."""
    values = F.grid_sample(images.mT[:, None], points[:, None], align_corners=True)
    return values[:, 0, 0]


def _dissimilarity(field: FieldBatch, images: Tensor, lattice: Lattice, inverse: bool) -> Tensor:
    """1 - NCC of all samples, the mean of the pairs."""
    pairs, here = len(images), lattice.sample_points()
    fine = separable(field.on_lattice(lattice, inverse), lattice.to_samples(here.device))
    moved = here + fine.view(len(here), pairs, 2).movedim(1, 0)
    target = read(images[:, int(inverse)], here.expand(pairs, -1, -1))
    warped = read(images[:, int(not inverse)], moved)
    return global_ncc_loss(target.T, warped.T, torch.ones(len(here)))


@torch.no_grad()
def exact_map(field: FieldBatch, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Where each pixel goes (B, SIZE^2, 2), and the exact determinant there (B, SIZE^2)."""
    pairs, moved, determinants = len(field.global_codes), [], []
    for part in pixels().split(_PIXELS_AT_ONCE):
        points = part.expand(pairs, -1, -1)
        found, gradient = field.displacement_and_gradient(points.flatten(0, 1), inverse)
        moved.append(points + found.view_as(points))
        determinants.append(torch.linalg.det(torch.eye(2) + gradient).view(pairs, -1))
    return torch.cat(moved, dim=1), torch.cat(determinants, dim=1)


@torch.no_grad()
def score(model: NePhiModel, pairs: int) -> dict[str, dict[str, float]]:
    """Figures of so many unseen pairs in both directions, filled and hollow ones apart.

    Dice is that of the insides of the outlines: pixels of the fixed shape against pixels whose
    images under the map lie in the moving one. Both are asked of the formulas, so that nothing is
    rounded.
    """
    pair, field = unseen(model, pairs)
    found = {name: [] for name in ('before', 'dice', 'folds', 'least_determinant')}
    for inverse in (False, True):
        fixed, moving = reversed(pair) if inverse else pair
        moved, determinants = exact_map(field, inverse)
        home = pixels().expand(pairs, -1, -1)
        inside = fixed.contain(home)
        found['before'].append(_dice(inside, moving.contain(home)))
        found['dice'].append(_dice(inside, moving.contain(moved)))
        found['folds'].append((determinants <= 0).sum(dim=1))
        found['least_determinant'].append(determinants.amin(dim=1))
    columns = {name: torch.stack(values) for name, values in found.items()}
    return {
        kind: _summary({name: values[:, start::2] for name, values in columns.items()})
        for start, kind in enumerate(('filled', 'hollow'))
    }


@torch.no_grad()
def unseen(
    model: NePhiModel, pairs: int, seed: int = TEST_SEED
) -> tuple[tuple[Shapes, Shapes], FieldBatch]:
    """Test pairs, the same at each call, and their predicted maps."""
    pair = draw_pairs(pairs, torch.Generator().manual_seed(seed))
    images = torch.stack([shapes.images() for shapes in pair], dim=1)
    return pair, field_of(model, images)


def _dice(a: Tensor, b: Tensor) -> Tensor:
    """Dice of each row of two bool tensors (B, N)."""
    return 2 * (a & b).sum(dim=1) / (a.sum(dim=1) + b.sum(dim=1))


def _summary(columns: dict[str, Tensor]) -> dict[str, float]:
    """Over all maps of one kind, (2, pairs) each."""
    dice, folds = columns['dice'], columns['folds']
    return {
        'maps': dice.numel(),
        'dice_before': columns['before'].mean().item(),
        'dice': dice.mean().item(),
        'dice_least': dice.min().item(),
        'folds': folds.sum().item(),
        'folds_percent': 100 * folds.sum().item() / (folds.numel() * SIZE**2),
        'maps_with_folds': (folds > 0).sum().item(),
        'least_determinant': columns['least_determinant'].min().item(),
    }


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
