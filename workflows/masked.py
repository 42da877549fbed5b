"""What every workflow shares that finds an organ in both images first."""

from __future__ import annotations

from collections.abc import Callable

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from .pair import INPUTS, OUTPUTS

MASKS = ('fixed_mask', 'moving_mask', 'fixed_mask_source', 'moving_mask_source')
"""Fields of the ``outputnode`` beside those of a pair: the masks, and where they come from."""


def init_masked_pair_wf(
    pair: Workflow,
    find: Callable[[str], Node],
    description: str,
    name: str,
    compare: Node | None = None,
) -> Workflow:
    """Build the workflow that looks for an organ in both images and registers them.

    Parameters
    ----------
    pair
        As :func:`init_register_pair_wf` builds it.
    find
        Makes the node that looks for the organ, from its name's beginning ('fixed' or 'moving').
        Its interface has the inputs ``image`` and ``mask`` (taken where it is given) and the
        outputs ``mask`` and ``source``; a further output ``image`` is registered in the place of
        the scan.
    description
        Sentences about the masks for a methods section.
    name
        Name of the workflow.
    compare
        A node that looks at both images and masks, by the names they have in a pair, and gives the
        masks that are used; None to use them as they are found.

    Inputs
    ------
    fixed_image, moving_image
        Scans.
    fixed_mask, moving_mask
        Masks of the organ on their grids; found where not given.
    exclude_mask, fixed_labels, moving_labels, fixed_landmarks, moving_landmarks, initial_transform
        As :func:`init_register_pair_wf` has them.

    Outputs
    -------
    forward_transform, inverse_transform, forward_sidecar, inverse_sidecar, field, affine
        As :func:`init_register_pair_wf` has them.
    warped_image, warped_labels, jacobian, metrics, landmarks, history, figures, report_parts
        Likewise.
    fixed_mask, moving_mask, fixed_mask_source, moving_mask_source
        The masks that were used, and where they come from.
    fixed_mended, moving_mended, compared
        Where the nodes have these outputs: what was mended of the images, and which part of the
        organ is compared.
    """
    workflow = Workflow(name=name)
    workflow.__desc__ = description + pair.__desc__
    inputnode = Node(IdentityInterface(fields=list(INPUTS)), name='inputnode')
    organs = {side: find(side) for side in ('fixed', 'moving')}
    notes = [
        (organ, 'mended', f'{side}_mended')
        for side, organ in organs.items()
        if 'mended' in organ.outputs.copyable_trait_names()
    ]
    if compare is not None and 'compared' in compare.outputs.copyable_trait_names():
        notes.append((compare, 'compared', 'compared'))
    fields = [*OUTPUTS, *MASKS, *(field for _, _, field in notes)]
    outputnode = Node(IdentityInterface(fields=fields), name='outputnode')
    for node, output, field in notes:
        workflow.connect(node, output, outputnode, field)
    others = [field for field in INPUTS if field not in MASKS]
    for side, organ in organs.items():
        image, mask = f'{side}_image', f'{side}_mask'
        workflow.connect([
            (inputnode, organ, [(image, 'image'), (mask, 'mask')]),
            (organ, outputnode, [('source', f'{mask}_source')]),
        ])  # fmt: skip
        seen: tuple[Node, str] = (inputnode, image)
        if 'image' in organ.outputs.copyable_trait_names():
            seen = (organ, 'image')
            workflow.connect(*seen, pair, f'inputnode.{image}')
            others.remove(image)
        used: tuple[Node, str] = (organ, 'mask')
        if compare is not None:
            workflow.connect(*seen, compare, image)
            workflow.connect(*used, compare, mask)
            used = (compare, mask)
        workflow.connect(*used, pair, f'inputnode.{mask}')
        workflow.connect(*used, outputnode, mask)
    workflow.connect([
        (inputnode, pair, [(field, f'inputnode.{field}') for field in others]),
        (pair, outputnode, [(f'outputnode.{field}', field) for field in OUTPUTS]),
    ])  # fmt: skip
    return workflow
