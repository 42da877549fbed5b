"""Instance optimisation: the field of one pair, coarse to fine, by sampled similarity.

Cost and memory depend on the volume of the brain or lung in mm and on the settings, hardly on the
number of voxels of the images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..errors import InputDataError
from ..field.deformation import CHUNK, NePhiField
from ..field.interpolate import separable
from ..field.siren import fourier_features
from .clip import GradientClip
from .regularity import bending_energy, point_regularity
from .sampling import Lattice, Occupancy
from .schedule import plan, rate_at, settled
from .settings import Level, OptimisationSettings
from .similarity import (
    gaussian_windows,
    global_ncc_loss,
    mean_difference_loss,
    overlap_loss,
    windowed_ncc_loss,
)
from .volume import Volume
from .workers import Workers

BENDING_LENGTH_MM = 10.0
"""Bending energy is counted as the change of du/dx over this length, and what both maps together
are off as a multiple of it."""

_WATCHED = 64
"""Points with the lowest determinants of a direction that are looked at again at the next step."""

_MOST_GIVEN = 4000
"""Of points where folds were found a step looks at so many: where much folds there are 50,000."""

_FEATURES = slice(0, -1)
"""The channels of a volume that are compared; the last one is the weight."""


@dataclass(frozen=True)
class Progress:
    """Where an optimisation is.

    ``similarity`` is 1 where the images agree (for MIND features: where they are equal) and
    rises; ``regularity`` is the gradient inverse consistency and falls; ``seconds_left`` is an
    estimate.
    """

    step: int
    total_steps: int
    level: int
    similarity: float
    regularity: float
    seconds: float
    seconds_left: float

    def as_dict(self) -> dict[str, float]:
        """Plain values, for the history."""
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """What an optimisation compares at one level.

    All volumes are read at normalised points of the fixed frame. The last channel of ``fixed`` and
    ``moving`` is the weight (mask without exclusions), the others are features; ``fixed_kept`` and
    ``moving_kept`` are 0 where the image is excluded, or None where nothing is. Shares of
    structures, the same ones in both, are None where none are compared.
    """

    fixed: Volume
    moving: Volume
    fixed_kept: Volume | None = None
    moving_kept: Volume | None = None
    fixed_structures: Volume | None = None
    moving_structures: Volume | None = None


def optimise(
    field: NePhiField,
    pair_at: Callable[[Level], Pair],
    settings: OptimisationSettings,
    scale_mm: float,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[Progress], None] | None = None,
    watch: Tensor | None = None,
) -> list[Progress]:
    """Move ``field``'s networks and code until fixed and moving agree; in place.

    Parameters
    ----------
    field
        The pair of maps, fresh or predicted.
    pair_at
        Gives the volumes of a level.
    settings
        Levels, steps, weights.
    scale_mm
        Millimetres of one normalised unit.
    seed
        Of every random draw: same seed, threads and processor type give the same field.
    threads
        Processor threads; two directions run side by side where there are two.
    progress
        Called after each step.
    watch
        Normalised points (N, d) where folds were found: the barrier acts there at every step.

    Returns
    -------
    One entry a step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(
        [
            {'params': list(field.networks.parameters()), 'lr': settings.network_rate},
            {'params': list(field.code.parameters()), 'lr': settings.code_rate},
        ],
        betas=(0.9, 0.99),
        fused=True,
    )
    rates = [group['lr'] for group in optimiser.param_groups]
    history: list[Progress] = []
    watched, clip = _Watched(watch), GradientClip(field.parameters())
    begin = time.monotonic()
    with Workers(threads, field.frequencies.device) as workers:
        for number, level, planned in plan(settings):
            pair = pair_at(level)
            whole = 1 + settings.global_weight * (settings.similarity == 'windowed-ncc')
            whole += settings.structure_weight * (pair.fixed_structures is not None)
            step_of_level = _Step(field, pair, level, settings, scale_mm, workers)
            reached: list[float] = []
            for step in planned:
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group['lr'] = rate * rate_at(step, settings.steps, settings.warm_up)
                dissimilarity, regularity = step_of_level(generator, watched)
                clip()
                optimiser.step()
                reached.append(dissimilarity)
                similarity = 1 - dissimilarity / whole
                seconds = time.monotonic() - begin
                left = seconds / (step + 1) * (settings.steps - step - 1)
                history.append(
                    Progress(
                        step + 1, settings.steps, number, similarity, regularity, seconds, left
                    )
                )
                if progress:
                    progress(history[-1])
                # Slabs that differ from step to step say too little of how far one is.
                if level.coverage == 1 and settled(reached):
                    break
    return history


class _Watched:
    """Points where a map is nearest to folding: looked at again at each step, and around them."""

    def __init__(self, given: Tensor | None) -> None:
        self._given = given
        self._hardest: dict[bool, Tensor] = {}

    def drawn(self, inverse: bool, reach: float, generator: torch.Generator) -> list[Tensor]:
        """Of the points given, the hardest so far, and as many at random within ``reach``."""
        points = [] if self._given is None else [self._given]
        if points and len(points[0]) > _MOST_GIVEN:
            chosen = torch.randperm(len(points[0]), generator=generator)[:_MOST_GIVEN]
            points = [points[0][chosen.to(points[0].device)]]
        if inverse in self._hardest:
            hardest = self._hardest[inverse]
            shift = torch.randn(hardest.shape, generator=generator) * reach
            points += [hardest, hardest + shift.to(hardest)]
        return points

    def keep(self, inverse: bool, points: Tensor, determinants: Tensor) -> None:
        """Remember the points with the lowest determinants (N,) of a direction."""
        self._hardest[inverse] = points[determinants.argsort(stable=True)[:_WATCHED]]


class _Step:
    """The gradient of one step of a level: draw samples, derive both directions' losses."""

    def __init__(
        self,
        field: NePhiField,
        pair: Pair,
        level: Level,
        settings: OptimisationSettings,
        scale_mm: float,
        workers: Workers,
    ) -> None:
        self.field, self.pair, self.settings, self.workers = field, pair, settings, workers
        self.step = level.node_mm / scale_mm
        self.ratio, self.coverage = level.ratio, level.coverage
        self._regularity_points = round(level.regularity * settings.regularity_points)
        self._length = BENDING_LENGTH_MM / scale_mm
        self.bending_scale = self._length / self.step**2
        self._occupied = Occupancy.of(
            (pair.fixed, pair.moving), field.extent.cpu(), self.step, self.ratio
        )

    def __call__(self, generator: torch.Generator, watched: _Watched) -> tuple[float, float]:
        field, settings = self.field, self.settings
        sampled = _Sampled(
            field, self.pair, self.step, self.ratio, self.coverage, self._occupied, generator
        )
        points = [
            torch.cat([
                sampled.random_points(self._regularity_points // 2, self.step, generator),
                *watched.drawn(inverse, 0.25 * self.step, generator),
            ])
            for inverse in (False, True)
        ]  # fmt: skip
        parameters = list(field.parameters())
        read_code = sampled.read_code(field)

        def direction(inverse: bool) -> tuple:
            local = read_code.detach().requires_grad_()
            dissimilarity, roughness = self._direction(sampled, local, inverse)
            regularity, consistency, determinants = point_regularity(
                field, points[inverse], inverse, settings, self._length
            )
            watched.keep(inverse, points[inverse], determinants.detach())
            loss = dissimilarity + settings.bending_weight * roughness + regularity
            gradients = torch.autograd.grad(loss / 2, [*parameters, local], allow_unused=True)
            return float(dissimilarity.detach()), float(consistency.detach()), gradients

        field.zero_grad(set_to_none=True)
        dissimilarities, consistencies, gradients = zip(*self.workers.map(direction), strict=True)
        (settings.prior_weight * field.code.prior()).backward()
        read_code.backward(gradients[0][-1] + gradients[1][-1])
        for parameter, *both in zip(parameters, *(part[:-1] for part in gradients), strict=True):
            for gradient in both:
                if gradient is not None:
                    parameter.grad = (
                        gradient if parameter.grad is None else parameter.grad.add_(gradient)
                    )
        return sum(dissimilarities) / 2, sum(consistencies) / 2

    def _direction(self, sampled: _Sampled, local: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Dissimilarity and roughness of one direction."""
        field = self.field
        network = field.networks[int(inverse)]
        code = field.code.global_code
        parts = [
            network(features, part, code)
            for features, part in zip(sampled.features, local.split(CHUNK), strict=True)
        ]
        moved = torch.cat(parts)
        at_nodes = sampled.on_lattice(moved)
        roughness = bending_energy(at_nodes, sampled.used, self.bending_scale)
        displacement = sampled.at_samples(at_nodes, inverse)
        dissimilarity = self._dissimilarity(sampled, displacement, inverse)
        return dissimilarity + self._apart(sampled.nodes, moved, inverse), roughness

    def _dissimilarity(self, sampled: _Sampled, displacement: Tensor, inverse: bool) -> Tensor:
        settings, pair = self.settings, self.pair
        source, kept = (
            (pair.fixed, pair.fixed_kept) if inverse else (pair.moving, pair.moving_kept)
        )
        points, target, chosen = sampled.side(inverse)
        there = points + displacement
        warped = source.sample(there, _FEATURES)
        target, weight = target[:, _FEATURES], target[:, -1]
        if kept is not None:
            weight = weight * kept.sample(there.detach())[:, 0]
        if settings.similarity == 'mind':
            return mean_difference_loss(target, warped, weight)
        if settings.similarity != 'windowed-ncc':
            return global_ncc_loss(target, warped, weight)
        windows = sampled.windows(settings.window)
        shape = sampled.lattice.sample_shape
        local_loss = windowed_ncc_loss(target[:, 0], warped[:, 0], weight, chosen, shape, windows)
        return local_loss + settings.global_weight * global_ncc_loss(target, warped, weight)

    def _apart(self, nodes: Tensor, displacement: Tensor, inverse: bool) -> Tensor | float:
        """How far structures are from overlapping at the nodes, times its factor."""
        pair, factor = self.pair, self.settings.structure_weight
        if pair.fixed_structures is None or pair.moving_structures is None or not factor:
            return 0.0
        sides = [
            (pair.fixed_structures, pair.fixed_kept),
            (pair.moving_structures, pair.moving_kept),
        ]
        (target, target_kept), (source, source_kept) = sides[::-1] if inverse else sides
        there = nodes + displacement
        weight = torch.ones_like(nodes[:, 0])
        for kept, points in ((target_kept, nodes), (source_kept, there.detach())):
            if kept is not None:
                weight = weight * kept.sample(points)[:, 0]
        return factor * overlap_loss(target.sample(nodes), source.sample(there), weight)


class _Sampled:
    """The lattice of one step with everything that both directions share."""

    def __init__(
        self,
        field: NePhiField,
        pair: Pair,
        step: float,
        ratio: int,
        coverage: float,
        occupied: Occupancy,
        generator: torch.Generator,
    ) -> None:
        device = field.frequencies.device
        self.lattice = Lattice.draw(field.extent.cpu(), step, ratio, generator)
        near = occupied.at(self.lattice.samples)
        if coverage < 1:
            near = self.lattice.in_slabs(near, coverage, generator)
        points = self.lattice.sample_points()[near].to(device)
        near = near.to(device)
        targets = [volume.sample(points) for volume in (pair.fixed, pair.moving)]
        inside = [target[:, -1] > 0.5 for target in targets]
        everywhere = torch.zeros(math.prod(self.lattice.sample_shape), dtype=torch.bool)
        self._nodes = self.lattice.nodes_for(
            everywhere.to(device).index_put((near,), inside[0] | inside[1])
        )
        self._chosen = [near[mask] for mask in inside]
        self._points = [points[mask] for mask in inside]
        self._targets = [target[mask] for target, mask in zip(targets, inside, strict=True)]
        self._matrices = self.lattice.to_samples(device)
        nodes = self.lattice.node_points().to(device)[self._nodes]
        nodes = torch.maximum(torch.minimum(nodes, field.extent), -field.extent)
        self.nodes = nodes
        self.features = [fourier_features(p, field.frequencies) for p in nodes.split(CHUNK)]

    def read_code(self, field: NePhiField) -> Tensor:
        """Local code at the used nodes, differentiable in the code."""
        code = self.lattice.read_code(
            field.code.local_code, field.extent, field.config.code_reading
        )
        return code[self._nodes]

    def side(self, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Points (N, d), target values (N, C) and flat sample indices (N,) of a direction."""
        return self._points[inverse], self._targets[inverse], self._chosen[inverse]

    @property
    def used(self) -> Tensor:
        """Which nodes are evaluated, bool of the lattice's shape."""
        return self._nodes.view(self.lattice.node_shape)

    def on_lattice(self, displacement: Tensor) -> Tensor:
        """Displacement at the used nodes (n, d) -> on the whole lattice, zero elsewhere."""
        count, ndim = len(self._nodes), displacement.shape[1]
        full = displacement.new_zeros(count, ndim)
        full = full.index_put((self._nodes.nonzero()[:, 0],), displacement)
        return full.view(*self.lattice.node_shape, ndim)

    def at_samples(self, at_nodes: Tensor, inverse: bool) -> Tensor:
        """Displacement on the lattice -> at the chosen samples of a direction."""
        fine = separable(at_nodes, self._matrices).movedim(-1, 0)
        return fine.reshape(len(fine), -1)[:, self._chosen[inverse]].T

    def windows(self, sigma: float) -> list[Tensor]:
        """Smoothing matrices for the sample grid, a window in each cell of the lattice."""
        matrices = gaussian_windows(self.lattice.sample_shape, sigma, self.lattice.ratio)
        return [matrix.to(self._points[0]) for matrix in matrices]

    def random_points(self, count: int, step: float, generator: torch.Generator) -> Tensor:
        """Points near random samples inside the union of both masks."""
        union = torch.cat(self._points)
        if not len(union):
            raise InputDataError(
                'No sample of a lattice lies in the masks: they are too small or too thin to be '
                'compared. Check masks and voxel sizes.'
            )
        index = torch.randint(len(union), (count,), generator=generator)
        jitter = (torch.rand(count, union.shape[1], generator=generator) - 0.5) * step
        return union[index.to(union.device)] + jitter.to(union)
