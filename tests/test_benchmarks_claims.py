"""The benchmark of the paper's claims: a voxel field, IDIR, and the score of a saved map."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from data import AFFINE, SmoothWarp, make_grid, make_image, make_labels
from small_pair import small_brain

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from field_records import cells, person, record  # noqa: E402

from benchmarks import claims, idir, voxel_field  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.field_peers import at_voxels, write  # noqa: E402
from benchmarks.field_scoring import score  # noqa: E402
from nephi_pipe.geometry import Frame, Grid  # noqa: E402
from nephi_pipe.images import Image, load_image, save_image  # noqa: E402
from nephi_pipe.metrics import tre_mm  # noqa: E402
from nephi_pipe.overlap import dice  # noqa: E402
from nephi_pipe.registration import Registration  # noqa: E402
from nephi_pipe.simulate import simulated_pair  # noqa: E402
from nephi_pipe.transforms import Transform, resample  # noqa: E402

WARP = SmoothWarp(3.0, 20.0)
TRUTH = Transform([WARP.map_points, AFFINE])
SHIFT_MM = np.array([3.0, -2.0, 1.0])


@pytest.fixture(scope='module')
def known():
    """A small pair and where its landmarks are: 3 mm off on average."""
    return simulated_pair(*small_brain(), magnitude_mm=8.0, smoothness_mm=40.0, landmarks=200)


# --- a field of free displacements --------------------------------------------------------------


def shifted(grid: Grid) -> Registration:
    """A voxel field of one displacement everywhere, on a grid."""
    frame = Frame.around(grid.corners())
    half = (grid.corners().max(axis=0) - grid.corners().min(axis=0)) / 2 / frame.scale_mm
    field = voxel_field.VoxelField(12, half.tolist())
    with torch.no_grad():
        both = np.concatenate([SHIFT_MM, -SHIFT_MM]) / frame.scale_mm
        field.code.local_code += torch.from_numpy(both).float()
    mask = Image(np.ones(grid.shape, dtype=bool), grid)
    return Registration(field, frame, np.eye(4), grid, grid, mask, mask)


def test_a_constant_voxel_field_shifts_everything():
    registration = shifted(make_grid('oblique LAS', (14, 12, 10), 2.2))
    points = registration.fixed_grid.points().reshape(-1, 3)[::7]
    assert registration.displacement_at(points) == pytest.approx(
        np.broadcast_to(SHIFT_MM, points.shape), abs=1e-5
    )
    assert registration.inverse.displacement_at(points)[0] == pytest.approx(-SHIFT_MM, abs=1e-5)
    assert registration.exact_jacobian_determinant(points) == pytest.approx(1, abs=1e-5)


def test_what_is_saved_is_the_field_at_the_voxels():
    registration = shifted(make_grid('oblique LAS', (14, 12, 10), 2.2))
    vectors = at_voxels(registration)
    assert vectors.shape == (14, 12, 10, 3)
    assert vectors.reshape(-1, 3) == pytest.approx(
        np.broadcast_to(SHIFT_MM, (vectors.size // 3, 3)), abs=1e-4
    )


def test_a_voxel_field_finds_a_known_map(known):
    points = known.fixed_landmarks, known.moving_landmarks
    before = tre_mm(*points, lambda points: points).mean()
    found, seconds = voxel_field.register(
        known.fixed, known.moving, 1, spacing_mm=6.0, rate_mm=0.5, steps=24
    )
    assert tre_mm(*points, found.warp_points).mean() < 0.6 * before
    assert len(found.history) == 24 and seconds > 0


# --- IDIR ---------------------------------------------------------------------------------------


def test_idir_lowers_its_loss(known):
    prepared, affine = voxel_field.prepared_pair(known.fixed, known.moving)
    network, losses = idir.optimise(
        *prepared, affine, steps=40, points=500, rate=1e-4, width=32, seed=1
    )
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    grid, mask = prepared[0].grid, prepared[0].mask
    vectors = idir.displacement(network, grid, mask)
    voxel = np.argwhere(mask)[::500]
    here = torch.from_numpy(2 * voxel / (np.array(grid.shape) - 1) - 1).float()
    there = network(here).detach().numpy() + here.numpy()
    to_world = idir.from_unit(grid)
    expected = there @ to_world[:3, :3].T + to_world[:3, 3] - grid.to_world(voxel)
    assert vectors[tuple(voxel.T)] == pytest.approx(expected, abs=1e-3)


def test_idir_s_coordinates_end_at_the_outer_voxels():
    grid = make_grid('oblique LAS', (14, 12, 10), 2.2)
    ends = grid.to_world(np.array([[0, 0, 0], [13, 11, 9]]))
    matrix = idir.from_unit(grid)
    found = np.array([[-1, -1, -1], [1, 1, 1]]) @ matrix[:3, :3].T + matrix[:3, 3]
    assert found == pytest.approx(ends)


# --- scores -------------------------------------------------------------------------------------


def test_a_saved_map_is_scored(tmp_path):
    moving_grid = make_grid('LPS', (44, 40, 36), 2.0, center=(10.0, -20.0, 33.0))
    grid = make_grid('oblique LAS', (34, 32, 30), 2.2)
    images = {'moving': make_image(moving_grid), 'moving_labels': make_labels(moving_grid)}
    images['fixed'] = resample(images['moving'], TRUTH, grid)
    images['fixed_labels'] = resample(images['moving_labels'], TRUTH, grid, 'labels')
    paths = {
        name: save_image(tmp_path / f'{name}.nii.gz', image.data, image.grid)
        for name, image in images.items()
    }
    write(tmp_path, WARP.on_grid(grid), grid, AFFINE)
    labels = [paths['fixed_labels'], paths['moving_labels']]
    scores = score(
        'voxel', paths['fixed'], paths['moving'], tmp_path,
        labels=labels, warped=[labels[1], tmp_path / 'there'],
    )  # fmt: skip
    assert scores['dice']['after']['mean'] > 0.999
    assert scores['dice']['before']['mean'] < 0.95
    there = {end: load_image(tmp_path / f'there{end}.nii.gz').data for end in ('', '_affine')}
    found = {
        end: np.mean([*dice(images['fixed_labels'].data, there[end]).values()]) for end in there
    }
    assert found[''] == pytest.approx(scores['dice']['after']['mean'])
    assert found['_affine'] == pytest.approx(scores['dice']['before']['mean'])


# --- tables and runs ----------------------------------------------------------------------------


def test_methods_without_a_network_have_no_exact_folds():
    exact = {'percent': 0.0, 'min': 0.25}
    records = [record('nephi', '42', '41'), record('idir', '42', '41')]
    records[0]['scores']['folds']['exact'] = exact
    text = claims.markdown(records)
    column = cells(text, 'pair').index('least exact det')
    assert cells(text, '41 to 42', 'NePhi')[column] == '0.250'
    assert cells(text, '41 to 42', 'IDIR')[column] == '-'


def test_a_run_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    done = []

    def fake(images, scored, given):
        done.append(images[0])
        if len(done) == 2:
            raise RuntimeError('killed')
        return record(images[0], '', '')

    monkeypatch.setattr(claims, 'run_at_voxels', fake)
    monkeypatch.setattr(claims.Person, 'find', partial(person, tmp_path))
    out = tmp_path / 'out'
    command = ['claims', '--data', str(tmp_path), '--out', str(out), '--pairs', '42:41']
    with pytest.raises(RuntimeError):
        main([*command, '--methods', 'voxel', 'idir'])
    assert main([*command, '--methods', 'voxel', 'idir']) == 0
    assert done == ['voxel', 'idir', 'idir']
    names = [f'sub-42_from-sub-41_{method}.json' for method in ('idir', 'voxel')]
    assert sorted(path.name for path in out.iterdir()) == [*names, 'tables.md']
