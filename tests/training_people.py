"""People to train on: one brain at 6 mm, warped a few times."""

from pathlib import Path

import numpy as np
import pytest
from small_pair import small_brain

from nephi_pipe.images import save_image
from nephi_pipe.learning import affine as affine_stage
from nephi_pipe.simulate import simulated_pair


def aligned(*_, **__) -> np.ndarray:
    """Stands for the affine search where images are aligned already."""
    return np.eye(4)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """No affine search."""
    patch.setattr(affine_stage, 'estimate_affine', aligned)


def make_people(folder: Path, count: int = 3) -> dict[str, list[Path]]:
    """Images, masks and label maps."""
    found = {'images': [], 'masks': [], 'labels': []}
    for number in range(count):
        person = simulated_pair(*small_brain(6.0), seed=number, landmarks=10)
        image, labels = person.moving, person.moving_labels.data
        kinds = {'images': image.data, 'masks': labels > 0, 'labels': labels.astype(np.int16)}
        for kind, data in kinds.items():
            path = folder / f'{number}_{kind}.nii.gz'
            found[kind].append(save_image(path, data, image.grid))
    return found


@pytest.fixture
def quick(monkeypatch) -> pytest.MonkeyPatch:
    """No affine search in a test."""
    make_quick(monkeypatch)
    return monkeypatch


@pytest.fixture(scope='module')
def people(tmp_path_factory) -> dict[str, list[Path]]:
    """Images, masks and label maps of three people, the same for the tests of a file."""
    return make_people(tmp_path_factory.mktemp('people'))
