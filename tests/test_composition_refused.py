"""What is refused as a pre-alignment, and as a field file that holds one."""

import json

import numpy as np
import pytest
from prealigned import POSE
from registration_runs import quickly
from safetensors import safe_open
from safetensors.torch import save_file

from nephi_pipe import load_registration
from nephi_pipe.displacement import DisplacementField
from nephi_pipe.errors import InputDataError, UsageError
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.itk import write_affine
from nephi_pipe.latent_path import interpolate
from nephi_pipe.transforms import write_transform

pytestmark = pytest.mark.usefixtures('tiny_presets')


def _set(*keys, value):
    def change(header):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    'change',
    [
        _set('base', 'kind', value='magic'),
        _set('base', 'steps', value=[]),
        _set('base', 'steps', value=[1, 2]),
        _set('base', 'steps', 0, 'shape', value=[10_000, 10_000, 10_000]),
        _set('base', 'steps', 1, 'affine', value=np.zeros((4, 4)).tolist()),
        _set('base', 'inverted', value='no'),
        _set('base', value=None),
        lambda header: header.pop('base'),
    ],
)
def test_a_damaged_pre_alignment_is_refused(composed, tmp_path, change):
    path = composed.save_field(tmp_path / 'field.safetensors')
    with safe_open(path, framework='pt') as stream:
        header = json.loads(stream.metadata()['nephi'])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    change(header)
    save_file(tensors, path, metadata={'nephi': json.dumps(header)})
    with pytest.raises(InputDataError, match='not a field that can be read'):
        load_registration(path)


def written(folder, vectors, grid):
    return write_transform(folder / 'pre.h5', np.eye(4), DisplacementField(vectors, grid))


def test_a_pre_alignment_that_folds_is_refused(pair, lattice, tmp_path):
    path = written(tmp_path, 9 * lattice.vectors, lattice.grid)
    with pytest.raises(InputDataError, match=r'folds at \d+ of \d+ points of the fixed mask'):
        quickly(pair.fixed, pair.moving, initial_transform=path)


def test_a_way_back_of_something_else_is_refused(pair, posed, pre_files):
    with pytest.raises(InputDataError, match='miss each other by'):
        quickly(pair.fixed, posed, initial_transform=pre_files[0], initial_inverse=pre_files[0])


def test_a_way_back_that_folds_is_refused(pair, posed, pre_files, diffeomorphism, tmp_path):
    """Right on average, but with ripples of half a millimetre on it."""
    grid = posed.grid.resampled(2.0)
    points = grid.points()
    there = diffeomorphism.inverse_points(apply_affine(np.linalg.inv(POSE), points))
    ripples = 0.9 * (np.indices(grid.shape).sum(axis=0) % 2 - 0.5)[..., None] * [1.0, 1.0, 1.0]
    field = DisplacementField(there + ripples - points, grid)
    path = write_transform(tmp_path / 'rippled.h5', np.eye(4), field)
    with pytest.raises(InputDataError, match='The way back of the pre-alignment .* folds'):
        quickly(pair.fixed, posed, initial_transform=pre_files[0], initial_inverse=path)


def test_a_field_that_lies_elsewhere_is_refused(pair, lattice, tmp_path):
    away = np.eye(4)
    away[0, 3] = 300.0
    grid = Grid(lattice.grid.shape, away @ lattice.grid.affine)
    path = written(tmp_path, lattice.vectors, grid)
    with pytest.raises(InputDataError, match='covers 0 % of the fixed mask'):
        quickly(pair.fixed, pair.moving, initial_transform=path)


def test_a_pre_alignment_that_leaves_no_overlap_is_refused(pair, lattice, tmp_path):
    path = written(tmp_path, lattice.vectors + np.float32([400.0, 0, 0]), lattice.grid)
    with pytest.raises(InputDataError, match='hardly overlap'):
        quickly(pair.fixed, pair.moving, initial_transform=path)


def test_an_inverse_for_what_has_one_is_refused(pair, pre_files, tmp_path):
    affine = write_affine(tmp_path / 'a.txt', np.eye(4))
    options = {'initial_inverse': pre_files[1]}
    with pytest.raises(UsageError, match='has an inverse of its own'):
        quickly(pair.fixed, pair.moving, initial_transform=affine, **options)
    with pytest.raises(UsageError, match='without files of an initial transform'):
        quickly(pair.fixed, pair.moving, **options)
    with pytest.raises(UsageError, match='without files of an initial transform'):
        quickly(pair.fixed, pair.moving, initial_transform=np.eye(4), **options)


def test_a_field_file_within_a_chain_is_refused(pair, pre_files):
    with pytest.raises(UsageError, match='expected it alone'):
        quickly(pair.fixed, pair.moving, initial_transform=[pre_files[0], 'field.safetensors'])


def test_no_path_leads_between_composed_maps(composed):
    with pytest.raises(UsageError, match='pre-alignment'):
        interpolate(composed, composed, 0.5)
