"""The Nipype workflow of a whole run: people, their pairs, and a sink for each pair."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nipype.pipeline.engine import Node, Workflow

from .. import __version__
from ..workflows.brain import init_brain_wf
from ..workflows.lung import init_lung_wf
from ..workflows.resources import estimate_memory_gb
from .derivatives import PairSink, SubjectReport, copy_file
from .names import Names
from .pairs import Pair
from .preflight import read_grid
from .query import space_label
from .settings import Settings
from .stored import names_in

logger = logging.getLogger('nephi_pipe')

NAME = 'nephi_pipe'

SINK = 'sink'
REPORT = 'report'


def person_node(label: str) -> str:
    """Name of one person's part of the workflow."""
    return f'sub_{space_label(label)}'


def pair_node(pair: Pair) -> str:
    """Name of one pair's part; it stays the same whoever else is registered."""
    return f'{space_label(pair.moving.stem)}_to_{pair.fixed.space}'


def build_workflow(settings: Settings, pairs: Sequence[Pair], run: str) -> Workflow:
    """The workflow for ``pairs``; building it loads no torch.

    Parameters
    ----------
    settings
        How to register; where results and intermediate files go.
    pairs
        What is registered to what, sorted by the moving person.
    run
        Name of this run; crash files go to ``OUT/sub-XX/log/<run>/``.
    """
    workflow = Workflow(name=NAME, base_dir=str(settings.own_work_dir))
    workflow.config = {'execution': _execution(settings)}
    for label, own in groupby(pairs, key=lambda pair: pair.moving.subject):
        person = _person_workflow(settings, label, list(own))
        workflow.add_nodes([person])
        log = settings.output_dir / f'sub-{label}' / 'log' / run
        execution = {**_execution(settings), 'crashdump_dir': str(log)}
        for node in person._get_all_nodes():
            node.config = {**workflow.config, 'execution': execution}
    return workflow


def _execution(settings: Settings) -> dict[str, Any]:
    """What this run changes of Nipype's defaults."""
    return {
        'hash_method': 'content',
        'crashfile_format': 'txt',
        'stop_on_first_crash': str(settings.stop_on_first_crash).lower(),
        'create_report': 'false',
        'check_version': 'false',
    }


def _person_workflow(settings: Settings, label: str, pairs: Sequence[Pair]) -> Workflow:
    workflow = Workflow(name=person_node(label))
    report = Node(
        SubjectReport(len(pairs), output_dir=str(settings.output_dir), subject=label),
        name=REPORT,
        run_without_submitting=True,
    )
    for number, pair in enumerate(pairs):
        one = init_pair_wf(settings, pair)
        workflow.connect(one, f'{SINK}.metrics', report, f'pair{number}')
    return workflow


def init_pair_wf(settings: Settings, pair: Pair) -> Workflow:
    """Registration of one pair with its inputs set, and the sink that stores the results."""
    workflow = Workflow(name=pair_node(pair))
    table = pair.moving.label_table or pair.fixed.label_table
    register = _builder(settings)(
        **_method(settings),
        mem_gb=pair_memory_gb(pair),
        label_names=names_in(table) if table else {},
    )
    inputs = register.get_node('inputnode').inputs
    for side, scan in (('fixed', pair.fixed), ('moving', pair.moving)):
        for field, path in (
            ('image', scan.path),
            ('mask', scan.mask),
            ('labels', scan.labels),
            ('landmarks', scan.landmarks if pair.has_landmarks else None),
        ):
            if path is not None:
                setattr(inputs, f'{side}_{field}', str(path))
    if settings.initial_transform is not None:
        inputs.initial_transform = str(settings.initial_transform.absolute())
    names = Names(settings.output_dir, pair, settings.xfm_format)
    sink = Node(
        PairSink(names=names, facts=_facts(settings)), name=SINK, run_without_submitting=True
    )
    kept = sink.inputs.copyable_trait_names()
    made = register.get_node('outputnode').outputs.copyable_trait_names()
    stored = [field for field in made if field in kept]
    workflow.connect([(register, sink, [(f'outputnode.{field}', field) for field in stored])])
    return workflow


def _builder(settings: Settings) -> Callable[..., Workflow]:
    return init_lung_wf if settings.modality == 'lung' else init_brain_wf


def draw_graph(settings: Settings, pair: Pair, path: Path) -> None:
    """Draw one pair's workflow, which all others look like, to ``path`` and beside it."""
    with TemporaryDirectory(prefix='graph-', dir=settings.own_work_dir) as scratch:
        described = Path(scratch, path.name)
        # Nipype would hand the path to a shell to have it drawn.
        init_pair_wf(settings, pair).write_graph(
            str(described), graph2use='colored', format='dot', simple_form=True
        )
        dot = shutil.which('dot')
        if dot is None:
            logger.warning(
                'The workflow is described in "%s" but not drawn: Graphviz is missing.', path
            )
        elif subprocess.run(
            [dot, '-Tsvg', f'-o{described.with_suffix(".svg")}', str(described)],
            capture_output=True,
        ).returncode:
            logger.warning('The workflow is described in "%s", but Graphviz cannot draw it.', path)
        for file in sorted(Path(scratch).iterdir()):
            copy_file(file, path.parent / file.name)


def _method(settings: Settings) -> dict[str, Any]:
    """The builder's arguments that are the same for every pair."""
    own = {}
    if settings.modality == 'brain':
        own = {'whole_head': settings.whole_head, 'structures': settings.structures}
    return {
        **own,
        'weights': settings.weights,
        'steps': settings.steps,
        'affine': settings.affine,
        'xfm_format': settings.xfm_format,
        'xfm_grid': settings.xfm_grid,
        'device': settings.device,
        'omp_nthreads': settings.omp_nthreads,
        'seed': settings.random_seed,
        'sloppy': settings.sloppy,
    }


def describe_method(settings: Settings) -> str:
    """What the workflow says about itself, for a methods section."""
    return getattr(_builder(settings)(**_method(settings)), '__desc__', None) or ''


def pair_memory_gb(pair: Pair) -> float:
    """Memory that one pair needs, from the headers of its images."""
    return estimate_memory_gb(read_grid(pair.fixed.path).shape, read_grid(pair.moving.path).shape)


def _facts(settings: Settings) -> dict[str, Any]:
    """What metrics and sidecars record of the settings."""
    return {
        'version': __version__,
        'modality': settings.modality,
        'weights': settings.weights,
        'seed': settings.random_seed,
        'device': settings.device,
        'threads': settings.omp_nthreads,
        'sloppy': settings.sloppy,
        'xfm_format': settings.xfm_format,
        'xfm_grid': settings.xfm_grid,
    }
