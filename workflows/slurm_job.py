"""What a SLURM job of :class:`~nephi_pipe.workflows.slurm.SafeSLURM` runs: one node.

``python -m nephi_pipe.workflows.slurm_job TASK ANSWER`` reads the pickled node from TASK, runs it,
and leaves its result, or its traceback, in ANSWER. A job without an answer has died.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from nipype.pipeline.plugins.multiproc import run_node

from ..files import atomic


def run_task(task: Path, answer: Path) -> None:
    """Run the node in the file ``task`` and write what came of it to ``answer``."""
    with open(task, 'rb') as stream:
        node, updatehash = pickle.load(stream)
    result = run_node(node, updatehash, 0)
    with atomic(answer) as temporary, open(temporary, 'wb') as stream:
        pickle.dump(result, stream)


if __name__ == '__main__':
    run_task(*map(Path, sys.argv[1:]))
