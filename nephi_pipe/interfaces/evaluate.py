"""Interfaces that score and show a registration."""

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


class EvaluateRegistrationInputSpec(BaseInterfaceInputSpec):
    fixed_image = File(exists=True, mandatory=True, desc='the image that stayed')
    moving_image = File(exists=True, mandatory=True, desc='the image that was warped')
    field = File(exists=True, desc='a registration of ours (.safetensors)')
    transforms = InputMultiObject(
        File(exists=True),
        desc='the transform as saved, ours or of any other tool, listed from fixed to moving',
    )
    inverse_transforms = InputMultiObject(
        File(exists=True), desc='the way back, listed from moving to fixed'
    )
    affine = File(exists=True, desc='what "before" means, and what is no part of the deformation')
    fixed_mask = File(
        exists=True,
        desc='where folds, Jacobians and similarity are measured; a field has its own',
    )
    fixed_labels = File(exists=True, desc='label map on the fixed grid, for the overlap')
    moving_labels = File(exists=True, desc='label map on the moving grid; warped in any case')
    fixed_landmarks = File(exists=True, desc='table of points (.tsv), columns x, y, z, RAS+ mm')
    moving_landmarks = File(exists=True, desc='the corresponding points, row by row')
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the computation')


class EvaluateRegistrationOutputSpec(TraitedSpec):
    metrics = File(desc='scores, JSON')
    warped_labels = File(desc='the moving labels on the fixed grid, where they are given')


class EvaluateRegistration(SimpleInterface):
    """Score a registration of ours, or any transform, and warp the moving labels with it.

    With ``field`` the scores come from the registration itself, folds from exact Jacobians among
    them; folds by finite differences are those of ``transforms`` where these are given too.
    """

    input_spec = EvaluateRegistrationInputSpec
    output_spec = EvaluateRegistrationOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..errors import UsageError
        from ..files import write_json
        from ..images import save_image

        if not (given(self.inputs.field) or given(self.inputs.transforms)):
            raise UsageError(
                'There is nothing to evaluate; expected a registration (input "field") or a list '
                'of transforms (input "transforms"). Set one of them.'
            )
        folder, pair = Path(runtime.cwd), self._load()
        moving_labels = pair['moving_labels']
        if pair['fixed_labels'] is None or moving_labels is None:
            # A template has no labels as a rule: those of the other side are warped, not scored.
            pair['fixed_labels'] = pair['moving_labels'] = None
        score = self._score_field if given(self.inputs.field) else self._score_transforms
        metrics, warped_labels = score(pair, moving_labels)
        self._results['metrics'] = str(write_json(folder / 'metrics.json', metrics))
        if warped_labels is not None:
            path = folder / 'warped_labels.nii.gz'
            save_image(path, warped_labels.data, warped_labels.grid)
            self._results['warped_labels'] = str(path)
        return runtime

    def _load(self) -> dict[str, Any]:
        from ..images import check_same_grid, load_image, load_labels
        from ..metrics import read_landmarks

        pair = {}
        for side in ('fixed', 'moving'):
            pair[side] = load_image(getattr(self.inputs, f'{side}_image'))
            for kind, load in (('labels', load_labels), ('landmarks', read_landmarks)):
                path = given(getattr(self.inputs, f'{side}_{kind}'))
                pair[f'{side}_{kind}'] = load(path) if path else None
            if pair[f'{side}_labels'] is not None:
                check_same_grid(pair[f'{side}_labels'], pair[side])
        return pair

    def _score_field(self, pair: dict[str, Any], labels: Any) -> tuple[dict, Any]:
        import torch

        from ..apply import read_chain
        from ..registration import load_registration

        torch.set_num_threads(self.inputs.num_threads)
        registration = load_registration(self.inputs.field)
        saved = given(self.inputs.transforms)
        metrics = registration.metrics(**pair, saved=read_chain(saved) if saved else None)
        return metrics, labels and registration.warp_labels(labels)

    def _score_transforms(self, pair: dict[str, Any], labels: Any) -> tuple[dict, Any]:
        from ..apply import read_chain
        from ..images import load_mask
        from ..metrics import evaluate
        from ..transforms import read_affine, resample

        affine, mask = given(self.inputs.affine), given(self.inputs.fixed_mask)
        inverse = given(self.inputs.inverse_transforms)
        transform = read_chain(self.inputs.transforms)
        metrics = evaluate(
            transform,
            **pair,
            inverse=read_chain(inverse) if inverse else None,
            fixed_mask=load_mask(mask, like=pair['fixed']) if mask else None,
            affine=read_affine(affine) if affine else None,
        )
        return metrics, labels and resample(labels, transform, pair['fixed'].grid, 'labels')


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
        from ..registration import load_registration
        from ..report import pair_figures
        from ..threads import torch_threads

        def read(path: Any) -> Any:
            return json.loads(Path(path).read_text()) if given(path) else None

        folder = Path(runtime.cwd)
        registration = load_registration(self.inputs.field)
        history, metrics = read(self.inputs.history), read(self.inputs.metrics)
        names = {int(k): text for k, text in (given(self.inputs.label_names) or {}).items()}
        with torch_threads(self.inputs.num_threads):
            figures = pair_figures(
                self._images(registration),
                folder,
                self.inputs.stem,
                history=history,
                metrics=metrics,
                label_names=names,
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

    def _images(self, registration: Any) -> Any:
        from ..images import load_image, load_labels
        from ..report import PairImages
        from ..transforms import Transform, resample

        fixed, moving = load_image(self.inputs.fixed_image), load_image(self.inputs.moving_image)
        affine = Transform([registration.affine])
        labels = given(self.inputs.moving_labels)
        coarse = fixed.grid.resampled(GRID_MM)
        optional = {
            name: load(path)
            for name, path, load in (
                ('jacobian', self.inputs.jacobian, load_image),
                ('labels_fixed', self.inputs.fixed_labels, load_labels),
                ('labels_after', self.inputs.warped_labels, load_labels),
            )
            if given(path)
        }
        return PairImages(
            fixed,
            resample(moving, affine, fixed.grid),
            load_image(self.inputs.warped_image),
            displacement=registration.displacement(coarse),
            displacement_grid=coarse,
            fixed_mask=registration.fixed_mask,
            labels_before=(
                resample(load_labels(labels), affine, fixed.grid, 'labels') if labels else None
            ),
            **optional,
        )


GRID_MM = 4.0
"""Spacing of the displacement that the figure of the deformed grid is drawn from."""
