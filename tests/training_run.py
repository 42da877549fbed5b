"""A tiny training in a process of its own, for tests that kill it: python training_run.py JSON."""

import json
import sys

from nephi_pipe.field.config import FieldConfig
from nephi_pipe.training import train

FIELD = FieldConfig(frequencies=16, width=32, global_channels=8, local_channels=8)
TINY = {
    'field': FIELD,
    'grid': 25,
    'learning_rate': 7e-4,
    'warm_up': 5,
    'seed': 1,
    'augmentation': 'none',
    'points': 1000,
    'regularity_points': 100,
}


if __name__ == '__main__':
    train(
        **{**TINY, **json.loads(sys.argv[1])},
        threads=1,
        progress=lambda progress: print(progress.step, flush=True),
    )
