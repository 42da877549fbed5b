"""The network of structures that ships: what it finds, and when it is not believed."""

import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_runs import affine_file
from data import rotation
from registration_runs import make_tiny

from nephi_pipe import interfaces, register, registration
from nephi_pipe.cli import main
from nephi_pipe.demo import DATASET
from nephi_pipe.errors import InputDataError
from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image, load_image, load_labels, save_image
from nephi_pipe.interfaces import ants
from nephi_pipe.learning.structures import Structures
from nephi_pipe.presets import preset
from nephi_pipe.presets.preparation import Prepared, prepare
from nephi_pipe.presets.structures import find_structures, structures_of_pair
from nephi_pipe.tensor_file import read_header
from nephi_pipe.training.checkpoint import load_model, load_structure_net
from nephi_pipe.weights import chosen_structures, shipped_weights

SHIPPED = shipped_weights('brain_structures')


@pytest.fixture(scope='module')
def network():
    return load_structure_net(SHIPPED)[0]


def side(name: str) -> tuple[Image, Image]:
    labels = DATASET / 'derivatives' / 'meshnet' / name / 'anat'
    return (
        load_image(DATASET / name / 'anat' / f'{name}_T1w.nii.gz'),
        load_labels(next(labels.glob('*_dseg.nii.gz'))),
    )


@pytest.fixture(scope='module')
def brains() -> dict[str, tuple[Image, Image]]:
    return {name: side(name) for name in ('sub-43', 'sub-45')}


def prepared(image: Image) -> Prepared:
    return prepare(image, None, None, preset('brain'))


def test_the_network_is_small_described_and_trained_on_the_right_people() -> None:
    assert SHIPPED.stat().st_size < 10e6 and SHIPPED.with_suffix('.md').exists()
    header, parts = read_header(SHIPPED, 'weights')
    assert {part.get_dtype() for part in parts} == {'F16'}
    names = load_structure_net(SHIPPED)[1]
    assert len(names) == 17 and names[6] == 'Thalamus'
    assert header['training']['trained_on'] == 'sub-01 to sub-36'
    assert header['training']['validated_on'] == 'sub-37 to sub-40'


def test_it_takes_part_unless_nothing_trained_may() -> None:
    assert chosen_structures(True, 'default', 'brain', None) == SHIPPED
    assert chosen_structures(False, 'default', 'brain', None) is None
    assert chosen_structures(True, 'own.safetensors', 'brain', 20) == SHIPPED
    assert chosen_structures(True, 'none', 'brain', None) is None
    assert chosen_structures(True, 'default', 'brain', 0) is None
    assert chosen_structures(True, 'default', 'lung', None) is None
    assert chosen_structures(True, 'default', 'other', None) is None


def overlaps(found: Structures, labels: Image) -> np.ndarray:
    """Soft Dice of each structure with labels, at the middle of voxels of the latter."""
    world = labels.grid.points()[::2, ::2, ::2]
    index = found.grid.to_index(world)
    places = torch.from_numpy((2 * index / (np.array(found.grid.shape) - 1) - 1)[..., ::-1].copy())
    shares = torch.nn.functional.grid_sample(
        found.shares[None], places[None].float(), align_corners=True
    )[0].numpy()
    known = labels.data[::2, ::2, ::2]
    return np.array([
        2 * (share * (known == number)).sum() / (share.sum() + (known == number).sum())
        for number, share in enumerate(shares, start=1)
    ])  # fmt: skip


def test_structures_of_a_brain_lie_where_they_are(network, brains) -> None:
    image, labels = brains['sub-43']
    found = find_structures(prepared(image), network, np.eye(3))
    assert found.shares.shape == (17, *found.grid.shape)
    assert found.grid.spacing.tolist() == [2, 2, 2]
    assert found.shares.min() >= 0 and found.shares.sum(dim=0).max() <= 1.001
    each = overlaps(found, labels)
    assert each.mean() > 0.65 and each.min() > 0.3, each


def test_it_does_not_matter_how_an_image_is_stored(network, brains) -> None:
    image, _ = brains['sub-43']
    stored = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.grid.affine), nib.orientations.axcodes2ornt('PIR')
    )
    data = nib.orientations.apply_orientation(image.data, stored)
    affine = image.grid.affine @ nib.orientations.inv_ornt_aff(stored, image.data.shape)
    turned = Image(np.ascontiguousarray(data), Grid(data.shape, affine))
    one, other = (find_structures(prepared(each), network, np.eye(3)) for each in (image, turned))
    # Every seventh voxel of the mask, in the order of the file, says where the box lies.
    assert np.abs(one.grid.affine - other.grid.affine).max() < 0.5
    assert (one.shares - other.shares).abs().mean() < 2e-3


def posed(side: Prepared, pose: np.ndarray) -> Prepared:
    """The same image, of which the header says that it lies elsewhere."""
    return replace(side, grid=Grid(side.grid.shape, pose @ side.grid.affine))


@pytest.fixture(scope='module')
def sides(brains) -> list[Prepared]:
    return [prepared(image) for image, _ in brains.values()]


def test_they_are_found_whatever_pose_the_affine_tells(network, sides) -> None:
    pose = np.eye(4)
    pose[:3, :3] = rotation(0.3, -1.1, 0.8)
    pose[:3, 3] = [20, -35, 14]
    straight, turned = (
        structures_of_pair(sides[0], posed(sides[1], one), one, network)[1]
        for one in (np.eye(4), pose)
    )
    assert turned.grid.shape == straight.grid.shape
    assert (turned.shares - straight.shares).abs().max() < 0.02


def test_they_are_believed_where_both_images_agree(network, sides, caplog) -> None:
    assert structures_of_pair(*sides, np.eye(4), network) is not None
    assert not caplog.records
    upside_down = np.diag([1.0, 1, -1, 1])
    with caplog.at_level(logging.WARNING):
        assert (
            structures_of_pair(sides[0], posed(sides[1], upside_down), np.eye(4), network) is None
        )
    assert 'intensities alone are compared. Check the affine' in caplog.text


def test_what_is_too_long_for_a_brain_is_not_looked_at(network, sides, caplog) -> None:
    long = posed(sides[1], np.diag([1.0, 2.0, 1.0, 1.0]))
    assert structures_of_pair(sides[0], long, np.eye(4), network) is None
    assert 'longer than 256 mm' in caplog.text


def test_a_registration_says_whether_structures_were_compared(pair, monkeypatch) -> None:
    make_tiny(monkeypatch)
    monkeypatch.setattr(registration, 'chosen_structures', chosen_structures)
    monkeypatch.setattr(registration, 'chosen_weights', lambda *_: None)

    def told(least_overlap: float, **options) -> str:
        monkeypatch.setattr('nephi_pipe.presets.structures.LEAST_OVERLAP', least_overlap)
        found = register(pair.fixed, pair.moving, affine=False, steps=2, threads=1, **options)
        return found.provenance['structures']

    assert told(0.0) == 'shipped, brain_structures.safetensors'
    assert told(1.0) == 'none'
    assert told(0.0, structures=False) == 'none'


@pytest.mark.parametrize('way', ['node', 'node for ANTs users', 'command'])
def test_they_can_be_left_out_by_every_way(way, pair, tmp_path, monkeypatch) -> None:
    make_tiny(monkeypatch)
    asked = []
    monkeypatch.setattr(registration, 'chosen_structures', lambda wanted, *_: asked.append(wanted))
    fixed, moving = (
        save_image(tmp_path / f'{name}.nii.gz', image.data, image.grid)
        for name, image in (('fixed', pair.fixed), ('moving', pair.moving))
    )
    images = {'fixed_image': str(fixed), 'moving_image': str(moving)}
    options = {**images, 'weights': 'none', 'steps': 1, 'structures': False}
    monkeypatch.chdir(tmp_path)
    if way == 'command':
        line = [fixed, moving, '-o', tmp_path / 'out', '--steps', 1, '--weights', 'none']
        line += ['--no-affine', '--no-structures', '--xfm-format', 'field']
        assert main(['register', *map(str, line)]) == 0
    elif way == 'node':
        interfaces.NePhiOptimize(xfm_format='field', **options).run(cwd=str(tmp_path))
    else:
        start = affine_file(tmp_path, 'start', np.eye(4))
        own = {'initial_moving_transform': str(start)}
        ants.Registration(**own, **options).run(cwd=str(tmp_path))
    assert asked == [False]


def test_a_damaged_network_is_refused(tmp_path) -> None:
    content = bytearray(SHIPPED.read_bytes())
    content[-7] ^= 1
    path = tmp_path / SHIPPED.name
    path.write_bytes(content)
    with pytest.raises(InputDataError, match='differ from their checksum'):
        load_structure_net(path)
    path.write_bytes(bytes(content[:5000]))
    with pytest.raises(InputDataError, match='truncated, damaged'):
        load_structure_net(path)
    with pytest.raises(InputDataError, match='has the format nephi-weights-1'):
        load_structure_net(Path(shipped_weights('brain')))
    with pytest.raises(InputDataError, match='has the format nephi-structures-1'):
        load_model(SHIPPED)
