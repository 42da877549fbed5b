"""The interface that shows a registration."""

from __future__ import annotations

from functools import partial
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
        from ..report_pair import charted_errors
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
                landmark_errors=points and charted_errors(registration, points),
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

    def _images(self, registration: Any, seen: Any, points: Any) -> Any:
        from ..images import load_image, load_labels, load_mask
        from ..report_pair import registered_images

        def read(name: str, load: Any) -> Any:
            path = given(getattr(self.inputs, name))
            return load(path) if path else None

        fixed, moving = load_image(self.inputs.fixed_image), load_image(self.inputs.moving_image)
        return registered_images(
            registration,
            fixed,
            moving,
            load_image(self.inputs.warped_image),
            seen,
            jacobian=read('jacobian', load_image),
            labels=(
                read('fixed_labels', load_labels),
                read('moving_labels', load_labels),
                read('warped_labels', load_labels),
            ),
            masks=(
                read('fixed_mask', partial(load_mask, like=fixed)),
                read('moving_mask', partial(load_mask, like=moving)),
            ),
            landmarks=points,
        )
