"""What can be said about the inputs before anything runs; only headers are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputDataError, NePhiError, NoInputError
from ..geometry import Grid
from ..images import checked_affine, open_image
from .dataset import read_json
from .outcome import Failure
from .pairs import Pair
from .query import Scan

logger = logging.getLogger('nephi_pipe')


def check_dataset(bids_dir: Path) -> None:
    """Warn about what a BIDS data set should have; nothing of it stops a run."""
    path = bids_dir / 'dataset_description.json'
    description = read_json(path)
    if not path.exists():
        logger.warning('"%s" has no dataset_description.json: is it a BIDS data set?', bids_dir)
    elif not description:
        logger.warning('"%s" is not JSON, or empty.', path)
    else:
        missing = [key for key in ('Name', 'BIDSVersion') if not description.get(key)]
        if missing:
            logger.warning('"%s" has no %s.', path, ' and no '.join(missing))
    if description.get('DatasetType') == 'derivative':
        logger.warning('"%s" says that it is a derivative data set; scans are expected.', bids_dir)


def check_pairs(
    pairs: Sequence[Pair], trusted: Sequence[Path] = ()
) -> tuple[list[Pair], list[Failure]]:
    """Split ``pairs`` into those that can be tried and what is wrong with the others.

    Images in ``trusted`` are not looked at.
    """
    problems: dict[Path, NePhiError | None] = dict.fromkeys(trusted)
    good, failures = [], []
    for pair in pairs:
        error = _problem(pair.moving, problems) or _problem(pair.fixed, problems)
        error = error or _problem_of_landmarks(pair)
        if error is None:
            good.append(pair)
        else:
            failures.append(Failure(f'sub-{pair.moving.subject}', str(error), error.exit_code))
    return good, failures


def _problem(scan: Scan, known: dict[Path, NePhiError | None]) -> NePhiError | None:
    if scan.path not in known:
        try:
            check_scan(scan)
            known[scan.path] = None
        except NePhiError as error:
            known[scan.path] = error
    return known[scan.path]


def _problem_of_landmarks(pair: Pair) -> NePhiError | None:
    """What would only be noticed after the optimisation."""
    if not pair.has_landmarks:
        return None
    from ..landmark_errors import read_landmark_pairs

    try:
        landmarks = read_landmark_pairs(pair.fixed.landmarks, pair.moving.landmarks)
        landmarks.warn_of_strays(read_grid(pair.fixed.path), read_grid(pair.moving.path))
    except NePhiError as error:
        return error
    return None


def check_scan(scan: Scan) -> Grid:
    """Check the headers of a scan, its mask and its labels, and return the scan's grid.

    Raises
    ------
    NoInputError, InputDataError
        A file is missing or no image, not 3D, has an unusable affine; mask or labels lie on
        another grid, or several files could be one of them.
    """
    if scan.problem:
        raise InputDataError(scan.problem)
    grid = read_grid(scan.path)
    for kind, path in (('mask', scan.mask), ('label map', scan.labels)):
        if path is not None and not read_grid(path).same_as(grid):
            raise InputDataError(
                f'The {kind} "{path}" does not lie on the grid of "{scan.path}" (shapes '
                f'{read_grid(path).shape} and {grid.shape}, or other affines); expected the same '
                'voxels. Resample it onto that image (nearest neighbour) and try again.'
            )
    return grid


def read_grid(path: Path) -> Grid:
    """The grid of a 3D image, from its header alone."""
    try:
        image = open_image(path)
    except InputDataError as error:
        if not _is_pointer(path):
            raise
        raise NoInputError(
            f'"{path}" holds no image but a pointer to one; expected the content itself. Fetch it '
            'first (for example with "datalad get" or "git lfs pull").'
        ) from error
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise InputDataError(
            f'"{path}" has the shape {image.shape}; expected a 3D image. '
            + ('Extract one volume first.' if len(shape) > 3 else 'This tool registers volumes.')
        )
    return Grid(shape, checked_affine(image, path))


def _is_pointer(path: Path) -> bool:
    """Whether a line of git-annex (unlocked) or git-lfs stands in the place of the content."""
    with open(path, 'rb') as stream:
        return stream.read(64).startswith((b'/annex/objects/', b'version https://git-lfs'))
