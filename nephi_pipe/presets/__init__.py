"""What is particular to brain, lung and other images: preparation, similarity, settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import UsageError
from ..field.config import COMPACT, FieldConfig
from ..learning.settings import Level, OptimisationSettings

MODALITIES = ('brain', 'lung', 'other')


@dataclass(frozen=True)
class Preset:
    """How images of one kind are registered.

    Parameters
    ----------
    field
        Sizes of the fields.
    optimisation
        Levels, similarity and weights of the instance optimisation.
    intensity_range
        Raw values that become 0 and 1; None for the 1st and 99th percentile inside the mask.
    margin_mm
        How far the box of the field reaches beyond the masks.
    lungs
        Whether images are chest CTs: Hounsfield units are checked and mended, and the lungs are
        the mask where none is given.
    rim_mm
        How far beyond the masks images are compared.
    refinement
        The instance optimisation that starts from weights; None for the same as from scratch.
    """

    field: FieldConfig
    optimisation: OptimisationSettings
    intensity_range: tuple[float, float] | None = None
    margin_mm: float = 6.0
    lungs: bool = False
    rim_mm: float = 0.0
    refinement: OptimisationSettings | None = None

    def settings(self, from_weights: bool) -> OptimisationSettings:
        """Those of an instance optimisation that starts from weights, or from a fresh field."""
        return self.refinement if from_weights and self.refinement else self.optimisation


# Large steps of the code, which ask for a regulariser with little noise, and then go as far with
# fewer of them. From weights there are few, so they are larger still: the networks know where
# structures lie and move little; the code goes where the images say.
BRAIN = Preset(
    COMPACT,
    OptimisationSettings(
        steps=140,
        diffusion_weight=0.5,
        bending_weight=0.5,
        coarse_weights=(0.7, 1.0),
        regularity_points=3000,
        code_rate=3e-2,
    ),
    refinement=OptimisationSettings(
        levels=(Level(1.0, 3.5, 2),),
        steps=60,
        regularity_points=3000,
        network_rate=5e-4,
        code_rate=8e-2,
        warm_up=3,
    ),
)

# Lungs move far and smoothly: wide nodes, and windows that hold more than the noise of one place
# (chosen on the real pair and on motions of DIR-Lab cases 1 to 3, see benchmarks/RESULTS.md). The
# first two levels are for breaths of 30 mm; levels this wide need fewer points of the regulariser.
LUNG = Preset(
    COMPACT,
    OptimisationSettings(
        levels=(
            Level(0.34, 20.0, 5, 3.0, regularity=0.3, by_depth=True),
            Level(0.30, 12.0, 4, 1.5, regularity=0.4),
            Level(0.13, 8.0, 3, 1.0, regularity=0.6),
            Level(0.23, 8.0, 4, 0.7, regularity=0.6),
        ),
        steps=120,
        similarity='local-ncc',
        window=3.0,
        consistency_weight=0.05,
        regularity_points=2500,
        code_rate=3e-2,
    ),
    intensity_range=(-1000.0, 0.0),
    lungs=True,
    rim_mm=4.0,
)

OTHER = Preset(COMPACT, OptimisationSettings(similarity='mind'))

_BY_NAME = {'brain': BRAIN, 'lung': LUNG, 'other': OTHER}


def preset(modality: str, sloppy: bool = False) -> Preset:
    """The preset of a modality; ``sloppy`` makes it tiny, for tests of everything around it.

    >>> preset('brain').optimisation.similarity
    'windowed-ncc'
    """
    if modality not in _BY_NAME:
        raise UsageError(
            f'There is no modality "{modality}"; expected one of {", ".join(MODALITIES)}.'
        )
    chosen = _BY_NAME[modality]
    return _sloppy(chosen) if sloppy else chosen


def _sloppy(chosen: Preset) -> Preset:
    field = replace(chosen.field, frequencies=16, width=32, local_size=12, local_channels=8)
    optimisation = replace(
        chosen.optimisation,
        levels=(Level(1.0, 10.0, 2, 1.0),),
        steps=12,
        regularity_points=100,
        network_rate=3e-3,
    )
    return replace(chosen, field=field, optimisation=optimisation, refinement=optimisation)
