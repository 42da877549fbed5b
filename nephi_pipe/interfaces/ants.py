"""The two interfaces of ``nipype.interfaces.ants`` that a pipeline normalises with, done by us.

Inputs and outputs carry ANTs' names wherever they mean the same, so that in a pipeline made for
ANTs another import line and the settings of the search are all that changes. What has no equal
here (metrics, stages, smoothing) is no input, and naming it is an error rather than ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from .common import given
from .register import MODALITIES, ProgressFile

INTERPOLATIONS = {
    'Linear': 'linear',
    'NearestNeighbor': 'nearest',
    'BSpline': 'cubic',
    'MultiLabel': 'labels',
    'GenericLabel': 'labels',
}
"""ANTs' names, and ours. Both kinds for labels take the nearest voxel."""

NO_MASK = 'NULL'
IDENTITY = 'identity'


class RegistrationInputSpec(BaseInterfaceInputSpec):
    fixed_image = InputMultiObject(
        File(exists=True), mandatory=True, desc='the image that stays (one)'
    )
    moving_image = InputMultiObject(
        File(exists=True), mandatory=True, desc='the image that is warped (one)'
    )
    fixed_image_mask = File(
        exists=True, xor=['fixed_image_masks'], desc='where the fixed image counts, on its grid'
    )
    fixed_image_masks = InputMultiObject(
        traits.Either(NO_MASK, File(exists=True)),
        xor=['fixed_image_mask'],
        desc='the same as a list for stages: the last one counts',
    )
    moving_image_mask = File(
        exists=True, xor=['moving_image_masks'], desc='where the moving image counts, on its grid'
    )
    moving_image_masks = InputMultiObject(
        traits.Either(NO_MASK, File(exists=True)),
        xor=['moving_image_mask'],
        desc='the same as a list for stages: the last one counts',
    )
    initial_moving_transform = InputMultiObject(
        File(exists=True),
        desc='affines (ITK .txt, .tfm, .mat, .h5), fixed to moving, as for antsApplyTransforms; '
        'none is searched then',
    )
    invert_initial_moving_transform = InputMultiObject(
        traits.Bool(),
        requires=['initial_moving_transform'],
        desc='which of them are inverted first',
    )
    dimension = traits.Enum(3, usedefault=True, desc='3')
    float = traits.Bool(nohash=True, desc='single precision is used in any case')
    interpolation = traits.Enum(
        *INTERPOLATIONS, usedefault=True, desc='how voxels are read for the warped images'
    )
    output_transform_prefix = traits.Str(
        'transform', usedefault=True, desc='how the names of all files begin'
    )
    write_composite_transform = traits.Enum(
        True, usedefault=True, desc='transforms are written as composites in any case'
    )
    output_warped_image = traits.Either(
        traits.Bool, File(), desc='write the moving image on the fixed grid; or its name'
    )
    output_inverse_warped_image = traits.Either(
        traits.Bool, File(), desc='write the fixed image on the moving grid; or its name'
    )
    random_seed = traits.Int(0, usedefault=True, desc='seed of all random numbers')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the computation')
    modality = traits.Enum(*MODALITIES, usedefault=True, desc='preset of settings')
    weights = traits.Str(
        'default',
        usedefault=True,
        desc='"default", "none" (nothing that was trained) or a checkpoint (.safetensors)',
    )
    steps = traits.Range(low=0, desc='optimisation steps; those of the preset if not given')
    structures = traits.Bool(
        True, usedefault=True, desc='compare structures of brains too, unless weights are "none"'
    )
    device = traits.Str('cpu', usedefault=True, nohash=True, desc='"cpu", "cuda" or "cuda:N"')
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc='tells Nipype that the node needs a GPU slot'
    )
    sloppy = traits.Bool(False, usedefault=True, desc='quick and rough, for tests')


class RegistrationOutputSpec(TraitedSpec):
    composite_transform = File(desc='ITK composite .h5, resamples moving onto fixed')
    inverse_composite_transform = File(desc='ITK composite .h5, resamples fixed onto moving')
    warped_image = File(desc='the moving image on the fixed grid')
    inverse_warped_image = File(desc='the fixed image on the moving grid')
    forward_transforms = traits.List(File, desc='the composite, as a list')
    forward_invert_flags = traits.List(traits.Bool, desc='False, as a list')
    reverse_transforms = traits.List(File, desc='the inverse composite, as a list')
    reverse_invert_flags = traits.List(traits.Bool, desc='False, as a list')
    elapsed_time = traits.Float(desc='seconds')
    field = File(desc='the registration itself (.safetensors), can be evaluated at any point')


class Registration(SimpleInterface):
    """Register one image to another, in the place of ``nipype.interfaces.ants.Registration``.

    The affine and the deformation are found in one node and written as ITK composites, which
    antsApplyTransforms, SimpleITK and the NiPreps tools read: ``<prefix>Composite.h5`` and
    ``<prefix>InverseComposite.h5``. For brains connect masks, or give images without skulls.

    ``transforms``, ``metric``, ``shrink_factors`` and other inputs of ANTs' search do not exist
    here; ``modality`` and ``steps`` stand in their place. An initial transform is taken instead
    of a search for the affine, where ANTs starts its search from it.

    >>> Registration(transforms=['SyN'])
    Traceback (most recent call last):
    traits.trait_errors.TraitError: Cannot set the undefined 'transforms' attribute ...
    """

    input_spec = RegistrationInputSpec
    output_spec = RegistrationOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..images import load_image, save_image
        from ..registration import register
        from ..threads import torch_threads

        inputs, folder = self.inputs, Path(runtime.cwd)
        fixed, moving = (load_image(self._one(f'{side}_image')) for side in ('fixed', 'moving'))
        prefix = folder / inputs.output_transform_prefix
        with torch_threads(inputs.num_threads):
            registration = register(
                fixed,
                moving,
                fixed_mask=self._mask('fixed'),
                moving_mask=self._mask('moving'),
                modality=inputs.modality,
                weights=inputs.weights,
                steps=given(inputs.steps),
                structures=inputs.structures,
                initial_transform=self._initial(),
                device=inputs.device,
                seed=inputs.random_seed,
                sloppy=inputs.sloppy,
                progress=ProgressFile(folder),
            )
            files = {
                'composite_transform': Path(f'{prefix}Composite.h5'),
                'inverse_composite_transform': Path(f'{prefix}InverseComposite.h5'),
            }
            registration.save_transform(files['composite_transform'])
            registration.save_transform(files['inverse_composite_transform'], inverse=True)
            files['field'] = registration.save_field(Path(f'{prefix}Field.safetensors'))
            for name, way, image in (
                ('warped_image', registration, moving),
                ('inverse_warped_image', registration.inverse, fixed),
            ):
                path = self._image_name(name, prefix)
                if path is not None:
                    warped = way.warp(image, INTERPOLATIONS[inputs.interpolation])
                    files[name] = save_image(folder / path, warped.data, warped.grid)
        self._results.update({name: str(path) for name, path in files.items()})
        self._results.update(
            forward_transforms=[self._results['composite_transform']],
            reverse_transforms=[self._results['inverse_composite_transform']],
            forward_invert_flags=[False],
            reverse_invert_flags=[False],
            elapsed_time=float(registration.provenance['seconds']['total']),
        )
        return runtime

    def _one(self, name: str) -> str:
        from ..errors import UsageError

        images = getattr(self.inputs, name)
        if len(images) != 1:
            raise UsageError(
                f'{name} is {len(images)} images; expected one. Several contrasts cannot be '
                'registered together: give the one that shows most.'
            )
        return images[0]

    def _mask(self, side: str) -> str | None:
        masks = given(getattr(self.inputs, f'{side}_image_masks'))
        if masks:
            return None if masks[-1] == NO_MASK else masks[-1]
        return given(getattr(self.inputs, f'{side}_image_mask'))

    def _initial(self) -> Any:
        from ..errors import UsageError

        paths = given(self.inputs.initial_moving_transform)
        if not paths:
            return None
        affine = _chain(paths, given(self.inputs.invert_initial_moving_transform)).affine
        if affine is None:
            raise UsageError(
                'initial_moving_transform holds a displacement field; expected affines only.'
            )
        return affine

    def _image_name(self, name: str, prefix: Path) -> str | None:
        """The name of a warped image, None where none is wanted."""
        wanted = given(getattr(self.inputs, f'output_{name}'))
        ends = {'warped_image': '_Warped', 'inverse_warped_image': '_InverseWarped'}
        return f'{prefix}{ends[name]}.nii.gz' if wanted is True else wanted or None


class ApplyTransformsInputSpec(BaseInterfaceInputSpec):
    input_image = File(exists=True, mandatory=True, desc='3D or 4D image or label map')
    reference_image = File(exists=True, mandatory=True, desc='image whose grid the result gets')
    transforms = InputMultiObject(
        traits.Either(IDENTITY, File(exists=True)),
        mandatory=True,
        desc='any of ours, of ITK or of ANTs; the last one is the first to touch the image',
    )
    invert_transform_flags = InputMultiObject(
        traits.Bool(), desc='which transforms are inverted first; affines only'
    )
    interpolation = traits.Enum(*INTERPOLATIONS, usedefault=True, desc='how voxels are read')
    default_value = traits.Float(0.0, usedefault=True, desc='the value where the image has none')
    dimension = traits.Enum(3, 4, desc='found from the image in any case')
    input_image_type = traits.Enum(
        0, 3, desc='0 scalar, 3 time series; found from the image in any case'
    )
    float = traits.Bool(nohash=True, desc='single precision is used in any case')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='one is used in any case')
    out_postfix = traits.Str(
        '_trans', usedefault=True, desc='what is added to the name of the image for the result'
    )
    output_image = traits.Str(desc='the name of the result (.nii.gz, .nii)')


class ApplyTransformsOutputSpec(TraitedSpec):
    output_image = File(desc='the image on the grid of the reference')


class ApplyTransforms(SimpleInterface):
    """Resample an image, in the place of ``nipype.interfaces.ants.ApplyTransforms``.

    Transforms are listed as for antsApplyTransforms. Needs no ANTs and reads its files.
    """

    input_spec = ApplyTransformsInputSpec
    output_spec = ApplyTransformsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..apply import apply_to_image, read_grid

        inputs = self.inputs
        result = apply_to_image(
            inputs.input_image,
            _chain(inputs.transforms, given(inputs.invert_transform_flags)),
            read_grid(inputs.reference_image),
            Path(runtime.cwd) / (given(inputs.output_image) or self._usual_name()),
            INTERPOLATIONS[inputs.interpolation],
            inputs.default_value,
        )
        self._results['output_image'] = str(result)
        return runtime

    def _usual_name(self) -> str:
        name = Path(self.inputs.input_image).name
        stem = name.removesuffix('.gz').rpartition('.')[0]
        return f'{stem}{self.inputs.out_postfix}.nii.gz'


def _chain(paths: list[str], invert: list[bool] | None) -> Any:
    """Transforms as antsApplyTransforms lists them, some of them inverted first."""
    from ..errors import UsageError
    from ..transforms import Transform, read_transform

    flags = invert or [False] * len(paths)
    if len(flags) != len(paths):
        raise UsageError(
            f'There are {len(flags)} flags of inversion for {len(paths)} transforms; expected one '
            'for each.'
        )
    steps = []
    for path, inverted in zip(paths, flags, strict=True):
        step = Transform() if path == IDENTITY else read_transform(path)
        steps.append(step.inverse() if inverted else step)
    return Transform(steps)
