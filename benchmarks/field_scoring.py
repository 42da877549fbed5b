"""How good a map is that ``benchmarks/field_peers.py`` saved: the same code for every method.

    python -m benchmarks.field_scoring METHOD FIXED MOVING \\
        [--labels FIXED MOVING] [--landmarks FIXED MOVING] [--warped LABELS STEM] FOLDER

adds ``scores.json`` to FOLDER: overlap of labels, errors of landmarks. ``--warped`` writes the
moving labels on the fixed grid to ``STEM.nii.gz``, and by the affine alone to
``STEM_affine.nii.gz``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nephi_pipe import load_registration
from nephi_pipe.files import write_json
from nephi_pipe.images import Image, foreground, load_image, load_labels, save_image
from nephi_pipe.metrics import (
    evaluate,
    inverse_consistency_mm,
    landmark_summary,
    random_points,
    read_landmarks,
    tre_mm,
)
from nephi_pipe.result import EXACT_POINTS
from nephi_pipe.transforms import Transform, read_transform, resample


def score(
    method: str,
    fixed: Path,
    moving: Path,
    folder: Path,
    *,
    labels: Sequence[Path] | None = None,
    landmarks: Sequence[Path] | None = None,
    warped: Sequence[Path] | None = None,
) -> dict[str, Any]:
    """The metrics JSON of one registration; see above what is written beside it."""
    affine = np.loadtxt(folder / 'affine.mat')
    transform = read_transform(next(folder.glob('warp.nii*'))).then(affine)
    pair: dict[str, Any] = {'fixed': load_image(fixed), 'moving': load_image(moving)}
    mask = foreground(pair['fixed'])
    if labels:
        pair |= dict(zip(('fixed_labels', 'moving_labels'), map(load_labels, labels), strict=True))
    points = [read_landmarks(path) for path in landmarks or []]
    if points:
        pair |= {'fixed_landmarks': points[0], 'moving_landmarks': points[1]}
    scores = evaluate(transform, **pair, affine=affine, fixed_mask=mask)
    if points:
        scores['tre_mm']['raw'] = landmark_summary(tre_mm(*points, lambda points: points))
    if method.startswith('nephi'):
        scores |= network_scores(folder, pair['fixed'], mask, scores)
    if warped:
        source, stem = warped
        write_warped(load_labels(source), transform, affine, pair['fixed'], stem)
    return scores


def network_scores(
    folder: Path, fixed: Image, mask: np.ndarray, scores: dict[str, Any]
) -> dict[str, Any]:
    """Folds by the network's own derivative, and inverse consistency, at random mask points."""
    registration = load_registration(folder / 'field.safetensors')
    points = random_points(fixed.grid, mask, EXACT_POINTS)
    exact = registration.exact_jacobian_determinant(points)
    folded = int((exact <= 0).sum())
    counted = {
        'points': len(exact),
        'count': folded,
        'percent': 100 * folded / len(exact),
        'min': float(exact.min()),
    }
    some = points[: EXACT_POINTS // 5]
    consistency = inverse_consistency_mm(
        registration.warp_points, registration.inverse.warp_points, some
    )
    return {'folds': scores['folds'] | {'exact': counted}, 'inverse_consistency_mm': consistency}


def write_warped(
    labels: Image, transform: Transform, affine: np.ndarray, fixed: Image, stem: Path
) -> None:
    """The labels on the fixed grid, by the transform and by its affine alone, uint8."""
    for one, end in ((Transform([affine]), '_affine'), (transform, '')):
        found = resample(labels, one, fixed.grid, 'labels').data.astype(np.uint8)
        save_image(stem.with_name(f'{stem.name}{end}.nii.gz'), found, fixed.grid)


def main() -> None:
    """Read the arguments, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('method')
    for name in ('fixed', 'moving', 'folder'):
        parser.add_argument(name, type=Path)
    for name in ('--labels', '--landmarks', '--warped'):
        parser.add_argument(name, type=Path, nargs=2)
    given = vars(parser.parse_args())
    write_json(given['folder'] / 'scores.json', score(**given))


if __name__ == '__main__':
    main()
