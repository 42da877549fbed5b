"""The paper's 2D experiment: its shapes, what is told of a map, and that a network does learn."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import image as pictures

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import shapes  # noqa: E402
from benchmarks.shape_learning import (  # noqa: E402
    Learning,
    exact_map,
    field_of,
    losses,
    read,
    score,
    train,
    unseen,
)
from benchmarks.shape_pairs import SIZE, Shapes, draw_pairs, pixels  # noqa: E402


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, hollow: bool = False) -> Shapes:
    return Shapes.draw(torch.full((count,), hollow), seeded(3))


@pytest.fixture(scope='module')
def short():
    """A training of a few steps."""
    return Learning(points=8, steps=30, pairs=2, warm_up=5)


@pytest.fixture(scope='module')
def trained(short):
    return train(short)


def test_shapes_have_their_area_and_stay_inside_the_image() -> None:
    some = drawn(40)
    area = some.contain(pixels().expand(40, -1, -1)).float().mean(dim=1) * 4
    assert torch.allclose(area, math.pi * some.radius**2, rtol=0.04)
    assert 10 < some.triangle.sum() < 30
    images = some.images()
    border = torch.cat([images[:, [0, -1]].flatten(1), images[:, :, [0, -1]].flatten(1)], dim=1)
    assert border.max() < 1e-3 and images.amax(dim=(1, 2)).min() > 0.99


def test_a_triangle_has_three_equal_sides() -> None:
    some = drawn(40)
    angles = some.turn[:, None] + 2 * math.pi * torch.arange(3) / 3
    side = math.sqrt(4 * math.pi / math.sqrt(3)) * some.radius
    corners = torch.stack([angles.cos(), angles.sin()], dim=-1) * side[:, None, None] / 3**0.5
    for share, inside in ((0.99, True), (1.01, False)):
        points = some.center[:, None] + share * corners
        assert (some.contain(points)[some.triangle] == inside).all()


def test_only_the_wall_of_a_hollow_shape_is_bright() -> None:
    some = drawn(20, hollow=True)
    bright, inside = some.images() > 0.5, some.contain(pixels().expand(20, -1, -1))
    assert not (bright.flatten(1) & ~inside).any()
    middle = read(some.images(), some.center[:, None])
    assert middle.max() < 0.01 and (bright.sum(dim=(1, 2)) > 0.3 * inside.sum(dim=1)).all()


def test_pairs_are_of_the_same_kind_and_of_any_form() -> None:
    fixed, moving = draw_pairs(40, seeded())
    assert torch.equal(fixed.hollow, moving.hollow) and fixed.hollow.sum() == 20
    assert not torch.equal(fixed.triangle, moving.triangle)


def test_an_image_is_read_x_first() -> None:
    ramp = (pixels() @ torch.tensor([1.0, 3.0])).view(1, SIZE, SIZE)
    points = 2 * torch.rand(1, 50, 2, generator=seeded()) - 1
    expected = points @ torch.tensor([1.0, 3.0])
    assert torch.allclose(read(ramp, points), expected, atol=1e-5)


def test_the_loss_falls_on_pairs_that_were_not_seen(short, trained) -> None:
    model, told = trained
    fresh, _ = train(Learning(points=8, steps=1, pairs=1, rate=0.0))
    found = [
        losses(each, draw_pairs(8, seeded(7)), short, seeded(8))[1] for each in (fresh, model)
    ]
    assert found[1]['similarity'] < found[0]['similarity'] - 0.02
    assert found[0]['regularity'] == 0 < found[1]['regularity'] < 0.1
    assert [row['step'] for row in told['losses']] == list(range(3, 31, 3)) and told['cpu_s'] > 0


def test_determinants_are_those_of_the_map(trained) -> None:
    model, _ = trained
    _, field = unseen(model, 2)
    moved, determinants = exact_map(field)
    spacing, grid = 2 / (SIZE - 1), moved.view(2, SIZE, SIZE, 2)
    columns = torch.gradient(grid, spacing=spacing, dim=(1, 2))
    central = torch.linalg.det(torch.stack(columns, dim=-1))[:, 1:-1, 1:-1]
    exact = determinants.view(2, SIZE, SIZE)[:, 1:-1, 1:-1]
    assert (exact - 1).abs().mean() > 0.02
    assert (central - exact).abs().mean() < 0.1 * (exact - 1).abs().mean()


def test_a_map_that_does_nothing_keeps_dice_and_does_not_fold() -> None:
    still, _ = train(Learning(points=8, steps=1, pairs=1, rate=0.0))
    for found in score(still, 6).values():
        assert found['maps'] == 6 and found['dice'] == found['dice_before'] < 0.9
        assert found['folds'] == 0 and found['least_determinant'] == 1


def test_settings_that_are_done_are_not_run_again(tmp_path, capsys, monkeypatch) -> None:
    page = tmp_path / 'RESULTS.md'
    page.write_text('Before.\n<!-- shapes: begin -->\n<!-- shapes: end -->\nAfter.\n')
    line = ['--out', str(tmp_path / 'out'), '--steps', '1', '--test-pairs', '2', '--threads', '1']
    assert shapes.main([*line, '--points', '4']) == 0
    first = json.loads((tmp_path / 'out' / 'points-4.json').read_text())

    line += ['--points', '4', '8', '--results', str(page)]
    line += ['--figure', str(tmp_path / 'shapes.png')]
    assert shapes.main(line) == 0
    text = page.read_text()
    rows = [row.split(' | ')[:2] for row in text.splitlines() if row.startswith('| ')][2:]
    assert rows == [['| 4', 'filled'], ['| 4', 'hollow'], ['| 8', 'filled'], ['| 8', 'hollow']]
    assert text.startswith('Before.') and text.endswith('After.\n')
    assert json.loads((tmp_path / 'out' / 'points-4.json').read_text()) == first
    assert pictures.imread(tmp_path / 'shapes.png').std() > 0.1

    monkeypatch.setattr(shapes, 'run', lambda *_: pytest.fail('everything is done already'))
    capsys.readouterr()
    assert shapes.main(line) == 0
    assert '1 steps of 16 new pairs' in capsys.readouterr().out


def test_codes_of_a_batch_are_those_of_its_pairs(trained) -> None:
    model, _ = trained
    images = torch.stack([each.images() for each in draw_pairs(3, seeded(5))], dim=1)
    together, alone = field_of(model, images), field_of(model, images[1:2])
    assert torch.allclose(together.local_codes[1], alone.local_codes[0], atol=1e-4)
