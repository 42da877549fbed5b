"""The files of one pair for ``nephi``: what is read before it is registered, and what is written.

Engine and numerics are imported inside the functions: a usage error needs none of them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from .images import Image
    from .landmark_errors import LandmarkPairs
    from .pair_scores import PairMaps
    from .registration import Registration

_SUFFIXES = {'h5': '.h5', 'nii': '.nii.gz', 'field': '.safetensors'}


class PairInputs(NamedTuple):
    """Two images and what belongs to them.

    ``scored`` has images, labels and landmarks by the names under which the engine scores them;
    ``landmarks`` the latter once more, with what they are called. ``masks`` are those of fixed and
    moving image; ``organ`` the same ones where they hold an organ that is scored and shown.
    """

    scored: dict[str, Any]
    landmarks: LandmarkPairs | None
    masks: tuple[Image | None, Image | None]
    organ: tuple[Image, Image] | None


def load_pair(arguments: argparse.Namespace) -> PairInputs:
    """Read images, masks, labels and landmarks, and check them before work starts.

    CTs of lungs are mended as the BIDS App does it, so that nothing that a scanner left behind
    gets into what is warped, scored and shown; their lungs are found where no mask is given.
    """
    for kind in ('labels', 'landmarks'):
        given = [getattr(arguments, f'{side}_{kind}') is not None for side in ('fixed', 'moving')]
        if any(given) and not all(given):
            raise UsageError(f'--fixed-{kind} and --moving-{kind} go together; give both or none')

    from .ct import mend_ct
    from .images import check_same_grid, load_image, load_labels
    from .landmark_errors import read_landmark_pairs
    from .lung_sides import lungs_of_pair
    from .presets import preset

    lungs = preset(arguments.modality).lungs
    scored: dict[str, Any] = dict.fromkeys(('fixed_landmarks', 'moving_landmarks'))
    landmarks = None
    if arguments.fixed_landmarks:
        landmarks = read_landmark_pairs(arguments.fixed_landmarks, arguments.moving_landmarks)
        scored |= {'fixed_landmarks': landmarks.fixed, 'moving_landmarks': landmarks.moving}
    for side in ('fixed', 'moving'):
        image = load_image(getattr(arguments, side))
        scored[side] = mend_ct(image)[0] if lungs else image
        path = getattr(arguments, f'{side}_labels')
        scored[f'{side}_labels'] = load_labels(path) if path else None
        if scored[f'{side}_labels'] is not None:
            check_same_grid(scored[f'{side}_labels'], scored[side])
    if landmarks is not None:
        landmarks.warn_of_strays(scored['fixed'].grid, scored['moving'].grid)
    masks = _given_masks(arguments, scored)
    organ = lungs_of_pair(scored['fixed'], scored['moving'], *masks) if lungs else None
    return PairInputs(scored, landmarks, organ or masks, organ)


def _given_masks(
    arguments: argparse.Namespace, scored: dict[str, Any]
) -> tuple[Image | None, Image | None]:
    """Masks as they are given, each on the grid of its image."""
    from .images import load_mask

    fixed, moving = arguments.fixed_mask, arguments.moving_mask
    return (
        load_mask(fixed, like=scored['fixed']) if fixed else None,
        load_mask(moving, like=scored['moving']) if moving else None,
    )


def write_registration(
    registration: Registration, pair: PairInputs, arguments: argparse.Namespace
) -> None:
    """Everything that ``nephi register`` promises, into the output folder."""
    from .files import write_json
    from .images import save_image
    from .pair_scores import maps_of_registration
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
    saved = (
        registration.stored_transform()[0]
        if suffix == '.safetensors'
        else read_transform(folder / f'transform{suffix}')
    )
    metrics = registration.metrics(**scored, saved=saved)
    maps = maps_of_registration(registration, saved)
    metrics |= landmark_and_organ_scores(maps, pair, folder / 'landmarks.tsv')
    write_json(folder / 'metrics.json', metrics)
    for name, image in images.items():
        if name != 'jacobian' or arguments.jacobian:
            save_image(folder / f'{name}.nii.gz', image.data, image.grid)
    if arguments.report:
        _write_report(registration, pair, images, metrics, arguments)


def landmark_and_organ_scores(
    maps: PairMaps, pair: PairInputs, table: Path | None = None
) -> dict[str, Any]:
    """Scores of landmarks in both directions and of the organ, as the BIDS App has them.

    Parameters
    ----------
    maps
        What they are scored by.
    pair
        Where landmarks and masks come from.
    table
        The file (.tsv) that gets a row for each landmark.
    """
    from .landmark_errors import summarise_landmarks, write_landmark_errors

    scores: dict[str, Any] = {}
    if pair.landmarks is not None:
        errors = maps.landmark_errors_mm(pair.landmarks)
        scores |= summarise_landmarks(errors)
        if table is not None:
            write_landmark_errors(table, pair.landmarks, errors)
    if pair.organ is not None:
        scores |= maps.organ_scores(*pair.organ)
    return scores


def _write_report(
    registration: Registration,
    pair: PairInputs,
    images: dict[str, Image],
    metrics: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    from .presets.views import view
    from .report import write_pair_report
    from .report_pair import charted_errors, registered_images

    seen, scored, landmarks = view(arguments.modality), pair.scored, pair.landmarks
    shown = registered_images(
        registration,
        scored['fixed'],
        scored['moving'],
        images['warped'],
        seen,
        jacobian=images['jacobian'],
        labels=(scored['fixed_labels'], scored['moving_labels'], images.get('warped_labels')),
        masks=pair.masks,
        landmarks=landmarks,
    )
    write_pair_report(
        arguments.output / 'report.html',
        shown,
        metrics=metrics,
        history=registration.history,
        provenance=registration.provenance,
        seconds=registration.provenance.get('seconds'),
        landmark_errors=charted_errors(registration, landmarks) if landmarks else None,
        view=seen,
        moving_name=arguments.moving.name,
        fixed_name=arguments.fixed.name,
    )
