"""The counting of `python -m benchmarks profile`, against torch's own, and its variants."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.__main__ import MODULES, main  # noqa: E402
from benchmarks.step_operations import (  # noqa: E402
    Rows,
    gradient_operations,
    step_operations,
    value_operations,
)
from benchmarks.step_profile import KINDS, kinds_of, product_speed  # noqa: E402
from benchmarks.step_tables import markdown  # noqa: E402
from benchmarks.step_variants import VARIANTS, PointStep  # noqa: E402
from nephi_pipe.field.config import FieldConfig  # noqa: E402
from nephi_pipe.field.deformation import NePhiField  # noqa: E402
from nephi_pipe.field.siren import fourier_features  # noqa: E402
from nephi_pipe.geometry import Frame, Grid  # noqa: E402
from nephi_pipe.learning.volume import Volume  # noqa: E402

# More nodes than points, so that the local code's part is cheaper at the points.
TINY = FieldConfig(
    frequencies=6,
    width=12,
    global_channels=3,
    local_channels=4,
    local_size=7,
    code_reading='cubic',
)
POINTS = 40


def counted(task) -> int:
    """Operations of the matrix products that torch sees, less those of many small ones."""
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **other: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        task()
    found = counter.get_flop_counts()['Global']
    return sum(count for name, count in found.items() if 'bmm' not in str(name))


@pytest.fixture
def field() -> NePhiField:
    return NePhiField(TINY, torch.Generator().manual_seed(0))


def test_operations_of_values_are_torch_s(field):
    network, points = field.networks[0], torch.rand(POINTS, 3)
    features = fourier_features(points, field.frequencies)
    local = torch.rand(POINTS, 4, requires_grad=True)
    found = counted(lambda: network(features, local, field.code.global_code).sum().backward())
    assert found == value_operations(TINY, POINTS)


@pytest.mark.parametrize('moved', [False, True])
def test_operations_of_gradients_are_torch_s(field, moved):
    points = torch.rand(POINTS, 3, requires_grad=moved)

    def task() -> None:
        value, gradient = field.displacement_and_gradient(points)
        (gradient.sum() if moved else value.sum() + gradient.sum()).backward()

    expected = gradient_operations(TINY, POINTS, moved)
    # The code also computes the second map's displacement, which nobody asks for.
    unasked = 2 * POINTS * 3 * 12 if moved else 0
    assert counted(task) == expected + unasked


def make_step(variant, dtype=torch.float32) -> PointStep:
    generator = torch.Generator().manual_seed(1)
    grid = Grid((9, 9, 9), np.diag([10.0, 10.0, 10.0, 1.0]))
    frame = Frame((40.0, 40.0, 40.0), 50.0)
    images = torch.rand(2, 2, 9, 9, 9, generator=generator, dtype=dtype)
    volumes = tuple(Volume(image, grid, frame, np.eye(4)) for image in images)
    points = torch.rand(POINTS, 3, generator=generator, dtype=dtype) - 0.5
    return PointStep(TINY, volumes, points, points[:10].clone(), variant)


def test_a_step_does_hardly_more_than_it_must():
    step = make_step(VARIANTS['as it is'])
    must = sum(step_operations(TINY, Rows(POINTS, 10)))
    assert must < counted(step) < 1.1 * must
    unfolded = make_step(VARIANTS['codes and features side by side, no folding'])
    assert counted(unfolded) > counted(step)


def test_every_variant_is_the_same_step():
    losses, gradients = [], []
    for variant in VARIANTS.values():
        step = make_step(variant, torch.float64)
        loss = step.similarity() + step.regularity()
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in step.field.parameters()])
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-9)
    for found in gradients[1:]:
        for one, expected in zip(found, gradients[0], strict=True):
            scale = expected.abs().max()
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-9 * float(scale))


def test_shares_add_up_and_products_have_a_speed():
    shares = kinds_of(make_step(VARIANTS['as it is']), 1)
    assert sum(shares.values()) == pytest.approx(1) and set(KINDS) < set(shares)
    assert shares['matrix products'] > 0 and shares['optimiser'] > 0
    assert product_speed((64, 64, 64), 1) > 0


def test_tables_tell_the_fraction():
    step = {
        'operations': {'similarity': 8e9, 'regulariser': 2e9},
        'speed': 100.0,
        'seconds': {'as it is': 0.2, 'plain': 0.3, 'regulariser': 0.1},
        'kinds': {'matrix products': 0.6, 'everything else': 0.4},
    }
    level = {
        'level': {'node_mm': 8.0},
        'rows': {'values': 1000, 'gradients': 50},
        'operations': 3e9,
        'speed': 100.0,
        'seconds': 0.1,
        'wall': 0.1,
    }
    text = markdown({
        'processor': '2 x X', 'torch': 'T', 'threads': 1, 'repeats': 3, 'points': [10_000, 500],
        'machine': {'2 x 2 x 2': 99.6}, 'steps': {'published': step}, 'levels': [level],
    })  # fmt: skip
    assert '| published | 10.0 | 2.0 | 100 | 200 | 0.50 | 100 | 0.20 | 0.80 |' in text
    assert (
        '| plain | 300 | 1.50 |' in text and '| 8 | 1,000 | 50 | 3.0 | 100 | 100 | 0.30 |' in text
    )


def test_the_command_is_called_profile(capsys):
    assert MODULES['profile'] == 'step_profile'
    with pytest.raises(SystemExit) as ended:
        main(['profile', '--help'])
    assert ended.value.code == 0 and '--repeats' in capsys.readouterr().out
