"""One registration of lungs by one method, in a process of its own.

    PYTHON -m benchmarks.lung_peers METHOD FIXED MOVING FIXED_MASK MOVING_MASK FOLDER --threads N

writes the method's transform and ``phases.json`` (seconds and versions) into FOLDER. PYTHON is one
that has the method's package (benchmarks/requirements.txt). Every method gets the same masks; what
the peers compare lies in the masks and 5 mm around them, so that the lungs' border counts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from .peers import run_greedy, save_nephi

MASK_MARGIN_MM = 5.0

GREEDY_AFFINE = '-a -dof 12 -ia-image-centers -m NCC 4x4x4 -n 100x50x10'
GREEDY_DEFORMABLE = '-m NCC 4x4x4 -n 100x100x50 -s 1.732vox 0.7071vox'

_ELASTIX_BOTH = {'MaximumNumberOfIterations': '500', 'ErodeMask': 'false'}
ELASTIX = {
    'affine': {'AutomaticTransformInitialization': 'true', **_ELASTIX_BOTH},
    'bspline': _ELASTIX_BOTH,
}
"""Changes of elastix' default parameter maps: worlds may be far apart, and masks of lungs that are
eroded as much as coarse levels are smoothed leave next to no samples; it stops with an error then.
"""

_THREADER = {'ITK_GLOBAL_DEFAULT_THREADER': 'Platform'}
"""With ITK's default pool of threads the B-spline stage ends in a segmentation fault."""

CONVEX_ADAM = {'mind_r': 1, 'mind_d': 2, 'grid_sp': 6, 'disp_hw': 4, 'grid_sp_adam': 2}
_MULTIPLE = 12
"""ConvexAdam's masks need sizes that its strides divide; images are padded at their far ends."""


class Files(NamedTuple):
    """What a method is given."""

    fixed: Path
    moving: Path
    fixed_mask: Path
    moving_mask: Path


def nephi(files: Files, folder: Path, given: argparse.Namespace) -> dict:
    """What ``nephi register --modality lung`` does before it scores, and the field file."""
    from nephi_pipe import register

    registration = register(
        files.fixed,
        files.moving,
        fixed_mask=files.fixed_mask,
        moving_mask=files.moving_mask,
        modality='lung',
        weights='none' if given.method == 'nephi-none' else 'default',
        steps=given.steps,
        threads=given.threads,
    )
    return save_nephi(registration, folder)


def greedy(files: Files, folder: Path, given: argparse.Namespace) -> dict:
    """Greedy's affine and deformable registration, NCC in the dilated masks."""
    common = _greedy_common(files, folder, given)
    return run_greedy(common, GREEDY_AFFINE, GREEDY_DEFORMABLE, folder)


def elastix(files: Files, folder: Path, given: argparse.Namespace) -> dict:
    """elastix: affine, then B-splines, mutual information in the dilated masks.

    The map is saved as the displacement at the fixed voxels.
    """
    os.environ.update(_THREADER)
    import itk

    images = [itk.imread(str(path), itk.F) for path in (files.fixed, files.moving)]
    masks = [itk.imread(str(path), itk.UC) for path in _dilated(files, folder)]
    parameters = itk.ParameterObject.New()
    for stage, changes in ELASTIX.items():
        chosen = itk.ParameterObject.GetDefaultParameterMap(stage)
        for name, value in changes.items():
            chosen[name] = [value]
        parameters.AddParameterMap(chosen)
    _, transform = itk.elastix_registration_method(
        *images,
        parameter_object=parameters,
        fixed_mask=masks[0],
        moving_mask=masks[1],
        number_of_threads=given.threads,
    )
    target = str(folder / 'warp.nii.gz')
    os.chdir(folder)  # it leaves a file of its own where it is run
    field = itk.transformix_deformation_field(images[1], transform)
    itk.imwrite(field, target)
    return {'versions': {'itk-elastix': version('itk-elastix')}}


def convexadam(files: Files, folder: Path, given: argparse.Namespace) -> dict:
    """ConvexAdam with MIND features, after Greedy's affine: it needs both images on one grid."""
    import nibabel as nib
    import numpy as np
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt
    from picsl_greedy import Greedy3D

    torch.set_num_threads(given.threads)
    program, matrix = Greedy3D(), folder / 'affine.mat'
    started = time.monotonic()
    program.execute(f'{_greedy_common(files, folder, given)} {GREEDY_AFFINE} -o {matrix}')
    program.execute(
        f'-rf {files.fixed} -rb -1000 -rm {files.moving} {folder}/moving.nii.gz '
        f'-rb 0 -ri NN -rm {files.moving_mask} {folder}/mask.nii.gz -r {matrix} '
        f'-threads {given.threads}'
    )
    aligned = time.monotonic()
    paths = [files.fixed, folder / 'moving.nii.gz', files.fixed_mask, folder / 'mask.nii.gz']
    loaded = [nib.load(path) for path in paths]
    shape, affine = loaded[0].shape, loaded[0].affine
    arrays = [_padded(one.get_fdata(dtype=np.float32)) for one in loaded]
    masks = [folder / 'fixed_padded.nii.gz', folder / 'moving_padded.nii.gz']
    for path, array in zip(masks, arrays[2:], strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    voxels = convex_adam_pt(
        arrays[0], arrays[1], use_mask=True, path_fixed_mask=masks[0], path_moving_mask=masks[1],
        dtype=torch.float32, device=torch.device('cpu'), **CONVEX_ADAM,
    )  # fmt: skip
    voxels = voxels[tuple(slice(n) for n in shape)]
    world = voxels @ affine[:3, :3].T * [-1, -1, 1]
    field = nib.Nifti1Image(world.astype(np.float32)[..., None, :], affine)
    field.header.set_intent('vector')
    nib.save(field, folder / 'warp.nii.gz')
    phases = {'affine_s': aligned - started, 'deformable_s': time.monotonic() - aligned}
    return phases | {'versions': {name: version(name) for name in ('convexAdam', 'picsl-greedy')}}


METHODS = {
    'nephi': nephi,
    'nephi-none': nephi,
    'greedy': greedy,
    'elastix': elastix,
    'convexadam': convexadam,
}


def main() -> None:
    """Read the arguments, register, write what can be said of the time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('method', choices=METHODS)
    for name in (*Files._fields, 'folder'):
        parser.add_argument(name, type=Path)
    parser.add_argument('--threads', type=int, required=True)
    parser.add_argument('--steps', type=int, help="of NePhi (default: the modality's)")
    given = parser.parse_args()
    given.folder = given.folder.absolute()
    files = Files(*(getattr(given, name) for name in Files._fields))
    phases = METHODS[given.method](files, given.folder, given)
    (given.folder / 'phases.json').write_text(json.dumps(phases))


def _greedy_common(files: Files, folder: Path, given: argparse.Namespace) -> str:
    fixed_mask, moving_mask = _dilated(files, folder)
    images = f'-i {files.fixed} {files.moving} -gm {fixed_mask} -mm {moving_mask}'
    return f'{images} -threads {given.threads}'


def _dilated(files: Files, folder: Path) -> list[Path]:
    """The masks, larger by some millimetres."""
    import SimpleITK as sitk

    paths = [folder / 'fixed_dilated.nii.gz', folder / 'moving_dilated.nii.gz']
    for source, path in zip((files.fixed_mask, files.moving_mask), paths, strict=True):
        mask = sitk.Cast(sitk.ReadImage(str(source)) > 0, sitk.sitkUInt8)
        radius = [round(MASK_MARGIN_MM / step) for step in mask.GetSpacing()]
        sitk.WriteImage(sitk.BinaryDilate(mask, radius), str(path))
    return paths


def _padded(array):
    """The array continued at its far ends to sizes that ConvexAdam can stride."""
    import numpy as np

    return np.pad(array, [(0, -n % _MULTIPLE) for n in array.shape], mode='edge')


if __name__ == '__main__':
    main()
