"""Which Nipype plugin runs the nodes, and its arguments: ``--plugin`` and ``--use-plugin``."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputDataError, UsageError
from ..reading import read_text
from .settings import Settings, check_plugin_name

LARGEST_FILE = 1 << 20
"""Bytes; a plugin file has a few lines."""

ARGUMENTS: dict[str, dict[str, type]] = {
    'MultiProc': {'n_procs': int, 'memory_gb': float, 'n_gpu_procs': int},
    'SLURM': {
        'sbatch_args': str,
        'template': str,
        'max_jobs': int,
        'max_tries': int,
        'retry_timeout': float,
    },
    'Linear': {},
}
"""What each plugin takes, with its type."""

LEAST = {
    'n_procs': 1, 'memory_gb': 0.1, 'n_gpu_procs': 0, 'max_jobs': 1, 'max_tries': 0,
    'retry_timeout': 0,
}  # fmt: skip

WITHOUT_EFFECT = {
    'dont_resubmit_completed_jobs', 'jobid_re', 'maxtasksperchild', 'mp_context', 'non_daemon',
    'raise_insufficient', 'scheduler',
}  # fmt: skip
"""Arguments in other apps' files that change nothing here; read over."""

OURS = ('array', 'help', 'hold', 'test-only', 'version', 'wait', 'wrap')
"""Options of sbatch with which a node would never be heard of again."""

OURS_SHORT = ('-a', '-h', '-H', '-V', '-W')


@dataclass(frozen=True)
class Plugin:
    """The name of a plugin and its arguments, checked."""

    name: str = 'MultiProc'
    arguments: dict[str, Any] = field(default_factory=dict)


def choose_plugin(settings: Settings) -> Plugin:
    """The plugin that ``settings`` name.

    Raises
    ------
    NoInputError, InputDataError
        The file of ``--use-plugin`` cannot be opened, or is neither YAML nor JSON.
    UsageError
        It names a plugin or an argument that cannot be used, or another plugin than ``--plugin``.
    """
    if settings.use_plugin is None:
        return Plugin(settings.plugin or 'MultiProc')
    chosen = read_plugin(settings.use_plugin)
    if settings.plugin not in (None, chosen.name):
        raise UsageError(
            f'--plugin is {settings.plugin}, but "{settings.use_plugin}" names {chosen.name}; '
            'expected the same, or one of the two options alone.'
        )
    return chosen


def check_queue(plugin: Plugin) -> None:
    """Refuse SLURM where no job can be submitted."""
    if plugin.name == 'SLURM' and not shutil.which('sbatch'):
        raise UsageError(
            'The plugin SLURM was asked for, but there is no sbatch on this machine (a container '
            'has none); expected a node of the cluster that may submit jobs. Run it there, '
            'or write a job array with nephi hpc-script.'
        )


def read_plugin(path: Path) -> Plugin:
    """Read a file with ``plugin`` and ``plugin_args``, as other BIDS Apps take it."""
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get('plugin'), str):
        raise InputDataError(
            f'The plugin file "{path}" has no name of a plugin; expected lines such as '
            '"plugin: SLURM" and "plugin_args: {sbatch_args: --partition=long}".'
        )
    check_plugin_name(content['plugin'], f'in "{path}"')
    if unknown := sorted(map(str, set(content) - {'plugin', 'plugin_args'})):
        raise UsageError(f'"{path}" has "{unknown[0]}"; expected plugin and plugin_args only.')
    arguments = content.get('plugin_args') or {}
    if not isinstance(arguments, dict):
        raise UsageError(f'plugin_args in "{path}" is no table of names and values; expected one.')
    return Plugin(content['plugin'], _checked(content['plugin'], arguments, path))


def _load(path: Path) -> Any:
    import yaml

    text = read_text(path, 'the name of a plugin in YAML or JSON', LARGEST_FILE)
    try:
        return json.loads(text) if path.suffix == '.json' else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputDataError(
            f'The plugin file "{path}" is not plain YAML or JSON ({reason}); expected the keys '
            'plugin and plugin_args.'
        ) from error


def _checked(plugin: str, arguments: dict[Any, Any], path: Path) -> dict[str, Any]:
    known = ARGUMENTS[plugin]
    unknown = [str(name) for name in arguments if name not in known and name not in WITHOUT_EFFECT]
    if unknown:
        raise UsageError(
            f'"{unknown[0]}" in "{path}" is no argument of {plugin}; expected some of '
            f'{", ".join(known) or "none"}.'
        )
    values = {name: value for name, value in arguments.items() if name in known}
    return {name: _value(name, known[name], value, path) for name, value in values.items()}


def _value(name: str, kind: type, value: Any, path: Path) -> Any:
    if kind is str:
        fine = isinstance(value, str) and '\0' not in value
    else:
        number = isinstance(value, (int, float) if kind is float else int)
        fine = number and not isinstance(value, bool) and math.isfinite(value)
        fine = fine and LEAST[name] <= value
    if not fine:
        wanted = 'a text' if kind is str else f'a number of {LEAST[name]} or more'
        raise UsageError(f'"{name}" in "{path}" is {str(value)[:80]!r}; expected {wanted}.')
    if name == 'sbatch_args':
        check_sbatch(value, f'"sbatch_args" in "{path}"')
    return kind(value)


def check_sbatch(text: str, where: str) -> list[str]:
    """The words of options of sbatch; one that would lose or duplicate jobs is refused.

    Raises
    ------
    UsageError
        They cannot be split into words, or are of that kind.

    >>> check_sbatch('--partition=long --comment="a b"', '--sbatch')
    ['--partition=long', '--comment=a b']
    """
    try:
        tokens = shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f'{where} cannot be split into words ({error}); expected options of sbatch, such as '
            '"--partition=long --time=60".'
        ) from error
    for token in tokens:
        long = re.fullmatch(r'--([a-z][a-z-]*)(=.*)?', token, re.DOTALL)
        if (long and any(name.startswith(long[1]) for name in OURS)) or token[:2] in OURS_SHORT:
            raise UsageError(
                f'{where} has {token!r}, with which no result would come back; expected options '
                'such as "--partition=long --time=60".'
            )
    return tokens
