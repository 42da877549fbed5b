"""The interface that scores a registration."""

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
    moving_landmarks = File(
        exists=True,
        desc='the corresponding points, by name (such as a column "index") or row by row',
    )
    moving_mask = File(
        exists=True,
        desc='the organ in the moving image; with fixed_mask its overlap and volume are scored',
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the computation')


class EvaluateRegistrationOutputSpec(TraitedSpec):
    metrics = File(desc='scores, JSON')
    warped_labels = File(desc='the moving labels on the fixed grid, where they are given')
    landmarks = File(desc='a row for each landmark with its errors (.tsv), where they are given')


class EvaluateRegistration(SimpleInterface):
    """Score a registration of ours, or any transform, and warp the moving labels with it.

    With ``field`` the scores come from the registration itself, folds from exact Jacobians among
    them; folds by finite differences are those of ``transforms`` where these are given too.
    Landmarks are mapped in both directions, by the continuous map of a field.
    """

    input_spec = EvaluateRegistrationInputSpec
    output_spec = EvaluateRegistrationOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from ..errors import UsageError
        from ..files import write_json
        from ..images import save_image
        from ..landmark_errors import summarise_landmarks, write_landmark_errors

        if not (given(self.inputs.field) or given(self.inputs.transforms)):
            raise UsageError(
                'There is nothing to evaluate; expected a registration (input "field") or a list '
                'of transforms (input "transforms"). Set one of them.'
            )
        folder, points, pair = Path(runtime.cwd), self._landmarks(), self._load()
        if points is not None:
            pair.update(fixed_landmarks=points.fixed, moving_landmarks=points.moving)
        moving_labels = pair['moving_labels']
        if pair['fixed_labels'] is None or moving_labels is None:
            # A template has no labels as a rule: those of the other side are warped, not scored.
            pair['fixed_labels'] = pair['moving_labels'] = None
        score = self._score_field if given(self.inputs.field) else self._score_transforms
        metrics, warped_labels, maps = score(pair, moving_labels)
        if points is not None:
            errors = maps.landmark_errors_mm(points)
            metrics |= summarise_landmarks(errors)
            table = write_landmark_errors(folder / 'landmarks.tsv', points, errors)
            self._results['landmarks'] = str(table)
        metrics |= self._organ(pair, maps)
        self._results['metrics'] = str(write_json(folder / 'metrics.json', metrics))
        if warped_labels is not None:
            path = folder / 'warped_labels.nii.gz'
            save_image(path, warped_labels.data, warped_labels.grid)
            self._results['warped_labels'] = str(path)
        return runtime

    def _load(self) -> dict[str, Any]:
        from ..images import check_same_grid, load_image, load_labels

        pair = {}
        for side in ('fixed', 'moving'):
            pair[side] = load_image(getattr(self.inputs, f'{side}_image'))
            path = given(getattr(self.inputs, f'{side}_labels'))
            pair[f'{side}_labels'] = load_labels(path) if path else None
            if pair[f'{side}_labels'] is not None:
                check_same_grid(pair[f'{side}_labels'], pair[side])
        return pair

    def _landmarks(self) -> Any:
        """The landmarks of both sides, or None where neither is given."""
        from ..errors import UsageError
        from ..landmark_errors import read_landmark_pairs

        fixed, moving = given(self.inputs.fixed_landmarks), given(self.inputs.moving_landmarks)
        if not (fixed or moving):
            return None
        if not (fixed and moving):
            raise UsageError(
                f'There are landmarks of one image only ("{fixed or moving}"); expected those of '
                'both, or none. Give the others too.'
            )
        return read_landmark_pairs(fixed, moving)

    def _organ(self, pair: dict[str, Any], maps: Any) -> dict[str, Any]:
        """Overlap and change of volume of the organ that the masks hold, if both are given."""
        from ..images import load_mask

        masks = []
        for side in ('fixed', 'moving'):
            path = given(getattr(self.inputs, f'{side}_mask'))
            if not path:
                return {}
            masks.append(load_mask(path, like=pair[side]))
        return maps.organ_scores(*masks)

    def _score_field(self, pair: dict[str, Any], labels: Any) -> tuple[dict, Any, Any]:
        import torch

        from ..apply import read_chain
        from ..pair_scores import maps_of_registration
        from ..registration import load_registration

        torch.set_num_threads(self.inputs.num_threads)
        registration = load_registration(self.inputs.field)
        saved = given(self.inputs.transforms)
        saved = read_chain(saved) if saved else registration.stored_transform()[0]
        metrics = registration.metrics(**pair, saved=saved)
        maps = maps_of_registration(registration, saved)
        return metrics, labels and registration.warp_labels(labels), maps

    def _score_transforms(self, pair: dict[str, Any], labels: Any) -> tuple[dict, Any, Any]:
        import numpy as np

        from ..apply import read_chain
        from ..images import load_mask
        from ..metrics import evaluate
        from ..pair_scores import maps_of_transform
        from ..transforms import read_affine, resample

        affine, mask = given(self.inputs.affine), given(self.inputs.fixed_mask)
        inverse = given(self.inputs.inverse_transforms)
        inverse = read_chain(inverse) if inverse else None
        affine = read_affine(affine) if affine else np.eye(4)
        transform = read_chain(self.inputs.transforms)
        metrics = evaluate(
            transform,
            **pair,
            inverse=inverse,
            fixed_mask=load_mask(mask, like=pair['fixed']) if mask else None,
            affine=affine,
        )

        maps = maps_of_transform(transform, affine, inverse)
        warped = labels and resample(labels, transform, pair['fixed'].grid, 'labels')
        return metrics, warped, maps
