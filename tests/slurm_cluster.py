"""A Slurm of its own on this machine: munge, a controller, and nodes with four GPUs each that are none.

Two nodes are the default partition. Each of the others is for one job, which another one of partition high preempts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
NODES = tuple(f"n{i}" for i in range(1, 9))
GRACE = 60  # seconds, in partition grace

# cred_expire: how long a requeued job waits before it may start again (Slurm's default: two minutes); the intervals:
# how often what may start is looked for. Device files: they only have to be there.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=5
MinJobAge=3600
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
TmpFS={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
GresTypes=gpu
{nodes}PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=cancel Nodes=n[3-8] MaxTime=INFINITE State=UP PreemptMode=CANCEL
PartitionName=grace Nodes=n[3-8] MaxTime=INFINITE State=UP PreemptMode=CANCEL GraceTime={grace}
PartitionName=requeue Nodes=n[3-8] MaxTime=INFINITE State=UP PreemptMode=REQUEUE
PartitionName=high Nodes=n[3-8] MaxTime=INFINITE State=UP PreemptMode=OFF PriorityTier=10
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=1000000 Gres=gpu:4\n"
GRES = "".join(f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero", "full", "random"))


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.getuid() == 0 else "Slurm's daemons need root"


class Cluster:
    """``with Cluster(environment) as cluster``; at its end no daemon, job or file of it is left."""

    def __init__(self, environment: dict[str, str]):
        self.folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short: sockets lie in it
        self.environment = environment | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for name in ("munge", "state", *NODES):
            (self.folder / name).mkdir(mode=0o700)
        host, (port, *ports) = socket.gethostname().split(".")[0], _free_ports(1 + len(NODES))
        nodes = [NODE.format(name=name, host=host, port=own) for name, own in zip(NODES, ports, strict=True)]
        text = CONF.format(host=host, port=port, folder=self.folder, grace=GRACE, nodes="".join(nodes))
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(GRES)
        munge = self.folder / "munge"
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(os.urandom(128))
        files = [f"--{what}={munge / what.split('-')[0]}" for what in ("socket", "key-file", "log-file", "pid-file")]
        self._daemon("munged", "--foreground", "--force", *files, f"--seed-file={munge / 'seed'}")
        self.until((munge / "socket").exists)
        self._daemon("slurmctld", "-D", "-i")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self.until(lambda: self.call("sinfo", "-h", "-o", "%t %D", check=False).split() == ["idle", str(len(NODES))])

    def _daemon(self, *command: str) -> None:
        with open(self.folder / f"{len(self.daemons)}-{command[0]}.log", "w") as log:
            self.daemons.append(
                subprocess.Popen(
                    command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
                )
            )

    def __exit__(self, *_: Any) -> None:
        try:
            self.call("scancel", "--user=root", check=False)
            self.until(lambda: not self.call("squeue", "-h", check=False).strip(), 30)
        finally:
            for daemon in reversed(self.daemons):
                daemon.terminate()
            for daemon in self.daemons:
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            self.until(lambda: not self.processes(), 20)
            shutil.rmtree(self.folder)

    def processes(self) -> list[int]:
        """Whatever was started with this cluster's environment and still runs: daemons, their helpers, jobs."""
        found, mark = [], f"SLURM_CONF={self.folder}/".encode()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
        return found

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        texts = {path.name: path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"--- {name}\n" + "\n".join(text.splitlines()[-25:]) for name, text in texts.items())

    def call(self, *command: Any, check: bool = True, **more: Any) -> str:
        """A command of Slurm; what it prints."""
        words = [str(word) for word in command]
        environment = self.environment | more.pop("env", {})
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, **more)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def submit(self, folder: Path, template: Path, options: Sequence[Any], words: Sequence[Any], **env: str) -> str:
        """``sbatch OPTIONS TEMPLATE WORDS`` in that folder; the job's number."""
        return self.call("sbatch", "--parsable", *options, template, *words, cwd=folder, env=env).strip()

    def show(self, job: str) -> list[dict[str, str]]:
        """What Slurm says of a job: one entry, or one for each task of an array."""
        lines = self.call("scontrol", "-o", "show", "job", job).splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.strip()]

    def jobs_in(self, folder: Path) -> list[str]:
        """The numbers of all jobs that were submitted in that folder."""
        jobs = self.call("scontrol", "-o", "show", "job").splitlines()
        return [re.findall(r"JobId=(\d+)", job)[0] for job in jobs if f" WorkDir={folder} " in job]

    def wait(self, job: str, limit: float) -> list[dict[str, str]]:
        """Wait for a job's last end; what Slurm says of it then."""
        self.until(lambda: all(task["JobState"] in ENDED for task in self.show(job)), limit)
        return self.show(job)

    def preempt(self, node: str, seconds: float = 1.0) -> None:
        """Another job takes that whole node, as soon as it has it for so long."""
        everything = ("--partition=high", f"--nodelist={node}", "--cpus-per-task=64", "--mem=1M", "--output=/dev/null")
        self.call("sbatch", *everything, "--job-name=urgent", "--wrap", f"sleep {seconds}", cwd=self.folder)

    def until(self, condition: Callable[[], Any], limit: float = 60.0) -> None:
        """Wait until the condition holds."""
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, f"waited {limit:g} s in vain\n{self._queue()}\n{self.logs()}"
            time.sleep(0.2)

    def _queue(self) -> str:
        return self.call("scontrol", "show", "job", check=False)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
