"""A person's page, built from made-up results."""

from __future__ import annotations

import copy
import shutil

import pytest
from data import make_grid, make_image, make_labels
from group_data import good, store
from report_data import HOSTILE, check_page

from nephi_pipe.bids_app.stored import find_metrics, read_pair
from nephi_pipe.bids_app.subject_report import write_subject_report
from nephi_pipe.errors import NoInputError
from nephi_pipe.report import PairImages, pair_figures


@pytest.fixture(scope='module')
def person(tmp_path_factory):
    """A person with two pairs, one of them with figures and names of structures."""
    folder = tmp_path_factory.mktemp('person')
    grid = make_grid('RAS', (30, 28, 26), 3.0)
    image, labels = make_image(grid), make_labels(grid)
    metrics = good(1)
    store(folder, '01', metrics)
    store(folder, '01', copy.deepcopy(metrics), fixed='MNI')
    (folder / 'sub-01/anat/sub-01_space-sub45_desc-nephi_dseg.tsv').write_text(
        'index\tname\n1\tCaudate\n2\t<i>Putamen\n'
    )
    pair = PairImages(image, image, image, labels_fixed=labels, labels_after=labels)
    pair_figures(pair, folder / 'sub-01/figures', 'sub-01_space-sub45', metrics=metrics)
    return folder


def test_subject_page_from_what_lies_on_disk(person):
    path = write_subject_report(person, 'sub-01', {'steps': 300, 'weights': HOSTILE})
    assert path == person / 'sub-01.html'
    page = check_page(path)
    assert [a['id'] for a in page.all('section')] == ['sub-01-to-MNI', 'sub-01-to-sub45']
    assert {a['href'] for a in page.all('a')} == {'#sub-01-to-MNI', '#sub-01-to-sub45'}
    assert 'Caudate' in page.text and '<i>Putamen' in page.text and 'label 1' in page.text
    assert 'sub-01/anat/sub-01_T1w.nii.gz' in page.text and 'Settings of the run' in page.text
    # fixed, before, after, outline, labels after, checkerboard: three planes; legend; dice
    assert len(page.all('img')) == 6 * 3 + 1 + 1
    before = path.read_bytes()
    write_subject_report(person, '01', {'steps': 300, 'weights': HOSTILE})
    assert path.read_bytes() == before


def test_figures_of_from_to_names_are_found_and_other_pairs_left(person, tmp_path):
    shutil.copytree(person, tmp_path / 'out')
    figures = tmp_path / 'out/sub-01/figures'
    kept = figures / 'sub-01_from-T1w_to-sub45_desc-fixed_T1w.png'
    source = figures / 'sub-01_space-sub45_desc-fixed_T1w.png'
    shutil.copy(source, kept)
    shutil.copy(source, figures / 'sub-01_space-sub450_desc-fixed_T1w.png')
    shutil.copy(source, figures / 'sub-01_run-1_space-sub45_desc-fixed_T1w.png')
    for path in figures.glob('sub-01_space-sub45_*'):
        path.unlink()
    page = check_page(write_subject_report(tmp_path / 'out', '01'))
    assert len(page.all('img')) == 3


def test_broken_figures_and_metrics_are_named(person, tmp_path, caplog):
    shutil.copytree(person, tmp_path / 'out')
    figure = tmp_path / 'out/sub-01/figures/sub-01_space-sub45_desc-fixed_T1w.png'
    figure.write_bytes(figure.read_bytes()[:3000])
    broken = store(tmp_path / 'out', '01', '{', fixed='other')
    page = check_page(write_subject_report(tmp_path / 'out', '01'))
    assert len(page.with_class('warn')) == 2
    for path in (figure, broken):
        assert str(path) in page.text and str(path) in caplog.text
    assert len(page.all('img')) == 5 * 3 + 1 + 1


def test_person_without_pairs(person):
    with pytest.raises(NoInputError, match='no metrics of sub-02'):
        write_subject_report(person, '02')
    assert find_metrics(person, '0*') == []


def test_names_are_taken_apart(tmp_path):
    pair = read_pair(
        store(tmp_path, '01', {'moving': 'a.nii', 'fixed': {'name': 'b'}}, 'MNI', '_run-2')
    )
    assert (pair.moving, pair.fixed, pair.person) == ('sub-01_run-2', 'MNI', 'sub-01')
    assert (pair.image_name('moving'), pair.image_name('fixed')) == ('a.nii', 'b')
    assert pair.entity('run') == 'run-2' and pair.entity('ses') is None
