"""A real Slurm cluster on this machine: two nodes with two made-up GPUs each, loopback only, nothing left behind.

No munge, systemd, control groups or database: any local user could give it orders, so it is for tests alone. What it
cannot show (limits of memory, real GPUs, accounting) stands in profiles/README.md.
"""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NODES = ("n1", "n2")
PATIENCE = 900  # seconds for what takes seconds on a quiet machine
_CONF = """\
ClusterName=onebox
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
MinJobAge=300
DefMemPerCPU=500
KillWait=3
SlurmdTimeout=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=8 RealMemory=32000 Gres=gpu:2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=8 RealMemory=32000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=n1,n2 MaxTime=INFINITE State=UP
"""
_GRES = """\
AutoDetect=off
NodeName=n1,n2 Name=gpu File=/dev/null
NodeName=n1,n2 Name=gpu File=/dev/zero
"""
# The plugin starts a job's inner srun without SLURM_CONF, so it finds only a configuration in /etc/slurm.
_SRUN = '#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {srun} "$@"\n'


class Cluster:
    """env: what a process needs to talk to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name in ("state", *NODES):
            (folder / name).mkdir()
        ports = dict(zip(("controller", *NODES), _free_ports(3), strict=True))
        (folder / "slurm.conf").write_text(_CONF.format(folder=folder, user=getpass.getuser(), **ports))
        (folder / "gres.conf").write_text(_GRES)
        srun = folder / "bin" / "srun"
        srun.write_text(_SRUN.format(folder=folder, srun=shutil.which("srun")))
        srun.chmod(0o755)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        self.env = own | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }

    def start(self) -> None:
        self.call("slurmctld")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.call("sinfo", "-h", "-p", "main", "-o", "%T %D") == "idle 2", "the nodes are idle")

    def start_node(self, node: str) -> None:
        self.call("slurmd", "-N", node)

    def stop(self) -> None:
        if self._pid("slurmctld"):
            self.call("scancel", "--user", getpass.getuser())
        daemons = [pid for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld") if (pid := self._pid(name))]
        for pid in daemons:
            os.kill(pid, signal.SIGTERM)
        try:
            wait_until(lambda: not any(_alive(pid) for pid in daemons), "the daemons are gone", 20)
        except AssertionError:  # one that waits for an answer of another
            for pid in filter(_alive, daemons):
                os.kill(pid, signal.SIGKILL)

    def kill_node(self, node: str) -> None:
        """A node loses its power: its daemon and all that it started there end at once."""
        pids = [self._pid(f"slurmd.{node}"), *_descendants_of_steps(self.folder / node)]
        for pid in filter(None, pids):
            os.kill(pid, signal.SIGKILL)

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def queue(self, folder: Path) -> dict[str, str]:
        """Job ids with their states, of jobs that were sent from a folder and have not ended."""
        lines = self.call("squeue", "-h", "-t", "PD,R,CG", "-o", "%i|%T|%Z").splitlines()
        fields = (line.split("|") for line in lines)
        return {job: state for job, state, sent_from in fields if Path(sent_from) == folder}

    def ended(self, folder: Path) -> list[dict[str, str]]:
        """What Slurm wrote of each job that was sent from a folder and has ended, in the order of their ends."""
        path = self.folder / "jobcomp.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        jobs = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines)
        return [job for job in jobs if Path(job["WorkDir"]) == folder]

    def logs(self) -> str:
        """The end of each daemon's log."""
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))

    def _pid(self, name: str) -> int | None:
        path = self.folder / f"{name}.pid"
        pid = int(path.read_text()) if path.exists() else 0
        return pid if pid and _alive(pid) else None


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"waited {patience:.0f} s until {what}"
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _descendants_of_steps(spool: Path) -> list[int]:
    """Processes of the steps that run on a node (slurmstepd writes a socket named after its job there)."""
    steps = {job.group(1) for path in spool.iterdir() if (job := re.fullmatch(r"\w+_(\d+)\.\w+", path.name))}
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            parents[int(folder.name)] = int(stat[1])
    found = [pid for pid, name in names.items() if any(f"slurmstepd: [{step}." in name for step in steps)]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return found
