"""Folds of a registration are seen and mended: where they are, or by steps if they are many."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from registration_runs import quickly

from nephi_pipe import registration, stages
from nephi_pipe.field.latent import SOFTENED_NODES
from nephi_pipe.geometry import apply_affine
from nephi_pipe.presets.preparation import prepare

pytestmark = pytest.mark.usefixtures('tiny_presets')


def crumpled(pair) -> registration.Registration:
    """A registration of which the forward map folds in many places."""
    result = quickly(pair.fixed, pair.moving, steps=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight = result.field.networks[0].output.weight
        weight += 0.015 * torch.randn(weight.shape, generator=generator)
    return result


def test_folds_are_seen_by_every_definition(pair):
    result = crumpled(pair)
    saved, _ = result.stored_transform(2.0)
    folds = result.metrics(pair.fixed, pair.moving, saved=saved)['folds']
    assert folds['exact']['count'] > 0 > folds['exact']['min']
    assert folds['lattice']['count'] > 0 > folds['lattice']['min']
    assert folds['finite_difference']['central_count'] > 0
    assert folds['finite_difference']['digital_count'] > 0
    points = result.folded_points()
    assert points.shape[1] == 3 and (np.abs(points) <= 1.2).all()
    world = points * result.frame.scale_mm + np.array(result.frame.center_mm)
    forward = result.exact_jacobian_determinant(world)
    back = result.inverse.exact_jacobian_determinant(apply_affine(result.affine, world))
    assert (np.minimum(forward, back) <= 0.02).all()


def stage_of(result, pair) -> stages.Stage:
    chosen = registration.preset('brain')
    prepared = [prepare(image, None, None, chosen) for image in (pair.fixed, pair.moving)]
    return stages.Stage(result, prepared)


@pytest.mark.slow
def test_many_folds_are_repaired_by_steps_and_what_remains_is_reported(pair, monkeypatch):
    result = crumpled(pair)
    before = len(result.folded_points())
    monkeypatch.setattr(stages, 'REPAIR_STEPS', 6)
    result.history = []
    settings = registration.preset('brain').optimisation
    stage_of(result, pair).optimise(replace(settings, steps=1), 1, None)
    rounds = (len(result.history) - 1) / 6
    assert 1 <= rounds <= stages.REPAIR_ROUNDS and rounds == int(rounds)
    after = len(result.folded_points())
    assert after < 0.1 * before
    saved, _ = result.stored_transform(3.0)
    reported = result.metrics(pair.fixed, pair.moving, saved=saved)['folds']['exact']['count']
    assert reported <= after


def pinched(pair) -> tuple[registration.Registration, np.ndarray]:
    """A registration that folds at one node of its code, and where that node is, normalised."""
    result = quickly(pair.fixed, pair.moving)
    code = result.field.code.local_code.data
    node = np.array([6, 3, 6])
    for _ in range(20):
        code[tuple(node)] += 0.5
        result.forget_lattices()
        if len(result.folded_points()):
            return result, 2 * node / (len(code) - 1) - 1
    raise AssertionError('The map does not fold.')


def test_a_few_folds_are_mended_where_they_are_without_a_step(pair):
    result, node = pinched(pair)
    assert 0 < len(result.folded_points()) <= stages.MOST_SOFTENED
    points = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (4000, 3))).float()
    before = [result.field.displacement_in_chunks(points, inverse) for inverse in (False, True)]
    networks = [parameter.clone() for parameter in result.field.networks.parameters()]
    result.history = []
    stage_of(result, pair).repair(registration.preset('brain').optimisation, 1, None)
    assert not len(result.folded_points()) and not result.history
    assert all(map(torch.equal, networks, result.field.networks.parameters()))
    # Of the code's nodes those that are read next to the folds, within a node of the pinched one.
    apart = (points - torch.from_numpy(node)).abs().amax(dim=1)
    reach = (SOFTENED_NODES + 3) * 2 / (result.field.config.local_size - 1)
    assert (apart > reach).sum() > 10
    for inverse, old in zip((False, True), before, strict=True):
        moved = (result.field.displacement_in_chunks(points, inverse) - old).norm(dim=1)
        assert moved[apart > reach].max() < 1e-6 < moved.max()
