"""Breaths in training: which maps are drawn, density, and who is paired with whom."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from bids_data import save
from lung_data import affine, breathe, chest
from training_people import make_quick
from training_run import FIELD

from nephi_pipe.errors import UsageError
from nephi_pipe.field.interpolate import read_grid
from nephi_pipe.geometry import Frame
from nephi_pipe.images import load_mask
from nephi_pipe.motion import LandmarkMotion, lung_points
from nephi_pipe.presets import preset
from nephi_pipe.training import train
from nephi_pipe.training.breathing import AffineMap, Breaths, log_volume, with_density
from nephi_pipe.training.cache import load_subjects
from nephi_pipe.training.config import PRESETS
from nephi_pipe.training.files import files_of
from nephi_pipe.training.pairs import draw_pair
from nephi_pipe.training.run import breaths_of
from nephi_pipe.training.settings import AUGMENTATIONS, Augmentation

SCANS = ('sub-1_ses-1', 'sub-1_ses-2', 'sub-2', 'sub-3_ses-1', 'sub-3_ses-2', 'sub-3_ses-3')
BREATHING = AUGMENTATIONS['breathing']
STEADY = Augmentation(simulated=1.0, breathing_mm=20.0)


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    """Files of chests and masks; those of one person differ in breath."""
    folder = tmp_path_factory.mktemp('lungs')
    found = {'images': [], 'masks': []}
    for number, name in enumerate(SCANS):
        image, lungs = chest(1 + 0.05 * (number % 3))
        for kind, data in {'images': image, 'masks': lungs.astype(np.uint8)}.items():
            path = folder / f'{name}_{"ct" if kind == "images" else "mask"}.nii.gz'
            found[kind].append(save(path, data, affine()) or path)
    return found


@pytest.fixture(scope='module')
def files(scans):
    return files_of(scans['images'], scans['masks'], None)


@pytest.fixture(scope='module')
def subjects(files, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return load_subjects(files, preset('lung'), 33, tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module')
def motion(scans) -> LandmarkMotion:
    """Below the apex all moves down, the more the lower: by 30 mm at most."""
    lungs = load_mask(scans['masks'][0])
    start = lung_points(lungs)[::23]
    return LandmarkMotion(start, breathe(start, 1.2), lung_points(lungs))


@pytest.fixture(scope='module')
def breaths(motion) -> Breaths:
    return Breaths([motion])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(subjects, breaths, augmentation=STEADY, seed=0):
    """A pair in a frame with room for a breath, as that of a model."""

    def place(frame, extent):
        roomy = Frame(frame.center_mm, 1.3 * frame.scale_mm)
        return roomy, [half / 1.3 for half in extent]

    return draw_pair(
        subjects, 10.0, place, augmentation, seeded(seed), within=True, breaths=breaths
    )


@pytest.mark.parametrize('augmentation', [STEADY, BREATHING])
def test_a_breath_is_invertible_and_as_large_as_it_may_be(subjects, breaths, augmentation) -> None:
    means = []
    for seed in range(8):
        pair = draw(subjects, breaths, augmentation, seed)
        assert pair.fixed is pair.moving
        points = pair.random_points(500, seeded(1), 'cpu')[0]
        moved = pair.breath(points) - points
        means.append(float(moved.norm(dim=1).mean()) * pair.frame.scale_mm)
        assert (pair.breath.back(pair.breath(points)) - points).norm(dim=1).max() < 0.05
        for warp in (pair.breath, pair.warp):
            at = points[:100].double().requires_grad_()
            rows = [torch.autograd.grad(warp(at)[:, i].sum(), at)[0] for i in range(3)]
            assert torch.linalg.det(torch.stack(rows, dim=1)).min() > 0.1
    assert min(means) > 3.5 and max(means) < 21.5
    assert max(means) > 2 * min(means)


def test_a_breath_goes_the_way_of_its_motion_or_back(subjects, breaths, motion) -> None:
    ways = Counter()
    for seed in range(8):
        pair = draw(subjects, breaths, seed=seed)
        points = pair.random_points(500, seeded(1), 'cpu')[0]
        moved = (pair.breath(points) - points).numpy()
        height = points[:, 2].numpy()
        low = height < np.quantile(height, 0.2)
        high = height > np.quantile(height, 0.8)
        assert abs(moved[low, 2].mean()) > 2 * abs(moved[high, 2].mean())
        ways[bool(moved[low, 2].mean() < 0)] += 1
    assert set(ways) == {False, True}


def test_both_images_agree_where_the_truth_says(subjects, breaths) -> None:
    for augmentation in (STEADY, BREATHING):
        pair = draw(subjects, breaths, augmentation, 3)
        fixed, moving = pair.volumes('cpu')
        points, others = pair.random_points(1500, seeded(), 'cpu')
        there = pair.warp(points)
        change = log_volume(pair.breath, 21)
        assert float(change.abs().max()) > 0.05
        # But for the density what is shown is the same.
        np.testing.assert_allclose(
            fixed.sample(points)[:, 1:], moving.sample(there)[:, 1:], atol=2e-3
        )
        assert fixed.sample(points)[:, -1].mean() > 0.7
        assert moving.sample(others)[:, -1].mean() > 0.7
        reach = torch.tensor(pair.extent)
        assert (points.abs() <= reach).all() and (others.abs() <= reach).all()


def test_after_a_stage_the_moving_image_is_seen_through_both_maps(subjects, breaths) -> None:
    pair = draw(subjects, breaths, STEADY, 3)
    stage = AffineMap(torch.tensor([[1.0, 0.1, 0, 0.05], [0, 0.9, 0, 0], [0, 0, 1, -0.05]]))
    after = replace(pair, moving_warp=stage)
    points, others = after.random_points(400, seeded(), 'cpu')
    (fixed, moving), (same, seen) = pair.volumes('cpu'), after.volumes('cpu')
    np.testing.assert_array_equal(fixed.sample(points), same.sample(points))
    np.testing.assert_allclose(seen.sample(points), moving.sample(stage(points)), atol=1e-4)
    assert seen.sample(others)[:, -1].mean() > 0.7
    cubes = [one.cubes(33, 'cpu', STEADY, seeded()) for one in (pair, after)]
    np.testing.assert_array_equal(cubes[0][0], cubes[1][0])
    assert (cubes[0][1] - cubes[1][1]).abs().mean() > 0.002


def test_what_an_affine_can_do_is_not_left_to_the_maps(subjects, breaths) -> None:
    pair = draw(subjects, breaths, STEADY, 5)
    points = pair.random_points(1000, seeded(), 'cpu')[0]
    raw, left = ((warp(points) - points).norm(dim=1).mean() for warp in (pair.breath, pair.warp))
    assert left < 0.6 * raw
    closest = AffineMap.closest(points, pair.warp(points))
    np.testing.assert_allclose(closest.matrix, np.eye(3, 4), atol=0.02)


def test_density_follows_the_change_of_volume(subjects, breaths) -> None:
    pair = draw(subjects, breaths, STEADY, 3)
    points = pair.random_points(300, seeded(), 'cpu')[0].double()
    at = points.requires_grad_()
    rows = [torch.autograd.grad(pair.breath(at)[:, i].sum(), at)[0] for i in range(3)]
    exact = torch.linalg.det(torch.stack(rows, dim=1)).log()
    found = read_grid(log_volume(pair.breath, 21), points.detach().float())[:, 0]
    np.testing.assert_allclose(found, exact.detach(), atol=0.06)
    air, blood = torch.tensor([[0.15]]), torch.tensor([[1.0]])
    half = torch.tensor([[0.5]]).log()
    assert float(with_density(air, half)) == pytest.approx(0.075)
    assert float(with_density(blood, half)) == 1.0
    fixed, moving = pair.volumes('cpu')
    points = points.detach().float()
    before, after = moving.sample(pair.warp(points))[:, 0], fixed.sample(points)[:, 0]
    tissue = (before < 0.25) & (before > 0.1)
    np.testing.assert_allclose((after / before).log()[tissue], found[tissue], atol=0.02)
    cube = pair.cubes(33, 'cpu', STEADY, seeded())
    assert (cube[0] - cube[1]).abs().mean() > 0.002


def test_lungs_are_paired_within_a_person(subjects) -> None:
    still = AUGMENTATIONS['none']
    seen = Counter()
    for seed in range(60):
        pair = draw(subjects, None, replace(still, simulated_mm=10.0), seed)
        assert pair.fixed.person == pair.moving.person
        assert (pair.warp is None) == (pair.fixed is not pair.moving)
        seen[pair.fixed.person, pair.warp is None] += 1
    # Of sub-2 there is one scan only.
    assert set(seen) == {('sub-1', True), ('sub-2', False), ('sub-3', True)}
    simulated = draw(subjects, None, Augmentation(simulated=1.0), 1)
    assert simulated.fixed is simulated.moving


def test_motions_are_read_and_go_together(scans, motion, tmp_path) -> None:
    path = tmp_path / 'landmarks.tsv'
    names = [f'{state}_{axis}' for state in ('exp', 'insp') for axis in 'xyz']
    rows = np.concatenate([motion.start, motion.end], axis=1)
    path.write_text('\n'.join(['\t'.join(names), *('\t'.join(map(str, r)) for r in rows)]) + '\n')
    given = {'motions': [path], 'motion_lungs': [scans['masks'][0]]}
    config = PRESETS['lung'].changed(
        field=FIELD, grid=33, epochs=1, steps_per_epoch=2, eval_every=1
    )
    config = replace(config, encoder=replace(config.encoder, kind='pyramid'))
    options = {'masks': scans['masks'][:3], 'config': config, 'cache': tmp_path / 'cache'}
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        weights = train(scans['images'][:3], tmp_path / 'out', **options, **given)
    assert weights.exists()
    text = (tmp_path / 'out' / 'config.toml').read_text()
    assert 'use = "motion"' in text and 'breathing_mm = 20.0' in text
    with pytest.raises(UsageError, match='1 motion.s. and 0 mask.s. of their lungs'):
        train(scans['images'][:3], tmp_path / 'x', **options, motions=[path])
    with pytest.raises(UsageError, match='breathing_mm is 20 and there are no motions'):
        train(scans['images'][:3], tmp_path / 'x', **options)
    with pytest.raises(UsageError, match='expected no flips of all axes'):
        replace(config, augmentation=replace(BREATHING, flips=0.5)).checked()
    assert breaths_of([]) is None
