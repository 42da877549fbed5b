"""How good a transform of lungs is that a method has saved: the same code for every method.

    python -m benchmarks.lung_scoring METHOD FIXED MOVING FIXED_MASK MOVING_MASK \\
        FIXED_LANDMARKS MOVING_LANDMARKS FOLDER

FOLDER is where ``benchmarks/lung_peers.py`` wrote the transform; ``scores.json`` is added to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from nephi_pipe import load_registration
from nephi_pipe.files import write_json
from nephi_pipe.images import load_image, load_labels
from nephi_pipe.metrics import evaluate, read_landmarks, tre_mm

from .scoring import saved_transform

NAMES = ('fixed', 'moving', 'fixed_mask', 'moving_mask', 'fixed_landmarks', 'moving_landmarks')


def score(method: str, folder: Path, **paths: Path) -> dict[str, Any]:
    """The metrics JSON of one registration in the lungs, and the error of every landmark.

    Landmarks go through the map as saved, with linear interpolation of its displacement between
    voxels, and are never rounded. For NePhi with what only a network tells.
    """
    transform, affine = saved_transform(method, folder)
    fixed, moving = load_image(paths['fixed']), load_image(paths['moving'])
    lungs = [load_labels(paths[f'{side}_mask']) for side in ('fixed', 'moving')]
    lungs = [mask.with_data((mask.data > 0).astype(np.int32)) for mask in lungs]
    points = [read_landmarks(paths[f'{side}_landmarks']) for side in ('fixed', 'moving')]
    scores = evaluate(
        transform,
        fixed,
        moving,
        fixed_mask=lungs[0],
        fixed_labels=lungs[0],
        moving_labels=lungs[1],
        fixed_landmarks=points[0],
        moving_landmarks=points[1],
        affine=affine,
    )
    scores['raw_landmark_mm'] = tre_mm(*points, lambda points: points).tolist()
    scores['affine_landmark_mm'] = tre_mm(*points, affine_map(affine)).tolist()
    scores['landmark_mm'] = tre_mm(*points, transform).tolist()
    if method.startswith('nephi'):
        own = load_registration(folder / 'field.safetensors').metrics(
            fixed, moving, saved=transform
        )
        scores['folds'] = own['folds'] | scores['folds']
        scores['inverse_consistency_mm'] = own['inverse_consistency_mm']
    return scores


def affine_map(affine: np.ndarray):
    """A 4x4 matrix as a map of points."""
    from nephi_pipe.transforms import Transform

    return Transform([affine]).map_points


def main() -> None:
    """Read the arguments, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ('method', *NAMES, 'folder'):
        parser.add_argument(name, type=str if name == 'method' else Path)
    given = vars(parser.parse_args())
    write_json(given['folder'] / 'scores.json', score(**given))


if __name__ == '__main__':
    main()
