"""Everything that decides which weights a training finds, in one value and in a TOML file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import NePhiError, UsageError
from ..field.config import COMPACT, CONFIGURATIONS, PUBLISHED, FieldConfig
from ..field.encoder import EncoderConfig
from ..presets import preset
from ..reading import MOST_JSON_BYTES, parse_toml, read_text
from .settings import AUGMENTATIONS, Augmentation, Loss, Schedule


@dataclass(frozen=True)
class TrainingConfig:
    """Which network is trained, and how.

    Parameters
    ----------
    modality
        Name of the preset by which images are prepared.
    field, encoder
        Sizes; the local code gets the encoder's number of nodes.
    loss, augmentation, training
        See there.
    """

    modality: str = 'brain'
    field: FieldConfig = COMPACT
    encoder: EncoderConfig = EncoderConfig(81, 'group')
    loss: Loss = Loss()
    augmentation: Augmentation = AUGMENTATIONS['mixed']
    training: Schedule = Schedule()

    def __post_init__(self) -> None:
        if self.field.ndim != 3:
            raise UsageError(
                f'The field has {self.field.ndim} axes; expected 3, as the images have.'
            )
        size = self.encoder.local_size
        object.__setattr__(self, 'field', replace(self.field, local_size=size))

    def checked(self) -> TrainingConfig:
        """The same, if its parts go together.

        Raises
        ------
        UsageError
            A loss on a lattice with what is for random points.
        """
        if self.loss.on_lattice and (self.augmentation.flips or self.augmentation.simulated):
            raise UsageError(
                'Simulated pairs and flips of all axes are for a loss at random points; expected '
                f'neither with the similarity "{self.loss.similarity}". Choose the augmentation '
                '"posed" or "none", or the similarity local-ncc.'
            )
        if self.augmentation.breathing_mm and self.augmentation.flips:
            raise UsageError(
                'Lungs breathe along the axes of the body; expected no flips of all axes with '
                'breathing_mm. Leave one of them 0.'
            )
        return self

    @classmethod
    def of(cls, modality: str) -> TrainingConfig:
        """The defaults for a modality."""
        return cls(modality, loss=_loss_of(modality))

    def changed(self, **changes: Any) -> TrainingConfig:
        """The same with other values, by the names they have in this class or in its parts.

        ``field`` and ``augmentation`` may be names, ``grid`` is the encoder's.

        Raises
        ------
        UsageError
            There is nothing of that name, or a value cannot be.
        """
        config = self
        if changes.get('modality', self.modality) != self.modality:
            modality = changes['modality']
            config = replace(self, modality=modality, loss=_loss_of(modality))
        for name, value in changes.items():
            config = config._with(name, value)
        return config

    def _with(self, name: str, value: Any) -> TrainingConfig:
        if name == 'modality':
            return self
        named = {'field': CONFIGURATIONS, 'augmentation': AUGMENTATIONS}.get(name)
        if named and isinstance(value, str):
            if value not in named:
                raise UsageError(
                    f'There is no {name} "{value}"; expected one of {", ".join(named)}.'
                )
            value = named[value]
        if name in ('field', 'encoder', 'loss', 'augmentation', 'training'):
            return replace(self, **{name: value})
        for part in ('training', 'loss', 'encoder'):
            own = getattr(self, part)
            if name in (one.name for one in fields(own)):
                return replace(self, **{part: replace(own, **{name: value})})
        raise UsageError(f'A training has no setting "{name}"; see nephi train --help.')

    def as_dict(self) -> dict[str, Any]:
        """Plain values, nested once, for files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], source: str) -> TrainingConfig:
        """The inverse of :meth:`as_dict`; what is left out has its default.

        Raises
        ------
        UsageError
            A name is unknown, or a value cannot be.
        """
        config = cls.of(str(tables.get('modality', 'brain')))
        for name, value in tables.items():
            if name in ('modality', 'data', 'made_with'):
                continue
            own = getattr(config, name, None) if name in (f.name for f in fields(cls)) else None
            if own is None or not isinstance(value, Mapping):
                raise UsageError(
                    f'{source} has "{name}"; expected modality and the tables field, encoder, '
                    'loss, augmentation and training. Correct it.'
                )
            known = [one.name for one in fields(own)]
            unknown = sorted(set(value) - set(known))
            if unknown:
                raise UsageError(
                    f'{source} has "{unknown[0]}" in [{name}]; expected some of '
                    f'{", ".join(known)}. Correct it.'
                )
            try:
                config = replace(config, **{name: replace(own, **value)})
            except NePhiError as error:
                raise UsageError(f'{source}: {error}') from error
        return config


def _loss_of(modality: str) -> Loss:
    """That of the optimisation which starts from what a training makes."""
    return Loss.of(preset(modality).settings(from_weights=True))


LUNG_SINGLE_RES = TrainingConfig(
    'lung',
    PUBLISHED,
    EncoderConfig(175, 'batch'),
    Loss('ncc', 100_000, 500, 10.0, 0.0, 0.0, 0.01, 0.0, 0.0),
    AUGMENTATIONS['none'],
    Schedule(epochs=2600, batch_size=8, warm_up=0, clip=0.0, average=0.0),
)
"""The authors' training of their single-resolution lung network; they had four GPUs."""

BRAIN_UNET = TrainingConfig(
    'brain',
    replace(COMPACT, code_skip=True),
    EncoderConfig(224, 'group', 'unet'),
    Loss('windowed-ncc', regularity_points=512, dice_weight=1.0),
    AUGMENTATIONS['posed'],
    Schedule(epochs=18, batch_size=8, learning_rate=5e-4, learning_rate_step=5, precision='bf16'),
)
"""The training of the brain weights that ship, for one GPU."""

LUNG_BREATHING = TrainingConfig(
    'lung',
    replace(COMPACT, code_skip=True),
    EncoderConfig(129, 'group', 'unet'),
    Loss('local-ncc', points=1000, regularity_points=200, window=3.0),
    AUGMENTATIONS['breathing'],
    Schedule(epochs=40, steps_per_epoch=50, learning_rate=3e-4, average=0.99, precision='bf16'),
)
"""A training on breathing lungs for processors, from the brain weights: half an hour of a core."""

PRESETS = {'lung': LUNG_BREATHING, 'lung-single-res': LUNG_SINGLE_RES, 'brain': BRAIN_UNET}


def read_config(path: str | os.PathLike) -> TrainingConfig:
    """A config file.

    Raises
    ------
    NoInputError, InputDataError, UsageError
        There is none, it is not TOML, or it says what cannot be.
    """
    try:
        tables = parse_toml(read_text(path, 'a train config (TOML)', MOST_JSON_BYTES))
    except ValueError as error:
        raise UsageError(f'"{path}" is not TOML ({error}); correct it.') from error
    return TrainingConfig.from_dict(tables, f'"{path}"')


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML of plain values: tables nested once, and lists of tables.

    >>> print(to_toml({'modality': 'lung', 'encoder': {'grid': 81}}), end='')
    modality = "lung"
    <BLANKLINE>
    [encoder]
    grid = 81
    """
    top = {name: value for name, value in tables.items() if not isinstance(value, dict | list)}
    lines = [_row(name, value) for name, value in top.items()]
    for name, value in tables.items():
        if isinstance(value, dict):
            lines += ['', f'[{name}]', *(_row(*item) for item in value.items())]
        elif isinstance(value, list):
            for one in value:
                lines += ['', f'[[{name}]]', *(_row(*item) for item in one.items())]
    return '\n'.join(lines) + '\n'


def _row(name: str, value: Any) -> str:
    # Strings, numbers and truth values are written alike in JSON and in TOML, but for DEL.
    return f'{name} = {json.dumps(value)}'.replace('\x7f', '\\u007f')
