"""Files made to do harm: to fill the memory, to hang, to reach other files, to pass as valid."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import hostile
import nibabel as nib
import numpy as np

from nephi_pipe.errors import InputDataError, NoInputError, UsageError

CRAFTED: list[tuple[str, str, str, Callable, Callable, type]] = []
"""Group, name of the case, name of the file, what writes it, what opens it, how it is refused."""


def crafted(file: str, load: Callable, error: type = InputDataError, group: str = 'light'):
    """Add a case: the function writes the file."""

    def add(write: Callable[[Path], None]) -> Callable:
        CRAFTED.append((group, write.__name__.replace('_', ' '), file, write, load, error))
        return write

    return add


def cases(group: str) -> list[tuple[str, Callable[[Path], None]]]:
    """Name and test of each case of a group."""
    return [(case, partial(_try, *rest)) for own, case, *rest in CRAFTED if own == group]


def _try(file: str, write: Callable, load: Callable, error: type, folder: Path) -> None:
    path = folder / file
    write(path)
    found = hostile.refusal(load, path)
    assert type(found) is error, repr(found)
    assert error is UsageError or path.name in str(found), str(found)


def nifti(path: Path, tail: bytes = b'', flag: bytes = b'\0' * 4, **fields: object) -> None:
    """A NIfTI header with any fields, and whatever follows it."""
    header = nib.Nifti1Header()
    header['dim'][:4] = (3, 6, 6, 6)
    header['datatype'], header['bitpix'] = 16, 32
    header['pixdim'][:4] = 1
    header['sform_code'] = 1
    header['srow_x'], header['srow_y'], header['srow_z'] = 0.1 * np.eye(4)[:3]
    header['vox_offset'], header['magic'] = 352, b'n+1'
    for name, value in fields.items():
        array = np.asarray(header[name])
        header[name] = np.resize(value, array.shape) if array.ndim else value
    content = header.binaryblock + flag + tail
    path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)


PLAIN = np.random.default_rng(0).random(216).astype('<f4').tobytes()


@crafted('huge.nii', hostile.load_image)
def a_terabyte_in_a_kilobyte(path):
    nifti(path, PLAIN, dim=[3, 8192, 8192, 4096, 1, 1, 1, 1])


@crafted('huge.nii.gz', hostile.load_image)
def a_terabyte_in_a_compressed_kilobyte(path):
    nifti(path, PLAIN, dim=[3, 8192, 8192, 4096, 1, 1, 1, 1])


@crafted('negative.nii', hostile.load_image)
def negative_sizes(path):
    nifti(path, PLAIN, dim=[3, -6, 6, 6, 1, 1, 1, 1])


@crafted('many.nii.gz', hostile.load_image)
def seven_axes_of_thirty_thousand(path):
    nifti(path, PLAIN, dim=[7, *[32767] * 7])


@crafted('far.nii', hostile.load_image)
def voxels_behind_the_end(path):
    nifti(path, PLAIN, vox_offset=1e30)


@crafted('nan.nii', hostile.load_image)
def voxels_at_no_place(path):
    nifti(path, PLAIN, vox_offset=np.nan)


@crafted('bomb.nii.gz', hostile.load_image)
def an_extension_that_inflates(path):
    size = 1 << 31
    extension = struct.pack('<ii', -16, 6)  # a negative size reads all there is
    head = path.with_name('head.nii')
    nifti(head, extension, b'\1\0\0\0', vox_offset=float(size))
    zeros = gzip.compress(bytes(1 << 24))
    path.write_bytes(gzip.compress(head.read_bytes()) + zeros * (size >> 24))


@crafted('scale.nii', hostile.load_image)
def a_scale_beyond_single_precision(path):
    nifti(path, PLAIN, scl_slope=3e38, scl_inter=3e38)


@crafted('inter.nii', hostile.load_image)
def an_intercept_that_is_no_number(path):
    nifti(path, PLAIN, scl_slope=1, scl_inter=np.nan)


@crafted('bits.nii', hostile.load_image)
def an_unknown_type_of_voxels(path):
    nifti(path, PLAIN, datatype=77, bitpix=12345)


@crafted('rgb.nii', hostile.load_image)
def voxels_of_three_colours(path):
    nifti(path, PLAIN, datatype=128, bitpix=24)


@crafted('zero.nii', hostile.load_image)
def axes_of_no_length(path):
    nifti(path, PLAIN, srow_x=0, srow_y=0, srow_z=0)


@crafted('wide.nii', hostile.load_image)
def voxels_of_a_kilometre(path):
    nifti(path, PLAIN, srow_x=[1e6, 0, 0, 0], srow_y=[0, 1e6, 0, 0], srow_z=[0, 0, 1e6, 0])


@crafted('quaternion.nii', hostile.load_image)
def a_quaternion_that_is_none(path):
    nifti(path, PLAIN, sform_code=0, qform_code=1, quatern_b=3e38, quatern_c=np.nan)


@crafted('pixdim.nii', hostile.load_image)
def voxel_sizes_of_nothing(path):
    nifti(path, PLAIN, sform_code=0, qform_code=0, pixdim=[1, 0, -1, np.inf, 0, 0, 0, 0])


@crafted('plain.nii.gz', hostile.load_image)
def not_compressed_though_called_so(path):
    nifti(path.with_suffix(''), PLAIN)
    path.with_suffix('').rename(path)


@crafted('pipe.nii.gz', hostile.load_image, NoInputError)
def a_pipe_that_nobody_fills(path):
    os.mkfifo(path)


@crafted('pipe.h5', hostile.load_transform, NoInputError)
def a_pipe_for_a_transform(path):
    os.mkfifo(path)


@crafted('pipe.json', hostile.load_metrics, InputDataError)
def a_pipe_for_metrics(path):
    os.mkfifo(path)


@crafted('endless.tsv', hostile.load_points, NoInputError)
def a_device_that_never_ends(path):
    path.symlink_to('/dev/zero')


@crafted('sparse.json', hostile.load_metrics)
def a_gigabyte_of_zeros(path):
    with open(path, 'wb') as stream:
        stream.truncate(1 << 30)


@crafted('huge.mgh', hostile.load_image)
def a_terabyte_of_mgh(path):
    path.write_bytes(struct.pack('>7i', 1, 1 << 14, 1 << 14, 1 << 14, 1, 3, 0) + bytes(300))


@crafted('huge.mgz', hostile.load_image)
def a_compressed_terabyte_of_mgh(path):
    content = struct.pack('>7i', 1, 1 << 14, 1 << 14, 1 << 14, 1, 3, 0) + bytes(300)
    path.write_bytes(gzip.compress(content))


def _name(text: str) -> dict:
    return {'data': [text], 'dtype': h5py.string_dtype()}


def composite(path: Path, **datasets: dict) -> None:
    """An ITK affine in HDF5 whose datasets are made with any arguments."""
    with h5py.File(path, 'w') as file:
        group = file.create_group('TransformGroup/0')
        usual = {
            'TransformType': _name('AffineTransform_double_3_3'),
            'TransformParameters': {'data': np.r_[np.eye(3).ravel(), 0, 0, 0]},
            'TransformFixedParameters': {'data': np.zeros(3)},
        }
        for name, arguments in (usual | datasets).items():
            group.create_dataset(name, **arguments)


@crafted('fill.h5', hostile.load_transform)
def a_terabyte_that_was_never_written(path):
    composite(path, TransformParameters={'shape': (1 << 37,), 'dtype': 'f8', 'chunks': (1 << 16,)})


@crafted('bomb.h5', hostile.load_transform)
def numbers_compressed_twice(path):
    """Deflate on deflate: a thousand times a thousand."""
    composite(path)
    with h5py.File(path, 'a') as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((1 << 20,))
        plan.set_deflate(9)
        plan.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_MANDATORY, (9,))
        group = file['TransformGroup/0']
        del group['TransformParameters']
        space = h5py.h5s.create_simple((1 << 20,))
        kind, name = h5py.h5t.IEEE_F64LE, b'TransformParameters'
        h5py.Dataset(h5py.h5d.create(group.id, name, kind, space, plan))[...] = 0


@crafted('chunk.h5', hostile.load_transform)
def a_chunk_of_gigabytes_for_twelve_numbers(path):
    composite(
        path,
        TransformParameters={
            'shape': (12,), 'maxshape': (None,), 'chunks': (1 << 28,), 'dtype': 'f8',
            'compression': 'gzip',
        },
    )  # fmt: skip


@crafted('name.h5', hostile.load_transform)
def a_name_of_a_gigabyte(path):
    composite(path, TransformType={'shape': (1,), 'dtype': 'S1000000000'})


@crafted('elsewhere.h5', hostile.load_transform)
def numbers_of_another_file(path):
    secret = path.with_name('secret')
    secret.write_bytes(np.arange(12.0).tobytes())
    composite(
        path,
        TransformParameters={'shape': (12,), 'dtype': 'f8', 'external': [(str(secret), 0, 96)]},
    )


@crafted('link.h5', hostile.load_transform)
def a_link_to_another_file(path):
    composite(path.with_name('other.h5'))
    with h5py.File(path, 'w') as file:
        file['TransformGroup'] = h5py.ExternalLink('other.h5', '/TransformGroup')


@crafted('virtual.h5', hostile.load_transform)
def a_window_onto_another_file(path):
    composite(path)
    with h5py.File(path.with_name('source.h5'), 'w') as file:
        file['x'] = np.arange(12.0)
    layout = h5py.VirtualLayout(shape=(12,), dtype='f8')
    layout[:] = h5py.VirtualSource('source.h5', 'x', shape=(12,))
    with h5py.File(path, 'a') as file:
        del file['TransformGroup/0/TransformParameters']
        file['TransformGroup/0'].create_virtual_dataset('TransformParameters', layout)


@crafted('circle.h5', hostile.load_transform)
def links_in_a_circle(path):
    with h5py.File(path, 'w') as file:
        file['TransformGroup'] = h5py.SoftLink('/there')
        file['there'] = h5py.SoftLink('/TransformGroup')


@crafted('text.h5', hostile.load_transform)
def text_instead_of_numbers(path):
    composite(path, TransformParameters={'data': ['12'] * 12, 'dtype': h5py.string_dtype()})


@crafted('sizes.h5', hostile.load_transform)
def a_field_of_negative_sizes(path):
    composite(
        path,
        TransformType=_name('DisplacementFieldTransform_double_3_3'),
        TransformParameters={'data': np.zeros(24)},
        TransformFixedParameters={
            'data': np.r_[-1, 2, 2, np.zeros(3), np.ones(3), np.eye(3).ravel()]
        },
    )


@crafted('thousands.h5', hostile.load_transform)
def thousands_of_transforms(path):
    with h5py.File(path, 'w') as file:
        group = file.create_group('TransformGroup')
        for number in range(1500):
            group.create_group(str(number))


@crafted('huge.mat', hostile.load_transform)
def a_matrix_of_terabytes(path):
    name = b'AffineTransform_double_3_3\0'
    path.write_bytes(struct.pack('<5i', 0, 1 << 30, 1 << 10, 0, len(name)) + name + bytes(96))


@crafted('objects.mat', hostile.load_transform)
def a_matrix_that_is_objects(path):
    from scipy.io import savemat

    savemat(path, {'AffineTransform_double_3_3': np.array([{'a': 1}], dtype=object)})


@crafted('long.txt', hostile.load_transform)
def a_transform_without_end(path):
    with open(path, 'wb') as stream:
        stream.write(b'#Insight Transform File V1.0\n')
        stream.truncate(1 << 29)


@crafted('deep.json', hostile.load_filters, UsageError)
def filters_a_hundred_thousand_levels_deep(path):
    path.write_text('{"t1w":' * 100_000)


@crafted('deep2.json', hostile.load_metrics)
def metrics_of_nine_hundred_levels(path):
    path.write_text('{"provenance":' + '{"a":' * 900 + '1' + '}' * 901)


@crafted('arguments.json', hostile.load_filters, UsageError)
def filters_that_are_arguments_of_the_query(path):
    path.write_text('{"t1w": {"return_type": "id", "scope": "all"}}')


@crafted('object.json', hostile.load_filters, UsageError)
def filters_that_are_objects(path):
    path.write_text('{"t1w": {"session": {"$ne": 1}}}')


@crafted('deep.toml', hostile.load_toml)
def settings_a_hundred_thousand_levels_deep(path):
    path.write_text('a = ' + '[' * 100_000)


@crafted('types.toml', hostile.load_toml, UsageError)
def settings_that_are_a_list(path):
    path.write_text('settings = [["reference", "x"]]')


@crafted('nul.toml', hostile.load_toml, UsageError)
def a_path_with_a_nul(path):
    path.write_text('[settings]\nwork_dir = "/a\\u0000b"\n')


@crafted('nan.toml', hostile.load_toml, UsageError)
def memory_that_is_no_number(path):
    path.write_text('[settings]\nmem_gb = nan\n')


@crafted('cell.tsv', hostile.load_points)
def a_cell_of_a_megabyte(path):
    path.write_text('x\ty\tz\n' + '1' * (1 << 20) + '\t2\t3\n')


@crafted('laughs.svg', hostile.load_figure)
def a_billion_laughs(path):
    entities = ''.join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    path.write_text(
        f'<!DOCTYPE svg [<!ENTITY l0 "lol">{entities}]>'
        '<svg xmlns="http://www.w3.org/2000/svg" data-key="x"><title>&l11;</title></svg>'
    )


@crafted('bomb.png', hostile.load_figure)
def a_picture_of_gigabytes(path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        part = kind + content
        return struct.pack('>I', len(content)) + part + struct.pack('>I', zlib.crc32(part))

    head = struct.pack('>2I5B', 13_000, 13_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    chunks = chunk(b'IHDR', head), chunk(b'IDAT', rows), chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunks))


@crafted('blocks.png', hostile.load_figure)
def a_picture_with_blocks_beyond_its_edges(path):
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    block = {'name': 'x', 'box': [0, 0, 16_000, 16_000], 'at_mm': []}
    note = {'key': 'fixed', 'title': '', 'caption': '', 'blocks': [block] * 9}
    info.add_itxt('nephi-report', json.dumps(note))
    Image.new('RGB', (8, 8)).save(path, pnginfo=info)
