"""Training: tiny weights on simulated images go through train, infer and optimise."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import training_run as tiny
from nipype.pipeline.engine import nodes
from small_pair import small_brain
from training_people import make_quick

from nephi_pipe import load_registration, register, result
from nephi_pipe.cli import main
from nephi_pipe.errors import InputDataError, NePhiError, NoInputError, UsageError
from nephi_pipe.field.config import PUBLISHED
from nephi_pipe.geometry import Grid
from nephi_pipe.images import load_image, save_image
from nephi_pipe.interfaces import NePhiTrain
from nephi_pipe.simulate import simulated_pair
from nephi_pipe.training import loop, train
from nephi_pipe.training.checkpoint import load_model
from nephi_pipe.training.config import read_config
from nephi_pipe.training.records import HISTORY, WEIGHTS

TINY = {**tiny.TINY, 'threads': 1}
SHORT = {'epochs': 2, 'steps_per_epoch': 3, **TINY}
FIELD = tiny.FIELD


@pytest.fixture(scope='module')
def pair():
    """A brain at 6 mm and its warp by up to 15 mm."""
    contrast = {'gamma': 1.0, 'bias': 0.0, 'noise': 0.0}
    return simulated_pair(
        *small_brain(6.0), magnitude_mm=15.0, smoothness_mm=50.0, seed=3, landmarks=300, **contrast
    )


@pytest.fixture(scope='module')
def learned(pair, tmp_path_factory):
    """Weights of a training long enough to learn the two images it sees, and their files."""
    folder = tmp_path_factory.mktemp('learned')
    paths = [
        save_image(folder / f'{side}.nii.gz', getattr(pair, side).data, pair.fixed.grid)
        for side in ('fixed', 'moving')
    ]
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        weights = train(paths, folder, epochs=7, steps_per_epoch=15, average=0.5, **TINY)
    return weights, paths


def read_json(path: Path):
    return json.loads(path.read_text())


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected, axis=-1).mean())


# From training to registration


def test_what_was_learned_registers_without_a_step(learned, pair) -> None:
    weights, paths = learned
    losses = [epoch['similarity'] for epoch in read_json(weights.with_name(HISTORY))]
    assert len(losses) == 7 and losses[-1] < 0.85 * losses[0]
    found = register(*paths, weights=weights, steps=0, affine=False)
    assert found.history == [] and found.field.config.local_size == 13
    before = distance(pair.fixed_landmarks, pair.moving_landmarks)
    for way, start, end in (
        (found, pair.fixed_landmarks, pair.moving_landmarks),
        (found.inverse, pair.moving_landmarks, pair.fixed_landmarks),
    ):
        assert distance(way.warp_points(start), end) < 0.85 * before


def test_steps_go_on_from_the_weights_and_leave_them_alone(learned, pair, monkeypatch) -> None:
    monkeypatch.setattr(result, 'EXACT_POINTS', 2000)
    monkeypatch.setattr(result, 'LOWEST_POINTS', 500)
    (weights, paths), points, truth = learned, pair.fixed_landmarks, pair.moving_landmarks
    content = weights.read_bytes()

    def warped(start, steps: int) -> np.ndarray:
        found = register(*paths, weights=start, steps=steps, affine=False, sloppy=True, threads=1)
        return found.warp_points(points)

    predicted, optimised, fresh = warped(weights, 0), warped(weights, 12), warped('none', 12)
    assert distance(optimised, truth) < 0.95 * distance(predicted, truth)
    assert distance(optimised, truth) < 0.95 * distance(fresh, truth)
    assert weights.read_bytes() == content
    np.testing.assert_array_equal(warped(weights, 0), predicted)
    np.testing.assert_array_equal(warped(weights, 12), optimised)


def test_a_prediction_survives_being_saved_as_a_field(learned, pair, tmp_path) -> None:
    weights, paths = learned
    found = register(*paths, weights=weights, steps=0, affine=False)
    assert found.provenance['weights'] == str(weights)
    loaded = load_registration(found.save_field(tmp_path / 'field.safetensors'))
    for points, one, other in (
        (pair.fixed_landmarks, found, loaded),
        (pair.moving_landmarks, found.inverse, loaded.inverse),
    ):
        assert distance(other.warp_points(points), one.warp_points(points)) < 0.02


def test_a_prediction_moves_with_the_world(learned, pair, tmp_path) -> None:
    weights, paths = learned
    shift = np.eye(4)
    shift[:3, 3] = 40.0, -25.0, 10.0
    moved = []
    for path in paths:
        image = load_image(path)
        grid = Grid(image.grid.shape, shift @ image.grid.affine)
        moved.append(save_image(tmp_path / path.name, image.data, grid))
    options = {'weights': weights, 'steps': 0, 'affine': False}
    here, there = register(*paths, **options), register(*moved, **options)
    points = pair.fixed_landmarks
    expected = here.warp_points(points) + shift[:3, 3]
    np.testing.assert_allclose(there.warp_points(points + shift[:3, 3]), expected, atol=0.05)


def test_weights_of_another_modality_are_told(learned, caplog) -> None:
    weights, paths = learned
    register(*paths, weights=weights, steps=0, affine=False, modality='other')
    assert 'trained for the modality "brain" and are used for "other"' in caplog.text


def test_the_interface_hands_everything_on(people, quick, tmp_path) -> None:
    files = {kind: [str(path) for path in paths] for kind, paths in people.items()}
    numbers = {'grid': 23, 'epochs': 1, 'steps_per_epoch': 2, 'learning_rate': 1e-3, 'seed': 4}
    interface = NePhiTrain(**files, modality='other', field='published', batch_size=2, **numbers)
    outputs = interface.run(cwd=str(tmp_path)).outputs
    history = read_json(Path(outputs.history))
    assert [epoch['epoch'] for epoch in history] == [1] and 'dice_after' in history[0]
    model = load_model(outputs.weights)
    assert (model.config.modality, model.config.encoder.grid) == ('other', 23)
    assert model.config.field == dataclasses.replace(PUBLISHED, local_size=12)
    training = model.provenance['settings']['training']
    assert training['steps_per_epoch'] == training['batch_size'] == 2 and training['seed'] == 4
    assert read_config(outputs.config).training.learning_rate == 1e-3
    assert all(len(one['labels']) == len(one['mask']) == 64 for one in model.provenance['data'])


# Interruption


def test_an_interrupted_training_ends_like_an_uninterrupted_one(people, quick, tmp_path) -> None:
    options = {**people, **SHORT, 'epochs': 3, 'batch_size': 2}
    whole = train(output_dir=tmp_path / 'whole', **options)
    seen = []

    def stop(progress) -> None:
        seen.append(progress.step)
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(output_dir=tmp_path / 'parts', progress=stop, **options)
    assert len(read_json(tmp_path / 'parts' / HISTORY)) == 1
    resumed = train(
        output_dir=tmp_path / 'parts', progress=lambda p: seen.append(p.step), **options
    )
    # The second epoch begins anew: what is saved is whole epochs.
    assert seen == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]
    losses = read_json(tmp_path / 'whole' / HISTORY)
    assert read_json(tmp_path / 'parts' / HISTORY) == losses and len(losses) == 3
    assert resumed.read_bytes() == whole.read_bytes()


def test_more_epochs_go_on_and_a_finished_training_is_left_alone(people, quick, tmp_path) -> None:
    first = train(people['images'], tmp_path, **SHORT).read_bytes()
    steps = []
    again = train(people['images'], tmp_path, progress=steps.append, **SHORT)
    assert not steps and again.read_bytes() == first
    more = train(people['images'], tmp_path, progress=steps.append, **{**SHORT, 'epochs': 3})
    assert [progress.step for progress in steps] == [7, 8, 9]
    assert [progress.level for progress in steps] == [3, 3, 3] and steps[-1].total_steps == 9
    assert more.read_bytes() != first
    with pytest.raises(UsageError, match='has 3 epochs behind it, expected at most the 2'):
        train(people['images'], tmp_path, **SHORT)
    anew = train(people['images'], tmp_path, resume=False, **SHORT)
    assert anew.read_bytes() == first


def test_a_nipype_node_that_was_killed_goes_on(people, quick, tmp_path) -> None:
    images = [str(path) for path in people['images']]
    step, numbers = loop.TrainingRun._step, []

    def counted(self, number: int):
        if number == 3 and 3 not in numbers:
            numbers.append(number)
            raise MemoryError
        numbers.append(number)
        return step(self, number)

    quick.setattr(loop.TrainingRun, '_step', counted)
    options = {'images': images, 'epochs': 2, 'steps_per_epoch': 2, 'grid': 23}

    def node() -> nodes.Node:
        return nodes.Node(NePhiTrain(**options), 'train', base_dir=str(tmp_path))

    with pytest.MonkeyPatch.context() as patch:
        # A process that is killed does not tidy up behind itself.
        patch.setattr(nodes, 'silentrm', lambda *_: True)
        with pytest.raises(nodes.NodeExecutionError, match='MemoryError'):
            node().run()
    weights = node().run().outputs.weights
    assert numbers == [0, 1, 2, 3, 2, 3]
    assert len(read_json(Path(weights).with_name(HISTORY))) == 2


def test_another_training_is_not_continued(people, quick, tmp_path) -> None:
    images, masks = people['images'], people['masks']
    train(images, tmp_path, **SHORT)
    for changed, named in (
        ({'seed': 2}, 'other seed'),
        ({'batch_size': 2}, 'other batch_size'),
        ({'grid': 27}, 'other architecture'),
        ({'modality': 'other'}, 'other architecture'),
        ({'field': dataclasses.replace(FIELD, width=16)}, 'other architecture'),
    ):
        with pytest.raises(UsageError, match=named):
            train(images, tmp_path, **{**SHORT, **changed})
    with pytest.raises(UsageError, match='other data'):
        train(images[:2], tmp_path, **SHORT)
    with pytest.raises(UsageError, match='data'):
        train(images, tmp_path, masks=masks, **SHORT)


# Checkpoints


# Bad input


@pytest.mark.parametrize(
    ('changed', 'named'),
    [
        ({'images': []}, '0 image.* expected two images'),
        ({'images': ['a.nii']}, '1 image.* expected two images'),
        ({'masks': ['a.nii']}, '1 masks for 3 images'),
        ({'labels': ['a.nii'] * 4}, '4 label maps for 3 images'),
        ({'epochs': 0}, 'epochs is 0'),
        ({'learning_rate': float('nan')}, 'learning_rate is nan'),
        ({'field': 'huge'}, 'no field "huge"'),
        ({'field': dataclasses.replace(FIELD, ndim=2)}, '2 axes; expected 3'),
        ({'grid': 20}, 'grid of 20 nodes is too small'),
        ({'modality': 'knee'}, 'no modality "knee"'),
        ({'device': 'abacus'}, 'device "abacus"'),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_any_work(
    people, tmp_path, changed, named
) -> None:
    options = {'images': people['images'], **SHORT, **changed}
    with pytest.raises(UsageError, match=named) as refusal:
        train(output_dir=tmp_path / 'out', **options)
    assert len(str(refusal.value).splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_files_that_cannot_be_are_refused(people, quick, tmp_path) -> None:
    images, masks = people['images'], people['masks']
    with pytest.raises(NoInputError, match='missing.nii'):
        train([*images, tmp_path / 'missing.nii'], tmp_path, **SHORT)
    other = save_image(
        tmp_path / 'mask.nii.gz', np.ones((5, 5, 5), bool), Grid((5, 5, 5), np.eye(4))
    )
    with pytest.raises(InputDataError, match='does not lie on the grid'):
        train(images, tmp_path, masks=[*masks[:2], other], **SHORT)
    with pytest.raises(InputDataError, match='does not lie on the grid'):
        train(images, tmp_path, labels=[*people['labels'][:2], other], **SHORT)


def test_a_loss_that_explodes_is_told(people, quick, tmp_path) -> None:
    with pytest.raises(NePhiError, match='not finite.*smaller learning rate'):
        train(people['images'], tmp_path, **{**SHORT, 'learning_rate': 1e30})
    assert not (tmp_path / WEIGHTS).exists()


# The command


def test_the_command_trains_what_register_uses(people, quick, tmp_path, capsys) -> None:
    images, masks = ([str(path) for path in people[kind]] for kind in ('images', 'masks'))
    out = tmp_path / 'out'
    argv = ['train', *images, '-o', str(out), '--masks', *masks, '--grid', '23']
    argv += ['--epochs', '1', '--steps-per-epoch', '2', '--threads', '1']
    assert main(argv) == 0
    said = capsys.readouterr()
    assert str(out / WEIGHTS) in said.out and 'step 2/2' in said.err
    found = register(*images[:2], weights=out / WEIGHTS, steps=0, affine=False)
    assert found.provenance['weights'] == str(out / WEIGHTS)
    assert main(['info', str(out / WEIGHTS)]) == 0
    assert 'nephi-weights-1' in capsys.readouterr().out
    assert main([*argv, '--seed', '5']) == 64
    assert 'other seed' in capsys.readouterr().err
    assert main([*argv, '--seed', '5', '--no-resume']) == 0
