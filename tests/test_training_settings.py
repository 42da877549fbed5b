"""What decides a training: configs, named ones, options, and what is refused."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from lung_data import make_lungs
from training_people import make_people
from training_run import FIELD, TINY

from nephi_pipe import cli, cli_training, commands, describe
from nephi_pipe.bids_app.training_scans import find_training_scans
from nephi_pipe.demo import DATASET, LABELS
from nephi_pipe.errors import NoInputError, NothingSelectedError, UsageError
from nephi_pipe.field.config import PUBLISHED
from nephi_pipe.field.encoder import EncoderConfig
from nephi_pipe.interfaces.train import SETTINGS
from nephi_pipe.presets import preset
from nephi_pipe.training import run, train
from nephi_pipe.training.checkpoint import load_model, save_model
from nephi_pipe.training.config import PRESETS, TrainingConfig, read_config, to_toml
from nephi_pipe.training.files import files_of
from nephi_pipe.training.settings import AUGMENTATIONS, Loss, Schedule

# Configs


@pytest.mark.parametrize('config', [*PRESETS.values(), TrainingConfig.of('other')])
def test_a_config_survives_its_file(config, tmp_path) -> None:
    path = tmp_path / 'config.toml'
    path.write_text(to_toml(config.as_dict()))
    assert read_config(path) == config
    other = 'none' if config.loss.on_lattice else 'published'
    changed = config.changed(grid=41, epochs=3, dice_weight=0.5, augmentation=other)
    path.write_text(to_toml({**changed.as_dict(), 'data': [{'name': 'a"b\\\x7f.nii'}]}))
    assert read_config(path) == changed and changed.field.local_size == 21


def test_what_a_config_leaves_out_has_its_default(tmp_path) -> None:
    path = tmp_path / 'config.toml'
    path.write_text('modality = "lung"\n[training]\nepochs = 7\n[augmentation]\nflips = 0.5\n')
    config = read_config(path)
    assert config.training == Schedule(epochs=7) and config.augmentation.flips == 0.5
    assert config.loss == Loss.of(preset('lung').optimisation)
    assert config.loss.regularity_points == Loss().regularity_points, 'as many as a training takes'


def test_what_a_config_says_of_the_lattice_is_what_the_loss_uses() -> None:
    said = {'window': 2.0, 'global_weight': 0.7, 'bending_weight': 0.4}
    used = Loss('windowed-ncc', **said).for_points(preset('brain').optimisation)
    assert {name: getattr(used, name) for name in said} == said


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        ('modality = ', 'is not TOML'),
        ('modality = "knee"', 'no modality "knee"'),
        ('colour = 3', 'has "colour"; expected modality and the tables'),
        ('[colour]\na = 3', 'has "colour"; expected modality and the tables'),
        ('training = 3', 'has "training"; expected'),
        ('[training]\nspeed = 3', 'has "speed" in .training.; expected some of epochs'),
        ('[training]\nepochs = 2.5', 'epochs is 2.5 in .training.; expected a whole number'),
        ('[training]\nepochs = "many"', 'epochs is many'),
        ('[training]\neval_every = 0', 'eval_every is 0'),
        ('[training]\nprecision = "half"', "precision is 'half'; expected one of no, bf16"),
        ('[augmentation]\nflips = 1.5', 'flips is 1.5 in .augmentation.; .* at most 1'),
        ('[augmentation]\nnoise = nan', 'noise is nan'),
        ('[loss]\nsimilarity = "lncc"', 'no similarity "lncc"; expected one of ncc, local-ncc'),
        ('[loss]\nwindow = 0', 'window is 0'),
        ('[field]\nwidth = -1', "field's width is -1"),
        ('[encoder]\ngrid = 5', 'grid of 5 nodes is too small'),
    ],
)
def test_a_config_that_cannot_be_is_refused(text, named, tmp_path) -> None:
    path = tmp_path / 'config.toml'
    path.write_text(text)
    with pytest.raises(UsageError, match=named) as refusal:
        read_config(path)
    assert len(str(refusal.value).splitlines()) == 1
    with pytest.raises(NoInputError):
        read_config(tmp_path / 'missing.toml')


def test_the_published_training_has_its_numbers() -> None:
    config = PRESETS['lung-single-res']
    assert (config.encoder.grid, config.encoder.norm, config.field) == (175, 'batch', PUBLISHED)
    assert config.loss == Loss('ncc', 100_000, 500, 10.0, 0.0, 0.0, 0.01, 0.0, 0.0)
    training = config.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (2600, 8, 1e-4)
    assert config.augmentation == AUGMENTATIONS['none'] and training.rate(0) == 1e-4


def test_the_learning_rate_rises_and_is_halved() -> None:
    schedule = Schedule(learning_rate=1.0, warm_up=10, learning_rate_step=2, steps_per_epoch=100)
    rates = [schedule.rate(step) for step in (0, 4, 9, 199, 200, 399, 400)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.5, 0.25])


def test_names_agree_everywhere() -> None:
    assert set(cli_training.TRAINING_PRESETS) == set(PRESETS)
    assert set(cli_training.AUGMENTATIONS) == set(AUGMENTATIONS)
    names = {*commands.TRAINING_OPTIONS, *SETTINGS} - {'modality', 'field', 'grid'}
    parts = (Schedule, Loss, TrainingConfig)
    known = {one.name for part in parts for one in dataclasses.fields(part)}
    assert names <= known
    with pytest.raises(UsageError, match='no setting "speed"'):
        TrainingConfig().changed(speed=3)


# Options


def test_every_option_reaches_the_config(monkeypatch, tmp_path, capsys) -> None:
    seen = {}

    def instead(images, output_dir, **options):
        seen.update(options, images=images, output_dir=output_dir)
        return output_dir

    monkeypatch.setattr(run, 'train', instead)
    argv = ['train', str(DATASET), '-o', str(tmp_path), '--name', 'first', '--preset']
    argv += ['lung-single-res', '--modality', 'brain', '--derivatives', f'mesh={LABELS}']
    argv += ['--validation', '41', '--epochs', '3', '--eval-every', '-1', '--save-every', '2']
    argv += ['--batch-size', '2', '--learning-rate', '0.001', '--learning-rate-step', '9']
    argv += ['--augmentation', 'published', '--no-resume', '--weights', 'w.safetensors']
    assert cli.main(argv) == 0, capsys.readouterr().err
    assert [path.name[:6] for path in seen['images']] == ['sub-41', 'sub-43', 'sub-45']
    assert len(seen['labels']) == 3 and seen['masks'] is None and seen['held_out'] == ['41']
    assert seen['output_dir'] == tmp_path / 'first' and seen['resume'] is False
    assert seen['config'] == PRESETS['lung-single-res']
    expected = {
        'epochs': 3, 'eval_every': -1, 'save_every': 2, 'batch_size': 2, 'learning_rate': 0.001,
        'learning_rate_step': 9, 'augmentation': 'published', 'modality': 'brain',
    }  # fmt: skip
    assert {name: seen[name] for name in expected} == expected and 'seed' not in seen


def test_scans_of_a_data_set() -> None:
    images, masks, labels = find_training_scans(DATASET, ['sub-43', '41'], [str(LABELS)])
    assert [path.name for path in images] == ['sub-41_T1w.nii.gz', 'sub-43_T1w.nii.gz']
    assert masks is None and [path.name[:6] for path in labels] == ['sub-41', 'sub-43']
    assert find_training_scans(DATASET)[2] is None
    with pytest.raises(NothingSelectedError, match='no sub-99'):
        find_training_scans(DATASET, ['99'])
    with pytest.raises(NothingSelectedError, match='No ct matches'):
        find_training_scans(DATASET, modality='lung')
    with pytest.raises(UsageError, match='no scans of the modality "other"'):
        find_training_scans(DATASET, modality='other')


def test_of_lungs_all_scans_of_a_person_are_taken(tmp_path) -> None:
    people = {'01': {'ses-1': 1.0, 'ses-2': 1.1}, '02': {'ses-1': 1.0}}
    root = make_lungs(tmp_path / 'bids', people)
    manual = str(root / 'derivatives' / 'manual')
    images, masks, _ = find_training_scans(root, derivatives=[manual], modality='lung')
    stems = ['sub-01_ses-1', 'sub-01_ses-2', 'sub-02_ses-1']
    assert [path.name for path in images] == [f'{stem}_ct.nii.gz' for stem in stems]
    assert [path.name[:12] for path in masks] == stems
    assert [one.person for one in files_of(images, masks, None)] == ['sub-01', 'sub-01', 'sub-02']


def test_options_that_do_not_go_together(capsys, tmp_path) -> None:
    for more, named in (
        (['--masks', 'a.nii'], 'are for a list of images'),
        (['--config', 'a.toml', '--preset', 'lung-single-res'], 'not allowed with'),
        (['--eval-every', '0'], 'expected a whole number of 1 or more'),
    ):
        assert cli.main(['train', str(DATASET), '-o', str(tmp_path), *more]) == 64
        assert named in capsys.readouterr().err
    assert cli.main(['train', 'a.nii', 'b.nii', '-o', 'out', '--derivatives', 'x']) == 64
    assert 'are for a BIDS folder' in capsys.readouterr().err


def test_training_without_its_extra_is_refused(people, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(run, 'EXTRA', ('accelerate', 'not_installed'))
    with pytest.raises(UsageError, match='needs not_installed.*pip install not_installed'):
        train(people['images'], tmp_path / 'out', **TINY)
    assert not (tmp_path / 'out').exists()


# Weights to start from


def test_a_training_starts_from_weights(people, quick, tmp_path) -> None:
    options = {**TINY, 'steps_per_epoch': 2, 'epochs': 1, 'threads': 1}
    images = people['images']
    first = train(images, tmp_path / 'first', **options)
    half = load_model(first).half()
    start = save_model(tmp_path / 'half.safetensors', half)
    second = train(images, tmp_path / 'second', weights=start, **{**options, 'warm_up': 10**6})
    found = load_model(second)
    for name, value in found.named_parameters():
        before = dict(half.named_parameters())[name].float()
        assert value.dtype == torch.float32 and torch.allclose(value, before, atol=1e-6), name
    assert len(found.provenance['started_from']) == 64
    lines = describe.describe(second)
    assert 'steps_per_epoch: 2' in lines and 'started_from' in lines and 'use' in lines
    with pytest.raises(UsageError, match='other started_from'):
        train(images, tmp_path / 'second', **{**options, 'warm_up': 10**6})
    for changed, named in (
        ({'grid': 27}, 'grid 25 instead of 27'),
        ({'field': dataclasses.replace(FIELD, width=16)}, 'width 32 instead of 16'),
    ):
        with pytest.raises(UsageError, match=f'another architecture .*{named}') as refusal:
            train(images, tmp_path / 'third', weights=start, **{**options, **changed})
        assert str(start) in str(refusal.value)
    assert not (tmp_path / 'third').exists()


def test_a_unet_starts_from_weights_for_another_grid_or_organ(people, quick, tmp_path) -> None:
    encoder = EncoderConfig(25, 'group', 'unet')
    options = {**TINY, 'encoder': encoder, 'steps_per_epoch': 1, 'epochs': 1, 'threads': 1}
    images = people['images']
    first = train(images, tmp_path / 'first', **options)
    changed = {**options, 'grid': 33, 'encoder': replace(encoder, grid=33), 'modality': 'other'}
    second = train(images, tmp_path / 'second', weights=first, **{**changed, 'warm_up': 10**6})
    before, after = load_model(first), load_model(second)
    assert (after.config.field.local_size, after.config.modality) == (17, 'other')
    for name, value in after.named_parameters():
        start = dict(before.named_parameters())[name]
        assert torch.allclose(value.float(), start.float(), atol=1e-3), name


# Validation and averages


def test_validation_and_labels_are_learned_from_and_logged(people, quick, tmp_path) -> None:
    options = {**TINY, 'steps_per_epoch': 2, 'epochs': 2, 'threads': 1, 'eval_every': 1}
    more = make_people(tmp_path / 'kept', 5)
    weights = train(
        more['images'], tmp_path, labels=more['labels'], held_out=[str(more['images'][4]),
        more['images'][3].name], dice_weight=0.5, **options,
    )  # fmt: skip
    rows = [line.split(',') for line in weights.with_name('history.csv').read_text().splitlines()]
    last = dict(zip(rows[0], map(float, rows[-1]), strict=True))
    assert 0 < last['dice_loss'] < 1 and len(rows) == 3
    assert 0 < last['validation_dice_before'] < 1 and last['validation_folds_percent'] == 0
    assert last['validation_tre_mm'] > 0 and last['validation_inverse_consistency_mm'] >= 0
    best = load_model(weights.with_name('best.safetensors')).provenance['last_epoch']
    afters = [float(row[rows[0].index('validation_dice_after')]) for row in rows[1:]]
    assert best['validation_dice_after'] == max(afters)
    assert list((tmp_path / 'tensorboard').glob('events*'))
    uses = [one['use'] for one in load_model(weights).provenance['data']]
    assert uses == ['training'] * 3 + ['validation'] * 2
