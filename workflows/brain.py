"""The workflow that registers one pair of brains."""

from __future__ import annotations

from collections.abc import Mapping

from nipype.pipeline.engine import Node, Workflow

from ..interfaces import BrainMask
from .masked import init_masked_pair_wf
from .pair import init_register_pair_wf

DEEPBET_GB = 1.5
"""Memory of brain extraction: 1.2 GB measured at 0.9 mm (15 million voxels), rounded up."""


def init_brain_wf(
    *,
    brain_extraction: str = 'deepbet',
    whole_head: bool = False,
    weights: str = 'default',
    steps: int | None = None,
    structures: bool = True,
    affine: bool = True,
    xfm_format: str = 'h5',
    xfm_grid: str = 'auto',
    device: str = 'cpu',
    omp_nthreads: int = 1,
    mem_gb: float | None = None,
    seed: int = 0,
    sloppy: bool = False,
    report: bool = True,
    label_names: Mapping[int, str] | None = None,
    name: str = 'brain_wf',
) -> Workflow:
    """Build the workflow that finds two brains and registers one to the other.

    Workflow Graph
        .. workflow::
            :graph2use: colored
            :simple_form: yes

            from nephi_pipe.workflows import init_brain_wf
            wf = init_brain_wf()

    Parameters
    ----------
    brain_extraction
        What finds the brain in a scan that has its skull and comes without a mask: 'deepbet'
        (the extra ``brainmask``), or 'none', which refuses such a scan.
    whole_head
        Use such a scan as a whole head instead.
    weights, steps, structures, affine, xfm_format, xfm_grid, device, omp_nthreads, mem_gb
        As :func:`init_register_pair_wf` has them.
    seed, sloppy, report, label_names
        Likewise.
    name
        Name of the workflow.

    Inputs
    ------
    fixed_image, moving_image
        T1w scans, skull-stripped or not.
    fixed_mask, moving_mask
        Brain masks on their grids; found where not given.
    exclude_mask, fixed_labels, moving_labels, fixed_landmarks, moving_landmarks, initial_transform
        As :func:`init_register_pair_wf` has them.

    Outputs
    -------
    forward_transform, inverse_transform, forward_sidecar, inverse_sidecar, field, affine
        As :func:`init_register_pair_wf` has them.
    warped_image, warped_labels, jacobian, metrics, landmarks, history, figures, report_parts
        Likewise.
    fixed_mask, moving_mask, fixed_mask_source, moving_mask_source
        The masks that were used, and where they come from: 'given', 'skull-stripped', 'deepbet' or
        'whole head'.
    """
    pair = init_register_pair_wf(
        modality='brain',
        weights=weights,
        steps=steps,
        structures=structures,
        affine=affine,
        xfm_format=xfm_format,
        xfm_grid=xfm_grid,
        device=device,
        omp_nthreads=omp_nthreads,
        mem_gb=mem_gb,
        seed=seed,
        sloppy=sloppy,
        report=report,
        label_names=label_names,
    )

    def find(side: str) -> Node:
        return Node(
            BrainMask(method=brain_extraction, whole_head=whole_head),
            name=f'{side}_brain',
            n_procs=omp_nthreads,
            mem_gb=DEEPBET_GB,
        )

    return init_masked_pair_wf(pair, find, _describe(brain_extraction, whole_head), name)


def _describe(brain_extraction: str, whole_head: bool) -> str:
    """Sentences for a methods section."""
    if whole_head:
        return 'Scans with a skull were registered as whole heads. '
    if brain_extraction == 'deepbet':
        return (
            'Brain masks were taken from the data set; where there was none and the scan was not '
            'skull-stripped, the brain was found with deepbet (Fisch et al., Computers in Biology '
            'and Medicine 2024). '
        )
    return 'Brain masks were taken from the data set or from the skull-stripped scans. '
