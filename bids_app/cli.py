"""The command ``nephi-pipe``: arguments in, exit code out. Heavy imports wait until needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..arguments import NO_STRUCTURES, STEPS_DEFAULT, WEIGHTS_DEFAULT
from ..errors import NePhiError, UsageError
from ..reading import read_text
from .descriptor import PrintDescriptor
from .settings import (
    MODALITIES,
    PLUGINS,
    XFM_FORMATS,
    Settings,
    make_settings,
    parse_memory,
)

EPILOG = """\
examples
  nephi-pipe BIDS OUT participant --participant-label 01 02
  nephi-pipe BIDS OUT participant group --reference sub-05 --derivatives fmriprep=PREP
  nephi-pipe BIDS OUT participant group --modality lung --derivatives masks=MASKS
  nephi-pipe BIDS OUT participant --dry-run

The same command with the same work folder (-w) goes on where it was stopped.
Exit codes: 0 done; 1 some people failed; 17 unknown analysis level; 18 nothing selected;
64 usage; 65 bad data; 66 no input; 73, 74 output; 75 try again.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Usage errors end like every other error, instead of with argparse's code 2."""
        raise UsageError(f'{message}. See nephi-pipe --help.')


class _NamedPaths(argparse.Action):
    """NAME=PATH ... to a dictionary; repeated options add up."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option: str | None = None
    ) -> None:
        paths = dict(getattr(namespace, self.dest, None) or {})
        for value in values:
            name, equals, path = value.partition('=')
            if not (name and equals and path):
                parser.error(f'{option} {value}: expected NAME=PATH')
            paths[name] = Path(path)
        setattr(namespace, self.dest, paths)


class _Labels(argparse.Action):
    """Labels, or files with one on a line, as the BIDS execution specification wants it.

    Labels have letters and digits alone, so a dot or a slash shows a file.
    """

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option: str | None = None
    ) -> None:
        labels = list(getattr(namespace, self.dest, None) or ())
        for value in values:
            labels += _lines(Path(value), option) if {'.', '/'} & set(value) else [value]
        setattr(namespace, self.dest, labels)


def _lines(path: Path, option: str | None) -> list[str]:
    text = read_text(path, f'labels after {option}, or a text file with one label on a line')
    return [line.strip() for line in text.split('\n') if line.strip()]


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``nephi-pipe``; options that were not typed leave no trace in its result."""
    parser = _Parser(
        prog='nephi-pipe',
        description='Registers the scans of a BIDS data set with neural deformation fields.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument('bids_dir', type=Path, help='the data set, a folder with sub-* folders')
    parser.add_argument('output_dir', type=Path, help='where results go')
    parser.add_argument(
        'levels',
        nargs='+',
        metavar='{participant,group}',
        help='participant registers, group summarises; both may be given',
    )
    _add_selection(parser.add_argument_group('what is registered'))
    _add_method(parser.add_argument_group('how it is registered'))
    _add_resources(parser.add_argument_group('resources'))
    _add_control(parser.add_argument_group('control'))
    return parser


def _add_selection(group: Any) -> None:
    group.add_argument('--modality', choices=MODALITIES, help='kind of image (default: brain)')
    group.add_argument(
        '--participant-label', nargs='+', action=_Labels, metavar='LABEL',
        help='people to register, with or without "sub-", or a file with one on a line '
        '(default: all)',
    )  # fmt: skip
    group.add_argument(
        '--session-label', nargs='+', action=_Labels, metavar='LABEL',
        help='sessions to register, with or without "ses-", or a file with one on a line '
        '(default: all)',
    )  # fmt: skip
    group.add_argument(
        '--bids-filter-file', type=Path, metavar='FILE',
        help='JSON with entities for t1w (or ct), dseg, mask and landmarks; null: without it, '
        '"*": with any',
    )  # fmt: skip
    group.add_argument(
        '-d', '--derivatives', nargs='+', action=_NamedPaths, metavar='NAME=PATH',
        help='data sets with masks (desc-brain_mask, label-lung_mask), label maps (dseg) and '
        'landmarks (.tsv)',
    )  # fmt: skip
    group.add_argument(
        '--reference', metavar='{sub-LABEL|FILE|MNI152}',
        help='the fixed image: one person, a file, or the MNI template (default: MNI152)',
    )  # fmt: skip
    group.add_argument(
        '--pairs', metavar='{to-reference|all|FILE.tsv}',
        help='who is registered to whom (default: to-reference); FILE.tsv has the columns '
        'moving and fixed',
    )  # fmt: skip
    group.add_argument(
        '--whole-head', action='store_true',
        help='register scans with a skull and without a brain mask as they are',
    )  # fmt: skip
    group.add_argument(
        '--session-pairs', metavar='{baseline|consecutive|all|FILE.tsv}',
        help='lung: each later session to the first, to the one before, or to all before '
        '(default: baseline); FILE.tsv has the columns participant_id, fixed and moving',
    )  # fmt: skip
    group.add_argument(
        '--fixed-acq', metavar='LABEL',
        help='lung: within each session, register the other breath states to this one (acq-LABEL)',
    )  # fmt: skip


def _add_method(group: Any) -> None:
    group.add_argument(
        '--weights', metavar='{default|none|FILE}',
        help=f'where the field starts from ({WEIGHTS_DEFAULT})',
    )  # fmt: skip
    group.add_argument(
        '--steps', type=int, metavar='N',
        help=f'optimisation steps of each pair ({STEPS_DEFAULT})',
    )  # fmt: skip
    group.add_argument(
        '--no-structures', dest='structures', action='store_false', help=NO_STRUCTURES
    )
    group.add_argument(
        '--no-affine', dest='affine', action='store_false', help='no affine initialisation'
    )
    group.add_argument(
        '--initial-transform', type=Path, metavar='FILE',
        help='start from this affine (ITK .txt, .mat or .h5)',
    )  # fmt: skip
    group.add_argument(
        '--xfm-format', choices=XFM_FORMATS,
        help='transforms as ITK composite .h5, displacement .nii.gz or field .safetensors '
        '(default: h5)',
    )  # fmt: skip
    group.add_argument(
        '--xfm-grid', metavar='{auto|native|MM}',
        help='spacing of the stored displacement (default: auto, errs by under 0.05 mm)',
    )  # fmt: skip
    group.add_argument('--random-seed', type=int, metavar='N', help='seed (default: 0)')
    group.add_argument(
        '--sloppy', action='store_true', help='tiny settings for tests; results are useless'
    )


def _add_resources(group: Any) -> None:
    group.add_argument(
        '--nprocs', type=int, metavar='N', help='processors in all (default: those allowed)'
    )
    group.add_argument(
        '--omp-nthreads', type=int, metavar='N', help='processors for one registration'
    )
    group.add_argument(
        '--mem', dest='mem_gb', type=parse_memory, metavar='SIZE',
        help='memory in all, such as 8G or 7500M (default: that allowed)',
    )  # fmt: skip
    group.add_argument(
        '--device', metavar='{cpu|cuda[:N]|auto}', help='where to compute (default: cpu)'
    )
    group.add_argument(
        '--plugin', metavar=f'{{{"|".join(PLUGINS)}}}',
        help='what runs the nodes: processes here, jobs of a SLURM cluster, or this process alone '
        '(default: MultiProc)',
    )  # fmt: skip
    group.add_argument(
        '--use-plugin', type=Path, metavar='FILE',
        help='YAML or JSON with plugin and plugin_args, as for other BIDS Apps',
    )  # fmt: skip
    group.add_argument(
        '-w', '--work-dir', type=Path, metavar='DIR',
        help='intermediate files, kept to go on later (default: ./work)',
    )  # fmt: skip
    group.add_argument(
        '--clean-workdir',
        action='store_true',
        help='remove the intermediate files of this run once all of it has succeeded',
    )


def _add_control(group: Any) -> None:
    group.add_argument(
        '--config-file', type=Path, metavar='FILE',
        help='settings in TOML, as written to OUT/logs; typed options come first',
    )  # fmt: skip
    group.add_argument(
        '--dry-run',
        action='store_true',
        help='list pairs, files, memory, disk and time; then stop',
    )
    group.add_argument(
        '--reports-only', action='store_true', help='write the reports again and nothing else'
    )
    group.add_argument(
        '--skip-bids-validation', action='store_true', help='no check of the data set itself'
    )
    group.add_argument(
        '--stop-on-first-crash', action='store_true', help='stop at the first person who fails'
    )
    group.add_argument(
        '--write-graph', action='store_true', help='draw the workflow into OUT/logs'
    )
    group.add_argument('-v', '--verbose', action='count', help='more messages; twice: all of them')
    group.add_argument(
        '--bids-exec-spec', action=PrintDescriptor, help='print the Boutiques descriptor and stop'
    )
    group.add_argument('--version', action='version', version=f'nephi-pipe {__version__}')


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    """Settings of a command line.

    >>> parse_settings(['ds', 'out', 'participant', '--participant-label', 'sub-01']).pairs
    'to-reference'
    """
    given = vars(build_parser().parse_args(argv))
    return make_settings(given, given.pop('config_file', None))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``nephi-pipe`` and return its exit code."""
    try:
        settings = parse_settings(argv)
    except NePhiError as error:
        print(f'nephi-pipe: {error}', file=sys.stderr)
        return error.exit_code
    os.environ.update(NO_ET='1', NIPYPE_NO_ET='1')
    from .run import run

    return run(settings)


if __name__ == '__main__':
    sys.exit(main())
