"""Two images made ready for an affine search: crops, block means, features, points to compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from ..errors import InputDataError
from ..geometry import Grid

SPACINGS = (4, 2, 1)
"""Spacings of the levels, coarse to fine, in units of the finest."""

POINTS = (4_000, 16_000, 40_000)
"""At most so many points of each image are compared at each level."""

RIM_VOXELS = 2
"""Background compared around a mask, in voxels of a level."""

LOCAL_SIGMA = 2.0
"""Reach of the local normalisation, in units of the finest spacing."""

LOCAL_FLOOR = 0.05
"""Added to the local spread, so that noise in flat places stays small; intensities are 0 to 1."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One image of a pair, checked.

    ``inside`` is its mask, or true everywhere where it is not ``masked``; ``excluded`` marks
    voxels that say nothing (a lesion), or is None; ``name`` is for messages.
    """

    data: np.ndarray
    grid: Grid
    inside: np.ndarray
    excluded: np.ndarray | None
    masked: bool
    name: str

    @classmethod
    def checked(
        cls,
        data: np.ndarray,
        grid: Grid,
        mask: np.ndarray | None,
        excluded: np.ndarray | None,
        name: str,
    ) -> Subject:
        """Raise InputDataError where shapes differ or nothing is left inside the mask."""
        inside = np.ones(grid.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        excluded = None if excluded is None else np.asarray(excluded, dtype=bool)
        for what, array in (('image', data), ('mask', inside), ('exclusion mask', excluded)):
            if array is not None and array.shape != grid.shape:
                raise InputDataError(
                    f'The {name} {what} has the shape {array.shape}; expected {grid.shape}, that '
                    'of its grid. Give image and masks on the same voxels.'
                )
        left = inside if excluded is None else inside & ~excluded
        if not left.any():
            raise InputDataError(
                f'The {name} mask has {np.count_nonzero(inside)} voxels, none of them free of the '
                'exclusion mask; expected some to align. Give another mask or none.'
            )
        return cls(data, grid, inside, excluded, mask is not None, name)

    @property
    def width_mm(self) -> float:
        """Side of the cube that has the volume of the mask."""
        return float(np.cbrt(np.count_nonzero(self.inside) * self.grid.voxel_volume_mm3))

    def center_mm(self) -> np.ndarray:
        """Centre of the mask, or of the brightness where there is none, world mm, (3,)."""
        every = (slice(None, None, 2),) * 3
        weights = self.inside[every].astype(float)
        if not self.masked:
            seen = self.data[every].astype(float)
            low, high = np.percentile(seen, [1, 99])
            weights = np.clip(seen, low, high) - low + 1e-9
        if not weights.any():
            return self.grid.to_world(np.argwhere(self.inside).mean(axis=0))
        return self.grid.to_world(2 * np.array(ndimage.center_of_mass(weights)))


@dataclass(frozen=True, eq=False)
class Level:
    """One image at one resolution.

    Parameters
    ----------
    volumes
        C features, then the gradient of each along the world's axes, per mm: (4 C, X, Y, Z).
    excluded
        Share of each voxel that says nothing, (1, X, Y, Z), or None.
    grid
        Grid of the volumes: a crop around the mask, where there is one.
    view
        Grid of the whole image: beyond it nothing is known.
    points
        Where to compare, homogeneous world mm, (4, N).
    values, slopes
        Features at the points, (C, N), and their gradients, (3 C, N).
    """

    volumes: torch.Tensor
    excluded: torch.Tensor | None
    grid: Grid
    view: Grid
    points: torch.Tensor
    values: torch.Tensor
    slopes: torch.Tensor

    def read(self, maps: np.ndarray, points: torch.Tensor, count: int) -> torch.Tensor:
        """The first ``count`` volumes at ``points`` (4, N) mapped by ``maps``: (B, count, N)."""
        return _read(self.volumes[:count], self.grid, maps, points)

    def known(self, maps: np.ndarray, points: torch.Tensor) -> torch.Tensor:
        """How much is known at mapped points, (B, N) in [0, 1].

        1 inside the field of view, falling to 0 at its edge, and 0 where voxels are excluded.
        """
        extent = np.array(self.view.shape) * self.view.spacing
        to_mm = np.diag([*self.view.spacing, 1.0]) @ self.view.inverse_affine
        to_mm[:3, 3] += self.view.spacing / 2
        where = upper_rows(to_mm @ maps) @ points
        depth = torch.minimum(where, single(extent)[:, None] - where).amin(dim=1)
        known = (depth / float(self.grid.spacing.min())).clamp(0, 1)
        if self.excluded is not None:
            known = known * (1 - _read(self.excluded, self.grid, maps, points)[:, 0])
        return known


def single(array: np.ndarray) -> torch.Tensor:
    """A single-precision tensor of an array."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def upper_rows(maps: np.ndarray) -> torch.Tensor:
    """The upper three rows of maps (B, 4, 4), single precision."""
    return single(maps[:, :3])


def _read(
    volumes: torch.Tensor, grid: Grid, maps: np.ndarray, points: torch.Tensor
) -> torch.Tensor:
    """Trilinear, 0 outside of the grid."""
    last = np.maximum(np.array(grid.shape) - 1, 1)
    unit = grid.inverse_affine.copy()
    unit[:3] *= (2 / last)[:, None]
    unit[:3, 3] -= 1
    unit[:3] = unit[2::-1]
    where = (upper_rows(unit @ maps) @ points).transpose(1, 2)[:, None, None]
    batch = volumes.expand(len(maps), *volumes.shape)
    return functional.grid_sample(batch, where, align_corners=True)[:, :, 0, 0]


def pyramid(
    subject: Subject,
    other_masked: bool,
    finest_mm: float,
    rng: np.random.Generator,
    by_depth: bool = False,
) -> list[Level]:
    """The levels of one image, coarse to fine.

    Where both images of the pair are masked, what lies outside of the mask is zero and a rim of
    it is compared too. Where one is, what surrounds it may be a skull in one and nothing in the
    other: its points keep away from the mask's edge. The coarsest level has the intensity as its
    only feature, the others, where edges can be compared, the locally normalised intensity too.
    ``by_depth`` puts the depth in the mask in the place of the intensity, but for the coarsest
    level, where the pose is chosen and both are compared.
    """
    both_masked = subject.masked and other_masked
    reach = (RIM_VOXELS + 1) * finest_mm * max(SPACINGS)
    box, grid = _crop(subject, reach)
    soft = subject.inside[box].astype(np.float32)
    excluded = None if subject.excluded is None else subject.excluded[box].astype(np.float32)
    values = _normalised(subject, box)
    if both_masked:
        values *= soft
    levels, depth = [], None
    for factor, count in zip(SPACINGS[::-1], POINTS[::-1], strict=True):
        blocks = _blocks(grid, finest_mm * factor)
        values, soft = _block_mean(values, blocks), _block_mean(soft, blocks)
        excluded = None if excluded is None else _block_mean(excluded, blocks)
        grid = _coarser(grid, blocks, values.shape)
        if by_depth:
            depth = _depth(soft, grid) if depth is None else _block_mean(depth, blocks)
        coarsest = factor == max(SPACINGS)
        features = [values] if depth is None or coarsest else []
        features += [] if depth is None else [depth]
        if factor < max(SPACINGS) and subject.masked == other_masked:
            weight = soft if both_masked else np.ones_like(soft)
            features.append(_local(values, weight, LOCAL_SIGMA * finest_mm / grid.spacing))
        region = _region(soft, subject.masked, other_masked)
        if excluded is not None and (region & (excluded < 0.5)).any():
            region &= excluded < 0.5
        index = _scattered(region, count, rng)
        levels.append(_level(features, excluded, index, grid, subject.grid))
    return levels[::-1]


def _depth(soft: np.ndarray, grid: Grid) -> np.ndarray:
    """Millimetres to the border of a mask, of which ``soft`` is the share of each voxel."""
    inside = soft > 0.5 * soft.max()
    return ndimage.distance_transform_edt(inside, grid.spacing).astype(np.float32)


def _region(soft: np.ndarray, masked: bool, other_masked: bool) -> np.ndarray:
    """Voxels in which points are compared: the mask with its rim, or without its edge."""
    region = soft > 0.5 * soft.max()
    if masked and other_masked:
        return ndimage.binary_dilation(region, iterations=RIM_VOXELS)
    core = ndimage.binary_erosion(region, border_value=1) if masked else region
    return core if core.any() else region


def _crop(subject: Subject, reach_mm: float) -> tuple[tuple[slice, ...], Grid]:
    """The box around the mask and so far around it, as slices and as a grid."""
    lines = [subject.inside.any(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    on = [np.flatnonzero(line) for line in lines]
    pad = np.ceil(reach_mm / subject.grid.spacing).astype(int)
    lower = np.maximum([line[0] for line in on] - pad, 0)
    upper = np.minimum([line[-1] + 1 for line in on] + pad, subject.grid.shape)
    box = tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))
    return box, subject.grid.cropped(lower, upper)


def _normalised(subject: Subject, box: tuple[slice, ...]) -> np.ndarray:
    """The 1st and 99th percentile inside become 0 and 1; a little more is kept on both sides."""
    data, used = subject.data[box], subject.inside[box]
    if subject.excluded is not None:
        used = used & ~subject.excluded[box]
    some = (slice(None, None, 2),) * 3 if used[::2, ::2, ::2].sum() > 1000 else ...
    low, high = np.percentile(data[some][used[some]], [1, 99])
    if not high > low:
        raise InputDataError(
            f'The {subject.name} image is {low:g} (almost) everywhere inside its mask; expected '
            'contrast to align. Check the image and the mask.'
        )
    scaled = (data - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, -0.1, 1.5, out=scaled)


def _blocks(grid: Grid, spacing_mm: float) -> np.ndarray:
    """Voxels along each axis that make one; an axis that is coarse or short is left alone."""
    wanted = np.rint(spacing_mm / grid.spacing).astype(int)
    return np.maximum(np.minimum(wanted, np.array(grid.shape) // 4), 1)


def _block_mean(array: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Means of blocks of voxels; of those that are left, where the last block is not whole.

    >>> _block_mean(np.arange(5.0).reshape(5, 1, 1), np.array([2, 1, 1])).ravel()
    array([0.5, 2.5, 4. ])
    """
    for axis, block in enumerate(blocks):
        if block > 1:
            lines = np.moveaxis(array, axis, 0)
            whole = len(lines) // block * block
            means = sum(lines[i:whole:block] for i in range(block)) / block
            if whole < len(lines):
                means = np.concatenate([means, lines[whole:].mean(axis=0, keepdims=True)])
            array = np.moveaxis(means, 0, axis)
    return array


def _coarser(grid: Grid, blocks: np.ndarray, shape: tuple[int, int, int]) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world((blocks - 1) / 2)
    affine[:3, :3] *= blocks
    return Grid(shape, affine)


def _local(values: np.ndarray, weight: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Values (zero where their weight is) less the mean of what is near, over its spread."""

    def blur(array: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(array, sigma, truncate=3)

    amount = blur(weight) + 1e-3
    mean = blur(values) / amount
    variance = blur(values * values / np.maximum(weight, 0.1)) / amount - mean * mean
    return (values - mean * weight) / np.sqrt(np.maximum(variance, 0) + LOCAL_FLOOR**2)


def _scattered(region: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """One random place in each of at most ``count`` voxels of a region, indices (N, 3).

    Random places, because the centres of voxels of both grids may coincide, and interpolation
    then makes coinciding grids look better than they are.
    """
    index = np.argwhere(region)
    if len(index) > count:
        index = index[np.sort(rng.choice(len(index), count, replace=False, shuffle=False))]
    index = index + rng.uniform(-0.5, 0.5, index.shape)
    return np.clip(index, 0, np.array(region.shape) - 1)


def _level(
    features: list[np.ndarray],
    excluded: np.ndarray | None,
    index: np.ndarray,
    grid: Grid,
    view: Grid,
) -> Level:
    to_world = np.linalg.inv(grid.affine[:3, :3]).T.astype(np.float32)
    slopes = [np.tensordot(to_world, np.stack(np.gradient(f)), axes=1) for f in features]
    volumes = single(np.concatenate([np.stack(features), *slopes]))
    points = single(np.concatenate([grid.to_world(index).T, np.ones((1, len(index)))]))
    here = _read(volumes, grid, np.eye(4)[None], points)[0]
    values, gradients = here[: len(features)], here[len(features) :]
    unknown = None if excluded is None else single(excluded[None])
    return Level(volumes, unknown, grid, view, points, values, gradients)
