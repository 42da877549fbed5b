"""What training minimises on a lattice: the loss of instance optimisation, for a batch at once.

Networks are evaluated at the nodes of a jittered lattice and the displacement is interpolated to
finer samples (see :mod:`nephi_pipe.learning.sampling`), so that windows of the similarity and
bending energy can be had, and nothing loops over pairs or points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..field.deformation import NePhiField
from ..field.interpolate import cubic_weights, read_grid, read_grid_with_gradient, separable
from ..field.model import NePhiModel
from ..field.siren import fourier_features
from ..learning.optimise import BENDING_LENGTH_MM
from ..learning.regularity import bending_energy, point_regularity
from ..learning.sampling import Lattice
from ..learning.settings import OptimisationSettings
from ..learning.similarity import gaussian_windows, global_ncc_loss, windowed_ncc_loss
from .batch import Batch
from .coarse_stage import codes_of, is_trained
from .config import TrainingConfig


class FieldBatch(NePhiField):
    """The maps of several pairs as one: points come in as many equal parts as there are pairs."""

    def __init__(self, model: NePhiModel, global_codes: Tensor, local_codes: Tensor) -> None:
        nn.Module.__init__(self)
        self.config = model.config.field
        self.register_buffer('frequencies', model.frequencies)
        self.register_buffer('extent', torch.ones(model.config.field.ndim).to(model.frequencies))
        self.networks = model.networks
        self.global_codes, self.local_codes = global_codes, local_codes

    def _codes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        which, code = self._pairs(len(points))
        return read_grid(self.local_codes, points, self.config.code_reading, which), code

    def _codes_with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        which, code = self._pairs(len(points))
        reading = self.config.code_reading
        return *read_grid_with_gradient(self.local_codes, points, reading, which), code

    def on_lattice(self, lattice: Lattice, inverse: bool) -> Tensor:
        """Displacement at all nodes, (n1, ..., nd, pairs * d)."""
        pairs, *sizes, _ = self.local_codes.shape
        stacked = self.local_codes.movedim(0, -2).reshape(*sizes, -1)
        local = lattice.read_code(stacked, self.extent, self.config.code_reading)
        local = local.view(len(local), pairs, -1).movedim(1, 0).flatten(0, 1)
        points = lattice.node_points().to(local).clamp(-1, 1)
        features = fourier_features(points, self.frequencies)
        _, code = self._pairs(len(local))
        found = self.networks[int(inverse)](features.repeat(pairs, 1), local, code)
        return found.view(pairs, *lattice.node_shape, len(sizes)).movedim(0, -2).flatten(-2)

    def on_axes(self, axes: Sequence[Tensor], step: float) -> Tensor:
        """Displacement at a mesh of coordinates about 0, by a lattice: (pairs, X, Y, Z, 3)."""
        extent = torch.stack([axis.abs().max() for axis in axes]).cpu()
        lattice = Lattice.around(extent, torch.zeros(len(axes)), step, 1)
        matrices = [
            cubic_weights((axis.cpu() - nodes[0]) / step, len(nodes)).to(self.frequencies)
            for axis, nodes in zip(axes, lattice.nodes, strict=True)
        ]
        fine = separable(self.on_lattice(lattice, inverse=False), matrices)
        return fine.view(*fine.shape[:3], -1, 3).movedim(-2, 0)

    def prior(self) -> Tensor:
        """Mean latent prior of the pairs (NePhi, L_prior)."""
        return self.global_codes.norm(dim=-1).mean() + self.local_codes.norm(dim=-1).mean()

    def _pairs(self, points: int) -> tuple[Tensor, Tensor]:
        """The pair of each point (N,), and its global code (N, Cg)."""
        pairs = len(self.global_codes)
        which = torch.arange(pairs, device=self.global_codes.device)
        which = which.repeat_interleave(points // pairs)
        return which, self.global_codes[which]


class LatticeLosses(nn.Module):
    """A model together with its loss, so that one forward pass goes from a batch to a number.

    Parameters
    ----------
    model
        What is trained.
    config
        Loss, augmentation.
    settings
        Those of instance optimisation, with the loss of ``config``.
    extent
        Half the size of the box that the lattice fills, normalised, (3,).
    """

    def __init__(
        self,
        model: NePhiModel,
        config: TrainingConfig,
        settings: OptimisationSettings,
        extent: Tensor,
    ) -> None:
        super().__init__()
        self.model, self.config, self.settings, self.extent = model, config, settings, extent

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss to be minimised, of all stages that are trained, and the last one's parts."""
        loss, device = self.config.loss, self.model.frequencies.device
        seed = int(torch.randint(2**62, (1,), generator=generator))
        there = torch.Generator(device).manual_seed(seed)
        step = loss.node_mm / batch.scale_mm
        lattice = Lattice.draw(self.extent, step, loss.node_ratio, generator)
        total: Tensor | float = 0.0
        for stage in self.model.stages:
            trained = stage is self.model or is_trained(stage)
            volumes = batch.volumes(0), batch.volumes(1)
            with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
                field = self._field(stage, batch, volumes, there)
                with torch.autocast(device.type, enabled=False):
                    if trained:
                        parts = self._parts(field, batch, volumes, lattice, there)
                        parts = {'loss': self._weighted(parts), **parts}
                        total = total + parts['loss']
                    if stage is not self.model:
                        batch = batch.warped(field.on_axes(batch.axes, step))
        parts.pop('weighted_regularity')
        row = dict(zip(parts, torch.stack([*parts.values()]).tolist(), strict=True))
        if 'dice_loss' in row:
            row['dice_after'] = 1 - row['dice_loss']
        return total, row

    def _field(
        self,
        stage: NePhiModel,
        batch: Batch,
        volumes: tuple[Tensor, Tensor],
        generator: torch.Generator,
    ) -> FieldBatch:
        """What one stage predicts."""
        size, augmentation = stage.config.encoder.grid, self.config.augmentation
        with torch.autocast(stage.frequencies.device.type, enabled=False):
            cubes = batch.cubes(volumes, size, augmentation, generator)
        return FieldBatch(stage, *codes_of(stage, cubes))

    def _weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """The loss as a whole."""
        weights = {
            'similarity': 1.0,
            'weighted_regularity': 1.0,
            'bending': self.settings.bending_weight,
            'prior': self.settings.prior_weight,
            'dice_loss': self.config.loss.dice_weight,
        }
        return sum(weights[name] * value for name, value in parts.items() if name in weights)

    def _parts(
        self,
        field: FieldBatch,
        batch: Batch,
        volumes: tuple[Tensor, Tensor],
        lattice: Lattice,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Means of both directions."""
        device, pairs = field.frequencies.device, len(field.global_codes)
        samples = lattice.sample_points().to(device).view(*lattice.sample_shape, 3)
        samples = samples.expand(pairs, *samples.shape)
        matrices = lattice.to_samples(device)
        used = torch.ones(lattice.node_shape, dtype=torch.bool, device=device)
        bending_scale = BENDING_LENGTH_MM / batch.scale_mm / lattice.step**2
        hot = None
        if self.config.loss.dice_weight and batch.stack.labels is not None:
            hot = batch.one_hot(0), batch.one_hot(1)
        rows = []
        for inverse in (False, True):
            here, there = int(inverse), int(not inverse)
            at_nodes = field.on_lattice(lattice, inverse)
            fine = separable(at_nodes, matrices)
            moved = samples + fine.view(*lattice.sample_shape, pairs, 3).movedim(-2, 0)
            target = batch.read(volumes[here], samples, here)
            warped = batch.read(volumes[there], moved, there)
            points = self._random_points(pairs, generator)
            weighted, consistency, _ = point_regularity(field, points, inverse, self.settings)
            row = {
                'similarity': self._similarity(target, warped, lattice),
                'weighted_regularity': weighted,
                'regularity': consistency,
                'bending': bending_energy(at_nodes, used, bending_scale),
                'prior': field.prior(),
            }
            if hot is not None:
                same = batch.read(hot[here], samples, here)
                row['dice_loss'] = _dice_loss(same, batch.read(hot[there], moved, there))
            rows.append(row)
        return {name: (rows[0][name] + rows[1][name]) / 2 for name in rows[0]}

    def _similarity(self, target: Tensor, warped: Tensor, lattice: Lattice) -> Tensor:
        """Windowed NCC over all pairs, and a share of each pair's global one."""
        pairs, shape = len(target), lattice.sample_shape
        weight = target[:, 1].flatten(1)
        a, b = target[:, 0].flatten(1), warped[:, 0].flatten(1)
        windows = gaussian_windows(shape, self.settings.window, lattice.ratio)
        # Pairs are an axis like the others, along which nothing is averaged.
        windows = [torch.eye(pairs), *windows]
        local = windowed_ncc_loss(
            a.flatten(),
            b.flatten(),
            weight.flatten(),
            torch.arange(weight.numel(), device=weight.device),
            (pairs, *shape),
            [matrix.to(weight) for matrix in windows],
        )
        whole = [
            global_ncc_loss(fixed[:, None], moving[:, None], counted)
            for fixed, moving, counted in zip(a, b, weight, strict=True)
        ]
        return local + self.settings.global_weight * torch.stack(whole).mean()

    def _random_points(self, pairs: int, generator: torch.Generator) -> Tensor:
        """As many of the lattice's box for each pair as the settings say for a direction."""
        count = pairs * (self.settings.regularity_points // 2)
        device = self.model.frequencies.device
        draw = torch.rand(count, 3, generator=generator, device=device)
        return (draw * 2 - 1) * self.extent.to(device)


def _dice_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 - mean soft Dice over pairs and the labels that ``a`` has, both (B, K, X, Y, Z)."""
    a, b = a.flatten(2).float(), b.flatten(2).float()
    dice = 2 * (a * b).sum(dim=2) / (a.square() + b.square()).sum(dim=2).clamp_min(1e-6)
    present = (a.sum(dim=2) > 1).float()
    return 1 - (dice * present).sum() / present.sum().clamp_min(1)
