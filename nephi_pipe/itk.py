"""ITK's transform files, read into RAS+ mm and written from it.

ITK works in LPS+ mm and applies the transforms of a composite last to first. Layouts follow
ITK's HDF5TransformIO, TxtTransformIO and MatlabTransformIO.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np

from .errors import InputDataError, NePhiError
from .files import atomic, write_text
from .geometry import LPS_FROM_RAS, Grid, flaw_of_grid, flip_ras_lps
from .image_file import MOST_VOXELS, checked_affine, open_image, read_voxels
from .images import save_image
from .itk_binary import Stored, read_h5, read_mat
from .reading import existing_file, read_text

_VECTOR_INTENT = 1007
_TO_LPS = np.array([-1, -1, 1], dtype=np.float32)

Step: TypeAlias = np.ndarray | tuple[np.ndarray, Grid]
"""A 4x4 affine, or the vectors (X, Y, Z, 3) and the grid of a displacement field; RAS+ mm."""


@dataclass(frozen=True, eq=False)
class Record:
    """One transform as ITK stores it, LPS+ mm."""

    name: str
    """For example 'AffineTransform_double_3_3': kind, precision, dimensions."""
    parameters: np.ndarray
    fixed: np.ndarray

    @property
    def kind(self) -> str:
        """The name without precision and dimensions."""
        return re.sub(r'_(double|float)_\d+_\d+$', '', self.name)


def unusable(path: str | os.PathLike, found: str, expected: str, advice: str) -> InputDataError:
    """The error for a transform file that cannot be used."""
    return InputDataError(f'"{path}" {found}; expected {expected}. {advice}')


def read_steps(path: str | os.PathLike) -> list[Step]:
    """Read the steps of a transform file in the order in which they are applied.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It is damaged, or holds a kind of transform that is not supported.
    """
    path = Path(path)
    if path.name.endswith(('.nii', '.nii.gz')):
        return [_read_field_image(path)]
    readers = {'.h5': read_h5, '.mat': read_mat, '.txt': _text_file, '.tfm': _text_file}
    if path.suffix not in readers:
        raise unusable(
            path,
            'is not a name of a transform file',
            '.h5, .nii.gz, .txt, .tfm, .mat or .safetensors',
            'Check that the right file was given.',
        )
    existing_file(path, 'a transform')
    try:
        records = [Record(*stored) for stored in readers[path.suffix](path)]
        return [_step(record, path) for record in _in_order(records, path)]
    except (NePhiError, MemoryError):
        raise
    except Exception as error:  # a parser of foreign bytes stumbles in many ways
        raise unusable(
            path,
            f'cannot be read as an ITK transform ({_short(error)})',
            'a complete file from ITK, ANTs or this tool',
            'Check that it is the right file, or make or copy it again.',
        ) from error


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else repr(error)


def _in_order(records: list[Record], path: Path) -> list[Record]:
    """The records in the order in which ITK applies them."""
    if records and records[0].kind == 'CompositeTransform':
        records = records[:0:-1]
    elif len(records) != 1:
        raise unusable(
            path,
            f'holds {len(records)} transforms that are not joined in a composite',
            'one transform or one composite',
            'Save each to its own file and give those.',
        )
    if any(record.kind == 'CompositeTransform' for record in records):
        raise unusable(
            path,
            'holds a composite inside of a composite, whose content ITK does not save',
            'a flat composite',
            'Flatten it before saving.',
        )
    return records


def _step(record: Record, path: Path) -> Step:
    advice = 'Save it as an affine or as a displacement field.'
    if not record.name.endswith('_3_3'):
        raise unusable(path, f'holds a {record.name}', 'a transform of 3D points', advice)
    if not (np.isfinite(record.parameters).all() and np.isfinite(record.fixed).all()):
        raise unusable(path, 'holds numbers that are not finite', 'numbers', 'Make it again.')
    if record.kind.endswith('DisplacementFieldTransform'):
        return _displacement(record)
    if record.kind not in _AFFINES:
        raise unusable(
            path,
            f'holds a {record.kind}, which is not supported',
            f'a DisplacementFieldTransform or one of {", ".join(_AFFINES)}',
            advice,
        )
    count, matrix_and_shift = _AFFINES[record.kind]
    if record.parameters.size != count:
        raise ValueError(f'{record.kind} has {record.parameters.size} parameters, not {count}')
    matrix, shift = matrix_and_shift(record.parameters, record.fixed)
    center = record.fixed[:3] if record.fixed.size >= 3 else np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = shift + center - matrix @ center
    return flip_ras_lps(affine)


def _displacement(record: Record) -> tuple[np.ndarray, Grid]:
    if record.fixed.size < 18 or not (abs(record.fixed[:3]) <= MOST_VOXELS).all():
        raise ValueError('the displacement field has no sizes')
    shape = tuple(record.fixed[:3].astype(int).tolist())
    if min(shape) < 1 or 3 * math.prod(shape) != record.parameters.size:
        raise ValueError(f'{record.parameters.size} numbers for a field of the shape {shape}')
    origin, spacing, direction = np.split(record.fixed[3:18], [3, 6])
    affine = np.eye(4)
    affine[:3, :3] = direction.reshape(3, 3) * spacing
    affine[:3, 3] = origin
    if flaw := flaw_of_grid(shape, affine):
        raise ValueError(f'the displacement field has an affine that {flaw}')
    vectors = record.parameters.reshape(*shape[::-1], 3).transpose(2, 1, 0, 3)
    return vectors * _TO_LPS, Grid(shape, LPS_FROM_RAS @ affine)


def _euler(p: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations about the axes; the fourth fixed parameter tells their order."""
    x, y, z = (_rotation(axis, angle) for axis, angle in enumerate(p[:3]))
    zyx = fixed.size > 3 and fixed[3] != 0
    return (z @ y @ x if zyx else z @ x @ y), p[3:]


def _rotation(axis: int, angle: float) -> np.ndarray:
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[b, a] = np.sin(angle)
    matrix[a, b] = -np.sin(angle)
    return matrix


def _versor(v: np.ndarray) -> np.ndarray:
    """The rotation of a unit quaternion given by its vector part."""
    return nib.quaternions.quat2mat(np.r_[np.sqrt(max(0.0, 1 - v @ v)), v])


_AFFINES: dict[str, tuple[int, Callable]] = {
    'AffineTransform': (12, lambda p, _: (p[:9].reshape(3, 3), p[9:])),
    'MatrixOffsetTransformBase': (12, lambda p, _: (p[:9].reshape(3, 3), p[9:])),
    'Euler3DTransform': (6, _euler),
    'VersorTransform': (3, lambda p, _: (_versor(p), np.zeros(3))),
    'VersorRigid3DTransform': (6, lambda p, _: (_versor(p[:3]), p[3:])),
    'Similarity3DTransform': (7, lambda p, _: (p[6] * _versor(p[:3]), p[3:6])),
    'ScaleTransform': (3, lambda p, _: (np.diag(p), np.zeros(3))),
    'ScaleVersor3DTransform': (9, lambda p, _: (_versor(p[:3]) + np.diag(p[6:] - 1), p[3:6])),
    'TranslationTransform': (3, lambda p, _: (np.eye(3), p)),
    'IdentityTransform': (0, lambda p, _: (np.eye(3), np.zeros(3))),
}
"""Number of parameters, and how a matrix and a shift are made of them."""


def _text_file(path: Path) -> list[Stored]:
    """The transforms of a text file."""
    text = read_text(path, 'a transform')
    if not text.startswith('#Insight Transform File'):
        raise ValueError('the line "#Insight Transform File V1.0" is missing')
    blocks = re.split(r'^#\s*Transform.*$', text, flags=re.MULTILINE)[1:]
    return [_text_step(block) for block in blocks]


def _text_step(block: str) -> Stored:
    entries = dict(line.split(':', 1) for line in block.splitlines() if ':' in line)
    parameters, fixed = (
        np.array(entries.get(key, '').split(), dtype=float)
        for key in ('Parameters', 'FixedParameters')
    )
    return entries['Transform'].strip(), parameters, fixed


def _read_field_image(path: Path) -> tuple[np.ndarray, Grid]:
    image = open_image(path)
    intent = image.header.get_intent('code')[0] if hasattr(image.header, 'get_intent') else 0
    if len(image.shape) != 5 or image.shape[3:] != (1, 3) or intent != _VECTOR_INTENT:
        raise unusable(
            path,
            f'has the shape {image.shape} and the intent code {intent}',
            f'a displacement field of shape (X, Y, Z, 1, 3), intent {_VECTOR_INTENT}, LPS+ mm',
            'Convert it with the tool that wrote it, or give the transform as .h5.',
        )
    affine = checked_affine(image, path)
    with np.errstate(over='ignore'):
        vectors = read_voxels(lambda: image.dataobj[..., 0, :], path).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise unusable(path, 'holds numbers that are not finite', 'numbers', 'Make it again.')
    return vectors * _TO_LPS, Grid(image.shape[:3], affine)


_CHUNK = 1 << 20
"""Numbers compressed together. Long chunks at a low level: as small as short ones at a higher
level, and half the time."""

_STORED_STEP_MM = np.float32(2.0**-11)
"""Displacements are stored to half a micrometre; the zeros behind it compress well."""


def write_composite(
    path: str | os.PathLike, affine: np.ndarray, vectors: np.ndarray, grid: Grid
) -> Path:
    """Write an ITK composite ``.h5``: group 1 the affine, group 2 the field, float32, gzip.

    Parameters
    ----------
    affine
        4x4, RAS+ mm; applied after the displacement.
    vectors, grid
        Displacements in RAS+ mm, shape (X, Y, Z, 3), and where they lie.
    """
    import h5py

    lps = flip_ras_lps(affine)
    nodes = LPS_FROM_RAS @ grid.affine
    # The last axis fastest, the vector's first: ITK's order, x fastest of the nodes.
    flat = np.array(np.transpose(vectors, (2, 1, 0, 3)), dtype=np.float32, order='C')
    flat *= _TO_LPS / _STORED_STEP_MM  # in place: a field on a fine lattice is large
    np.rint(flat, out=flat)
    flat *= _STORED_STEP_MM
    fixed = np.concatenate([grid.shape, nodes[:3, 3], grid.spacing, _direction(nodes).ravel()])
    content = [
        ('CompositeTransform_float_3_3', None, None),
        ('AffineTransform_float_3_3', np.r_[lps[:3, :3].ravel(), lps[:3, 3]], np.zeros(3)),
        ('DisplacementFieldTransform_float_3_3', flat.ravel(), fixed),
    ]
    # Made in memory, so that a full disk is met by one plain write that can say so.
    memory = io.BytesIO()
    with h5py.File(memory, 'w') as file:
        text = h5py.string_dtype('ascii')  # ITK does not read UTF-8 names
        file.create_dataset('ITKVersion', data=['5.0.0'], dtype=text)
        for number, (name, parameters, fixed_parameters) in enumerate(content):
            group = file.create_group(f'TransformGroup/{number}')
            group.create_dataset('TransformType', data=[name], dtype=text)
            if parameters is not None:
                group.create_dataset(
                    'TransformParameters',
                    data=np.asarray(parameters, dtype=np.float32),
                    chunks=(min(parameters.size, _CHUNK),),
                    compression='gzip',
                    compression_opts=2,
                    shuffle=True,
                )
                group.create_dataset('TransformFixedParameters', data=fixed_parameters)
    with atomic(path) as temporary:
        temporary.write_bytes(memory.getbuffer())
    return Path(path)


def _direction(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def write_field_image(path: str | os.PathLike, vectors: np.ndarray, grid: Grid) -> Path:
    """Write displacements (X, Y, Z, 3), RAS+ mm, as ITK's NIfTI: five axes, LPS+, intent 1007."""
    lps = (vectors * _TO_LPS).astype(np.float32)[..., None, :]
    return save_image(path, lps, grid, intent='vector')


def write_affine(path: str | os.PathLike, affine: np.ndarray) -> Path:
    """Write a 4x4 affine, RAS+ mm, as an ITK text file (``.txt``, ``.tfm``)."""
    lps = flip_ras_lps(affine)
    numbers = ' '.join(repr(float(value)) for value in (*lps[:3, :3].ravel(), *lps[:3, 3]))
    return write_text(
        path,
        '#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n'
        f'Parameters: {numbers}\nFixedParameters: 0 0 0\n',
    )
