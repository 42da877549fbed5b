"""``nephi hpc-script``: a data set as a SLURM job array, a task for each person."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import NoInputError, UsageError
from ..files import write_text
from .cli import build_parser
from .dryrun import estimate
from .outcome import count
from .pairs import Pair, select_pairs
from .plugin_file import check_sbatch
from .preflight import check_pairs
from .reference import mni_template
from .resources import SHARE
from .run import check_files
from .settings import (
    NAME_FILES,
    POSITIONAL,
    Settings,
    absolute,
    make_settings,
    parse_memory,
)

logger = logging.getLogger('nephi_pipe')

TEMPLATE = Path(__file__).with_name('hpc_array.sh')

MAIN_GB = 0.5
"""Memory of the process that leads the others; measured."""

TIME_FACTOR = 3
"""A cluster's processors may be slower than those measured, and busy."""

TIME_MIN = 15
"""Minutes asked for on top: start, files, a shared file system that is slow."""

LARGEST_ARRAY = 1001
"""Tasks of one array that SLURM allows where nobody changed MaxArraySize."""

SETTLED = {
    'work_dir': '-w, before the --',
    'nprocs': '--cpus, before the --',
    'mem_gb': '--mem, before the --',
    'plugin': 'processes in each task; leave it out',
    'use_plugin': 'processes in each task; leave it out',
    'dry_run': 'nephi-pipe --dry-run, by itself',
    'reports_only': 'nephi-pipe --reports-only, by itself',
}
"""Options of nephi-pipe that are not passed on, and what is there instead."""


FOR_GROUP = ('config_file', 'verbose')
"""Options of nephi-pipe that mean something to the group level."""


@dataclass(frozen=True)
class Request:
    """What ``nephi hpc-script`` is asked for; ``options`` are those of nephi-pipe.

    ``memory`` (such as 8G) and ``time`` (as sbatch takes it) are found from the data set where
    they are not given.
    """

    bids_dir: Path
    output_dir: Path
    script: Path
    work_dir: Path
    options: Sequence[str] = ()
    image: Path | None = None
    cpus: int = 2
    memory: str | None = None
    time: str | None = None
    at_once: int | None = None
    local_scratch: bool = False
    sbatch: Sequence[str] = ()


def write_script(request: Request) -> str:
    """Write the script, and return a sentence about it.

    Raises
    ------
    UsageError
        Options that nephi-pipe would refuse, or that the script settles itself; paths that
        cannot be bound in a container.
    NePhiError
        The data set cannot be read, or nothing of it is selected.
    """
    given = _parse(request)
    settings = _settings(request, given)
    check_files(settings)
    pairs = select_pairs(settings)
    if settings.pairs == 'all':
        given['pairs'] = _write_pairs(request.script, settings, pairs)
    people = {label: list(own) for label, own in groupby(pairs, lambda pair: pair.moving.subject)}
    memory_gb, minutes = _needs(settings, people)
    memory_gb = parse_memory(request.memory) if request.memory else memory_gb
    time = _time(request.time or str(minutes))
    passed = {name: value for name, value in given.items() if name != 'participant_label'}
    if 'config_file' in given:  # the file's are those of another machine
        used_gb = round(SHARE * memory_gb, 3)
        passed |= {'nprocs': request.cpus, 'mem_gb': used_gb, 'plugin': 'MultiProc'}
    fields = {
        'VERSION': __version__,
        'COUNT': count(len(people), 'person').replace('persons', 'people'),
        'NAME': shlex.quote(request.script.name).replace('\n', ' '),
        'ARRAY': f'0-{len(people) - 1}' + (f'%{request.at_once}' if request.at_once else ''),
        'CPUS': str(request.cpus),
        'MEMORY': f'{_mebibytes(memory_gb)}M',
        'TIME': time,
        'DIRECTIVES': ''.join(f'#SBATCH {line}\n' for line in _directives(request, settings)),
        'PEOPLE': ' '.join(map(shlex.quote, people)),
        'BIDS': _quoted(settings.bids_dir),
        'OUTPUT': _quoted(settings.output_dir),
        'WORK': _quoted(settings.work_dir),
        'OPTIONS': shlex.join(to_arguments(passed)),
        'LOCAL': str(int(request.local_scratch)),
        'PROGRAM': _program(request, settings, given),
        'GROUPOPTIONS': shlex.join(
            to_arguments({k: v for k, v in passed.items() if k in FOR_GROUP})
        ),
        'GROUP': ''.join(f'{shlex.quote(word)} ' for word in _words(request.sbatch)),
    }
    text = re.sub('@([A-Z]+)@', lambda found: fields[found[1]], TEMPLATE.read_text())
    write_text(request.script, text)
    if len(people) > LARGEST_ARRAY:
        logger.warning(
            'Most clusters allow %d tasks in an array, and these are %d ("scontrol show config", '
            'MaxArraySize). If so, select people with --participant-label for several scripts.',
            LARGEST_ARRAY,
            len(people),
        )
    return (
        f'{request.script}: {count(len(people), "task")} with {request.cpus} processors, '
        f'{memory_gb:.1f} GB and a time limit of {time}{" min" if time.isdigit() else ""} each. '
        f'Submit them with: bash {shlex.quote(str(request.script))}'
    )


def _parse(request: Request) -> dict[str, Any]:
    line = [str(request.bids_dir), str(request.output_dir), 'participant', *request.options]
    given = vars(build_parser().parse_args(line))
    if len(given.pop('levels')) != 1:
        raise UsageError(
            'Only options of nephi-pipe are expected after --; the array runs the participant '
            'level, and the group level follows.'
        )
    for name, instead in SETTLED.items():
        if name in given:
            raise UsageError(
                f'--{name.replace("_", "-")} is not passed on to nephi-pipe; expected {instead}.'
            )
    return {name: value for name, value in given.items() if name not in POSITIONAL}


def _settings(request: Request, given: Mapping[str, Any]) -> Settings:
    """What a task will do, for all people at once."""
    own = {
        'bids_dir': request.bids_dir,
        'output_dir': request.output_dir,
        'work_dir': request.work_dir,
        'nprocs': request.cpus,
    }
    options = {name: value for name, value in given.items() if name != 'config_file'}
    settings = make_settings({**options, **own}, given.get('config_file'))
    for name in ('use_plugin', 'dry_run', 'reports_only'):
        if getattr(settings, name):
            raise UsageError(
                f'"{given["config_file"]}" has {name}, which is not for an array; expected '
                f'{SETTLED[name]}. Remove that line.'
            )
    return settings


def to_arguments(given: Mapping[str, Any]) -> list[str]:
    """The command line for what was ``given`` to nephi-pipe, with absolute paths.

    >>> to_arguments({'reference': 'sub-05', 'affine': False, 'session_label': ['1', '2']})
    ['--session-label', '1', '2', '--reference=sub-05', '--no-affine']
    """
    return [
        word
        for action in build_parser()._actions
        if action.option_strings and action.dest in given
        for word in _option(action, absolute(action.dest, given[action.dest]))
    ]


def _option(action: argparse.Action, value: Any) -> list[str]:
    name = max(action.option_strings, key=len)
    if action.nargs == 0:
        return [name] * (value if type(value) is int else 1)
    if isinstance(value, Mapping):
        return [name, *(f'{key}={path}' for key, path in value.items())]
    if isinstance(value, list):
        return [name, *value]
    return [f'{name}={value}']


def _write_pairs(script: Path, settings: Settings, pairs: Sequence[Pair]) -> Path:
    """A table in the place of ``--pairs all``: a task knows one person, and pairs have two."""
    rows = ((_inside(settings, pair.moving), _inside(settings, pair.fixed)) for pair in pairs)
    text = 'moving\tfixed\n' + ''.join(f'{moving}\t{fixed}\n' for moving, fixed in rows)
    return write_text(script.with_name(f'{script.stem}_pairs.tsv'), text)


def _inside(settings: Settings, scan: Any) -> str:
    return scan.path.relative_to(settings.bids_dir).as_posix()


def _needs(settings: Settings, people: Mapping[str, Sequence[Pair]]) -> tuple[float, int]:
    """Gigabytes and minutes to ask for, enough for the person who needs most."""
    good, _ = check_pairs(
        [pair for own in people.values() for pair in own],
        trusted=[mni_template(settings.own_work_dir).path],
    )
    if not good:
        raise NoInputError(
            f'No pair in "{settings.bids_dir}" can be registered; nephi-pipe --dry-run says why.'
        )
    estimates, _ = estimate(settings, good)
    seconds = dict.fromkeys(people, 0.0)
    for pair, own in zip(good, estimates, strict=True):
        seconds[pair.moving.subject] += own.seconds
    memory_gb = max(own.memory_gb for own in estimates)
    minutes = TIME_MIN + TIME_FACTOR * max(seconds.values()) / 60
    return memory_gb / SHARE + MAIN_GB, 5 * math.ceil(minutes / 5)


def _mebibytes(gigabytes: float) -> int:
    """What SLURM counts in, a round number.

    >>> _mebibytes(2.0)
    1920
    """
    return 128 * math.ceil(gigabytes * 1e9 / 2**20 / 128)


def _time(text: str) -> str:
    if not re.fullmatch(r'(\d+-)?\d+(:\d+){0,2}', text):
        raise UsageError(f'--time is {text!r}; expected minutes, HH:MM:SS or DAYS-HH:MM:SS.')
    return text


def _directives(request: Request, settings: Settings) -> Iterator[str]:
    if settings.gpu:
        yield '--gres=gpu:1'
    for line in request.sbatch:
        if not line.startswith('-') or not line.isprintable():
            raise UsageError(
                f'--sbatch is {line!r}; expected one option of sbatch, such as '
                '--sbatch=--partition=long.'
            )
        check_sbatch(line, '--sbatch')
        yield line


def _words(lines: Sequence[str]) -> list[str]:
    return [word for line in lines for word in check_sbatch(line, '--sbatch')]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _program(request: Request, settings: Settings, given: Mapping[str, Any]) -> str:
    """What starts nephi-pipe on a node: this Python, or a container."""
    if request.image is None:
        return f'    exec {shlex.quote(sys.executable)} -m nephi_pipe.bids_app.cli "$@"'
    image = Path(os.path.abspath(request.image))
    if not image.exists():
        raise NoInputError(
            f'There is no image "{image}" as --image names it; build it with apptainer build.'
        )
    read_only = [settings.bids_dir, *_read(settings, given)]
    for path in (*read_only, settings.output_dir, settings.work_dir):
        if set(',:\n') & set(str(path)):
            raise UsageError(
                f'"{path}" has a comma, a colon or a line break, which a container cannot bind; '
                'expected another name. Rename it, or make a symbolic link to it.'
            )
    # What lies deeper is bound later, so that a folder is not hidden by the one around it.
    order = sorted(dict.fromkeys(read_only), key=lambda path: len(path.parts))
    words = [f'--bind {_quoted(path)}:{_quoted(path)}:ro' for path in order]
    words += ['--nv'] * settings.gpu
    return CONTAINER.format(image=_quoted(image), words=' \\\n        '.join(words))


CONTAINER = """\
    local engine name
    engine=$(command -v apptainer || command -v singularity) || {{
        echo "There is no apptainer and no singularity on $(hostname); load it in this script." >&2
        exit 127
    }}
    # --cleanenv keeps the user's settings out, and with them what the job may use.
    for name in SLURM_CPUS_PER_TASK SLURM_MEM_PER_NODE CUDA_VISIBLE_DEVICES; do
        [[ -n ${{!name:-}} ]] || continue
        export "APPTAINERENV_$name=${{!name}}" "SINGULARITYENV_$name=${{!name}}"
    done
    exec "$engine" exec --cleanenv \\
        {words} \\
        --bind "$output" --bind "$here" \\
        {image} nephi-pipe "$@\""""


def _read(settings: Settings, given: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders that tasks read, and what these are links to."""
    for name, value in {**vars(settings), **given}.items():
        if name in ('output_dir', 'work_dir'):
            continue
        found = absolute(name, value)
        if name in NAME_FILES and isinstance(found, str) and os.path.isabs(found):
            found = Path(found)
        for path in found.values() if isinstance(found, Mapping) else [found]:
            if isinstance(path, Path):
                yield from (path, Path(os.path.realpath(path)))
