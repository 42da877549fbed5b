"""Motions that landmarks tell, carried to another body and made a smooth invertible map.

The map is the flow of a stationary velocity, a cubic B-spline with few coefficients, as in
`nephi_pipe.simulate`. It is fitted by penalised least squares: the squared Laplacian of the
coefficients is the penalty (P-splines, Eilers and Marx, Stat Sci 11, 1996), and what the flow
leaves of the displacements is fitted again, a few times.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.fft import dctn, idctn
from scipy.interpolate import NdBSpline
from scipy.spatial import cKDTree

from .errors import InputDataError, UsageError
from .geometry import Grid, apply_affine
from .images import Image
from .reading import read_table
from .simulate import Diffeomorphism

SPACING_MM = 20.0
"""Distance of the velocity's nodes: that of 300 landmarks in two lungs."""

_NEAR_MM, _FAR_MM = 20.0, 90.0
"""From the lungs: up to where the velocity is free, and from where it is zero."""

_STIFFNESS = 0.03
_SMALLEST_PENALTY = 1e-6
"""Of a constant displacement, which costs nothing else."""

_ROUNDS = 5
_ZERO_NODES = 4
_SEEDS = 4000
_BOX_PERCENTILES = (0.5, 99.5)
"""Of the lungs' voxels along an axis: a stray voxel moves no box."""


@dataclass(frozen=True, eq=False)
class LandmarkMotion:
    """Where points of the lungs are in two states, and where the lungs are in the first.

    Parameters
    ----------
    start, end
        Corresponding points (N, 3), RAS+ mm.
    lungs
        Points all over the lungs in the state of ``start`` (M, 3), RAS+ mm.
    """

    start: np.ndarray
    end: np.ndarray
    lungs: np.ndarray

    def half(self, side: str) -> LandmarkMotion:
        """What is on one 'side' of the middle of the lungs, 'left' or 'right' of the person."""
        if side not in ('left', 'right'):
            raise UsageError(f'There is no side "{side}"; expected "left" or "right".')
        middle = box_of(self.lungs).mean(axis=0)[0]

        def chosen(points: np.ndarray) -> np.ndarray:
            return (points[:, 0] > middle) == (side == 'right')

        own = chosen(self.start)
        return LandmarkMotion(self.start[own], self.end[own], self.lungs[chosen(self.lungs)])

    def carried_to(self, lungs: Image) -> LandmarkMotion:
        """The same motion in another person: box of the lungs to box of the lungs.

        Positions and displacements are scaled along the world's axes; both lungs are taken to be
        of persons who lie alike. A mask of one lung gets the motion of one (see `half`).

        Parameters
        ----------
        lungs
            Mask of the other's lungs in the state of ``start``.
        """
        target = lung_points(lungs)
        (low, high), (to_low, to_high) = box_of(self.lungs), box_of(target)
        scale = (to_high - to_low) / (high - low)
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = np.diag(scale), to_low - scale * low
        start, end = (apply_affine(affine, points) for points in (self.start, self.end))
        return LandmarkMotion(start, end, target)

    def reversed(self) -> LandmarkMotion:
        """From the end to the start; the lungs stay where they are known."""
        return LandmarkMotion(self.end, self.start, self.lungs)


def lung_points(lungs: Image) -> np.ndarray:
    """Positions of every voxel of a mask, RAS+ mm, (N, 3); UsageError where there is none."""
    index = np.argwhere(lungs.data)
    if not len(index):
        raise UsageError(f'{lungs.name} is empty; expected a mask of lungs.')
    return lungs.grid.to_world(index)


def read_motion(
    path: str | os.PathLike, lungs: Image, start: str = 'exp', end: str = 'insp'
) -> LandmarkMotion:
    """Read landmarks of two states from one table, columns such as exp_x, exp_y, exp_z.

    Parameters
    ----------
    path
        Tab-separated, with a header; mm in the world of the mask.
    lungs
        Mask of the lungs in the state ``start``.
    start, end
        What the names of the columns begin with.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        A column is missing, a cell is no number, or there are less than four landmarks.
    """
    path = Path(path)
    header, *rows = read_table(path, 'a table of landmarks in two states') or [[]]
    names = [f'{state}_{axis}' for state in (start, end) for axis in 'xyz']
    if not set(names) <= set(header):
        raise InputDataError(
            f'"{path}" has the columns {", ".join(header) or "(none)"}; expected '
            f'{", ".join(names)}, mm. Rename or add them.'
        )
    columns = [header.index(name) for name in names]
    try:
        values = np.array([[float(row[column]) for column in columns] for row in rows])
    except (ValueError, IndexError):
        values = np.full((1, 6), np.nan)
    if len(values) < 4 or not np.isfinite(values).all():
        raise InputDataError(
            f'"{path}" lacks numbers or rows; expected at least four landmarks with six finite '
            'numbers each. Complete it.'
        )
    return LandmarkMotion(values[:, :3], values[:, 3:], lung_points(lungs))


def fit_diffeomorphism(motion: LandmarkMotion, stiffness: float = _STIFFNESS) -> Diffeomorphism:
    """A smooth invertible map that takes the landmarks of ``start`` about to those of ``end``.

    Free to move within 20 mm of the lungs and of the landmarks, it fades with distance and is the
    identity from 90 mm on.

    Parameters
    ----------
    motion
        What to fit.
    stiffness
        Weight of the penalty: larger is smoother and further from the landmarks.
    """
    seeds = np.concatenate([_some(motion.lungs), motion.start, motion.end])
    lattice = _lattice_around(seeds)
    solve = _Smoother(
        lattice, (motion.start + motion.end) / 2, _freedom(lattice, seeds), stiffness
    )
    phi = Diffeomorphism(lattice, np.zeros((*lattice.shape, 3)))
    for _ in range(_ROUNDS):
        left = motion.end - phi.map_points(motion.start)
        phi = replace(phi, velocity=phi.velocity + solve(left))
    return phi


class _Smoother:
    """Coefficients of the smooth spline that is close to vectors given at scattered points.

    With the spline's values B c at the points and the penalty c' K c, the least squares are
    ``c = K^-1 B' (B K^-1 B' + 1)^-1 vectors``: a system as large as there are points. K, the
    squared Laplacian, is diagonal for cosines.
    """

    def __init__(
        self, lattice: Grid, points: np.ndarray, freedom: np.ndarray, stiffness: float
    ) -> None:
        knots = tuple(np.arange(n + 4) - 2.0 for n in lattice.shape)
        basis = NdBSpline.design_matrix(lattice.to_index(points), knots, 3)
        basis.resize(len(points), lattice.size)  # it ends with the last node that a point sees
        # A node takes its part of the unfaded spline, so that what fades is smooth too.
        values = basis.toarray().reshape(-1, *lattice.shape) * freedom
        waves = dctn(values, axes=(1, 2, 3), norm='ortho')
        waves /= stiffness * _roughness(lattice.shape) ** 2 + _SMALLEST_PENALTY
        shapes = idctn(waves, axes=(1, 2, 3), norm='ortho')
        gram = np.tensordot(values, shapes, axes=([1, 2, 3], [1, 2, 3]))
        self._weights = np.linalg.inv(gram + np.eye(len(points)))
        self._shapes = shapes * freedom

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Shape (X, Y, Z, 3) from vectors (N, 3)."""
        return np.tensordot(self._shapes, self._weights @ vectors, axes=(0, 0))


def _roughness(shape: tuple[int, ...]) -> np.ndarray:
    """Eigenvalues of the negative Laplacian of a lattice that is mirrored at its faces."""
    along = [2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in shape]
    return along[0][:, None, None] + along[1][:, None] + along[2]


def _freedom(lattice: Grid, seeds: np.ndarray) -> np.ndarray:
    """1 near the seeds, 0 far from them and at the outer nodes, smooth between."""
    distance = cKDTree(seeds).query(lattice.points())[0]
    along = np.clip((_FAR_MM - distance) / (_FAR_MM - _NEAR_MM), 0, 1)
    return along**2 * (3 - 2 * along)


def _lattice_around(points: np.ndarray) -> Grid:
    reach = _FAR_MM + _ZERO_NODES * SPACING_MM
    low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = low
    return Grid(tuple(np.ceil((high - low) / SPACING_MM).astype(int) + 1), affine)


def box_of(points: np.ndarray) -> np.ndarray:
    """Lower and upper end of points along the axes, (2, 3) mm."""
    return np.percentile(points, _BOX_PERCENTILES, axis=0)


def _some(points: np.ndarray) -> np.ndarray:
    return points[:: max(1, len(points) // _SEEDS)]
