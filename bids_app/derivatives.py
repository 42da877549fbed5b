"""Storing what one pair produced: BIDS names, sidecars, and the Nipype node that does it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    DynamicTraitedSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from nipype.interfaces.io import add_traits

from .. import __version__
from ..files import atomic, sha256, write_text
from ..interfaces.common import given
from ..landmark_errors import COLUMNS
from ..presets.views import view
from .dataset import NAME, read_json
from .names import Names, sidecar
from .query import Scan

FILES = {
    'forward_transform': 'forward',
    'inverse_transform': 'inverse',
    'warped_image': 'warped',
    'warped_labels': 'labels',
    'jacobian': 'jacobian',
    'landmarks': 'landmarks',
}
"""Fields of a pair workflow's outputnode that are files to keep, and their names here."""


def store_pair(
    names: Names, results: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Path]:
    """Copy one pair's results to their BIDS names, with sidecars; the metrics come last.

    A file that is already there with the same content is left alone. Metrics of another result go
    first, and then what that result had and this one has not: where metrics are, all files belong
    to them, whenever a run may be killed.

    Parameters
    ----------
    names
        Where everything goes.
    results
        Fields of the outputnode of the pair's workflow and their files; what is missing or None
        was not made. ``figures`` is a list; ``skull_stripped`` says so of the moving image, and
        is None for other organs.
    facts
        What the metrics and sidecars say about the settings.

    Returns
    -------
    dict
        What was stored, by field.

    Raises
    ------
    OutputError, StorageError
        A folder cannot be written to; the disk is full.
    """
    stored = {}
    parts = read_json(Path(results['report_parts'])) if results.get('report_parts') else {}
    facts = {**facts, **parts.get('provenance', {})}  # what the engine did counts
    texts = _sidecars(names, results, facts)
    metrics = _json(_metrics(names, results, facts, parts))
    if not names.metrics.is_file() or names.metrics.read_bytes() != metrics.encode():
        names.metrics.unlink(missing_ok=True)
        _remove_others(names, results)
    for field, attribute in FILES.items():
        if not results.get(field):
            continue
        target = getattr(names, attribute)
        stored[field] = copy_file(results[field], target)
        write_if_new(sidecar(target), texts[field])
    if results.get('warped_labels') and names.pair.moving.label_table:
        copy_file(names.pair.moving.label_table, names.labels.with_name(_table_name(names)))
    stored.update(_store_figures(names, results.get('figures') or ()))
    stored['metrics'] = write_if_new(names.metrics, metrics)
    return stored


def _remove_others(names: Names, results: Mapping[str, Any]) -> None:
    """Remove what another result of the pair left and this one will not replace."""
    others = names.of_other_formats()
    for field, attribute in FILES.items():
        target = getattr(names, attribute)
        if not results.get(field):
            others += [target, sidecar(target)]
    if not (results.get('warped_labels') and names.pair.moving.label_table):
        others.append(names.labels.with_name(_table_name(names)))
    kept = {_figure(names, Path(figure)).name for figure in results.get('figures') or ()}
    start, _, end = names.figure('*', '').name.partition('*')
    if names.figures.is_dir():
        others += [
            path
            for path in names.figures.iterdir()
            if path.name.startswith(start)
            and path.name.split('.')[0].endswith(end)
            and path.name not in kept
        ]
    for path in others:
        path.unlink(missing_ok=True)


def _metrics(
    names: Names,
    results: Mapping[str, Any],
    facts: Mapping[str, Any],
    parts: Mapping[str, Any],
) -> dict[str, Any]:
    measured = read_json(Path(results['metrics'])) if results.get('metrics') else {}
    return {
        'moving': image_name(names.pair.moving),
        'fixed': image_name(names.pair.fixed),
        'seconds': parts.get('seconds') or facts.get('seconds'),
        **measured,
        'provenance': {**facts, 'checksums': checksums(names)},
    }


def copy_file(source: str | Path, target: Path) -> Path:
    """Copy atomically, unless ``target`` has the same bytes already."""
    source = Path(source)
    same_size = target.is_file() and target.stat().st_size == source.stat().st_size
    if not (same_size and sha256(target) == sha256(source)):
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
    return target


def write_if_new(path: Path, text: str) -> Path:
    """Write a text file atomically, unless that is what it holds."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
    return path


def _store_figures(names: Names, figures: Any) -> dict[str, Path]:
    stored = {}
    for figure in map(Path, figures):
        stored[f'figure_{_key(figure)}'] = copy_file(figure, _figure(names, figure))
    return stored


def _key(figure: Path) -> str:
    """What a figure shows, by its name."""
    found = re.search(r'desc-([0-9A-Za-z]+)', figure.name)
    return found[1] if found else re.sub('[^0-9A-Za-z]', '', figure.name.split('.')[0])


def _figure(names: Names, figure: Path) -> Path:
    """Where a figure goes."""
    return names.figure(_key(figure), figure.suffix)


def _table_name(names: Names) -> str:
    return names.labels.name.replace('.nii.gz', '.tsv')


def checksums(names: Names) -> dict[str, str]:
    """SHA-256 of the images and what belongs to them that the pair was made from."""
    moving, fixed = names.pair.moving, names.pair.fixed
    files = [
        file
        for scan in (moving, fixed)
        for file in (scan.path, scan.mask, scan.labels, scan.landmarks)
    ]
    return {path.name: sha256(path) for path in files if path is not None}


def image_name(scan: Scan) -> str:
    """``sub-41/anat/sub-41_T1w.nii.gz`` for a scan of the data set, else the file's name."""
    return scan.uri.partition('bids:raw:')[2] or scan.path.name


def _sidecars(
    names: Names, results: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, str]:
    """The text of each file's JSON sidecar."""
    moving, fixed = names.pair.moving, names.pair.fixed
    sources = [uri for uri in (moving.uri, fixed.uri) if uri]
    stripped = results.get('skull_stripped')
    part = {
        'deformation': 'deformation from the fixed to the moving image, without its affine part',
        'total': 'whole map from the fixed to the moving image, its affine part included',
    }[view(facts.get('modality', '')).jacobian_of]
    transform = f'bids::{names.forward.relative_to(names.output_dir).as_posix()}'
    on_grid = {
        'SpatialReference': fixed.uri or fixed.space,
        'Sources': [*sources, transform],
        'GeneratedBy': [{'Name': NAME, 'Version': __version__}],
    }
    contents: dict[str, dict[str, Any]] = {
        'forward_transform': _transform_facts(results.get('forward_sidecar'), moving, fixed),
        'inverse_transform': _transform_facts(results.get('inverse_sidecar'), fixed, moving),
        'warped_image': {
            'Description': 'The moving image on the grid of the fixed image.',
            **({} if stripped is None else {'SkullStripped': bool(stripped)}),
            **on_grid,
        },
        'warped_labels': {
            'Description': 'The label map of the moving image on the grid of the fixed image '
            '(nearest neighbour).',
            **on_grid,
            'Sources': [*on_grid['Sources'], *moving.companion_uris[-1:]],
        },
        'jacobian': {
            'Description': f'Determinant of the Jacobian of the {part}: above 1 the moving image '
            'is larger.',
            'Units': '1',
            **on_grid,
        },
        'landmarks': {
            **{
                name: {'Description': f'{text}.', **_units(name)} for name, text in COLUMNS.items()
            },
            'Sources': [
                *(uri for uri in (moving.landmarks_uri, fixed.landmarks_uri) if uri),
                transform,
            ],
            'GeneratedBy': on_grid['GeneratedBy'],
        },
    }
    return {
        field: _json({**content, 'Provenance': dict(facts)}) for field, content in contents.items()
    }


def _units(column: str) -> dict[str, str]:
    return {'Units': 'mm'} if column != 'index' else {}


def _transform_facts(path: Any, origin: Scan, target: Scan) -> dict[str, Any]:
    """What the engine says about a transform, and what the two ends of it are."""
    return {
        'Description': 'Resamples an image in the space "From" onto the grid of "To"; maps '
        'points of "To" to points of "From".',
        'From': origin.uri or origin.space,
        'To': target.uri or target.space,
        'FromSpace': origin.space,
        'ToSpace': target.space,
        **(read_json(Path(path)) if path else {}),
        'Sources': [uri for uri in (origin.uri, target.uri) if uri],
        'GeneratedBy': [{'Name': NAME, 'Version': __version__}],
    }


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + '\n'


class PairSinkInputSpec(BaseInterfaceInputSpec):
    names = traits.Any(mandatory=True, desc='where everything goes')
    facts = traits.Dict(desc='what metrics and sidecars say about the settings')
    fixed_mask_source = traits.Str(desc='where the mask of the fixed image comes from')
    moving_mask_source = traits.Str(desc='where the mask of the moving image comes from')
    fixed_mended = traits.Str(desc='what was mended of the fixed image')
    moving_mended = traits.Str(desc='what was mended of the moving image')
    compared = traits.Str(desc='which part of the organ is compared, where it is not all')
    forward_transform = File(desc='resamples moving onto fixed')
    inverse_transform = File(desc='resamples fixed onto moving')
    forward_sidecar = File(desc='facts about forward_transform, JSON')
    inverse_sidecar = File(desc='facts about inverse_transform, JSON')
    warped_image = File(desc='the moving image on the fixed grid')
    warped_labels = File(desc='the moving labels on the fixed grid')
    jacobian = File(desc='determinants on the fixed grid')
    landmarks = File(desc='landmarks and their errors')
    metrics = File(desc='scores, JSON')
    figures = InputMultiObject(File(), desc='pictures')
    report_parts = File(desc='seconds and provenance, JSON')


class PairSinkOutputSpec(TraitedSpec):
    metrics = File(desc='the scores as stored; there when everything is')


class PairSink(SimpleInterface):
    """Store one pair's results. Runs each time, so that a deleted file comes back."""

    input_spec = PairSinkInputSpec
    output_spec = PairSinkOutputSpec
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        results = {name: given(value) for name, value in self.inputs.get().items()}
        names, facts = results.pop('names'), results.pop('facts') or {}
        sources = {side: results.pop(f'{side}_mask_source') for side in ('fixed', 'moving')}
        if facts.get('modality', 'brain') == 'brain':
            results['skull_stripped'] = _skull_stripped(names.pair.moving, sources['moving'])
        facts = {**facts, 'masks': {side: where for side, where in sources.items() if where}}
        mended = {side: results.pop(f'{side}_mended') for side in ('fixed', 'moving')}
        told = {'mended': {side: what for side, what in mended.items() if what}}
        told['compared'] = results.pop('compared')
        facts |= {name: what for name, what in told.items() if what}
        self._results['metrics'] = str(store_pair(names, results, facts)['metrics'])
        return runtime


def _skull_stripped(scan: Scan, mask_source: str | None) -> bool:
    """A mask that was given says nothing about the image itself: look."""
    if mask_source != 'given':
        return mask_source == 'skull-stripped'
    from ..brain_mask import is_skull_stripped
    from ..images import load_image

    return is_skull_stripped(load_image(scan.path))


class SubjectReportInputSpec(DynamicTraitedSpec, BaseInterfaceInputSpec):
    output_dir = traits.Str(mandatory=True, desc='the derivative data set')
    subject = traits.Str(mandatory=True, desc='label of the person')


class SubjectReportOutputSpec(TraitedSpec):
    report = File(desc='the page about this person')


class SubjectReport(SimpleInterface):
    """Write a person's page once all of the pairs ``pair0``, ``pair1``, ... are stored."""

    input_spec = SubjectReportInputSpec
    output_spec = SubjectReportOutputSpec
    _always_run = True

    def __init__(self, pairs: int = 1, **inputs: Any) -> None:
        super().__init__(**inputs)
        add_traits(self.inputs, [f'pair{number}' for number in range(pairs)])

    def _run_interface(self, runtime: Any) -> Any:
        from .subject_report import write_subject_report

        page = write_subject_report(Path(self.inputs.output_dir), self.inputs.subject)
        self._results['report'] = str(page)
        return runtime
