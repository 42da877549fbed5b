"""The parts of a train config: augmentation, loss, schedule."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import UsageError
from ..learning.settings import SIMILARITIES, OptimisationSettings

PRECISIONS = ('no', 'bf16', 'fp16')


def _check(table: str, name: str, value: Any, least: float, most: float = math.inf) -> None:
    whole = isinstance(least, int)
    kind = int if whole else (int | float)
    good = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most
    if not good or not math.isfinite(value):
        upper = '' if most == math.inf else f' and at most {most:g}'
        raise UsageError(
            f'{name} is {value} in [{table}]; expected a {"whole " if whole else ""}number of at '
            f'least {least:g}{upper}.'
        )


@dataclass(frozen=True)
class Augmentation:
    """How pairs are varied. All of it works on points and on the encoder's small cube.

    Parameters
    ----------
    flips
        Share of pairs whose axes are permuted and flipped, both images alike.
    affine
        Standard deviation of noise on the 3x4 matrix of each image, in normalised units.
    gamma
        Standard deviation of the logarithm of an exponent of the encoder's intensities.
    bias
        Largest logarithm of a smooth factor on them.
    noise
        Largest standard deviation of noise on them.
    simulated
        Share of pairs that are one person and the same warped by a known diffeomorphism.
    simulated_mm
        Their largest displacements.
    breathing_mm
        Above 0 simulated pairs of lungs breathe: the largest mean displacement, the least is a
        fifth of it. The motions are given to the training.
    anatomy_mm
        Largest displacements of a random map of both images of a simulated pair alike: another
        anatomy.
    turn_degrees, mirror
        Standard deviation of a rotation of both images alike, and the share of pairs that are
        mirrored across the sagittal plane.
    shift_mm
        On a lattice: standard deviation of a shift of both images alike.
    """

    flips: float = 0.0
    affine: float = 0.0
    gamma: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    simulated: float = 0.0
    simulated_mm: float = 15.0
    breathing_mm: float = 0.0
    anatomy_mm: float = 0.0
    turn_degrees: float = 0.0
    shift_mm: float = 0.0
    mirror: float = 0.0

    def __post_init__(self) -> None:
        for one in fields(self):
            most = 1.0 if one.name in ('flips', 'simulated', 'mirror') else math.inf
            _check('augmentation', one.name, getattr(self, one.name), 0.0, most)


AUGMENTATIONS = {
    'none': Augmentation(),
    'published': Augmentation(flips=1.0, affine=0.05),
    'mixed': Augmentation(affine=0.02, gamma=0.2, bias=0.2, noise=0.03, simulated=0.25),
    'posed': Augmentation(
        affine=0.025, gamma=0.25, bias=0.3, noise=0.05, turn_degrees=8.0, shift_mm=3.0, mirror=0.5
    ),
    'breathing': Augmentation(
        affine=0.05,
        gamma=0.2,
        bias=0.2,
        noise=0.05,
        simulated=1.0,
        breathing_mm=20.0,
        anatomy_mm=15.0,
        turn_degrees=5.0,
        mirror=0.5,
    ),
}
"""Named ones; 'published' is what the authors' code offers and their training did not use."""


_LEAST = {'node_mm': 0.1, 'node_ratio': 1, 'window': 0.1}


@dataclass(frozen=True)
class Loss:
    """Weights of the loss, at random points or on a lattice.

    Parameters
    ----------
    similarity
        'ncc', 'local-ncc' or 'mind' at random points; 'windowed-ncc' at the samples of a lattice,
        a batch at once, on images resampled to one grid.
    points
        Of each image, a step and pair.
    regularity_points
        Of both images together, where exact Jacobians are taken.
    regularity_weight, diffusion_weight, barrier_weight, prior_weight
        As for instance optimisation.
    supervision_weight
        Of the squared error of simulated pairs, relative to what is to be found.
    dice_weight
        Of 1 - Dice of label maps, where both images have one.
    window
        Standard deviation of the windows of 'local-ncc' and 'windowed-ncc', in samples of a level.
    global_weight, bending_weight
        As for instance optimisation, on a lattice alone.
    node_mm, node_ratio
        Distance of the nodes of a lattice, and how many samples there are to a node along an axis.
    """

    similarity: str = 'local-ncc'
    points: int = 10_000
    regularity_points: int = 1000
    regularity_weight: float = 1.0
    diffusion_weight: float = 0.7
    barrier_weight: float = 3.0
    prior_weight: float = 0.01
    supervision_weight: float = 1.0
    dice_weight: float = 0.0
    window: float = 1.4
    global_weight: float = 0.3
    bending_weight: float = 1.0
    node_mm: float = 4.0
    node_ratio: int = 2

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise UsageError(
                f'There is no similarity "{self.similarity}"; expected one of '
                f'{", ".join(SIMILARITIES)}.'
            )
        for one in fields(self)[1:]:
            least = 2 if one.name.endswith('points') else 0.0
            _check('loss', one.name, getattr(self, one.name), _LEAST.get(one.name, least))

    @property
    def on_lattice(self) -> bool:
        """Whether a step looks at a lattice rather than at random points."""
        return self.similarity == 'windowed-ncc'

    @property
    def sample_mm(self) -> float:
        """Distance of two samples of a lattice."""
        return self.node_mm / self.node_ratio

    @classmethod
    def of(cls, settings: OptimisationSettings) -> Loss:
        """That of instance optimisation, its windows replaced by what single points can show.

        A step of training sees many pairs and takes fewer points of each: their number is its own.
        """
        known = {one.name for one in fields(cls)} & set(asdict(settings)) - {'regularity_points'}
        found = {name: getattr(settings, name) for name in known}
        if found['similarity'] == 'windowed-ncc':
            found['similarity'] = 'local-ncc'
        return cls(**found)

    def for_points(self, settings: OptimisationSettings) -> OptimisationSettings:
        """``settings`` with what this says."""
        known = {one.name for one in fields(self)} & set(asdict(settings))
        return replace(settings, **{name: getattr(self, name) for name in known})


@dataclass(frozen=True)
class Schedule:
    """How the weights are moved.

    Parameters
    ----------
    epochs, steps_per_epoch, batch_size
        Passes, steps of each, and pairs of each step on each device.
    learning_rate
        Of Adam.
    learning_rate_step
        Epochs after which it is halved, again and again; 0 for never.
    warm_up
        Steps in which it rises from nothing.
    clip
        Largest norm of a gradient; 0 for any.
    average
        Decay of the moving average of the weights, which is what is kept; 0 for none.
    precision
        Of the encoder: 'no' (float32), 'bf16' or 'fp16'; maps and losses stay in float32.
    seed
        Of all random draws.
    eval_every
        Epochs between validations; -1 for never.
    save_every
        Epochs between states on disk.
    joint
        Whether coarse stages move too, each with the same loss.
    """

    epochs: int = 100
    steps_per_epoch: int = 100
    batch_size: int = 1
    learning_rate: float = 1e-4
    learning_rate_step: int = 0
    warm_up: int = 100
    clip: float = 1.0
    average: float = 0.999
    precision: str = 'no'
    seed: int = 0
    eval_every: int = 5
    save_every: int = 1
    joint: bool = False

    def __post_init__(self) -> None:
        for name in ('epochs', 'steps_per_epoch', 'batch_size', 'save_every'):
            _check('training', name, getattr(self, name), 1)
        for name in ('learning_rate_step', 'warm_up', 'seed'):
            _check('training', name, getattr(self, name), 0)
        _check('training', 'learning_rate', self.learning_rate, 0.0)
        _check('training', 'clip', self.clip, 0.0)
        _check('training', 'average', self.average, 0.0, 1 - 1e-9)
        if not self.learning_rate > 0:
            raise UsageError(f'learning_rate is {self.learning_rate}; expected a number above 0.')
        if self.eval_every != -1:
            _check('training', 'eval_every', self.eval_every, 1)
        if not isinstance(self.joint, bool):
            raise UsageError(f'joint is {self.joint!r} in [training]; expected true or false.')
        if self.precision not in PRECISIONS:
            raise UsageError(
                f'precision is {self.precision!r}; expected one of {", ".join(PRECISIONS)}.'
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        free = ('epochs', 'eval_every', 'save_every')
        found = {name: value for name, value in asdict(self).items() if name not in free}
        if not self.joint:
            # States that were written before there were stages go on.
            del found['joint']
        return found

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0.

        >>> Schedule(learning_rate=1.0, warm_up=4, learning_rate_step=1, steps_per_epoch=8).rate(8)
        0.5
        """
        rising = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        epoch = step // self.steps_per_epoch
        halved = epoch // self.learning_rate_step if self.learning_rate_step else 0
        return self.learning_rate * rising * 0.5**halved
