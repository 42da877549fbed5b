"""Images at the door: what is read, what is refused and why, what is written."""

import logging
import os

import nibabel as nib
import numpy as np
import pytest
from data import DEMO, GRIDS, intensity, make_grid, make_image, rotation, write_image
from scipy import ndimage

from nephi_pipe.errors import InputDataError, NoInputError
from nephi_pipe.geometry import Grid
from nephi_pipe.images import (
    Image,
    check_same_grid,
    foreground,
    load_image,
    load_labels,
    load_mask,
    normalise,
    resample_array,
    save_image,
)

GRID = GRIDS['oblique']
PICTURE = make_image(GRID).data


@pytest.fixture(params=GRIDS)
def grid(request):
    """A grid of every kind."""
    return GRIDS[request.param]


# What is read


@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz', '.mgz', '.img'])
def test_image_and_grid_are_read(grid, suffix, tmp_path):
    data = make_image(grid).data
    kind = nib.MGHImage if suffix == '.mgz' else nib.Nifti1Image
    kind = nib.Nifti1Pair if suffix == '.img' else kind
    nib.save(kind(data, grid.affine), tmp_path / f'x{suffix}')
    image = load_image(tmp_path / f'x{suffix}')
    assert image.data.dtype == np.float32
    assert np.array_equal(image.data, data)
    assert image.grid.same_as(grid, 1e-3)
    assert np.allclose(image.data, intensity(image.grid.points()), atol=1e-2)


def test_scaled_integers_and_trailing_axes_are_read(tmp_path):
    image = nib.Nifti1Image(PICTURE[..., None, None], GRID.affine)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / 'x.nii.gz')
    read = load_image(tmp_path / 'x.nii.gz')
    assert read.data.shape == GRID.shape
    assert np.abs(read.data - PICTURE).max() < 0.01


def test_real_brains_and_their_labels_share_a_grid():
    for person in ('sub-41', 'sub-45'):
        image = load_image(DEMO / person / 'anat' / f'{person}_T1w.nii.gz')
        name = f'{person}_desc-meshnet18_dseg.nii.gz'
        labels = load_labels(DEMO / 'derivatives' / 'meshnet' / person / 'anat' / name)
        check_same_grid(labels, image)
        assert labels.data.dtype == np.int32
        assert labels.data.max() == 17
        inside = foreground(image)
        # A skull-stripped adult brain has between one and two litres, and the labels lie in it.
        assert 1e6 < inside.sum() * image.grid.voxel_volume_mm3 < 2e6
        assert inside[labels.data > 0].mean() > 0.97


def test_sform_is_used_and_a_warning_names_the_distance(tmp_path, caplog):
    other = GRID.affine.copy()
    other[:3, 3] += [0, 12, 5]
    path = write_image(tmp_path / 'x.nii.gz', PICTURE, GRID.affine, qform=other)
    with caplog.at_level(logging.WARNING):
        image = load_image(path)
    assert image.grid.same_as(GRID, 1e-3)
    (record,) = caplog.records
    assert f'sform and qform of "{path}" place it up to 12.0 mm apart' in record.getMessage()
    written = nib.load(save_image(tmp_path / 'y.nii.gz', image.data, image.grid))
    for form in (written.get_sform(coded=True), written.get_qform(coded=True)):
        assert np.allclose(form[0], GRID.affine, atol=1e-4)
        assert form[1] == 1


@pytest.mark.parametrize(('codes', 'turn'), [((1, 1), 0.0), ((0, 1), 0.3), ((1, 0), 0.3)])
def test_one_form_or_two_equal_ones_bring_no_warning(codes, turn, tmp_path, caplog):
    other = GRID.affine.copy()
    other[:3, :3] = rotation(z=turn) @ other[:3, :3]
    path = write_image(tmp_path / 'x.nii.gz', PICTURE, GRID.affine, other, codes)
    with caplog.at_level(logging.WARNING):
        image = load_image(path)
    assert not caplog.records
    assert image.grid.same_as(Grid(GRID.shape, GRID.affine if codes[0] else other), 1e-3)


def test_an_image_without_any_form_is_read_with_a_warning(tmp_path, caplog):
    image = nib.Nifti1Image(PICTURE, None)
    image.header.set_zooms((2, 3, 4))
    nib.save(image, tmp_path / 'x.nii.gz')
    with caplog.at_level(logging.WARNING):
        found = load_image(tmp_path / 'x.nii.gz')
    assert 'x.nii.gz" does not say where it lies' in caplog.text
    np.testing.assert_allclose(found.grid.affine[:3, :3], np.diag([-2, 3, 4]))
    np.testing.assert_allclose(found.grid.to_world((np.array(PICTURE.shape) - 1) / 2), 0)


# What is refused


def refused(load, path, message: str, error: type[Exception] = InputDataError) -> None:
    """``load(path)`` fails with one sentence that names the file."""
    with pytest.raises(error, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kept', [20, 300, 5000, -40])
@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz'])
def test_truncated_files(kept, suffix, tmp_path):
    path = write_image(tmp_path / f'x{suffix}', PICTURE, GRID.affine)
    path.write_bytes(path.read_bytes()[:kept])
    refused(load_image, path, 'truncated or damaged|is not an image that can be read')


def test_damaged_compression(tmp_path):
    path = write_image(tmp_path / 'x.nii.gz', PICTURE, GRID.affine)
    content = bytearray(path.read_bytes())
    content[20000:20100] = b'\xff' * 100
    path.write_bytes(content)
    refused(load_image, path, 'truncated or damaged')


@pytest.mark.parametrize(
    'content', [b'', b'hello, this is text', bytes(500), bytes(range(256)) * 9]
)
@pytest.mark.parametrize('name', ['x.nii', 'x.nii.gz', 'x.txt', 'x.mgz'])
def test_what_is_not_an_image(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(
        load_image, tmp_path / name, 'not an image that can be read|has an affine|has the shape'
    )


def test_a_surface_is_not_a_volume(tmp_path):
    nib.save(nib.gifti.GiftiImage(), tmp_path / 'x.surf.gii')
    refused(load_image, tmp_path / 'x.surf.gii', 'those of something else')


def test_missing_files_folders_and_broken_links(tmp_path):
    refused(load_image, tmp_path / 'none.nii.gz', 'There is no file', NoInputError)
    os.symlink('../.git/annex/objects/gone', tmp_path / 'link.nii.gz')
    message = 'is a link to "../.git/annex/objects/gone", which is not there.*datalad get'
    refused(load_image, tmp_path / 'link.nii.gz', message, NoInputError)
    refused(load_image, tmp_path, 'is a folder; expected an image', NoInputError)


@pytest.mark.parametrize('shape', [(40, 36), (40, 36, 1), (1, 36, 30), (40, 36, 30, 2)])
def test_other_than_three_dimensions(shape, tmp_path):
    data = np.random.default_rng(0).random(shape, dtype=np.float32)
    path = write_image(tmp_path / 'x.nii.gz', data, GRID.affine)
    found = shape[:1] if shape == (40, 36) else shape
    refused(load_image, path, rf'has the shape \({found[0]}.*expected a 3D image')


def test_values_that_are_not_finite_are_counted(tmp_path):
    data = PICTURE.copy()
    data[3, 3, 3:6] = np.nan, np.inf, -np.inf
    path = write_image(tmp_path / 'x.nii.gz', data, GRID.affine)
    refused(load_image, path, 'holds 3 values that are not finite')
    refused(load_labels, path, 'not whole numbers')


def test_a_constant_image_has_nothing_to_register(tmp_path):
    path = write_image(tmp_path / 'x.nii.gz', np.full(GRID.shape, 7, np.int16), GRID.affine)
    refused(load_image, path, 'has the value 7 in every voxel')


@pytest.mark.parametrize('kind', [np.complex64, 'RGB'])
def test_voxels_that_are_not_numbers(kind, tmp_path):
    data = np.zeros(GRID.shape, dtype=[('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
    data = PICTURE.astype(kind) if kind != 'RGB' else data
    path = write_image(tmp_path / 'x.nii.gz', data, GRID.affine)
    refused(load_image, path, 'expected one real number in every voxel')


@pytest.mark.parametrize('fault', ['zero', 'singular', 'flat', 'nan'])
def test_affines_that_place_voxels_nowhere(fault, tmp_path):
    affine = GRID.affine.copy()
    if fault == 'zero':
        affine[:3, :3] = 0
    elif fault == 'singular':
        affine[:3, 2] = affine[:3, 1]
    elif fault == 'flat':
        affine[:3, 1] = 0
    else:
        affine[0, 3] = np.nan
    image = nib.Nifti1Image(PICTURE, None)
    image.header.set_sform(affine, 1)
    nib.save(image, tmp_path / 'x.nii.gz')
    refused(load_image, tmp_path / 'x.nii.gz', 'affine that is zero, singular or not finite')


@pytest.mark.parametrize('unit', ['meter', 'micron'])
def test_other_units_than_millimetres(unit, tmp_path):
    image = nib.Nifti1Image(PICTURE, GRID.affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / 'x.nii.gz')
    refused(load_image, tmp_path / 'x.nii.gz', f'unit is the {unit}; expected millimetres')


def test_numbers_that_are_too_large_for_labels(tmp_path):
    data = np.zeros(GRID.shape, np.uint32)
    data[3, 3, 3] = 2**31 + 5
    path = write_image(tmp_path / 'x.nii.gz', data, GRID.affine)
    refused(load_labels, path, 'a label of the size 2147483653; expected numbers up to 2147483647')
    refused(
        lambda path: save_image(path, data.astype(np.int64), GRID),
        tmp_path / 'y.nii.gz',
        'would hold the number 2147483653',
    )
    assert not (tmp_path / 'y.nii.gz').exists()


def test_labels_and_masks(tmp_path):
    half = write_image(tmp_path / 'half.nii.gz', PICTURE, GRID.affine)
    refused(load_labels, half, 'not whole numbers')
    empty = write_image(tmp_path / 'mask.nii.gz', np.zeros(GRID.shape, np.uint8), GRID.affine)
    refused(load_mask, empty, 'is empty; expected voxels above 0.5')
    values = np.zeros(GRID.shape, np.float32)
    values[5:9, 5:9, 5:9] = 0.7
    soft = write_image(tmp_path / 'soft.nii.gz', values, GRID.affine)
    assert load_mask(soft, make_image(GRID)).data.sum() == 64
    image = load_image(half)
    elsewhere = GRID.affine.copy()
    elsewhere[2, 3] += 1
    for shape, affine in ((GRID.shape, elsewhere), ((40, 36, 31), GRID.affine)):
        mask = write_image(tmp_path / 'other.nii.gz', np.ones(shape, np.uint8), affine)
        refused(lambda path: load_mask(path, image), mask, 'does not lie on the grid of .*half')
        refused(lambda path: check_same_grid(load_labels(path), image), mask, 'Resample it')


# What is written


@pytest.mark.parametrize('kind', [np.float32, np.int16, np.int32, np.int64, np.uint8, bool])
def test_written_images_come_back(grid, kind, tmp_path):
    data = (make_image(grid).data > 20).astype(kind)
    path = save_image(tmp_path / 'new folder' / 'x.nii.gz', data, grid)
    image = nib.load(path)
    assert np.array_equal(np.asarray(image.dataobj), data)
    for form in (image.get_sform(), image.get_qform()):
        assert Grid(grid.shape, form).same_as(grid, 1e-3)
    assert image.header.get_xyzt_units()[0] == 'mm'


# Reading between voxels


@pytest.mark.parametrize('order', [0, 1, 3])
@pytest.mark.parametrize('layout', ['C', 'F', 'view'])
def test_resample_array_is_scipys_inside(order, layout):
    data = {'C': PICTURE, 'F': np.asfortranarray(PICTURE), 'view': PICTURE[::2, ::-1]}[layout]
    index = np.random.default_rng(1).uniform(0, np.array(data.shape) - 1, (30, 40, 3))
    expected = ndimage.map_coordinates(data, np.moveaxis(index, -1, 0), order=order)
    assert resample_array(data, index, order).shape == (30, 40)
    assert np.abs(resample_array(data, index, order) - expected).max() < 1e-3


@pytest.mark.parametrize('order', [0, 1, 3])
def test_resample_array_outside(order):
    data = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    index = np.array([[0, 0, -0.49], [2, 3, 4.49], [0, 0, -0.51], [2.51, 3, 4], [np.nan, 1, 1]])
    values = resample_array(data, index, order, cval=-5)
    assert np.allclose(values, [0, 59, -5, -5, -5], atol=1e-4)


def test_resample_array_keeps_integers_for_nearest_and_not_for_linear():
    data = np.array([0, 10, 20], dtype=np.uint8).reshape(3, 1, 1)
    index = np.array([[0.4, 0, 0], [1.5, 0, 0]])
    assert resample_array(data, index, 0).tolist() == [0, 20]
    assert resample_array(data, index, 0).dtype == np.uint8
    assert np.allclose(resample_array(data, index), [4, 15])


def test_many_points_are_read_in_pieces():
    index = np.random.default_rng(1).uniform(-2, 42, (100_000, 3))
    pieces = [resample_array(PICTURE, part) for part in np.array_split(index, 7)]
    assert np.array_equal(resample_array(PICTURE, index), np.concatenate(pieces))


# Intensities


def test_foreground_of_a_whole_head_is_the_head():
    grid = make_grid('LAS', (40, 40, 40), 4.0)
    distance = np.linalg.norm(grid.points() - grid.center_mm, axis=-1)
    noise = np.random.default_rng(0).rayleigh(5, grid.shape)
    data = np.where(distance < 60, 150, 0) + noise
    data[distance < 20] = 4
    mask = foreground(Image(data.astype(np.float32), grid))
    assert (mask == (distance < 60)).mean() > 0.999


def test_foreground_of_something_tiny_is_found():
    data = np.zeros((60, 60, 60), np.float32)
    data[20:26, 30:37, 40:48] = 100 + np.arange(8)
    found = foreground(Image(data, make_grid(shape=data.shape)))
    np.testing.assert_array_equal(found, data > 0)


def test_normalise_maps_percentiles_of_the_mask():
    data = np.random.default_rng(0).normal(300, 40, GRID.shape).astype(np.float32)
    mask = np.zeros(GRID.shape, dtype=bool)
    mask[5:30, 5:30, 5:25] = True
    scaled = normalise(data, mask)
    assert scaled.dtype == np.float32
    assert np.allclose(np.percentile(scaled[mask], [1, 50, 99]), [0, 0.5, 1], atol=0.01)
    assert scaled.min() >= -0.1 and scaled.max() <= 1.5
    assert np.isfinite(normalise(np.full((4, 4, 4), 3.0))).all()
