"""Arguments that several commands of ``nephi`` have, and what their values may be."""

from __future__ import annotations

import argparse
from typing import Any

MODALITIES = ('brain', 'lung', 'other')

WEIGHTS_DEFAULT = (
    'default: for brains with --steps up to 100 the weights that ship, otherwise a fresh field; '
    'none: a fresh field, and structures of brains are not compared: nothing that was trained '
    'takes part'
)
STEPS_DEFAULT = (
    'default: brains 140, lungs 120, others 170, fewer for voxels that do not show the finest '
    'level: 119 for brains of 2 mm; brains from a checkpoint that is named 60; '
    '0: only what the weights predict'
)
NO_STRUCTURES = (
    'compare intensities alone, and not the structures of brains that a trained network finds too'
)
"""Where fields start from, how long and for what they are optimised: helps of both programs."""

DIRECTION = """\
A transform resamples the moving image onto the grid of the fixed image; so it maps points of the
fixed image to points of the moving image (RAS+ mm).
"""


def add_command(commands: Any, name: str, summary: str, description: str = '') -> Any:
    """A subcommand with its help."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or f'{summary[0].upper()}{summary[1:]}.\n\n{DIRECTION}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser


def add_resources(parser: Any) -> None:
    """Device and threads."""
    group = parser.add_argument_group('resources')
    group.add_argument(
        '--device', default='cpu', metavar='{cpu,cuda,cuda:N}', help='(default: cpu)'
    )
    group.add_argument(
        '--threads', type=positive, metavar='N', help='(default: the processors one may use)'
    )


def count(text: str) -> int:
    """A whole number of zero or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'expected a whole number of 0 or more, not "{text}"')
    return int(text)


def period(text: str) -> int:
    """A whole number of one or more, or -1 for never."""
    return -1 if text == '-1' else positive(text)


def positive(text: str) -> int:
    """A whole number of one or more."""
    if count(text) == 0:
        raise argparse.ArgumentTypeError('expected a whole number of 1 or more, not "0"')
    return int(text)
