"""Hounsfield units: what passes, what is mended, what is refused."""

import logging

import numpy as np
import pytest
from chest import chest_grid, make_chest
from scipy import ndimage
from small_pair import small_brain

from nephi_pipe.ct import mend_ct
from nephi_pipe.errors import InputDataError
from nephi_pipe.images import Image, load_image, save_image
from nephi_pipe.presets import preset
from nephi_pipe.presets.preparation import depth_in, feature_channels, prepare
from nephi_pipe.registration import register


@pytest.fixture(scope='module')
def chest():
    return make_chest(chest_grid(5.0))


@pytest.fixture(scope='module')
def corners(chest):
    """What lies outside of the scanner's circle."""
    x, y, _ = np.moveaxis(chest.image.grid.points(), -1, 0)
    return np.hypot(x, y) > 200


def changed(image: Image, data: np.ndarray) -> Image:
    return image.with_data(np.asarray(data, dtype=np.float32))


# --- what passes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'case',
    [{}, {'contrast_hu': 350.0}, {'lung_hu': -650.0}, {'noise_hu': 80.0}, {'lungs': (1,)}],
)
def test_a_ct_in_hounsfield_units_passes_untouched(case, caplog):
    image = make_chest(chest_grid((4.0, 4.0, 5.0)), **case).image
    mended, done = mend_ct(image)
    assert mended is image
    assert done == ()
    assert not caplog.records


def test_a_ct_with_its_air_clipped_or_its_lungs_alone_passes(chest):
    clipped = changed(chest.image, np.clip(chest.image.data, -1000, 400))
    assert mend_ct(clipped)[1] == ()
    alone = changed(chest.image, np.where(chest.lungs > 0, chest.image.data, -1000))
    assert mend_ct(alone)[1] == ()


# --- what is mended -----------------------------------------------------------------------------


@pytest.mark.parametrize('value', [-2048.0, -3024.0, -1500.0, -32768.0, 0.0, 3071.0])
def test_padding_becomes_air(chest, corners, value, caplog, tmp_path):
    padded = np.where(corners, np.float32(value), chest.image.data)
    path = save_image(tmp_path / 'padded.nii.gz', padded, chest.image.grid)
    before = path.read_bytes()
    image = load_image(path)
    with caplog.at_level(logging.WARNING):
        mended, done = mend_ct(image)
    assert mended.path == path
    assert (mended.data[corners] == -1024).all()
    measured = ~corners & (chest.image.data >= -1024)
    np.testing.assert_array_equal(mended.data[measured], chest.image.data[measured])
    assert len(done) == 1
    assert f'padding of {value:.0f} ({100 * corners.mean():.1f} % of the voxels)' in done[0]
    assert f'"{path}": padding' in caplog.text
    np.testing.assert_array_equal(image.data, padded)
    assert path.read_bytes() == before


def test_tissue_of_the_value_of_the_padding_stays(chest, corners):
    whole = np.rint(chest.image.data)
    mended, _ = mend_ct(changed(chest.image, np.where(corners, 0, whole)))
    tissue = ~corners & (whole == 0)
    assert tissue.sum() > 100
    beside = ndimage.binary_dilation(corners, iterations=3)
    assert (mended.data[tissue & ~beside] == 0).all()
    assert (mended.data[corners] == -1024).all()


@pytest.mark.parametrize('pad', [None, -2000.0, 0.0])
def test_a_missing_offset_is_added(chest, corners, pad):
    raw = np.clip(np.rint(chest.image.data + 1024), 0, 4095)
    if pad is not None:
        raw = np.where(corners, pad, raw)
    mended, done = mend_ct(changed(chest.image, raw))
    assert 'lack the offset of Hounsfield units; 1024 is subtracted' in done[0]
    assert len(done) == (2 if pad == -2000 else 1)
    measured = ~corners & (chest.image.data >= -1024)
    assert np.abs(mended.data - chest.image.data)[measured].max() <= 0.501
    assert mended.data.min() == -1024
    assert mend_ct(mended)[1] == ()


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'scaled',
    [
        lambda hu: (np.clip(hu, -1000, 400) + 1000) / 1400,
        lambda hu: np.rint((np.clip(hu, -1000, 400) + 1000) / 1400 * 255),
        lambda hu: (hu - hu.mean()) / hu.std(),
        lambda hu: np.where(hu < -900, hu + 65536, hu),
        lambda hu: np.clip(hu, -160, 240),
        lambda hu: 10 * hu,
    ],
    ids=['0..1', '0..255', 'z-scores', 'wrapped', 'a window of soft tissue', 'another slope'],
)
def test_other_units_are_refused(chest, scaled):
    image = changed(chest.image, scaled(chest.image.data))
    with pytest.raises(InputDataError, match='no Hounsfield units; expected a CT with') as error:
        mend_ct(image)
    assert f'from {image.data.min():.4g} to {image.data.max():.4g}' in str(error.value)


@pytest.mark.parametrize('top', [255, 700, 1000, 1400, 1800, 2400, 3200, 4095])
def test_mr_images_are_refused(top):
    brain, _ = small_brain()
    with pytest.raises(InputDataError, match='no Hounsfield units'):
        mend_ct(changed(brain, brain.data * (top / brain.data.max())))


# --- how a registration of lungs uses it --------------------------------------------------------


def test_padding_and_offset_do_not_disturb_the_preparation(chest, corners):
    mask, lung = chest.lungs > 0, preset('lung')
    clean = prepare(chest.image, mask, None, lung)
    padded = np.where(corners, -2048, chest.image.data)
    for data in (padded, padded + 1024):
        prepared = prepare(changed(chest.image, data), mask, None, lung)
        np.testing.assert_allclose(prepared.data, clean.data, atol=1e-6)
        found = prepare(changed(chest.image, data), None, None, lung)
        overlap = 2 * (found.outline & mask).sum() / (found.outline.sum() + mask.sum())
        assert overlap > 0.95


def test_lungs_are_compared_beyond_their_mask_and_brains_are_not(chest):
    prepared = prepare(chest.image, chest.lungs > 0, None, preset('lung'))
    np.testing.assert_array_equal(prepared.outline, chest.lungs > 0)
    assert not (prepared.mask & ~prepared.outline).any()  # voxels larger than the rim
    fine = make_chest(chest_grid(4.0))
    prepared = prepare(fine.image, fine.lungs > 0, None, preset('lung'))
    rim = prepared.mask & ~prepared.outline
    assert (prepared.mask | ~prepared.outline).all()
    assert 0.02 < rim.sum() / prepared.outline.sum() < 0.3
    assert prepared.data[rim].mean() > 0.8  # pleura and chest wall
    cropped = prepared.cropped()
    assert cropped.outline.sum() == prepared.outline.sum()
    brain, _ = small_brain()
    prepared = prepare(brain, None, None, preset('brain'))
    assert prepared.outline is prepared.mask


def test_the_widest_level_of_lungs_compares_how_deep_points_lie(chest):
    lung = preset('lung')
    side = prepare(chest.image, chest.lungs > 0, None, lung).cropped()
    settings = lung.optimisation
    found = [feature_channels(side, level, settings, 'cpu') for level in settings.levels]
    assert [len(channels) for channels in found] == [4, 3, 3, 3]
    depth = found[0][2].numpy()
    assert not depth[~side.outline].any()
    within = ndimage.binary_erosion(side.outline)
    border = side.outline & ~within
    assert depth[border].max() <= 5.0 / 40 + 1e-6  # one voxel of 5 mm
    assert depth[within].min() > 5.0 / 40
    assert 0.5 < depth.max() <= 1


def test_depths_in_small_voxels_are_measured_on_larger_ones():
    ball = np.linalg.norm(np.indices((91, 93, 95)) - 46, axis=0) < 40
    plain = ndimage.distance_transform_edt(ball, [0.7, 0.7, 0.9])
    found = depth_in(ball, np.array([0.7, 0.7, 0.9]))
    assert found.shape == ball.shape and not found[~ball].any()
    np.testing.assert_allclose(40 * found, plain, atol=4.0)
    assert abs(40 * found - plain)[ball].mean() < 1.0


@pytest.mark.slow
def test_lungs_are_found_where_no_mask_is_given():
    chest = make_chest(chest_grid(6.0))
    shifted = np.eye(4)
    shifted[:3, 3] = 4.0, -3.0, 5.0
    moved = type(chest.image.grid)(chest.image.grid.shape, shifted @ chest.image.grid.affine)
    result = register(
        chest.image,
        Image(chest.image.data, moved),
        modality='lung',
        sloppy=True,
        affine=False,
        weights='none',
        steps=1,
        threads=1,
    )
    truth = chest.lungs > 0
    for mask in (result.fixed_mask.data, result.moving_mask.data):
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.95


def test_a_registration_of_lungs_refuses_what_is_no_ct():
    brain, _ = small_brain()
    with pytest.raises(InputDataError, match='no Hounsfield units'):
        register(brain, brain, modality='lung', sloppy=True, threads=1)
