"""The files a training is given: images, with masks and label maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import UsageError
from ..files import sha256
from ..reading import existing_file

FilePath = str | os.PathLike

_ENDINGS = ('.nii.gz', '.nii', '.mgz', '.mgh')


@dataclass(frozen=True)
class Files:
    """An image with what belongs to it."""

    image: Path
    mask: Path | None = None
    labels: Path | None = None

    @cached_property
    def checksums(self) -> dict[str, str]:
        """Name of the image and SHA-256 of each file."""
        paths = {'image': self.image, 'mask': self.mask, 'labels': self.labels}
        sums = {
            kind: sha256(existing_file(path, 'an image'))
            for kind, path in paths.items()
            if path is not None
        }
        return {'name': self.image.name, **sums}

    @property
    def aligned_by(self) -> str:
        """What an affine of this image depends on, as one word."""
        return '+'.join(
            self.checksums[kind] for kind in ('image', 'mask') if kind in self.checksums
        )

    @property
    def person(self) -> str:
        """Label of the person in a name of BIDS form; of another name each is a person's own."""
        name = self.image.name
        return name.partition('_')[0] if name.startswith('sub-') else str(self.image)

    def is_called(self, name: str) -> bool:
        """Whether ``name`` means this image: its path, its file name, or its person's label."""
        label = name.removeprefix('sub-')
        return (
            Path(name) == self.image
            or name == self.image.name
            or self.image.name.startswith((f'sub-{label}_', f'sub-{label}.'))
        )


def files_of(
    images: Sequence[FilePath],
    masks: Sequence[FilePath] | None,
    labels: Sequence[FilePath] | None,
) -> list[Files]:
    """The images with what belongs to them, in order.

    Raises
    ------
    UsageError
        There are fewer than two images, not one mask or label map for each, or images of several
        modalities by their BIDS suffixes.
    """
    if len(images) < 2:
        raise UsageError(
            f'Training was given {len(images)} image(s); expected two images or more, each of '
            'another person. Add some.'
        )
    columns = [images]
    for kind, paths in (('masks', masks), ('label maps', labels)):
        if paths and len(paths) != len(images):
            raise UsageError(
                f'Training was given {len(paths)} {kind} for {len(images)} images; expected one '
                'for each image in the same order, or none.'
            )
        columns.append(paths or [None] * len(images))
    _check_one_modality([Path(path) for path in images])
    return [
        Files(*(None if path is None else Path(path) for path in row))
        for row in zip(*columns, strict=True)
    ]


def split(files: Sequence[Files], held_out: Sequence[str]) -> tuple[list[Files], list[Files]]:
    """Images to train on, and those that are kept out.

    Raises
    ------
    UsageError
        A name means none of the images, or fewer than two are left.
    """
    for name in held_out:
        if not any(one.is_called(name) for one in files):
            raise UsageError(
                f'"{name}" is to be kept out for validation and is none of the {len(files)} '
                'images; expected a path, a file name or the label of a person (sub-LABEL).'
            )
    kept = [one for one in files if any(one.is_called(name) for name in held_out)]
    others = [one for one in files if one not in kept]
    if len(others) < 2:
        raise UsageError(
            f'{len(others)} image(s) are left to train on beside {len(kept)} kept out; expected '
            'two images or more. Keep fewer out.'
        )
    return others, kept


def _check_one_modality(images: Sequence[Path]) -> None:
    """BIDS suffixes of all images that have one must agree."""
    kinds: dict[str, Path] = {}
    for path in images:
        suffix = _suffix(path.name)
        if suffix:
            kinds.setdefault(suffix, path)
    if len(kinds) > 1:
        (one, a), (other, b) = list(kinds.items())[:2]
        raise UsageError(
            f'"{a}" is a {one} and "{b}" a {other} image; expected images of one modality. Train '
            'one network for each.'
        )


def _suffix(name: str) -> str:
    """The suffix of a name in BIDS form, '' of another name.

    >>> _suffix('sub-01_ses-2_T1w.nii.gz'), _suffix('scan_1.nii')
    ('T1w', '')
    """
    stem = next((name.removesuffix(end) for end in _ENDINGS if name.endswith(end)), name)
    return stem.rpartition('_')[2] if stem.startswith('sub-') and '_' in stem else ''
