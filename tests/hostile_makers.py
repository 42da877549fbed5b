"""Valid files of every kind that is opened, to be damaged."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (7, 8, 9)).astype(np.int16)


def make_nifti(path: Path) -> None:
    image = nib.Nifti1Image(voxels(), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.set_qform(image.affine, 1)
    image.header.set_slope_inter(0.5, 1.0)
    image.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'made for a test'))
    nib.save(image, path)


def make_nifti2(path: Path) -> None:
    nib.save(nib.Nifti2Image(voxels().astype(np.float32), np.eye(4)), path)


def make_mgh(path: Path) -> None:
    nib.save(nib.MGHImage(voxels().astype(np.float32), np.eye(4)), path)


def make_vectors(path: Path) -> None:
    from nephi_pipe.geometry import Grid
    from nephi_pipe.itk import write_field_image

    write_field_image(path, np.ones((4, 5, 6, 3), np.float32), Grid((4, 5, 6), np.eye(4)))


def make_composite(path: Path) -> None:
    from nephi_pipe.geometry import Grid
    from nephi_pipe.itk import write_composite

    vectors = np.random.default_rng(0).normal(size=(5, 6, 7, 3))
    write_composite(path, np.eye(4), vectors, Grid((5, 6, 7), np.eye(4)))


def make_itk_text(path: Path) -> None:
    from nephi_pipe.itk import write_affine

    write_affine(path, np.diag([1.1, 0.9, 1.0, 1.0]))


def make_itk_matlab(path: Path) -> None:
    from scipy.io import savemat

    parameters = np.r_[np.eye(3).ravel(), 1.0, 2.0, 3.0]
    savemat(path, {'AffineTransform_double_3_3': parameters, 'fixed': np.zeros(3)}, format='4')


def make_points(path: Path) -> None:
    path.write_text('name\tx\ty\tz\n"a b"\t1.5\t-2\t3e1\nb\t0\t0\t0\n')


def make_pairs(path: Path) -> None:
    path.write_text('moving\tfixed\tnote\nsub-01\tsub-02\tx\nsub-03\tsub-02\ty\n')


def make_names(path: Path) -> None:
    path.write_text('index\tname\tcolor\n1\tThalamus\t#ff0000\n12\tCaudate\t#00ff00\n')


def make_filters(path: Path) -> None:
    path.write_text('{"t1w": {"session": ["1", "2"], "run": 1, "acquisition": null}}')


def make_thresholds(path: Path) -> None:
    path.write_text('{"dice_after_min": 0.7, "robust_z_max": null}')


def make_toml(path: Path) -> None:
    path.write_text(
        '[settings]\nreference = "sub-01"\nsteps = 7\nmem_gb = 3.5\nparticipant_label = ["01"]\n'
        'sloppy = true\nwork_dir = "w"\n[derivatives]\nprep = "/p"\n[thresholds]\na = 1\n'
    )


def make_metrics(path: Path) -> None:
    from report_data import made_up_metrics

    provenance = {'seed': 0, 'checksums': {'a.nii.gz': '00'}}
    seconds = {'affine': 1.5, 'total': 9}
    path.write_text(
        json.dumps({**made_up_metrics(), 'provenance': provenance, 'seconds': seconds})
    )


def make_chart(path: Path) -> None:
    from report_data import made_up_metrics

    from nephi_pipe.report_charts import dice_chart

    path.write_text(dice_chart(made_up_metrics(), {1: 'Thalamus'}))


def make_picture(path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    blocks = [{'name': 'axial', 'box': [0, 0, 20, 30], 'at_mm': [1.0]}]
    note = {'key': 'fixed', 'title': 'Fixed', 'caption': 'The fixed image', 'blocks': blocks}
    info = PngInfo()
    info.add_itxt('nephi-report', json.dumps(note))
    Image.fromarray(voxels()[:, :, :3].astype(np.uint8)).resize((30, 40)).save(path, pnginfo=info)


def make_field(path: Path) -> None:
    small_registration().save_field(path)


def make_weights(path: Path) -> None:
    from nephi_pipe.training.checkpoint import save_model

    save_model(path, small_model())


def small_config(**changes: object) -> dict:
    """Sizes of a tiny field."""
    return {
        'frequencies': 4, 'width': 8, 'hidden_layers': 1, 'global_channels': 2,
        'local_channels': 2, 'local_size': 4, **changes,
    }  # fmt: skip


def small_registration() -> object:
    import torch

    from nephi_pipe.field.config import FieldConfig
    from nephi_pipe.field.deformation import NePhiField
    from nephi_pipe.geometry import Frame, Grid
    from nephi_pipe.images import Image
    from nephi_pipe.result import Registration

    grid = Grid((7, 8, 9), np.diag([2.0, 2.0, 3.0, 1.0]))
    mask = Image(np.ones(grid.shape, dtype=bool), grid)
    field = NePhiField(FieldConfig(**small_config()), torch.Generator().manual_seed(0))
    frame = Frame((6.0, 7.0, 12.0), 15.0)
    history = [{'step': 1, 'similarity': 0.5}]
    return Registration(field, frame, np.eye(4), grid, grid, mask, mask, history=history)


def small_model() -> object:
    import torch

    from nephi_pipe.field.config import FieldConfig
    from nephi_pipe.field.encoder import EncoderConfig
    from nephi_pipe.field.model import ModelConfig, NePhiModel

    encoder = EncoderConfig(23, 'group')
    field = FieldConfig(**small_config(local_size=encoder.local_size))
    return NePhiModel(ModelConfig(field, encoder, 100.0), torch.Generator().manual_seed(0))
