"""What a training reads: the cache, pairs, augmentation, simulated pairs."""

import dataclasses
import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from data import AFFINE
from training_people import aligned, make_quick

from nephi_pipe import images as images_module
from nephi_pipe.errors import InputDataError, StorageError, UsageError
from nephi_pipe.field.model import read_cube
from nephi_pipe.geometry import Grid, apply_affine
from nephi_pipe.images import load_image, load_labels, load_mask, save_image
from nephi_pipe.learning import affine as affine_stage
from nephi_pipe.learning.volume import Volume
from nephi_pipe.presets import preset
from nephi_pipe.presets.preparation import feature_channels, frame_of, prepare
from nephi_pipe.training import cache
from nephi_pipe.training.augment import Warp, intensities, noisy_affine, shared_turn
from nephi_pipe.training.cache import load_subjects
from nephi_pipe.training.files import files_of, split
from nephi_pipe.training.pairs import draw_pair, place_pair, simulate
from nephi_pipe.training.settings import AUGMENTATIONS, Augmentation
from nephi_pipe.training.subject import scale_of

LOCAL = replace(
    preset('brain'), optimisation=replace(preset('brain').optimisation, similarity='local-ncc')
)
"""Two channels of features."""

STILL = AUGMENTATIONS['none']


@pytest.fixture(scope='module')
def files(people):
    return files_of(people['images'], people['masks'], people['labels'])


@pytest.fixture(scope='module')
def subjects(files, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return load_subjects(files, LOCAL, 25, tmp_path_factory.mktemp('cache'))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(subjects, augmentation=STILL, seed: int = 0):
    return draw_pair(subjects, 6.0, lambda *frame: frame, augmentation, seeded(seed))


# The cache


def test_subjects_are_prepared_as_register_prepares_them(files, subjects) -> None:
    chosen = LOCAL
    for one, subject in zip(files, subjects, strict=True):
        image = load_image(one.image)
        expected = prepare(image, load_mask(one.mask).data, None, chosen).cropped()
        settings = chosen.optimisation
        channels = feature_channels(expected, settings.levels[-1], settings, 'cpu').numpy()
        inner = np.moveaxis(subject.channels[1:-1, 1:-1, 1:-1], -1, 0)
        np.testing.assert_allclose(inner, channels, atol=2e-3)
        assert not subject.channels[[0, -1]].any() and subject.channels.dtype == np.float16
        index = np.array([4, 3, 2])
        moved = subject.grid.to_world(index + 1)
        np.testing.assert_allclose(moved, expected.grid.to_world(index))
        labels = load_labels(one.labels)
        points = subject.random_points(4000, seeded())
        at_voxels = np.rint(labels.grid.to_index(points)).astype(int)
        np.testing.assert_array_equal(subject.labels_at(points), labels.data[tuple(at_voxels.T)])
        assert not subject.labels_at(points + [1000.0, 0, 0]).any()


def test_points_lie_in_the_mask(subjects, files) -> None:
    mask = load_mask(files[0].mask)
    points = subjects[0].random_points(4000, seeded())
    index = np.rint(mask.grid.to_index(points)).astype(int)
    assert mask.data[tuple(index.T)].all()
    inside = np.argwhere(mask.data)
    assert np.abs(index.mean(axis=0) - inside.mean(axis=0)).max() < 0.5


def test_a_second_start_reads_no_image(files, quick, tmp_path) -> None:
    chosen = preset('brain')
    first = load_subjects(files, chosen, 25, tmp_path)

    def never(*_, **__):
        raise AssertionError('an image was read')

    quick.setattr(cache, 'load_image', never)
    quick.setattr(images_module, 'open_image', never)
    for one, other in zip(first, load_subjects(files, chosen, 25, tmp_path), strict=True):
        np.testing.assert_array_equal(one.channels, other.channels)
        np.testing.assert_array_equal(one.affine, other.affine)
        assert not other.channels.flags.owndata
    # Anything that changes what is prepared is another entry.
    for others, changed, grid in (
        (files_of([one.image for one in files], None, None), chosen, 25),
        (files, preset('other'), 25),
        (files, chosen, 41),
    ):
        with pytest.raises(AssertionError, match='was read'):
            load_subjects(others, changed, grid, tmp_path)


@pytest.mark.parametrize('spoil', ['cut', 'text', 'meta', 'gone'])
def test_a_damaged_entry_is_made_again(files, quick, tmp_path, spoil) -> None:
    first = load_subjects(files[:2], preset('brain'), 25, tmp_path)
    channels = np.array(first[0].channels)
    for entry in (path for path in tmp_path.iterdir() if path.is_dir()):
        path = entry / 'channels.npy'
        if spoil == 'cut':
            os.truncate(path, path.stat().st_size // 2)
        elif spoil == 'text':
            path.write_text('channels')
        elif spoil == 'meta':
            (entry / 'entry.json').write_text('{}')
        else:
            path.unlink()
    again = load_subjects(files[:2], preset('brain'), 25, tmp_path)
    np.testing.assert_array_equal(again[0].channels, channels)
    assert not [path for path in tmp_path.iterdir() if 'partial' in path.name]


def test_a_full_disk_leaves_no_entry(files, quick, tmp_path) -> None:
    def full(path, array) -> None:
        path.write_bytes(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, '_save', full)
        with pytest.raises(StorageError, match='the disk is full'):
            load_subjects(files, preset('brain'), 25, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, '_FLOOR_BYTES', 1 << 62)
        with pytest.raises(StorageError, match='MB free.*Free some space'):
            load_subjects(files, preset('brain'), 25, tmp_path)
    assert len(load_subjects(files, preset('brain'), 25, tmp_path)) == 3


def test_labels_that_would_be_merged_are_refused(files, quick, tmp_path) -> None:
    labels = load_labels(files[0].labels)
    large = np.where(labels.data == labels.data.max(), 312_782_546, labels.data)
    path = save_image(tmp_path / 'labels.nii.gz', large.astype(np.int32), labels.grid)
    with pytest.raises(InputDataError, match='labels.nii.gz" holds the label 312782546'):
        load_subjects([replace(files[0], labels=path)], preset('brain'), 25, tmp_path / 'cache')
    assert not [one for one in (tmp_path / 'cache').iterdir() if one.is_dir()]


def test_what_a_killed_process_left_is_removed_a_day_later(files, quick, tmp_path) -> None:
    left = [tmp_path / f'.0123456{number}.partial.entry' for number in range(2)]
    for path in left:
        path.mkdir()
        (path / 'channels.npy').write_bytes(b'half')
    os.utime(left[0], (0, 0))
    load_subjects(files, preset('brain'), 25, tmp_path)
    assert [path.exists() for path in left] == [False, True]


def test_affines_are_composed_and_found_once(people, monkeypatch, tmp_path) -> None:
    poses = [np.eye(4), AFFINE, np.linalg.inv(AFFINE)]
    posed = {'images': [], 'masks': []}
    for number, pose in enumerate(poses):
        for kind, paths in posed.items():
            image = load_image(people[kind][number])
            grid = Grid(image.grid.shape, pose @ image.grid.affine)
            paths.append(save_image(tmp_path / people[kind][number].name, image.data, grid))
    found = iter(poses[1:])
    monkeypatch.setattr(affine_stage, 'estimate_affine', lambda *_, **__: next(found))
    chosen, files = preset('brain'), files_of(posed['images'], posed['masks'], None)
    subjects = load_subjects(files, chosen, 25, tmp_path / 'cache')
    drawn = set()
    for seed in range(20):
        pair = draw(subjects, seed=seed)
        numbers = [next(i for i, one in enumerate(subjects) if one is side)
                   for side in (pair.fixed, pair.moving)]  # fmt: skip
        drawn.add(tuple(numbers))
        index = np.array([[3.0, 7.0, 5.0], [20.0, 11.0, 16.0]])
        # All images show the same voxels, so the affine takes each voxel to its own.
        images = [load_image(posed['images'][number]) for number in numbers]
        moved = apply_affine(pair.worlds[1], images[0].grid.to_world(index))
        np.testing.assert_allclose(moved, images[1].grid.to_world(index), atol=1e-4)
        volumes, (at, back) = pair.volumes('cpu'), pair.random_points(500, seeded(), 'cpu')
        assert volumes[0].sample(at)[:, -1].mean() > 0.7
        assert volumes[1].sample(back)[:, -1].mean() > 0.7
    assert len(drawn) == 6
    # They are known now: another search would run out of answers.
    again = load_subjects(files, chosen, 25, tmp_path / 'cache')
    for one, other in zip(subjects, again, strict=True):
        np.testing.assert_array_equal(one.affine, other.affine)


def test_the_affine_search_itself_is_used(people, tmp_path) -> None:
    image, mask = load_image(people['images'][0]), people['masks'][0]
    pose = np.eye(4)
    pose[:3, 3] = 12.0, -20.0, 8.0
    grid = Grid(image.grid.shape, pose @ image.grid.affine)
    images = [people['images'][0], save_image(tmp_path / 'image.nii.gz', image.data, grid)]
    masks = [mask, save_image(tmp_path / 'mask.nii.gz', load_mask(mask).data, grid)]
    _, second = load_subjects(files_of(images, masks, None), preset('brain'), 25, tmp_path / 'c')
    np.testing.assert_allclose(second.affine, pose, atol=0.3)


# Reading pairs


def test_stored_volumes_read_as_volumes_do(subjects) -> None:
    pair = draw(subjects)
    points = torch.rand(500, 3, generator=seeded()) * 2.4 - 1.2
    points.requires_grad_()
    for stored, side, world in zip(
        pair.volumes('cpu'), (pair.fixed, pair.moving), pair.worlds, strict=True
    ):
        channels = torch.from_numpy(side.channels).float().movedim(-1, 0)
        plain = Volume(channels, side.grid, pair.frame, world)
        slopes = []
        for volume in (stored, plain):
            values = volume.sample(points)
            slopes.append((values, torch.autograd.grad(values.square().sum(), points)[0]))
        np.testing.assert_allclose(*(value.detach() for value, _ in slopes), atol=1e-4)
        close = (slopes[0][1] - slopes[1][1]).abs().amax(dim=1) < 1e-2
        assert close.float().mean() > 0.97  # but for points on a face between voxels


def test_cubes_are_what_the_model_sees(subjects, files) -> None:
    pair = draw(subjects)
    cubes = pair.cubes(25, 'cpu', STILL, seeded())
    for cube, side, world in zip(cubes, (pair.fixed, pair.moving), pair.worlds, strict=True):
        one = files[next(i for i, other in enumerate(subjects) if other is side)]
        native = prepare(load_image(one.image), load_mask(one.mask).data, None, LOCAL)
        expected = read_cube(native, pair.frame, world, 25)
        assert np.corrcoef(cube.ravel(), expected.ravel())[0, 1] > 0.99
        assert (cube - expected).square().mean().sqrt() < 0.15 * expected.std()


def test_the_scale_and_the_extent_hold_every_pair(subjects, files) -> None:
    scale_mm = scale_of(subjects, 6.0)
    for seed in range(6):
        pair = draw(subjects, seed=seed)
        assert pair.frame.scale_mm <= scale_mm <= 1.3 * pair.frame.scale_mm
    prepared = [cache.prepared_of(one, LOCAL) for one in files[:2]]
    frame, extent = frame_of(*prepared, np.eye(4), 6.0)
    pair = place_pair(*subjects[:2], 6.0, lambda *frame: frame, STILL, seeded())
    assert abs(pair.frame.scale_mm - frame.scale_mm) < 1e-6
    np.testing.assert_allclose(pair.extent, extent, rtol=1e-6)


def test_dice_is_one_where_nothing_moves(subjects) -> None:
    pair = draw(subjects)
    same = dataclasses.replace(pair, moving=pair.fixed, worlds=(np.eye(4), np.eye(4)))
    at = same.random_points(2000, seeded(1), 'cpu')[0]
    assert same.dice(at, torch.zeros_like(at)) == (1.0, 1.0)
    before, after = same.dice(at, torch.full_like(at, 0.2))
    assert before == 1.0 and after < 0.8


# Augmentation


@pytest.mark.parametrize('augmentation', [
    Augmentation(flips=1.0), Augmentation(affine=0.05), AUGMENTATIONS['published']
])  # fmt: skip
def test_turned_pairs_still_show_their_images(subjects, augmentation) -> None:
    plain, seen = draw(subjects), set()
    for seed in range(4):
        turned = place_pair(
            plain.fixed, plain.moving, 6.0, lambda *frame: frame, augmentation, seeded(seed)
        )
        seen.add(tuple(np.round(turned.worlds[0][:3, :3].ravel(), 3)))
        here = turned.random_points(800, seeded(), 'cpu')
        for volume, points in zip(turned.volumes('cpu'), here, strict=True):
            assert volume.sample(points)[:, -1].mean() > 0.7
            assert (points.abs() <= torch.tensor(turned.extent) + 1e-4).all()
        same = np.linalg.inv(turned.worlds[0]) @ turned.worlds[1]
        determinant = np.linalg.det(turned.worlds[0][:3, :3])
        if augmentation.affine == 0:
            np.testing.assert_allclose(same, np.eye(4), atol=1e-9)
            assert abs(determinant) == pytest.approx(1)
        else:
            assert not np.allclose(same, np.eye(4), atol=1e-3)
    assert len(seen) > 1


def test_poses_are_as_large_as_they_are_told() -> None:
    center, generator = np.array([5.0, -7, 3]), seeded()
    noise = [noisy_affine(Augmentation(affine=0.05), center, 80.0, generator) for _ in range(400)]
    linear = np.array([one[:3, :3] - np.eye(3) for one in noise])
    moved = np.array([apply_affine(one, center[None])[0] - center for one in noise])
    assert linear.std() == pytest.approx(0.05, rel=0.1)
    assert moved.std() == pytest.approx(4.0, rel=0.1)
    turned = [shared_turn(Augmentation(flips=0.5), center, generator) for _ in range(200)]
    still = [np.array_equal(one, np.eye(4)) for one in turned]
    assert 0.4 < np.mean(still) < 0.6
    for one in turned:
        np.testing.assert_allclose(apply_affine(one, center[None]), center[None], atol=1e-9)


def test_intensities_change_and_the_background_does_not() -> None:
    cube = torch.rand(12, 12, 12, generator=seeded())
    cube[:4] = 0
    assert torch.equal(intensities(cube, STILL, seeded()), cube)
    for changed in ({'gamma': 0.3}, {'bias': 0.3}, {'noise': 0.1}):
        found = intensities(cube, Augmentation(**changed), seeded(2))
        assert not torch.allclose(found, cube) and not found[:4].any()
        assert np.corrcoef(found[4:].ravel(), cube[4:].ravel())[0, 1] > 0.9


# Simulated pairs


def test_a_warp_is_smooth_invertible_and_as_large_as_asked() -> None:
    for seed in range(5):
        warp = Warp.random(0.2, [1.0, 1.0, 0.8], seeded(seed))
        points = torch.rand(3000, 3, generator=seeded(9)) * 1.6 - 0.8
        moved = warp(points)
        assert 0.02 < (moved - points).norm(dim=1).max() < 0.25
        assert (warp.back(moved) - points).norm(dim=1).max() < 0.3 * 0.2
        at = points[:200].double().requires_grad_()
        rows = [torch.autograd.grad(warp(at)[:, i].sum(), at)[0] for i in range(3)]
        assert torch.linalg.det(torch.stack(rows, dim=1)).min() > 0


def test_a_simulated_pair_agrees_where_its_warp_says(subjects) -> None:
    pair = draw(subjects, Augmentation(simulated=1.0))
    assert pair.warp is not None and pair.fixed is pair.moving
    still = place_pair(*subjects[:2], 6.0, lambda *f: f, STILL, seeded())
    pair = simulate(still, Augmentation(simulated_mm=15.0), seeded())
    fixed, moving = pair.volumes('cpu')
    points, others = pair.random_points(1500, seeded(), 'cpu')
    np.testing.assert_allclose(fixed.sample(points), moving.sample(pair.warp(points)), atol=1e-5)
    for volume, at in ((fixed, points), (moving, others)):
        assert volume.sample(at)[:, -1].mean() > 0.7
    assert pair.dice(points, pair.warp(points) - points)[1] == 1.0
    assert pair.dice(points, torch.zeros_like(points))[1] < 0.98
    cubes = pair.cubes(25, 'cpu', STILL, seeded())
    assert (cubes[0] - cubes[1]).abs().mean() > 0.005


# Which files


def test_who_is_kept_out(tmp_path) -> None:
    names = ['sub-01_T1w.nii.gz', 'sub-011_T1w.nii.gz', 'sub-02_ses-1_T1w.nii.gz', 'x.nii']
    files = files_of([tmp_path / name for name in names], None, None)
    used, kept = split(files, ['01', str(tmp_path / 'x.nii')])
    assert [one.image.name for one in kept] == [names[0], names[3]]
    assert [one.image.name for one in used] == names[1:3]
    assert split(files, ['sub-02'])[1] == [files[2]]
    with pytest.raises(UsageError, match='"03" is to be kept out.*none of the 4 images'):
        split(files, ['03'])
    with pytest.raises(UsageError, match='1 image.s. are left to train on beside 3'):
        split(files, ['01', '011', '02'])


def test_images_of_several_modalities_are_refused() -> None:
    with pytest.raises(UsageError, match='is a T1w and .* a T2w image; expected images of one'):
        files_of(['sub-1_T1w.nii.gz', 'sub-2_T1w.nii.gz', 'sub-3_T2w.nii.gz'], None, None)
    assert aligned().shape == (4, 4)
