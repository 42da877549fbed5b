"""Nipype workflows: builders that take keyword arguments and return a workflow to embed."""

from .brain import init_brain_wf
from .lung import init_lung_wf
from .pair import init_register_pair_wf
from .resources import estimate_memory_gb
from .train import init_train_wf

__all__ = [
    'estimate_memory_gb',
    'init_brain_wf',
    'init_lung_wf',
    'init_register_pair_wf',
    'init_train_wf',
]
