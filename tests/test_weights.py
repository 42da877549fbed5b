"""The weights that ship: which are taken, what the file is, and what it does to real brains."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nephi_pipe import register
from nephi_pipe.demo import DATASET
from nephi_pipe.geometry import apply_affine
from nephi_pipe.images import Image, load_labels
from nephi_pipe.overlap import dice
from nephi_pipe.training.checkpoint import load_model
from nephi_pipe.transforms import resample
from nephi_pipe.weights import chosen_weights, shipped_weights


def test_default_weights_are_chosen_where_they_help(tmp_path) -> None:
    own = tmp_path / 'own.safetensors'
    assert chosen_weights('default', 'brain', 0) == shipped_weights('brain')
    assert chosen_weights('default', 'brain', 20) == shipped_weights('brain')
    assert chosen_weights('default', 'brain', None) is None
    assert chosen_weights('default', 'lung', 20) is None
    assert chosen_weights('none', 'brain', 20) is None
    assert chosen_weights(own, 'brain', None) == own


def test_shipped_weights_are_small_described_and_whole() -> None:
    path = shipped_weights('brain')
    assert path.stat().st_size < 10e6 and path.with_suffix('.md').exists()
    model = load_model(path)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float16}
    used = {one['name'][:6]: one['use'] for one in model.provenance['data']}
    assert len(used) == 40
    assert all((use == 'training') == (int(name[4:]) <= 36) for name, use in used.items())
    assert not any(int(name[4:]) > 40 for name in used), 'sub-41 to 48 are only scored'


@pytest.mark.slow
def test_what_shipped_weights_predict_aligns_real_brains() -> None:
    """sub-43 of the demo to sub-45 at 2 mm, without a step: most of what optimising gives."""

    def side(name: str) -> tuple[Path, Image]:
        labels = DATASET / 'derivatives' / 'meshnet' / name / 'anat'
        return (
            DATASET / name / 'anat' / f'{name}_T1w.nii.gz',
            load_labels(next(labels.glob('*_dseg.nii.gz'))),
        )

    (fixed, fixed_labels), (moving, moving_labels) = side('sub-45'), side('sub-43')
    found = register(fixed, moving, steps=0)
    assert found.history == []
    assert found.provenance['weights'] == 'shipped, brain.safetensors'
    aligned = resample(
        moving_labels,
        lambda points: apply_affine(found.affine, points),
        fixed_labels.grid,
        'nearest',
    )
    before, after = (
        np.mean(list(dice(fixed_labels.data, warped.data.astype(int)).values()))
        for warped in (aligned, found.warp_labels(moving_labels))
    )
    assert after > before + 0.07
    points = found._dense.checked_points(found.fixed_grid)
    assert (found.exact_jacobian_determinant(points) <= 0).mean() < 0.002


def test_reading_weights_loads_no_compiler() -> None:
    """Which PyTorch loads for some operations without data: 1.5 s, 70 MB, for nothing."""
    code = (
        'import sys\n'
        'from nephi_pipe.training.checkpoint import load_model\n'
        'from nephi_pipe.weights import shipped_weights\n'
        'load_model(shipped_weights("brain"))\n'
        'assert "torch._dynamo" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
