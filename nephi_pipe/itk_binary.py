"""The doors for ITK's binary transform files, HDF5 and MATLAB: what is declared is checked first.

HDF5 can link to other files, hold a terabyte of nothing in a kilobyte, and compress twice. What
ITK writes does none of it: plain numbers in this very file, compressed once or not at all.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from .reading import existing_file

Stored = tuple[str, np.ndarray, np.ndarray]
"""Name, parameters and fixed parameters of a transform, as ITK has them."""

_MOST_STEPS = 1000
_INFLATION = 1032
"""DEFLATE makes at most so many bytes of one."""

_SLACK = 1 << 16
_MOST_MATLAB_BYTES = 1 << 20
"""Of a MATLAB file: an affine has a few hundred."""

_NAME_BYTES = 256


def read_h5(path: Path) -> list[Stored]:
    """The transforms of an HDF5 file in their order.

    Raises
    ------
    ValueError, OSError, KeyError, RuntimeError, TypeError
        It is not what ITK writes.
    """
    import h5py

    room = _INFLATION * os.path.getsize(path) + _SLACK
    with h5py.File(path, 'r') as file:
        groups = _inside(file, 'TransformGroup')
        if len(groups) > _MOST_STEPS:
            raise ValueError(f'it holds {len(groups)} transforms')
        return [_h5_step(_inside(groups, key), room) for key in sorted(groups, key=int)]


def _h5_step(group: Any, room: int) -> Stored:
    def numbers(*names: str) -> np.ndarray:
        found = [name for name in names if name in group]
        return _h5_numbers(_inside(group, found[0]), room) if found else np.zeros(0)

    # ITK before version 5 wrote 'Tranform'.
    return (
        _h5_name(_inside(group, 'TransformType')),
        numbers('TransformParameters', 'TranformParameters'),
        numbers('TransformFixedParameters', 'TranformFixedParameters').astype(float),
    )


def _inside(group: Any, name: str) -> Any:
    """What a group holds under a name, unless that is a link to somewhere else."""
    import h5py

    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f'"{name}" is missing or is a link to somewhere else')
    return group[name]


def _h5_name(dataset: Any) -> str:
    import h5py

    text = h5py.check_string_dtype(dataset.dtype)
    if text is None or dataset.size != 1 or (text.length or 0) > _NAME_BYTES:
        raise ValueError('a transform has no name')
    _check_storage(dataset)
    name = np.ravel(dataset[()])[0]
    return name.decode() if isinstance(name, bytes) else str(name)


def _h5_numbers(dataset: Any, room: int) -> np.ndarray:
    if dataset.dtype.kind not in 'fiu' or dataset.dtype.itemsize > 8 or dataset.ndim > 1:
        raise ValueError(f'numbers are of the type {dataset.dtype} and {dataset.ndim} axes')
    _check_storage(dataset)
    parts = [dataset.size, int(np.prod(dataset.chunks or (0,)))]
    if max(parts) * dataset.dtype.itemsize > room:
        raise ValueError(f'it declares {max(parts)} numbers, more than it can hold')
    return np.ravel(dataset[()])


def _check_storage(dataset: Any) -> None:
    """Refuse numbers that lie in other files or are compressed more than once."""
    import h5py

    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    plain = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
    if set(filters) - plain or len(filters) != len(set(filters)):
        raise ValueError('its numbers are compressed as ITK does not do it')
    if dataset.is_virtual or dataset.external:
        raise ValueError('its numbers are in another file')


def read_mat(path: Path) -> list[Stored]:
    """The transforms of a MATLAB file of version 4, the one that ITK and ANTs write.

    Raises
    ------
    ValueError, OSError, KeyError, TypeError
        It is something else.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import matfile_version

    with open(existing_file(path, 'a transform'), 'rb') as stream:
        content = stream.read(_MOST_MATLAB_BYTES + 1)
    if len(content) > _MOST_MATLAB_BYTES:
        raise ValueError(f'it has more than {_MOST_MATLAB_BYTES} bytes')
    # Later versions are compressed and hold objects.
    if matfile_version(io.BytesIO(content))[0] != 0:
        raise ValueError('it is not of version 4')
    found = loadmat(io.BytesIO(content))
    names = [name for name in found if re.search(r'_(double|float)_\d+_\d+$', name)]
    fixed = _plain(found.get('fixed', np.zeros(0))).astype(float)
    return [(name, _plain(found[name]), fixed) for name in names]


def _plain(values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in 'fiu':
        raise ValueError(f'its numbers are of the type {values.dtype}')
    return np.ravel(values)
