"""info --environment: what there is, what is missing and what does not go together, in lines and as JSON."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from programs import environment, run_program

from hpc_landscape.cli import main
from hpc_landscape.environment import _launchers, _ranks, as_text, ranges
from hpc_landscape.libraries import ask
from hpc_landscape.ranks.places import Place, crowded

pytestmark = pytest.mark.mpi_stack


def report(folder: Path, ranks: int | None = None, **changes: str | None) -> dict[str, dict[str, Any]]:
    """What the program says as JSON, in a process of its own."""
    finished = run_program("info", "--environment", "--json", folder=folder, ranks=ranks, env=environment(**changes))
    assert finished.code == 0 and finished.err == "", finished
    assert not list(folder.glob("tmp*"))
    return json.loads(finished.out)


def test_it_says_what_this_python_has(tmp_path):
    found = report(tmp_path, SLURM_JOB_ID="17", A_SECRET="word")
    assert found["program"]["python"].endswith(sys.executable)
    assert f"numpy {metadata.version('numpy')}" in found["program"]["packages"]
    assert found["torch"]["version"].startswith(torch.__version__) and found["torch"]["threads"] == 1
    assert found["h5py"]["HDF5"] == h5py.version.hdf5_version
    assert found["h5py"]["MPI"] == h5py.get_config().mpi == bool(found["h5py"]["libmpi"])
    assert found["folder"]["path"] == str(tmp_path) and set(found["folder"]["locks"].values()) == {True}
    assert found["variables"]["OMP_NUM_THREADS"] == "1" and found["variables"]["SLURM_JOB_ID"] == "17"
    assert "A_SECRET" not in found["variables"]
    assert found["ranks"]["launcher"] == "none seen" and list(found["ranks"])[-1] == "rank 0"


def test_in_words_it_says_the_same(capsys):
    assert main(["info", "--environment"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("torch ") and torch.__version__ in line for line in lines)
    assert lines[-1].endswith("device cpu") or torch.cuda.is_available()
    assert max(map(len, lines)) < 200


def test_ranks_say_where_they_are_and_one_of_them_speaks(tmp_path):
    found = report(tmp_path, ranks=3)["ranks"]
    assert found["launcher"].startswith("started 3 (") and found["MPI"].startswith("sees 3 (")
    assert [found[f"rank {rank}"]["on"] for rank in range(3)] == [os.uname().nodename] * 3
    together = len(os.sched_getaffinity(0))
    assert ("share" in found.get("note", "")) == (together < 3)


def test_a_launcher_of_another_mpi_is_a_line(tmp_path):
    found = report(tmp_path, PALS_SIZE="4", PALS_RANKID="0")["ranks"]
    assert "4 processes" in found["note"] and "MPI sees 1" in found["note"]
    finished = run_program(*("info", "--environment"), folder=tmp_path, env=environment(PALS_SIZE="4", PALS_RANKID="3"))
    assert (finished.code, finished.out, finished.err) == (0, "", "")


def test_numbers_of_a_launcher_that_are_none_are_a_line(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "x")
    assert "SLURM_STEP_NUM_TASKS=x" in _ranks()["ranks"]["note"]


HYDRA = "HYDRA build details:\n    Version: 5.0.2"
OPEN_MPI = "mpirun (Open MPI) 4.1.4"


@pytest.mark.parametrize(
    ("said", "library", "noted"),
    [
        (OPEN_MPI, "MPICH Version: 5.0.2", True),
        (OPEN_MPI, "Open MPI v4.1.4", False),
        (HYDRA, "Open MPI v5.0.3", True),
        (HYDRA, "MPICH Version: 4.1", False),
        (HYDRA, "Intel(R) MPI Library 2021.9", False),
        ("a wrapper of the site", "Open MPI v5.0.3", False),
    ],
)
def test_a_mpirun_of_another_mpi_is_noted(tmp_path, monkeypatch, said, library, noted):
    (tmp_path / "mpirun").write_text(f"#!/bin/sh\necho '{said}'\n")
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))  # without the machine's own
    found = dict(_launchers({"library": library}, {}))
    assert found["mpirun"].startswith(str(tmp_path / "mpirun"))
    assert ("mpirun: of another MPI" in found.get("note", "")) == noted


def test_two_mpis_in_one_environment_are_noted(monkeypatch):
    found = dict(_launchers({"library": "MPICH", "libmpi": ["/a/libmpi.so.12"]}, {"libmpi": ["/b/libmpi.so.40"]}))
    assert "/a/libmpi.so.12 and /b/libmpi.so.40" in found["note"]
    assert "bound to two" not in dict(_launchers({"libmpi": ["/a/libmpi.so.12"]}, {"libmpi": []})).get("note", "")
    monkeypatch.setattr("hpc_landscape.environment._version", lambda name: "1.0" if "mpi" in name else None)
    assert "keep one of the packages" in dict(_launchers({}, {}))["note"]


BROKEN = {
    "import {name}_gone": "cannot be imported: ModuleNotFoundError: No module named '",
    "raise ModuleNotFoundError(\"No module named '{name}'\")": "not installed",
    "raise ImportError('no\\nway')": "cannot be imported",
    "import os; os.abort()": "signal 6",
    "import sys; sys.exit()": "cannot be imported: exit code 0",
}


@pytest.mark.parametrize("code", BROKEN)
@pytest.mark.parametrize("name", ["torch", "h5py", "mpi4py"])
def test_what_cannot_be_imported_is_a_line(tmp_path, monkeypatch, name, code):
    (tmp_path / f"{name}.py").write_text(code.replace("{name}", name))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert list(ask(name)) == [name]
    assert BROKEN[code] in ask(name)[name] and "\n" not in ask(name)[name]


def test_the_whole_is_there_though_nothing_can_be_imported(tmp_path):
    for name in ("torch", "h5py", "mpi4py"):
        (tmp_path / f"{name}.py").write_text("raise OSError('libgone.so.1: no such file')")
    found = report(tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for section, name in {"torch": "torch", "h5py": "h5py", "MPI": "mpi4py"}.items():
        assert found[section][name] == "cannot be imported: OSError: libgone.so.1: no such file"


GPUS = """
class Properties:
    name, total_memory, major, minor = "A GPU", 80 * 2**30, 9, 0
class cuda:
    is_available = lambda: True
    device_count = lambda: 2
    get_device_properties = lambda i: Properties
class version:
    cuda, hip = "12.8", None
class backends:
    class cudnn:
        version = lambda: 91002
__version__ = "2.9"
get_num_threads = lambda: 4
"""


def test_gpus_are_told_with_their_memory(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(GPUS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = ask("torch")
    assert found["built"] == "for CUDA 12.8" and found["cuDNN"] == 91002
    assert found["cuda:1"] == "A GPU, 80.0 GiB, compute capability 9.0"


def test_ranks_that_share_cores_or_gpus_are_noted():
    def place(host: str, cores: tuple[int, ...], gpu: str = "") -> Place:
        return Place(host, cores, "cuda:0" if gpu else "cpu", gpu)

    assert crowded([place("a", (0, 1)), place("a", (0, 1)), place("b", (0,))]) == ""
    assert crowded([place("a", (0, 1))] * 3) == "3 ranks share 2 cores of a"
    assert crowded([place("a", (0, 1, 2), "one"), place("a", (0, 1, 2), "two")]) == ""  # each sees its own as cuda:0
    assert crowded([place("a", (0, 1, 2), "one")] * 2) == "2 ranks share 1 GPU of a"
    assert crowded([place("a", ())] * 3) == ""  # a system that does not tell


def test_numbers_in_short_and_text_in_columns():
    assert ranges((0, 1, 2, 3, 8, 10, 11)) == "0-3, 8, 10-11" and ranges(()) == ""
    text = as_text({"one": {"a": True, "bcd": "none", "e": [1, "\x1b"]}, "two": {"f": {"g": False}, "h": []}})
    assert text.splitlines() == [
        "one         a    yes",
        "            bcd  none",
        "            e    1, \\x1b",
        "two         f    g no",
        "            h    -",
    ]


def test_a_file_is_asked_for_by_itself(tmp_path, capsys):
    for words in (["info"], ["info", "a.h5", "--environment"]):
        assert main(words) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1


@pytest.mark.parametrize("name", ["h5py", "torch", "json"])
def test_nothing_is_imported_from_the_folder(tmp_path, monkeypatch, name):
    (tmp_path / f"{name}.py").write_text("open('run', 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert "version" in str(ask("h5py")) and not (tmp_path / "run").exists()
