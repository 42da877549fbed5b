"""BIDS names of everything that one pair produces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .pairs import Pair

XFM_SUFFIX = {'h5': '.h5', 'nii': '.nii.gz', 'field': '.safetensors'}


@dataclass(frozen=True)
class Names:
    """Paths of one pair's files.

    Parameters
    ----------
    output_dir
        The derivative data set's folder.
    pair
        What is registered to what; files are stored under the moving person and keep the
        moving scan's entities. ``from`` is the moving image, ``to`` the fixed one.
    xfm_format
        ``h5``, ``nii`` or ``field``.
    """

    output_dir: Path
    pair: Pair
    xfm_format: str = 'h5'

    @property
    def folder(self) -> Path:
        """``OUT/sub-41/ses-1/anat``."""
        return self.output_dir / self.pair.moving.folder

    @property
    def figures(self) -> Path:
        """``OUT/sub-41/figures``."""
        return self.output_dir / f'sub-{self.pair.moving.subject}' / 'figures'

    @property
    def in_space(self) -> str:
        """``sub-41_ses-1_space-sub45``: the beginning of everything on the fixed grid."""
        return f'{self.pair.moving.stem}_space-{self.pair.fixed.space}'

    @property
    def forward(self) -> Path:
        """The transform that resamples the moving image onto the fixed grid."""
        return self._xfm(self.pair.moving.suffix, self.pair.fixed.space)

    @property
    def inverse(self) -> Path:
        """The transform that resamples the fixed image onto the moving grid."""
        return self._xfm(self.pair.fixed.space, self.pair.moving.suffix)

    @property
    def warped(self) -> Path:
        """The moving image on the fixed grid."""
        return self._on_grid(f'{self.pair.moving.suffix}.nii.gz')

    @property
    def labels(self) -> Path:
        """The moving label map on the fixed grid."""
        return self._on_grid('dseg.nii.gz')

    @property
    def jacobian(self) -> Path:
        """The map of Jacobian determinants on the fixed grid."""
        return self._on_grid('jacobian.nii.gz')

    @property
    def landmarks(self) -> Path:
        """The table of landmarks and their errors."""
        return self._on_grid('landmarks.tsv')

    @property
    def metrics(self) -> Path:
        """The numbers; written last, so a pair that has them is complete."""
        return self._on_grid('metrics.json')

    def figure(self, key: str, extension: str) -> Path:
        """One picture of the report."""
        return self.figures / f'{self.in_space}_desc-{key}_{self.pair.moving.suffix}{extension}'

    def of_other_formats(self) -> list[Path]:
        """Transforms of this pair in formats that another run may have chosen."""
        return [
            path.with_name(path.name.removesuffix(XFM_SUFFIX[self.xfm_format]) + suffix)
            for path in (self.forward, self.inverse)
            for name, suffix in XFM_SUFFIX.items()
            if name != self.xfm_format
        ]

    def _on_grid(self, end: str) -> Path:
        return self.folder / f'{self.in_space}_desc-nephi_{end}'

    def _xfm(self, origin: str, target: str) -> Path:
        name = f'{self.pair.moving.stem}_from-{origin}_to-{target}_mode-image_xfm'
        return self.folder / f'{name}{XFM_SUFFIX[self.xfm_format]}'


def sidecar(path: Path) -> Path:
    """The JSON file that belongs to a data file.

    >>> sidecar(Path('sub-41_T1w.nii.gz')).name
    'sub-41_T1w.json'
    """
    return path.with_name(path.name.split('.')[0] + '.json')
