"""Masks of one lung: both scans of a pair are compared in the same lungs."""

import numpy as np
import pytest
from chest import chest_grid, make_chest, part
from lung_pairs import moved

from nephi_pipe.errors import InputDataError
from nephi_pipe.lung_sides import common_lungs

RIGHT, LEFT = 1, 2


@pytest.fixture(scope='module')
def chest():
    return make_chest(chest_grid(6.0))


def dice(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def test_masks_of_both_lungs_are_left_as_they_are(chest, caplog):
    given, labelled = chest.lungs > 0, chest.lungs
    fixed, moving = common_lungs(chest.image, given, chest.image, labelled)
    assert fixed is given and moving is labelled
    assert not caplog.records


@pytest.mark.parametrize('side', [RIGHT, LEFT])
@pytest.mark.parametrize('given', ['fixed', 'moving'])
def test_the_other_mask_is_restricted_to_the_same_lung(chest, caplog, side, given):
    """The table has moved by the width of a lung: the world's x says nothing."""
    one, both = chest.lungs == side, chest.lungs
    other = moved(chest.image, (140.0, 0.0, 30.0))
    if given == 'fixed':
        own, restricted = common_lungs(chest.image, one, other, both)
    else:
        restricted, own = common_lungs(other, both, chest.image, one)
    assert own is one
    assert set(np.unique(restricted)) == {0, side}
    assert dice(restricted > 0, one) > 0.99
    name = {RIGHT: 'right', LEFT: 'left'}[side]
    assert f'holds the {name} lung alone' in caplog.text and len(caplog.records) == 1


def test_a_scan_cut_around_one_lung_beside_a_whole_chest(chest, caplog):
    inside = chest.image.grid.to_world(np.argwhere(chest.lungs == LEFT))
    cut = part(chest, inside.min(axis=0) - 12, inside.max(axis=0) + 12)
    own, restricted = common_lungs(cut.image, cut.lungs == LEFT, chest.image, chest.lungs > 0)
    assert dice(restricted, chest.lungs == LEFT) > 0.99
    assert 'the left lungs are compared' in caplog.text


def test_different_lungs_are_refused(chest):
    with pytest.raises(InputDataError) as error:
        common_lungs(chest.image, chest.lungs == RIGHT, chest.image, chest.lungs == LEFT)
    said = str(error.value)
    assert 'holds the right lung' in said and 'the left one; expected masks of the same' in said


def test_the_same_lung_of_both_is_left_as_it_is(chest, caplog):
    right = chest.lungs == RIGHT
    same = common_lungs(chest.image, right, chest.image, right)
    assert same[0] is right and same[1] is right
    assert not caplog.records


def test_lungs_that_cannot_be_divided_are_two_by_their_width(chest, caplog):
    """A mask that fills what lies between both lungs."""
    x, y, z = np.moveaxis(chest.image.grid.points(), -1, 0)
    bridged = (chest.lungs > 0) | ((np.abs(x) < 40) & (np.abs(y) < 50) & (np.abs(z) < 80))
    fixed, moving = common_lungs(chest.image, bridged, chest.image, chest.lungs > 0)
    assert fixed is bridged and moving.sum() == (chest.lungs > 0).sum()
    assert not caplog.records


def test_the_mask_of_a_part_of_one_lung_names_its_side(chest):
    lobe = (chest.lungs == RIGHT) & (chest.image.grid.points()[..., 2] > 10)
    _, restricted = common_lungs(chest.image, lobe, chest.image, chest.lungs)
    assert set(np.unique(restricted)) == {0, RIGHT}
