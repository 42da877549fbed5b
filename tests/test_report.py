"""Figures and page of one pair."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from data import GRIDS, SmoothWarp, make_grid, make_image, make_labels
from PIL import Image as Pillow
from report_data import HISTORY, HOSTILE, check_page, chromium, made_up_metrics, rendered

from nephi_pipe import report_maps, report_pictures
from nephi_pipe.errors import InputDataError
from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image
from nephi_pipe.report import (
    PairImages,
    load_figure,
    pair_figures,
    write_pair_report,
)
from nephi_pipe.report_drawing import FOLD_COLOUR, label_outlines, level_lines
from nephi_pipe.report_slices import PLANES, choose_slices, framing_mask, sample

CENTER = np.array([5.0, -12.0, 20.0])
KEYS = [
    'fixed', 'before', 'after', 'outline', 'labelsbefore', 'labelsafter', 'checkerboard', 'grid',
    'jacobian', 'dice', 'curve',
]  # fmt: skip


def ball(grid: Grid, radius: float = 24.0, at: np.ndarray = CENTER) -> Image:
    return Image(np.linalg.norm(grid.points() - at, axis=-1) < radius, grid)


@pytest.fixture(scope='module')
def images() -> PairImages:
    grid, warp = make_grid('oblique LAS', (40, 36, 30)), SmoothWarp(2.0)
    moved = Grid(grid.shape, grid.affine)
    points = warp.map_points(grid.points())
    labels = make_labels(grid)
    shifted = Image(np.roll(labels.data, 2, axis=0), grid)
    coarse = grid.resampled(5.0)
    fixed = make_image(grid)
    inside = ball(grid).data
    determinant = np.where(inside, np.exp(fixed.data / 120 - 0.4), 1.0).astype(np.float32)
    return PairImages(
        fixed.with_data(fixed.data * inside),
        Image(make_image(moved).data * inside, grid),
        Image((points[..., 0] * inside).astype(np.float32), grid),
        jacobian=Image(determinant, grid),
        displacement=warp.on_grid(coarse).astype(np.float32),
        displacement_grid=coarse,
        labels_fixed=labels,
        labels_before=shifted,
        labels_after=labels,
        fixed_mask=ball(grid),
    )


@pytest.fixture(scope='module')
def figures(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp('figures')
    return pair_figures(
        images, folder, 'sub-41_from-T1w_to-sub45', history=HISTORY, metrics=made_up_metrics()
    )


# slices


@pytest.mark.parametrize('kind', GRIDS)
def test_slices_are_upright_with_the_left_on_the_left(kind):
    """A spot to the right, in front and above lies right and above in every slice through it."""
    grid = GRIDS[kind]
    spot = CENTER + [9.0, 12.0, 8.0]
    layout = choose_slices(framing_mask(ball(grid), ball(grid))).through(spot)
    data = np.exp(-((grid.points() - spot) ** 2).sum(axis=-1) / 50).astype(np.float32)
    canvas = sample(layout, data, grid)
    for plane, (across, up, through) in PLANES.items():
        (tile,) = (
            tile
            for tile in layout.tiles
            if tile.plane == plane and tile.position_mm == spot[through]
        )
        part = canvas[tile.window]
        row, column = np.unravel_index(part.argmax(), part.shape)
        found = layout.points(tile)[row, column]
        assert np.abs(found - spot).max() < 2.5  # a voxel
        assert column > tile.width / 2 and row < tile.height / 2
        points, step = layout.points(tile), 1 / layout.pixels_per_mm
        assert np.isclose(points[0, 1, across] - points[0, 0, across], step)
        assert np.isclose(points[0, 0, up] - points[1, 0, up], step)


def test_pixel_is_the_inverse_of_points():
    layout = choose_slices(ball(GRIDS['oblique anisotropic']))
    for tile in layout.tiles:
        points = layout.points(tile)
        assert np.allclose(layout.pixel(tile, points[7, 3]), [tile.left + 3, tile.top + 7])


@pytest.mark.parametrize('kind', ['LPS', 'oblique anisotropic'])
def test_sampling_reproduces_a_linear_function_of_space(kind):
    grid = GRIDS[kind]
    layout = choose_slices(ball(grid, 12.0), margin_mm=0.0)
    data = (grid.points() @ [0.5, -1.0, 2.0]).astype(np.float32)
    canvas = sample(layout, data, grid)
    for tile in layout.tiles:
        expected = layout.points(tile) @ [0.5, -1.0, 2.0]
        assert np.abs(canvas[tile.window] - expected).max() < 1e-3


def test_slices_frame_the_mask_and_follow_its_volume():
    grid = make_grid('RAS', (60, 60, 60), 2.0)
    layout = choose_slices(ball(grid, 24.0), margin_mm=4.0)
    assert np.allclose(layout.lower, CENTER - 29, atol=2) and np.allclose(
        layout.upper, CENTER + 29, atol=2
    )
    positions = sorted(tile.position_mm for tile in layout.tiles if tile.plane == 'axial')
    # a ball has 20 % of its volume below -0.4257 radii (root of 2 - 3 t + t^3 = 0.8)
    assert np.allclose(positions[0], 20 - 0.4257 * 24, atol=1.5)
    assert np.allclose(positions[0] + positions[3], 40, atol=0.5)


def test_a_long_thin_box_does_not_make_a_huge_picture():
    grid = make_grid('RAS', (10, 10, 200), 4.0)
    layout = choose_slices(Image(np.ones(grid.shape, dtype=bool), grid))
    assert np.prod(layout.shape) < 2.2e6


def test_mask_is_found_without_one():
    grid = make_grid('RAS', (50, 50, 50))
    image = Image(np.where(ball(grid, 20).data, 100.0, 0.0).astype(np.float32), grid)
    layout = choose_slices(framing_mask(image))
    assert np.abs((layout.lower + layout.upper) / 2 - CENTER).max() < 1.5


# drawing


def test_level_lines_are_where_the_value_is():
    ramp = np.tile(np.arange(30.0) * 0.5, (20, 1))
    lines = level_lines(ramp, np.array([4.0, 8.0]), (100, 50))
    assert sorted(round(float(line[0, 0]), 3) for line in lines) == [108.0, 116.0]
    assert all(line[:, 1].min() == 50 and line[:, 1].max() == 69 for line in lines)


def test_label_outlines_run_round_the_label():
    grid = make_grid('RAS', (60, 60, 60), 1.0)
    labels = Image(np.where(ball(grid, 20).data, 7, 0), grid)
    layout = choose_slices(ball(grid, 20)).through(CENTER)
    tile = next(t for t in layout.tiles if t.plane == 'axial' and t.position_mm == CENTER[2])
    middle = layout.pixel(tile, CENTER)
    radii = [
        np.linalg.norm(line - middle, axis=1) / layout.pixels_per_mm
        for line in label_outlines(layout, labels)
        if abs(line[:, 0].mean() - middle[0]) < 3 and abs(line[:, 1].mean() - middle[1]) < 3
    ]
    assert len(radii) == 1 and np.abs(radii[0] - 20).max() < 0.9


def test_grid_lines_show_where_the_moving_grid_went(images, monkeypatch):
    """With u = +3 mm along x, the moving line x = 8 k is seen at the fixed x = 8 k - 3."""
    u = np.zeros((*images.displacement_grid.shape, 3), np.float32)
    u[..., 0] = 3.0
    shifted = replace(images, displacement=u)
    drawn = []
    original = report_pictures.level_lines
    monkeypatch.setattr(
        report_pictures, 'level_lines', lambda *a: drawn.append(original(*a)) or drawn[-1]
    )
    picture, _, caption = report_pictures._grid(report_pictures._Scene(shifted))
    step = float(re.search(r'every ([\d.]+) mm', caption)[1])
    layout, tile = picture.layout, picture.layout.tiles[0]
    x = layout.lower[0] + (np.concatenate(drawn[0])[:, 0] + 0.5 - tile.left) / layout.pixels_per_mm
    away = (x + 3) / step
    assert len(x) > 100 and np.abs(away - np.rint(away)).max() * step < 0.02
    y = layout.upper[1] - (np.concatenate(drawn[1])[:, 1] + 0.5 - tile.top) / layout.pixels_per_mm
    assert np.abs(y / step - np.rint(y / step)).max() * step < 0.02


def test_jacobian_picture_shows_the_lowest_point_as_a_fold(images, tmp_path):
    grid = images.fixed.grid
    determinant = np.ones(grid.shape, np.float32)
    where = np.array([14, 20, 12])
    determinant[tuple(where)] = -5.0
    determinant[0, 0, 0] = -9.0  # outside of the mask: not looked at
    pair = replace(images, jacobian=Image(determinant, grid))
    picture, _, caption = report_maps.draw_jacobian(report_pictures._Scene(pair))
    point = grid.to_world(where)
    spot = ', '.join(f'{value:.0f}' for value in point)
    assert f'Lowest value on the map: -5, ringed at ({spot}) mm.' in caption
    path = picture.save(tmp_path / 'j.png', 'jacobian', '', '')
    pixels = np.asarray(Pillow.open(path).convert('RGB'), dtype=int)
    colour = np.array([int(FOLD_COLOUR[i : i + 2], 16) for i in (1, 3, 5)])
    through = [
        tile
        for tile in picture.layout.tiles
        if np.isclose(tile.position_mm, point[PLANES[tile.plane][2]])
    ]
    assert len(through) == 3
    for tile in through:
        column, row = np.rint(picture.layout.pixel(tile, point)).astype(int)
        assert np.abs(pixels[row, column] - colour).max() < 8


def test_lowest_determinant_is_looked_for_inside_the_mask_only(images):
    grid = images.fixed.grid
    values = np.random.default_rng(0).uniform(0.5, 2.0, grid.shape).astype(np.float32)
    values[~images.fixed_mask.data] = -1.0
    for first_try in (20_000, 10):
        lowest, where = report_maps._lowest(Image(values, grid), images.fixed_mask, first_try)
        assert lowest == values[images.fixed_mask.data].min()
        assert values[tuple(np.rint(grid.to_index(where)).astype(int))] == np.float32(lowest)


def test_jacobian_caption_says_which_determinant(images):
    captions = {}
    for of in ('deformation', 'total'):
        scene = report_pictures._Scene(replace(images, jacobian_of=of))
        _, _, captions[of] = report_maps.draw_jacobian(scene)
    assert 'deformation alone' in captions['deformation']
    assert 'total map' in captions['total']


def test_checkerboard_has_both_images(images):
    fixed = images.fixed.with_data(np.where(images.fixed_mask.data, 1.0, 0.0).astype(np.float32))
    after = fixed.with_data(fixed.data * 0)
    after.data[3, 3, 3] = 1  # not constant
    scene = report_pictures._Scene(PairImages(fixed, after, after, fixed_mask=images.fixed_mask))
    picture, _, caption = report_pictures._checkerboard(scene)
    shown = picture.background[scene.inside]
    assert 0.35 < (shown > 0.5).mean() < 0.65
    assert re.search(r'Squares of \d+ mm', caption)


# files


def test_all_figures_are_written_and_say_what_they_are(figures):
    assert [figure.key for figure in figures] == KEYS
    for figure in figures:
        kind = 'svg' if figure.key in ('dice', 'curve') else 'png'
        assert figure.path.name == f'sub-41_from-T1w_to-sub45_desc-{figure.key}_T1w.{kind}'
        assert load_figure(figure.path) == figure
        assert figure.title and figure.caption
    modes = {f.key: Pillow.open(f.path).mode for f in figures if f.path.suffix == '.png'}
    assert modes['fixed'] == modes['checkerboard'] == 'L'
    assert modes['jacobian'] == 'RGB' and modes['outline'] == 'P'


def test_figures_are_the_same_bytes_again(images, figures, tmp_path):
    again = pair_figures(
        images, tmp_path, 'again', history=HISTORY, metrics=made_up_metrics(), suffix='ct'
    )
    for first, second in zip(figures, again, strict=True):
        assert first.path.read_bytes() == second.path.read_bytes()
    assert again[0].path.name == 'again_desc-fixed_ct.png'


def test_figures_without_labels_maps_and_metrics(images, tmp_path):
    bare = PairImages(images.fixed, images.before, images.after)
    keys = [figure.key for figure in pair_figures(bare, tmp_path, 'bare')]
    assert keys == ['fixed', 'before', 'after', 'outline', 'checkerboard']


def test_images_that_show_nothing_do_not_stop_the_report(images, tmp_path):
    nothing = images.fixed.with_data(np.zeros(images.fixed.grid.shape, np.float32))
    determinant = nothing.with_data(np.full(nothing.grid.shape, np.nan, np.float32))
    pair = PairImages(nothing, nothing, nothing, jacobian=determinant)
    assert len(pair_figures(pair, tmp_path, 'empty')) == 6


def test_displacement_on_another_grid_is_refused(images):
    with pytest.raises(InputDataError, match='displacement_grid'):
        PairImages(images.fixed, images.before, images.after, displacement=np.zeros((3, 3, 3, 3)))


@pytest.mark.parametrize('spoil', ['foreign', 'truncated', 'text', 'svg', 'gone'])
def test_a_file_that_is_no_figure_is_refused(figures, tmp_path, spoil):
    path = tmp_path / ('a.svg' if spoil == 'svg' else 'a.png')
    if spoil == 'foreign':
        Pillow.new('L', (4, 4)).save(path)
    elif spoil == 'truncated':
        path.write_bytes(figures[0].path.read_bytes()[:20000])
    elif spoil != 'gone':
        path.write_text('<svg>')
    with pytest.raises(InputDataError, match='not a figure of a report'):
        load_figure(path)


# pages


@pytest.fixture(scope='module')
def report(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp('report')
    return write_pair_report(
        folder / 'report.html',
        images,
        metrics=made_up_metrics(),
        history=HISTORY,
        provenance={'seed': 7, 'device': 'cpu', 'command': ['nephi', HOSTILE], HOSTILE: HOSTILE},
        seconds={'affine': 5.0, 'total': 60.0},
        label_names={1: 'Caudate', 2: HOSTILE},
        moving_name=HOSTILE,
        fixed_name='sub-45',
    )


def test_page_is_whole_safe_and_small(report):
    page = check_page(report)
    assert report.stat().st_size < 3_000_000
    assert [path.name for path in report.parent.iterdir()] == ['report.html']
    shown = HOSTILE.replace('\x1b', '\ufffd').replace('\u202e', '\ufffd').replace('\ud800', '?')
    assert page.text.count(shown) >= 5  # title, heading, structure, provenance's name and value
    assert len([a for _, a in page.tags if a.get('src') == 'x']) == 0


def test_page_has_every_figure_and_the_words(report):
    page = check_page(report)
    images = page.all('img')
    for word in ('Fixed', 'Before (affine)', 'After (NePhi)', 'Outline of the fixed image',
                 'Structures before', 'Structures after', 'Checkerboard',
                 'Deformed grid'):  # fmt: skip
        planes = [i['alt'] for i in images if i['alt'].startswith(word)]
        assert [p for p in PLANES if any(f'{p} slices at' in alt for alt in planes)] == list(
            PLANES
        )
    kinds = {image['src'].split(';')[0] for image in images}
    assert kinds == {'data:image/jpeg', 'data:image/png', 'data:image/svg+xml'}
    assert [a['class'] for a in images if a.get('class')].count('chart') == 2
    for word in ('Key figures', 'Each structure', 'Provenance', 'neurological', 'Caudate'):
        assert word in page.text
    flips = page.with_class('flip')
    assert [flip['aria-label'] for flip in flips] == ['Image shown', 'Labels shown']
    assert {a['role'] for a in flips} == {'group'}
    assert len(page.all('button')) == 3 + 2 + 2 + 1
    assert all(a['type'] == 'button' and a['aria-pressed'] == 'false' for a in page.all('button'))


def test_page_without_a_script_shows_every_picture(report):
    """Nothing but the transparent outline and the controls is hidden before the script ran."""
    page = check_page(report)
    hidden = [(tag, a) for tag, a in page.tags if 'hidden' in a]
    assert [tag for tag, _ in hidden] == ['div', 'figure', 'div']
    assert [a.get('class', 'over') for _, a in hidden] == ['bar', 'over', 'bar']


def test_figures_are_kept_when_asked(images, tmp_path):
    bare = PairImages(images.fixed, images.before, images.after)
    path = write_pair_report(tmp_path / 'pair.html', bare, figures_folder=tmp_path / 'figures')
    names = sorted(file.name for file in (tmp_path / 'figures').iterdir())
    assert 'pair_desc-after_figure.png' in names and len(names) == 5
    check_page(path)


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason='no Chromium')
def test_flip_works_in_a_browser(report, tmp_path):
    dom = rendered(report, tmp_path)
    assert re.findall('data-now="(.*?)"', dom) == ['after', 'labelsafter']
    assert dom.count('class="flip live"') == 2
    press = """
    const [first, second] = document.querySelectorAll('.flip'), seen = [];
    const note = () => seen.push(first.dataset.now + ':' + [...first.querySelectorAll('figure')]
      .filter(f => getComputedStyle(f).visibility === 'visible'
        && getComputedStyle(f).display !== 'none').map(f => f.dataset.key || 'over').join('+'));
    const key = k => first.querySelector('button').dispatchEvent(
      new KeyboardEvent('keydown', {key: k, bubbles: true}));
    note();
    first.querySelector('.stack').click(); note();
    first.querySelector('[data-show=fixed]').click(); note();
    key('3'); note(); key('ArrowRight'); note(); key('c'); note(); key('b'); note();
    first.querySelector('[data-show=before]').click(); note();
    document.body.dataset.seen = seen.join(' ');
    document.body.dataset.pressed = [...first.querySelectorAll('[aria-pressed=true]')]
      .map(b => b.textContent.trim()).join('|');
    document.body.dataset.other = second.dataset.now;
    document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;
    """
    dom = rendered(report, tmp_path, press)
    seen = re.search('data-seen="(.*?)"', dom)[1].split()
    assert seen == [
        'after:after', 'before:before', 'fixed:fixed', 'after:after', 'fixed:fixed',
        'fixed:fixed+over', 'after:after+over', 'before:before+over',
    ]  # fmt: skip
    assert re.search('data-pressed="(.*?)"', dom)[1] == 'Before (affine) 2|Contours C'
    assert re.search('data-other="(.*?)"', dom)[1] == 'labelsafter'
    assert int(re.search('data-wide="(.*?)"', dom)[1]) <= 0
