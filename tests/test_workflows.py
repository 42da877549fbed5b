"""The workflow builders: their graph, what they declare, and a run inside a foreign workflow."""

import inspect
import json
import re
import shutil

import numpy as np
import pytest
from nipype.interfaces.io import DataSink
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import generate_expanded_graph
from small_pair import write_pair

from nephi_pipe.geometry import apply_affine
from nephi_pipe.images import load_image, load_labels
from nephi_pipe.interfaces import NePhiOptimize
from nephi_pipe.registration import load_registration
from nephi_pipe.report import load_figure, pair_section
from nephi_pipe.transforms import read_affine, read_transform, resample
from nephi_pipe.workflows import (
    estimate_memory_gb,
    init_brain_wf,
    init_lung_wf,
    init_register_pair_wf,
)
from nephi_pipe.workflows.resources import SHARES

INPUTS = {
    'fixed_image', 'moving_image', 'fixed_mask', 'moving_mask', 'exclude_mask', 'fixed_labels',
    'moving_labels', 'fixed_landmarks', 'moving_landmarks', 'initial_transform',
}  # fmt: skip
OUTPUTS = {
    'forward_transform', 'inverse_transform', 'forward_sidecar', 'inverse_sidecar', 'field',
    'warped_image', 'warped_labels', 'jacobian', 'metrics', 'landmarks', 'history', 'figures',
    'report_parts', 'affine',
}  # fmt: skip
BUILDERS = pytest.mark.parametrize('build', [init_register_pair_wf, init_brain_wf, init_lung_wf])


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp('pair'))


def embed(workflow, **inputs):
    """The nodes that really run when ``workflow`` is part of another one."""
    outer = pe.Workflow('outer')
    source = pe.Node(IdentityInterface(fields=sorted(INPUTS)), name='source')
    source.inputs.trait_set(**inputs)
    sink = pe.Node(IdentityInterface(fields=sorted(OUTPUTS)), name='sink')
    outer.connect(
        [
            (source, workflow, [(field, f'inputnode.{field}') for field in sorted(INPUTS)]),
            (workflow, sink, [(f'outputnode.{field}', field) for field in sorted(OUTPUTS)]),
        ]
    )
    graph = generate_expanded_graph(outer._create_flat_graph())
    return {node.name: node for node in graph}


@BUILDERS
def test_fields_are_those_that_others_rely_on(build):
    workflow = build()
    assert set(workflow.inputs.inputnode.copyable_trait_names()) == INPUTS
    assert set(workflow.outputs.outputnode.copyable_trait_names()) >= OUTPUTS


@BUILDERS
def test_docstring_names_every_parameter_and_field(build):
    sections = re.split(r'\n\n(?=\w[\w ]*\n-+\n)', inspect.getdoc(build))
    by_title = {section.split('\n')[0]: section for section in sections}
    workflow = build()
    for title, names in (
        ('Parameters', inspect.signature(build).parameters),
        ('Inputs', workflow.inputs.inputnode.copyable_trait_names()),
        ('Outputs', workflow.outputs.outputnode.copyable_trait_names()),
    ):
        named = re.findall(r'^(\w[\w, ]*)$', by_title[title], re.MULTILINE)
        assert {name for line in named for name in line.split(', ')} >= set(names), title


@pytest.mark.parametrize(('build', 'organ'), [(init_brain_wf, 'brain'), (init_lung_wf, 'lung')])
@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('report', [True, False])
@pytest.mark.parametrize('xfm_format', ['h5', 'nii', 'field'])
def test_few_nodes_run_for_a_pair(affine, report, xfm_format, build, organ):
    nodes = embed(build(affine=affine, report=report, xfm_format=xfm_format))
    expected = {f'fixed_{organ}', f'moving_{organ}', 'optimize', 'evaluate'}
    expected |= {'common_lungs'} if organ == 'lung' else set()
    expected |= {'affine_init'} if affine else set()
    expected |= {'report'} if report else set()
    expected |= {'transforms'} if xfm_format != 'field' else set()
    assert set(nodes) == expected
    if xfm_format != 'field':
        assert nodes['transforms'].inputs.xfm_format == xfm_format


def test_settings_reach_the_nodes():
    nodes = embed(
        init_brain_wf(
            brain_extraction='none',
            whole_head=True,
            weights='none',
            steps=7,
            structures=False,
            xfm_grid=2.5,
            omp_nthreads=3,
            seed=11,
            sloppy=True,
            label_names={2: 'thalamus'},
        )
    )
    optimize = nodes['optimize'].inputs
    assert (optimize.weights, optimize.steps, optimize.structures) == ('none', 7, False)
    assert nodes['transforms'].inputs.xfm_grid == '2.5'
    assert (optimize.seed, optimize.sloppy, optimize.modality) == (11, True, 'brain')
    assert (nodes['fixed_brain'].inputs.method, nodes['fixed_brain'].inputs.whole_head) == (
        'none',
        True,
    )
    assert nodes['affine_init'].inputs.seed == 11
    assert nodes['report'].inputs.label_names == {'2': 'thalamus'}
    assert (optimize.num_threads, nodes['optimize'].n_procs) == (3, 3)


def test_lungs_are_registered_and_scored_as_lungs():
    nodes = embed(init_lung_wf(seed=11))
    for name in ('affine_init', 'optimize', 'report'):
        assert nodes[name].inputs.modality == 'lung', name
    graph = init_lung_wf()._create_flat_graph()
    edges = {
        (source.name, target.name): set(data['connect'])
        for source, target, data in graph.edges(data=True)
    }
    moving = {target for (source, target) in edges if source == 'moving_lung'}
    assert moving == {'inputnode', 'outputnode', 'common_lungs'}
    assert edges['moving_lung', 'inputnode'] == {('image', 'moving_image')}
    assert edges['moving_lung', 'common_lungs'] == {
        ('image', 'moving_image'),
        ('mask', 'moving_mask'),
    }
    masks = {('fixed_mask', 'fixed_mask'), ('moving_mask', 'moving_mask')}
    assert edges['common_lungs', 'inputnode'] == masks
    assert edges['common_lungs', 'outputnode'] == {*masks, ('compared', 'compared')}
    assert ('mended', 'moving_mended') in edges['moving_lung', 'outputnode']
    assert {('fixed_mask', 'fixed_mask'), ('moving_mask', 'moving_mask')} <= (
        edges['inputnode', 'evaluate'] & edges['inputnode', 'report']
    )


def test_every_node_computes_with_the_threads_it_is_scheduled_with():
    nodes = embed(init_brain_wf(omp_nthreads=3))
    assert set(SHARES) <= set(nodes)
    for name in (*SHARES, 'fixed_brain', 'moving_brain'):
        assert nodes[name].inputs.num_threads == nodes[name].n_procs, name
    nodes['optimize'].n_procs = 5
    assert nodes['optimize'].inputs.num_threads == 5


def test_a_gpu_node_takes_one_slot():
    nodes = embed(init_register_pair_wf(device='cuda:1', omp_nthreads=4))
    assert {name for name, node in nodes.items() if node.is_gpu_node()} == {'optimize'}
    assert nodes['optimize'].n_procs == 1
    assert nodes['evaluate'].n_procs == 4
    assert not any(node.is_gpu_node() for node in embed(init_register_pair_wf()).values())


def test_memory_is_stated_or_follows_from_the_images(files):
    stated = embed(init_register_pair_wf(mem_gb=3.0))
    assert {name: node.mem_gb_runtime for name, node in stated.items()} == pytest.approx(
        {'affine_init': 1.2, 'optimize': 3.0, 'transforms': 3.0, 'evaluate': 1.8, 'report': 1.8}
    )
    nodes = embed(init_register_pair_wf(), **files.some('fixed_image', 'moving_image'))
    shape = files.pair.fixed.grid.shape
    assert nodes['optimize'].mem_gb == estimate_memory_gb()
    for name, share in (('optimize', 1.0), ('affine_init', 0.4)):
        expected = share * estimate_memory_gb(shape, shape)
        assert nodes[name].mem_gb_runtime == pytest.approx(expected, abs=0.01)
    assert estimate_memory_gb((400,) * 3, (400,) * 3) > estimate_memory_gb() > 1


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({}, 'optimised for the pair'),
        ({}, 'a trained network found the same structures'),
        ({'structures': False}, 'similarity of sampled points and gradient inverse consistency'),
        ({'steps': 0}, 'predicted by trained weights'),
        ({'affine': False}, 'No affine transform was estimated'),
        ({'whole_head': True}, 'whole heads'),
        ({'brain_extraction': 'deepbet'}, 'deepbet'),
    ],
)
def test_methods_text_says_what_was_done(settings, words):
    text = init_brain_wf(**settings).__desc__
    assert words in text
    assert 'NePhi' in text


SETTINGS = {
    'sloppy': True,
    'steps': 12,
    'xfm_grid': 4.0,
    'omp_nthreads': 1,
    'label_names': {1: 'one'},
}


def keep(workflow, folder):
    """``workflow`` in a foreign one that links what it gives into ``folder``."""
    outer = pe.Workflow('outer', base_dir=str(folder))
    outer.config['execution'] = {'hash_method': 'content', 'crashdump_dir': str(folder)}
    sink = pe.Node(DataSink(base_directory=str(folder / 'out')), name='sink')
    outer.connect(
        [(workflow, sink, [(f'outputnode.{field}', field) for field in sorted(OUTPUTS)])]
    )
    return outer


@pytest.fixture(scope='module')
def result(files, tmp_path_factory):
    """Files by the name of the output, after a run inside a foreign workflow."""
    folder = tmp_path_factory.mktemp('run')
    workflow = init_brain_wf(**SETTINGS)
    workflow.inputs.inputnode.trait_set(**files.paths)
    keep(workflow, folder).run()
    found = {path.name: sorted(path.iterdir()) for path in (folder / 'out').iterdir()}
    return folder, found


def test_every_output_is_there(result):
    _, found = result
    assert set(found) == OUTPUTS
    assert all(len(found[name]) == 1 for name in OUTPUTS - {'figures'})
    assert {path.suffix for path in found['figures']} == {'.png', '.svg'}


def test_saved_transforms_are_the_field(result, files):
    _, found = result
    registration = load_registration(found['field'][0])
    for name, way, points in (
        ('forward', registration, files.pair.fixed_landmarks),
        ('inverse', registration.inverse, files.pair.moving_landmarks),
    ):
        facts = json.loads(found[f'{name}_sidecar'][0].read_text())
        mapped = read_transform(found[f'{name}_transform'][0]).map_points(points)
        errors = np.linalg.norm(mapped - way.warp_points(points), axis=1)
        assert errors.max() < 0.02 + facts['FieldInterpolationErrorMax']
    np.testing.assert_allclose(
        read_affine(found['affine'][0]), registration.affine, rtol=0, atol=1e-12
    )


def test_warped_files_follow_the_transform(result, files):
    _, found = result
    forward = read_transform(found['forward_transform'][0])
    grid = files.pair.fixed.grid
    image = resample(files.pair.moving, forward, grid)
    scale = files.pair.moving.data.max()
    warped = load_image(found['warped_image'][0])
    assert np.abs(warped.data - image.data).max() < 0.05 * scale
    labels = load_labels(found['warped_labels'][0])
    expected = resample(files.pair.moving_labels, forward, grid, 'labels')
    assert (labels.data != expected.data).mean() < 0.005
    jacobian = load_image(found['jacobian'][0])
    assert jacobian.grid.same_as(grid)
    assert 0 < jacobian.data.min() <= jacobian.data.max() < 10


def test_metrics_are_those_of_the_truth(result, files):
    _, found = result
    metrics = json.loads(found['metrics'][0].read_text())
    registration = load_registration(found['field'][0])
    pair = files.pair
    for when, mapped in (
        ('before', apply_affine(registration.affine, pair.fixed_landmarks)),
        ('after', registration.warp_points(pair.fixed_landmarks)),
    ):
        errors = np.linalg.norm(mapped - pair.moving_landmarks, axis=1)
        assert metrics['tre_mm'][when]['mean'] == pytest.approx(errors.mean(), abs=2e-3)
        assert metrics['tre_mm'][when]['n'] == len(errors)
    labels = load_labels(found['warped_labels'][0]).data
    for label, value in metrics['dice']['after']['labels'].items():
        a, b = pair.fixed_labels.data == int(label), labels == int(label)
        assert value == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=0.03)
    back = registration.inverse.warp_points(registration.warp_points(pair.fixed_landmarks))
    consistency = np.linalg.norm(back - pair.fixed_landmarks, axis=1).mean()
    assert metrics['inverse_consistency_mm']['mean'] == pytest.approx(consistency, rel=0.25)
    assert metrics['folds']['exact']['count'] == 0
    history = json.loads(found['history'][0].read_text())
    assert len(history) == SETTINGS['steps']


def test_page_of_the_pair_is_made_from_the_parts(result, files):
    _, found = result
    parts = json.loads(found['report_parts'][0].read_text())
    parts['label_names'] = {int(k): text for k, text in parts['label_names'].items()}
    figures = [load_figure(path) for path in found['figures']]
    assert {'fixed', 'before', 'after', 'grid', 'jacobian', 'dice', 'curve'} <= {
        figure.key for figure in figures
    }
    html = pair_section(figures, **parts, title='a pair')
    assert files['moving_image'] in html
    assert 'one' in html


def test_same_command_again_runs_nothing(result, files, tmp_path, caplog):
    folder, _ = result
    before = {path: path.stat().st_mtime_ns for path in folder.glob('outer/**/result_*.pklz')}
    workflow = init_brain_wf(**{**SETTINGS, 'omp_nthreads': 2})
    for name, path in files.paths.items():
        copied = shutil.copy(path, tmp_path)
        setattr(workflow.inputs.inputnode, name, copied)
    keep(workflow, folder).run()
    after = {path: path.stat().st_mtime_ns for path in folder.glob('outer/**/result_*.pklz')}
    ran = {path.parent.name for path in after if after[path] != before.get(path)}
    assert ran <= {'sink'}


@pytest.mark.parametrize(('xfm_format', 'tolerance_mm'), [('nii', 0.6), ('field', 1e-6)])
def test_other_formats_hold_the_same_map(result, files, tmp_path, xfm_format, tolerance_mm):
    _, found = result
    interface = NePhiOptimize(
        **files.some('fixed_image', 'moving_image'),
        initial_transform=str(found['affine'][0]),
        sloppy=True,
        steps=SETTINGS['steps'],
        xfm_format=xfm_format,
        xfm_grid='4',
    )
    path = interface.run(cwd=str(tmp_path)).outputs.forward_transform
    points = files.pair.fixed_landmarks
    expected = load_registration(found['field'][0]).warp_points(points)
    errors = np.linalg.norm(read_transform(path).map_points(points) - expected, axis=1)
    assert errors.max() < tolerance_mm
