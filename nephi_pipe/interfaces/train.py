"""The interface that trains weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from .common import given
from .register import MODALITIES

FILES = (
    'masks',
    'labels',
    'held_out',
    'motions',
    'motion_lungs',
    'weights',
    'coarse',
    'cache',
    'device',
)
"""Inputs that go to the training under the same name."""

SETTINGS = (
    'modality',
    'field',
    'grid',
    'augmentation',
    'epochs',
    'steps_per_epoch',
    'batch_size',
    'learning_rate',
    'learning_rate_step',
    'dice_weight',
    'eval_every',
    'save_every',
    'seed',
    'joint',
)
"""Inputs that are values of a train config, and stand above the config that is given."""


class NePhiTrainInputSpec(BaseInterfaceInputSpec):
    images = InputMultiObject(
        File(exists=True), mandatory=True, desc='two or more images, each of another person'
    )
    masks = InputMultiObject(File(exists=True), desc='a mask for each image, in the same order')
    labels = InputMultiObject(
        File(exists=True), desc='a label map for each image, in the same order'
    )
    held_out = traits.List(
        traits.Str, desc='images that are only validated on: paths, names or labels of people'
    )
    motions = InputMultiObject(
        File(exists=True), desc='landmarks of lungs in two breath states, for simulated pairs'
    )
    motion_lungs = InputMultiObject(
        File(exists=True), desc='masks of those lungs at expiration, in the same order'
    )
    config = File(exists=True, desc='train config (TOML), such as each training writes')
    preset = traits.Enum('lung-single-res', xor=['config'], desc='a published training')
    weights = File(exists=True, desc='weights to start from, with a fresh optimiser')
    coarse = File(
        exists=True, desc='weights of a coarse stage, whose maps warp the moving images first'
    )
    joint = traits.Bool(desc='train the coarse stage too')
    cache = Directory(
        nohash=True, desc='prepared images, which trainings may share (default: the node folder)'
    )
    modality = traits.Enum(*MODALITIES, desc='preset of settings (default: brain)')
    field = traits.Enum('compact', 'published', desc='sizes of the networks')
    grid = traits.Range(low=23, desc='nodes along each axis of the images that the encoder sees')
    augmentation = traits.Enum(
        'none', 'published', 'mixed', 'breathing', desc='how pairs are varied'
    )
    epochs = traits.Range(low=1, desc='passes, with a checkpoint after each')
    steps_per_epoch = traits.Range(low=1, desc='random pairs (or batches of them) of a pass')
    batch_size = traits.Range(low=1, desc='pairs of a step')
    learning_rate = traits.Range(low=0.0, exclude_low=True, desc='of the optimiser (Adam)')
    learning_rate_step = traits.Range(low=0, desc='epochs after which it is halved; 0 for never')
    dice_weight = traits.Range(low=0.0, desc='weight of the Dice of the labels in the loss')
    eval_every = traits.Int(desc='epochs between validations, -1 for never')
    save_every = traits.Range(low=1, desc='epochs between states on disk')
    seed = traits.Int(desc='seed of all random numbers')
    device = traits.Str('cpu', usedefault=True, nohash=True, desc='"cpu", "cuda" or "cuda:N"')
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc='tells Nipype that the node needs a GPU slot'
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc='threads of the computation')


class NePhiTrainOutputSpec(TraitedSpec):
    weights = File(desc='checkpoint (.safetensors) for NePhiInfer and NePhiOptimize')
    best_weights = File(desc='that of the best validation, if there was one')
    history = File(desc='mean losses and validations of each epoch, JSON')
    config = File(desc='everything that decided the weights, TOML')


class NePhiTrain(SimpleInterface):
    """Train the weights that predict a deformation from two images.

    What is not given is as in :func:`nephi_pipe.training.train`. A node that was killed goes
    on after its last epoch. Needs the extra ``train``.
    """

    input_spec = NePhiTrainInputSpec
    output_spec = NePhiTrainOutputSpec
    _can_resume = True

    def _run_interface(self, runtime: Any) -> Any:
        from ..training import train
        from ..training.config import PRESETS, read_config

        config, preset = given(self.inputs.config), given(self.inputs.preset)
        options = {name: given(getattr(self.inputs, name)) for name in (*FILES, *SETTINGS)}
        weights = train(
            self.inputs.images,
            Path(runtime.cwd),
            config=read_config(config) if config else PRESETS.get(preset),
            threads=self.inputs.num_threads,
            **{name: value for name, value in options.items() if value is not None},
        )
        self._results['weights'] = str(weights)
        self._results['history'] = str(weights.with_name('history.json'))
        self._results['config'] = str(weights.with_name('config.toml'))
        best = weights.with_name('best.safetensors')
        if best.exists():
            self._results['best_weights'] = str(best)
        return runtime
