"""Pairs of chest CTs in two breath states, of which the truth is known everywhere.

A real CT is warped by a motion that experts marked in another person's lungs
(`nephi_pipe.motion`), and its lungs get the density that goes with the change of their volume.
"""

from __future__ import annotations

import numpy as np

from .errors import UsageError
from .geometry import Grid
from .images import Image, bounding_box, check_same_grid
from .interpolation import resample_array, spline_coefficients
from .metrics import displacement_on, random_points
from .motion import LandmarkMotion, fit_diffeomorphism
from .simulate import Diffeomorphism, KnownMap, SimulatedPair, scaled, staying_points
from .sliding import Depth, SlidingMap, sliding_flow
from .transforms import DisplacementField, resample

AIR_HU = -1000.0
_PARENCHYMA_HU, _SOLID_HU = -700.0, -200.0
"""Below the first all tissue holds air; above the second none does: blood keeps its density."""

_LATTICE_MM = 5.0
_EDGE_NODES = 3
"""Around the grid: the splines are mirrored at the lattice's faces."""

_BORDER_MM = 3.0
"""Where something slides, landmarks are at least so deep in the lungs."""

_PROBES = 2000


def breathing_pair(
    image: Image,
    lungs: Image,
    motion: LandmarkMotion,
    *,
    magnitude_mm: float | None = None,
    density: bool = True,
    sliding: float = 0.0,
    noise_hu: float = 10.0,
    landmarks: int = 300,
    seed: int = 0,
) -> SimulatedPair:
    """Let a chest CT breathe.

    The CT itself is the fixed image, in the breath state where ``motion`` starts. The moving image
    reads it through an explicit map (linear interpolation), of which the truth is the inverse. The
    map is smooth and invertible in the lungs and fades to the identity 90 mm away from them.

    Parameters
    ----------
    image
        A chest CT in HU.
    lungs
        Mask of its lungs on the same grid, above 0 inside (of one lung: give the motion of one).
    motion
        Landmarks in two states of any person; carried to the box of these lungs.
    magnitude_mm
        Mean length of the displacement in the lungs (of 2 000 random points, to 1 %); as the
        landmarks say when None.
    density
        Whether the density of lung tissue follows its volume, see `with_density`.
    sliding
        Part of the motion along the lungs' border, 0 to 1, that the chest wall does not take part
        in: with more than 0 the map is not continuous there.
    noise_hu
        Standard deviation of Gaussian noise on the moving image.
    landmarks
        Number of random points in the lungs (fewer where they leave the grid).
    seed
        Of all random numbers.

    Returns
    -------
    SimulatedPair
        The labels are the masks of the lungs (1 inside).

    Raises
    ------
    UsageError
        The magnitude or a part is out of range, or the mask is empty.
    InputDataError
        The mask lies on another grid.
    """
    _check(magnitude_mm, sliding)
    check_same_grid(lungs, image)
    grid, inside = image.grid, lungs.data > 0
    own = motion.carried_to(lungs)
    explicit = _explicit(own, magnitude_mm, random_points(grid, inside, _PROBES, seed))
    truth: KnownMap = explicit.inverse
    slide = depth = None
    if sliding:
        depth = Depth.of(lungs)
        slide = sliding_flow(explicit, depth, sliding)
        truth = SlidingMap(truth, slide, depth)
    to_fixed = _Dense(explicit, grid, slide, depth)
    at_voxels = DisplacementField(displacement_on(to_fixed, grid), grid)
    warped = resample(image, at_voxels, grid, 'linear', cval=float(image.data.min())).data
    moving_lungs = resample(Image(inside.astype(np.uint8), grid), at_voxels, grid, 'labels')
    if density:
        warped = with_density(warped, to_fixed.determinant(moving_lungs), moving_lungs.data > 0)
    noise = np.random.default_rng([seed, 1]).normal(scale=noise_hu, size=grid.shape)
    moving = np.maximum(warped + noise, image.data.min()).astype(np.float32)
    certain = inside if depth is None else inside & (depth.at(grid.points()) < -_BORDER_MM)
    points = staying_points(truth, grid, certain, landmarks, seed)
    return SimulatedPair(
        image,
        Image(moving, grid),
        lungs.with_data(inside.astype(np.uint8)),
        moving_lungs,
        points,
        truth.map_points(points),
        truth,
    )


def with_density(data: np.ndarray, determinant: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """HU of lungs whose volume changed: their mass stays, so ``HU + 1000`` follows ``1 / volume``.

    The rule of mass-preserving registration (Yin et al., Med Phys 36, 2009, eq. 3; Gorbunova et
    al., Med Image Anal 16, 2012), where air has -1000 HU and no mass. What holds no air, such as
    vessels, is not compressed and keeps its value; between -700 and -200 HU the two are mixed.

    Parameters
    ----------
    data
        HU after the warp, float, shape (X, Y, Z).
    determinant
        Volume before per volume after at each voxel: the determinant of the map from the warped
        image's voxels to the places they are read from.
    lungs
        Where the rule holds, bool.

    >>> air_filled = np.full((1, 1, 1), -800.0)
    >>> float(with_density(air_filled, np.full((1, 1, 1), 0.5), np.ones((1, 1, 1), bool))[0, 0, 0])
    -900.0
    """
    air_filled = np.clip((_SOLID_HU - data) / (_SOLID_HU - _PARENCHYMA_HU), 0, 1)
    factor = 1 + air_filled * (determinant - 1)
    return np.where(lungs, AIR_HU + (data - AIR_HU) * factor, data)


def _check(magnitude_mm: float | None, sliding: float) -> None:
    if magnitude_mm is not None and not magnitude_mm > 0:
        raise UsageError(
            f'magnitude_mm is {magnitude_mm:g}; expected a length above 0, for example 12.'
        )
    if not 0 <= sliding <= 1:
        raise UsageError(f'sliding is {sliding:g}; expected a part from 0 to 1.')


def _explicit(
    motion: LandmarkMotion, magnitude_mm: float | None, probes: np.ndarray
) -> Diffeomorphism:
    """From the end state to the start; its inverse moves the probes as far as is wanted."""
    back = fit_diffeomorphism(motion.reversed())
    if magnitude_mm is None:
        return back

    def mean_length(phi: Diffeomorphism) -> float:
        return float(np.linalg.norm(phi.inverse_points(probes) - probes, axis=-1).mean())

    return scaled(back, magnitude_mm, mean_length)


class _Dense:
    """A map for whole images: read from a lattice by cubic splines, to some micrometres."""

    def __init__(
        self, phi: Diffeomorphism, grid: Grid, slide: Diffeomorphism | None, depth: Depth | None
    ) -> None:
        self._phi, self._slide, self._depth = phi, slide, depth
        self._lattice = _lattice_over(grid)
        points = self._lattice.points()
        displacement = phi.map_points(points) - points
        self._parts = [spline_coefficients(displacement[..., axis]) for axis in range(3)]

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map ``points`` (..., 3) of the grid, mm."""
        index = self._lattice.to_index(points)
        read = [resample_array(part, index, 3, prefilter=False) for part in self._parts]
        there = points + np.stack(read, axis=-1).astype(float)
        if self._depth is not None:
            out = self._depth.outside(there)
            there[out] = self._slide.map_points(there[out])
        return there

    def determinant(self, mask: Image) -> np.ndarray:
        """Determinant of the motion without its sliding in the voxels of a mask, 1 elsewhere."""
        box = bounding_box(mask.data)
        part = mask.grid.cropped([one.start for one in box], [one.stop for one in box])
        lattice = _lattice_over(part)
        logarithm = np.log(self._phi.jacobian_determinant(lattice.points()))
        whole = np.ones(mask.grid.shape, dtype=np.float32)
        index = lattice.to_index(part.points())
        whole[box] = np.exp(resample_array(logarithm.astype(np.float32), index, 3))
        return whole


def _lattice_over(grid: Grid) -> Grid:
    lattice = grid.resampled(_LATTICE_MM)
    return lattice.cropped((-_EDGE_NODES,) * 3, np.array(lattice.shape) + _EDGE_NODES)
