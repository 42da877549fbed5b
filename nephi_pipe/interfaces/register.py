"""Interfaces that find the transform of one pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from .common import given

MODALITIES = ('brain', 'lung', 'other')
PROGRESS = 'progress.json'
"""Where a node says how far its optimisation is, in its own folder."""

_REFRESH_S = 5.0

SUFFIXES = {'h5': '.h5', 'nii': '.nii.gz', 'field': '.safetensors'}


class PairInputSpec(BaseInterfaceInputSpec):
    """The two images and what belongs to them."""

    fixed_image = File(exists=True, mandatory=True, desc='the image that stays')
    moving_image = File(exists=True, mandatory=True, desc='the image that is warped')
    fixed_mask = File(exists=True, desc='where the fixed image counts, on its grid')
    moving_mask = File(exists=True, desc='where the moving image counts, on its grid')
    exclude_mask = File(
        exists=True,
        desc='lesion or resection, on either grid, that takes no part in the similarity',
    )
    modality = traits.Enum(*MODALITIES, usedefault=True, desc='preset of settings')
    seed = traits.Int(0, usedefault=True, desc='seed of all random numbers')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the computation')


class AffineInitInputSpec(PairInputSpec):
    initial_transform = File(
        exists=True, desc='an affine (ITK .txt, .tfm, .mat, .h5) that is taken instead of a search'
    )


class AffineInitOutputSpec(TraitedSpec):
    affine = File(desc='ITK affine (.txt), maps fixed points to moving points')
    matrix = traits.List(
        traits.List(traits.Float), desc='the same as 4x4 numbers, fixed mm to moving mm, RAS+'
    )


class AffineInit(SimpleInterface):
    """Find the affine between two images from any starting pose."""

    input_spec = AffineInitInputSpec
    output_spec = AffineInitOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..itk import write_affine
        from ..transforms import read_affine

        initial = given(self.inputs.initial_transform)
        affine = read_affine(initial) if initial else self._search()
        self._results['affine'] = str(write_affine(Path(runtime.cwd) / 'affine.txt', affine))
        self._results['matrix'] = affine.tolist()
        return runtime

    def _search(self) -> Any:
        import torch

        from ..presets import preset
        from ..presets.preparation import affine_between

        torch.set_num_threads(self.inputs.num_threads)
        fixed, moving = self._prepare('fixed'), self._prepare('moving')
        return affine_between(fixed, moving, preset(self.inputs.modality), self.inputs.seed)

    def _prepare(self, side: str) -> Any:
        """One image, made ready as ``register`` does it."""
        from ..images import load_image, load_mask
        from ..presets import preset
        from ..presets.preparation import prepare

        image = load_image(getattr(self.inputs, f'{side}_image'))
        mask = given(getattr(self.inputs, f'{side}_mask'))
        exclude = given(self.inputs.exclude_mask)
        excluded = load_mask(exclude) if exclude else None
        return prepare(
            image,
            load_mask(mask, like=image).data if mask else None,
            excluded.data if excluded and excluded.grid.same_as(image.grid) else None,
            preset(self.inputs.modality),
        )


class TransformInputSpec(BaseInterfaceInputSpec):
    """How transforms are written."""

    xfm_format = traits.Enum(
        *SUFFIXES,
        usedefault=True,
        desc='transforms as ITK composite .h5, displacement .nii.gz, or the field itself',
    )
    xfm_grid = traits.Str(
        'auto', usedefault=True, desc='spacing of stored fields: "auto", "native" or millimetres'
    )


class NePhiInferInputSpec(PairInputSpec, TransformInputSpec):
    initial_transform = File(
        exists=True,
        desc='transform to start from, fixed to moving; the identity without one. An affine, or a '
        'non-linear pre-alignment that is composed with what is found',
    )
    initial_inverse = File(
        exists=True, desc='the way back of a displacement field; inverted here without one'
    )
    weights = traits.Str(
        'default',
        usedefault=True,
        desc='"default", "none" (nothing that was trained) or a checkpoint (.safetensors)',
    )
    device = traits.Str('cpu', usedefault=True, nohash=True, desc='"cpu", "cuda" or "cuda:N"')
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc='tells Nipype that the node needs a GPU slot'
    )
    sloppy = traits.Bool(False, usedefault=True, desc='quick and rough, for tests')


class NePhiOptimizeInputSpec(NePhiInferInputSpec):
    steps = traits.Range(
        low=0, desc='optimisation steps; the preset decides where this is not given'
    )
    structures = traits.Bool(
        True, usedefault=True, desc='compare structures of brains too, unless weights are "none"'
    )


class TransformOutputSpec(TraitedSpec):
    """Both transforms."""

    forward_transform = File(desc='resamples moving onto fixed')
    inverse_transform = File(desc='resamples fixed onto moving')
    forward_sidecar = File(desc='facts about forward_transform, JSON')
    inverse_sidecar = File(desc='facts about inverse_transform, JSON')


class NePhiOutputSpec(TransformOutputSpec):
    field = File(desc='the registration itself (.safetensors), can be evaluated at any point')
    affine = File(desc='the affine part (ITK .txt), maps fixed points to moving points')
    warped_image = File(desc='the moving image on the fixed grid')
    jacobian = File(
        desc='determinant on the fixed grid: of the deformation without its affine, for lungs of '
        'the whole map, which is the local change of volume'
    )
    history = File(desc='progress of the optimisation, JSON')


class ProgressFile:
    """Keeps ``progress.json`` in a folder up to date while an optimisation runs.

    A node runs in a process, or on a machine, of its own: who started it reads the file.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS
        self._written = -_REFRESH_S

    def __call__(self, progress: Any) -> None:
        from ..files import write_json

        if progress.seconds - self._written >= _REFRESH_S:
            self._written = progress.seconds
            write_json(self._path, progress.as_dict())


def write_transforms(registration: Any, folder: Path, xfm_format: str, xfm_grid: str) -> dict:
    """Write both transforms and their sidecars; the paths by the names of the outputs."""
    from ..files import write_json

    files = {}
    for name, inverse in (('forward', False), ('inverse', True)):
        path = files[f'{name}_transform'] = folder / f'{name}{SUFFIXES[xfm_format]}'
        facts = registration.save_transform(path, inverse, xfm_grid)
        files[f'{name}_sidecar'] = write_json(folder / f'{name}.json', facts)
    return files


class NePhiOptimize(SimpleInterface):
    """Optimise a NePhi deformation for one pair and write everything that follows from it."""

    input_spec = NePhiOptimizeInputSpec
    output_spec = NePhiOutputSpec

    def _effort(self) -> dict:
        """Options of ``register`` that only an optimisation has."""
        return {'steps': given(self.inputs.steps), 'structures': self.inputs.structures}

    def _run_interface(self, runtime: Any) -> Any:
        from ..registration import register
        from ..threads import torch_threads

        folder, inputs = Path(runtime.cwd), self.inputs
        with torch_threads(inputs.num_threads):
            registration = register(
                inputs.fixed_image,
                inputs.moving_image,
                fixed_mask=given(inputs.fixed_mask),
                moving_mask=given(inputs.moving_mask),
                exclude_mask=given(inputs.exclude_mask),
                modality=inputs.modality,
                weights=inputs.weights,
                **self._effort(),
                affine=False,
                initial_transform=given(inputs.initial_transform),
                initial_inverse=given(inputs.initial_inverse),
                device=inputs.device,
                seed=inputs.seed,
                sloppy=inputs.sloppy,
                progress=ProgressFile(folder),
            )
            self._write(registration, folder)
        return runtime

    def _write(self, registration: Any, folder: Path) -> None:
        from ..files import write_json
        from ..images import load_image, save_image
        from ..itk import write_affine
        from ..presets.views import view

        seen = view(self.inputs.modality)
        files = {'field': registration.save_field(folder / 'field.safetensors')}
        formats = self.inputs.xfm_format, self.inputs.xfm_grid
        files |= write_transforms(registration, folder, *formats)
        moving = load_image(self.inputs.moving_image)
        warped = registration.warp(moving, outside=seen.outside)
        jacobian = registration.jacobian_determinant(total=seen.jacobian_of == 'total')
        files |= {
            'affine': write_affine(folder / 'affine.txt', registration.affine),
            'warped_image': save_image(folder / 'warped.nii.gz', warped.data, warped.grid),
            'jacobian': save_image(folder / 'jacobian.nii.gz', jacobian.data, jacobian.grid),
            'history': write_json(folder / 'history.json', registration.history),
        }
        self._results.update({name: str(path) for name, path in files.items()})


class NePhiInfer(NePhiOptimize):
    """Predict a deformation with trained weights, without optimising it."""

    input_spec = NePhiInferInputSpec

    def _effort(self) -> dict:
        return {'steps': 0}


class WriteTransformsInputSpec(TransformInputSpec):
    field = File(exists=True, mandatory=True, desc='a registration of ours (.safetensors)')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the computation')


class WriteTransforms(SimpleInterface):
    """Write the transforms of a registration in another format or on another grid.

    Of its own, so that a change of format does not optimise again.
    """

    input_spec = WriteTransformsInputSpec
    output_spec = TransformOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..registration import load_registration
        from ..threads import torch_threads

        inputs, folder = self.inputs, Path(runtime.cwd)
        with torch_threads(inputs.num_threads):
            files = write_transforms(
                load_registration(inputs.field), folder, inputs.xfm_format, inputs.xfm_grid
            )
        self._results.update({name: str(path) for name, path in files.items()})
        return runtime
