"""One registration by one method, in a process of its own, saved as every method saves it.

    python -m benchmarks.field_peers METHOD FIXED MOVING FOLDER --threads N

writes ``warp.nii`` (the displacement at the voxels of the fixed image, an ITK field),
``affine.mat`` (the affine that follows it) and ``phases.json`` into FOLDER, for NePhi its field
file too. One map in one form, so that fields of all kinds cost alike to write and are scored
alike.
"""

from __future__ import annotations

import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from . import peers

NODE_MM, VOXEL_NODE_MM = 1.75, 1.0
"""A field of coordinates is evaluated at nodes so far apart and read at voxels by the cubic spline
through them: of NePhi's forward pass, the roughest, to .001 mm on average and .01 mm at most of
4,000 random points. A voxel field may bend more between its nodes, and costs less there."""


def save_with_field(registration: Any, folder: Path) -> dict:
    """As every method saves its map, and NePhi's field file beside it."""
    seconds = registration.provenance['seconds']
    phases = save(registration, folder, seconds['affine'], seconds['total'])
    registration.save_field(folder / 'field.safetensors')
    return phases


nephi = partial(peers.nephi, save=save_with_field)


def voxel(fixed: Path, moving: Path, folder: Path, threads: int) -> dict:
    """A lattice of free displacements in the place of NePhi's networks."""
    from nephi_pipe.images import load_image

    from .voxel_field import register

    images = load_image(fixed), load_image(moving)
    started = time.monotonic()
    registration, affine_s = register(*images, threads)
    return save(registration, folder, affine_s, time.monotonic() - started, VOXEL_NODE_MM)


def idir(fixed: Path, moving: Path, folder: Path, threads: int) -> dict:
    """IDIR by its published recipe, after NePhi's affine."""
    from nephi_pipe.images import load_image
    from nephi_pipe.threads import torch_threads

    from .idir import displacement, optimise
    from .voxel_field import prepared_pair

    images = load_image(fixed), load_image(moving)
    with torch_threads(threads):
        started = time.monotonic()
        prepared, affine = prepared_pair(*images)
        aligned = time.monotonic()
        network, losses = optimise(*prepared, affine)
        found = time.monotonic()
        vectors = displacement(network, prepared[0].grid, prepared[0].mask)
        ended = time.monotonic()
    write(folder, vectors, prepared[0].grid, affine)
    return _phases(aligned - started, found - aligned, ended - found, len(losses))


def save(
    registration: Any, folder: Path, affine_s: float, total_s: float, node_mm: float = NODE_MM
) -> dict:
    """Write a registration by a field of coordinates; what is told of it."""
    started = time.monotonic()
    vectors = at_voxels(registration, node_mm)
    dense_s = time.monotonic() - started
    write(folder, vectors, registration.fixed_grid, registration.affine)
    return _phases(affine_s, total_s - affine_s, dense_s, len(registration.history))


def at_voxels(registration: Any, node_mm: float = NODE_MM) -> np.ndarray:
    """The displacement at the fixed voxels, float32 mm (X, Y, Z, 3)."""
    import torch

    from nephi_pipe.dense import FieldSide
    from nephi_pipe.field.lattice import build_lattice

    grid = registration.fixed_grid
    side = FieldSide(registration.field, registration.frame, np.eye(4), False)
    near = side.frame_lattice(node_mm)

    def read(index: torch.Tensor) -> torch.Tensor:
        points = grid.to_world(index.numpy())
        return torch.from_numpy(side.displacement_from(near, points)).float()

    every = np.maximum(node_mm / grid.spacing, 1)
    return build_lattice(read, *side.box(grid), every, grid.shape).read().numpy()


def write(folder: Path, vectors: np.ndarray, grid: Any, affine: np.ndarray) -> None:
    """The map as files: a displacement on the fixed grid, and the affine after it."""
    from nephi_pipe.itk import write_field_image

    write_field_image(folder / 'warp.nii', vectors, grid)
    np.savetxt(folder / 'affine.mat', affine)


METHODS = {
    'nephi': nephi,
    'nephi-none': partial(nephi, weights='none'),
    'nephi-0': partial(nephi, steps=0),
    'nephi-20': partial(nephi, steps=20),
    'voxel': voxel,
    'idir': idir,
    'greedy': peers.greedy,
}


def _phases(affine_s: float, deformable_s: float, dense_s: float, steps: int) -> dict:
    """``dense_s``: from the field to its displacement at every voxel."""
    return {
        'affine_s': affine_s,
        'deformable_s': deformable_s,
        'dense_s': dense_s,
        'steps': steps,
        'versions': {name: version(name) for name in ('nephi-pipe', 'torch')},
    }


if __name__ == '__main__':
    peers.main(METHODS, __doc__)
