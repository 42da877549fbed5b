"""Where the brain is: recognise a skull-stripped scan, or make a mask with deepbet."""

from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
from scipy import ndimage

from .errors import InputDataError
from .images import Image, foreground

BRAIN_LITRES = 2.4
"""No brain with its cerebrospinal fluid is larger; an adult's head is 3.5 litres or more."""

CUT_CM2 = 30.0
"""A neck cut by the edge of the picture is larger; a brain touches an edge with less."""

SKULL_DIP = 0.2
"""How much darker than the layers around it the skull is, as a share of the brain's intensity."""


def is_skull_stripped(image: Image) -> bool:
    """Whether ``image`` shows a brain only, on a background of one exact value.

    A head may have an exact background too. At least two of these must hold: what is not
    background has the volume of a brain, no large cut by the edges of the picture, and no dark
    shell (the skull) below its surface. Works for T1w and T2w scans of human brains.
    """
    background = _exact_background(image.data)
    if background is None:
        return False
    step = np.maximum(np.rint(1.75 / image.grid.spacing), 1).astype(int)
    data = image.data[:: step[0], :: step[1], :: step[2]]
    spacing = image.grid.spacing * step
    inside = ndimage.binary_fill_holes(data != background)
    litres = inside.sum() * np.prod(spacing) / 1e6
    small = litres < BRAIN_LITRES
    whole = _largest_cut_cm2(inside, spacing) < CUT_CM2
    bare = _dark_shell(data, inside, spacing) < SKULL_DIP
    return bool(sum((small, whole, bare)) >= 2)


def brain_mask(image: Image, *, threads: int | None = None) -> Image:
    """Find the brain in a T1w scan of a whole head.

    The network is deepbet (Fisch et al., Computers in Biology and Medicine 2024), the extra
    ``brainmask`` of this package; its weights are part of its package. Runs on the CPU in about
    10 s with two threads and needs 1.2 GB.

    Parameters
    ----------
    image
        The scan.
    threads
        Threads of the computation; None leaves torch's setting.

    Returns
    -------
    Image
        bool, on the grid of ``image``.

    Raises
    ------
    InputDataError
        deepbet is not installed, or it finds no brain.
    """
    try:
        from deepbet import BrainExtraction
    except ImportError as error:
        raise InputDataError(
            f'{image.name} needs a brain mask and deepbet, which would make it, is not installed '
            f'({error}). Install it (pip install deepbet) or give a mask.'
        ) from error
    if threads:
        import torch

        torch.set_num_threads(threads)
    scan = nib.Nifti1Image(np.asarray(image.data, dtype=np.float32), image.grid.affine)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # torch.jit.load, in deepbet
            _, mask, _ = BrainExtraction(no_gpu=True).run(scan)
    except (AssertionError, ValueError) as error:
        raise InputDataError(
            f'deepbet found no brain in {image.name}; expected a T1w scan of a head. Check the '
            'scan and its orientation, or give a brain mask.'
        ) from error
    return Image(np.asarray(mask.dataobj) > 0.5, image.grid)


def find_brain(
    image: Image, *, method: str = 'none', whole_head: bool = False, threads: int | None = None
) -> tuple[np.ndarray, str]:
    """The part of a scan that a registration of brains looks at.

    Parameters
    ----------
    image
        The scan, skull-stripped or not.
    method
        'deepbet' finds the brain of a scan that has its skull; 'none' does not.
    whole_head
        Whether such a scan is used with its skull instead.
    threads
        Threads of the network.

    Returns
    -------
    The mask, bool, of the image's shape, and where it comes from: 'skull-stripped', 'deepbet' or
    'whole head'.

    Raises
    ------
    InputDataError
        The scan has its skull and nothing says what to do with it, or no brain is found.
    """
    if is_skull_stripped(image):
        return foreground(image), 'skull-stripped'
    if whole_head:
        return foreground(image), 'whole head'
    if method == 'deepbet':
        return brain_mask(image, threads=threads).data, 'deepbet'
    raise InputDataError(
        f'{image.name} shows a head with its skull and there is no brain mask; expected a '
        'skull-stripped scan or a mask. Give a mask, let deepbet make one '
        '(pip install deepbet), or ask for a registration of whole heads.'
    )


def _exact_background(data: np.ndarray) -> float | None:
    """The one value that most of the volume's outer voxels have, if there is one."""
    faces = np.concatenate([data.take(i, axis).ravel() for axis in range(3) for i in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    return float(values[counts.argmax()]) if counts.max() > 0.5 * faces.size else None


def _largest_cut_cm2(inside: np.ndarray, spacing: np.ndarray) -> float:
    """The largest area in which ``inside`` touches one face of the volume."""
    voxel = np.prod(spacing)
    return max(
        float(inside.take(end, axis).sum() * voxel / spacing[axis] / 100)
        for axis in range(3)
        for end in (0, -1)
    )


def _dark_shell(data: np.ndarray, inside: np.ndarray, spacing: np.ndarray) -> float:
    """How far the mean intensity drops from a layer to a deeper one, relative to the middle.

    Layers of 3 mm, 0 to 24 mm below the surface; 0 for brains in T1w, about 0.5 for heads.
    """
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    layer = np.minimum(depth[inside] // 3.0, 8).astype(int)
    count = np.bincount(layer)
    means = np.bincount(layer, weights=data[inside])[count > 0] / count[count > 0]
    drop = np.maximum.accumulate(means) - means
    return float(drop.max() / max(abs(means[-1]), 1e-6))
