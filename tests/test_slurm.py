"""The job templates, as they are, in a real Slurm: time limits that are too short, requeues, arrays, srun and mpirun.

All jobs are submitted at once, and each test looks at one: they mostly sleep.
"""

from __future__ import annotations

import functools
import os
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
from programs import ROOT, TINY, assert_same_landscape, environment, log_lines, read, run_program
from slurm_cluster import Cluster, missing

pytestmark = pytest.mark.slow

JOBS = ROOT / "jobs"
LIMIT = 400.0  # seconds: for what takes a minute or three on a quiet machine
SMALL = ("--cpus-per-task=1", "--mem-per-cpu=100M")
CONFIG = f"problem: {TINY}\nx: -1:1:10\ny: -1:1:4\nplot: false\ndevice: cpu\n"
# Two minutes. Slurm looks every 30 s, and signals that much earlier than asked for: 60 to 90 s after the start.
SHORT = ("--time=2",)
SIGNAL = {"SBATCH_SIGNAL": "B:USR1@30"}
LONG = ("--problem.delay", 8)  # 40 points, two ranks: 160 s

# Jobs that another one preempts: template, partition, more options, and the point at which every rank waits.
PREEMPTED = {
    "cancelled": ("one_gpu.slurm", "cancel", (), 6),
    "anew": ("one_node.slurm", "cancel", ("--ntasks=2", "--no-requeue", "--time=7", "--job-name=landscape"), 6),
    "requeued": ("one_gpu.slurm", "requeue", (), 6),
    "warned": ("one_node.slurm", "grace", ("--ntasks=2",), 6),
    "scancelled": ("one_gpu.slurm", "grace", (), 6),
    "in_vain_again": ("one_gpu.slurm", "cancel", (), 1),
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
    # Both nodes are this machine: ranks of the two would take the same names for their shared memory.
    submit("nodes", "nodes.slurm", ["--nodes=2", "--ntasks-per-node=2"], [], OMPI_MCA_btl="self,tcp")
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


def _take_node(cluster: Cluster, job: Any) -> float:
    """Once every rank waits at its point, another job takes the node; when."""
    cluster.until(lambda: len(log_lines(job.folder / "log", "holding")) == job.ranks, LIMIT)
    cluster.preempt(job.node)
    cluster.until(lambda: cluster.show(job.number)[0].get("PreemptTime", "-") != "None", LIMIT)
    return time.time()


def _finished_before(job: Any, when: float) -> set[str]:
    """Points that were finished 2 s before."""
    return {line.what for line in log_lines(job.folder / "log", "point") if line.time < when - 2}


@pytest.mark.parametrize("name", ["cancelled", "anew", "requeued", "warned"])
def test_preempted(cluster: Cluster, jobs: dict[str, Any], undisturbed: Path, name: str) -> None:
    """By cancelling, requeueing, after a time of grace; where a requeue is refused, a new job takes over."""
    job = jobs[name]
    when = _take_node(cluster, job)
    before = _finished_before(job, when)
    if name in ("cancelled", "anew"):  # before the program has ended: this script may be killed at any moment
        cluster.until(lambda: "preempted, to be continued" in _log(job), LIMIT)
    (job.folder / "go").touch()
    numbers = [job.number]
    if name == "anew":
        cluster.until(lambda: "Submitted batch job" in _log(job), LIMIT)
        numbers.append(_log(job).split("Submitted batch job ")[1].split()[0])
        (first,) = cluster.wait(job.number, LIMIT)
        assert first["JobState"] == "PREEMPTED" and first["Restarts"] == "0", _log(job)
    (said,) = cluster.wait(numbers[-1], LIMIT)
    assert said["JobState"] == "COMPLETED" and said["Restarts"] == ("0" if name == "anew" else "1"), _log(job)
    assert said["TimeLimit"] == ("00:07:00" if name == "anew" else "04:00:00")
    assert cluster.jobs_in(job.folder) == numbers
    points = [line.what for line in log_lines(job.folder / "log", "point")]
    assert len(before) >= 4 and len(set(points)) == 40
    lost = len(points) - 41  # one is computed again, to compare
    assert lost == 0, "no finished point is computed again"
    assert_same_landscape(job.folder / "landscape.h5", undisturbed)
    mode = {"anew": "cancelled, no requeue allowed", "warned": "a time of grace"}.get(name, name)
    then = "a new job goes on: the same bits" if name == "anew" else "the job comes back: the same bits"
    fault_table.record(f"Slurm preempts: {mode}", finished=len(before), lost=lost, then=then)


def test_a_person_cancels_in_the_time_of_grace(cluster: Cluster, jobs: dict[str, Any]) -> None:
    """Nothing comes back, though the job was about to be preempted."""
    job = jobs["scancelled"]
    _take_node(cluster, job)
    time.sleep(3)  # cancelled in the very second it would look like the end of the time of grace
    cluster.call("scancel", job.number)
    (job.folder / "go").touch()
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "CANCELLED" and said["Restarts"] == "0", _log(job)
    assert "to be continued" not in _log(job) and cluster.jobs_in(job.folder) == [job.number]
    fault_table.record("Slurm preempts: scancel in the time of grace", then="cancelled: nothing comes back")


def test_preempted_again_and_again(cluster: Cluster, jobs: dict[str, Any]) -> None:
    """A job that never finishes a point comes back twice."""
    job = jobs["in_vain_again"]
    for start in range(3):
        job.ranks = 1 + start
        _take_node(cluster, job)
        if start < 2:
            cluster.until(lambda start=start: cluster.show(job.number)[0]["Restarts"] == str(start + 1), LIMIT)
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "PREEMPTED" and said["Restarts"] == "2", _log(job)
    assert _log(job).count("preempted, to be continued") == 2
    assert _log(job).count("not one point was finished in three starts: it does not come back") == 1
    assert cluster.jobs_in(job.folder) == [job.number]
    fault_table.record(
        "Slurm preempts: again and again before a point is finished", then="stays away after 3 starts, one line"
    )


def test_several_nodes(cluster: Cluster, jobs: dict[str, Any], undisturbed: Path) -> None:
    """srun --mpi=pmix: four ranks on two nodes are one MPI job, each with a GPU granted."""
    job = jobs["nodes"]
    (said,) = cluster.wait(job.number, LIMIT)
    assert said["JobState"] == "COMPLETED" and said["NodeList"] == "n[1-2]", _log(job)
    assert said["TresPerTask"] == "gres:gpu:1" and said["Restarts"] == "0"
    assert "ranks        4 on" in _log(job) and "on n[1-2], restart 0" in _log(job)
    assert {line.rank for line in log_lines(job.folder / "log", "point")} == {0, 1, 2, 3}
    assert_same_landscape(job.folder / "landscape.h5", undisturbed)


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
    assert said["JobState"] in ("PENDING", "RUNNING"), _log(job)
    assert "abandoned    points in hand" in _log(job) and "stopped, to be continued" in _log(job)
    said_done = int(_log(job).split("stopped      ")[1].split()[0])  # rank 0's 20 points, and one of rank 1
    assert 21 == said_done <= read(job.folder / "landscape.h5", "done").sum()
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
