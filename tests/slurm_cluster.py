"""A real SLURM of one node on this machine, without systemd and without touching its settings.

Everything (configuration, keys, state, logs) is in one temporary folder, ports are free ones, and
the daemons run as the user who starts them. Needs munge and slurm-wlm, and root.

    python tests/slurm_cluster.py        # prints the line that makes sbatch use it; Ctrl-C ends it
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ('setpriv', 'munged', 'slurmctld', 'slurmd', 'sbatch', 'squeue', 'scancel', 'scontrol')
CPUS = 2
MEMORY_MB = 4000

CONFIGURATION = """\
ClusterName=nephi
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=300
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=short Nodes={host} MaxTime=1 State=UP
"""


def missing() -> str:
    """Why no SLURM can be started here; empty if it can."""
    path = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'
    absent = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if absent:
        return f'no SLURM here ({", ".join(absent)} missing): make slurm installs it'
    return '' if os.geteuid() == 0 else 'the daemons of SLURM need root'


@contextmanager
def cluster() -> Iterator[Path]:
    """Run munge and SLURM; gives ``slurm.conf``, which clients find through ``SLURM_CONF``."""
    # Paths of sockets are short by law.
    with tempfile.TemporaryDirectory(prefix='slurm-', dir='/tmp') as name:
        folder = Path(name)
        folder.chmod(0o755)
        conf = _configure(folder)
        daemons = []
        try:
            for command in _commands(folder, conf):
                daemons.append(_start(command, folder, conf))
            _wait_until_idle(daemons, folder, conf)
            yield conf
        finally:
            _stop(daemons, conf)


def _configure(folder: Path) -> Path:
    for part in ('state', 'spool'):
        (folder / part).mkdir()
    key = folder / 'munge.key'
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    control, node = _free_ports(2)
    conf = folder / 'slurm.conf'
    conf.write_text(
        CONFIGURATION.format(
            folder=folder,
            host=_host(),
            control_port=control,
            node_port=node,
            cpus=CPUS,
            memory=MEMORY_MB,
        )  # fmt: skip
    )
    return conf


def _host() -> str:
    return socket.gethostname().partition('.')[0]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(('127.0.0.1', 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _commands(folder: Path, conf: Path) -> Iterator[list[str]]:
    files = ('key-file', 'key'), ('socket', 'socket'), ('pid-file', 'pid'), ('seed-file', 'seed')
    munge = [f'--{option}={folder}/munge.{end}' for option, end in files]
    yield ['munged', '--foreground', '--force', f'--log-file={folder}/munge.log', *munge]
    yield ['slurmctld', '-D', '-f', str(conf)]
    yield ['slurmd', '-D', '-f', str(conf), '-N', _host()]


def _start(command: list[str], folder: Path, conf: Path) -> subprocess.Popen:
    environ = {**os.environ, 'SLURM_CONF': str(conf)}
    environ['PATH'] = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'
    with open(folder / f'{command[0]}.out', 'wb') as out:
        daemon = subprocess.Popen(
            # A test run that is killed takes them along.
            ['setpriv', '--pdeathsig', 'TERM', *command], env=environ,
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    if command[0] == 'munged':
        _wait(lambda: (folder / 'munge.socket').exists(), [daemon], folder)
    return daemon


def _wait_until_idle(daemons: list[subprocess.Popen], folder: Path, conf: Path) -> None:
    command = ['sinfo', '--noheader', '--format=%T']
    environ = {**os.environ, 'SLURM_CONF': str(conf)}

    def idle() -> bool:
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        return done.stdout.strip() == 'idle'

    _wait(idle, daemons, folder)


def _wait(condition, daemons: list[subprocess.Popen], folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or any(daemon.poll() is not None for daemon in daemons):
            logs = [
                f'--- {path.name}\n{path.read_text(errors="replace")[-2000:]}'
                for path in sorted((*folder.glob('*.out'), *folder.glob('*.log')))
            ]
            raise RuntimeError('SLURM does not start.\n' + '\n'.join(logs))
        time.sleep(0.1)


def _stop(daemons: list[subprocess.Popen], conf: Path) -> None:
    environ = {**os.environ, 'SLURM_CONF': str(conf)}
    if len(daemons) == 3:
        subprocess.run(['scancel', '--user=root'], env=environ, capture_output=True, timeout=30)
        _wait_for_empty_queue(environ)
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _wait_for_empty_queue(environ: dict[str, str]) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        left = subprocess.run(
            ['squeue', '--noheader'], env=environ, capture_output=True, text=True
        )
        if not left.stdout.strip():
            return
        time.sleep(0.2)


if __name__ == '__main__':
    if reason := missing():
        raise SystemExit(reason)
    with cluster() as configuration:
        print(f'export SLURM_CONF={configuration}', flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
