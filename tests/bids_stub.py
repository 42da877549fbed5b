"""``nephi-pipe`` with a workflow that registers nothing, for tests of everything around it.

``python bids_stub.py ARGUMENTS`` runs it as a process of its own. What a person's node does is
said by ``STUB_BEHAVIOUR``, JSON such as ``{"02": "kill", "03": "sleep"}``; each node that really
runs leaves a line in the file ``STUB_LOG``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from nipype.interfaces.utility import Function, IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from nephi_pipe.workflows.masked import MASKS
from nephi_pipe.workflows.pair import INPUTS, OUTPUTS


def find_brain(image):
    """Stands for the search for the brain: reads the image, so that bad files are noticed."""
    import os

    from nephi_pipe.images import load_image

    with open(os.environ['STUB_LOG'], 'a') as log:
        log.write(f'brain {os.path.basename(image)}\n')
    load_image(image)
    return 'skull-stripped'


def register(fixed, moving, moving_labels, xfm_format, seed, source, outputs):
    """Stands for the registration: copies files."""
    import json
    import os
    import shutil
    import signal
    import time

    from nipype.interfaces.base import Undefined

    def behave(what):
        if what == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if what == 'fail':
            raise ValueError('an ordinary mistake')
        if what == 'sleep' or (what == 'sleep once' and lines.count(f'register {person}\n') == 1):
            time.sleep(60)
        if what == 'deep':  # a library call that never lets another thread of Python run
            import ctypes

            ctypes.PyDLL(None).sleep(60)
        if what == 'eat':
            eaten = []
            while sum(map(len, eaten)) < 6 << 30:
                eaten.append(bytearray(os.urandom(1 << 20)) * 64)
        if what == 'large':
            with open('big.bin', 'wb') as stream:
                stream.write(os.urandom(6 << 20))

    person = os.path.basename(moving).split('_')[0][4:]
    with open(os.environ['STUB_LOG'], 'a') as log:
        log.write(f'register {person}\n')
    with open(os.environ['STUB_LOG']) as log:
        lines = log.readlines()
    what = json.loads(os.environ.get('STUB_BEHAVIOUR', '{}')).get(person, '')
    behave(what)
    end = {'h5': '.h5', 'nii': '.nii.gz', 'field': '.safetensors'}[xfm_format]
    files = {}
    for name in ('forward', 'inverse'):
        files[f'{name}_transform'] = os.path.abspath(name + end)
        with open(name + end, 'w') as stream:
            stream.write(f'{name} {seed}')
        files[f'{name}_sidecar'] = os.path.abspath(name + '.json')
        with open(name + '.json', 'w') as stream:
            json.dump({'SpacingMm': 3.0}, stream)
    for name, source in (('warped_image', moving), ('jacobian', fixed)):
        files[name] = os.path.abspath(name + '.nii.gz')
        shutil.copy('big.bin' if what == 'large' else source, files[name])
    if moving_labels:
        files['warped_labels'] = os.path.abspath('labels.nii.gz')
        shutil.copy(moving_labels, files['warped_labels'])
    metrics = {
        'dice': {
            'before': {'mean': 0.5, 'labels': {'1': 0.5}},
            'after': {'mean': 0.75, 'labels': {'1': 0.75}},
        }
    }
    parts = {'seconds': 1.5, 'provenance': {'seed': seed}}
    for name, content in (('metrics', metrics), ('report_parts', parts)):
        files[name] = os.path.abspath(name + '.json')
        with open(name + '.json', 'w') as stream:
            json.dump(content, stream)
    return tuple(files.get(name, Undefined) for name in outputs)


def stub_brain_wf(**settings):
    return stub_wf('brain', **settings)


def stub_lung_wf(**settings):
    assert not {'whole_head', 'structures'} & set(settings)
    return stub_wf('lung', **settings)


def stub_wf(organ, *, xfm_format, seed, omp_nthreads, **_):
    """Has the nodes' names, inputs and outputs of the real workflow."""
    name = f'{organ}_wf'
    stored = [field for field in OUTPUTS if field not in ('field', 'history', 'figures', 'affine')]
    workflow = Workflow(name=name)
    inputnode = Node(IdentityInterface(fields=list(INPUTS)), name='inputnode')
    inputnode.inputs.moving_labels = ''
    outputnode = Node(IdentityInterface(fields=[*OUTPUTS, *MASKS]), name='outputnode')
    brain = Node(Function(function=find_brain, output_names=['source']), name=f'moving_{organ}')
    optimize = Node(
        Function(function=register, output_names=stored),
        name='optimize',
        n_procs=omp_nthreads,
        mem_gb=0.1,
    )
    optimize.inputs.xfm_format, optimize.inputs.seed = xfm_format, seed
    optimize.inputs.outputs = stored
    workflow.connect([
        (inputnode, brain, [('moving_image', 'image')]),
        (brain, optimize, [('source', 'source')]),
        (inputnode, optimize, [
            ('fixed_image', 'fixed'),
            ('moving_image', 'moving'),
            ('moving_labels', 'moving_labels'),
        ]),
        (optimize, outputnode, [(field, field) for field in stored]),
        (brain, outputnode, [('source', 'moving_mask_source')]),
    ])  # fmt: skip
    return workflow


def main(arguments):
    """The command itself, with the stub in the place of the registration."""
    from nephi_pipe.bids_app import cli, workflow

    stubs = {'init_brain_wf': stub_brain_wf, 'init_lung_wf': stub_lung_wf}
    with patch.multiple(workflow, **stubs):
        return cli.main(arguments)


if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(sys.argv[1:]))
