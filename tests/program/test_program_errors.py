"""Mistakes and failures: a mistake is one message from rank 0, exit code 2, and nothing is written or changed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from problems_for_tests.tiny_problem_for_tests import checkpoint
from programs import (
    PROBLEMS,
    PROGRAM,
    TINY,
    Finished,
    Job,
    assert_same_landscape,
    each_writer,
    environment,
    listing,
    log_lines,
    mpirun,
    parallel_h5py,
    read,
    run_program,
)

from hpc_landscape.ranks.comm import launched

pytestmark = [pytest.mark.slow, pytest.mark.mpi_stack]

MODULE = TINY.removesuffix(":tiny")
OURS = "hpc_landscape: error: "
SMALL = ("--problem", TINY, "--x=-1:1:3", "--y=none", "--plot", "false")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Things that a user may name by mistake."""
    folder = tmp_path_factory.mktemp("things")
    finished = run_program(*SMALL, "--output", "good.h5", folder=folder)
    assert finished.code == 0, finished
    (folder / "text.h5").write_text("not HDF5")
    (folder / "empty.h5").write_bytes(b"")
    (folder / "truncated.h5").write_bytes((folder / "good.h5").read_bytes()[:-100])
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["loss"] = np.arange(3.0)
    with h5py.File(folder / "newer.h5", "w") as file:
        file.attrs.update({"format": "hpc_landscape", "format_version": 99})
    (folder / "folder").mkdir()
    (folder / "unknown.yaml").write_text("sede: 3\n")
    (folder / "wrong.yaml").write_text("seed: many\n")
    (folder / "broken.yaml").write_text("seed: [3\n")
    (folder / "junk.pt").write_bytes(b"junk")
    torch.save({"other.weight": torch.zeros(2)}, folder / "other.pt")
    torch.save({"epoch": 3}, folder / "no_weights.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "pickled.pt")
    checkpoint(folder / "wider.pt", hidden=7)
    return folder


@pytest.fixture
def things(tmp_path: Path, made_once: Path) -> Path:
    """A copy of them in the folder that the program is run in."""
    return Path(shutil.copytree(made_once, tmp_path, dirs_exist_ok=True))


# What is given, and what the message must say: in the order of the issue.
MISTAKES = {
    "option": (["--sede", "3"], ["--sede", "--seed"]),
    "command": (["polt", "good.h5"], ["polt"]),
    "value": (["--seed", "many"], ["--seed many", "whole number"]),
    "choice": (["--bn", "warm"], ["--bn warm", "warmup, running, batch"]),
    "negative seed": (["--seed", "-1"], ["--seed -1"]),
    "no value": (["--x"], ["--x needs a value"]),
    "batch size": (["--batch_size", "0"], ["--batch_size 0"]),
    "metric": (["--metrics", "loss,f1"], ["f1", "loss, accuracy"]),
    "metric twice": (["--metrics", "loss,loss"], ["twice"]),
    "YAML key": (["--config", "unknown.yaml"], ["unknown.yaml", "sede", "seed"]),
    "YAML value": (["--config", "wrong.yaml"], ["seed", "many"]),
    "YAML syntax": (["--config", "broken.yaml"], ["broken.yaml", "not YAML"]),
    "no YAML": (["--config", "absent.yaml"], ["absent.yaml", "no such file"]),
    "grid backwards": (["--x", "1:-1:5"], ["--x 1:-1:5", "MIN must be less than MAX"]),
    "grid without points": (["--x=-1:1:0"], ["-1:1:0", "at least 1"]),
    "grid of words": (["--y", "a:b:c"], ["--y a:b:c", "MIN:MAX:N"]),
    "grid to infinity": (["--x", "0:inf:3"], ["finite"]),
    "volume without a plane": (["--z=-1:1:3"], ["--z needs --y"]),
    "output in no folder": (["--output", "absent/new.h5"], ["absent", "no directory"]),
    "output a folder": (["--output", "folder"], ["folder", "is a directory"]),
    "output foreign text": (["--output", "text.h5"], ["text.h5", "not an HDF5 file"]),
    "output empty": (["--output", "empty.h5"], ["empty.h5", "not an HDF5 file"]),
    "output foreign HDF5": (["--output", "foreign.h5"], ["foreign.h5", "not one of this program's"]),
    "output truncated": (["--output", "truncated.h5"], ["truncated.h5", "damaged or cut short"]),
    "output newer": (["--output", "newer.h5"], ["newer.h5", "newer version"]),
    "no checkpoint": (["--checkpoint", "absent.pt"], ["absent.pt", "no such file"]),
    "checkpoint junk": (["--checkpoint", "junk.pt"], ["junk.pt"]),
    "checkpoint without weights": (["--checkpoint", "no_weights.pt"], ["no state dict", "epoch"]),
    "checkpoint with code": (["--checkpoint", "pickled.pt"], ["pickled.pt", "--weights_only false"]),
    "checkpoint, other keys": (
        ["--checkpoint", "other.pt"],
        ["does not fit the model", "first.weight", "other.weight"],
    ),
    "checkpoint, shapes": (["--checkpoint", "wider.pt"], ["another architecture", "first.weight (7, 6)", "(5, 6)"]),
    "no problem file": (["--problem", "absent.py:make"], ["absent.py", "no file"]),
    "no problem module": (["--problem", "absent_module:make"], ["no module absent_module"]),
    "no factory": (["--problem", f"{MODULE}:absent"], ["absent", "it has", "tiny"]),
    "factory no function": (["--problem", f"{MODULE}:not_callable"], ["no function 'not_callable'"]),
    "no colon": (["--problem", "absent"], ["--problem absent", "package.module:factory"]),
    "no such argument": (["--problem.wdith", "3"], ["wdith", "--problem.hidden"]),
    "argument's type": (["--problem.hidden", "wide"], ["--problem.hidden", "int", "wide"]),
    "no Problem": (["--problem", f"{MODULE}:not_a_problem"], ["returned a int", "Problem"]),
    "no data": (["--problem", f"{MODULE}:no_data"], ["no data"]),
    "empty data": (["--problem", f"{MODULE}:empty_data"], ["empty"]),
    "too many samples": (["--samples", "1000"], ["48 samples", "1000"]),
    "tf32 without a GPU": (["--precision", "tf32", "--device", "cpu"], ["tf32", "cpu"]),
    "orthogonal filters": (["--orthogonalize"], ["--orthogonalize", "--normalization"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake(things: Path, program: Callable[..., Finished], case: str) -> None:
    given, words = MISTAKES[case]
    before = listing(things)
    finished = program(*SMALL, *given) if case != "command" else program(*given)
    assert finished.code == 2, finished
    _assert_one_message(finished, words)
    assert "Traceback" not in finished.out + finished.err
    assert listing(things) == before


def _assert_one_message(finished: Finished, words: list[str] | tuple[str, ...] = ()) -> None:
    assert finished.err.count(OURS) == 1 and finished.err.startswith(OURS), finished
    if "Traceback" not in finished.err:
        assert len(finished.err.splitlines()) == 1, finished
    assert [word for word in words if word not in finished.err] == [], finished


def test_parallel_without_parallel_h5py(things: Path, program: Callable[..., Finished]) -> None:
    if parallel_h5py():
        pytest.skip("this h5py is built with MPI")
    before = listing(things)
    finished = program(*SMALL, "--writer", "parallel")
    assert finished.code == 2, finished
    _assert_one_message(finished, ["--writer parallel", "without MPI", "HDF5_MPI=ON", "--writer gather"])
    assert listing(things) == before


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_device_that_is_absent(things: Path, program: Callable[..., Finished], device: str) -> None:
    if torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available():
        pytest.skip(f"there is {device}")
    before = listing(things)
    finished = program(*SMALL, "--device", device)
    assert finished.code == 2, finished
    _assert_one_message(finished, [f"--device {device}", "--device cpu"])
    assert listing(things) == before


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (f"{MODULE}:raises", ["ArithmeticError", "the user's own fault", "in raises"]),
        (f"{PROBLEMS / 'broken_problem_for_tests.py'}:make", ["LookupError", "at import"]),
        (f"{MODULE}:does_not_fit", ["fails on its first batch", "RuntimeError", "in forward"]),
    ],
)
def test_the_users_own_fault_is_shown_once(
    things: Path, program: Callable[..., Finished], problem: str, words: list[str]
) -> None:
    before = listing(things)
    finished = program(*SMALL, "--problem", problem)
    assert finished.code == 2, finished
    _assert_one_message(finished, words)
    assert finished.err.count("Traceback") == 1 and "Traceback" not in finished.out
    assert listing(things) == before


def test_missing_file_of_the_other_commands(things: Path, program: Callable[..., Finished]) -> None:
    before = listing(things)
    for words in (["plot"], ["info"], ["export", "-o", "out.csv"]):
        for file, text in (("absent.h5", "no such file"), ("text.h5", "not an HDF5"), ("truncated.h5", "damaged")):
            finished = program(*words, file)
            assert finished.code == 2, finished
            _assert_one_message(finished, [file, text])
    assert listing(things) == before


@pytest.mark.parametrize("where", ["a folder", "a folder whose file is there", "a file"])
def test_no_permission_to_write(tmp_path: Path, where: str) -> None:
    """For root, who may write anywhere, the capability to do so is taken away."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    file = folder / "landscape.h5"
    if where != "a folder":
        finished = run_program(*SMALL, folder=folder)
        assert finished.code == 0, finished
        file.chmod(0o444)
    if where != "a file":
        folder.chmod(0o555)
    before = listing(folder)
    try:
        finished = run_program(*SMALL, "--output", file, "--overwrite", folder=tmp_path, preexec_fn=_less_than_root)
    finally:
        folder.chmod(0o755)
    assert finished.code == 2, finished
    _assert_one_message(finished, [str(file), "permission"])
    assert listing(folder) == before


def _less_than_root() -> None:
    """Of the capabilities of root, drop CAP_DAC_OVERRIDE (1) at the exec that follows (PR_CAPBSET_DROP is 24)."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) != 0:
        os._exit(99)


def test_a_folder_that_takes_no_files(things: Path, program: Callable[..., Finished]) -> None:
    """Its permissions say yes, and making a file fails all the same: /proc for root, a full or remote disk for all."""
    if os.geteuid() != 0 or not Path("/proc/self").exists():
        pytest.skip("needs root and /proc")
    finished = program(*SMALL, "--output", "/proc/landscape.h5")
    assert finished.code == 2, finished
    _assert_one_message(finished, ["/proc/landscape.h5"])


# Several ranks


@pytest.mark.parametrize("case", ["grid backwards", "checkpoint, shapes", "output truncated"])
def test_mistake_on_two_ranks(things: Path, case: str) -> None:
    given, words = MISTAKES[case]
    before = listing(things)
    finished = run_program(*SMALL, *given, folder=things, ranks=2)
    _assert_refused(finished, words)
    assert "Traceback" not in finished.out + finished.err
    assert listing(things) == before


def _assert_refused(finished: Finished, words: list[str]) -> None:
    """The launcher may add words of its own."""
    assert finished.code == 2, finished
    assert finished.err.count(OURS) == 1, finished
    assert [word for word in words if word not in finished.err] == [], finished


@pytest.mark.parametrize("only_on", [-1, 1])
def test_factory_raises_on_two_ranks(tmp_path: Path, only_on: int) -> None:
    options = ["--problem", f"{MODULE}:raises", "--problem.only_on", only_on]
    finished = run_program(*SMALL, *options, folder=tmp_path, ranks=2)
    _assert_refused(finished, ["ArithmeticError", "the user's own fault"])
    assert finished.err.count("Traceback") == 1
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("what", ["data", "model"])
def test_ranks_that_hold_something_else(tmp_path: Path, what: str) -> None:
    finished = run_program(*SMALL, "--problem.differs", what, folder=tmp_path, ranks=2)
    _assert_refused(finished, [what, "must make the same on"])
    assert listing(tmp_path) == {}


FAULTS = {
    "error": ["failed on rank 1 of 3", "ArithmeticError: the user's own fault"],
    "exit": ["failed on rank 1 of 3", "exit(3)"],
    "interrupt": [],
    "mistake": ["a mistake that one rank alone has found"],
    "exit_0": ["failed on rank 1 of 3", "exit(0)"],
}


@pytest.mark.parametrize(("writer", "fault"), each_writer(list(FAULTS), ["error"]))
def test_a_rank_that_fails_ends_all(tmp_path: Path, program: Callable[..., Finished], writer: str, fault: str) -> None:
    """Rank 1 at its third point, while rank 0's second does not end by itself; rank 2 does the rest, which is kept."""
    log, file, now = tmp_path / "log", tmp_path / "landscape.h5", tmp_path / "now"
    job = ["--problem", TINY, "--x=-1:1:6", "--y=-1:1:5", "--plot", "false"]
    options = ["--problem.log", log, "--problem.hold", tmp_path / "never", "--problem.hold_at", 2]
    options += [
        "--problem.delay",
        0.02,
        "--problem.fault",
        fault,
        "--problem.fault_rank",
        1,
        "--problem.fault_when",
        now,
    ]
    with Job([*PROGRAM, *job, *options, "--writer", writer], 3, tmp_path) as running:
        running.until(lambda: file.exists() and read(file, "done").sum() == 30 - 2)
        now.touch()
        running.until(lambda: log_lines(log, "fault"))
        start = time.monotonic()
        finished = running.wait(15)
    print(f"ended {time.monotonic() - start:.1f} s after the fault")
    assert finished.code != 0, finished  # the rank's own, or what mpirun makes of the ranks that it has killed
    assert [word for word in FAULTS[fault] if word not in finished.err] == [], finished
    assert finished.err.count("Traceback") == (fault == "error"), finished
    assert read(file, "done").sum() == 30 - 2
    assert program(*job).code == 0
    assert program(*job, "--output", "undisturbed.h5").code == 0
    assert_same_landscape(file, tmp_path / "undisturbed.h5")


@pytest.mark.parametrize(("fault", "code"), [("error", 1), ("exit", 3), ("interrupt", 130), ("exit_0", 1)])
def test_one_process_that_fails(tmp_path: Path, program: Callable[..., Finished], fault: str, code: int) -> None:
    finished = program(*SMALL, "--problem.fault", fault)
    assert finished.code == code, finished
    assert read(tmp_path / "landscape.h5", "done").sum() == 2
    assert finished.err.count("Traceback") == (fault == "error")
    assert program(*SMALL).code == 0
    assert read(tmp_path / "landscape.h5", "done").all()


CRASHES = """
import ctypes
from pathlib import Path
from tiny_problem_for_tests import tiny

@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)
def clean_up(code, argument):
    Path("tidied").touch()
    ctypes.string_at(0)

def problem():
    ctypes.CDLL(None).on_exit(clean_up, None)
    return tiny(fault="error", fault_at=1)
"""


def test_abort_does_not_clean_up(tmp_path: Path) -> None:
    """What libraries do at exit() may crash beside threads that run, and mpirun would give the crash as the code."""
    (tmp_path / "crashes.py").write_text(CRASHES)
    env = environment()
    env["PYTHONPATH"] += os.pathsep + str(PROBLEMS)
    job = [*SMALL, "--problem", "crashes.py:problem"]
    finished = run_program(*job, folder=tmp_path, ranks=2, env=env)
    assert finished.code == 1 and "failed on rank 0 of 2" in finished.err, finished
    assert not (tmp_path / "tidied").exists()


def test_exit_with_words_says_them(program: Callable[..., Finished]) -> None:
    finished = program(*SMALL, "--problem.fault", "exit_text")
    assert finished.code == 1 and "words of the user's own" in finished.err, finished


# Launchers


def _other_launcher() -> dict[str, str]:
    """What the launcher of an MPI that this Python's mpi4py does not know sets in the environment."""
    if "Open MPI" in subprocess.run([mpirun(), "--version"], capture_output=True, text=True, env=environment()).stdout:
        return {"PMI_SIZE": "4", "PMI_RANK": "0"}
    return {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}


def test_wrong_launcher(tmp_path: Path) -> None:
    other = _other_launcher()
    size, rank = other
    finished = run_program(*SMALL, folder=tmp_path, env=environment(**other))
    assert finished.code == 2, finished
    _assert_one_message(finished, [f"{size}=4", "mpi4py"])
    for words in ["MPI sees 1", "Open MPI v"] if size == "PMI_SIZE" else ["Open MPI's, and mpi4py", "MPICH Version"]:
        assert words in finished.err
    others = run_program(*SMALL, folder=tmp_path, env=environment(**other | {rank: "3"}))
    assert (others.code, others.err) == (2, ""), others  # said once, by process 0
    assert listing(tmp_path) == {}


def test_another_mpis_mpirun(tmp_path: Path) -> None:
    """The same with a real one, where this machine has one."""
    ours = Path(mpirun()).resolve()
    folders = {os.path.realpath(folder) for folder in [*os.environ["PATH"].split(os.pathsep), "/usr/bin"]}
    found = filter(None, (shutil.which("mpirun", path=folder) for folder in folders))
    others = sorted(path for path in found if Path(path).resolve() != ours)
    if not others:
        pytest.skip("there is one mpirun on this machine")
    with Job([others[0], "-n", "2", *PROGRAM, *SMALL], None, tmp_path) as job:
        finished = job.wait()
    _assert_refused(finished, ["the launcher started 2 processes", "mpi4py"])
    assert listing(tmp_path) == {}


@pytest.fixture
def without_mpi4py(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which importing mpi4py fails."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['mpi4py'] = None\n")
    wanted = environment()
    return wanted | {"PYTHONPATH": os.pathsep.join([str(folder), wanted["PYTHONPATH"]])}


def test_several_processes_without_mpi4py(tmp_path: Path, without_mpi4py: dict[str, str]) -> None:
    finished = run_program(*SMALL, folder=tmp_path, env=without_mpi4py | {"PALS_SIZE": "4", "PALS_RANKID": "0"})
    assert finished.code == 2, finished
    _assert_one_message(finished, ["4 processes", "PALS_SIZE=4", "mpi4py", "pip install"])
    assert listing(tmp_path) == {}


def test_one_process_needs_no_mpi4py(tmp_path: Path, without_mpi4py: dict[str, str]) -> None:
    if parallel_h5py():
        pytest.skip("this h5py itself needs mpi4py")
    finished = run_program(*SMALL, folder=tmp_path, env=without_mpi4py)
    assert finished.code == 0, finished


def test_a_batch_script_without_srun_is_one_process(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert launched() == (1, 0, "")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "5")
    assert launched() == (8, 5, "SLURM_STEP_NUM_TASKS")
