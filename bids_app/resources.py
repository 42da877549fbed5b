"""What this process may really use: affinity, control groups and SLURM, not the whole host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

SHARE = 0.9
"""Part of the memory that is given out; the rest is for what nobody counted."""

_UNLIMITED = 1 << 60
"""Version 1 control groups write a number of this size where there is no limit."""


def available_cpus(root: Path = Path('/'), environ: Mapping[str, str] = os.environ) -> int:
    """Number of processors: the least of affinity, control group quota and SLURM's grant."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        count = os.cpu_count() or 1
    limits = [float(count), *_cpu_quotas(root)]
    limits += [_slurm_cpus(environ, 'SLURM_CPUS_PER_TASK', 'SLURM_CPUS_ON_NODE') or count]
    return max(1, int(min(limits)))


def available_memory_gb(root: Path = Path('/'), environ: Mapping[str, str] = os.environ) -> float:
    """Memory to plan with, GB: 90 % of the least of host, control group and SLURM's grant."""
    limits = [*_host_memory(root), *_memory_limits(root), *_slurm_memory(root, environ)]
    return round(SHARE * min(limits) / 1e9, 2)


def _host_memory(root: Path) -> Iterator[float]:
    for line in _read(root / 'proc/meminfo').splitlines():
        if line.startswith('MemTotal:'):
            yield float(line.split()[1]) * 1024
    yield float(os.sysconf('SC_PAGE_SIZE')) * os.sysconf('SC_PHYS_PAGES')


def _slurm_memory(root: Path, environ: Mapping[str, str]) -> Iterator[float]:
    """SLURM writes megabytes, for the node or for each processor."""
    per_node, per_cpu = environ.get('SLURM_MEM_PER_NODE', ''), environ.get('SLURM_MEM_PER_CPU', '')
    if per_node.isdigit() and int(per_node):
        yield int(per_node) * 2.0**20
    elif per_cpu.isdigit() and int(per_cpu):
        granted = _slurm_cpus(environ, 'SLURM_CPUS_ON_NODE', 'SLURM_CPUS_PER_TASK')
        yield int(per_cpu) * 2.0**20 * (granted or available_cpus(root, environ))


def _slurm_cpus(environ: Mapping[str, str], *names: str) -> int:
    """The first of these variables that says how many processors a job has; 0 if none does."""
    return next((int(environ[name]) for name in names if environ.get(name, '').isdigit()), 0)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for folder in _groups(root, 'cpu'):
        quota, _, period = _read(folder / 'cpu.max').partition(' ')
        quota = quota or _read(folder / 'cpu.cfs_quota_us')
        period = period or _read(folder / 'cpu.cfs_period_us')
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[float]:
    for folder in _groups(root, 'memory'):
        for name in ('memory.max', 'memory.high', 'memory.limit_in_bytes'):
            limit = _read(folder / name)
            if limit.isdigit() and 0 < int(limit) < _UNLIMITED:
                yield float(limit)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups, up to the top; versions 1 and 2."""
    for line in _read(root / 'proc/self/cgroup').splitlines():
        _, controllers, path = line.split(':', 2)
        if controllers and controller not in controllers.split(','):
            continue
        top = root / 'sys/fs/cgroup' / (controller if controllers else '')
        folder = top / path.lstrip('/')
        while folder != top and folder.is_relative_to(top):
            yield folder
            folder = folder.parent
        yield top


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ''


def duration(seconds: float) -> str:
    """A length of time as one says it.

    >>> duration(40), duration(600), duration(9000)
    ('1 min', '10 min', '2.5 h')
    """
    if seconds > 5400:
        return f'{seconds / 3600:.1f} h'
    return f'{max(1.0, seconds / 60):.0f} min'
