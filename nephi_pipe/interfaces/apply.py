"""Interfaces that use transforms which exist."""

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


class ApplyTransformInputSpec(BaseInterfaceInputSpec):
    input_file = File(
        exists=True,
        mandatory=True,
        desc='3D or 4D image, label map, or table of points (.tsv, columns x, y, z in RAS+ mm)',
    )
    transforms = InputMultiObject(
        File(exists=True),
        mandatory=True,
        desc='any of ours or of ITK, listed from the reference to the image: points of the '
        'reference pass through them in this order',
    )
    reference = File(exists=True, desc='image whose grid the result gets; not needed for points')
    interpolation = traits.Enum(
        'linear', 'nearest', 'cubic', 'labels', usedefault=True, desc='how voxels are read'
    )
    outside = traits.Float(
        0.0, usedefault=True, desc='where the image has no voxels (of a CT -1000 is air)'
    )


class ApplyTransformOutputSpec(TraitedSpec):
    output_file = File(desc='the image on the grid of the reference, or the mapped points')


class ApplyTransform(SimpleInterface):
    """Resample an image onto the grid of a reference, or map points of the reference."""

    input_spec = ApplyTransformInputSpec
    output_spec = ApplyTransformOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..apply import apply_to_image, apply_to_points, read_chain

        source, folder = self.inputs.input_file, Path(runtime.cwd)
        transform = read_chain(self.inputs.transforms)
        if source.endswith('.tsv'):
            result = apply_to_points(source, transform, folder / 'points.tsv')
        else:
            grid, kind = self._reference_grid(), self.inputs.interpolation
            result = apply_to_image(
                source, transform, grid, folder / 'warped.nii.gz', kind, self.inputs.outside
            )
        self._results['output_file'] = str(result)
        return runtime

    def _reference_grid(self) -> Any:
        from ..apply import read_grid
        from ..errors import UsageError

        path = given(self.inputs.reference)
        if path is None:
            raise UsageError(
                f'"{self.inputs.input_file}" is an image and there is no reference; expected the '
                'image whose grid the result gets. Set the input "reference".'
            )
        return read_grid(path)
