"""The arguments of ``nephi train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .arguments import MODALITIES, add_command, add_resources, count, period, positive

FIELDS = ('compact', 'published')
AUGMENTATIONS = ('none', 'published', 'mixed', 'posed', 'breathing')
TRAINING_PRESETS = ('brain', 'lung', 'lung-single-res')

TRAIN_DESCRIPTION = """\
Train weights on random pairs of images; nothing but the images is needed. This command alone needs
two more packages: pip install accelerate tensorboardX

The weights are for nephi register --weights OUT/weights.safetensors. A training that was stopped
or killed goes on where its state was saved last when the same command is given again, and ends as
if nothing had happened; with more --epochs a finished one goes on too.
"""


def add_train(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(commands, 'train', 'train weights on a list of images', TRAIN_DESCRIPTION)
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
        '--motions', type=Path, nargs='+', metavar='FILE.tsv',
        help='landmarks of lungs in two breath states (columns exp_x to insp_z, mm): simulated '
        'pairs breathe like that',
    )  # fmt: skip
    data.add_argument(
        '--motion-lungs', type=Path, nargs='+', metavar='FILE',
        help='masks of the lungs of --motions at expiration, in the same order',
    )  # fmt: skip
    data.add_argument(
        '--cache', type=Path, metavar='DIR',
        help='prepared images, which trainings may share (default: cache in the output folder)',
    )  # fmt: skip
    _add_settings(parser)
    add_resources(parser)


def _add_settings(parser: Any) -> None:
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
        '--preset',
        choices=TRAINING_PRESETS,
        help='that of the brain weights that ship, or a published one, with its numbers',
    )
    method.add_argument('--modality', choices=MODALITIES, help='(default: brain)')
    method.add_argument('--field', choices=FIELDS, help='sizes of the networks (default: compact)')
    method.add_argument(
        '--grid', type=positive, metavar='N',
        help='voxels along each axis of the images that the encoder sees (default: 81)',
    )  # fmt: skip
    method.add_argument('--epochs', type=positive, metavar='N', help='(default: 100)')
    method.add_argument('--steps-per-epoch', type=positive, metavar='N', help='(default: 100)')
    method.add_argument(
        '--batch-size', type=positive, metavar='N', help='pairs a step and device (default: 1)'
    )
    method.add_argument(
        '--learning-rate', type=float, metavar='RATE', help='of Adam (default: 0.0001)'
    )
    method.add_argument(
        '--learning-rate-step', type=count, metavar='N',
        help='epochs after which it is halved, again and again (default: 0, never)',
    )  # fmt: skip
    method.add_argument(
        '--warm-up', type=count, metavar='N', help='steps in which it rises (default: 100)'
    )
    method.add_argument(
        '--augmentation', choices=AUGMENTATIONS,
        help='poses, contrasts and simulated pairs (default: mixed); single values in a config',
    )  # fmt: skip
    method.add_argument(
        '--dice-weight', type=float, metavar='W', help='learn from labels too (default: 0)'
    )
    method.add_argument(
        '--eval-every', type=period, metavar='N',
        help='epochs between validations, -1 for never (default: 5)',
    )  # fmt: skip
    method.add_argument(
        '--save-every', type=positive, metavar='N', help='epochs between states (default: 1)'
    )
    method.add_argument('--seed', type=count, metavar='N', help='(default: 0)')
    method.add_argument(
        '--weights', type=Path, metavar='FILE',
        help='start from these weights, with a fresh optimiser (default: from random ones)',
    )  # fmt: skip
    method.add_argument(
        '--coarse', type=Path, metavar='FILE',
        help='weights of a coarse stage: its maps warp the moving images first, and it comes '
        'along in what is written',
    )  # fmt: skip
    method.add_argument(
        '--joint', action='store_true', default=None,
        help='train the coarse stage too (default: it stays as it is)',
    )  # fmt: skip
    method.add_argument(
        '--precision', choices=('no', 'bf16', 'fp16'),
        help='of the encoder (default: no, which is float32)',
    )  # fmt: skip
    method.add_argument(
        '--devices', type=positive, default=1, metavar='N',
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
