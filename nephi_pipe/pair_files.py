"""The files of one pair for ``nephi``: what is read before it is registered, and what is written.

Engine and numerics are imported inside the functions: a usage error needs none of them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import UsageError

if TYPE_CHECKING:
    from .landmark_errors import LandmarkPairs
    from .registration import Registration

_DRAWN_MM = 4.0
_SUFFIXES = {'h5': '.h5', 'nii': '.nii.gz', 'field': '.safetensors'}


class PairInputs(NamedTuple):
    """Two images and what belongs to them.

    ``scored`` has images, labels and landmarks by the names under which the engine scores them;
    ``landmarks`` the latter once more, with what they are called.
    """

    scored: dict[str, Any]
    landmarks: LandmarkPairs | None


def load_pair(arguments: argparse.Namespace, modality: str = 'other') -> PairInputs:
    """Read images, labels and landmarks, and check them before work starts.

    CTs of lungs are mended as the BIDS App does it, so that nothing that a scanner left behind
    gets into what is warped, scored and shown.
    """
    for kind in ('labels', 'landmarks'):
        given = [getattr(arguments, f'{side}_{kind}') is not None for side in ('fixed', 'moving')]
        if any(given) and not all(given):
            raise UsageError(f'--fixed-{kind} and --moving-{kind} go together; give both or none')

    from .ct import mend_ct
    from .images import check_same_grid, load_image, load_labels
    from .landmark_errors import read_landmark_pairs
    from .presets import preset

    scored: dict[str, Any] = dict.fromkeys(('fixed_landmarks', 'moving_landmarks'))
    landmarks = None
    if arguments.fixed_landmarks:
        landmarks = read_landmark_pairs(arguments.fixed_landmarks, arguments.moving_landmarks)
        scored |= {'fixed_landmarks': landmarks.fixed, 'moving_landmarks': landmarks.moving}
    for side in ('fixed', 'moving'):
        image = load_image(getattr(arguments, side))
        scored[side] = mend_ct(image)[0] if preset(modality).lungs else image
        path = getattr(arguments, f'{side}_labels')
        scored[f'{side}_labels'] = load_labels(path) if path else None
        if scored[f'{side}_labels'] is not None:
            check_same_grid(scored[f'{side}_labels'], scored[side])
    return PairInputs(scored, landmarks)


def write_registration(
    registration: Registration, pair: PairInputs, arguments: argparse.Namespace
) -> None:
    """Everything that ``nephi register`` promises, into the output folder."""
    from .files import write_json
    from .images import save_image
    from .presets.views import view
    from .transforms import read_transform

    seen, scored = view(arguments.modality), pair.scored
    folder, suffix = arguments.output, _SUFFIXES[arguments.xfm_format]
    for name, inverse in (('transform', False), ('inverse', True)):
        facts = registration.save_transform(folder / f'{name}{suffix}', inverse=inverse)
        write_json(folder / f'{name}.json', facts)
    images = {'warped': registration.warp(scored['moving'], outside=seen.outside)}
    if scored['moving_labels'] is not None:
        images['warped_labels'] = registration.warp_labels(scored['moving_labels'])
    if arguments.jacobian or arguments.report:
        images['jacobian'] = registration.jacobian_determinant(total=seen.jacobian_of == 'total')
    # What is scored is what others get to read: the file, not the field in memory.
    saved = None if suffix == '.safetensors' else read_transform(folder / f'transform{suffix}')
    metrics = registration.metrics(**scored, saved=saved)
    if pair.landmarks is not None:
        metrics |= _write_landmarks(registration, pair.landmarks, arguments)
    write_json(folder / 'metrics.json', metrics)
    for name, image in images.items():
        if name != 'jacobian' or arguments.jacobian:
            save_image(folder / f'{name}.nii.gz', image.data, image.grid)
    if arguments.report:
        _write_report(registration, scored, images, metrics, arguments)


def _write_landmarks(
    registration: Registration, landmarks: LandmarkPairs, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Write the table of landmarks; their scores in both directions, as the BIDS App has them."""
    from .landmark_errors import landmark_errors_mm, summarise_landmarks, write_landmark_errors

    errors = landmark_errors_mm(
        landmarks,
        registration.affine,
        registration.warp_points,
        registration.inverse.warp_points,
    )
    write_landmark_errors(arguments.output / 'landmarks.tsv', landmarks, errors)
    return summarise_landmarks(errors)


def _write_report(
    registration: Registration,
    scored: dict[str, Any],
    images: dict[str, Any],
    metrics: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    from .presets.views import view
    from .report import PairImages, write_pair_report
    from .transforms import Transform, resample

    seen = view(arguments.modality)
    fixed, labels = scored['fixed'], scored['moving_labels']
    affine, coarse = Transform([registration.affine]), fixed.grid.resampled(_DRAWN_MM)
    shown = PairImages(
        fixed,
        resample(scored['moving'], affine, fixed.grid, cval=seen.outside),
        images['warped'],
        jacobian=images['jacobian'],
        displacement=registration.displacement(coarse),
        displacement_grid=coarse,
        labels_fixed=scored['fixed_labels'],
        labels_before=labels and resample(labels, affine, fixed.grid, 'labels'),
        labels_after=images.get('warped_labels'),
        fixed_mask=registration.fixed_mask,
        jacobian_of=seen.jacobian_of,
    )
    write_pair_report(
        arguments.output / 'report.html',
        shown,
        metrics=metrics,
        history=registration.history,
        provenance=registration.provenance,
        view=seen,
        moving_name=arguments.moving.name,
        fixed_name=arguments.fixed.name,
    )
