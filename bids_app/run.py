"""One run of ``nephi-pipe``, from its settings to its exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import NePhiError, NoInputError, OutputError
from ..files import make_folder, remove_leftovers
from .console import log_file, quieten_nipype, start_log
from .dataset import MOST_WAIT_S, check_output, write_dataset_files
from .device import check_device
from .lock import hold
from .names import Names
from .outcome import Conclusion, Failure, Stopped, conclude, count, read_crash
from .pairs import Pair, select_pairs
from .plugin_file import Plugin, check_queue, choose_plugin
from .preflight import check_dataset, check_pairs
from .reference import mni_template, write_template
from .settings import Settings

logger = logging.getLogger('nephi_pipe')

LAST_SECONDS = 8.0
"""After a signal to stop, the process ends within this time, whatever it is doing."""


@dataclass
class State:
    """How far a run has come; what its end is told from."""

    total: int = 0
    done: list[Pair] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    stopped: str = ''
    log: ExitStack = field(default_factory=ExitStack)
    """Holds the file of what is said, until all is said."""

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal came; Nipype may have swallowed the first one."""
        if self.stopped:
            raise Stopped(self.stopped)

    def conclude(self, error: BaseException | None = None) -> Conclusion:
        """The exit code and the sentence for this state."""
        return conclude(len(self.done), self.total, self.failures, error)


def run(settings: Settings) -> int:
    """Run the levels of ``settings``, say what happened, and return the exit code."""
    state = State()
    start_log(settings.verbose)
    with state.log:
        return _run_and_say(settings, state)


def _run_and_say(settings: Settings, state: State) -> int:
    """Run, then tell what failed and how it ended."""
    try:
        with _stopped_by_signals(state):
            _run(settings, state)
            conclusion = state.conclude()
    except (Exception, KeyboardInterrupt, Stopped) as error:
        if not isinstance(error, (NePhiError, OSError, KeyboardInterrupt, Stopped)):
            logger.debug('%s', traceback.format_exc())
            traceback.print_exc()
        conclusion = state.conclude(error)
    for failure in state.failures:
        logger.error('%s', failure)
    log = logger.error if conclusion.code else logger.info
    log('%s', conclusion.message)
    return conclusion.code


def _run(settings: Settings, state: State) -> None:
    if not settings.dry_run:
        _use_writable_home(settings.own_work_dir)
    plugin = choose_plugin(settings)
    settings = _on_this_machine(settings, plugin)
    if 'group' in settings.levels:
        _check_thresholds(settings)
    if 'participant' in settings.levels:
        _run_participants(settings, plugin, state)
    nothing = bool(state.total and not state.done)
    if 'group' in settings.levels and not nothing:
        _run_group(settings)
    elif 'group' in settings.levels:
        logger.warning(
            'Nothing was registered, so the group level is left out: a table and a page of the '
            'group, if there are any, are of an earlier run.'
        )
    if settings.clean_workdir and state.done and not state.conclude().code:
        from .cleaning import clean_work

        clean_work(settings, state.done, new_run_name())


def _on_this_machine(settings: Settings, plugin: Plugin) -> Settings:
    """Check the device that nodes will see, and take what a plugin file says of resources."""
    if plugin.name != 'SLURM' or settings.device == 'auto':
        settings = replace(settings, device=check_device(settings.device))
    if (nprocs := plugin.arguments.get('n_procs')) is not None:
        threads = min(settings.omp_nthreads, nprocs)
        settings = replace(settings, nprocs=nprocs, omp_nthreads=threads)
    return replace(settings, mem_gb=plugin.arguments.get('memory_gb', settings.mem_gb))


def _run_participants(settings: Settings, plugin: Plugin, state: State) -> None:
    check_files(settings)
    pairs = select_pairs(settings)
    if not settings.skip_bids_validation:
        check_dataset(settings.bids_dir)
    if settings.dry_run:
        from .dryrun import describe

        _print(describe(settings, pairs))
    elif settings.reports_only:
        subjects = sorted({pair.moving.subject for pair in pairs})
        people = [f'sub-{subject}' for subject in subjects]
        _check_results(settings)
        with hold([settings.output_dir / 'logs'], people, new_run_name()):
            _write_reports(settings, subjects)
    else:
        check_queue(plugin)
        state.total = len(pairs)
        _run_pairs(settings, pairs, plugin, state)


def _print(text: str) -> None:
    """Print, and be content where a reader (such as head) has enough before the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_pairs(settings: Settings, pairs: Sequence[Pair], plugin: Plugin, state: State) -> None:
    """Register ``pairs``, holding the locks of their people, and describe the data set."""
    from .cleaning import clean_people, end_jobs
    from .workflow import describe_method

    name, started = new_run_name(), datetime.now().astimezone().isoformat(timespec='seconds')
    _prepare_output(settings)
    people = sorted({f'sub-{pair.moving.subject}' for pair in pairs})
    locks = [settings.output_dir / 'logs', settings.own_work_dir / 'locks']
    with hold(locks, people, name):
        state.log.enter_context(log_file(settings.output_dir / 'logs' / f'{name}.log'))
        clean_people(settings.output_dir, people)
        end_jobs(settings, people)
        write_dataset_files(settings, name, started, describe_method(settings))
        _write_template(settings, pairs, name)
        good, state.failures = check_pairs(pairs)
        for failure in state.failures:
            logger.warning('%s', failure)
        if good:
            _register(settings, good, plugin, state, name)


def _write_template(settings: Settings, pairs: Sequence[Pair], name: str) -> None:
    template = mni_template(settings.own_work_dir)
    if any(pair.fixed.path == template.path for pair in pairs):
        with hold([settings.own_work_dir / 'locks'], ['shared'], name, MOST_WAIT_S):
            write_template(template)


def new_run_name() -> str:
    """A name that no other run has, sorted by time."""
    return f'{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}'


def check_files(settings: Settings) -> None:
    """Refuse files that were named and do not exist, before anything is written."""
    weights = None if settings.weights in ('default', 'none') else Path(settings.weights)
    for option, path in (
        ('--initial-transform', settings.initial_transform),
        ('--weights', weights),
    ):
        if path is not None and not path.is_file():
            raise NoInputError(f'There is no file "{path}" as {option} names it. Check the path.')


def _prepare_output(settings: Settings) -> None:
    """Make the folders and see that they can be written to."""
    check_output(settings.output_dir)
    for folder in (settings.output_dir, settings.work_dir):
        remove_leftovers(make_folder(folder), 'probe')
        probe = folder / f'.{uuid.uuid4().hex[:8]}.partial.probe'
        try:
            probe.touch()
            probe.unlink(missing_ok=True)  # a run that starts just now may have removed it
        except OSError as error:
            raise OutputError(
                f'The folder "{folder}" cannot be written to ({error.strerror}); expected one '
                'that you may write to. Choose another, or change its permissions.'
            ) from error


def _register(
    settings: Settings, pairs: Sequence[Pair], plugin: Plugin, state: State, name: str
) -> None:
    """Run the workflow of ``pairs`` and find out how each of them went."""
    from .plugin import make_plugin
    from .progress import Progress
    from .workflow import build_workflow, draw_graph

    quieten_nipype(settings.verbose)
    workflow = build_workflow(settings, pairs, name)
    if settings.write_graph:
        with hold([settings.output_dir / 'logs'], ['dataset_description'], name, MOST_WAIT_S):
            draw_graph(settings, pairs[0], settings.output_dir / 'logs' / f'{name}_graph.dot')
    names = [Names(settings.output_dir, pair, settings.xfm_format) for pair in pairs]
    progress = Progress(names, state.check)
    state.done = progress.done
    runner = make_plugin(settings, plugin, progress)
    logger.info(
        'Run %s: %s with %s; results in %s, work in %s.',
        name,
        count(len(pairs), 'pair'),
        _means(settings, plugin, max(node.mem_gb for node in workflow._get_all_nodes())),
        settings.output_dir,
        settings.work_dir,
    )
    problem = None
    try:
        with progress:
            workflow.run(plugin=runner)
    except Exception as error:  # Nipype raises what a node raised, in many shapes
        problem = error
    state.check()
    crashes = _crashes(settings.output_dir, pairs, name)
    state.failures += crashes
    if problem is not None and not crashes:
        raise problem
    unreported = {pair.moving.subject for pair in progress.done} & {
        failure.person.removeprefix('sub-') for failure in crashes
    }
    if unreported:
        _write_reports(settings, sorted(unreported))


def _means(settings: Settings, plugin: Plugin, need_gb: float) -> str:
    """What a run works with; a warning where a pair's memory is more than there is."""
    if plugin.name == 'SLURM':
        return f'jobs of SLURM of up to {settings.omp_nthreads} processors'
    if need_gb > settings.mem_gb:
        logger.warning(
            'A pair needs about %.1f GB, and %.1f GB may be used: memory may run out.',
            need_gb, settings.mem_gb,
        )  # fmt: skip
    return f'{settings.nprocs} processors and {settings.mem_gb:.1f} GB'


def _crashes(output_dir: Path, pairs: Sequence[Pair], name: str) -> list[Failure]:
    """What the crash files of this run say, a sentence for each."""
    failures = []
    for person in sorted({f'sub-{pair.moving.subject}' for pair in pairs}):
        for path in sorted((output_dir / person / 'log' / name).glob('crash-*.txt')):
            _, sentence, code = read_crash(path)
            failures.append(Failure(person, sentence, code, path))
    return failures


def _write_reports(settings: Settings, subjects: Sequence[str]) -> None:
    """Write people's pages from what is stored; people without results are only named."""
    from .subject_report import write_subject_report

    problems = []
    for subject in subjects:
        try:
            page = write_subject_report(settings.output_dir, subject)
            logger.info('sub-%s: report in %s.', subject, page)
        except NoInputError as error:
            problems.append(error)
            logger.warning('%s', error)
    if len(problems) == len(subjects):
        raise problems[0]


def _check_thresholds(settings: Settings) -> None:
    """A mistake in them is told before anything is registered."""
    from .group_flags import load_thresholds

    load_thresholds(settings.thresholds)


def _check_results(settings: Settings) -> None:
    if not settings.output_dir.is_dir():
        raise NoInputError(
            f'There is no folder "{settings.output_dir}"; expected the results of the participant '
            'level. Run it first, or check the path.'
        )


def _run_group(settings: Settings) -> None:
    from .group import STEM, build_group, describe_group

    if settings.dry_run:
        # Results that the participant level is yet to write are none of the group's now.
        if 'participant' not in settings.levels:
            _print(describe_group(settings.output_dir))
        return
    _check_results(settings)
    with hold([settings.output_dir / 'logs'], ['group'], new_run_name()):
        remove_leftovers(settings.output_dir, f'{STEM}_*')
        build_group(settings.output_dir, settings.thresholds)


@contextmanager
def _stopped_by_signals(state: State) -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into :class:`Stopped`; a second one changes nothing.

    A SIGHUP that is ignored, as under nohup, stays so.
    """

    def stop(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        timer.daemon = True
        timer.start()
        state.stopped = signal.Signals(number).name
        raise Stopped(state.stopped)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer = threading.Timer(LAST_SECONDS, _leave, [state])
    stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {each: signal.getsignal(each) for each in stopping}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        timer.cancel()
        for each, handler in before.items():
            signal.signal(each, handler)


def _leave(state: State) -> None:
    """End now: something would not let go in time."""
    conclusion = state.conclude(Stopped())
    with suppress(OSError, ValueError):  # the terminal may be gone
        print(conclusion.message, file=sys.stderr, flush=True)
    os._exit(conclusion.code)


def _use_writable_home(work_dir: Path) -> None:
    """Let libraries keep their caches in the work folder where there is no writable home."""
    home = Path(os.environ.get('HOME') or '/nonexistent')
    if os.access(home, os.W_OK):
        return
    instead = make_folder(work_dir / 'home')
    os.environ.update(
        HOME=str(instead),
        XDG_CACHE_HOME=str(instead / '.cache'),
        XDG_CONFIG_HOME=str(instead / '.config'),
        MPLCONFIGDIR=str(instead / '.matplotlib'),
    )
