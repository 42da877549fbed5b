"""All settings of one run, in one frozen place; read from and written to TOML."""

from __future__ import annotations

import json
import math
import os
import re
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from .. import __version__
from ..errors import InputDataError, UnknownLevelError, UsageError
from ..files import write_text
from ..reading import MOST_JSON_BYTES, parse_toml, read_text
from ..weights import chosen_weights
from .resources import available_cpus, available_memory_gb

LEVELS = ('participant', 'group')
LEVEL_NAMES = {'subject': 'participant', 'dataset': 'group'}
"""What the BIDS execution specification calls them."""

MODALITIES = ('brain', 'lung')
FOREIGN = {
    'brain': ('session_pairs', 'fixed_acq'),
    'lung': ('reference', 'pairs', 'whole_head'),
}
"""For each modality the settings that have no meaning for it."""
XFM_FORMATS = ('h5', 'nii', 'field')
PLUGINS = ('MultiProc', 'SLURM', 'Linear')
MAX_THREADS = 8
"""More threads than this make one registration hardly faster."""

TABLES = ('run', 'settings', 'derivatives', 'thresholds')
"""Tables of a configuration file."""

NAME_FILES = ('reference', 'pairs', 'session_pairs', 'weights')
"""Settings whose text may be the name of a file."""

KEYWORDS = ('default', 'none', 'to-reference', 'all', 'baseline', 'consecutive', 'MNI152')
"""Texts of these that are none, whatever lies in the current folder."""

POSITIONAL = ('bids_dir', 'output_dir', 'levels')
"""Settings that a configuration file never provides."""

_LARGEST_SEED = 2**32 - 1
_UNITS_GB = {'K': 1e-6, 'M': 1e-3, 'G': 1.0, 'T': 1e3}


@dataclass(frozen=True)
class Settings:
    """What one run does; the names are those of the command line."""

    bids_dir: Path
    output_dir: Path
    levels: tuple[str, ...] = ('participant',)
    modality: str = 'brain'
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    derivatives: dict[str, Path] = field(default_factory=dict)
    reference: str = 'MNI152'
    pairs: str = 'to-reference'
    whole_head: bool = False
    session_pairs: str | None = None
    fixed_acq: str | None = None
    weights: str = 'default'
    steps: int | None = None
    structures: bool = True
    affine: bool = True
    initial_transform: Path | None = None
    xfm_format: str = 'h5'
    xfm_grid: str = 'auto'
    nprocs: int = field(default_factory=available_cpus)
    omp_nthreads: int | None = None
    mem_gb: float = field(default_factory=available_memory_gb)
    plugin: str | None = None
    use_plugin: Path | None = None
    work_dir: Path = field(default_factory=lambda: Path.cwd() / 'work')
    clean_workdir: bool = False
    device: str = 'cpu'
    random_seed: int = 0
    dry_run: bool = False
    reports_only: bool = False
    sloppy: bool = False
    write_graph: bool = False
    stop_on_first_crash: bool = False
    skip_bids_validation: bool = False
    verbose: int = 0
    thresholds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ('bids_dir', 'output_dir', 'work_dir'):
            object.__setattr__(self, name, Path(os.path.abspath(getattr(self, name))))
        for item in fields(self):
            value = getattr(self, item.name)
            # A reference is looked for in the data set before it is beside us.
            if item.name != 'reference' or not (self.bids_dir / value).is_file():
                object.__setattr__(self, item.name, absolute(item.name, value))
        for name in ('participant_label', 'session_label'):
            object.__setattr__(self, name, _labels(getattr(self, name)))
        if self.fixed_acq is not None:
            object.__setattr__(self, 'fixed_acq', self.fixed_acq.removeprefix('acq-'))
        levels = tuple(LEVEL_NAMES.get(level, level) for level in self.levels)
        object.__setattr__(self, 'levels', levels)
        if self.omp_nthreads is None:
            object.__setattr__(self, 'omp_nthreads', min(self.nprocs, MAX_THREADS))
        _check(self)

    @property
    def own_work_dir(self) -> Path:
        """Where this version keeps its intermediate files: it reuses none of another one."""
        return self.work_dir / f'nephi_pipe_{__version__}'

    @property
    def gpu(self) -> bool:
        """Whether the optimisation runs on a CUDA device."""
        return self.device.startswith('cuda')


def absolute(name: str, value: Any) -> Any:
    """A setting without paths that depend on the current folder: nodes have folders of their own.

    >>> absolute('weights', 'default')
    'default'
    """
    if isinstance(value, Mapping):
        return {key: absolute(name, each) for key, each in value.items()}
    if isinstance(value, Path):
        return Path(os.path.abspath(value))
    named = isinstance(value, str) and name in NAME_FILES and value not in KEYWORDS
    return os.path.abspath(value) if named and os.path.isfile(value) else value


def make_settings(given: Mapping[str, Any], config_file: Path | None = None) -> Settings:
    """Defaults, overridden by a configuration file, overridden by what was ``given``.

    Parameters
    ----------
    given
        Names and values from the command line, only those that were typed.
    config_file
        A TOML file as :func:`write_settings` writes it.

    Raises
    ------
    UsageError
        A name that does not exist, a value that cannot be used, or an option that the modality
        has no use for.
    """
    from_file = read_settings(config_file) if config_file else {}
    settings = Settings(**{**from_file, **given})
    _check_modality(settings, given)
    if 'reference' in given and settings.pairs != 'to-reference':
        raise UsageError(
            f'--reference {settings.reference} has no meaning with --pairs {settings.pairs}, '
            'which says itself who is registered to whom; expected one of them. Leave the other '
            'out.'
        )
    return settings


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings in a TOML file, with their types; only those that it holds.

    The tables ``[settings]``, ``[derivatives]`` and ``[thresholds]`` are read; what describes a
    past run (``[run]`` and the two folders) is left out.

    Raises
    ------
    NoInputError
        There is no such file.
    InputDataError
        It is not TOML.
    UsageError
        It holds a setting that does not exist, or one of another type.
    """
    text = read_text(path, 'a configuration in TOML', MOST_JSON_BYTES)
    try:
        tables = parse_toml(text)
    except ValueError as error:
        raise InputDataError(
            f'The configuration file "{path}" is not TOML ({error}); expected a file like the '
            'one that each run writes to logs/ in its output folder.'
        ) from error
    return _settings_of(tables, Path(path))


def _settings_of(tables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    hints = get_type_hints(Settings)
    values = tables.get('settings', {})
    if not isinstance(values, dict):
        raise UsageError(f'"{path}" has settings = {values!r}; expected a table [settings].')
    values = dict(values)
    values.update({name: tables[name] for name in ('derivatives', 'thresholds') if name in tables})
    unknown = [name for name in values if name not in hints]
    unknown += [name for name in tables if name not in TABLES]
    if unknown:
        raise UsageError(
            f'"{path}" has a setting "{unknown[0]}" that does not exist; expected a table '
            f'[settings] with some of {", ".join(sorted(set(hints) - set(POSITIONAL)))}.'
        )
    return {
        name: _typed(value, hints[name], f'"{name}" in "{path}"')
        for name, value in values.items()
        if name not in POSITIONAL
    }


def write_settings(path: str | os.PathLike, settings: Settings, run: Mapping[str, Any]) -> Path:
    """Write ``settings`` as TOML, and facts about this ``run`` in a table of their own."""
    plain, tables = {}, {'run': run}
    for item in fields(settings):
        value = getattr(settings, item.name)
        (tables if isinstance(value, Mapping) else plain)[item.name] = value
    text = '# A run can be repeated with --config-file and this file.\n'
    for name, table in {'run': tables.pop('run'), 'settings': plain, **tables}.items():
        rows = [f'{_key(k)} = {_toml(v)}' for k, v in table.items() if v is not None]
        text += '\n'.join([f'\n[{name}]', *rows, ''])
    return write_text(path, text)


def parse_memory(text: str) -> float:
    """Gigabytes of a text such as ``8``, ``8G``, ``7500M``.

    >>> parse_memory('7500M')
    7.5
    >>> parse_memory('12')
    12.0
    """
    found = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*', text.upper())
    if not found or float(found[1]) <= 0:
        raise UsageError(f'"{text}" is not an amount of memory; expected for example 8G or 7500M.')
    return float(found[1]) * _UNITS_GB[found[2] or 'G']


def _labels(values: Any) -> tuple[str, ...]:
    """Labels without the ``sub-`` or ``ses-`` that people like to type, each one once."""
    return tuple(dict.fromkeys(re.sub(r'^(sub|ses)-', '', str(value)) for value in values))


def _key(name: str) -> str:
    return name if re.fullmatch(r'[A-Za-z0-9_-]+', name) else json.dumps(name, ensure_ascii=False)


def _toml(value: Any) -> str:
    """One value in TOML's spelling.

    >>> _toml(('a', 1)), _toml(True), _toml(Path('x'))
    ('["a", 1]', 'true', '"x"')
    """
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(_toml(item) for item in value) + ']'
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return json.dumps(value, ensure_ascii=False).replace('\x7f', '\\u007F')


def _typed(value: Any, hint: Any, name: str) -> Any:
    """``value`` as ``hint`` says, or a UsageError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(value, str) and '\0' in value:
        raise UsageError(f'{name} is {value!r}; expected text without a NUL.')
    if origin in (Union, types.UnionType):
        return _typed(value, arguments[0], name)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(item, arguments[0], name) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(item, arguments[1], name) for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    wanted = getattr(origin or hint, '__name__', str(hint))
    raise UsageError(f'{name} is {value!r}; expected a value of the type {wanted}.')


def _check(settings: Settings) -> None:
    unknown = [level for level in settings.levels if level not in LEVELS]
    if unknown or not settings.levels:
        raise UnknownLevelError(
            f'There is no analysis level "{"".join(unknown[:1])}"; expected participant, group '
            'or both.'
        )
    _check_choices(settings)
    defaults = {item.name: item.default for item in fields(settings)}
    _check_modality(settings, [k for k, v in defaults.items() if getattr(settings, k) != v])
    _check_numbers(settings)
    _check_folders(settings)
    if 'raw' in settings.derivatives:
        raise UsageError(
            'The derivatives cannot be called "raw", which is the data set itself in what is '
            'written; expected another name. Choose one in --derivatives NAME=PATH.'
        )


def _check_choices(settings: Settings) -> None:
    for name, allowed in (('modality', MODALITIES), ('xfm_format', XFM_FORMATS)):
        if getattr(settings, name) not in allowed:
            raise UsageError(
                f'{name} is "{getattr(settings, name)}"; expected one of {", ".join(allowed)}.'
            )
    if settings.plugin is not None:
        check_plugin_name(settings.plugin, 'in --plugin')
    if not re.fullmatch(r'auto|cpu|cuda(:\d+)?', settings.device):
        raise UsageError(f'device is "{settings.device}"; expected auto, cpu, cuda or cuda:N.')
    if settings.xfm_grid not in ('auto', 'native') and not _positive(settings.xfm_grid):
        raise UsageError(
            f'xfm_grid is "{settings.xfm_grid}"; expected auto, native or a '
            'spacing in mm from 0.1 to 100.'
        )


def _check_modality(settings: Settings, used: Collection[str]) -> None:
    """Refuse options of another modality, also where what was typed is their default."""
    name = next((name for name in FOREIGN[settings.modality] if name in used), None)
    if name is None:
        return
    instead = (
        'lungs are registered within a person; choose with --session-pairs and --fixed-acq'
        if settings.modality == 'lung'
        else 'brains are registered to a reference; choose with --reference and --pairs, or ask '
        'for --modality lung'
    )
    raise UsageError(
        f'--{name.replace("_", "-")} has no meaning for the modality {settings.modality}: '
        f'{instead}.'
    )


def check_plugin_name(name: str, where: str) -> None:
    """Refuse a plugin that cannot be used, with a way to go."""
    if name == 'SLURMGraph':
        raise UsageError(
            f'The plugin SLURMGraph {where} returns before anything is computed, so neither '
            'reports nor an exit code could follow; expected SLURM, or a job array, which '
            'nephi hpc-script writes.'
        )
    if name not in PLUGINS:
        raise UsageError(
            f'There is no plugin "{name[:80]}" {where}; expected one of {", ".join(PLUGINS)}.'
        )


def _positive(text: str) -> bool:
    try:
        return 0.1 <= float(text) <= 100
    except ValueError:
        return False


def _check_numbers(settings: Settings) -> None:
    for name, lowest in (('nprocs', 1), ('omp_nthreads', 1), ('steps', 0), ('random_seed', 0)):
        value = getattr(settings, name)
        if value is not None and value < lowest:
            raise UsageError(f'{name} is {value}; expected {lowest} or more.')
    if not 0 < settings.mem_gb < math.inf:
        raise UsageError(f'mem_gb is {settings.mem_gb}; expected more than 0.')
    if settings.random_seed > _LARGEST_SEED:
        raise UsageError(
            f'random_seed is {settings.random_seed}; expected at most {_LARGEST_SEED}.'
        )
    if settings.steps == 0 and not chosen_weights(settings.weights, settings.modality, 0):
        raise UsageError(
            'Without weights and with 0 steps the result would be the affine alone; give '
            '--weights, or more steps.'
        )


def _check_folders(settings: Settings) -> None:
    bids, output, work = (
        Path(os.path.realpath(path))
        for path in (settings.bids_dir, settings.output_dir, settings.work_dir)
    )
    if output == bids:
        raise UsageError(
            f'The output folder "{settings.output_dir}" is the input data set itself; expected '
            f'another one, for example "{settings.bids_dir}/derivatives/nephi_pipe".'
        )
    inside = output.relative_to(bids).parts[0] if output.is_relative_to(bids) else ''
    if inside.startswith('sub-') or inside == 'sourcedata':
        raise UsageError(
            f'The output folder "{settings.output_dir}" lies among the input\'s own data '
            f'("{inside}"); expected another place, for example '
            f'"{settings.bids_dir}/derivatives/nephi_pipe".'
        )
    if work.is_relative_to(bids):
        raise UsageError(
            f'The work folder "{settings.work_dir}" lies inside the input data set; expected '
            'another place. Give one with -w (its content can be deleted after the run).'
        )
