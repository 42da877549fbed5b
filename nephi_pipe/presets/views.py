"""What is particular to brain, lung and other images in what is scored and shown of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import preset


@dataclass(frozen=True)
class View:
    """How a pair of one kind is looked at.

    Parameters
    ----------
    planes
        Which planes the pictures show.
    window
        Intensities shown as black and white; None for percentiles inside the mask.
    outside
        The intensity of what lies beyond an image.
    organ
        What the masks hold, where they are an organ whose volume may change: its outlines and its
        change of volume are shown and scored. Empty where masks only say where to look.
    determinant_limit
        The scale of determinants ends at this and one over it.
    """

    planes: tuple[str, ...] = ('axial', 'coronal', 'sagittal')
    window: tuple[float, float] | None = None
    outside: float = 0.0
    organ: str = ''
    determinant_limit: float = 4.0

    @property
    def jacobian_of(self) -> Literal['deformation', 'total']:
        """Which determinant is mapped: between people size says little, within one it counts."""
        return 'total' if self.organ else 'deformation'


_LUNG_HU = preset('lung').intensity_range or (-1000.0, 0.0)

_BY_NAME = {
    'lung': View(
        planes=('coronal', 'sagittal'),
        window=_LUNG_HU,
        outside=_LUNG_HU[0],
        organ='lungs',
        determinant_limit=2.0,
    )
}


def view(modality: str) -> View:
    """How pairs of a modality are looked at.

    >>> view('lung').planes, view('brain').jacobian_of
    (('coronal', 'sagittal'), 'deformation')
    """
    return _BY_NAME.get(modality, View())
