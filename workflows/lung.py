"""The workflow that registers one pair of chest CTs of one person."""

from __future__ import annotations

from collections.abc import Mapping

from nipype.pipeline.engine import Node, Workflow

from ..interfaces import CommonLungs, LungMask
from .masked import init_masked_pair_wf
from .pair import init_register_pair_wf

LUNGS_GB = 1.5
"""Memory of the search for the lungs."""


def init_lung_wf(
    *,
    weights: str = 'default',
    steps: int | None = None,
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
    name: str = 'lung_wf',
) -> Workflow:
    """Build the workflow that finds the lungs in two CTs and registers one CT to the other.

    The fixed scan is the earlier session, or the breath state that others are compared with:
    volume changes are then those of the moving scan relative to it, on its grid.

    Workflow Graph
        .. workflow::
            :graph2use: colored
            :simple_form: yes

            from nephi_pipe.workflows import init_lung_wf
            wf = init_lung_wf()

    Parameters
    ----------
    weights, steps, affine, xfm_format, xfm_grid, device, omp_nthreads, mem_gb, seed, sloppy
        As :func:`init_register_pair_wf` has them.
    report, label_names
        Likewise.
    name
        Name of the workflow.

    Inputs
    ------
    fixed_image, moving_image
        Chest CTs in HU.
    fixed_mask, moving_mask
        Lung masks on their grids; found where not given. Where one holds one lung and the other
        both, the other is restricted to the same lung.
    exclude_mask, fixed_labels, moving_labels, fixed_landmarks, moving_landmarks, initial_transform
        As :func:`init_register_pair_wf` has them.

    Outputs
    -------
    forward_transform, inverse_transform, forward_sidecar, inverse_sidecar, field, affine
        As :func:`init_register_pair_wf` has them.
    warped_image, warped_labels, metrics, landmarks, history, figures, report_parts
        Likewise.
    jacobian
        Determinant of the whole map on the fixed grid: the local volume of the moving lungs over
        that of the fixed ones.
    fixed_mask, moving_mask, fixed_mask_source, moving_mask_source
        The masks that were used, and where they come from: 'given' or 'found'.
    fixed_mended, moving_mended, compared
        What was mended of the Hounsfield units, and which lungs are compared where it is one;
        empty where nothing was, and where it is all.
    """
    pair = init_register_pair_wf(
        modality='lung',
        weights=weights,
        steps=steps,
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
        return Node(LungMask(), name=f'{side}_lung', mem_gb=LUNGS_GB)

    compare = Node(CommonLungs(), name='common_lungs', mem_gb=LUNGS_GB)
    return init_masked_pair_wf(pair, find, DESCRIPTION, name, compare)


DESCRIPTION = (
    'Lung masks were taken from the data set; where there was none, the lungs were found in the '
    'CT by thresholds and connected components. '
)
"""Sentences for a methods section."""
