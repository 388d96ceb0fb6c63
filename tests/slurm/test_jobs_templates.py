"""The job templates: each stands alone, since people copy one of them; what they share is the same in all."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from programs import ROOT

JOBS = ROOT / "jobs"
TEMPLATES = sorted(path.name for path in JOBS.glob("*.slurm"))
RULE = "# ------------- from here on every template is the same"


def test_there_are_five() -> None:
    assert TEMPLATES == ["array.slurm", "cpu.slurm", "nodes.slurm", "one_gpu.slurm", "one_node.slurm"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_common_end_is_common(name: str) -> None:
    ends = {RULE + (JOBS / other).read_text().split(RULE)[1] for other in (name, TEMPLATES[0])}
    assert len(ends) == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_all_that_a_job_needs(name: str) -> None:
    text = (JOBS / name).read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE))
    assert {"job-name", "account", "time", "cpus-per-task", "mem-per-cpu", "requeue", "signal", "output"} <= set(
        options
    )
    assert re.fullmatch(r"B:USR1@\d+", options["signal"]) and options["open-mode"] == "append"
    assert ("%A_%a" if "array" in options else "%j") in options["output"]
    assert ("gpus" in options or "gpus-per-task" in options) == (name != "cpu.slurm")
    if int(options.get("ntasks", "2")) > 1:
        assert '--mpi="${SLURM_MPI_TYPE:-pmix}"' in text and "mpirun=(mpirun" in text
    assert "module load" in text and "/bin/activate" in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_a_configuration_it_says_how_it_is_used(name: str) -> None:
    environment = {"SLURM_JOB_NAME": "landscape", "PATH": "/usr/bin:/bin", "SLURM_NTASKS": "1"}
    done = subprocess.run(["bash", JOBS / name], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr + done.stdout or "no checkpoint" in done.stderr, done


def _run(folder: Path, template: str, programs: dict[str, str], **env: str) -> subprocess.CompletedProcess:
    """A template as a job's script, with programs of those names on PATH: their scripts."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {"SLURM_JOB_NAME": "landscape", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "1"}
    environment |= {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(folder), **env}
    with open(folder / "log", "a") as log:
        command = ["bash", JOBS / template, "run.yaml", "--samples", "5 0"]
        return subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=folder, timeout=60)


@pytest.mark.parametrize("code, said", [(75, 1), (0, 0), (1, 0), (2, 0)])
def test_where_there_is_no_scontrol_it_says_what_to_do(tmp_path: Path, code: int, said: int) -> None:
    done = _run(tmp_path, "one_gpu.slurm", {"python": f"exit {code}", "scontrol": "exit 127"})
    text = (tmp_path / "log").read_text()
    assert (
        done.returncode == code and text.count("no scontrol here to put it back in the queue: sbatch it again") == said
    )
    assert len(text.splitlines()) == 1 + said


RUNNING = "JobId=7 JobState=RUNNING EndTime=2026-01-01T02:00:00 PreemptTime=None Command=x"
PREEMPTED = "JobId=7 JobState=COMPLETING EndTime=2026-01-01T01:00:00 PreemptTime=2026-01-01T01:00:00 Command=x"
CANCELLED = "JobId=7 JobState=COMPLETING EndTime=2026-01-01T01:00:00 PreemptTime=None Command=x"
IN_GRACE = "JobId=7 JobState=COMPLETING EndTime=2026-01-01T01:00:00 PreemptTime=2026-01-01T00:59:00 Command=x"
REQUEUED = "JobId=7 JobState=COMPLETING EndTime=2026-01-01T02:00:00 Command=x"
STARTS = "2026-01-01 00:00:00 job 7 on n1, restart 0\ngrid         x 10, 10 points{}\n"
TWICE = STARTS.format("") + STARTS.format(", 10 still to do")


@pytest.mark.parametrize(
    "state, code, log, back",
    [
        (RUNNING, 75, "", True),
        (RUNNING, 1, "", False),
        (PREEMPTED, 75, "", True),
        (PREEMPTED, 143, "", True),  # srun's, when it gets SIGTERM
        (PREEMPTED, 0, "", False),
        (PREEMPTED, 2, "", False),
        (CANCELLED, 75, "", False),
        (IN_GRACE, 75, "", False),
        (REQUEUED, 75, "", False),
        (PREEMPTED, 75, TWICE, False),
        (RUNNING, 75, TWICE, False),
        (PREEMPTED, 75, TWICE.replace(", 10 still", ", at most 10 still"), False),  # a refinement's
        (PREEMPTED, 75, TWICE + "7/10 points, 1 points/s, 3 s left\n", True),
        (PREEMPTED, 75, TWICE + "stopped      9 of 10 points are in landscape.h5; ...\n", True),
        (PREEMPTED, 75, TWICE + STARTS.format(", 9 still to do"), True),
    ],
)
@pytest.mark.parametrize("requeue", [0, 1])
def test_when_a_job_comes_back(tmp_path: Path, state: str, code: int, log: str, back: bool, requeue: int) -> None:
    """By a requeue, and by a new job only where that is refused."""
    (tmp_path / "log").write_text(log)
    scontrol = f'echo "$1" >>calls; [ "$1" != requeue ] || exit {requeue}; echo "{state}"'
    sbatch = 'echo sbatch >>calls; printf "%s\\n" "$@" >words; echo "$HPC_LANDSCAPE_JOBS" >jobs'
    # The third start says how many points are left, as the two before have.
    left = 'echo "grid         x 10, 10 points, 10 still to do"' if log.endswith(TWICE[-20:]) else ":"
    programs = {"python": f"{left}; exit {code}", "scontrol": scontrol, "sbatch": sbatch, "squeue": "echo 7:00"}
    done = _run(tmp_path, "one_gpu.slurm", programs, HPC_LANDSCAPE_JOBS="5", SLURM_JOB_ACCOUNT="own", SLURM_NTASKS="3")
    calls = (tmp_path / "calls").read_text().split()
    assert done.returncode == code and calls.count("requeue") == back
    assert calls.count("sbatch") == (back and requeue), (tmp_path / "log").read_text()
    if "sbatch" in calls:
        words = (tmp_path / "words").read_text().splitlines()
        assert words[-4:] == [str(JOBS / "one_gpu.slurm"), "run.yaml", "--samples", "5 0"]
        kept = {"--account=own", "--ntasks=3", "--time=7:00", f"--output={tmp_path / 'log'}", "--dependency=afterany:7"}
        assert kept <= set(words) and (tmp_path / "jobs").read_text() == "5 7\n"


def test_a_requeue_that_ends_the_job_before_it_has_answered_is_no_refusal(tmp_path: Path) -> None:
    """Slurm ends all of the job's processes, the one that has asked among them: no second job beside this one."""
    scontrol = f'[ "$1" = requeue ] || exec echo "{RUNNING}"; kill -TERM $$; echo requeued >>calls'
    programs = {"python": "exit 75", "scontrol": scontrol, "sbatch": "echo sbatch >>calls", "squeue": "echo 7:00"}
    _run(tmp_path, "one_gpu.slurm", programs)
    assert (tmp_path / "calls").read_text() == "requeued\n"


def test_a_task_of_an_array_comes_back_alone(tmp_path: Path) -> None:
    scontrol = f'echo "$@" >>calls; [ "$1" != requeue ] || exit 1; echo "{PREEMPTED}"'
    programs = {"python": "exit 143", "scontrol": scontrol, "sbatch": 'printf "%s\\n" "$@" >words', "squeue": "echo 9"}
    env = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1", "SLURM_NTASKS_PER_NODE": "2"}
    _run(tmp_path, "array.slurm", programs, SLURM_JOB_NUM_NODES="3", **env)
    assert "requeue 6_1\n" in (tmp_path / "calls").read_text()
    words = (tmp_path / "words").read_text().splitlines()
    assert {"--array=1", "--ntasks-per-node=2", "--nodes=3", "--dependency=afterany:7"} <= set(words)


def test_the_environments_of_other_jobs(tmp_path: Path) -> None:
    """One that begins while this job looks for what is left keeps its own; one that cannot be removed is no fault."""
    stale, mine, begun, stuck = (tmp_path / f"landscape_environment-{os.getuid()}-{n}" for n in (5, 7, 8, 9))
    stale.mkdir()
    stuck.mkdir()
    programs = {"squeue": f'mkdir {begun}; echo " 7 "', "rm": f'/bin/rm "$@"; [ "$2" != {stuck} ]'}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_TMPDIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", JOBS / "local_environment.sh", "prepare"], env=environment, check=True, timeout=60)
    assert sorted(path for path in tmp_path.iterdir() if path.is_dir()) == [mine, begun]
