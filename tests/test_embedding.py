"""Inside somebody else's code: the examples of the documentation, ANTs' names, no side effects."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nipype.interfaces.ants import ApplyTransforms as TheirApplyTransforms
from nipype.interfaces.ants import Registration as TheirRegistration
from nipype.pipeline.engine.utils import load_resultfile
from small_pair import write_pair

from nephi_pipe.errors import UsageError
from nephi_pipe.images import load_image, load_labels, save_image
from nephi_pipe.interfaces import BrainMask, ants
from nephi_pipe.itk import write_affine
from nephi_pipe.metrics import dice
from nephi_pipe.registration import load_registration
from nephi_pipe.transforms import read_transform, resample

DOC = Path(__file__).parents[1] / 'docs' / 'embedding.md'
PAIRS = (
    (ants.Registration, TheirRegistration),
    (ants.ApplyTransforms, TheirApplyTransforms),
)
OURS_ALONE = {
    'modality', 'weights', 'steps', 'structures', 'device', 'use_gpu', 'sloppy', 'field',
}  # fmt: skip
"""What ANTs has no word for."""


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp('pair'))


def example(section: str, number: int = 0) -> str:
    """A block of code under a heading of the document."""
    text = DOC.read_text(encoding='utf-8').split(f'\n## {section}\n')[1].split('\n## ')[0]
    return re.findall(r'```python\n(.*?)```', text, re.DOTALL)[number]


def imported(code: str, folder: Path, monkeypatch) -> object:
    """The code as a module."""
    name = f'example_{abs(hash(code))}'
    (folder / f'{name}.py').write_text(code)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


def finished(workflow, folder: Path, *nodes: str) -> list:
    """Run a workflow and give the outputs of some of its nodes."""
    workflow.base_dir = str(folder)
    workflow.config['execution'] = {
        'crashdump_dir': str(folder), 'remove_unnecessary_outputs': 'false'
    }  # fmt: skip
    workflow.run()
    return [
        load_resultfile(folder / workflow.name / node / f'result_{node}.pklz').outputs
        for node in nodes
    ]


def large_labels(labels: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    found = {int(v): int(n) for v, n in zip(values, counts, strict=True) if n > 300}
    assert found
    return found


def test_every_example_is_run_here():
    assert DOC.read_text(encoding='utf-8').count('```python') == 4


def test_example_after_a_skull_stripping_node(files, tmp_path, monkeypatch):
    section = 'After your skull stripping'
    module = imported(example(section), tmp_path, monkeypatch)
    workflow = module.init_atlas_wf(
        files['moving_image'],
        files['moving_labels'],
        files['fixed_image'],
        sloppy=True,
        xfm_grid=5.0,
    )
    (volumes,) = finished(workflow, tmp_path, 'volumes')
    for label, count in large_labels(files.pair.fixed_labels.data).items():
        assert volumes.volumes[label] == pytest.approx(count, rel=0.3)
    compile(example(section, 1), 'docs', 'exec')


def test_example_in_the_place_of_ants(files, tmp_path, monkeypatch):
    masks = {}
    for side in ('fixed', 'moving'):
        (tmp_path / side).mkdir()
        run = BrainMask(image=files[f'{side}_image']).run(cwd=str(tmp_path / side))
        masks[side] = run.outputs.mask
    module = imported(example('In the place of ANTs'), tmp_path, monkeypatch)
    workflow = module.init_normalise_wf(
        files['fixed_image'],
        masks['fixed'],
        files['moving_image'],
        masks['moving'],
        files['fixed_labels'],
        sloppy=True,
    )
    normalise, by_itk, to_scan = finished(workflow, tmp_path, 'normalise', 'by_itk', 'to_scan')
    assert Path(normalise.composite_transform).name == 'transformComposite.h5'
    # What ITK makes of the file is what we call the warped image.
    ours, theirs = load_image(normalise.warped_image), load_image(by_itk.moved)
    inside = load_image(files['fixed_image']).data > 0
    apart = np.abs(ours.data - theirs.data)[inside]
    assert np.percentile(apart, 99) < 0.05 * ours.data.max()
    atlas = load_labels(to_scan.output_image)
    assert atlas.grid.same_as(files.pair.moving.grid)
    scores = dice(atlas.data, files.pair.moving_labels.data)
    before = dice(
        resample(files.pair.fixed_labels, lambda points: points, atlas.grid, 'labels').data,
        files.pair.moving_labels.data,
    )
    large = large_labels(files.pair.moving_labels.data)
    mean, mean_before = (np.mean([one[label] for label in large]) for one in (scores, before))
    assert mean > max(0.6, mean_before)


CHECK = """
warped, scale = registration.warp(moving).data, moving.data.max()
inside = fixed.data > 0
print(abs(again.data - warped)[inside].mean() / scale)
print(abs(warped - moving.data)[inside].max() / scale)
"""


@pytest.mark.slow
def test_example_in_plain_python(files, tmp_path):
    code = example('Plain Python').replace("modality='brain'", "modality='brain', sloppy=True")
    code += '\nimport sys\nassert "nipype" not in sys.modules\n'
    for name in ('fixed', 'moving', 'moving_labels'):
        key = name if name.endswith('labels') else f'{name}_image'
        shutil.copy(files[key], tmp_path / f'{name}.nii.gz')
    run = subprocess.run(
        [sys.executable, '-c', code + CHECK],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    apart, change = map(float, run.stdout.split()[-2:])
    assert apart < 0.02 < 0.2 < change, 'the file warps as the registration did'
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    assert written == {'transform.h5', 'inverse.h5', 'warped.nii.gz', 'labels.nii.gz'}
    warped = load_image(tmp_path / 'out' / 'warped.nii.gz')
    assert warped.grid.same_as(files.pair.fixed.grid)


@pytest.mark.parametrize(('ours', 'theirs'), PAIRS, ids=['Registration', 'ApplyTransforms'])
def test_names_are_those_of_ants(ours, theirs):
    for spec in ('input_spec', 'output_spec'):
        own, other = (set(getattr(one, spec)().copyable_trait_names()) for one in (ours, theirs))
        assert own - other <= OURS_ALONE


@pytest.mark.parametrize(('ours', 'theirs'), PAIRS, ids=['Registration', 'ApplyTransforms'])
def test_every_trait_is_described_and_no_output_must_exist(ours, theirs):
    for spec in (ours.input_spec(), ours.output_spec()):
        for name in spec.copyable_trait_names():
            assert spec.trait(name).desc, name
    for name in ours.output_spec().copyable_trait_names():
        assert not getattr(ours.output_spec().trait(name).trait_type, 'exists', False)


def test_registration_with_everything_that_ants_has(files, tmp_path):
    shift = np.eye(4)
    shift[0, 3] = 2.0
    affine = write_affine(tmp_path / 'initial.txt', np.linalg.inv(shift))
    run = ants.Registration(
        **{f'{side}_image': [files[f'{side}_image']] for side in ('fixed', 'moving')},
        fixed_image_masks=['NULL', 'NULL'],
        initial_moving_transform=[str(affine)],
        invert_initial_moving_transform=[True],
        dimension=3,
        float=True,
        interpolation='BSpline',
        output_transform_prefix='ants_',
        output_warped_image='moved.nii.gz',
        output_inverse_warped_image=True,
        random_seed=3,
        num_threads=1,
        steps=3,
        sloppy=True,
    ).run(cwd=str(tmp_path))
    found = run.outputs
    names = {
        'composite_transform': 'ants_Composite.h5',
        'inverse_composite_transform': 'ants_InverseComposite.h5',
        'warped_image': 'moved.nii.gz',
        'inverse_warped_image': 'ants__InverseWarped.nii.gz',
        'field': 'ants_Field.safetensors',
    }
    assert {name: Path(getattr(found, name)).name for name in names} == names
    assert found.forward_transforms == [found.composite_transform]
    assert found.reverse_transforms == [found.inverse_composite_transform]
    assert found.forward_invert_flags == found.reverse_invert_flags == [False]
    assert found.elapsed_time > 0
    registration = load_registration(found.field)
    np.testing.assert_allclose(registration.affine, shift, atol=1e-9)
    assert registration.provenance['seed'] == 3 and registration.provenance['steps'] == 3
    for name, grid in (
        ('warped', files.pair.fixed.grid),
        ('inverse_warped', files.pair.moving.grid),
    ):
        assert load_image(getattr(found, f'{name}_image')).grid.same_as(grid)
    points = files.pair.fixed_landmarks[:50]
    itk = sitk.ReadTransform(found.composite_transform)
    lps = np.array([-1.0, -1.0, 1.0])
    mapped = np.array([itk.TransformPoint(point.tolist()) for point in points * lps]) * lps
    assert np.abs(mapped - registration.warp_points(points)).max() < 0.1


@pytest.mark.parametrize(
    ('inputs', 'words'),
    [
        ({'moving_image': 2}, 'moving_image is 2 images; expected one'),
        ({'invert_initial_moving_transform': [True, False]}, '2 flags of inversion for 1'),
    ],
)
def test_registrations_that_cannot_be_asked_for(files, tmp_path, inputs, words):
    inputs = {**inputs, 'fixed_image': files['fixed_image']}
    inputs['moving_image'] = [files['moving_image']] * inputs.get('moving_image', 1)
    affine = str(write_affine(tmp_path / 'initial.txt', np.eye(4)))
    with pytest.raises(UsageError, match=words):
        ants.Registration(**inputs, initial_moving_transform=affine).run(cwd=str(tmp_path))


def test_apply_transforms_inverts_and_names_as_ants_does(files, tmp_path):
    shift = np.eye(4)
    shift[:3, 3] = 10.0, 0.0, 0.0
    there = str(write_affine(tmp_path / 'there.txt', shift))
    common = {
        'input_image': files['moving_labels'],
        'reference_image': files['moving_labels'],
        'interpolation': 'GenericLabel',
    }
    both = ants.ApplyTransforms(
        **common,
        transforms=['identity', there, there],
        invert_transform_flags=[False, True, False],
    ).run(cwd=str(tmp_path))
    assert Path(both.outputs.output_image).name == 'moving_labels_trans.nii.gz'
    labels = load_labels(files['moving_labels'])
    np.testing.assert_array_equal(load_labels(both.outputs.output_image).data, labels.data)
    back = ants.ApplyTransforms(
        **common,
        transforms=there,
        invert_transform_flags=True,
        default_value=7.0,
        output_image='back.nii.gz',
    ).run(cwd=str(tmp_path))
    assert Path(back.outputs.output_image) == tmp_path / 'back.nii.gz'
    moved = load_labels(back.outputs.output_image)
    inverse = read_transform(there).inverse()
    expected = resample(labels, inverse, labels.grid, 'labels', cval=7)
    np.testing.assert_array_equal(moved.data, expected.data)
    assert 7 in np.unique(moved.data)


def test_a_field_is_not_inverted_by_a_flag(files, tmp_path):
    field = np.zeros((*files.pair.fixed.grid.shape, 1, 3), dtype=np.float32)
    path = save_image(tmp_path / 'field.nii.gz', field, files.pair.fixed.grid, 'vector')
    with pytest.raises(UsageError, match='Give the file of the opposite direction'):
        ants.ApplyTransforms(
            input_image=files['moving_image'],
            reference_image=files['fixed_image'],
            transforms=[str(path)],
            invert_transform_flags=[True],
        ).run(cwd=str(tmp_path))


# side effects

WATCH = """
import os, sys

def watch(event, arguments):
    if event == 'open':
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if flags else 'w' in str(mode)
        if writes and not str(path).startswith('/dev/'):
            print('SIDE EFFECT: writes', path)
    elif event.split('.')[0] in ('socket', 'urllib') and event != 'socket.__new__':
        print('SIDE EFFECT:', event, arguments)
    elif event in ('os.mkdir', 'os.rename', 'os.remove', 'os.putenv', 'os.unsetenv', 'os.symlink'):
        print('SIDE EFFECT:', event, arguments)
    elif event in OURS and not any('nipype' in frame for frame in callers()):
        print('SIDE EFFECT: starts', arguments)

OURS = ('subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.exec', 'os.fork')

def callers():
    frame = sys._getframe()
    while frame:
        yield frame.f_code.co_filename
        frame = frame.f_back

def state():
    import logging, warnings
    loggers = {
        name: (one.level, list(one.handlers))
        for name, one in logging.root.manager.loggerDict.items()
        if name.startswith('nephi') and isinstance(one, logging.Logger)
    }
    root = logging.root.level, list(logging.root.handlers)
    return dict(os.environ), os.getcwd(), root, loggers, list(warnings.filters), os.listdir()
"""
DOINGS = {
    'the engine': 'import nephi_pipe, nephi_pipe.cli, nephi_pipe.transforms, nephi_pipe.images',
    'interfaces': (
        'from nephi_pipe import interfaces\nfrom nephi_pipe.interfaces import ants\n'
        'for name in interfaces.__all__: getattr(interfaces, name)()\n'
        'ants.Registration(), ants.ApplyTransforms()'
    ),
    'workflows': (
        'from nephi_pipe.workflows import init_brain_wf, init_register_pair_wf\n'
        'init_brain_wf(device="cuda"), init_register_pair_wf()'
    ),
    'the BIDS App': 'import nephi_pipe.bids_app.workflow, nephi_pipe.bids_app.group',
}


@pytest.mark.parametrize('what', DOINGS)
def test_importing_and_building_have_no_side_effects(what, tmp_path):
    # What libraries do when they are imported is their own affair.
    libraries = 'numpy, scipy.io, scipy.ndimage, scipy.spatial, scipy.special, nibabel'
    if what != 'the engine':
        libraries += ', nipype.pipeline.engine, nipype.interfaces.io'
    code = WATCH + (
        f'import {libraries}\n'
        'before = state()\n'
        'sys.addaudithook(watch)\n'
        'exec(WHAT)\n'
        'after = state()\n'
        'assert {k: v for k, v in after[3].items() if v != (0, [])} == {}, after[3]\n'
        'for old, new in zip(before[:3] + before[4:], after[:3] + after[4:]):\n'
        '    assert old == new, (old, new)\n'
        'heavy = {"torch", "matplotlib", "nilearn", "bids", "deepbet"} & set(sys.modules)\n'
        'assert not heavy, heavy\n'
    )
    code = f'WHAT = {DOINGS[what]!r}\n{code}'
    check_silent([sys.executable, '-B', '-c', code], tmp_path)


@pytest.mark.parametrize('command', ['nephi', 'nephi-pipe'])
@pytest.mark.parametrize('option', ['--help', '--version'])
def test_commands_answer_without_side_effects(command, option, tmp_path):
    module = {'nephi': 'nephi_pipe.cli', 'nephi-pipe': 'nephi_pipe.bids_app.cli'}[command]
    code = WATCH + (
        'sys.addaudithook(watch)\n'
        f'from {module} import main\n'
        f'try: main([{option!r}])\n'
        'except SystemExit as end: assert not end.code\n'
        'heavy = {"torch", "nipype", "bids", "numpy", "nibabel"} & set(sys.modules)\n'
        'assert not heavy, heavy\n'
    )
    assert command in check_silent([sys.executable, '-B', '-c', code], tmp_path)


@pytest.mark.parametrize('command', ['nephi', 'nephi-pipe'])
def test_installed_commands_answer(command, tmp_path):
    path = Path(sysconfig.get_path('scripts')) / command
    if not path.exists():
        pytest.skip(f'{command} is not installed beside this Python')
    assert f'usage: {command}' in check_silent([str(path), '--help'], tmp_path)


def check_silent(command: list[str], home: Path) -> str:
    """What a command prints; it leaves an empty home and a working folder as they were."""
    (home / 'cwd').mkdir()
    environment = {'PATH': '/usr/bin:/bin', 'HOME': str(home), 'PYTHONDONTWRITEBYTECODE': '1'}
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=home / 'cwd', env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert 'SIDE EFFECT' not in run.stdout, run.stdout
    assert sorted(path.name for path in home.rglob('*')) == ['cwd']
    return run.stdout
