"""Interfaces that prepare one image: check and conform it, find its brain or lungs."""

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


class ConformInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc='3D image, NIfTI or MGH')
    mask = File(exists=True, desc='mask on the grid of the image')


class ConformOutputSpec(TraitedSpec):
    image = File(desc='the image as float32 NIfTI, sform and qform equal')
    mask = File(desc='the mask given, else a rough mask of what is not background')


class Conform(SimpleInterface):
    """Check an image and write it as every tool reads it alike.

    Refuses what cannot be registered (truncated, not 3D, not finite, constant, singular affine).
    The grid stays; the sform counts where sform and qform differ.
    """

    input_spec = ConformInputSpec
    output_spec = ConformOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..images import foreground, load_image, load_mask, save_image

        image = load_image(self.inputs.image)
        mask = given(self.inputs.mask)
        inside = load_mask(mask, like=image).data if mask else foreground(image)
        folder = Path(runtime.cwd)
        self._results['image'] = str(save_image(folder / 'image.nii.gz', image.data, image.grid))
        self._results['mask'] = str(save_image(folder / 'mask.nii.gz', inside, image.grid))
        return runtime


class BrainMaskInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc='T1w scan, skull-stripped or with its skull')
    mask = File(exists=True, desc='brain mask on the grid of the image; taken as it is')
    method = traits.Enum(
        'none', 'deepbet', usedefault=True, desc='how the brain of a scan with a skull is found'
    )
    whole_head = traits.Bool(
        False, usedefault=True, desc='a scan with a skull and no mask is used as a whole head'
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the network')


class BrainMaskOutputSpec(TraitedSpec):
    mask = File(desc='mask of the brain (or the head), uint8, on the grid of the image')
    source = traits.Enum(
        'given', 'skull-stripped', 'deepbet', 'whole head', desc='where the mask comes from'
    )


class BrainMask(SimpleInterface):
    """Check a scan and find its brain.

    A mask that is given counts first; then a skull-stripped scan is recognised; then a scan with
    a skull is treated as ``whole_head`` and ``method`` say. Without either it is refused, since
    the scalp and neck would pull the registration away from the brain.
    """

    input_spec = BrainMaskInputSpec
    output_spec = BrainMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..brain_mask import find_brain
        from ..images import load_image, load_mask, save_image

        image = load_image(self.inputs.image)
        mask = given(self.inputs.mask)
        if mask:
            inside, source = load_mask(mask, like=image).data, 'given'
        else:
            inside, source = find_brain(
                image,
                method=self.inputs.method,
                whole_head=self.inputs.whole_head,
                threads=self.inputs.num_threads,
            )
        path = save_image(Path(runtime.cwd) / 'mask.nii.gz', inside, image.grid)
        self._results.update(mask=str(path), source=source)
        return runtime


class LungMaskInputSpec(BaseInterfaceInputSpec):
    image = File(exists=True, mandatory=True, desc='chest CT')
    mask = File(
        exists=True, desc='mask of both lungs, or of one, on the grid of the image; taken as it is'
    )


class LungMaskOutputSpec(TraitedSpec):
    image = File(desc='the CT in Hounsfield units; the very file given where nothing was mended')
    mask = File(
        desc='lungs on the grid of the image, uint8: 1 right and 2 left where found, 1 where given'
    )
    source = traits.Enum('given', 'found', desc='where the mask comes from')
    mended = traits.Str(desc='what was mended of the Hounsfield units; empty where nothing was')


class LungMask(SimpleInterface):
    """Check a chest CT, mend its Hounsfield units where they can be, and find its lungs.

    A mask that is given counts first; it must show lung, that is hold air.
    """

    input_spec = LungMaskInputSpec
    output_spec = LungMaskOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..ct import mend_ct
        from ..images import load_image, save_image
        from ..lung_mask import find_lungs

        image, done = mend_ct(load_image(self.inputs.image))
        inside, source = find_lungs(image, given(self.inputs.mask))
        folder = Path(runtime.cwd)
        path = self.inputs.image
        if done:
            # Later messages name this file: it has to say whose it is.
            name = f'mended_{Path(path).name.partition(".")[0]}.nii.gz'
            path = str(save_image(folder / name, image.data, image.grid))
        mask = save_image(folder / 'mask.nii.gz', inside, image.grid)
        self._results.update(image=path, mask=str(mask), source=source, mended='; '.join(done))
        return runtime


class CommonLungsInputSpec(BaseInterfaceInputSpec):
    fixed_image = File(exists=True, mandatory=True, desc='chest CT in Hounsfield units')
    moving_image = File(exists=True, mandatory=True, desc='chest CT in Hounsfield units')
    fixed_mask = File(exists=True, mandatory=True, desc='lungs on the grid of fixed_image')
    moving_mask = File(exists=True, mandatory=True, desc='lungs on the grid of moving_image')


class CommonLungsOutputSpec(TraitedSpec):
    fixed_mask = File(desc='what of fixed_mask the other holds too; the very file if it is all')
    moving_mask = File(desc='what of moving_mask the other holds too; the very file if it is all')
    compared = traits.Str(desc='which lungs are compared where it is one; empty where it is all')


class CommonLungs(SimpleInterface):
    """Where one mask holds one lung and the other both, restrict the other to the same lung."""

    input_spec = CommonLungsInputSpec
    output_spec = CommonLungsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..images import load_image, load_labels, save_image
        from ..lung_sides import common_lungs

        images, masks = (
            [load(getattr(self.inputs, f'{side}_{kind}')) for side in ('fixed', 'moving')]
            for kind, load in (('image', load_image), ('mask', load_labels))
        )
        common = common_lungs(images[0], masks[0].data, images[1], masks[1].data)
        self._results['compared'] = ''
        for side, mask, data in zip(('fixed', 'moving'), masks, common, strict=True):
            path = mask.path
            if data is not mask.data:
                path = Path(runtime.cwd) / f'{side}_mask.nii.gz'
                save_image(path, data.astype('uint8'), mask.grid)
                other = {'fixed': 'moving', 'moving': 'fixed'}[side]
                self._results['compared'] = (
                    f'one lung of the {side} scan: the one that the {other} mask holds'
                )
            self._results[f'{side}_mask'] = str(path)
        return runtime
