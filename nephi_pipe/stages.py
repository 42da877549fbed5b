"""The stages of a registration: each a field on what those before it left of the moving image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .errors import InputDataError
from .geometry import Frame, apply_affine
from .images import Image
from .initial import freed
from .presets import Preset
from .result import Registration

if TYPE_CHECKING:
    from torch import Tensor

    from .field.deformation import NePhiField
    from .field.model import NePhiModel
    from .learning.optimise import Progress
    from .learning.settings import OptimisationSettings
    from .learning.structure_net import StructureNet
    from .learning.structures import StructuresOfPair
    from .prealignment import BaseMap
    from .presets.preparation import Prepared

    Watcher = Callable[[Progress], None] | None

logger = logging.getLogger(__name__)

REPAIR_ROUNDS = 5
"""How often optimisation goes on where folds were found."""

REPAIR_STEPS = 20
REPAIR_NETWORK_RATE, REPAIR_CODE_RATE = 2e-4, 2e-3
"""Of these steps, however far those before them went."""

SOFTENINGS = 10
"""How often the code is smoothed where a map folds, before its networks are asked to mend it."""

MOST_SOFTENED = 2000
"""Points that fold, more than which are not a few places in an otherwise good map."""


@dataclass(frozen=True, eq=False)
class StagedPair:
    """A pair and how it is registered.

    Parameters
    ----------
    images
        Fixed and moving.
    prepared
        Both made ready.
    affine
        4x4, fixed mm to moving mm.
    chosen
        The preset.
    seed
        Of all random draws.
    device
        Of the fields.
    network
        Finds the structures that are compared too, None for none.
    """

    images: tuple[Image, Image]
    prepared: list[Prepared]
    affine: np.ndarray
    chosen: Preset
    seed: int = 0
    device: str = 'cpu'
    network: StructureNet | None = None

    def stage(self, model: NePhiModel | None, base: BaseMap | None) -> Stage:
        """A field before ``base``: what a model predicts, or a fresh one.

        Raises
        ------
        InputDataError
            The images hardly overlap before it.
        """
        fixed, moving = self.prepared
        compared = [fixed, moving if base is None else freed(moving, base)]
        self._check_overlap(compared)
        field, frame = self._fresh(compared, model)
        if model is not None:
            model.predict_into(field, compared, frame, self.affine)
        grids = [image.grid for image in self.images]
        masks = [Image(side.outline, side.grid) for side in self.prepared]
        found = Registration(field, frame, self.affine, *grids, *masks, base=base)
        return Stage(found, compared, self.seed, self.device, self.network)

    def _fresh(
        self, compared: list[Prepared], model: NePhiModel | None
    ) -> tuple[NePhiField, Frame]:
        """A field of its own, and where it lies."""
        import torch

        from .field.deformation import NePhiField
        from .presets.preparation import frame_of

        fixed, moving = compared
        frame, extent = frame_of(fixed, moving, self.affine, self.chosen.margin_mm)
        config = self.chosen.field
        if model is not None:
            frame, extent = model.frame_for(frame, extent)
            config = model.config.field
        generator = torch.Generator().manual_seed(self.seed)
        return NePhiField(config, generator, extent).to(self.device), frame

    def _check_overlap(self, compared: list[Prepared]) -> None:
        fixed, moving = compared
        points = apply_affine(self.affine, fixed.mask_points)
        index = np.rint(moving.grid.to_index(points)).astype(int)
        inside = ((index >= 0) & (index < moving.grid.shape)).all(axis=1)
        overlap = moving.mask[tuple(index[inside].T)].sum() / len(points)
        if overlap < 0.05:
            names = ' and '.join(image.name for image in self.images)
            raise InputDataError(
                f'After the initial alignment {names} hardly overlap ({100 * overlap:.0f} % of '
                'the fixed mask); expected images of the same organ. Check masks and initial '
                'transform, or let the affine be estimated.'
            )


@dataclass(frozen=True, eq=False)
class Stage:
    """One field and what it is found from.

    Parameters
    ----------
    found
        The registration that it belongs to; the field is changed in place.
    compared
        The fixed image, and the moving one without what comes after the field.
    seed, device, network
        See :class:`StagedPair`.
    """

    found: Registration
    compared: list[Prepared]
    seed: int = 0
    device: str = 'cpu'
    network: StructureNet | None = None

    def optimise(self, settings: OptimisationSettings, threads: int, progress: Watcher) -> bool:
        """Optimise, then look for folds and go on where there are any.

        Whether structures were compared.
        """
        structures = self._structures()
        self._run(settings, settings, 0, None, threads, progress, structures)
        self.repair(settings, threads, progress, structures)
        return structures is not None

    def _structures(self) -> StructuresOfPair | None:
        from .presets.structures import structures_of_pair

        if self.network is None:
            return None
        fixed, moving = self.compared
        return structures_of_pair(fixed, moving, self.found.affine, self.network, self.device)

    def repair(
        self,
        settings: OptimisationSettings,
        threads: int,
        progress: Watcher,
        structures: StructuresOfPair | None = None,
    ) -> None:
        """Look for folds and mend them: where they are, else by at most five rounds of steps."""
        import torch

        repair = replace(
            settings,
            levels=settings.levels[-2:][:1],
            steps=REPAIR_STEPS,
            network_rate=REPAIR_NETWORK_RATE,
            code_rate=REPAIR_CODE_RATE,
            barrier_weight=30 * settings.barrier_weight,
        )
        for number in range(1, REPAIR_ROUNDS + 1):
            points = self._softened()
            if not len(points):
                return
            self.found.field.to(self.device)
            logger.info('Round %d: the map folds at %d points; going on.', number, len(points))
            watch = torch.from_numpy(points).float().to(self.device)
            self._run(repair, settings, number, watch, threads, progress, structures)
        self._softened()

    def _softened(self) -> np.ndarray:
        """Smooth the code where the map folds, until it does not; where it does all the same.

        Normalised points (N, 3). Maps are looked at, and left, on the processor.
        """
        import torch

        field = self.found.field.to('cpu')
        for _ in range(SOFTENINGS):
            points = self.found.folded_points(self.seed)
            if not 0 < len(points) <= MOST_SOFTENED:
                return points
            logger.info('The map folds at %d points; smoothing its code there.', len(points))
            field.code.soften(torch.from_numpy(points).float())
            self.found.forget_lattices()
        return self.found.folded_points(self.seed)

    def _run(
        self,
        chosen: OptimisationSettings,
        features: OptimisationSettings,
        number: int,
        watch: Tensor | None,
        threads: int,
        progress: Watcher,
        structures: StructuresOfPair | None,
    ) -> None:
        """One optimisation on volumes that are made as ``features`` says."""
        from .learning.optimise import optimise
        from .presets.preparation import pair_builder

        found, (fixed, moving) = self.found, self.compared
        history = optimise(
            found.field,
            pair_builder(
                fixed, moving, found.affine, found.frame, features, self.device, structures
            ),
            chosen,
            found.frame.scale_mm,
            seed=self.seed + number,
            threads=threads,
            progress=progress,
            watch=watch,
        )
        found.history += [entry.as_dict() for entry in history]
        found.forget_lattices()
