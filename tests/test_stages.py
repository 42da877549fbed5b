"""Two NePhi stages: a coarse model's map warps the moving image before the fine one sees it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import training_run as tiny
from cli_runs import error_of
from registration_runs import quickly

from nephi_pipe import load_registration, registration
from nephi_pipe.errors import InputDataError, UsageError
from nephi_pipe.field.encoder import EncoderConfig
from nephi_pipe.field.model import ModelConfig, NePhiModel
from nephi_pipe.images import save_image
from nephi_pipe.training.checkpoint import load_model, save_model

pytestmark = pytest.mark.usefixtures('tiny_presets')

SCALE_MM = 90.0


def model_of(seed: int, coarse: NePhiModel | None = None, grid: int = 25) -> NePhiModel:
    """A model whose maps are not the identity, after another one."""
    encoder = EncoderConfig(grid, 'group')
    field = replace(tiny.FIELD, local_size=encoder.local_size)
    config = ModelConfig(field, encoder, SCALE_MM, 'brain', coarse and coarse.config)
    model = NePhiModel(config, torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for network in model.networks:
            network.output.weight.normal_(0, 4e-3, generator=torch.Generator().manual_seed(seed))
    if coarse is not None:
        model.coarse.load_state_dict(coarse.state_dict())
    return model


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Weights of a coarse stage, of a fine one, and of both in one file."""
    folder = tmp_path_factory.mktemp('weights')
    coarse, fine = model_of(1), model_of(2, grid=33)
    both = model_of(2, coarse, 33)
    named = {'coarse': coarse, 'fine': fine, 'both': both}
    return {name: save_model(folder / f'{name}.safetensors', m) for name, m in named.items()}


@pytest.fixture(scope='module')
def points(pair):
    return pair.fixed_landmarks[:200]


def length(vectors):
    return np.linalg.norm(vectors, axis=-1)


def test_stages_are_predicted_one_after_the_other(pair, files, points):
    coarse = quickly(pair.fixed, pair.moving, weights=files['coarse'], steps=0)
    assert 0.2 < length(coarse.displacement_at(points)).mean() < 10
    expected = quickly(
        pair.fixed, pair.moving, weights=files['fine'], steps=0, initial_transform=coarse
    )
    stages = [files['coarse'], files['fine']]
    found = quickly(pair.fixed, pair.moving, weights=stages, steps=0)
    np.testing.assert_array_equal(found.warp_points(points), expected.warp_points(points))
    own = found._side.inner.displacement_at(points)
    assert length(own).mean() > 0.05
    np.testing.assert_allclose(
        found.warp_points(points), coarse.warp_points(points + own), atol=1e-6
    )
    alone = quickly(pair.fixed, pair.moving, weights=files['fine'], steps=0)
    assert length(alone.displacement_at(points) - own).max() > 0.01
    assert found.provenance['weights'] == f'{files["coarse"]}, {files["fine"]}'


def test_one_file_brings_both_stages(pair, files, points):
    stages = [files['coarse'], files['fine']]
    listed, carried = (
        quickly(pair.fixed, pair.moving, weights=weights, steps=0)
        for weights in (stages, files['both'])
    )
    # Where tensors lie in memory decides the last digits of products on some processors.
    np.testing.assert_allclose(carried.warp_points(points), listed.warp_points(points), atol=1e-4)
    model = load_model(files['both'])
    assert [stage.config.encoder.grid for stage in model.stages] == [25, 33]


def test_the_last_stage_alone_is_optimised(pair, files, points, tmp_path):
    start = quickly(pair.fixed, pair.moving, weights=files['both'], steps=0)
    found = quickly(pair.fixed, pair.moving, weights=files['both'], steps=4)
    np.testing.assert_array_equal(found.base.warp_points(points), start.base.warp_points(points))
    assert length(found.warp_points(points) - start.warp_points(points)).mean() > 0.01
    assert len(found.history) >= 4 and not found.base.history
    again = load_registration(found.save_field(tmp_path / 'both.safetensors'))
    assert length(again.warp_points(points) - found.warp_points(points)).max() < 0.03


def test_the_command_takes_stages(pair, capsys, monkeypatch, tmp_path):
    def register(*_, weights, **__):
        raise UsageError(f'asked for {weights}')

    monkeypatch.setattr(registration, 'register', register)
    image = save_image(tmp_path / 'image.nii.gz', pair.fixed.data, pair.fixed.grid)
    command = ['register', image, image, '-o', tmp_path / 'out']
    for given, passed in ((['a', 'b'], "['a', 'b']"), (['a'], 'a'), ([], 'default')):
        options = [part for one in given for part in ('--weights', one)]
        assert f'asked for {passed}' in error_of(capsys, *command, *options)[1]


def test_a_fresh_field_may_come_last(pair, files, points):
    stages = [files['coarse'], 'none']
    found = quickly(pair.fixed, pair.moving, weights=stages, steps=1)
    coarse = quickly(pair.fixed, pair.moving, weights=files['coarse'], steps=0)
    np.testing.assert_array_equal(found.base.warp_points(points), coarse.warp_points(points))
    with pytest.raises(UsageError, match='Zero steps without weights'):
        quickly(pair.fixed, pair.moving, weights=stages, steps=0)


@pytest.mark.parametrize('stages', [[], ['none', 'none'], ['default', 'a.safetensors']])
def test_stages_without_a_file_are_refused(pair, stages):
    with pytest.raises(UsageError, match='hold no file for each'):
        quickly(pair.fixed, pair.moving, weights=stages)


def test_stages_of_two_scales_in_one_file_are_refused(tmp_path, monkeypatch):
    model = model_of(2, model_of(1))
    config = replace(model.config, coarse=replace(model.config.coarse, scale_mm=50.0))
    monkeypatch.setattr(model, 'config', config)
    path = save_model(tmp_path / 'two.safetensors', model)
    with pytest.raises(InputDataError, match='scales of 50.0 and 90.0 mm in two stages'):
        load_model(path)
