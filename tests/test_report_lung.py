"""The report of a pair of lungs, from a breath that is known."""

from __future__ import annotations

import re

import numpy as np
import pytest
from lung_data import SHAPE, affine, breathe, chest, landmarks
from report_data import check_page, made_up_metrics

from nephi_pipe.geometry import Grid
from nephi_pipe.images import Image
from nephi_pipe.landmark_errors import LandmarkPairs
from nephi_pipe.presets.views import view
from nephi_pipe.report import PairImages, pair_section, write_pair_report
from nephi_pipe.report_charts import landmark_chart
from nephi_pipe.report_maps import draw_jacobian, draw_landmarks_before, draw_motion
from nephi_pipe.report_numbers import headline, key_figures
from nephi_pipe.report_pair import charted_errors, registered_images
from nephi_pipe.report_pictures import _Scene, draw_pictures
from nephi_pipe.report_slices import PLANES
from nephi_pipe.transforms import resample

STRETCH = 1.2


class KnownBreath:
    """What a registration would find if it found the truth."""

    def __init__(self, grid, mask, stretch=STRETCH):
        self.fixed_grid, self.fixed_mask, self.stretch = grid, mask, stretch
        self.affine = np.eye(4)

    @property
    def inverse(self):
        return KnownBreath(self.fixed_grid, self.fixed_mask, 1 / self.stretch)

    def warp_points(self, points):
        return breathe(points, self.stretch)

    def warp_labels(self, labels):
        return resample(labels, self.warp_points, self.fixed_grid, 'labels')

    def displacement(self, grid):
        return self.warp_points(grid.points()) - grid.points()


@pytest.fixture(scope='module')
def images():
    """Expiration fixed; the map is the truth and what came before it is nothing."""
    grid = Grid(SHAPE, affine())
    fixed, mask = chest()
    moving, moving_mask = chest(STRETCH)
    points = landmarks()
    moved = grid.points()
    fixed, moving = (Image(data.astype(np.float32), grid) for data in (fixed, moving))
    return PairImages(
        fixed,
        moving,
        fixed,
        jacobian=Image(np.full(SHAPE, STRETCH, dtype=np.float32), grid),
        displacement=(breathe(moved, STRETCH) - moved).astype(np.float32),
        fixed_mask=Image(mask, grid),
        labels_fixed=Image(mask.astype(np.uint8), grid),
        labels_before=Image(moving_mask.astype(np.uint8), grid),
        labels_after=Image(mask.astype(np.uint8), grid),
        jacobian_of='total',
        labels_name='lungs',
        landmarks_fixed=points,
        landmarks_before=breathe(points, STRETCH),
        landmarks_after=points,
    )


@pytest.fixture(scope='module')
def scene(images):
    return _Scene(images, view('lung'))


def test_lungs_are_shown_in_two_planes_and_others_in_three(images, scene):
    assert scene.layout.planes == ('coronal', 'sagittal')
    assert len(scene.layout.blocks) == 2 and len(scene.layout.tiles) == 8
    assert _Scene(images).layout.planes == tuple(PLANES)


def test_intensities_are_those_of_the_window(scene):
    """Air is black, water white, and lungs of -840 HU are dark."""
    tile = scene.layout.tiles[0]
    shown = scene.fixed[tile.window]
    inside = scene.inside[tile.window]
    assert 0.05 < np.median(shown[inside]) < 0.4
    assert shown.max() == 1


def test_motion_is_the_length_of_the_displacement(images, scene):
    picture, title, caption = draw_motion(scene)
    assert title == 'Motion'
    # Of a point z mm below the apex 0.2 z; the lungs reach from 5 to 175 mm below it.
    mean, most = map(float, re.findall(r': ([\d.]+) on average .* ([\d.]+) at most', caption)[0])
    assert mean == pytest.approx(0.2 * 90, abs=2)
    assert most == pytest.approx(0.2 * 175, abs=3)
    assert draw_motion(_Scene(images)) is None


def test_change_of_volume_is_that_of_the_whole_map(scene):
    _, title, caption = draw_jacobian(scene)
    assert title == 'Local change of volume'
    assert 'its affine included' in caption and 'Lowest value on the map: 1.2' in caption


def test_each_landmark_is_on_one_slice_of_each_plane(images, scene):
    picture, _, caption = draw_landmarks_before(scene)
    dots = [line for line in picture.axes.lines if line.get_marker() == 'o']
    places = np.concatenate([line.get_xydata() for line in dots])
    assert len(places) == 2 * len(images.landmarks_fixed)
    point = images.landmarks_fixed[0]
    own = [
        min(
            (tile for tile in scene.layout.tiles if tile.plane == plane),
            key=lambda tile: abs(tile.position_mm - point[PLANES[plane][2]]),
        )
        for plane in scene.layout.planes
    ]
    for tile in own:
        pixel = scene.layout.pixel(tile, point)
        assert np.linalg.norm(places - pixel, axis=1).min() < 1e-6
    errors = np.linalg.norm(images.landmarks_before - images.landmarks_fixed, axis=1)
    assert f'Their mean length is {errors.mean():.2f} mm' in caption


def test_pictures_are_chosen_by_the_view_and_by_what_is_there(images):
    keys = {key for key, *_ in draw_pictures(images, view('lung'))}
    assert {'motion', 'jacobian', 'landmarksbefore', 'landmarksafter', 'labelsafter'} <= keys
    assert 'motion' not in {key for key, *_ in draw_pictures(images)}


@pytest.fixture(scope='module')
def gather(images):
    """``registered_images`` of the breath, with whatever is given beside the images."""
    registration = KnownBreath(images.fixed.grid, images.fixed_mask)

    def gathered(modality='lung', **given):
        pair = images.fixed, images.before, images.fixed
        return registered_images(registration, *pair, view(modality), **given)

    return gathered


def masks_of(images):
    moving = images.labels_before.with_data(images.labels_before.data > 0)
    return images.fixed_mask, moving


def test_masks_of_lungs_are_outlined_before_and_after(images, gather):
    shown = gather(masks=masks_of(images))
    assert shown.labels_name == 'lungs' and shown.jacobian_of == 'total'
    fixed = shown.labels_fixed.data > 0
    assert np.array_equal(fixed, images.fixed_mask.data)
    wrong = [
        np.mean((labels.data > 0) != fixed) for labels in (shown.labels_before, shown.labels_after)
    ]
    assert wrong[1] < 0.2 * wrong[0]
    assert shown.labels_after.data.dtype.kind == 'u'


def test_label_maps_are_outlined_rather_than_masks(images, gather):
    """Where the moving image has labels; and masks only of an organ, and only of both images."""
    labels = images.labels_fixed, images.labels_before, images.labels_after
    shown = gather(masks=masks_of(images), labels=labels)
    assert shown.labels_name == 'structures' and shown.labels_after is images.labels_after
    assert gather('brain', masks=masks_of(images)).labels_fixed is None
    assert gather(masks=(images.fixed_mask, None)).labels_fixed is None


def test_landmarks_are_brought_back_to_the_fixed_image(images, gather):
    points = landmarks()
    pairs = LandmarkPairs([str(i) for i in range(len(points))], points, breathe(points, STRETCH))
    shown = gather(landmarks=pairs)
    assert np.allclose(shown.landmarks_before, pairs.moving)
    assert np.allclose(shown.landmarks_after, points)
    errors = charted_errors(KnownBreath(images.fixed.grid, images.fixed_mask), pairs)
    assert np.allclose(errors['before'], np.linalg.norm(pairs.moving - points, axis=1))
    assert np.allclose(errors['after'], 0)
    assert gather().landmarks_fixed is None


def test_the_chart_of_landmarks_rises_with_each_of_them():
    svg = landmark_chart([4.0, 1.0, 2.0, 3.0], [0.5, 0.25, 1.0, 0.75])
    before, after = re.findall(r'<path class="[nl]" d="M58 \d+((?:H[\d.]+V[\d.]+)+)', svg)
    for line, last in ((before, 428), (after, 58 + 370 / 4)):
        steps = re.findall(r'H([\d.]+)V([\d.]+)', line)
        assert len(steps) == 4
        assert float(steps[-1][0]) == pytest.approx(last, abs=0.1)  # of 4 mm
        heights = [float(height) for _, height in steps]
        assert np.allclose(np.diff(heights), -190 / 4)
    assert landmark_chart([1.0], [1.0]) == ''


def test_numbers_of_the_lungs_are_shown():
    metrics = made_up_metrics()
    tiles = {label: value for label, value, _ in headline(metrics)}
    assert tiles['Dice of the masks'] == '0.910 → 0.970'
    assert tiles['Volume, moving to fixed'] == '1.230'
    rows = {row.name: row for row in key_figures(metrics)}
    assert rows['Ratio by the masks'].values == ('1.200 (+20.0 %)',)
    assert rows['Jacobian against masks'].values == ('+2.5 %',)
    assert rows['Volume of the masks, fixed → moving, ml'].values == ('2,000 → 2,400',)
    assert '35.27 without any registration' in rows['Landmark error (TRE), mean, mm'].note
    assert rows['Local change, median (5th to 95th percentile)'].values == (
        '1.200 (0.900 to 1.500)',
    )


def test_page_is_whole_and_safe(images, tmp_path):
    errors = {'before': [3.0, 4.0], 'after': [0.5, 1.0]}
    path = write_pair_report(
        tmp_path / 'pair.html',
        images,
        metrics=made_up_metrics(),
        landmark_errors=errors,
        view=view('lung'),
    )
    page = check_page(path)
    alts = [image['alt'] for image in page.all('img')]
    assert not [alt for alt in alts if 'axial' in alt]
    assert [alt for alt in alts if alt.startswith('Motion, coronal slices')]
    assert [alt for alt in alts if alt.startswith('Landmark errors, chart')]
    for words in ('Lungs after (NePhi)', 'Landmarks before (affine)', 'Change of volume'):
        assert words in page.text
    brain = {key: value for key, value in made_up_metrics().items() if key != 'volume'}
    assert 'Change of volume' not in pair_section([], brain, title='a brain')
