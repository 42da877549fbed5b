"""The command ``nephi``: registration, transforms and scores for single files, no BIDS needed.

Arguments in, exit code out; what the subcommands do is in :mod:`nephi_pipe.commands`, imported
once a command is known, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .arguments import (
    DIRECTION,
    MODALITIES,
    NO_STRUCTURES,
    STEPS_DEFAULT,
    WEIGHTS_DEFAULT,
    add_command,
    add_resources,
    count,
    positive,
)
from .cli_training import add_train
from .errors import NePhiError, StorageError, TryAgainError, UsageError

XFM_FORMATS = ('h5', 'nii', 'field')
INTERPOLATIONS = ('linear', 'nearest', 'cubic', 'labels')

APPLY_DESCRIPTION = f"""\
Resample an image, or map a table of points, by one transform or a chain of them.

{DIRECTION}
Several transforms are listed from the reference to the image, as for antsApplyTransforms: points
of the reference pass through them in the order given, so the last one is the first to touch the
image. A scan of A reaches the grid of C by

  nephi apply from-B_to-C_xfm.h5 from-A_to-B_xfm.h5 A.nii.gz --reference C.nii.gz -o A_in_C.nii.gz

A table of points (tab-separated, columns x, y, z in RAS+ mm) is mapped as points are: from the
reference to the image. To carry points of the moving image to the fixed one, give the inverse.
"""

LANDMARKS_DESCRIPTION = """\
Convert landmarks of DIR-Lab (text files of voxel indices) to tables in mm.

Each line of such a file is "x y z": indices from 1, x to the patient's left, y to the back, z from
top to bottom. The tables (columns x, y, z in RAS+ mm) are for --fixed-landmarks and
--moving-landmarks. Both files of a pair are given at once, so that a missing line is found:

  nephi landmarks exp.txt insp.txt --like exp.nii.gz insp.nii.gz \\
      -o acq-exp_landmarks.tsv acq-insp_landmarks.tsv

The order and direction of an image's voxels are taken from its header. Without an image, --size
and --spacing (left, back, down) say what is needed; the first voxel then lies at 0, 0, 0 mm.
"""

HPC_DESCRIPTION = """\
Write a script that registers a data set as a SLURM job array, a task for each person, and then
sums up the group. Memory and time are asked for as the data set needs them.

What stands after -- is passed on to nephi-pipe (see nephi-pipe --help):

  nephi hpc-script BIDS OUT -o array.sh --image nephi.sif -w /scratch/work -- --reference sub-05
  bash array.sh
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Usage errors end like every other error, instead of with argparse's code 2."""
        raise UsageError(f'{message}; see {self.prog} --help')


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``nephi`` and its subcommands."""
    parser = _Parser(
        prog='nephi',
        description='Register two images with neural deformation fields, and use the result.',
        epilog='A folder of scans in BIDS layout: see nephi-pipe --help.',
    )
    parser.add_argument('--version', action='version', version=f'nephi {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    _add_register(commands)
    _add_apply(commands)
    _add_evaluate(commands)
    _add_landmarks(commands)
    add_train(commands)
    _add_info(commands)
    _add_hpc_script(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code.

    A failure is one sentence on standard error; with ``--debug`` the traceback comes first.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = _parse(argv)
        logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
        from . import commands

        with _cache_without_home():
            getattr(commands, arguments.command.replace('-', '_'))(arguments)
    except KeyboardInterrupt:
        print('nephi: stopped', file=sys.stderr)
        return 130
    except Exception as error:
        if '--debug' in argv:
            traceback.print_exc()
        explained = _explain(error)
        print(f'nephi: error: {explained}', file=sys.stderr)
        return explained.exit_code
    return 0


@contextmanager
def _cache_without_home() -> Iterator[None]:
    """Where no home can be written to, matplotlib's caches go to a folder that does not stay."""
    if 'MPLCONFIGDIR' in os.environ or os.access(os.path.expanduser('~'), os.W_OK):
        yield
        return
    with tempfile.TemporaryDirectory(prefix='nephi-') as folder:
        os.environ['MPLCONFIGDIR'] = folder
        try:
            yield
        finally:
            del os.environ['MPLCONFIGDIR']


def _parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of a command; what follows ``--`` of hpc-script is for nephi-pipe."""
    options: list[str] = []
    if argv[:1] == ['hpc-script'] and '--' in argv:
        split = argv.index('--')
        argv, options = argv[:split], argv[split + 1 :]
    return build_parser().parse_args(argv, argparse.Namespace(options=options))


def _explain(error: Exception) -> NePhiError:
    """What the user is told: our own errors as they are, others with the way to know more."""
    if isinstance(error, NePhiError):
        return error
    if isinstance(error, MemoryError):
        return TryAgainError(
            'The memory ran out. Close other programs, or use a machine with more, and try again.'
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return StorageError(f'Reading or writing failed: {error}. Check the disk and try again.')
    return NePhiError(
        f'Unexpected {type(error).__name__}: {error}. This should not happen: please report it '
        'with what the same command prints with --debug.'
    )


def _add_register(commands: Any) -> None:
    parser = add_command(commands, 'register', 'register a moving image to a fixed one')
    parser.add_argument('fixed', type=Path, metavar='FIXED', help='the image that stays')
    parser.add_argument('moving', type=Path, metavar='MOVING', help='the image that is warped')
    parser.add_argument(
        '-o', '--output', type=Path, required=True, metavar='OUT',
        help='folder for transform.h5, inverse.h5, warped.nii.gz and metrics.json',
    )  # fmt: skip
    _add_pair_files(parser, exclude=True)
    method = parser.add_argument_group('how it is registered')
    method.add_argument('--modality', choices=MODALITIES, default='brain')
    method.add_argument(
        '--weights', action='append', metavar='{default,none,FILE}',
        help=f'where the fields start from ({WEIGHTS_DEFAULT}); may be repeated, a file for each '
        'stage, coarse to fine, or none as the last',
    )  # fmt: skip
    method.add_argument(
        '--steps', type=count, metavar='N',
        help=f'optimisation steps ({STEPS_DEFAULT})',
    )  # fmt: skip
    method.add_argument(
        '--no-structures', dest='structures', action='store_false', help=NO_STRUCTURES
    )
    method.add_argument(
        '--no-affine', dest='affine', action='store_false',
        help='no affine initialisation: the images are aligned already',
    )  # fmt: skip
    method.add_argument(
        '--initial-transform', type=Path, action='append', metavar='FILE',
        help='start from this transform, fixed to moving, and estimate no affine: an affine (ITK '
        '.txt, .tfm, .mat or .h5) or a non-linear pre-alignment (.h5, displacement .nii.gz, our '
        '.safetensors), which the field is composed with; may be repeated, listed as for apply',
    )  # fmt: skip
    method.add_argument(
        '--initial-inverse', type=Path, action='append', metavar='FILE',
        help='the way back of displacement fields (default: they are inverted here)',
    )  # fmt: skip
    method.add_argument('--seed', type=count, default=0, metavar='N', help='(default: 0)')
    add_resources(parser)
    output = parser.add_argument_group('what is written')
    output.add_argument(
        '--xfm-format', choices=XFM_FORMATS, default='h5',
        help='transforms as ITK composite .h5 (default), displacement .nii.gz or the field itself',
    )  # fmt: skip
    output.add_argument('--jacobian', action='store_true', help='also write jacobian.nii.gz')
    output.add_argument('--report', action='store_true', help='also write report.html')


def _add_apply(commands: Any) -> None:
    parser = add_command(commands, 'apply', 'resample an image or map points', APPLY_DESCRIPTION)
    parser.add_argument(
        'transforms', type=Path, nargs='+', metavar='TRANSFORM',
        help='.h5, .nii.gz or .safetensors of ours, or any ITK transform (.h5, .txt, .tfm, .mat)',
    )  # fmt: skip
    parser.add_argument(
        'input', type=Path, metavar='IMAGE|POINTS.tsv', help='a 3D or 4D image, or points'
    )
    parser.add_argument(
        '--reference', type=Path, metavar='GRID', help='the image whose grid the result gets'
    )
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE')
    parser.add_argument(
        '--interpolation', choices=INTERPOLATIONS, default='linear',
        help='labels: nearest, and the values stay whole numbers (default: linear)',
    )  # fmt: skip
    parser.add_argument(
        '--outside', type=float, default=0.0, metavar='VALUE',
        help='where the image has no voxels (default: 0; of a CT -1000 is air)',
    )  # fmt: skip


def _add_evaluate(commands: Any) -> None:
    parser = add_command(
        commands, 'evaluate', 'score a transform, of nephi or of another tool',
        'Score a transform: overlap of labels, distance of landmarks, folds, Jacobians.\n\n'
        f'{DIRECTION}\nSeveral transforms are listed as for nephi apply.',
    )  # fmt: skip
    parser.add_argument('transforms', type=Path, nargs='+', metavar='TRANSFORM')
    parser.add_argument('--fixed', type=Path, required=True, metavar='IMAGE')
    parser.add_argument('--moving', type=Path, required=True, metavar='IMAGE')
    _add_pair_files(parser, exclude=False)
    parser.add_argument(
        '--modality', choices=MODALITIES, default='other',
        help='lung: CTs are mended, and lungs found and scored, as nephi register does it '
        '(default: other, images are scored as they are)',
    )  # fmt: skip
    parser.add_argument(
        '--inverse', type=Path, nargs='+', metavar='TRANSFORM',
        help='the way back, listed likewise, for the inverse consistency',
    )  # fmt: skip
    parser.add_argument(
        '--affine', type=Path, metavar='FILE',
        help='the affine to compare with ("before"; default: the affine that the transform '
        'starts from, or none)',
    )  # fmt: skip
    parser.add_argument(
        '-o', '--output', type=Path, metavar='FILE.json', help='(default: standard output)'
    )


def _add_landmarks(commands: Any) -> None:
    parser = add_command(
        commands, 'landmarks', 'convert DIR-Lab landmarks to tables', LANDMARKS_DESCRIPTION
    )
    parser.add_argument(
        'indices', type=Path, nargs='+', metavar='FILE.txt', help='one, or both of a pair'
    )
    parser.add_argument(
        '-o', '--output', type=Path, nargs='+', required=True, metavar='FILE.tsv',
        help='a table for each file',
    )  # fmt: skip
    parser.add_argument(
        '--like', type=Path, nargs='+', metavar='IMAGE',
        help='the image of each file, or one for both',
    )  # fmt: skip
    parser.add_argument(
        '--size', type=positive, nargs=3, metavar='N', help='voxels to the left, back and down'
    )
    parser.add_argument(
        '--spacing', type=float, nargs=3, metavar='MM', help='their size in the same order'
    )


def _add_info(commands: Any) -> None:
    parser = add_command(
        commands, 'info', 'say what a transform, field or weights file is',
        'Say what a transform, field or weights file is and where it comes from.',
    )  # fmt: skip
    parser.add_argument('files', type=Path, nargs='+', metavar='FILE')


def _add_hpc_script(commands: Any) -> None:
    parser = add_command(
        commands, 'hpc-script', 'write a SLURM job array for a BIDS data set', HPC_DESCRIPTION
    )
    parser.add_argument('bids_dir', type=Path, metavar='BIDS', help='the data set')
    parser.add_argument('output_dir', type=Path, metavar='OUT', help='where results go')
    parser.add_argument(
        '-o', '--output', type=Path, default=Path('nephi_array.sh'), metavar='SCRIPT',
        help='(default: nephi_array.sh)',
    )  # fmt: skip
    parser.add_argument(
        '-w', '--work-dir', type=Path, default=Path('work'), metavar='DIR',
        help='intermediate files, where every node can see them (default: ./work)',
    )  # fmt: skip
    parser.add_argument(
        '--local-scratch', action='store_true',
        help='work on the disk of each node ($SLURM_TMPDIR, $TMPDIR or /tmp); what is needed to '
        'go on is brought to the work folder',
    )  # fmt: skip
    parser.add_argument(
        '--image', type=Path, metavar='FILE.sif',
        help='run in this container with apptainer or singularity, whichever a node has '
        '(default: with the Python of this command)',
    )  # fmt: skip
    asked = parser.add_argument_group('what SLURM is asked for, for each person')
    asked.add_argument(
        '--cpus', type=positive, default=2, metavar='N', help='processors (default: 2)'
    )
    asked.add_argument(
        '--mem', metavar='SIZE', help='memory, such as 8G (default: what the data set needs)'
    )
    asked.add_argument(
        '--time', metavar='LIMIT', help='as for sbatch (default: what the data set needs)'
    )
    asked.add_argument(
        '--at-once', type=positive, metavar='N', help='most tasks at a time (default: no limit)'
    )
    asked.add_argument(
        '--sbatch', action='append', default=[], metavar='OPTION',
        help='another option, such as --sbatch=--partition=long; may be repeated',
    )  # fmt: skip


def _add_pair_files(parser: Any, exclude: bool) -> None:
    group = parser.add_argument_group('what belongs to the images')
    group.add_argument('--fixed-mask', type=Path, metavar='FILE', help='where it counts')
    group.add_argument('--moving-mask', type=Path, metavar='FILE')
    if exclude:
        group.add_argument(
            '--exclude-mask', type=Path, metavar='FILE',
            help='on the grid of either image: lesion or resection that takes no part in the '
            'similarity',
        )  # fmt: skip
    group.add_argument('--fixed-labels', type=Path, metavar='FILE', help='for the Dice')
    group.add_argument('--moving-labels', type=Path, metavar='FILE')
    group.add_argument(
        '--fixed-landmarks', type=Path, metavar='FILE.tsv', help='columns x, y, z in RAS+ mm'
    )
    group.add_argument(
        '--moving-landmarks', type=Path, metavar='FILE.tsv',
        help='the same ones: rows are matched by a column index, id, landmark, name or label, '
        'else one by one',
    )  # fmt: skip
