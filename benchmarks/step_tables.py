"""The numbers of `step_profile` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(found: dict) -> str:
    """All tables, with how they were measured."""
    parts = [
        f'{found["processor"]}; torch {found["torch"]}; threads: {found["threads"]}; medians of '
        f'{found["repeats"]}. Seconds are those of a processor.',
        machine_table(found['machine']),
        step_table(found),
        variant_table(found['steps']),
        kind_table(found['steps']),
        level_table(found['levels']),
    ]
    return '\n\n'.join(parts) + '\n'


def machine_table(machine: dict[str, float]) -> str:
    """Speeds of matrix products."""
    rows = [[size, f'{speed:.0f}'] for size, speed in machine.items()]
    return _table(['float32 product', 'GFLOP a second'], rows)


def step_table(found: dict) -> str:
    """A step of similarity and regulariser: operations, time, fraction of the machine's speed."""
    points = ' + '.join(f'{count:,}' for count in found['points'])
    heading = [
        f'step of {points} points', 'GFLOP', 'of it regulariser', 'product, GFLOP/s', 'ms',
        'fraction', 'regulariser, ms', 'its fraction', 'the rest, fraction',
    ]  # fmt: skip
    return _table(heading, [_step_row(name, one) for name, one in found['steps'].items()])


def _step_row(name: str, one: dict) -> list[str]:
    similarity, regulariser = (one['operations'][part] for part in ('similarity', 'regulariser'))
    seconds = next(iter(one['seconds'].values()))
    own = one['seconds']['regulariser']

    def fraction(operations: int, taken: float) -> str:
        return f'{operations / taken / 1e9 / one["speed"]:.2f}'

    return [
        name,
        f'{(similarity + regulariser) / 1e9:.1f}',
        f'{regulariser / 1e9:.1f}',
        f'{one["speed"]:.0f}',
        f'{1e3 * seconds:.0f}',
        fraction(similarity + regulariser, seconds),
        f'{1e3 * own:.0f}',
        fraction(regulariser, own),
        fraction(similarity, seconds - own),
    ]


def variant_table(steps: dict[str, dict]) -> str:
    """Each saving taken back alone: milliseconds, and how much longer the step is."""
    names = [name for name in next(iter(steps.values()))['seconds'] if name != 'regulariser']
    rows = []
    for name in names:
        cells = []
        for one in steps.values():
            ours, shipped = one['seconds'][name], one['seconds'][names[0]]
            cells += [f'{1e3 * ours:.0f}', f'{ours / shipped:.2f}']
        rows.append([name, *cells])
    heading = [cell for name in steps for cell in (f'{name}, ms', 'ratio')]
    return _table(['step', *heading], rows)


def kind_table(steps: dict[str, dict]) -> str:
    """Share of a step by kind of operation."""
    kinds = next(iter(steps.values()))['kinds']
    rows = [
        [kind, *(f'{100 * one["kinds"][kind]:.0f} %' for one in steps.values())] for kind in kinds
    ]
    return _table(['where the time goes', *steps], rows)


def level_table(levels: Sequence[dict]) -> str:
    """Steps of instance optimisation, level by level."""
    heading = [
        'level, mm between nodes', 'nodes', 'points with Jacobians', 'GFLOP', 'ms',
        'ms on the clock', 'fraction',
    ]  # fmt: skip
    rows = [
        [
            f'{one["level"]["node_mm"]:g}',
            f'{one["rows"]["values"]:,}',
            f'{one["rows"]["gradients"]:,}',
            f'{one["operations"] / 1e9:.1f}',
            f'{1e3 * one["seconds"]:.0f}',
            f'{1e3 * one["wall"]:.0f}',
            f'{one["operations"] / one["seconds"] / 1e9 / one["speed"]:.2f}',
        ]
        for one in levels
    ]
    return _table(heading, rows)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ['---', *('---:' for _ in heading[1:])]
    return '\n'.join(f'| {" | ".join(row)} |' for row in [heading, rule, *rows])
