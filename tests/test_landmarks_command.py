"""``nephi landmarks``: DIR-Lab's voxel indices in the world of an image."""

from pathlib import Path

import numpy as np
import pytest
from data import GRIDS, make_grid

from nephi_pipe.cli import main
from nephi_pipe.dirlab import in_dirlab_order, read_dirlab_points
from nephi_pipe.images import save_image
from nephi_pipe.landmarks import read_points

INDICES = np.array([[1, 1, 1], [12, 3, 7], [40, 36, 30], [5, 30, 2]])


@pytest.fixture
def indices(tmp_path) -> Path:
    """A file as DIR-Lab writes it: tabs, and a line end at the end."""
    path = tmp_path / 'case_eBH_xyz.txt'
    path.write_text('\n'.join('\t'.join(map(str, row)) for row in INDICES) + '\n')
    return path


def error_of(capsys, *arguments) -> tuple[int, str]:
    code = main(['landmarks', *map(str, arguments)])
    message = capsys.readouterr().err
    assert 'Traceback' not in message and message.count('\n') == 1
    return code, message


def convert(tmp_path, *arguments) -> np.ndarray:
    output = tmp_path / 'landmarks.tsv'
    assert main(['landmarks', *map(str, arguments), '-o', str(output)]) == 0
    assert output.read_text().startswith('x\ty\tz\n')
    return read_points(output).points


def test_size_and_spacing_put_the_first_voxel_at_the_origin(tmp_path, indices):
    points = convert(tmp_path, indices, '--size', 40, 36, 30, '--spacing', 0.5, 0.75, 2.5)
    expected = -(INDICES - 1) * [0.5, 0.75, 2.5]
    np.testing.assert_allclose(points, expected, atol=6e-4)


@pytest.mark.parametrize('axes', ['LPS', 'RAS', 'LAS', 'PIR', 'oblique LAS'])
def test_the_voxels_of_an_image_may_have_any_order(tmp_path, axes):
    grid = make_grid(axes, (20, 24, 28), (1.5, 2.0, 2.5))
    image = save_image(tmp_path / 'image.nii.gz', np.zeros(grid.shape, np.uint8), grid)
    ordered = in_dirlab_order(grid)
    last, corner = tmp_path / 'last.txt', np.array(ordered.shape)
    last.write_text('1 1 1\n{} {} {}\n{} 1 1\n'.format(*corner, corner[0]))
    first, opposite, left = convert(tmp_path, last, '--like', image)
    assert np.abs(left - first).argmax() == 0 and left[0] < first[0]
    if not axes.startswith('oblique'):
        # The first voxel is furthest to the right, in front and on top.
        assert (first - opposite > 0).all()
    for point in (first, opposite, left):
        index = grid.to_index(point)
        ends = np.array(grid.shape) - 1
        assert (np.minimum(np.abs(index), np.abs(index - ends)) < 0.01).all()


@pytest.mark.parametrize('name', sorted(GRIDS))
def test_the_order_of_dir_lab_keeps_every_voxel_where_it_is(name):
    grid = GRIDS[name]
    ordered = in_dirlab_order(grid)
    assert sorted(ordered.shape) == sorted(grid.shape)
    directions = np.diag(ordered.direction)
    assert (directions < 0.0).all() and (np.abs(directions) > 0.5).all()
    corners = [np.sort(g.corners().round(6), axis=0) for g in (grid, ordered)]
    np.testing.assert_allclose(*corners, atol=1e-6)


def test_both_files_of_a_pair_in_one_world(tmp_path, indices):
    second = tmp_path / 'iBH.txt'
    second.write_text('\n'.join(' '.join(map(str, row)) for row in INDICES + [0, 1, 0]))
    first, moved = (tmp_path / name for name in ('fixed.tsv', 'moving.tsv'))
    code = main(
        ['landmarks', str(indices), str(second), '--size', '40', '37', '31']
        + ['--spacing', '1', '1', '2.5', '-o', str(first), str(moved)]
    )
    assert code == 0
    shift = read_points(moved).points - read_points(first).points
    np.testing.assert_allclose(shift, np.tile([0.0, -1.0, 0.0], (4, 1)), atol=1e-9)


def test_a_missing_line_is_found(capsys, tmp_path, indices):
    short = tmp_path / 'iBH.txt'
    short.write_text(''.join(indices.read_text().splitlines(keepends=True)[:3]))
    code, message = error_of(
        capsys, indices, short, '--size', 40, 36, 30, '--spacing', 1, 1, 1,
        '-o', tmp_path / 'a.tsv', tmp_path / 'b.tsv',
    )  # fmt: skip
    assert code == 65 and 'has 4 landmarks' in message and 'has 3' in message
    assert not list(tmp_path.glob('*.tsv'))


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('', 'is empty'),
        ('1 2\n', 'Line 1'),
        ('1 2 3\n\n4 5 6\n', 'Line 2'),
        ('1 2 3\n4 5 6 7\n', 'Line 2'),
        ('x y z\n1 2 3\n', 'Line 1'),
        ('1 2 3.5\n', 'three whole numbers'),
        ('0 1 1\n', '1 to 40, 36, 30'),
        ('1 1 1\n41 1 1\n', 'Landmark 2'),
    ],
)
def test_bad_files_are_told_in_one_sentence(capsys, tmp_path, content, words):
    path = tmp_path / 'bad.txt'
    path.write_text(content)
    grid = ['--size', 40, 36, 30, '--spacing', 1, 1, 2]
    code, message = error_of(capsys, path, *grid, '-o', tmp_path / 'a.tsv')
    assert code == 65 and words in message and str(path) in message


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['-o', 'a.tsv'], '--like, or --size'),
        (['--size', 4, 4, 4, '-o', 'a.tsv'], '--like, or --size'),
        (['--like', 'a.nii', '--size', 4, 4, 4, '-o', 'a.tsv'], 'without --size'),
        (['--like', 'a.nii', 'b.nii', '-o', 'a.tsv'], '--like takes one'),
        (['--like', 'a.nii', '-o', 'a.tsv', 'b.tsv'], 'as many tables'),
        (['--size', 40, 36, 30, '--spacing', 1, 1, -2, '-o', 'a.tsv'], 'above 0'),
        (['--size', 40, 36, 30, '--spacing', 1, 1, 'nan', '-o', 'a.tsv'], '--spacing'),
        (['--size', 40, 36, 30, '--spacing', 1, 1, 0, '-o', 'a.tsv'], '--spacing'),
    ],
)
def test_bad_options_are_told_in_one_sentence(capsys, indices, options, words):
    code, message = error_of(capsys, indices, *options)
    assert code == 64 and words in message


def test_missing_files_have_their_code(capsys, tmp_path, indices):
    grid = ['--size', 40, 36, 30, '--spacing', 1, 1, 2, '-o', tmp_path / 'a.tsv']
    assert error_of(capsys, tmp_path / 'none.txt', *grid)[0] == 66
    code, _ = error_of(capsys, indices, '--like', 'none.nii', '-o', tmp_path / 'a.tsv')
    assert code == 66


def test_indices_are_those_of_the_voxels(indices):
    grid = make_grid('LPS', (40, 36, 30), 1.0)
    points = read_dirlab_points(indices, grid).points
    # Of LPS voxels only the third axis runs the other way.
    expected = (INDICES - 1) * [1, 1, -1] + [0, 0, 29]
    np.testing.assert_allclose(grid.to_index(points), expected, atol=1e-9)
