"""Nipype interfaces: thin; each reads files, calls the engine once and writes files.

Those that stand in the place of ANTs' are in :mod:`nephi_pipe.interfaces.ants`.
"""

from .apply import ApplyTransform
from .evaluate import EvaluateRegistration
from .images import BrainMask, CommonLungs, Conform, LungMask
from .register import AffineInit, NePhiInfer, NePhiOptimize, WriteTransforms
from .report import PairReport
from .train import NePhiTrain

__all__ = [
    'AffineInit',
    'ApplyTransform',
    'BrainMask',
    'CommonLungs',
    'Conform',
    'EvaluateRegistration',
    'LungMask',
    'NePhiInfer',
    'NePhiOptimize',
    'NePhiTrain',
    'PairReport',
    'WriteTransforms',
]
