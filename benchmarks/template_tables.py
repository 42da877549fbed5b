"""Records of the template benchmark as Markdown: overlap of people there, and known truth."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from statistics import mean, median

import numpy as np

from .tables import COST_AND_FOLDS, NAMES, Column, circumstances, finite, table

LANDMARK_COLUMNS: tuple[Column, ...] = (
    ('raw mm', lambda record: record['scores']['tre_mm']['raw']['mean'], '.2f'),
    ('affine', lambda record: record['scores']['tre_mm']['before']['mean'], '.2f'),
    ('TRE mm', lambda record: record['scores']['tre_mm']['after']['mean'], '.3f'),
    ('median', lambda record: record['scores']['tre_mm']['after']['median'], '.3f'),
    ('90 %', lambda record: record['scores']['tre_mm']['after']['p90'], '.3f'),
    ('seconds', lambda record: record['wall_s'], '.1f'),
    *COST_AND_FOLDS,
)

_ROW = (
    'method', 'Dice, affine', 'Dice', 'least pair', 'best pair', 'seconds', 'of it affine',
    'deformation', 'CPU seconds', 'peak MiB', 'folds, central %', 'folds, digital %',
    'exact folds %', 'SDlogJ',
)  # fmt: skip


def markdown(records: list[dict], out: Path) -> str:
    """The section of RESULTS.md; the label maps at the template are read from ``out``."""
    simulated = [record for record in records if record['fixed'].startswith('sim-')]
    at_template = [record for record in records if record not in simulated]
    parts = [circumstances(records)]
    if at_template:
        parts.append(template_table(at_template, out))
    if simulated:
        methods = list(dict.fromkeys(record['method'] for record in simulated))
        parts += ['Known truth, 2 mm:', table(simulated, methods, LANDMARK_COLUMNS, 'mean')]
    return '\n\n'.join(parts) + '\n'


def template_table(records: list[dict], out: Path) -> str:
    """A row for each method: mean Dice of every pair of people, medians of costs, mean folds."""
    rows = [list(_ROW), ['---', *['---:'] * (len(_ROW) - 1)]]
    methods = list(dict.fromkeys(record['method'] for record in records))
    for method in methods:
        own = [record for record in records if record['method'] == method]
        stems = {r['moving']: out / f'{r["fixed"]}_from-sub-{r["moving"]}_{method}' for r in own}
        overlaps = [list(pairwise_dice(_maps(stems, end)).values()) for end in ('_affine', '')]
        rows.append([NAMES[method], *_cells(own, *overlaps)])
    people = len({record['moving'] for record in records})
    title = f'{people} people at the template, Dice of every pair of them:'
    lines = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join([title, '', *lines])


def pairwise_dice(maps: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """Mean Dice of the labels of every two maps that lie on one grid.

    >>> maps = {'a': np.array([0, 1, 1, 2]), 'b': np.array([1, 1, 0, 2])}
    >>> pairwise_dice(maps)
    {('a', 'b'): 0.75}
    """
    from nephi_pipe.overlap import dice

    return {
        (one, other): mean(dice(maps[one], maps[other]).values())
        for one, other in combinations(maps, 2)
    }


def _maps(stems: Mapping[str, Path], end: str) -> dict[str, np.ndarray]:
    """The label maps of people at the template, uint8."""
    import nibabel as nib

    return {
        label: np.asarray(nib.load(f'{stem}{end}.nii.gz').dataobj, dtype=np.uint8)
        for label, stem in stems.items()
    }


def _cells(records: list[dict], before: list[float], after: list[float]) -> list[str]:
    """What is told of a method; of one person alone there is no overlap."""
    overlaps = [mean(before), mean(after), min(after), max(after)] if after else []
    affine = [record['phases']['affine_s'] for record in records]
    deformation = [record['phases']['deformable_s'] for record in records]
    costs = [median(record[name] for record in records) for name in ('cpu_s', 'peak_mib')]
    exact = [record['scores']['folds'].get('exact') for record in records]
    return [
        *([format(value, '.4f') for value in overlaps] or ['-'] * 4),
        *(
            format(median(values), '.1f')
            for values in ([record['wall_s'] for record in records], affine, deformation)
        ),
        format(costs[0], '.1f'),
        format(costs[1], '.0f'),
        *(
            format(mean(map(finite(name), records)), '.4f')
            for name in ('central_percent', 'digital_percent')
        ),
        format(mean(part['percent'] for part in exact), '.4f') if all(exact) else '-',
        format(mean(r['scores']['jacobian']['total']['sd_log'] for r in records), '.3f'),
    ]
