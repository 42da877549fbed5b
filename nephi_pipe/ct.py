"""Whether a CT holds Hounsfield units, and mending what scanners and converters leave behind."""

from __future__ import annotations

import logging

import numpy as np
from scipy import ndimage

from .errors import InputDataError
from .images import Image

logger = logging.getLogger(__name__)

AIR_HU = -1024.0
"""What padding becomes: the lowest value of a 12-bit CT."""

NOTHING_BELOW_HU = -1450.0
"""Air is -1000 and its noise never this low; padding is -1500, -2000, -2048, -3024 or -32768."""

OFFSET = 1024.0
"""Missing where a converter has not added the rescale intercept."""

_SAMPLE = 1_000_000
_PADDED_SHARE = 0.005
_TOO_BRIGHT_HU = 4000.0


def mend_ct(image: Image) -> tuple[Image, tuple[str, ...]]:
    """Make sure that a chest CT is in Hounsfield units; mend what can be mended.

    Padding outside the scanner's circle becomes air, and values that lack the offset of -1024
    (0 to 4095) get it. Each is logged as a warning that names the file. The file, and the array
    that is given, stay as they are.

    Limits: an image whose values happen to be spread like those of a CT is taken for one. An
    offset of 1000 is mended as one of 1024, which no registration sees. Padding is recognised
    where it is below -1450 HU, or is the one value at six or more corners of the picture (above
    air only as far as it hangs together with those corners).

    Parameters
    ----------
    image
        A CT with some air or lung and some soft tissue in it, with contrast agent or without.

    Returns
    -------
    The image in Hounsfield units, the very same one where nothing is mended, and what was done,
    a sentence each.

    Raises
    ------
    InputDataError
        The values are no Hounsfield units: scaled to 0..1 or 0..255, of another scanner, wrapped.

    >>> from .geometry import Grid
    >>> values = np.repeat(np.float32([-2048, -1000, -850, 40]), 16).reshape(4, 4, 4)
    >>> mended, done = mend_ct(Image(values, Grid((4, 4, 4), np.eye(4))))
    >>> float(mended.data.min()), done
    (-1024.0, ('padding of -2048 (25.0 % of the voxels) is taken as air',))
    """
    data, done = image.data, []
    if not _is_hounsfield(data):
        if not _lacks_offset(data):
            raise InputDataError(_refusal(image))
        done.append(
            f'values from {data.min():.0f} to {data.max():.0f} lack the offset of Hounsfield '
            f'units; {OFFSET:.0f} is subtracted'
        )
        data = data - np.float32(OFFSET)
    padding, value = _padding(data)
    share = padding.mean()
    if share:
        done.append(f'padding of {value:.0f} ({100 * share:.1f} % of the voxels) is taken as air')
        data = np.maximum(np.where(padding, np.float32(AIR_HU), data), np.float32(AIR_HU))
    for what in done:
        logger.warning('%s: %s.', image.name, what)
    return (image.with_data(data) if done else image), tuple(done)


def _some(data: np.ndarray) -> np.ndarray:
    """Voxels from all over the volume, without what may be padding."""
    step = max(int(np.cbrt(data.size / _SAMPLE)), 1)
    values = data[::step, ::step, ::step]
    kept = values > NOTHING_BELOW_HU
    lowest = values == values.min()
    return values[kept & ~lowest if lowest.mean() > _PADDED_SHARE else kept]


def _share(values: np.ndarray, low: float, high: float) -> float:
    return float(((values >= low) & (values <= high)).sum() / max(values.size, 1))


def _is_hounsfield(data: np.ndarray) -> bool:
    """Whether there is lung or air, and soft tissue; no other unit has values of -1000 to -600."""
    values = _some(data)
    return (
        _share(values, NOTHING_BELOW_HU, -600) > 0.02
        and _share(values, -300, 300) > 0.005
        and _share(values, _TOO_BRIGHT_HU, np.inf) < 0.01
    )


def _lacks_offset(data: np.ndarray) -> bool:
    """Whether 1024 less makes a CT of it, with the narrow peak of fat and soft tissue.

    That peak tells CT from an MR image of the same range of values.
    """
    values = _some(data) - OFFSET
    tissue = _share(values, -150, 150)
    return (
        values.size > 0
        and values.min() >= -OFFSET - 200
        and _share(values, -OFFSET - 200, -600) > 0.05
        and tissue > 0.05
        and tissue > 0.7 * _share(values, -450, 450)
        and _share(values, _TOO_BRIGHT_HU, np.inf) < 0.01
    )


def _padding(data: np.ndarray) -> tuple[np.ndarray, float]:
    """Where nothing was measured, and the most common value there."""
    ends = np.ix_(*[(0, n - 1) for n in data.shape])
    corners, counts = np.unique(data[ends], return_counts=True)
    value = corners[counts.argmax()]
    constant = data == value
    if counts.max() < 6 or AIR_HU - 1 <= value < -900 or constant.mean() < _PADDED_SHARE:
        constant = np.zeros_like(constant)
    elif value >= AIR_HU:
        constant = _from_the_corners(constant, ends)
    padding = constant | (data < NOTHING_BELOW_HU)
    found, counts = np.unique(data[padding], return_counts=True)
    return padding, float(found[counts.argmax()]) if counts.size else 0.0


def _from_the_corners(chosen: np.ndarray, corners: tuple[np.ndarray, ...]) -> np.ndarray:
    """Those of the chosen voxels that hang together with one in a corner of the volume.

    Tissue has voxels of the padding's value too, where that is one of tissue.
    """
    labels, _ = ndimage.label(chosen)
    outer = np.unique(labels[corners])
    return np.isin(labels, outer[outer > 0])


def _refusal(image: Image) -> str:
    low, middle, high = np.percentile(image.data, [0, 50, 100])
    return (
        f'{image.name} has values from {low:.4g} to {high:.4g} (median {middle:.4g}) that are no '
        'Hounsfield units; expected a CT with air near -1000 and soft tissue near 0. Convert it '
        'from DICOM with its rescale slope and intercept, or choose another modality.'
    )
