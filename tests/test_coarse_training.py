"""Training after a coarse stage: the moving image is seen through its map."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import training_run as tiny
from small_pair import small_brain
from test_training_data import LOCAL
from training_people import make_quick

from nephi_pipe import register
from nephi_pipe.cli import main
from nephi_pipe.errors import UsageError
from nephi_pipe.field.encoder import EncoderConfig
from nephi_pipe.field.model import ModelConfig, NePhiModel
from nephi_pipe.images import save_image
from nephi_pipe.simulate import simulated_pair
from nephi_pipe.training import train
from nephi_pipe.training.batch import Batch
from nephi_pipe.training.cache import load_subjects
from nephi_pipe.training.checkpoint import load_model, save_model
from nephi_pipe.training.coarse_stage import FieldWarp, predict_stages
from nephi_pipe.training.files import files_of
from nephi_pipe.training.lattice_loss import FieldBatch
from nephi_pipe.training.loss import supervised_loss
from nephi_pipe.training.pairs import place_pair, simulate
from nephi_pipe.training.settings import AUGMENTATIONS, Augmentation, Loss
from nephi_pipe.training.stack import Stack

pytestmark = pytest.mark.usefixtures('quick')

STILL = AUGMENTATIONS['none']
SCALE_MM = 110.0
TINY = {**tiny.TINY, 'threads': 1, 'steps_per_epoch': 3, 'epochs': 2}
ENCODER = EncoderConfig(25, 'group')


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope='module')
def subjects(people, tmp_path_factory):
    files = files_of(people['images'], people['masks'], people['labels'])
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return load_subjects(files, LOCAL, 25, tmp_path_factory.mktemp('cache'))


def model_of(seed: int, coarse: NePhiModel | None = None) -> NePhiModel:
    """A model whose maps are not the identity."""
    field = replace(tiny.FIELD, local_size=ENCODER.local_size)
    config = ModelConfig(field, ENCODER, SCALE_MM, 'brain', coarse and coarse.config)
    model = NePhiModel(config, seeded(seed)).eval()
    with torch.no_grad():
        for network in model.networks:
            network.output.weight.normal_(0, 4e-3, generator=seeded(seed))
    if coarse is not None:
        model.coarse.load_state_dict(coarse.state_dict())
        model.coarse.requires_grad_(False)
    return model


@pytest.fixture(scope='module')
def coarse_file(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp('coarse') / 'coarse.safetensors', model_of(1))


@pytest.fixture(scope='module')
def staged(subjects):
    """What both stages of a model see of a pair."""
    model = model_of(2, model_of(1))
    pair = place_pair(*subjects[:2], 6.0, model.frame_for, STILL, seeded())
    return predict_stages(model, [pair], STILL, seeded())


def test_the_fine_stage_sees_the_moving_image_through_the_coarse_map(staged) -> None:
    first, last = staged
    points, inside = last.pairs[0].random_points(500, seeded(3), 'cpu')
    through = points + first.fields[0].displacement(points)
    assert (through - points).norm(dim=1).mean() * SCALE_MM > 0.3
    (fixed, moving), (same, warped) = (stage.pairs[0].volumes('cpu') for stage in staged)
    assert torch.equal(same.sample(points), fixed.sample(points))
    torch.testing.assert_close(warped.sample(points), moving.sample(through))
    # Points of the moving mask are where the warped one has it.
    weight = warped.sample(inside)[:, -1]
    assert float((weight > 0.5).float().mean()) > 0.9
    images = last.pairs[0].cubes(25, 'cpu', STILL, seeded())
    before = first.pairs[0].cubes(25, 'cpu', STILL, seeded())
    assert torch.equal(images[0], before[0]) and not torch.allclose(images[1], before[1])


def test_labels_and_known_maps_follow_the_coarse_map(staged, subjects) -> None:
    first, last = staged
    field = first.fields[0]
    points, _ = first.pairs[0].random_points(500, seeded(4), 'cpu')
    moved = field.displacement_in_chunks(points)
    assert last.pairs[0].dice(points, moved * 0)[0] == pytest.approx(
        first.pairs[0].dice(points, moved)[1]
    )
    simulated = simulate(first.pairs[0], Augmentation(simulated_mm=8.0), seeded(5))
    known = simulated.warp
    # A coarse map that is the truth leaves nothing to a field that does nothing.
    still = NePhiModel(model_of(1).config, seeded()).predict(
        torch.zeros(1, 2, 25, 25, 25), [[1.0] * 3]
    )[0]
    alone = float(supervised_loss(still, known, points).detach())
    assert alone == pytest.approx(1.0, abs=1e-5)
    after = float(supervised_loss(still, known, points, known).detach())
    assert after < 0.2


def test_stages_follow_each_other(staged) -> None:
    one, two = staged[0].fields[0], staged[1].fields[0]
    points = torch.rand(50, 3, generator=seeded()) - 0.5
    both = FieldWarp(two, FieldWarp(one))
    moved = points + two.displacement(points)
    torch.testing.assert_close(both(points), moved + one.displacement(moved))


def test_on_a_lattice_the_moving_image_is_warped_as_well(subjects) -> None:
    stack = Stack.of(subjects, 6.0, 6.0, 'cpu')
    # Linear images, in which interpolating twice loses nothing.
    shape = stack.images.shape
    ramp = sum(torch.meshgrid(*(torch.arange(n) / n for n in shape[2:]), indexing='ij'))
    stack = replace(stack, images=ramp.expand(shape))
    batch = Batch.draw(stack, SCALE_MM, 2, AUGMENTATIONS['posed'], seeded(1))
    model = model_of(1)
    volumes = batch.volumes(0), batch.volumes(1)
    with torch.no_grad():
        codes = model.encoder(batch.cubes(volumes, 25, STILL, seeded()))
        field = FieldBatch(model, *codes)
        seen = batch.warped(field.on_axes(batch.axes, 6.0 / SCALE_MM))
        points = (torch.rand(2, 400, 3, generator=seeded(2)) - 0.5) * 0.6
        moved = points + field.displacement(points.view(-1, 3)).view(points.shape)

    def read(source: Batch, at: torch.Tensor) -> torch.Tensor:
        return source.read(source.volumes(1), at[:, :, None, None], 1)[:, 0, :, 0, 0]

    change = (read(batch, moved) - read(batch, points)).abs().mean()
    assert (read(seen, points) - read(batch, moved)).abs().mean() < 0.15 * change
    assert torch.equal(seen.volumes(0), volumes[0])
    assert seen.one_hot(1).shape == batch.one_hot(1).shape


def parts(path) -> tuple[dict, dict]:
    """Weights of the coarse stage and of the fine one."""
    state = load_model(path).state_dict()
    coarse = {n.removeprefix('coarse.'): v for n, v in state.items() if n.startswith('coarse.')}
    return coarse, {n: v for n, v in state.items() if not n.startswith('coarse.')}


def alike(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def test_a_frozen_coarse_stage_stays_and_comes_along(people, coarse_file, tmp_path) -> None:
    images = people['images']
    options = {**TINY, 'labels': people['labels'], 'augmentation': 'mixed'}
    options['held_out'] = [str(images[2])]
    through = train(images, tmp_path / 'a', coarse=coarse_file, **options)
    coarse, fine = parts(through)
    assert alike(coarse, load_model(coarse_file).state_dict())
    assert any((value != 0).any() for name, value in fine.items() if 'output' in name)
    # Stopped and resumed it ends the same; another coarse stage is another training.
    train(images, tmp_path / 'b', coarse=coarse_file, **{**options, 'epochs': 1})
    again = train(images, tmp_path / 'b', coarse=coarse_file, **options)
    assert again.read_bytes() == through.read_bytes()
    other = save_model(tmp_path / 'other.safetensors', model_of(7))
    with pytest.raises(UsageError, match='a training with other coarse'):
        train(images, tmp_path / 'b', coarse=other, **options)
    found = register(*images[:2], weights=through, steps=0, affine=False, threads=1)
    assert found.base.field.config == load_model(coarse_file).config.field
    # Weights bring their stage along into the next training.
    onwards = train(images, tmp_path / 'c', weights=through, **{**options, 'epochs': 1})
    assert alike(parts(onwards)[0], coarse)


def test_both_stages_move_together(people, coarse_file, tmp_path) -> None:
    weights = train(people['images'], tmp_path, coarse=coarse_file, joint=True, **TINY)
    coarse, fine = parts(weights)
    assert not alike(coarse, load_model(coarse_file).state_dict())
    assert any((value != 0).any() for name, value in fine.items() if 'output' in name)
    assert 'joint = true' in (tmp_path / 'config.toml').read_text()


@pytest.mark.parametrize('joint', [False, True], ids=['frozen', 'joint'])
def test_a_lattice_trains_after_a_coarse_stage(people, coarse_file, tmp_path, joint) -> None:
    options = {name: value for name, value in TINY.items() if name not in ('points', 'grid')}
    options |= {
        'encoder': EncoderConfig(24, 'group', 'unet'),
        'loss': Loss('windowed-ncc', regularity_points=40, node_mm=16.0, dice_weight=0.5),
        'augmentation': 'posed',
        'labels': people['labels'],
        'epochs': 1,
    }
    weights = train(people['images'], tmp_path, coarse=coarse_file, joint=joint, **options)
    assert alike(parts(weights)[0], load_model(coarse_file).state_dict()) is not joint
    assert load_model(weights).config.encoder.kind == 'unet'


def test_the_fine_stage_learns_what_the_coarse_one_left(tmp_path) -> None:
    """A coarse stage that shifts the images apart is made good by the fine one."""
    pair = simulated_pair(
        *small_brain(6.0), magnitude_mm=12.0, smoothness_mm=50.0, seed=3, landmarks=300,
        gamma=1.0, bias=0.0, noise=0.0,
    )  # fmt: skip
    paths = [
        save_image(tmp_path / f'{side}.nii.gz', getattr(pair, side).data, pair.fixed.grid)
        for side in ('fixed', 'moving')
    ]
    model = NePhiModel(model_of(1).config, seeded(1))
    with torch.no_grad():
        for sign, network in zip((1, -1), model.networks, strict=True):
            network.output.bias += sign * torch.tensor([6.0, 0.0, 0.0]) / SCALE_MM
    coarse = save_model(tmp_path / 'coarse.safetensors', model)
    options = {**TINY, 'epochs': 6, 'steps_per_epoch': 15, 'average': 0.5}
    weights = train(paths, tmp_path / 'fine', coarse=coarse, **options)
    found = register(*paths, weights=weights, steps=0, affine=False, threads=1)
    points, truth = pair.fixed_landmarks, pair.moving_landmarks
    first = np.linalg.norm(found.base.warp_points(points) - truth, axis=1).mean()
    both = np.linalg.norm(found.warp_points(points) - truth, axis=1).mean()
    assert both < 0.8 * first


def test_what_cannot_be_trained_is_refused(people, coarse_file, tmp_path, capsys) -> None:
    images, folder = people['images'], tmp_path / 'out'
    with pytest.raises(UsageError, match='there is no coarse one'):
        train(images, folder, joint=True, **TINY)
    with pytest.raises(UsageError, match='a stage for the modality brain'):
        train(images, folder, coarse=coarse_file, **{**TINY, 'modality': 'other'})
    weights = save_model(tmp_path / 'w.safetensors', model_of(3))
    with pytest.raises(UsageError, match='expected one of the two'):
        train(images, folder, coarse=coarse_file, weights=weights, **TINY)
    argv = ['train', *map(str, images), '-o', str(folder), '--coarse', str(images[0])]
    assert main(argv) == 65
    assert 'checkpoint' in capsys.readouterr().err
