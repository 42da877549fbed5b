"""A stand-in for the search for the lungs: a crude threshold."""

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


class LungMaskInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc='chest CT in HU')
    mask = File(exists=True, desc='lung mask on the grid of the image; taken as it is')


class LungMaskOutputSpec(TraitedSpec):
    image = File(desc='the CT, its HU mended where needed; else the same file')
    mask = File(desc='mask of the lungs, uint8, on the grid of the image')
    source = traits.Enum('given', 'found', desc='where the mask comes from')


class LungMask(SimpleInterface):
    """Check a CT and find its lungs."""

    input_spec = LungMaskInputSpec
    output_spec = LungMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import numpy as np
        from scipy import ndimage

        from ..images import load_image, load_mask, save_image

        image = load_image(self.inputs.image)
        mask = given(self.inputs.mask)
        if mask:
            inside = load_mask(mask, like=image).data
        else:
            labels, _ = ndimage.label((image.data < -400) & (image.data > -1100))
            faces = [labels.take(end, axis).ravel() for axis in range(2) for end in (0, -1)]
            outside = np.unique(np.concatenate(faces))
            sizes = np.bincount(labels.ravel())
            sizes[outside] = 0
            sizes[0] = 0
            kept = np.flatnonzero(sizes > 0.2 * sizes.max())
            inside = ndimage.binary_closing(np.isin(labels, kept), iterations=2)
        path = save_image(Path(runtime.cwd) / 'mask.nii.gz', inside, image.grid)
        self._results.update(
            image=self.inputs.image, mask=str(path), source='given' if mask else 'found'
        )
        return runtime
