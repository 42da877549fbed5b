"""What runs the nodes of a run, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nipype.pipeline.plugins.base import PluginBase
from nipype.pipeline.plugins.linear import LinearPlugin

from ..workflows.plugin import SafeMultiProc, forget_incomplete
from ..workflows.slurm import SafeSLURM
from .plugin_file import Plugin
from .settings import Settings


class PersonFirst(SafeMultiProc):
    """Finishes one pair before it begins with the next.

    Nipype's own order is breadth first: all affines of all people, then all deformations, and
    the first result is stored when nearly everything is computed. Nodes that run in the main
    process (sinks and reports) come first and alone: what they make ready may be such a node too.
    """

    def _sort_jobs(self, jobids: Iterable[int], scheduler: str = 'tsort') -> list[int]:
        jobids = list(jobids)
        local = [job for job in jobids if self.procs[job].run_without_submitting]
        return sorted(
            local or jobids, key=lambda job: (self.procs[job].fullname.split('.')[1:3], job)
        )


class InOrder(LinearPlugin):
    """Nipype's ``Linear``, silent about the start of a node that has its results already.

    A node whose files are gone or damaged runs again, as with the other plugins.
    """

    def __init__(self, plugin_args: dict | None = None) -> None:
        super().__init__(plugin_args)
        self._tell = self._status_callback
        self._status_callback = self._tell_what_runs

    def _tell_what_runs(self, node: Any, status: str) -> None:
        if status == 'start':
            forget_incomplete(node)
        if status != 'start' or not _is_kept(node):
            self._tell(node, status)


def _is_kept(node: Any) -> bool:
    try:
        return all(node.is_cached())
    except Exception:  # inputs that cannot be read; the node itself will say so
        return False


def make_plugin(
    settings: Settings, plugin: Plugin, callback: Callable[[Any, str], None]
) -> PluginBase:
    """The plugin, ready for ``workflow.run``."""
    arguments = {**plugin.arguments, 'status_callback': callback}
    if plugin.name == 'Linear':
        return InOrder(arguments)
    if plugin.name == 'SLURM':
        return SafeSLURM(arguments)
    resources = {
        'n_procs': settings.nprocs,
        'memory_gb': settings.mem_gb,
        'n_gpu_procs': int(settings.gpu),
        'raise_insufficient': False,
        **arguments,
    }
    # With no slot at all Nipype would let every node have the GPU at once.
    resources['n_gpu_procs'] = max(resources['n_gpu_procs'], int(settings.gpu))
    return PersonFirst(resources)
