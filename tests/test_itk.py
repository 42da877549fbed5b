"""Transform files that others wrote: every kind of ITK's, and what cannot be used."""

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from data import AFFINE, GRIDS, SmoothWarp, random_points, write_image
from scipy.io import savemat

from nephi_pipe.errors import InputDataError, NoInputError
from nephi_pipe.geometry import apply_affine, flip_ras_lps
from nephi_pipe.transforms import (
    DisplacementField,
    read_affine,
    read_transform,
    write_transform,
)

LPS = np.array([-1.0, -1.0, 1.0])
POINTS = random_points(GRIDS['oblique'], 100)
CENTER, SHIFT, SCALES = (5.0, -8.0, 30.0), (1.5, 2.5, -3.5), (1.1, 0.9, 1.2)
VERSOR = (0.1, -0.2, 0.15, np.sqrt(1 - 0.1**2 - 0.2**2 - 0.15**2))
MATRIX = (1.1, 0.1, 0.0, 0.2, 0.9, 0.0, -0.1, 0.0, 1.2)


def zyx_euler() -> sitk.Euler3DTransform:
    """Angles applied in the order that is not the default."""
    transform = sitk.Euler3DTransform(CENTER, 0.1, -0.3, 0.2, SHIFT)
    transform.SetComputeZYX(True)
    return transform


ITK_AFFINES = {
    'AffineTransform': lambda: sitk.AffineTransform(MATRIX, SHIFT, CENTER),
    'Euler3DTransform': lambda: sitk.Euler3DTransform(CENTER, 0.1, -0.3, 0.2, SHIFT),
    'Euler3DTransform, ZYX': zyx_euler,
    'VersorTransform': lambda: sitk.VersorTransform(VERSOR, CENTER),
    'VersorRigid3DTransform': lambda: sitk.VersorRigid3DTransform(VERSOR, SHIFT, CENTER),
    'Similarity3DTransform': lambda: sitk.Similarity3DTransform(1.3, VERSOR, SHIFT, CENTER),
    'ScaleVersor3DTransform': lambda: sitk.ScaleVersor3DTransform(SCALES, VERSOR, SHIFT, CENTER),
    'ScaleTransform': lambda: sitk.ScaleTransform(3, SCALES),
    'TranslationTransform': lambda: sitk.TranslationTransform(3, SHIFT),
    'IdentityTransform': lambda: sitk.Transform(3, sitk.sitkIdentity),
}


def itk_points(transform: sitk.Transform) -> np.ndarray:
    """The test points mapped by SimpleITK, RAS+."""
    return np.array([transform.TransformPoint(p.tolist()) for p in POINTS * LPS]) * LPS


def itk_field() -> sitk.DisplacementFieldTransform:
    """A random field on an anisotropic lattice around the test points."""
    vectors = sitk.GetImageFromArray(
        np.random.default_rng(0).normal(0, 3, (30, 32, 34, 3)), isVector=True
    )
    vectors.SetSpacing((5.0, 4.0, 6.0))
    vectors.SetOrigin((-80.0, -50.0, -60.0))
    turned = sitk.VersorTransform(VERSOR)
    vectors.SetDirection(turned.GetMatrix())
    return sitk.DisplacementFieldTransform(vectors)


@pytest.mark.parametrize('suffix', ['.h5', '.tfm', '.txt', '.mat'])
@pytest.mark.parametrize('kind', ITK_AFFINES)
def test_every_affine_of_itk(kind, suffix, tmp_path):
    transform = ITK_AFFINES[kind]()
    path = tmp_path / f'x{suffix}'
    sitk.WriteTransform(transform, str(path))
    assert np.abs(read_transform(path).map_points(POINTS) - itk_points(transform)).max() < 1e-6
    assert np.abs(apply_affine(read_affine(path), POINTS) - itk_points(transform)).max() < 1e-6


@pytest.mark.parametrize('suffix', ['.h5', '.tfm'])
def test_composites_apply_the_last_first(suffix, tmp_path):
    transform = sitk.CompositeTransform(3)
    for make in ITK_AFFINES.values():
        transform.AddTransform(make())
    transform.AddTransform(itk_field())
    transform.AddTransform(zyx_euler())
    path = tmp_path / f'x{suffix}'
    sitk.WriteTransform(transform, str(path))
    read = read_transform(path)
    assert len(read.steps) == 3
    assert np.abs(read.map_points(POINTS) - itk_points(transform)).max() < 1e-3
    with pytest.raises(InputDataError, match='holds a displacement field; expected an affine'):
        read_affine(path)


def test_field_written_by_itk(tmp_path):
    field = itk_field()
    expected = itk_points(field)
    sitk.WriteTransform(field, str(tmp_path / 'x.h5'))
    vectors = sitk.Cast(field.GetDisplacementField(), sitk.sitkVectorFloat32)
    sitk.WriteImage(vectors, str(tmp_path / 'xWarp.nii.gz'))
    assert np.linalg.norm(expected - POINTS, axis=-1).mean() > 1
    for name in ('x.h5', 'xWarp.nii.gz'):
        read = read_transform(tmp_path / name)
        assert np.abs(read.map_points(POINTS) - expected).max() < 1e-3


def test_mat_file_as_ants_writes_it(tmp_path):
    lps = flip_ras_lps(AFFINE)
    center = np.array(CENTER)
    offset = lps[:3, 3] - center + lps[:3, :3] @ center
    numbers = np.r_[lps[:3, :3].ravel(), offset][:, None]
    path = tmp_path / 'x0GenericAffine.mat'
    content = {'AffineTransform_double_3_3': numbers, 'fixed': center[:, None]}
    savemat(path, content, format='4')
    assert np.abs(read_affine(path) - AFFINE).max() < 1e-12


def test_old_names_and_float_composites(tmp_path):
    path = write_transform(tmp_path / 'x.h5', AFFINE, _field())
    with h5py.File(path, 'r+') as file:
        for group in file['TransformGroup'].values():
            for name in ('TransformParameters', 'TransformFixedParameters'):
                if name in group:
                    group.move(name, name.replace('Transform', 'Tranform'))
    expected = apply_affine(AFFINE, _field().map_points(POINTS))
    assert np.abs(read_transform(path).map_points(POINTS) - expected).max() < 1e-3


def test_matrix_offset_in_text(tmp_path):
    path = tmp_path / 'x.txt'
    path.write_text(
        '#Insight Transform File V1.0\n# Transform 0\n'
        'Transform: MatrixOffsetTransformBase_float_3_3\n'
        'Parameters: 1 0 0 0 1 0 0 0 2 1 2 3\nFixedParameters: 10 20 30\n'
    )
    expected = np.diag([1.0, 1.0, 2.0, 1.0])
    expected[:3, 3] = [-1, -2, -27]
    assert np.allclose(read_affine(path), expected)


def _field() -> DisplacementField:
    grid = GRIDS['oblique']
    return DisplacementField(SmoothWarp().on_grid(grid), grid)


def _write_text(path, *transforms: str) -> None:
    blocks = [f'#Transform {i}\nTransform: {text}\n' for i, text in enumerate(transforms)]
    path.write_text('#Insight Transform File V1.0\n' + ''.join(blocks))


def _bspline(path) -> None:
    sitk.WriteTransform(sitk.BSplineTransform(3, 3), str(path))


def _plane(path) -> None:
    sitk.WriteTransform(sitk.Euler2DTransform(), str(path))


def _nested(path) -> None:
    _write_text(path, 'CompositeTransform_double_3_3', 'CompositeTransform_double_3_3')


SHIFT_TEXT = 'TranslationTransform_double_3_3\nParameters: 1 2 3\nFixedParameters:'

REFUSED = {
    'a B-spline': ('x.tfm', _bspline, 'holds a BSplineTransform, which is not supported'),
    'a transform of the plane': ('x.h5', _plane, 'holds a Euler2DTransform_double_2_2; expected'),
    'nested composites': ('x.tfm', _nested, 'a composite inside of a composite'),
    'a list': (
        'x.tfm',
        lambda path: _write_text(path, SHIFT_TEXT, SHIFT_TEXT),
        'holds 2 transforms that are not joined',
    ),
    'no transform': (
        'x.txt',
        lambda path: path.write_text('#Insight Transform File V1.0\n'),
        'holds 0 transforms',
    ),
    'too few parameters': (
        'x.txt',
        lambda path: _write_text(
            path, 'AffineTransform_double_3_3\nParameters: 1 0\nFixedParameters: 0 0 0'
        ),
        'has 2 parameters, not 12',
    ),
    'words for numbers': (
        'x.txt',
        lambda path: _write_text(path, 'AffineTransform_double_3_3\nParameters: one two'),
        'cannot be read as an ITK transform',
    ),
    'infinite numbers': (
        'x.txt',
        lambda path: _write_text(path, 'TranslationTransform_double_3_3\nParameters: 1 inf 3'),
        'numbers that are not finite',
    ),
    'a plain matrix': (
        'x.mat',
        lambda path: np.savetxt(path, np.eye(4)),
        'cannot be read as an ITK transform',
    ),
    'a plain matrix in text': (
        'x.txt',
        lambda path: np.savetxt(path, np.eye(4)),
        '"#Insight Transform File V1.0" is missing',
    ),
    'bytes for text': (
        'x.tfm',
        lambda path: path.write_bytes(bytes(range(256))),
        'cannot be read as text',
    ),
    'an empty file': ('x.h5', lambda path: path.touch(), 'cannot be read as an ITK transform'),
    'foreign HDF5': (
        'x.h5',
        lambda path: h5py.File(path, 'w').create_group('Weights').file.close(),
        'cannot be read as an ITK transform',
    ),
    'a foreign mat': (
        'x.mat',
        lambda path: savemat(path, {'matrix': np.eye(4)}, format='4'),
        'holds 0 transforms',
    ),
    'a later mat': (
        'x.mat',
        lambda path: savemat(path, {'AffineTransform_double_3_3': np.eye(4)}),
        'it is not of version 4',
    ),
    'another suffix': ('x.lta', lambda path: path.touch(), 'is not a name of a transform file'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_used_is_refused_in_one_sentence(case, tmp_path):
    name, write, message = REFUSED[case]
    path = tmp_path / name
    write(path)
    with pytest.raises(InputDataError, match=message) as caught:
        read_transform(path)
    text = str(caught.value)
    assert text.startswith(f'"{path}" ') and '\n' not in text and len(text) < 600


@pytest.mark.parametrize('suffix', ['.h5', '.nii.gz'])
@pytest.mark.parametrize('kept', [0.3, 0.9])
def test_truncated_files_are_refused(suffix, kept, tmp_path):
    path = write_transform(tmp_path / f'x{suffix}', AFFINE, _field())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputDataError, match='cannot be read'):
        read_transform(path)


def test_missing_files_are_named(tmp_path):
    for name in ('none.h5', 'none.txt', 'none.nii.gz'):
        with pytest.raises(NoInputError, match=f'There is no file ".*{name}"'):
            read_transform(tmp_path / name)


def test_fields_that_readers_understand_differently_are_refused(tmp_path):
    vectors = _field().vectors
    affine = GRIDS['oblique'].affine
    four = write_image(tmp_path / 'four.nii.gz', vectors, affine)
    five = write_image(tmp_path / 'five.nii.gz', vectors[..., None, :], affine)
    with pytest.raises(InputDataError, match=r'the shape \(40, 36, 30, 3\) and the intent code 0'):
        read_transform(four)
    with pytest.raises(InputDataError, match='intent code 0; expected .* intent 1007'):
        read_transform(five)
    image = nib.load(five)
    data = np.asarray(image.dataobj).copy()
    data[3, 3, 3] = np.nan
    broken = nib.Nifti1Image(data, affine)
    broken.header.set_intent('vector')
    nib.save(broken, tmp_path / 'broken.nii.gz')
    with pytest.raises(InputDataError, match='not finite'):
        read_transform(tmp_path / 'broken.nii.gz')


def test_singular_affine_is_refused(tmp_path):
    path = tmp_path / 'x.txt'
    _write_text(path, 'ScaleTransform_double_3_3\nParameters: 1 1 0\nFixedParameters: 0 0 0')
    with pytest.raises(InputDataError, match='singular matrix; expected an affine with an'):
        read_affine(path)
