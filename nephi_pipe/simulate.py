"""Deformations and image pairs of which the truth is known.

A random map is a random smooth velocity (Gaussian noise smoothed by a Gaussian, held by a cubic
B-spline) followed for unit time in n equal steps ``x -> x + v(x)``. The number of steps is such
that no step stretches differences by more than a half (a bound from the spline's coefficients),
so every step, and with it the map, is a diffeomorphism of the whole space by the contraction
principle. Its derivative is that of the splines by the chain rule; its inverse undoes
the steps by fixed-point iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy import ndimage
from scipy.interpolate import NdBSpline

from .errors import UsageError
from .geometry import Grid
from .images import Image, foreground
from .metrics import displacement_on, random_points
from .transforms import DisplacementField, resample

_NODES_PER_WIDTH = 3
_ZERO_NODES = 8
"""Nodes beyond the noise: five that its smoothing reaches, three that stay zero."""
_CONTRACTION = 0.5
_INVERSE_TOLERANCE_MM = 1e-7
_PROBES = 20_000


@dataclass(frozen=True, eq=False)
class Diffeomorphism:
    """A smooth invertible map of the whole space; the identity far from its lattice.

    Parameters
    ----------
    lattice
        Where the spline's coefficients are; orthogonal axes, one spacing.
    velocity
        Coefficients of the velocity, RAS+ mm in unit time, shape ``lattice.shape + (3,)``; zero
        at the three outer nodes on each side.
    """

    lattice: Grid
    velocity: np.ndarray

    @cached_property
    def steps(self) -> int:
        """Number of steps, so that each one's derivative differs from I by at most a half."""
        return max(1, int(np.ceil(_stretch_bound(self.velocity, self.lattice) / _CONTRACTION)))

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map ``points`` (..., 3), mm."""
        points = np.asarray(points, dtype=float)
        for _ in range(self.steps):
            points = points + self._step(points)
        return points

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        """The points that ``map_points`` takes to ``points`` (..., 3), to better than 1e-4 mm."""
        shape = np.shape(points)
        points = np.array(points, dtype=float).reshape(-1, 3)
        for _ in range(self.steps):
            points = self._undo_step(points)
        return points.reshape(shape)

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """Derivative of the map at ``points`` (..., 3): matrices (..., 3, 3), exact."""
        points = np.asarray(points, dtype=float)
        total = np.broadcast_to(np.eye(3), (*points.shape, 3))
        for _ in range(self.steps):
            total = (np.eye(3) + self._step_derivative(points)) @ total
            points = points + self._step(points)
        return total

    def jacobian_determinant(self, points: np.ndarray) -> np.ndarray:
        """Determinant of the derivative at ``points`` (..., 3), shape (...), always positive."""
        return np.linalg.det(self.jacobian(points))

    def velocity_at(self, points: np.ndarray) -> np.ndarray:
        """The velocity at ``points`` (..., 3), mm in unit time."""
        return self.steps * self._step(np.asarray(points, dtype=float))

    @property
    def inverse(self) -> InverseDiffeomorphism:
        """The inverse map, with the same methods."""
        return InverseDiffeomorphism(self)

    @cached_property
    def _spline(self) -> NdBSpline:
        knots = tuple(np.arange(n + 4) - 2.0 for n in self.lattice.shape)
        return NdBSpline(knots, self.velocity / self.steps, 3)

    def _index(self, points: np.ndarray) -> np.ndarray:
        # Beyond the second node from the border the spline is zero: the same point serves for all.
        return np.clip(self.lattice.to_index(points), 1, np.array(self.lattice.shape) - 2)

    def _step(self, points: np.ndarray) -> np.ndarray:
        return self._spline(self._index(points))

    def _step_derivative(self, points: np.ndarray) -> np.ndarray:
        index = self._index(points)
        by_index = [self._spline(index, nu=nu) for nu in np.eye(3, dtype=int)]
        return np.stack(by_index, axis=-1) @ self.lattice.inverse_affine[:3, :3]

    def _undo_step(self, target: np.ndarray) -> np.ndarray:
        """Solve ``x + v(x) = target``: the error is below the last change, as v contracts."""
        found = target.copy()
        moving = np.arange(len(target))
        while moving.size:
            better = target[moving] - self._step(found[moving])
            change = np.linalg.norm(better - found[moving], axis=-1)
            found[moving] = better
            moving = moving[change > _INVERSE_TOLERANCE_MM]
        return found


@dataclass(frozen=True, eq=False)
class InverseDiffeomorphism:
    """The inverse of a `Diffeomorphism`, with its methods."""

    inverse: Diffeomorphism

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map ``points`` (..., 3), mm, to better than 1e-4 mm."""
        return self.inverse.inverse_points(points)

    def inverse_points(self, points: np.ndarray) -> np.ndarray:
        """The points that ``map_points`` takes to ``points`` (..., 3)."""
        return self.inverse.map_points(points)

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """Derivative of the map at ``points`` (..., 3): matrices (..., 3, 3)."""
        return np.linalg.inv(self.inverse.jacobian(self.map_points(points)))

    def jacobian_determinant(self, points: np.ndarray) -> np.ndarray:
        """Determinant of the derivative at ``points`` (..., 3), shape (...), always positive."""
        return 1 / self.inverse.jacobian_determinant(self.map_points(points))


class KnownMap(Protocol):
    """What a truth can do: map points (..., 3) in mm, and undo it."""

    def map_points(self, points: np.ndarray) -> np.ndarray: ...

    def inverse_points(self, points: np.ndarray) -> np.ndarray: ...

    def jacobian_determinant(self, points: np.ndarray) -> np.ndarray: ...


def random_diffeomorphism(
    grid: Grid, *, magnitude_mm: float = 12.0, smoothness_mm: float = 30.0, seed: int = 0
) -> Diffeomorphism:
    """A random smooth map with a known derivative and inverse.

    Parameters
    ----------
    grid
        Where it deforms; it fades to the identity outside. The same seed deforms the voxels in
        the same way wherever the grid lies in the world.
    magnitude_mm
        The largest displacement in the grid's field of view (of 20 000 random points, to 1 %).
    smoothness_mm
        Full width at half maximum of the Gaussian that smooths the velocity.
    seed
        Of the random numbers.

    Raises
    ------
    UsageError
        A length is not positive.

    >>> grid = Grid((40, 40, 40), np.diag([4.0, 4.0, 4.0, 1.0]))
    >>> phi = random_diffeomorphism(grid, magnitude_mm=10.0, smoothness_mm=40.0, seed=1)
    >>> x = np.array([[60.0, 80.0, 70.0]])
    >>> bool(np.allclose(phi.inverse_points(phi.map_points(x)), x, atol=1e-4))
    True
    """
    if not (magnitude_mm > 0 and smoothness_mm > 0):
        raise UsageError(
            f'magnitude_mm is {magnitude_mm:g} and smoothness_mm is {smoothness_mm:g}; expected '
            'lengths above 0. Choose, for example, 12 and 30.'
        )
    rng = np.random.default_rng(seed)
    lattice = _lattice(grid, smoothness_mm)
    noise = np.zeros((*lattice.shape, 3))
    inner = (slice(_ZERO_NODES, -_ZERO_NODES),) * 3
    noise[inner] = rng.normal(size=noise[inner].shape)
    # The B-spline itself smooths with a variance of a third of a node.
    sigma = np.sqrt((_NODES_PER_WIDTH / np.sqrt(8 * np.log(2))) ** 2 - 1 / 3)
    smooth = ndimage.gaussian_filter(noise, sigma, mode='constant', axes=(0, 1, 2))
    phi = Diffeomorphism(lattice, smooth @ lattice.direction.T)
    points = random_points(grid, np.ones(grid.shape, bool), _PROBES, seed)
    return scaled(
        phi,
        magnitude_mm,
        lambda phi: float(np.linalg.norm(phi.map_points(points) - points, axis=-1).max()),
    )


def _lattice(grid: Grid, smoothness_mm: float) -> Grid:
    nodes = grid.resampled(smoothness_mm / _NODES_PER_WIDTH)
    reach = _NODES_PER_WIDTH + _ZERO_NODES
    return nodes.cropped((-reach,) * 3, np.array(nodes.shape) + reach)


def scaled(
    phi: Diffeomorphism, magnitude_mm: float, measure: Callable[[Diffeomorphism], float]
) -> Diffeomorphism:
    """The velocity multiplied so that what ``measure`` says of the map is as wanted, to 1 %."""
    found = np.linalg.norm(phi.velocity, axis=-1).max()
    for _ in range(20):
        phi = replace(phi, velocity=phi.velocity * (magnitude_mm / found))
        found = measure(phi)
        if abs(found / magnitude_mm - 1) < 0.01:
            break
    return phi


def _stretch_bound(velocity: np.ndarray, lattice: Grid) -> float:
    """A bound on the norm of the velocity's derivative.

    A derivative of a cubic B-spline along an axis is a weighted mean of differences of its
    coefficients along that axis (de Boor), so it is no larger than the largest of them.
    """
    largest = [np.linalg.norm(np.diff(velocity, axis=i), axis=-1).max() for i in range(3)]
    return float(np.linalg.norm(largest / lattice.spacing))


@dataclass(frozen=True, eq=False)
class SimulatedPair:
    """Two images of one object and the truth between them.

    Parameters
    ----------
    fixed, moving
        The images, on one grid.
    fixed_labels, moving_labels
        Their label maps, None when none were given.
    fixed_landmarks, moving_landmarks
        Corresponding points (N, 3), RAS+ mm.
    truth
        Maps fixed points to moving points.
    """

    fixed: Image
    moving: Image
    fixed_labels: Image | None
    moving_labels: Image | None
    fixed_landmarks: np.ndarray
    moving_landmarks: np.ndarray
    truth: KnownMap


def simulated_pair(
    image: Image,
    labels: Image | None = None,
    *,
    magnitude_mm: float = 12.0,
    smoothness_mm: float = 30.0,
    gamma: float = 1.3,
    bias: float = 0.2,
    noise: float = 0.03,
    landmarks: int = 1000,
    seed: int = 0,
) -> SimulatedPair:
    """Warp ``image`` by a known random map and give the result another contrast.

    The image itself is the fixed one. The moving image reads it through an explicit map (linear
    interpolation; nearest neighbour for labels), of which the truth is the inverse.

    Parameters
    ----------
    image, labels
        An image and, on the same grid, its label map.
    magnitude_mm, smoothness_mm
        As for `random_diffeomorphism`.
    gamma
        Exponent of the moving intensities, relative to their range (minimum to 99.5th percentile).
    bias
        Largest logarithm of a smooth factor on the moving intensities.
    noise
        Standard deviation of Gaussian noise inside the moving foreground, relative to the range;
        a background of one exact value stays so.
    landmarks
        Number of random points in the fixed foreground (fewer where they leave the grid).
    seed
        Of all random numbers.
    """
    grid = image.grid
    explicit = random_diffeomorphism(
        grid, magnitude_mm=magnitude_mm, smoothness_mm=smoothness_mm, seed=seed
    )
    truth = explicit.inverse
    at_voxels = DisplacementField(displacement_on(explicit, grid), grid)
    inside = foreground(image)
    sources = [image, image.with_data(inside.astype(np.uint8)), labels]
    kinds = ['linear', 'labels', 'labels']
    warped, warped_inside, warped_labels = (
        source and resample(source, at_voxels, grid, kind, cval=float(source.data.min()))
        for source, kind in zip(sources, kinds, strict=True)
    )
    rng = np.random.default_rng([seed, 1])
    low, high = float(image.data.min()), float(np.percentile(image.data[inside], 99.5))
    scaled = np.clip((warped.data - low) / (high - low), 0, None) ** gamma
    scaled *= np.exp(_bias_field(grid.shape, bias, rng))
    scaled += noise * rng.normal(size=grid.shape) * (warped_inside.data > 0)
    moving = np.clip(low + (high - low) * scaled, low, None).astype(np.float32)
    points = staying_points(truth, grid, inside, landmarks, seed)
    return SimulatedPair(
        image, Image(moving, grid), labels, warped_labels, points, truth.map_points(points), truth
    )


def _bias_field(shape: tuple[int, ...], largest: float, rng: np.random.Generator) -> np.ndarray:
    nodes = 4
    coefficients = rng.normal(size=(nodes,) * 3)
    index = np.meshgrid(*(np.linspace(0, nodes - 1, n) for n in shape), indexing='ij')
    logarithm = ndimage.map_coordinates(coefficients, index, order=3, mode='nearest')
    return logarithm * (largest / np.abs(logarithm).max())


def staying_points(
    truth: KnownMap, grid: Grid, mask: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Random points of the mask that stay within the grid, at most ``count``."""
    points = random_points(grid, mask, 2 * count, seed)
    index = grid.to_index(truth.map_points(points))
    stays = ((index >= 0) & (index <= np.array(grid.shape) - 1)).all(axis=-1)
    return points[stays][:count]
