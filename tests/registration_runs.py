"""Registrations with tiny settings, and a brain and a warp to try them on."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from small_pair import small_brain

from nephi_pipe import register, registration
from nephi_pipe.field.config import FieldConfig
from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image
from nephi_pipe.learning.settings import Level, OptimisationSettings
from nephi_pipe.presets import Preset
from nephi_pipe.simulate import SimulatedPair, simulated_pair

FIELD = FieldConfig(frequencies=16, width=32, global_channels=4, local_channels=8, local_size=12)
SETTINGS = OptimisationSettings(
    levels=(Level(1.0, 5.4, 2, 0.9),),
    steps=25,
    similarity='windowed-ncc',
    regularity_points=200,
    network_rate=3e-3,
    code_rate=2e-2,
)
SIMILARITY = {'brain': 'windowed-ncc', 'lung': 'local-ncc', 'other': 'mind'}
RANGE = {'lung': (-1000.0, 0.0)}


def quickly(fixed: Image, moving: Image, **options) -> registration.Registration:
    """One thread, a fresh field, the images aligned as they are unless told otherwise."""
    defaults = {'affine': False, 'weights': 'none', 'threads': 1}
    return register(fixed, moving, **{**defaults, **options})


def make_tiny(patch: pytest.MonkeyPatch, field: FieldConfig = FIELD) -> None:
    """Presets of every modality with a tiny field and few steps, and no structures."""

    def tiny(modality: str, sloppy: bool = False) -> Preset:
        settings = replace(SETTINGS, similarity=SIMILARITY[modality])
        return Preset(field, settings, RANGE.get(modality))

    patch.setattr(registration, 'preset', tiny)
    patch.setattr(registration, 'chosen_structures', lambda *_: None)
    patch.setattr('nephi_pipe.result.EXACT_POINTS', 5000)
    patch.setattr('nephi_pipe.result.LOWEST_POINTS', 500)


@pytest.fixture(scope='module')
def tiny_presets() -> Iterator[None]:
    """Presets of every modality are tiny in this module."""
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        yield


@pytest.fixture(scope='session')
def pair() -> SimulatedPair:
    """A brain, shrunk to 3/5 of its size, and a warp of it that is known."""
    shrink = np.diag([0.6, 0.6, 0.6, 1.0])
    image, labels = (
        Image(part.data, Grid(part.grid.shape, shrink @ part.grid.affine))
        for part in small_brain()
    )
    return simulated_pair(image, labels, magnitude_mm=5.0, smoothness_mm=24.0, landmarks=1000)
