"""The workflow that trains weights."""

from __future__ import annotations

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from ..interfaces import NePhiTrain

TRAINING_GB = 3.0
"""Memory of a training at 0.87 mm on the processor, without the cache's pages, rounded up."""


def init_train_wf(
    *,
    modality: str | None = None,
    preset: str | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
    augmentation: str | None = None,
    device: str = 'cpu',
    omp_nthreads: int = 1,
    mem_gb: float = TRAINING_GB,
    seed: int = 0,
    name: str = 'train_wf',
) -> Workflow:
    """Build the workflow that goes from images to weights.

    Workflow Graph
        .. workflow::
            :graph2use: colored
            :simple_form: yes

            from nephi_pipe.workflows import init_train_wf
            wf = init_train_wf()

    Parameters
    ----------
    modality, preset, epochs, steps_per_epoch, batch_size, augmentation
        As ``nephi train`` has them; None for what the config says, or for the defaults.
    device
        'cpu', 'cuda' or 'cuda:N'.
    omp_nthreads
        Threads of the node.
    mem_gb
        Memory that the node asks for.
    seed
        Of all random numbers.
    name
        Name of the workflow.

    Inputs
    ------
    images
        Two or more files, each of another person.
    masks, labels
        One for each image, in the same order.
    held_out
        Images that are only validated on: paths, file names or labels of people.
    config
        A train config (TOML).
    start_weights
        Weights to start from.

    Outputs
    -------
    weights, best_weights, history, config
        As :class:`nephi_pipe.interfaces.NePhiTrain` has them.
    """
    workflow = Workflow(name=name)
    inputs = ['images', 'masks', 'labels', 'held_out', 'config', 'start_weights']
    outputs = ['weights', 'best_weights', 'history', 'config']
    inputnode = Node(IdentityInterface(fields=inputs), name='inputnode')
    outputnode = Node(IdentityInterface(fields=outputs), name='outputnode')
    options = {
        'modality': modality,
        'preset': preset,
        'epochs': epochs,
        'steps_per_epoch': steps_per_epoch,
        'batch_size': batch_size,
        'augmentation': augmentation,
    }
    given = {key: value for key, value in options.items() if value is not None}
    train = Node(
        NePhiTrain(
            device=device,
            use_gpu=device != 'cpu',
            num_threads=omp_nthreads,
            seed=seed,
            **given,
        ),
        name='train',
        n_procs=omp_nthreads,
        mem_gb=mem_gb,
    )
    workflow.connect([
        (inputnode, train, [(field, field) for field in inputs[:-1]]),
        (inputnode, train, [('start_weights', 'weights')]),
        (train, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow
