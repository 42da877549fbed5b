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
from .errors import NePhiError, StorageError, TryAgainError, UsageError

MODALITIES = ('brain', 'lung', 'other')
XFM_FORMATS = ('h5', 'nii', 'field')
FIELDS = ('compact', 'published')
AUGMENTATIONS = ('none', 'published', 'mixed')
TRAINING_PRESETS = ('lung-single-res',)
INTERPOLATIONS = ('linear', 'nearest', 'cubic', 'labels')

DIRECTION = """\
A transform resamples the moving image onto the grid of the fixed image; so it maps points of the
fixed image to points of the moving image (RAS+ mm).
"""

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

TRAIN_DESCRIPTION = """\
Train weights on random pairs of images; nothing but the images is needed. This command alone needs
the extra "train": pip install 'nephi-pipe[train]'

The weights are for nephi register --weights OUT/weights.safetensors. A training that was stopped
or killed goes on where its state was saved last when the same command is given again, and ends as
if nothing had happened; with more --epochs a finished one goes on too.
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
    _add_train(commands)
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


def _add_command(commands: Any, name: str, summary: str, description: str = '') -> Any:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or f'{summary[0].upper()}{summary[1:]}.\n\n{DIRECTION}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    return parser


def _add_register(commands: Any) -> None:
    parser = _add_command(commands, 'register', 'register a moving image to a fixed one')
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
        '--weights', default='default', metavar='{default,none,FILE}',
        help='where the fields start from (default: the shipped weights, if there are any)',
    )  # fmt: skip
    method.add_argument(
        '--steps', type=_count, metavar='N',
        help='optimisation steps (default: of the modality; 0: only what the weights predict)',
    )  # fmt: skip
    method.add_argument(
        '--no-affine', dest='affine', action='store_false',
        help='no affine initialisation: the images are aligned already',
    )  # fmt: skip
    method.add_argument(
        '--initial-transform', type=Path, metavar='FILE',
        help='start from this affine, fixed to moving (ITK .txt, .tfm, .mat or .h5), and '
        'estimate none',
    )  # fmt: skip
    method.add_argument('--seed', type=_count, default=0, metavar='N', help='(default: 0)')
    _add_resources(parser)
    output = parser.add_argument_group('what is written')
    output.add_argument(
        '--xfm-format', choices=XFM_FORMATS, default='h5',
        help='transforms as ITK composite .h5 (default), displacement .nii.gz or the field itself',
    )  # fmt: skip
    output.add_argument('--jacobian', action='store_true', help='also write jacobian.nii.gz')
    output.add_argument('--report', action='store_true', help='also write report.html')


def _add_apply(commands: Any) -> None:
    parser = _add_command(commands, 'apply', 'resample an image or map points', APPLY_DESCRIPTION)
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


def _add_evaluate(commands: Any) -> None:
    parser = _add_command(
        commands, 'evaluate', 'score a transform, of nephi or of another tool',
        'Score a transform: overlap of labels, distance of landmarks, folds, Jacobians.\n\n'
        f'{DIRECTION}\nSeveral transforms are listed as for nephi apply.',
    )  # fmt: skip
    parser.add_argument('transforms', type=Path, nargs='+', metavar='TRANSFORM')
    parser.add_argument('--fixed', type=Path, required=True, metavar='IMAGE')
    parser.add_argument('--moving', type=Path, required=True, metavar='IMAGE')
    _add_pair_files(parser, exclude=False)
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
    parser = _add_command(
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
        '--size', type=_positive, nargs=3, metavar='N', help='voxels to the left, back and down'
    )
    parser.add_argument(
        '--spacing', type=float, nargs=3, metavar='MM', help='their size in the same order'
    )


def _add_train(commands: Any) -> None:
    parser = _add_command(
        commands, 'train', 'train weights on a list of images', TRAIN_DESCRIPTION
    )
    parser.add_argument(
        'images', type=Path, nargs='+', metavar='IMAGE|BIDS',
        help='two or more images, each of another person, or the folder of a BIDS data set',
    )  # fmt: skip
    parser.add_argument(
        '-o', '--output', type=Path, required=True, metavar='OUT',
        help='folder for weights, history and what is needed to go on',
    )  # fmt: skip
    parser.add_argument(
        '--name', metavar='NAME', help='name of the experiment: a folder of its own in OUT'
    )
    data = parser.add_argument_group('what belongs to the images')
    data.add_argument(
        '--masks', type=Path, nargs='+', metavar='FILE',
        help='where each image counts, in the same order (default: rough foregrounds)',
    )  # fmt: skip
    data.add_argument(
        '--labels', type=Path, nargs='+', metavar='FILE',
        help='a label map for each image, for the Dice in the history and for --dice-weight',
    )  # fmt: skip
    data.add_argument(
        '--derivatives', action='append', default=[], metavar='[NAME=]PATH',
        help='data set with masks and label maps of a BIDS folder; may be repeated',
    )  # fmt: skip
    data.add_argument(
        '--participant-label', nargs='+', default=[], metavar='LABEL',
        help='the people of a BIDS folder who take part, those of --validation included '
        '(default: all)',
    )  # fmt: skip
    data.add_argument(
        '--validation', nargs='+', default=[], metavar='LABEL|FILE',
        help='images or people that are only validated on',
    )  # fmt: skip
    data.add_argument(
        '--cache', type=Path, metavar='DIR',
        help='prepared images, which trainings may share (default: cache in the output folder)',
    )  # fmt: skip
    _add_training_settings(parser)
    _add_resources(parser)


def _add_training_settings(parser: Any) -> None:
    """What a config holds; an option that is given stands above the config."""
    method = parser.add_argument_group(
        'how it is trained', 'Defaults are those of the modality, of --preset or of --config.'
    )
    start = method.add_mutually_exclusive_group()
    start.add_argument(
        '--config', type=Path, metavar='FILE.toml',
        help='train config, such as the config.toml that each training writes',
    )  # fmt: skip
    start.add_argument(
        '--preset', choices=TRAINING_PRESETS, help='a published training, with its numbers'
    )
    method.add_argument('--modality', choices=MODALITIES, help='(default: brain)')
    method.add_argument('--field', choices=FIELDS, help='sizes of the networks (default: compact)')
    method.add_argument(
        '--grid', type=_positive, metavar='N',
        help='voxels along each axis of the images that the encoder sees (default: 81)',
    )  # fmt: skip
    method.add_argument('--epochs', type=_positive, metavar='N', help='(default: 100)')
    method.add_argument('--steps-per-epoch', type=_positive, metavar='N', help='(default: 100)')
    method.add_argument(
        '--batch-size', type=_positive, metavar='N', help='pairs a step and device (default: 1)'
    )
    method.add_argument(
        '--learning-rate', type=float, metavar='RATE', help='of Adam (default: 0.0001)'
    )
    method.add_argument(
        '--learning-rate-step', type=_count, metavar='N',
        help='epochs after which it is halved, again and again (default: 0, never)',
    )  # fmt: skip
    method.add_argument(
        '--warm-up', type=_count, metavar='N', help='steps in which it rises (default: 100)'
    )
    method.add_argument(
        '--augmentation', choices=AUGMENTATIONS,
        help='poses, contrasts and simulated pairs (default: mixed); single values in a config',
    )  # fmt: skip
    method.add_argument(
        '--dice-weight', type=float, metavar='W', help='learn from labels too (default: 0)'
    )
    method.add_argument(
        '--eval-every', type=_period, metavar='N',
        help='epochs between validations, -1 for never (default: 5)',
    )  # fmt: skip
    method.add_argument(
        '--save-every', type=_positive, metavar='N', help='epochs between states (default: 1)'
    )
    method.add_argument('--seed', type=_count, metavar='N', help='(default: 0)')
    method.add_argument(
        '--weights', type=Path, metavar='FILE',
        help='start from these weights, with a fresh optimiser (default: from random ones)',
    )  # fmt: skip
    method.add_argument(
        '--precision', choices=('no', 'bf16', 'fp16'),
        help='of the encoder (default: no, which is float32)',
    )  # fmt: skip
    method.add_argument(
        '--devices', type=_positive, default=1, metavar='N',
        help='processes with a device each, on this machine (default: 1)',
    )  # fmt: skip
    resume = method.add_mutually_exclusive_group()
    resume.add_argument(
        '--resume', action='store_true', default=True,
        help='go on with an unfinished training of the folder (the default)',
    )  # fmt: skip
    resume.add_argument(
        '--no-resume', dest='resume', action='store_false',
        help='start anew where the folder holds an unfinished training',
    )  # fmt: skip


def _add_info(commands: Any) -> None:
    parser = _add_command(
        commands, 'info', 'say what a transform, field or weights file is',
        'Say what a transform, field or weights file is and where it comes from.',
    )  # fmt: skip
    parser.add_argument('files', type=Path, nargs='+', metavar='FILE')


def _add_hpc_script(commands: Any) -> None:
    parser = _add_command(
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
        '--cpus', type=_positive, default=2, metavar='N', help='processors (default: 2)'
    )
    asked.add_argument(
        '--mem', metavar='SIZE', help='memory, such as 8G (default: what the data set needs)'
    )
    asked.add_argument(
        '--time', metavar='LIMIT', help='as for sbatch (default: what the data set needs)'
    )
    asked.add_argument(
        '--at-once', type=_positive, metavar='N', help='most tasks at a time (default: no limit)'
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
    group.add_argument('--moving-landmarks', type=Path, metavar='FILE.tsv', help='the same rows')


def _add_resources(parser: Any) -> None:
    group = parser.add_argument_group('resources')
    group.add_argument(
        '--device', default='cpu', metavar='{cpu,cuda,cuda:N}', help='(default: cpu)'
    )
    group.add_argument(
        '--threads', type=_positive, metavar='N', help='(default: the processors one may use)'
    )


def _count(text: str) -> int:
    """A whole number of zero or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'expected a whole number of 0 or more, not "{text}"')
    return int(text)


def _period(text: str) -> int:
    """A whole number of one or more, or -1 for never."""
    return -1 if text == '-1' else _positive(text)


def _positive(text: str) -> int:
    """A whole number of one or more."""
    if _count(text) == 0:
        raise argparse.ArgumentTypeError('expected a whole number of 1 or more, not "0"')
    return int(text)
