"""The job templates: each stands alone, since people copy one of them; what they share is the same in all."""

from __future__ import annotations

import re
import subprocess

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
