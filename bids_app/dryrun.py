"""What a run would do: pairs, files, memory, disk and time, without doing it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .dataset import read_json
from .names import Names
from .outcome import Failure, count
from .pairs import Pair
from .preflight import check_pairs, read_grid
from .query import Scan
from .reference import MNI_SHAPE, mni_template
from .resources import duration
from .settings import Settings

BYTES_PER_VOXEL = 5.0
"""Stored for each fixed voxel, compressed; measured: image 1.2, labels 0.1, Jacobian map 3.4."""

BYTES_PER_PAIR = 85e6
"""Two transforms, figures and the report; measured: 85 MB at 0.87 mm, 93 MB at 2 mm."""

WORK_FACTOR = 1.3
"""What the work folder holds, as a factor on the output; measured."""

SECONDS_PER_STEP = 0.75
"""Of one processor; hardly depends on the voxels. Measured, as all that follow."""

STRUCTURES = 1.2
"""How much longer a step takes that compares structures too; measured."""

SECONDS_PER_PAIR = 30.0
"""Of one processor for what else does not depend on the voxels: affine, masks, figures."""

SECONDS_PER_MVOXEL = 3.0
"""Of one processor for each million voxels of both images: reading, warping, scores, files."""

GAIN = 1.6
"""How much faster a pair is with two threads or more than with one."""

OVERHEAD = 1.25
"""Affine, scores and figures, as a factor on the time of the optimisation; measured."""


@dataclass(frozen=True)
class Estimate:
    """What one pair needs."""

    memory_gb: float
    output_mb: float
    seconds: float


def describe(settings: Settings, pairs: Sequence[Pair]) -> str:
    """A table of the pairs and the sums, as text; nothing is written.

    Times are the median of pairs that the output folder holds already, else a rough figure.
    """
    good, failures = check_pairs(pairs, trusted=[mni_template(settings.own_work_dir).path])
    estimates, origin = estimate(settings, good)
    rows = [('moving', 'fixed', 'masks', 'labels', 'landmarks', 'memory', 'disk', 'time', 'done')]
    rows += [_row(settings, pair, own) for pair, own in zip(good, estimates, strict=True)]
    lines = [_line(row, rows) for row in rows]
    lines += ['', *_totals(settings, estimates, origin)]
    lines += ['', 'Files of a pair, for example:', *_files(settings, good)]
    return '\n'.join([*lines, *map(_problem, failures)])


def _shape(settings: Settings, scan: Scan) -> tuple[int, int, int]:
    """Voxels along each axis; the template is not written yet."""
    if scan.path == mni_template(settings.own_work_dir).path:
        return MNI_SHAPE
    return read_grid(scan.path).shape


def estimate(settings: Settings, pairs: Sequence[Pair]) -> tuple[list[Estimate], str]:
    """What each pair needs, and where its time comes from."""
    known = _known_seconds(settings)
    origin = f'the median of {count(len(known), "pair")} in the output folder'
    return [_needs(settings, pair, known) for pair in pairs], (
        origin if known else f'a rough figure for {settings.modality}s'
    )


def _needs(settings: Settings, pair: Pair, known: Sequence[float]) -> Estimate:
    from ..workflows.resources import estimate_memory_gb

    fixed, moving = _shape(settings, pair.fixed), _shape(settings, pair.moving)
    stored = BYTES_PER_VOXEL * math.prod(fixed) + BYTES_PER_PAIR
    seconds = median(known) if known else rough_seconds(settings, fixed, moving)
    return Estimate(estimate_memory_gb(fixed, moving), stored / 1e6, seconds)


def _known_seconds(settings: Settings) -> list[float]:
    """How long pairs in the output folder took."""
    known = []
    for path in settings.output_dir.glob('sub-*/**/*_metrics.json'):
        seconds = read_json(path).get('seconds')
        seconds = seconds.get('total') if isinstance(seconds, dict) else seconds
        known += [OVERHEAD * seconds] if isinstance(seconds, (int, float)) else []
    return known


def rough_seconds(settings: Settings, fixed: Sequence[int], moving: Sequence[int]) -> float:
    """Seconds of a pair with images of so many voxels along each axis, before any was computed."""
    from ..presets import preset
    from ..weights import chosen_structures, chosen_weights

    steps = settings.steps
    if steps is None:
        trained = chosen_weights(settings.weights, settings.modality, None) is not None
        steps = preset(settings.modality, settings.sloppy).settings(trained).steps
    voxels = (math.prod(fixed) + math.prod(moving)) / 1e6
    step = SECONDS_PER_STEP
    wanted, weights = settings.structures, settings.weights
    if chosen_structures(wanted, weights, settings.modality, steps, settings.sloppy):
        step *= STRUCTURES
    one = SECONDS_PER_PAIR + step * steps + SECONDS_PER_MVOXEL * voxels
    return one / (GAIN if min(settings.omp_nthreads, settings.nprocs) > 1 else 1)


def _row(settings: Settings, pair: Pair, estimate: Estimate) -> tuple[str, ...]:
    return (
        pair.moving.path.name,
        pair.fixed.path.name if pair.fixed.subject else pair.fixed.space,
        _given(pair, 'mask'),
        'given' if pair.moving.labels else '-',
        'given' if pair.has_landmarks else '-',
        f'{estimate.memory_gb:.1f} GB',
        f'{estimate.output_mb:.0f} MB',
        duration(estimate.seconds),
        'yes' if Names(settings.output_dir, pair).metrics.exists() else 'no',
    )


def _given(pair: Pair, kind: str) -> str:
    """Whose mask there is."""
    sides = [side for side in ('moving', 'fixed') if getattr(getattr(pair, side), kind)]
    return {0: '-', 1: ''.join(sides), 2: 'given'}[len(sides)]


def _line(row: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(each[column]) for each in rows) for column in range(len(row))]
    return '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _totals(settings: Settings, estimates: Sequence[Estimate], origin: str) -> list[str]:
    if not estimates:
        return ['No pair can be registered.']
    need = max(estimate.memory_gb for estimate in estimates)
    by_threads = max(1, settings.nprocs // settings.omp_nthreads)
    together = max(1, min(by_threads, int(settings.mem_gb / need), len(estimates)))
    seconds = sum(estimate.seconds for estimate in estimates) / together
    disk = sum(estimate.output_mb for estimate in estimates) / 1e3
    lines = [
        f'{count(len(estimates), "pair")}, {together} at a time ({settings.nprocs} processors, '
        f'{settings.omp_nthreads} for each pair; {settings.mem_gb:.1f} GB of memory).',
        f'Memory: {together * need:.1f} GB at once.',
        f'Disk: {disk:.2f} GB in {settings.output_dir}, {WORK_FACTOR * disk:.2f} GB in '
        f'{settings.work_dir}.',
        f'Time: {duration(seconds)}, from {origin}.',
    ]
    if need > settings.mem_gb:
        lines.append(
            f'Warning: a pair needs {need:.1f} GB, and only {settings.mem_gb:.1f} GB may be used.'
        )
    return lines


def _files(settings: Settings, pairs: Sequence[Pair]) -> list[str]:
    if not pairs:
        return []
    names = Names(settings.output_dir, pairs[0], settings.xfm_format)
    paths = [names.forward, names.inverse, names.warped, names.jacobian, names.metrics]
    if pairs[0].moving.labels:
        paths.insert(3, names.labels)
    if pairs[0].has_landmarks:
        paths.insert(-1, names.landmarks)
    return [f'  {path.relative_to(settings.output_dir)}' for path in paths]


def _problem(failure: Failure) -> str:
    return f'Cannot be registered: {failure}'
