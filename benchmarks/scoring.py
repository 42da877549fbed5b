"""How good a transform is that a method has saved: the same code for every method.

    python -m benchmarks.scoring METHOD FIXED MOVING FIXED_LABELS MOVING_LABELS FOLDER

FOLDER is where ``benchmarks/peers.py`` wrote the transform; ``scores.json`` is added to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from nephi_pipe import load_registration
from nephi_pipe.files import write_json
from nephi_pipe.images import load_image, load_labels
from nephi_pipe.metrics import evaluate
from nephi_pipe.transforms import Transform, read_affine, read_transform


def saved_transform(method: str, folder: Path) -> tuple[Transform, np.ndarray]:
    """The map of fixed points to moving points from a method's files, and its affine part.

    Greedy, ANTs and what runs ConvexAdam write the displacement as an ITK field (LPS+ mm) on the
    fixed grid, to be followed by the affine. ANTs' affine is an ITK file, Greedy's a plain matrix
    in RAS+ mm. The field of elastix holds its affine too.
    """
    if method.startswith('nephi'):
        transform = read_transform(folder / 'transform.h5')
        return transform, transform.steps[-1]
    if method == 'elastix':
        return read_transform(folder / 'warp.nii.gz'), np.eye(4)
    if method in ('greedy', 'convexadam'):
        warp, affine = 'warp.nii.gz', np.loadtxt(folder / 'affine.mat')
    else:
        warp, affine = 'syn_1Warp.nii.gz', read_affine(folder / 'syn_0GenericAffine.mat')
    return read_transform(folder / warp).then(affine), affine


def score(
    method: str,
    fixed: Path,
    moving: Path,
    fixed_labels: Path,
    moving_labels: Path,
    folder: Path,
) -> dict[str, Any]:
    """The metrics JSON of one registration, on the native grid of the fixed image.

    For NePhi with what only a network tells: folds by exact Jacobians, inverse consistency.
    """
    transform, affine = saved_transform(method, folder)
    pair = {
        'fixed': load_image(fixed),
        'moving': load_image(moving),
        'fixed_labels': load_labels(fixed_labels),
        'moving_labels': load_labels(moving_labels),
    }
    if method.startswith('nephi'):
        registration = load_registration(folder / 'field.safetensors')
        return registration.metrics(**pair, saved=transform)
    return evaluate(transform, **pair, affine=affine)


def main() -> None:
    """Read the arguments, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('method')
    for name in ('fixed', 'moving', 'fixed_labels', 'moving_labels', 'folder'):
        parser.add_argument(name, type=Path)
    given = vars(parser.parse_args())
    write_json(given['folder'] / 'scores.json', score(**given))


if __name__ == '__main__':
    main()
