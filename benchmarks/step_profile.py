"""What a step must compute, how near to the machine's speed it does, and where the rest goes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from statistics import median

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from nephi_pipe.demo import DATASET, REFERENCE
from nephi_pipe.field.config import COMPACT, PUBLISHED, FieldConfig
from nephi_pipe.field.deformation import CHUNK, NePhiField
from nephi_pipe.images import load_image
from nephi_pipe.learning.optimise import optimise
from nephi_pipe.learning.settings import Level
from nephi_pipe.learning.volume import Volume
from nephi_pipe.presets import preset
from nephi_pipe.presets.preparation import Prepared, frame_of, pair_builder, prepare
from nephi_pipe.threads import torch_threads

from .side_by_side import common_options, processor
from .step_operations import Rows, step_operations
from .step_tables import markdown
from .step_variants import VARIANTS, PointStep
from .tables import replace_section

CONFIGURATIONS = {'published': PUBLISHED, 'compact': COMPACT}

POINTS, GRADIENT_POINTS = 10_000, 500
"""Of the similarity and of the regulariser, in each direction."""

MOVING = 'sub-41'

LARGE = 1536
"""Side of a large product of square matrices."""

KINDS = {
    'matrix products': ('mm', 'addmm', 'bmm', 'baddbmm'),
    'sines and cosines': ('sin', 'cos'),
    'products and sums of single numbers': (
        'mul', 'add', 'sub', 'div', 'neg', 'sum', 'mean', 'pow', 'square', 'clamp_min', 'where',
    ),
    'copies and zeros': ('copy', 'fill', 'zero', 'cat', 'empty', 'empty_strided', 'clone'),
    'reading codes, choosing rows': (
        'index_select', 'embedding_bag', 'scatter_add', 'index', 'index_put_impl', 'index_add',
    ),
    'reading images': ('grid_sampler_3d', 'grid_sampler_3d_backward'),
    'optimiser': ('fused_adam',),
}  # fmt: skip
"""Operations of torch by what they are for; the others are 'everything else'."""


def main(argv: Sequence[str]) -> int:
    """Measure, print the tables, write them and the numbers to a folder."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks profile', description=__doc__)
    common_options(parser)
    parser.add_argument('--repeats', type=int, default=7, metavar='N', help='of each measurement')
    parser.set_defaults(threads=1)
    given = parser.parse_args(argv)
    with torch_threads(given.threads):
        found = measure(given.threads, given.repeats)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / 'profile.json').write_text(json.dumps(found, indent=2) + '\n')
    text = markdown(found)
    (given.out / 'tables.md').write_text(text)
    if given.results:
        replace_section(given.results, 'profile', text)
    print(text)
    return 0


def measure(threads: int, repeats: int) -> dict:
    """Everything that the tables tell."""
    prepared = [_prepared(person) for person in (REFERENCE, MOVING)]
    return {
        'processor': processor(),
        'torch': f'{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}',
        'threads': threads,
        'repeats': repeats,
        'points': [POINTS, GRADIENT_POINTS],
        'machine': machine_speed(repeats),
        'steps': {
            name: point_steps(config, prepared, repeats) for name, config in CONFIGURATIONS.items()
        },
        'levels': [
            level_steps(level, prepared, repeats, threads)
            for level in preset('brain').optimisation.levels
        ],
    }


def machine_speed(repeats: int) -> dict[str, float]:
    """Giga-operations a second of float32 products, by their sizes (rows, inputs, outputs)."""
    sizes = [(LARGE, LARGE, LARGE)]
    for config in CONFIGURATIONS.values():
        sizes += [(CHUNK, 2 * config.frequencies, config.width)]
        sizes += [(CHUNK, config.width, config.width)]
    return {' x '.join(map(str, size)): product_speed(size, repeats) for size in sizes}


def product_speed(size: tuple[int, int, int], repeats: int) -> float:
    """Giga-operations a second of processor time of one product, the median."""
    rows, inputs, outputs = size
    a, b, product = (torch.rand(shape) for shape in ((rows, inputs), (inputs, outputs), (0,)))
    operations = 2 * rows * inputs * outputs
    # Long enough for a clock that ticks in fractions of a millisecond.
    often = max(round(2e9 / operations), 1)

    def run() -> None:
        for _ in range(often):
            torch.mm(a, b, out=product)

    product.resize_(rows, outputs)
    return often * operations / median(_seconds(run, repeats)) / 1e9


def point_steps(config: FieldConfig, prepared: list[Prepared], repeats: int) -> dict:
    """A step at single points: every variant, in turn, and the parts of the first."""
    volumes, points, gradient_points = _points_of(config, prepared)
    steps = {
        name: PointStep(config, volumes, points, gradient_points, variant)
        for name, variant in VARIANTS.items()
    }
    shipped = next(iter(steps.values()))
    tasks: dict[str, Callable] = {**steps}
    tasks['regulariser'] = lambda: shipped.regularity().backward()
    # Right beside each step, so that both find the machine in the same state.
    size = (CHUNK, config.width, config.width)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    speeds = []
    for _ in range(repeats + 1):
        speeds.append(product_speed(size, 1))
        for name, task in tasks.items():
            seconds[name] += _seconds(task, 1)
    similarity, regulariser = step_operations(config, Rows(POINTS, GRADIENT_POINTS))
    return {
        'operations': {'similarity': similarity, 'regulariser': regulariser},
        'speed': median(speeds[1:]),
        'seconds': {name: median(values[1:]) for name, values in seconds.items()},
        'kinds': kinds_of(shipped, repeats),
    }


def level_steps(level: Level, prepared: list[Prepared], repeats: int, threads: int) -> dict:
    """Steps of instance optimisation as ``nephi register`` does them, at one level."""
    brain = preset('brain')
    frame, extent = frame_of(*prepared, np.eye(4), brain.margin_mm)
    settings = replace(brain.optimisation, levels=(replace(level, share=1.0),), steps=repeats + 1)
    pair_at = pair_builder(*prepared, np.eye(4), frame, settings, 'cpu')
    field = _Counting(brain.field, torch.Generator().manual_seed(0), extent)
    clock: list[tuple[float, float]] = []
    speeds = [product_speed((CHUNK, brain.field.width, brain.field.width), 1)]

    def tick(_: object) -> None:
        clock.append((time.process_time(), time.monotonic()))

    optimise(field, pair_at, settings, frame.scale_mm, threads=threads, progress=tick)
    speeds.append(product_speed((CHUNK, brain.field.width, brain.field.width), 1))
    # Two directions; in each the Jacobians of a map and then of the other.
    values, gradients = sum(field.values), sum(field.gradients)
    rows = Rows(values // (2 * len(clock)), gradients // (4 * len(clock)))
    seconds, wall = np.median(np.diff(clock, axis=0), axis=0).tolist()
    return {
        'level': asdict(level),
        'rows': asdict(rows),
        'operations': sum(step_operations(brain.field, rows)),
        'speed': median(speeds),
        'seconds': seconds,
        'wall': wall,
    }


class _Counting(NePhiField):
    """Counts the points at which it is evaluated, and those with a Jacobian, both directions."""

    def __init__(self, *sizes) -> None:
        super().__init__(*sizes)
        self.values: list[int] = []
        self.gradients: list[int] = []
        for network in self.networks:
            network.register_forward_pre_hook(self._count)

    def _count(self, _: object, inputs: tuple) -> None:
        self.values.append(len(inputs[0]))

    def displacement_and_gradient(self, points, inverse=False):
        self.gradients.append(len(points))
        return super().displacement_and_gradient(points, inverse)


def kinds_of(step: Callable, repeats: int) -> dict[str, float]:
    """Share of a step's time by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            step()
    spent = dict.fromkeys([*KINDS, 'everything else'], 0.0)
    by_operation = {name: kind for kind, names in KINDS.items() for name in names}
    for event in found.key_averages():
        name = event.key.removeprefix('aten::').strip('_')
        spent[by_operation.get(name, 'everything else')] += event.self_cpu_time_total
    return {kind: value / sum(spent.values()) for kind, value in spent.items()}


def _seconds(task: Callable, repeats: int) -> list[float]:
    """Seconds of a processor: what other programs take meanwhile is not counted."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        task()
        found.append(time.process_time() - started)
    return found


def _prepared(person: str) -> Prepared:
    path = DATASET / person / 'anat' / f'{person}_T1w.nii.gz'
    return prepare(load_image(path), None, None, preset('brain')).cropped()


def _points_of(
    config: FieldConfig, prepared: list[Prepared]
) -> tuple[tuple[Volume, Volume], torch.Tensor, torch.Tensor]:
    """Both images with one feature and the mask, and random points inside of the fixed mask."""
    brain = preset('brain')
    frame, _ = frame_of(*prepared, np.eye(4), brain.margin_mm)
    channels = [torch.from_numpy(np.stack([one.data, one.mask])).float() for one in prepared]
    fixed, moving = (
        Volume(values, one.grid, frame, np.eye(4))
        for values, one in zip(channels, prepared, strict=True)
    )
    inside = prepared[0].mask_points
    chosen = np.random.default_rng(0).integers(len(inside), size=POINTS)
    points = (inside[chosen] - np.array(frame.center_mm)) / frame.scale_mm
    points = torch.from_numpy(points).float()
    return (fixed, moving), points, points[:GRADIENT_POINTS].clone()
