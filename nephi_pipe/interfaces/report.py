"""The interface that shows a registration."""

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
from .register import MODALITIES

GRID_MM = 4.0
"""Spacing of the displacement that the figure of the deformed grid is drawn from."""


class PairReportInputSpec(BaseInterfaceInputSpec):
    field = File(exists=True, mandatory=True, desc='the registration (.safetensors)')
    fixed_image = File(exists=True, mandatory=True, desc='the image that stayed')
    moving_image = File(exists=True, mandatory=True, desc='the image that was warped')
    warped_image = File(exists=True, mandatory=True, desc='the moving image on the fixed grid')
    jacobian = File(exists=True, desc='determinant of the deformation on the fixed grid')
    history = File(exists=True, desc='progress of the optimisation, JSON')
    metrics = File(exists=True, desc='scores, JSON')
    fixed_labels = File(exists=True, desc='label map on the fixed grid')
    moving_labels = File(exists=True, desc='label map on the moving grid')
    warped_labels = File(exists=True, desc='the moving labels on the fixed grid')
    label_names = traits.Dict(traits.Str, traits.Str, desc='names of the labels')
    fixed_mask = File(exists=True, desc='the organ in the fixed image')
    moving_mask = File(exists=True, desc='the organ in the moving image')
    fixed_landmarks = File(exists=True, desc='table of points (.tsv), columns x, y, z, RAS+ mm')
    moving_landmarks = File(exists=True, desc='the corresponding points')
    modality = traits.Enum(*MODALITIES, usedefault=True, desc='what pictures are chosen by')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the computation')
    stem = traits.Str('pair', usedefault=True, desc='how the names of the figures begin')
    suffix = traits.Str('figure', usedefault=True, desc='how the names of the figures end')


class PairReportOutputSpec(TraitedSpec):
    figures = traits.List(File, desc='pictures (.png) and charts (.svg)')
    report_parts = File(
        desc='the arguments of report.pair_section beside the figures and the title, JSON'
    )


class PairReport(SimpleInterface):
    """Draw the figures of one pair and keep what a page says about it."""

    input_spec = PairReportInputSpec
    output_spec = PairReportOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import json

        from ..files import write_json
        from ..presets.views import view
        from ..registration import load_registration
        from ..report import pair_figures
        from ..threads import torch_threads

        def read(path: Any) -> Any:
            return json.loads(Path(path).read_text()) if given(path) else None

        folder, seen = Path(runtime.cwd), view(self.inputs.modality)
        registration = load_registration(self.inputs.field)
        points = self._landmarks()
        history, metrics = read(self.inputs.history), read(self.inputs.metrics)
        names = {int(k): text for k, text in (given(self.inputs.label_names) or {}).items()}
        with torch_threads(self.inputs.num_threads):
            figures = pair_figures(
                self._images(registration, seen, points),
                folder,
                self.inputs.stem,
                history=history,
                metrics=metrics,
                label_names=names,
                landmark_errors=points and self._errors(registration, points),
                view=seen,
                suffix=self.inputs.suffix,
            )
        parts = {
            'metrics': metrics,
            'facts': [
                ['Moving', self.inputs.moving_image],
                ['Fixed', self.inputs.fixed_image],
            ],
            'provenance': registration.provenance,
            'seconds': registration.provenance.get('seconds'),
            'label_names': names,
        }
        self._results['figures'] = [str(figure.path) for figure in figures]
        self._results['report_parts'] = str(write_json(folder / 'report_parts.json', parts))
        return runtime

    def _landmarks(self) -> Any:
        from ..landmark_errors import read_landmark_pairs

        paths = given(self.inputs.fixed_landmarks), given(self.inputs.moving_landmarks)
        return read_landmark_pairs(*paths) if all(paths) else None

    def _errors(self, registration: Any, points: Any) -> dict[str, Any]:
        from ..landmark_errors import landmark_errors_mm

        errors = landmark_errors_mm(points, registration.affine, registration.warp_points)
        return {'before': errors['affine_mm'], 'after': errors['nephi_mm']}

    def _outlined(self, registration: Any, fixed: Any, moving: Any, seen: Any) -> dict[str, Any]:
        """Label maps whose outlines are shown: those given, else the masks of an organ."""
        from ..images import load_labels, load_mask
        from ..transforms import Transform, resample

        affine, inputs = Transform([registration.affine]), self.inputs
        labels, masks = given(inputs.moving_labels), [inputs.fixed_mask, inputs.moving_mask]
        if seen.organ and all(map(given, masks)) and not labels:
            mask = load_mask(masks[1], like=moving)
            mask = mask.with_data(mask.data.astype('uint8'))
            return {
                'labels_name': seen.organ,
                'labels_fixed': load_mask(masks[0], like=fixed),
                'labels_before': resample(mask, affine, fixed.grid, 'labels'),
                'labels_after': registration.warp_labels(mask),
            }
        paths = {'labels_fixed': inputs.fixed_labels, 'labels_after': inputs.warped_labels}
        shown = {name: load_labels(path) for name, path in paths.items() if given(path)}
        if labels:
            before = resample(load_labels(labels), affine, fixed.grid, 'labels')
            shown['labels_before'] = before
        return shown

    def _images(self, registration: Any, seen: Any, points: Any) -> Any:
        import numpy as np

        from ..geometry import apply_affine
        from ..images import load_image
        from ..report import PairImages
        from ..transforms import Transform, resample

        fixed, moving = load_image(self.inputs.fixed_image), load_image(self.inputs.moving_image)
        affine = Transform([registration.affine])
        coarse = fixed.grid.resampled(GRID_MM)
        optional = self._outlined(registration, fixed, moving, seen)
        if given(self.inputs.jacobian):
            optional['jacobian'] = load_image(self.inputs.jacobian)
        if points is not None:
            optional |= {
                'landmarks_fixed': points.fixed,
                'landmarks_before': apply_affine(
                    np.linalg.inv(registration.affine), points.moving
                ),
                'landmarks_after': registration.inverse.warp_points(points.moving),
            }
        return PairImages(
            fixed,
            resample(moving, affine, fixed.grid, cval=seen.outside),
            load_image(self.inputs.warped_image),
            displacement=registration.displacement(coarse),
            displacement_grid=coarse,
            fixed_mask=registration.fixed_mask,
            jacobian_of=seen.jacobian_of,
            **optional,
        )
