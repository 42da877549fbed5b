"""Which device a run computes on: the CPU, or a GPU that can be seen."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ..errors import UsageError


def check_device(device: str) -> str:
    """Resolve ``auto`` and refuse a GPU that cannot be seen, without loading torch.

    Raises
    ------
    UsageError
        CUDA was asked for and there is no such device; there is no silent change to the CPU,
        because results differ.
    """
    if device == 'cpu':
        return device
    gpus = _visible_gpus()
    if device == 'auto':
        return 'cuda' if gpus else 'cpu'
    wanted = int(device.partition(':')[2] or 0)
    if wanted >= gpus:
        raise UsageError(
            f'--device {device} was asked for, but {gpus} CUDA devices can be seen; use '
            '--device cpu, or start the container with --gpus all (docker) or --nv (apptainer).'
        )
    return device


def _visible_gpus() -> int:
    chosen = os.environ.get('CUDA_VISIBLE_DEVICES')
    if chosen is not None:
        return len([part for part in chosen.split(',') if part.strip() not in ('', '-1')])
    if shutil.which('nvidia-smi'):
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, check=False)
        return sum(line.startswith('GPU ') for line in listed.stdout.splitlines())
    return len(list(Path('/dev').glob('nvidia[0-9]*')))
