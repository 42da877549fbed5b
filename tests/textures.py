"""Textures and noise with which similarity and sampling are tried."""

import numpy as np
import torch
from scipy import ndimage

from nephi_pipe.geometry import Frame

FRAME = Frame((5.0, -12.0, 20.0), 40.0)
"""Around what ``intensity`` shows in the grids of ``data.py``."""


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(shape: tuple[int, ...] = (20, 22, 18), seed: int = 0, sigma: float = 1.5) -> np.ndarray:
    """Smooth random texture in [0, 1]."""
    rough = np.random.default_rng(seed).normal(size=shape)
    texture = ndimage.gaussian_filter(rough, sigma, mode='wrap')
    return ((texture - texture.min()) / np.ptp(texture)).astype(np.float32)
