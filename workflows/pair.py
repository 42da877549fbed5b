"""The workflow that registers one pair of images, whatever they show."""

from __future__ import annotations

from collections.abc import Mapping

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from .. import __version__
from ..interfaces import (
    AffineInit,
    EvaluateRegistration,
    NePhiOptimize,
    PairReport,
    WriteTransforms,
)
from ..presets.views import view
from ..weights import chosen_structures, chosen_weights
from .resources import pair_node

INPUTS = (
    'fixed_image',
    'moving_image',
    'fixed_mask',
    'moving_mask',
    'exclude_mask',
    'fixed_labels',
    'moving_labels',
    'fixed_landmarks',
    'moving_landmarks',
    'initial_transform',
)
"""Fields of every ``inputnode``; all but the two images may stay unset."""

MASKS = ('fixed_mask', 'moving_mask')

TRANSFORMS = ('forward_transform', 'inverse_transform', 'forward_sidecar', 'inverse_sidecar')

OUTPUTS = (
    *TRANSFORMS,
    'field',
    'warped_image',
    'warped_labels',
    'jacobian',
    'metrics',
    'landmarks',
    'history',
    'figures',
    'report_parts',
    'affine',
)
"""Fields of every ``outputnode``."""


def init_register_pair_wf(
    *,
    modality: str = 'brain',
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
    name: str = 'register_pair_wf',
) -> Workflow:
    """Build the workflow that registers one moving image to one fixed image.

    Workflow Graph
        .. workflow::
            :graph2use: colored
            :simple_form: yes

            from nephi_pipe.workflows import init_register_pair_wf
            wf = init_register_pair_wf()

    Parameters
    ----------
    modality
        Preset of settings: 'brain', 'lung' or 'other'.
    weights
        Where the fields start from: 'default', 'none' or a checkpoint (.safetensors). With 'none'
        nothing that was trained takes part, the network of structures of brains included.
    steps
        Optimisation steps; None for those of the preset, 0 for what the weights predict.
    structures
        Whether the structures of brains that a shipped network finds are compared too.
    affine
        Whether an affine is searched first. An ``initial_transform`` is used in any case.
    xfm_format
        Transforms as 'h5' (ITK composite), 'nii' (displacement) or 'field' (.safetensors).
    xfm_grid
        Spacing of stored fields: 'auto', 'native' or a number of mm.
    device
        'cpu', 'cuda' or 'cuda:N'.
    omp_nthreads
        Threads of one computation.
    mem_gb
        Memory of one pair, see :func:`estimate_memory_gb`; None to take it from the images.
    seed
        Seed of all random numbers.
    sloppy
        Quick and rough, for tests.
    report
        Whether figures are drawn.
    label_names
        Names of the structures in the figures.
    name
        Name of the workflow.

    Inputs
    ------
    fixed_image, moving_image
        The image that stays and the image that is warped.
    fixed_mask, moving_mask
        Where each counts, on its own grid; found from the image where not given.
    exclude_mask
        Lesion or resection, on either grid, that takes no part in the similarity.
    fixed_labels, moving_labels
        Label maps on the grids of the images. The moving one is warped; where both are given,
        their overlap is scored.
    fixed_landmarks, moving_landmarks
        Tables (.tsv) of corresponding points, columns x, y, z in RAS+ mm, for scores; matched by
        their column ``index`` where both have it, else row by row.
    initial_transform
        An affine (ITK .txt, .tfm, .mat, .h5), fixed to moving, taken instead of a search.

    Outputs
    -------
    forward_transform, inverse_transform
        ``from-moving_to-fixed`` (resamples moving onto fixed) and the way back.
    forward_sidecar, inverse_sidecar
        Facts about the two files, JSON.
    field
        The registration itself (.safetensors), can be evaluated at any point.
    warped_image, warped_labels
        Of the moving image, on the fixed grid.
    jacobian
        Determinant on the fixed grid: of the deformation without its affine, for lungs of the
        whole map.
    metrics, history
        Scores and progress, JSON.
    landmarks
        A row for each landmark with its errors in both directions (.tsv), where they are given.
    figures, report_parts
        List of pictures, and what a page about the pair says beside them, JSON.
    affine
        The affine part, ITK .txt.
    """
    workflow = Workflow(name=name)
    workflow.__desc__ = _describe(modality, weights, steps, structures, affine, sloppy)
    inputnode = Node(IdentityInterface(fields=list(INPUTS)), name='inputnode')
    outputnode = Node(IdentityInterface(fields=list(OUTPUTS)), name='outputnode')
    gpu = device.startswith('cuda')
    optimize = pair_node(
        NePhiOptimize(
            modality=modality,
            weights=weights,
            structures=structures,
            device=device,
            use_gpu=gpu,
            seed=seed,
            sloppy=sloppy,
            xfm_format='field',
        ),
        'optimize',
        mem_gb,
        n_procs=1 if gpu else omp_nthreads,
    )
    if steps is not None:
        optimize.inputs.steps = steps
    # Transforms have a node of their own: another format or grid does not optimise again.
    write = optimize
    if xfm_format != 'field':
        write = pair_node(
            WriteTransforms(xfm_format=xfm_format, xfm_grid=str(xfm_grid)),
            'transforms',
            mem_gb,
            omp_nthreads,
        )
    evaluate = pair_node(EvaluateRegistration(), 'evaluate', mem_gb, omp_nthreads)
    images = [(field, field) for field in INPUTS[:5]]

    # fmt: off
    workflow.connect([
        (inputnode, optimize, images),
        (inputnode, evaluate, [
            ('fixed_image', 'fixed_image'),
            ('moving_image', 'moving_image'),
            ('fixed_labels', 'fixed_labels'),
            ('moving_labels', 'moving_labels'),
            ('fixed_landmarks', 'fixed_landmarks'),
            ('moving_landmarks', 'moving_landmarks'),
        ]),
        (optimize, evaluate, [('field', 'field')]),
        (optimize, outputnode, [
            (field, field) for field in ('field', 'warped_image', 'jacobian', 'history', 'affine')
        ]),
        (write, outputnode, [(field, field) for field in TRANSFORMS]),
        (evaluate, outputnode, [
            ('metrics', 'metrics'),
            ('warped_labels', 'warped_labels'),
            ('landmarks', 'landmarks'),
        ]),
    ])
    # fmt: on
    if write is not optimize:
        workflow.connect(optimize, 'field', write, 'field')
        workflow.connect(write, 'forward_transform', evaluate, 'transforms')
    if affine:
        search = AffineInit(modality=modality, seed=seed)
        start = pair_node(search, 'affine_init', mem_gb, omp_nthreads)
        workflow.connect(inputnode, 'initial_transform', start, 'initial_transform')
        workflow.connect([(inputnode, start, images)])
        workflow.connect(start, 'affine', optimize, 'initial_transform')
    else:
        workflow.connect(inputnode, 'initial_transform', optimize, 'initial_transform')
    organ = bool(view(modality).organ)
    if organ:
        workflow.connect([(inputnode, evaluate, [(field, field) for field in MASKS])])
    if report:
        draw = _add_report(workflow, modality, label_names, mem_gb)
        if organ:
            workflow.connect([(inputnode, draw, [(field, field) for field in MASKS])])
    return workflow


def _add_report(
    workflow: Workflow,
    modality: str,
    label_names: Mapping[int, str] | None,
    mem_gb: float | None,
) -> Node:
    """Add the node that draws figures, and return it."""
    inputnode, outputnode, optimize, evaluate = map(
        workflow.get_node, ('inputnode', 'outputnode', 'optimize', 'evaluate')
    )
    names = {str(label): text for label, text in (label_names or {}).items()}
    draw = pair_node(PairReport(label_names=names, modality=modality), 'report', mem_gb)
    # fmt: off
    workflow.connect([
        (inputnode, draw, [
            ('fixed_image', 'fixed_image'),
            ('moving_image', 'moving_image'),
            ('fixed_labels', 'fixed_labels'),
            ('moving_labels', 'moving_labels'),
            ('fixed_landmarks', 'fixed_landmarks'),
            ('moving_landmarks', 'moving_landmarks'),
        ]),
        (optimize, draw, [
            ('field', 'field'),
            ('warped_image', 'warped_image'),
            ('jacobian', 'jacobian'),
            ('history', 'history'),
        ]),
        (evaluate, draw, [('metrics', 'metrics'), ('warped_labels', 'warped_labels')]),
        (draw, outputnode, [('figures', 'figures'), ('report_parts', 'report_parts')]),
    ])
    # fmt: on
    return draw


def _describe(
    modality: str,
    weights: str,
    steps: int | None,
    structures: bool,
    affine: bool,
    sloppy: bool,
) -> str:
    """Sentences for a methods section."""
    start = (
        'An affine transform was estimated first, from several starting poses and coarse to fine. '
        if affine
        else 'No affine transform was estimated. '
    )
    found = (
        'predicted by trained weights, without optimisation'
        if steps == 0
        else 'optimised for the pair by stochastic gradient descent'
        + (
            ', starting from what trained weights predict'
            if chosen_weights(weights, modality, steps)
            else ' from random initial values'
        )
        + (f' ({steps} steps)' if steps else '')
    )
    compared = (
        ', where a trained network found the same structures in both images their overlap,'
        if chosen_structures(structures, weights, modality, steps, sloppy)
        else ''
    )
    return (
        f'Images were registered with *nephi_pipe* {__version__} (preset "{modality}"), which '
        'represents the deformation and its inverse by a pair of neural fields (NePhi; Tian et '
        f'al., ECCV 2024, arXiv:2309.07322). {start}The fields were then {found}, with a '
        f'similarity of sampled points{compared} and gradient inverse consistency of exact '
        'Jacobians. Folds '
        'were counted from exact Jacobian determinants and from finite differences.\n'
    )
