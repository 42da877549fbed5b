"""``python -m benchmarks NAME ...`` runs one benchmark of this folder."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    'brain': 'real brains beside Greedy and ANTs SyN: overlap, folds, time, memory',
    'weights': 'drawn pairs of brains from the shipped weights: forward pass, few steps',
    'claims': "the paper's claims: a voxel field and IDIR on the same pairs, what optimising adds",
    'template': 'people at the MNI152 template, and 2 mm pairs with a known truth',
    'lung': 'lungs of one person beside Greedy, elastix and ConvexAdam: landmarks, folds, time',
    'breathing-cohort': 'lungs of three people through every level, one worker killed on the way',
    'training-memory': 'memory of a training step beside GradICON, and of instance optimisation',
    'latent-path': 'deformations between two registrations, by their latent codes',
    'shapes': 'circles and triangles: the effect of the number of regulariser points',
    'affine-poses': 'the affine initialisation from random poses',
    'scale': 'a data set of a thousand people: indexing, dry run, workflow, group level',
    'profile': 'what a step computes, how near to the machine it does, where the rest goes',
    'needs': 'what one pair needs as a job of a queue: time, memory, disk',
    'overhead': 'what the pipeline adds to the computation of a pair',
}

MODULES = {'profile': 'step_profile'}
"""Those whose module is not called like them: `profile` is a module of Python's own."""


def main(argv: list[str]) -> int:
    """Run the benchmark that the first argument names."""
    if not argv or argv[0] not in BENCHMARKS:
        print('usage: python -m benchmarks NAME [options]   (NAME --help tells the options)\n')
        for name, summary in BENCHMARKS.items():
            print(f'  {name:18} {summary}')
        return 0 if argv[:1] in (['-h'], ['--help']) else 64
    name = MODULES.get(argv[0], argv[0].replace('-', '_'))
    module = importlib.import_module(f'benchmarks.{name}')
    return module.main(argv[1:])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
