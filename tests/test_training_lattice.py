"""Training on a lattice: images on one grid, batches of pairs, and the loss of all at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import training_run as tiny
from test_training_data import LOCAL
from training_people import make_quick

from nephi_pipe.errors import UsageError
from nephi_pipe.field.config import FieldConfig
from nephi_pipe.field.encoder import EncoderConfig
from nephi_pipe.field.model import ModelConfig, NePhiModel
from nephi_pipe.learning.regularity import gradient_inverse_consistency
from nephi_pipe.learning.sampling import Lattice
from nephi_pipe.training import train
from nephi_pipe.training.batch import Batch
from nephi_pipe.training.cache import load_subjects
from nephi_pipe.training.checkpoint import load_model
from nephi_pipe.training.config import BRAIN_UNET, TrainingConfig
from nephi_pipe.training.files import files_of
from nephi_pipe.training.lattice_loss import FieldBatch, LatticeLosses
from nephi_pipe.training.settings import AUGMENTATIONS, Augmentation, Loss
from nephi_pipe.training.stack import Stack

UNET = EncoderConfig(24, 'group', 'unet')
FIELD = replace(tiny.FIELD, code_reading='cubic', code_skip=True)
LOSS = Loss('windowed-ncc', regularity_points=40, node_mm=16.0, dice_weight=0.5)
STILL = AUGMENTATIONS['none']
SCALE_MM = 110.0


@pytest.fixture(scope='module')
def subjects(people, tmp_path_factory):
    files = files_of(people['images'], people['masks'], people['labels'])
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return load_subjects(files, LOCAL, 25, tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module')
def stack(subjects):
    return Stack.of(subjects, 6.0, 5.0, 'cpu')


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(field: FieldConfig = FIELD) -> NePhiModel:
    """A model whose maps are not the identity."""
    field = replace(field, local_size=UNET.local_size)
    model = NePhiModel(ModelConfig(field, UNET, SCALE_MM, 'brain'), seeded())
    with torch.no_grad():
        for network in model.networks:
            network.output.weight.normal_(std=0.05, generator=seeded(1))
            network.skip.weight.normal_(std=0.05, generator=seeded(2))
    return model


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


@pytest.fixture(scope='module')
def codes():
    size = UNET.local_size
    return (
        torch.randn(3, FIELD.global_channels, generator=seeded(3)),
        torch.randn(3, size, size, size, FIELD.local_channels, generator=seeded(4)),
    )


@pytest.mark.parametrize('inverse', [False, True])
def test_a_batch_of_fields_is_its_fields(codes, inverse) -> None:
    model = model_of()
    points = torch.rand(3, 50, 3, generator=seeded(5)) * 1.8 - 0.9
    batch = FieldBatch(model, *codes)
    value, gradient = batch.displacement_and_gradient(points.view(-1, 3), inverse)
    assert relative(value, batch.displacement(points.view(-1, 3), inverse)) < 1e-5
    fields = model.fields(*codes, [[1.0] * 3] * 3)
    alone = [
        field.displacement_and_gradient(at, inverse)
        for field, at in zip(fields, points, strict=True)
    ]
    assert relative(value, torch.cat([one[0] for one in alone])) < 1e-5
    assert relative(gradient, torch.cat([one[1] for one in alone])) < 1e-5
    whole, *_ = gradient_inverse_consistency(batch, points.view(-1, 3), inverse)
    means = [
        gradient_inverse_consistency(field, at, inverse)[0]
        for field, at in zip(fields, points, strict=True)
    ]
    assert torch.isclose(whole, torch.stack(means).mean(), rtol=1e-4)


@pytest.mark.parametrize('ndim', [2, 3])
def test_on_a_lattice_the_batch_is_its_fields(codes, ndim) -> None:
    model = model_of(replace(FIELD, ndim=ndim))
    global_codes, local_codes = codes
    local_codes = local_codes if ndim == 3 else local_codes[:, :, :, 0]
    lattice = Lattice.draw(torch.tensor([0.7, 0.8, 0.6])[:ndim], 0.3, 2, seeded())
    found = FieldBatch(model, global_codes, local_codes).on_lattice(lattice, False)
    assert found.shape == (*lattice.node_shape, 3 * ndim)
    inside = lattice.node_points().clamp(-1, 1)
    fields = model.fields(global_codes, local_codes, [[1.0] * ndim] * 3)
    for number, field in enumerate(fields):
        expected = field.displacement(inside).view(*lattice.node_shape, ndim)
        assert relative(found[..., ndim * number : ndim * (number + 1)], expected) < 1e-4


def test_the_stack_shows_the_images_and_labels(stack, subjects) -> None:
    assert stack.images.shape[:2] == (3, 2) and stack.labels.shape == (3, *stack.images.shape[2:])
    assert stack.classes == len(np.unique(subjects[0].labels)) - 1
    for number, one in enumerate(subjects):
        ratio = abs(np.linalg.det(one.grid.affine[:3, :3])) / 5.0**3
        inside, labelled = stack.images[number, 1].sum(), (stack.labels[number] > 0).sum()
        assert float(inside) == pytest.approx(one.inside.size * ratio, rel=0.02)
        assert float(labelled) == pytest.approx((one.labels > 0).sum() * ratio, rel=0.03)


def test_a_subject_is_read_through_its_affine(subjects) -> None:
    """What is moved in its own world and brought back by its affine lies where it lay."""
    shift = np.eye(4)
    shift[:3, 3] = 12, -7, 4
    grid = replace(subjects[0].grid, affine=shift @ subjects[0].grid.affine)
    hull = subjects[0].hull_mm + shift[:3, 3]
    moved = replace(subjects[0], grid=grid, hull_mm=hull, affine=shift)
    found = Stack.of([subjects[0], moved], 6.0, 5.0, 'cpu')
    assert (found.images[0] - found.images[1]).abs().max() < 2e-3
    assert (found.labels[0] != found.labels[1]).float().mean() < 1e-3


def test_without_a_pose_a_batch_reads_the_stack_itself(stack) -> None:
    batch = Batch.draw(stack, SCALE_MM, 2, STILL, seeded(1))
    assert (batch.indices[0] != batch.indices[1]).all()
    index = torch.randint(5, 20, (2, 30, 3), generator=seeded(2))
    half = torch.from_numpy(stack.half_mm).float()
    points = (index * 5.0 - half) / SCALE_MM
    found = batch.read(batch.volumes(0), points[:, :, None, None], 0)[:, :, :, 0, 0]
    for pair in range(2):
        volume = stack.images[batch.indices[0, pair]].float()
        expected = volume[(slice(None), *index[pair].T)]
        assert torch.allclose(found[pair], expected, atol=1e-3)
    hot = batch.one_hot(1)
    assert torch.equal(hot.sum(dim=1) > 0, stack.labels[batch.indices[1]] > 0)


def test_the_encoder_sees_what_the_points_see(stack) -> None:
    posed = Augmentation(affine=0.05, turn_degrees=20.0, shift_mm=5.0, mirror=1.0)
    batch = Batch.draw(stack, SCALE_MM, 2, posed, seeded(3))
    determinants = torch.linalg.det(batch.poses[..., :3])
    assert (determinants < 0).all() and (determinants.abs() - 1).abs().max() < 0.6
    volumes = batch.volumes(0), batch.volumes(1)
    cubes = batch.cubes(volumes, 17, STILL, seeded(4))
    axis = torch.linspace(-1, 1, 17)
    nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing='ij'), dim=-1)
    for side in (0, 1):
        read = batch.read(volumes[side], nodes.expand(2, *nodes.shape), side)
        assert torch.allclose(read[:, 0].clamp_min(0), cubes[:, side], atol=1e-4)
    other = batch.cubes(volumes, 17, AUGMENTATIONS['posed'], seeded(4))
    assert torch.equal(other > 0, (cubes > 0) & (other > 0)) and not torch.allclose(other, cubes)


def test_losses_fall_where_maps_agree_with_the_images(stack) -> None:
    """One person with itself: nothing is lost for a map that does nothing, more for another."""
    config = TrainingConfig(
        field=FIELD, encoder=UNET, loss=LOSS, augmentation=STILL, training=BRAIN_UNET.training
    )
    settings = LOSS.for_points(LOCAL.optimisation)
    extent = torch.from_numpy(stack.extent_mm / SCALE_MM).float()
    same = Batch.draw(stack, SCALE_MM, 2, STILL, seeded(1))
    same = replace(same, indices=same.indices[[0, 0]])
    still = NePhiModel(model_of().config, seeded())
    _, row = LatticeLosses(still, config, settings, extent)(same, seeded(2))
    assert row['similarity'] < 0.05 and row['dice_loss'] < 1e-3 and row['regularity'] == 0
    _, moved = LatticeLosses(model_of(), config, settings, extent)(same, seeded(2))
    assert moved['similarity'] > 0.2 and moved['dice_loss'] > 0.05 and moved['regularity'] > 0


def test_a_training_on_a_lattice_learns_stops_and_goes_on(people, tmp_path, monkeypatch) -> None:
    make_quick(monkeypatch)
    options = {
        **{name: value for name, value in tiny.TINY.items() if name not in ('points', 'grid')},
        'field': FIELD,
        'encoder': UNET,
        'loss': LOSS,
        'augmentation': 'posed',
        'masks': people['masks'],
        'labels': people['labels'],
        'steps_per_epoch': 4,
        'threads': 1,
    }
    through = train(people['images'], tmp_path / 'a', epochs=3, **options)
    train(people['images'], tmp_path / 'b', epochs=1, **options)
    in_two = train(people['images'], tmp_path / 'b', epochs=3, **options)
    assert through.read_bytes() == in_two.read_bytes()
    history = (tmp_path / 'a' / 'history.csv').read_text()
    assert 'bending' in history and 'dice_after' in history
    model = load_model(through)
    assert model.config.field.code_skip and model.config.encoder.kind == 'unet'


def test_what_a_lattice_cannot_show_is_refused() -> None:
    with pytest.raises(UsageError, match='Simulated pairs and flips'):
        train(['a.nii.gz', 'b.nii.gz'], 'out', config=BRAIN_UNET, augmentation='mixed')
    with pytest.raises(UsageError, match='node_mm is 0'):
        replace(LOSS, node_mm=0.0)
    with pytest.raises(UsageError, match='no encoder "resnet"'):
        EncoderConfig(24, 'group', 'resnet')
    with pytest.raises(UsageError, match="code_skip is 'yes'"):
        replace(FIELD, code_skip='yes')
