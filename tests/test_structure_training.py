"""The training of the network of structures: what it sees, and that it learns."""

import json

import numpy as np
import pytest
import torch
from data import make_grid

from benchmarks import structure_images, structure_training
from nephi_pipe.images import save_image
from nephi_pipe.training.checkpoint import load_structure_net

NAMES = ['core', 'shell']


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(structure_images, 'SHAPE', (32, 48, 32))
    monkeypatch.setattr(structure_images, '_KEPT', (48, 64, 48))
    monkeypatch.setattr(structure_images, '_COARSE', (3, 3, 3))


@pytest.fixture
def ball(small, tmp_path) -> structure_images.Person:
    """A bright core in a darker shell, oblique, 1.3 mm."""
    grid = make_grid('oblique', (32, 36, 34), 1.3, (20.0, -30.0, 9.0))
    radius = np.linalg.norm(grid.points() - np.array([20.0, -30.0, 9.0]), axis=-1)
    labels = np.where(radius < 6, 1, np.where(radius < 13, 2, 0)).astype(np.uint8)
    rng = np.random.default_rng(0)
    image = np.where(labels > 0, 900 - 300.0 * labels + rng.normal(scale=20, size=grid.shape), 0)
    save_image(tmp_path / 'image.nii.gz', image.astype(np.float32), grid)
    save_image(tmp_path / 'labels.nii.gz', labels, grid)
    return structure_images.person(tmp_path / 'image.nii.gz', tmp_path / 'labels.nii.gz')


def test_shares_are_counts_of_the_eight_small_voxels() -> None:
    labels = torch.randint(3, (4, 6, 2), generator=torch.Generator().manual_seed(0)).byte()
    found = structure_images.shares(labels, 3)
    assert found.shape == (1, 3, 2, 3, 1)
    for label in range(3):
        expected = (labels[2:4, 4:6, :2] == label).sum() / 8
        assert found[0, label, 1, 2, 0] == expected


def test_a_person_lies_in_the_middle_with_what_labels_it(ball) -> None:
    image, labels = structure_images.middle(ball)
    places = torch.nonzero(labels == 1).float()
    assert places.mean(dim=0).tolist() == pytest.approx([15.5, 23.5, 15.5], abs=0.6)
    assert len(places) == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.05)
    assert image[0, 0][labels == 1].mean() > 0.8 > 0.4 > image[0, 0][labels == 2].mean()
    assert image[0, 0][labels == 0].abs().mean() < 0.02


def test_another_pose_moves_image_and_labels_alike(ball) -> None:
    generator = torch.Generator().manual_seed(3)
    seen = []
    for _ in range(6):
        image, target = structure_images.augmented(ball, generator, 3)
        assert image.shape == (1, 1, 32, 48, 32) and target.shape == (1, 3, 16, 24, 16)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(1, 16, 24, 16))
        coarse = torch.nn.functional.avg_pool3d(image, 2)[0, 0]
        of = [coarse[target[0, label] > 0.9].mean() for label in range(3)]
        assert of[1] > of[2] > of[0]
        seen.append(target[0, 1].flatten())
    again = structure_images.augmented(ball, torch.Generator().manual_seed(3), 3)[1]
    assert torch.equal(again[0, 1].flatten(), seen[0])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.slow
def test_it_learns_and_writes_what_can_be_read(ball, tmp_path) -> None:
    recipe = structure_training.Recipe(steps=60, seed=1)
    path = structure_training.train([ball], [ball], NAMES, recipe, tmp_path)
    history = json.loads((tmp_path / 'history.json').read_text())
    assert history[-1]['dice'] > 0.5
    network, names = load_structure_net(path)
    assert names == NAMES
    image, labels = structure_images.middle(ball)
    with torch.no_grad():
        found = network(image).argmax(dim=1)[0]
    core = structure_images.shares(labels, 3).argmax(dim=1)[0] == 1
    both = 2 * ((found == 1) & core).sum() / ((found == 1).sum() + core.sum())
    assert both > 0.5
