"""A trained model: two images of a pair in, its pair of maps out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputDataError
from ..geometry import Frame, Grid, apply_affine
from .config import FieldConfig
from .deformation import NePhiField
from .encoder import Encoder, EncoderConfig
from .latent import LatentCode, smoothed
from .siren import ModulatedSiren, draw_frequencies

MOST_MM = 3000.0
"""The largest scale of a model; others come from a damaged file."""

PREDICTED_SMOOTHING = 0.2
"""Share of either neighbour in a node of a predicted code that moves points directly: with .1, .14
and .2 forward passes on six pairs of brains fold at .0016, .0007 and none of 900,000 points, and
their mean Dice is .7995, .7981 and .7965."""

_FINEST_NODES = 200
"""At most so many samples along an axis when an image is averaged onto the encoder's cube."""

_PLANES = 8
"""So many of the cube at once: what is made for their nodes stays small."""


class Scan(Protocol):
    """An image that is ready: intensities about [0, 1], zero outside of what is compared."""

    @property
    def data(self) -> np.ndarray:
        """Intensities, shape of the grid."""

    @property
    def grid(self) -> Grid:
        """Where they lie."""


@dataclass(frozen=True)
class ModelConfig:
    """What a model is, apart from its weights.

    Parameters
    ----------
    field, encoder
        Sizes of the maps and of the encoder.
    scale_mm
        Millimetres of one normalised unit: half the side of the cube that the encoder sees.
    modality
        Name of the preset by which the images were prepared.
    coarse
        The stage whose map warps the moving image before this one sees it, of the same scale;
        None where this is the only one.
    """

    field: FieldConfig
    encoder: EncoderConfig
    scale_mm: float
    modality: str = 'other'
    coarse: ModelConfig | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        coarse = {} if self.coarse is None else {'coarse': self.coarse.as_dict()}
        return {
            'field': self.field.as_dict(),
            'encoder': self.encoder.as_dict(),
            'scale_mm': self.scale_mm,
            'modality': self.modality,
            **coarse,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of :meth:`as_dict`; any error where something is amiss."""
        scale_mm, modality = float(values['scale_mm']), values['modality']
        if not 0 < scale_mm <= MOST_MM or not isinstance(modality, str):
            raise ValueError(f'a scale of {scale_mm} mm, the modality {modality!r}')
        field, encoder = FieldConfig(**values['field']), EncoderConfig(**values['encoder'])
        coarse = cls.from_dict(values['coarse']) if 'coarse' in values else None
        if coarse is not None and coarse.scale_mm != scale_mm:
            raise ValueError(f'scales of {coarse.scale_mm} and {scale_mm} mm in two stages')
        return cls(field, encoder, scale_mm, modality, coarse)


class NePhiModel(nn.Module):
    """Encoder, both MLPs and their frequencies: all that training finds.

    Unlike a fresh field, whose frame fits its pair, a model sees all pairs at one scale, so that
    one weight means the same deformation in mm everywhere.

    Parameters
    ----------
    config
        Sizes, scale and preparation.
    generator
        Source of every random number of the initialisation.

    Attributes
    ----------
    provenance
        How it was trained; empty for a new one.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.provenance: dict[str, Any] = {}
        self.encoder = Encoder(config.field, config.encoder, generator)
        self.register_buffer('frequencies', draw_frequencies(config.field, generator))
        self.networks = nn.ModuleList(ModulatedSiren(config.field, generator) for _ in range(2))
        self.coarse = None if config.coarse is None else NePhiModel(config.coarse, generator)

    @property
    def stages(self) -> list[NePhiModel]:
        """The models that predict one after the other, coarse to fine; this one comes last."""
        return [*([] if self.coarse is None else self.coarse.stages), self]

    def with_config(self, config: ModelConfig) -> NePhiModel:
        """The same weights, with a scale, a modality or numbers of nodes that they do not hold."""
        if config == self.config:
            return self
        model = NePhiModel(config, torch.Generator().manual_seed(0)).to(self.frequencies)
        model.load_state_dict(self.state_dict())
        return model

    def frame_for(self, frame: Frame, extent: Sequence[float]) -> tuple[Frame, list[float]]:
        """The model's own frame for a pair of which one that fits is given, and its extents.

        The scale is the model's, larger only where the pair would not fit into the cube.
        """
        if self.config.field.ndim != 3:
            raise InputDataError(
                f'The weights are for images with {self.config.field.ndim} axes; expected weights '
                'for volumes. Give others.'
            )
        scale_mm = max(self.config.scale_mm, frame.scale_mm)
        ratio = frame.scale_mm / scale_mm
        return Frame(frame.center_mm, scale_mm), [half * ratio for half in extent]

    def images(self, pair: Sequence[Scan], frame: Frame, affine: np.ndarray) -> Tensor:
        """What the encoder sees of a pair: (2, N, N, N), fixed and moving.

        ``affine`` (4x4, fixed mm to moving mm) brings the moving image to the fixed one.
        """
        size, device = self.config.encoder.grid, self.frequencies.device
        worlds = (np.eye(4), affine)
        return torch.stack(
            [
                read_cube(scan, frame, world, size, device)
                for scan, world in zip(pair, worlds, strict=True)
            ]
        )

    def predict(self, images: Tensor, extents: Sequence[Sequence[float]]) -> list[NePhiField]:
        """The maps of some pairs, differentiable in the model's weights.

        Parameters
        ----------
        images
            (B, 2, N, ..., N), see :meth:`images`.
        extents
            Half the size of each pair's box, normalised.
        """
        global_codes, local_codes = self.encoder(images)
        if self.config.field.code_skip:
            local_codes = smoothed(local_codes, PREDICTED_SMOOTHING)
        return self.fields(global_codes, local_codes, extents)

    def fields(
        self, global_codes: Tensor, local_codes: Tensor, extents: Sequence[Sequence[float]]
    ) -> list[NePhiField]:
        """The maps that codes of some pairs stand for, see :meth:`predict`."""
        return [
            _PredictedField(self, _PredictedCode(*codes), extent)
            for *codes, extent in zip(global_codes, local_codes, extents, strict=True)
        ]

    @torch.no_grad()
    def predict_into(
        self, field: NePhiField, pair: Sequence[Scan], frame: Frame, affine: np.ndarray
    ) -> None:
        """Give ``field``, which has the model's sizes, the maps of a pair; in place."""
        self.to(field.frequencies.device).eval()
        images = self.images(pair, frame, affine)
        found = self.predict(images[None], [field.extent.tolist()])[0]
        field.networks.load_state_dict(self.networks.state_dict())
        field.frequencies.copy_(self.frequencies)
        field.code.global_code.copy_(found.code.global_code)
        field.code.local_code.copy_(found.code.local_code)


class _PredictedCode(LatentCode):
    """A code that came from an encoder: not a parameter, but a function of the weights."""

    def __init__(self, global_code: Tensor, local_code: Tensor) -> None:
        nn.Module.__init__(self)
        self.global_code, self.local_code = global_code, local_code


class _PredictedField(NePhiField):
    """Maps that share a model's networks."""

    def __init__(self, model: NePhiModel, code: LatentCode, extent: Sequence[float]) -> None:
        nn.Module.__init__(self)
        self.config = model.config.field
        self.register_buffer('frequencies', model.frequencies)
        self.register_buffer('extent', torch.tensor(extent).to(model.frequencies))
        self.networks, self.code = model.networks, code


def read_cube(
    scan: Scan,
    frame: Frame,
    world_from_frame: np.ndarray,
    size: int,
    device: torch.device | str = 'cpu',
) -> Tensor:
    """An image at the nodes of a cube over [-1, 1]^3, zero outside of the image.

    Values are trilinear; where the nodes lie further apart than the voxels, means of several
    samples around a node, so that nothing falls between the nodes.

    Parameters
    ----------
    scan
        The image.
    frame
        The normalised coordinates.
    world_from_frame
        4x4, the frame's world to the image's world, mm.
    size
        Nodes along each axis; the outer ones lie at -1 and 1.

    Returns
    -------
    Tensor of shape (size, size, size), x first.
    """
    apart_mm = 2 * frame.scale_mm / (size - 1)
    finer = round(apart_mm / float(scan.grid.spacing.min()))
    finer = max(1, min(finer, _FINEST_NODES // size))
    # Cells around the nodes reach half a cell beyond the cube.
    theta = _to_grid_sample(scan.grid, frame, world_from_frame, size / (size - 1))
    last, middle, first, shift = torch.from_numpy(theta).float().to(device).unbind(1)
    along = (torch.arange(size * finer, device=device)[:, None] + 0.5) * (2 / (size * finer)) - 1
    plane = along * last + (along * middle)[:, None] + shift
    data = torch.from_numpy(np.ascontiguousarray(scan.data)).float().to(device)
    slabs = [
        F.grid_sample(data[None, None], (plane + planes[:, None, None])[None], align_corners=True)
        for planes in (along * first).split(_PLANES * finer)
    ]
    return torch.cat([F.avg_pool3d(slab, finer)[0, 0] for slab in slabs])


def _to_grid_sample(
    grid: Grid, frame: Frame, world_from_frame: np.ndarray, half_side: float
) -> np.ndarray:
    """3x4 matrix from [-1, 1]^3 over a cube of the frame to grid_sample's; both sides z first."""
    to_index = grid.inverse_affine @ world_from_frame
    scale = 2 / np.maximum(np.array(grid.shape) - 1, 1)
    matrix = scale[:, None] * to_index[:3, :3] * (frame.scale_mm * half_side)
    offset = scale * apply_affine(to_index, np.array(frame.center_mm)) - 1
    return np.concatenate([matrix[::-1, ::-1], offset[::-1, None]], axis=1)
