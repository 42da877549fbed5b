"""What an optimisation may choose, in one value."""

from __future__ import annotations

from dataclasses import dataclass, replace

SIMILARITIES = ('ncc', 'local-ncc', 'windowed-ncc', 'mind')

_FINEST = 0.7
"""Samples closer together than this part of a voxel show nothing new."""


@dataclass(frozen=True)
class Level:
    """One level of the coarse-to-fine optimisation.

    Parameters
    ----------
    share
        Part of all steps spent here.
    node_mm
        Distance of the lattice nodes at which the networks are evaluated.
    sample_mm
        Distance of the image samples; ``node_mm`` divided by a whole number.
    smoothing_mm
        Standard deviation of the Gaussian that smooths the images.
    coverage
        Part of the volume that a step looks at: other slabs at each step.
    regularity
        Part of the regulariser's points that a step takes.
    by_depth
        Whether the depth in the masks is compared beside intensities, of 'local-ncc': it leads
        further than they do, where masks end at the same surface.
    """

    share: float
    node_mm: float
    ratio: int
    smoothing_mm: float = 0.0
    coverage: float = 1.0
    regularity: float = 1.0
    by_depth: bool = False

    @property
    def sample_mm(self) -> float:
        """Distance of two image samples."""
        return self.node_mm / self.ratio


@dataclass(frozen=True)
class OptimisationSettings:
    """Settings of one instance optimisation.

    Parameters
    ----------
    levels
        Coarse to fine.
    steps
        Steps in all.
    similarity
        'ncc' (global), 'local-ncc' (global NCC of locally normalised intensities),
        'windowed-ncc' (NCC in windows between the samples) or 'mind' (MIND-SSC).
    window
        Standard deviation of the window of the local similarities, in samples of the level.
    global_weight
        Factor of the global NCC beside the windowed one: it pulls where no window sees anything.
    structure_weight
        Factor of the overlap of structures, where a network finds them in both images.
    regularity_weight
        Factor of gradient inverse consistency (published: 10, without the next two).
    consistency_weight
        Factor of the mean squared distance between a point and where both maps lead it, per 10 mm:
        a direction that went astray is told by the other one. Training does not count it.
    diffusion_weight
        Factor of the mean squared entry of the exact du/dx at the same points: fills in smoothly
        where images say nothing.
    bending_weight
        Factor of the mean squared second derivative on the lattice, per 10 mm.
    coarse_weights
        What takes the place of the two before where voxels do not show the finest level, or None:
        such images say less, so the regulariser says more.
    barrier_weight
        Factor of the barrier against determinants near zero.
    prior_weight
        Factor of the latent prior (published: 0.01).
    regularity_points
        Random points a step at which the exact Jacobians are taken.
    network_rate, code_rate
        Adam's learning rates.
    warm_up
        Steps in which they rise.
    """

    levels: tuple[Level, ...] = (
        Level(0.3, 8.0, 2, 1.5),
        Level(0.35, 5.0, 2, 0.7),
        Level(0.2, 3.5, 2),
        Level(0.15, 2.5, 2, coverage=1 / 3),
    )
    steps: int = 170
    similarity: str = 'windowed-ncc'
    window: float = 1.4
    global_weight: float = 0.3
    structure_weight: float = 0.5
    regularity_weight: float = 1.0
    consistency_weight: float = 0.0
    diffusion_weight: float = 0.7
    bending_weight: float = 1.0
    coarse_weights: tuple[float, float] | None = None
    barrier_weight: float = 3.0
    prior_weight: float = 0.01
    regularity_points: int = 1000
    network_rate: float = 1e-3
    code_rate: float = 1e-2
    warm_up: int = 10

    def with_steps(self, steps: int | None) -> OptimisationSettings:
        """The same with another number of steps (None: unchanged)."""
        return self if steps is None else replace(self, steps=steps)

    def for_voxels(self, spacing_mm: float) -> OptimisationSettings:
        """The same without the levels, and their steps, that look finer than images can show.

        >>> [OptimisationSettings().for_voxels(spacing).steps for spacing in (1.0, 2.0)]
        [170, 144]
        """
        kept = [level for level in self.levels if level.sample_mm >= _FINEST * spacing_mm]
        kept = tuple(kept or self.levels[:1])
        part = sum(one.share for one in kept) / sum(one.share for one in self.levels)
        diffusion, bending = self.diffusion_weight, self.bending_weight
        if self.coarse_weights and len(kept) < len(self.levels):
            diffusion, bending = self.coarse_weights
        return replace(
            self,
            levels=kept,
            steps=round(part * self.steps),
            diffusion_weight=diffusion,
            bending_weight=bending,
        )
