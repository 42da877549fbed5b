"""From images to weights, a prediction, steps from it and scores, as one Nipype workflow."""

import json
from pathlib import Path

import pytest
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow
from small_pair import write_pair
from training_run import FIELD, TINY

from nephi_pipe.demo import DATASET, LABELS
from nephi_pipe.interfaces import EvaluateRegistration, NePhiInfer, NePhiOptimize
from nephi_pipe.training.config import TrainingConfig, to_toml
from nephi_pipe.workflows import init_train_wf


def one_workflow(folder: Path, fixed, moving, images, labels) -> Workflow:
    """Train on some images, then register two of them and score it."""
    settings = {**TINY, 'field': FIELD, 'steps_per_epoch': 2}
    config = folder / 'config.toml'
    config.write_text(to_toml(TrainingConfig.of('brain').changed(**settings).as_dict()))
    training = init_train_wf(epochs=2, augmentation='mixed', seed=3)
    training.inputs.inputnode.trait_set(
        images=images, labels=labels, config=str(config), held_out=[images[0]]
    )
    pair = {'fixed_image': fixed[0], 'moving_image': moving[0]}
    infer = Node(NePhiInfer(**pair, xfm_grid='5'), name='infer')
    optimise = Node(NePhiOptimize(**pair, xfm_grid='5', steps=2), name='optimise')
    score = Node(
        EvaluateRegistration(**pair, fixed_labels=fixed[1], moving_labels=moving[1]),
        name='score',
    )
    end = Node(IdentityInterface(fields=['metrics', 'config', 'before', 'after']), name='end')
    whole = Workflow('whole', base_dir=str(folder))
    whole.connect(
        [
            (training, infer, [('outputnode.weights', 'weights')]),
            (training, optimise, [('outputnode.best_weights', 'weights')]),
            (optimise, score, [('forward_transform', 'transforms')]),
            (score, end, [('metrics', 'metrics')]),
            (training, end, [('outputnode.config', 'config')]),
            (infer, end, [('history', 'before')]),
            (optimise, end, [('history', 'after')]),
        ]
    )
    return whole


def check(graph) -> None:
    nodes = {node.name: node for node in graph.nodes()}
    outputs = {name: node.result.outputs for name, node in nodes.items()}
    metrics = json.loads(Path(outputs['score'].metrics).read_text())
    assert 0 < metrics['dice']['after']['mean'] < 1
    assert json.loads(Path(outputs['infer'].history).read_text()) == []
    assert len(json.loads(Path(outputs['optimise'].history).read_text())) == 2
    rows = json.loads(Path(outputs['train'].history).read_text())
    assert len(rows) == 2 and 'validation_tre_mm' in rows[-1]
    assert 'seed = 3' in Path(outputs['train'].config).read_text()


def test_train_infer_optimise_evaluate(tmp_path) -> None:
    files = write_pair(tmp_path)
    other = files.some('fixed_image', 'moving_image', 'fixed_labels', 'moving_labels')
    third = tmp_path / 'third.nii.gz'
    third.write_bytes(Path(other['moving_image']).read_bytes())
    fixed, moving = (
        (other[f'{side}_image'], other[f'{side}_labels']) for side in ('fixed', 'moving')
    )
    images, labels = [fixed[0], moving[0], str(third)], [fixed[1], moving[1], moving[1]]
    check(one_workflow(tmp_path, fixed, moving, images, labels).run())


@pytest.mark.slow
def test_train_infer_optimise_evaluate_on_the_demo(tmp_path) -> None:
    people = ('sub-41', 'sub-43', 'sub-45')
    images = [str(DATASET / who / 'anat' / f'{who}_T1w.nii.gz') for who in people]
    labels = [str(next(LABELS.glob(f'{who}/anat/*dseg.nii.gz'))) for who in people]
    pairs = list(zip(images, labels, strict=True))
    check(one_workflow(tmp_path, pairs[2], pairs[0], images, labels).run())
