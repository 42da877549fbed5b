"""Instance optimisation: the field of one pair, coarse to fine, by sampled similarity.

Cost and memory depend on the volume of the brain or lung in mm and on the settings, hardly on the
number of voxels of the images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..field.deformation import CHUNK, NePhiField
from ..field.interpolate import separable
from ..field.siren import fourier_features
from .regularity import bending_energy, fold_barrier, gradient_inverse_consistency
from .sampling import Lattice
from .settings import Level, OptimisationSettings
from .similarity import (
    gaussian_windows,
    global_ncc_loss,
    mean_difference_loss,
    windowed_ncc_loss,
)
from .volume import Volume

_GLOBAL_SHARE = 0.3
"""Weight of the global NCC beside the windowed one: it pulls where no window sees anything."""


BENDING_LENGTH_MM = 10.0
"""Bending energy is counted as the change of du/dx over this length."""

_WATCHED = 128
"""Points with the lowest determinants that are looked at again at the next step."""

_STRETCH = 15
_STILL = 2e-4
"""A level ends when its mean dissimilarity falls by less than this from stretch to stretch."""


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
    ``moving_kept`` are 0 where the image is excluded, or None where nothing is.
    """

    fixed: Volume
    moving: Volume
    fixed_kept: Volume | None = None
    moving_kept: Volume | None = None


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
    )
    rates = [group['lr'] for group in optimiser.param_groups]
    history: list[Progress] = []
    watched = _Watched(watch)
    whole = 1 + _GLOBAL_SHARE * (settings.similarity == 'windowed-ncc')
    begin = time.monotonic()
    with _Workers(threads, field.frequencies.device) as workers:
        for number, level, planned in _plan(settings):
            step_of_level = _Step(field, pair_at(level), level, settings, scale_mm, workers)
            reached: list[float] = []
            for step in planned:
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group['lr'] = rate * _schedule(step, settings.steps)
                dissimilarity, regularity = step_of_level(optimiser, generator, watched)
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
                if _settled(reached):
                    break
    return history


def _plan(settings: OptimisationSettings) -> list[tuple[int, Level, range]]:
    """(number, level, its steps) of each level that gets a step."""
    total = sum(level.share for level in settings.levels)
    plan, start, share = [], 0, 0.0
    for number, level in enumerate(settings.levels):
        share += level.share
        end = round(settings.steps * share / total)
        if end > start:
            plan.append((number, level, range(start, end)))
        start = end
    return plan


def _settled(reached: list[float]) -> bool:
    """Whether a level's dissimilarity has stopped falling: never by the clock.

    The means of the last two stretches of steps are compared; what jitters between steps by
    chance is averaged out.
    """
    if len(reached) < 2 * _STRETCH:
        return False
    before = sum(reached[-2 * _STRETCH : -_STRETCH]) / _STRETCH
    after = sum(reached[-_STRETCH:]) / _STRETCH
    return before - after < _STILL


def _schedule(step: int, steps: int) -> float:
    """Warm-up over ten steps, then a cosine down to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))
    return (0.02 + 0.98 * cosine) * min(1.0, (step + 1) / 10)


class _Workers:
    """Runs the tasks of the two directions, side by side where there are threads for it."""

    def __init__(self, threads: int, device: torch.device) -> None:
        self.parallel = threads > 1 and device.type == 'cpu'
        self._each = max(threads // 2, 1) if self.parallel else threads

    def __enter__(self) -> _Workers:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._each)
        if self.parallel:
            self._pool = ThreadPoolExecutor(
                2, initializer=torch.set_num_threads, initargs=(self._each,)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.parallel:
            self._pool.shutdown()
        torch.set_num_threads(self._before)

    def map(self, task: Callable[[int], tuple], items: tuple[int, int]) -> list[tuple]:
        return list(self._pool.map(task, items) if self.parallel else map(task, items))


class _Watched:
    """Points where a map is nearest to folding: looked at again at each step, and around them."""

    def __init__(self, given: Tensor | None) -> None:
        self._given = given
        self._hardest: Tensor | None = None

    def drawn(self, reach: float, generator: torch.Generator) -> list[Tensor]:
        """The points given, the hardest so far, and as many at random within ``reach``."""
        points = [] if self._given is None else [self._given]
        if self._hardest is not None:
            shift = torch.randn(self._hardest.shape, generator=generator) * reach
            points += [self._hardest, self._hardest + shift.to(self._hardest)]
        return points

    def keep(self, points: Tensor, determinants: Tensor) -> None:
        """Remember the points with the lowest determinants (2, N) of either direction."""
        lowest = determinants.min(dim=0).values.argsort(stable=True)
        self._hardest = points[lowest[:_WATCHED]]


class _Step:
    """One step of a level: draw samples, both directions' losses and gradients, move."""

    def __init__(
        self,
        field: NePhiField,
        pair: Pair,
        level: Level,
        settings: OptimisationSettings,
        scale_mm: float,
        workers: _Workers,
    ) -> None:
        self.field, self.pair, self.settings, self.workers = field, pair, settings, workers
        self.step = level.node_mm / scale_mm
        self.ratio = level.ratio
        self.window = settings.window
        self.bending_length = BENDING_LENGTH_MM / scale_mm

    def __call__(
        self, optimiser: torch.optim.Optimizer, generator: torch.Generator, watched: _Watched
    ) -> tuple[float, float]:
        field, settings = self.field, self.settings
        sampled = _Sampled(field, self.pair, self.step, self.ratio, generator)
        points = sampled.random_points(settings.regularity_points, self.step, generator)
        points = torch.cat([points, *watched.drawn(0.25 * self.step, generator)])
        parameters = list(field.parameters())
        read_code = sampled.read_code(field)

        def direction(inverse: int) -> tuple:
            local = read_code.detach().requires_grad_()
            loss, roughness = self._direction(sampled, local, bool(inverse))
            inputs = [*parameters, local]
            gradients = torch.autograd.grad(loss + roughness, inputs, allow_unused=True)
            return float(loss.detach()), gradients[:-1], gradients[-1]

        def regularity(_: int) -> tuple:
            smooth, determinants, gradients = gradient_inverse_consistency(field, points)
            watched.keep(points, determinants.detach())
            loss = settings.regularity_weight * smooth
            loss = loss + settings.diffusion_weight * gradients.square().mean()
            loss = loss + settings.barrier_weight * fold_barrier(determinants)
            loss = loss + settings.prior_weight * field.code.prior()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            return float(smooth.detach()), gradients

        tasks = [lambda: direction(0), lambda: direction(1), lambda: regularity(0)]
        results = self.workers.map(lambda index: tasks[index](), (0, 1, 2))
        optimiser.zero_grad(set_to_none=True)
        read_code.backward((results[0][2] + results[1][2]) / 2)
        for factor, result in zip((0.5, 0.5, 1.0), results, strict=True):
            for parameter, gradient in zip(parameters, result[1], strict=True):
                if gradient is not None:
                    previous = 0 if parameter.grad is None else parameter.grad
                    parameter.grad = previous + factor * gradient
        optimiser.step()
        return (results[0][0] + results[1][0]) / 2, results[2][0]

    def _direction(self, sampled: _Sampled, local: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Similarity and weighted roughness of one direction."""
        field, settings = self.field, self.settings
        network = field.networks[int(inverse)]
        code = field.code.global_code
        parts = [
            network(features, part, code)
            for features, part in zip(sampled.features, local.split(CHUNK), strict=True)
        ]
        at_nodes = sampled.on_lattice(torch.cat(parts))
        roughness = settings.bending_weight * bending_energy(
            at_nodes, sampled.used, self.bending_length / self.step**2
        )
        displacement = sampled.at_samples(at_nodes, inverse)
        return self._similarity(sampled, displacement, inverse), roughness

    def _similarity(self, sampled: _Sampled, displacement: Tensor, inverse: bool) -> Tensor:
        settings, pair = self.settings, self.pair
        source, kept = (
            (pair.fixed, pair.fixed_kept) if inverse else (pair.moving, pair.moving_kept)
        )
        points, target, chosen = sampled.side(inverse)
        warped = source.sample(points + displacement)[:, :-1]
        target, weight = target[:, :-1], target[:, -1]
        if kept is not None:
            weight = weight * kept.sample((points + displacement).detach())[:, 0]
        if settings.similarity == 'mind':
            return mean_difference_loss(target, warped, weight)
        if settings.similarity != 'windowed-ncc':
            return global_ncc_loss(target, warped, weight)
        windows = sampled.windows(self.window)
        shape = sampled.lattice.sample_shape
        local_loss = windowed_ncc_loss(target[:, 0], warped[:, 0], weight, chosen, shape, windows)
        return local_loss + _GLOBAL_SHARE * global_ncc_loss(target, warped, weight)


class _Sampled:
    """The lattice of one step with everything that both directions share."""

    def __init__(
        self, field: NePhiField, pair: Pair, step: float, ratio: int, generator: torch.Generator
    ) -> None:
        extent, device = field.extent.cpu(), field.frequencies.device
        self.lattice = Lattice.draw(extent, step, ratio, generator)
        points = self.lattice.sample_points().to(device)
        targets = [volume.sample(points) for volume in (pair.fixed, pair.moving)]
        inside = [target[:, -1] > 0.5 for target in targets]
        self._nodes = self.lattice.nodes_for(inside[0] | inside[1])
        self._chosen = [mask.nonzero()[:, 0] for mask in inside]
        self._points = [points[chosen] for chosen in self._chosen]
        self._targets = [
            target[chosen] for target, chosen in zip(targets, self._chosen, strict=True)
        ]
        self._matrices = self.lattice.to_samples(device)
        nodes = self.lattice.node_points().to(device)[self._nodes]
        nodes = torch.maximum(torch.minimum(nodes, field.extent), -field.extent)
        self.features = [fourier_features(p, field.frequencies) for p in nodes.split(CHUNK)]
        self._windows: dict[float, list[Tensor]] = {}

    def read_code(self, field: NePhiField) -> Tensor:
        """Local code at the used nodes, differentiable in the code."""
        code = self.lattice.read_code(
            field.code.local_code, field.extent, field.config.code_reading
        )
        return code[self._nodes]

    def side(self, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Points (N, d), target values (N, C) and flat sample indices (N,) of a direction."""
        return (
            self._points[inverse],
            self._targets[inverse],
            self._chosen[inverse],
        )

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
        fine = separable(at_nodes, self._matrices)
        return fine.reshape(-1, at_nodes.shape[-1])[self._chosen[inverse]]

    def windows(self, sigma: float) -> list[Tensor]:
        """Smoothing matrices for the sample grid."""
        return [m.to(self._points[0]) for m in gaussian_windows(self.lattice.sample_shape, sigma)]

    def random_points(self, count: int, step: float, generator: torch.Generator) -> Tensor:
        """Points near random samples inside the union of both masks."""
        union = torch.cat(self._points)
        index = torch.randint(len(union), (count,), generator=generator)
        jitter = (torch.rand(count, union.shape[1], generator=generator) - 0.5) * step
        return union[index.to(union.device)] + jitter.to(union)
