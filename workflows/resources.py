"""How much memory the nodes of a pair need.

Measured on pairs of 2 x 0.54 and 2 x 15 million voxels (2 mm and 0.87 mm): a process that does
nothing but register reaches 1.2 and 2.1 GB; a worker that ran all nodes of four such pairs in turn
1.5 and 3.5 GB, since a process keeps some of what it has freed. The constants follow the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from nipype.interfaces.base import Interface
from nipype.pipeline.engine import Node
from nipype.utils.ram_estimator import RamEstimator

BASE_GB = 1.5
"""The interpreter with torch, and what an optimisation needs whatever the images' resolution."""

BYTES_PER_VOXEL = 64
"""Of both images: the image, its mask, its features, and one dense field at a time."""

SHARES = {'affine_init': 0.4, 'optimize': 1.0, 'transforms': 1.0, 'evaluate': 0.6, 'report': 0.6}
"""What each node needs of a pair's memory."""

USUAL_SHAPE = (256, 256, 200)
"""A T1w scan of 1 mm; assumed where the images are not known yet."""


def estimate_memory_gb(
    shape_fixed: Sequence[int] = USUAL_SHAPE, shape_moving: Sequence[int] = USUAL_SHAPE
) -> float:
    """Peak memory of registering one pair, in GB of 10^9 bytes, as everything that plans with it.

    Parameters
    ----------
    shape_fixed, shape_moving
        Voxels along each axis of the two images.

    >>> estimate_memory_gb((288, 288, 181), (288, 288, 181))
    3.42
    """
    voxels = prod(shape_fixed) + prod(shape_moving)
    return round(BASE_GB + BYTES_PER_VOXEL * voxels / 1e9, 2)


def pair_node(
    interface: Interface, name: str, mem_gb: float | None = None, n_procs: int = 1
) -> Node:
    """A node of a pair that declares its share of ``mem_gb``, or of what its images ask for."""
    share = SHARES[name]
    node = Node(interface, name, n_procs=n_procs, mem_gb=share * (mem_gb or estimate_memory_gb()))
    if mem_gb is None and 'fixed_image' in interface.inputs.copyable_trait_names():
        # The estimator divides by 1024^3.
        per_voxel = share * BYTES_PER_VOXEL * 1024**3 / 1e9
        node.ram_estimator = RamEstimator(
            {'fixed_image': per_voxel, 'moving_image': per_voxel},
            overhead_gb=share * BASE_GB,
            min_gb=0.0,
            max_gb=float('inf'),
        )
    return node
