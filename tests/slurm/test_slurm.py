"""The job templates, as they are, in a real Slurm: time limits that are too short, requeues, arrays, srun and mpirun.

All jobs are submitted at once, and each test looks at one: they mostly sleep.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fault_table
import numpy as np
import pytest
from problems_for_tests.tiny_problem_for_tests import checkpoint
from programs import ROOT, TINY, assert_same_landscape, environment, log_lines, read, run_program, stat
from slurm_cluster import Cluster, missing

pytestmark = pytest.mark.slow

JOBS = ROOT / "jobs"
LIMIT = 400.0  # seconds: for what takes a minute or three on a quiet machine
SMALL = ("--cpus-per-task=1", "--mem-per-cpu=100M")
CONFIG = f"problem: {TINY}\nx: -1:1:10\ny: -1:1:4\nplot: false\ndevice: cpu\n"
# Two minutes. Slurm looks every 30 s, and signals that much earlier than asked for: 60 to 90 s after the start.
SHORT = ("--time=2",)
SIGNAL = {"SBATCH_SIGNAL": "B:USR1@30"}
BATCHES = ("--batch_size=20",)  # several
LONG = ("--problem.delay", 8)  # 40 points, two ranks: 160 s

# Jobs that another one preempts: template, partition, more options, and the point at which every rank waits.
PREEMPTED = {
    "cancelled": ("one_gpu.slurm", "cancel", (), 6),
    "anew": ("one_node.slurm", "cancel", ("--ntasks=2", "--no-requeue", "--time=27", "--job-name=landscape"), 6),
    "requeued": ("one_gpu.slurm", "requeue", (), 6),
    "warned": ("one_node.slurm", "grace", ("--ntasks=2",), 6),
    "scancelled": ("one_gpu.slurm", "grace", (), 6),
    "never": ("one_gpu.slurm", "cancel", (), 1),
}


@functools.cache
def _openmpi() -> bool:
    try:
        from mpi4py import MPI
    except ImportError:
        return False
    return MPI.get_vendor()[0] == "Open MPI"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Slurm's daemons, for all tests of this file. CI has what they need: there nothing is skipped for want of it."""
    if not _openmpi():
        pytest.skip("srun --mpi=pmix is for an mpi4py with Open MPI; this one has another MPI, or there is none")
    if why := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with Cluster(environment(PATH=path, OMP_NUM_THREADS=None)) as started:
        yield started
    assert not started.processes() and not started.folder.exists()


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All jobs, submitted: name -> their number and folder."""
    submitted = {}

    def submit(name: str, template: str, options: Any, words: Any, **env: str) -> None:
        folder = tmp_path_factory.mktemp(name)
        (folder / "run.yaml").write_text(CONFIG)
        if template == "array.slurm":
            for seed in range(3):
                checkpoint(str(folder / f"model{seed}.pt"), weight_seed=seed)
        else:
            words = ["run.yaml", "--problem.log", "log", *words]
        number = cluster.submit(folder, JOBS / template, [*SMALL, *options], words, **env)
        node = next((o.partition("=")[2] for o in options if str(o).startswith("--nodelist=")), "")
        ranks = 2 if "--ntasks=2" in options else 1
        submitted[name] = SimpleNamespace(number=number, folder=folder, node=node, ranks=ranks)

    two = ("--ntasks=2",)
    submit("srun_short", "one_node.slurm", [*two, *SHORT], LONG, **SIGNAL)
    submit("mpirun_short", "cpu.slurm", [*two, *SHORT], LONG, **SIGNAL, LAUNCHER="mpirun")
    stuck = ("--problem.fault", "kernel", "--problem.fault_at")
    submit("in_vain", "one_gpu.slurm", SHORT, [*stuck, 1], **SIGNAL)
    submit("given_up", "one_node.slurm", [*two, *SHORT], [*stuck, 2, "--problem.fault_rank", 1], **SIGNAL)
    for job in list(submitted.values()):  # first: their clock ticks while they import torch
        cluster.until(lambda job=job: log_lines(job.folder / "log", "begin"), LIMIT)
    held = ("--problem.hold", "go", "--problem.hold_rank", -1, "--problem.hold_at")
    for name, (template, partition, more, at) in PREEMPTED.items():
        node = f"--nodelist=n{3 + list(PREEMPTED).index(name)}"
        submit(name, template, [f"--partition={partition}", node, *more], [*held, at, "--overwrite"])
    submit("suspended", "one_gpu.slurm", (), [*held, 6])
    # Both nodes are this machine: ranks of the two would take the same names for their shared memory.
    submit("nodes", "nodes.slurm", ["--nodes=2", "--ntasks-per-node=2"], [], OMPI_MCA_btl="self,tcp")
    team = ["--ranks_per_point=2", *BATCHES]
    submit("teams", "nodes.slurm", ["--nodes=2", "--ntasks-per-node=2"], team, OMPI_MCA_btl="self,tcp")
    submit("array", "array.slurm", ["--array=0-2"], ["run.yaml", *(f"model{seed}.pt" for seed in range(3))])
    submit("mistake", "one_node.slurm", two, ["--samples", 0])
    return submitted


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The landscape of all these jobs, of one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "run.yaml").write_text(CONFIG)
    finished = run_program("--config", "run.yaml", folder=folder)
    assert finished.code == 0, finished
    return folder / "landscape.h5"


def _log(job: Any) -> str:
    return "\n".join(path.read_text() for path in sorted(job.folder.glob("landscape*.log")))


def _preempt(cluster: Cluster, job: Any, start: int = 1) -> None:
    """Another job takes the node, once every rank waits at its point."""
    cluster.until(lambda: len(log_lines(job.folder / "log", "holding")) == start * job.ranks, LIMIT)
    cluster.preempt(job.node)
    job.preempted = time.time()


def test_a_person_cancels_in_the_time_of_grace(cluster: Cluster, jobs: dict[str, Any]) -> None:
    """Nothing comes back, though the job was about to be preempted."""
    job = jobs["scancelled"]
    _preempt(cluster, job)
    cluster.until(lambda: cluster.show(job.number)[0]["PreemptTime"] != "None", LIMIT)
    time.sleep(3)  # in the same second it would look like the end of that time
    cluster.call("scancel", job.number)
    (job.folder / "go").touch()
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "CANCELLED" and said["Restarts"] == "0", _log(job)
    assert "to be continued" not in _log(job) and cluster.jobs_in(job.folder) == [job.number]
    fault_table.record("scancel in Slurm's time of grace", then="cancelled: nothing comes back")


@pytest.fixture(scope="module")
def preempted(cluster: Cluster, jobs: dict[str, Any]) -> dict[str, Any]:
    """The jobs that are to lose their nodes; each is about to."""
    for name in ("warned", "cancelled", "anew", "requeued", "never"):
        _preempt(cluster, jobs[name])
    return jobs


@pytest.mark.parametrize("name", ["warned", "cancelled", "anew", "requeued"])
def test_preempted(cluster: Cluster, preempted: dict[str, Any], undisturbed: Path, name: str) -> None:
    """By cancelling, by requeueing, after a time of grace; where a requeue is refused, a new job takes over."""
    job, anew = preempted[name], name == "anew"
    if name == "warned":  # SIGTERM has come to the step alone: the program ends by itself
        cluster.until(lambda: cluster.show(job.number)[0].get("PreemptTime", "-") != "None", LIMIT)
    elif name != "requeued":  # the program does not end: the script may be killed at any moment
        cluster.until(lambda: "preempted, to be continued" in _log(job), LIMIT)
    if name != "warned":
        cluster.until(
            lambda: "JOB" in _log(job) and not cluster.call("squeue", "-h", "-t", "CG", "-j", job.number), LIMIT
        )
    (job.folder / "go").touch()
    numbers = [job.number]
    if anew:
        numbers.append(_log(job).split("Submitted batch job ")[1].split()[0])
        (said,) = cluster.wait(job.number, LIMIT)
        assert said["JobState"] == "PREEMPTED" and said["Restarts"] == "0", _log(job)
    (said,) = cluster.wait(numbers[-1], LIMIT)
    assert said["JobState"] == "COMPLETED" and said["Restarts"] == ("0" if anew else "1"), _log(job)
    assert said["TimeLimit"] == ("00:27:00" if anew else "04:00:00") and said["Partition"] == PREEMPTED[name][1]
    assert cluster.jobs_in(job.folder) == numbers
    lines = log_lines(job.folder / "log", "point")
    points, before = [line.what for line in lines], {line.what for line in lines if line.time < job.preempted - 2}
    assert len(set(points)) == 40 and len(points) == 41, "one is computed again, to compare"
    assert_same_landscape(job.folder / "landscape.h5", undisturbed)
    what = {"anew": "cancelled, and may not be requeued", "warned": "cancelled after a time of grace"}.get(name, name)
    then = f"{'a new job goes' if anew else 'comes back, goes'} on: the same bits"
    fault_table.record(f"preempted by Slurm: {what}", finished=len(before), then=then)


def test_suspended(cluster: Cluster, jobs: dict[str, Any], undisturbed: Path) -> None:
    """As Slurm's gang scheduling does, and an operator: it stands still, and goes on."""
    job = jobs["suspended"]
    cluster.until(lambda: log_lines(job.folder / "log", "holding"), LIMIT)
    cluster.call("scontrol", "suspend", job.number)
    ranks = [line.pid for line in log_lines(job.folder / "log", "begin")]
    cluster.until(lambda: all(stat(pid)[0] == "T" for pid in ranks))  # not at once
    (job.folder / "go").touch()
    time.sleep(3)
    before = len(log_lines(job.folder / "log", "point"))
    assert before == 5 and cluster.show(job.number)[0]["JobState"] == "SUSPENDED"
    cluster.call("scontrol", "resume", job.number)
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "COMPLETED" and said["Restarts"] == "0", _log(job)
    assert len(log_lines(job.folder / "log", "point")) == 40
    assert_same_landscape(job.folder / "landscape.h5", undisturbed)
    fault_table.record("suspended by Slurm, and resumed", finished=before, then="runs on to its end: the same bits")


def test_preempted_again_and_again(cluster: Cluster, preempted: dict[str, Any]) -> None:
    """A job that never finishes a point comes back twice."""
    job = preempted["never"]
    for restart in (1, 2):
        cluster.until(lambda restart=restart: cluster.show(job.number)[0]["Restarts"] == str(restart), LIMIT)
        _preempt(cluster, job, 1 + restart)
    cluster.until(lambda: cluster.show(job.number)[0]["JobState"] == "PREEMPTED", LIMIT)
    (said,) = cluster.show(job.number)
    assert said["Restarts"] == "2" and _log(job).count("preempted, to be continued") == 2, _log(job)
    assert _log(job).count("preempted, and three starts have finished not one point: it does not come back") == 1
    assert cluster.jobs_in(job.folder) == [job.number]
    then = "comes back twice, then stays away with one line"
    fault_table.record("preempted by Slurm: before a point is finished, each time", tries=3, then=then)


LOCAL = """#!/bin/bash
trap '{script} remove' EXIT
venv=$({script} unpack venv.tar) || exit
export PATH=$venv/bin:$PATH VIRTUAL_ENV=$venv
echo $$ >"$1.pid"
ls "$TMPDIR" >"$1.there"
python -c 'import sys; print(sys.prefix)' >"$1.prefix" && mv "$1.prefix" "$1.ready"
while [ ! -e "$1.go" ]; do sleep 0.2; done
"""


def test_the_environment_on_the_nodes_own_disk(cluster: Cluster, tmp_path: Path) -> None:
    """Unpacked, used, and removed also by scancel; what a killed job leaves, by the next one; not a living job's."""
    script, disk = JOBS / "local_environment.sh", tmp_path / "disk"
    disk.mkdir()
    made = [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", tmp_path / "venv"]
    subprocess.run(made, check=True)
    cluster.call(script, "pack", tmp_path / "venv", tmp_path / "venv.tar")
    (tmp_path / "job.sh").write_text(LOCAL.format(script=script))

    def start(name: str) -> str:
        words = (tmp_path, tmp_path / "job.sh", ["--mem=100M", "--nodelist=n1", "--ntasks=2"], [name])
        number = cluster.submit(*words, TMPDIR=str(disk))
        cluster.until((tmp_path / f"{name}.ready").exists, LIMIT)
        assert (tmp_path / f"{name}.ready").read_text() == f"{disk}/landscape_environment-0-{number}\n"
        return number

    living, killed = start("living"), start("killed")
    os.kill(int((tmp_path / "killed.pid").read_text()), signal.SIGKILL)
    cluster.wait(killed, LIMIT)
    assert len(list(disk.iterdir())) == 2
    (tmp_path / "next.go").touch()
    following = start("next")
    there = (tmp_path / "next.there").read_text().split()
    assert set(there) == {f"landscape_environment-0-{number}" for number in (living, following)}
    cluster.call("scancel", living)
    for number in (living, following):
        cluster.wait(number, LIMIT)
    cluster.until(lambda: not list(disk.iterdir()))


def test_several_nodes(cluster: Cluster, jobs: dict[str, Any], undisturbed: Path) -> None:
    """srun --mpi=pmix: four ranks on two nodes are one MPI job, each with a GPU granted."""
    job = jobs["nodes"]
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "COMPLETED" and said["NodeList"] == "n[1-2]", _log(job)
    assert said["TresPerTask"] == "gres:gpu:1" and said["Restarts"] == "0"
    assert "ranks        4 on" in _log(job) and "on n[1-2], restart 0" in _log(job)
    assert {line.rank for line in log_lines(job.folder / "log", "point")} == {0, 1, 2, 3}
    assert_same_landscape(job.folder / "landscape.h5", undisturbed)


def test_a_team_on_each_node(cluster: Cluster, jobs: dict[str, Any], tmp_path: Path) -> None:
    """Ranks of a node place the same points, and those of the two nodes different ones."""
    job = jobs["teams"]
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "COMPLETED" and said["NodeList"] == "n[1-2]", _log(job)
    assert "teams        2 of 2 ranks, which evaluate a point together" in _log(job)
    placed = [{line.what for line in log_lines(job.folder / "log", "point") if line.rank == rank} for rank in range(4)]
    assert placed[0] == placed[1] and placed[2] == placed[3] and not placed[0] & placed[2]
    (tmp_path / "run.yaml").write_text(CONFIG)
    finished = run_program("--config", "run.yaml", *BATCHES, folder=tmp_path)
    assert finished.code == 0, finished
    assert_same_landscape(job.folder / "landscape.h5", tmp_path / "landscape.h5")


def test_an_array_over_checkpoints(cluster: Cluster, jobs: dict[str, Any], undisturbed: Path) -> None:
    job = jobs["array"]
    tasks = cluster.wait(job.number, LIMIT)
    assert [task["JobState"] for task in tasks] == ["COMPLETED"] * 3, _log(job)
    files = [job.folder / f"model{seed}.h5" for seed in range(3)]
    assert_same_landscape(files[0], undisturbed)
    losses = [read(path, "loss") for path in files]
    assert all(read(path, "done").all() for path in files)
    assert not np.allclose(losses[0], losses[1]) and not np.allclose(losses[1], losses[2])
    assert len(list(job.folder.glob("landscapes-*_[012].log"))) == 3


def test_a_mistake_fails_and_stays_away(cluster: Cluster, jobs: dict[str, Any]) -> None:
    job = jobs["mistake"]
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "FAILED" and said["ExitCode"] == "2:0" and said["Restarts"] == "0"
    assert _log(job).count("hpc_landscape: error: --samples 0") == 1
    assert not (job.folder / "landscape.h5").exists()


def test_a_point_longer_than_the_allocation(cluster: Cluster, jobs: dict[str, Any]) -> None:
    """Inside one call of torch from its first point on: it leaves before the limit, says why, and stays away."""
    job = jobs["in_vain"]
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "FAILED" and said["ExitCode"] == "1:0" and said["Restarts"] == "0", _log(job)
    assert "the stop came before one point was finished" in _log(job)
    assert log_lines(job.folder / "log", "fault") and not log_lines(job.folder / "log", "point")


def test_a_rank_that_is_stuck_does_not_fail_the_job(cluster: Cluster, jobs: dict[str, Any]) -> None:
    """Rank 1 is inside a call of torch when the time is over: what is finished is kept, and the job comes back."""
    job = jobs["given_up"]
    cluster.until(lambda: cluster.show(job.number)[0]["Restarts"] != "0", LIMIT)
    (said,) = cluster.show(job.number)
    assert said["JobState"] in ("PENDING", "RUNNING", "COMPLETED"), _log(job)
    assert "abandoned    points in hand" in _log(job) and "stopped, to be continued" in _log(job)
    said_done = int(_log(job).split("stopped      ")[1].split()[0])  # all but the one in rank 1's hand
    assert 39 == said_done <= read(job.folder / "landscape.h5", "done").sum()
    cluster.call("scancel", job.number)


@pytest.mark.parametrize("name", ["srun_short", "mpirun_short"])
def test_a_time_limit_that_is_too_short(cluster: Cluster, jobs: dict[str, Any], undisturbed: Path, name: str) -> None:
    """The job puts itself back in the queue until the landscape is complete; no point is lost."""
    job = jobs[name]
    (said,) = cluster.wait(job.number, LIMIT)
    log, restarts = _log(job), int(said["Restarts"])
    assert said["JobState"] == "COMPLETED" and restarts >= 1, log
    assert log.count("stopped, to be continued") == log.count("the same command goes on from there") == restarts
    assert [f"restart {n}\n" in log for n in range(restarts + 1)] == [True] * (restarts + 1)
    assert "finished     40 points" in log
    points = [line.what for line in log_lines(job.folder / "log", "point")]
    assert len(set(points)) == 40
    assert len(points) == 40 + restarts, "each restart computes one finished point again, to compare"
    assert_same_landscape(job.folder / "landscape.h5", undisturbed)
