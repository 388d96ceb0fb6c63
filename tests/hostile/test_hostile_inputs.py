"""Checkpoints that are not what their names say, odd paths, links, and more than there is room for."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from programs import PROBLEMS, TINY, Finished, assert_same_landscape, listing, read, run_program

from hpc_landscape.campaign import capacity as room

pytestmark = pytest.mark.slow

SMALL = ("--problem", TINY, "--x=-1:1:3", "--y=none", "--plot", "false")


def refused(finished: Finished, *words: str) -> None:
    assert finished.code == 2 and len(finished.err.splitlines()) == 1, finished
    assert "Traceback" not in finished.out + finished.err and "\x1b" not in finished.err
    assert [word for word in words if word not in finished.err] == [], finished


# Code in what is read


class Malicious:
    """Runs, where it is loaded, by a function that torch may or may not trust."""

    def __init__(self, trace: Path, how: str):
        self.trace, self.how = str(trace), how

    def __reduce__(self):
        if self.how == "exec":
            return exec, (f"import os; os.mkdir({self.trace!r})",)
        if self.how == "getattr":  # by way of a function that loading needs anyway
            return torch._utils._rebuild_tensor_v2, (os.mkdir, self.trace, (), (), False, None)
        return os.mkdir, (self.trace,)


def malicious(path: Path, kind: str, content: object) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif kind == "old pickle":
        path.write_bytes(pickle.dumps(content, protocol=0))
    elif kind == "npy":
        np.save(path, np.array([content], dtype=object), allow_pickle=True)
    elif kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            inner = io.BytesIO()
            np.save(inner, np.array([content], dtype=object), allow_pickle=True)
            archive.writestr("first.weight.npy", inner.getvalue())
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")


@pytest.mark.parametrize("how", ["call", "exec", "getattr"])
def test_nothing_of_a_malicious_file_runs(tmp_path: Path, program: Callable[..., Finished], how: str) -> None:
    trace, log = tmp_path / "it_ran", []
    start = torch.nn.Linear(6, 5).weight
    content = {"state_dict": {"first.weight": start}, "extra": Malicious(trace, how)}
    for kind in ("torch", "torch, old", "pickle", "old pickle", "npy", "npz"):
        for suffix in (".pt", ".safetensors", ".npz", ".h5", ""):
            path = tmp_path / f"evil{suffix}"
            malicious(path, kind, content)
            path = next(p for p in (path, Path(f"{path}.npy")) if p.exists())  # NumPy adds its own
            options = [
                ["--checkpoint", path],
                ["--trajectory", path],
                ["--directions", "file", "--direction_files", path],
            ]
            options.append(["--directions", "interpolation", "--to", path])
            for words in options if (kind, suffix) in (("torch", ".pt"), ("npz", ".npz"), ("npy", "")) else options[:1]:
                finished = program(*SMALL, *words)
                refused(finished, str(path))
                log.append(finished.err)
            path.unlink()
    assert not trace.exists() and listing(tmp_path) == {}
    assert any("code that would run" in line for line in log)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_only_have_the_name_of_a_checkpoint(
    tmp_path: Path, program: Callable[..., Finished], suffix: str
) -> None:
    path, folder = tmp_path / f"a{suffix}", tmp_path / f"folder{suffix}"
    folder.mkdir()
    refused(program(*SMALL, "--checkpoint", folder), f"--checkpoint {folder}: it is no file")
    refused(program(*SMALL, "--checkpoint", tmp_path / f"absent{suffix}"), "there is no such file")
    refused(program(*SMALL, "--checkpoint", "/dev/zero"), "/dev/zero: it is no file")  # reading it would not end
    os.mkfifo(tmp_path / f"pipe{suffix}")
    refused(program(*SMALL, "--checkpoint", tmp_path / f"pipe{suffix}"), "it is no file")
    for content in (
        b"",
        pickle.dumps({"first.weight": 3}),
        struct.pack("<Q", 2**63 - 1) + b"{}",  # a header as large as can be said
        struct.pack("<Q", 2**30) + b"{" * 1000,
        struct.pack("<Q", 2) + b"{}",
        _safetensors('{"a": {"dtype": "F32", "shape": [1000000000, 1000000000], "data_offsets": [0, 8]}}'),
        _safetensors('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}'),
        _safetensors('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 18446744073709551615]}}'),
        _safetensors('{"\\n\\u001b[2J": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
        _safetensors('{"a": ' + "[" * 100_000),
    ):
        path.write_bytes(content)
        refused(program(*SMALL, "--checkpoint", path), f"--checkpoint {path}: ")


def _safetensors(header: str) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + bytes(8)


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")  # torch has deprecated them
def test_checkpoints_of_odd_tensors(tmp_path: Path, program: Callable[..., Finished]) -> None:
    import tiny_problem_for_tests

    whole = tiny_problem_for_tests.tiny().model.state_dict()
    weight, path = whole["first.weight"], tmp_path / "a.pt"
    circle: dict = {"epoch": 3}
    circle["model"] = {"state_dict": circle}
    odd = {
        "sparse": weight.to_sparse(),
        "complex": weight.to(torch.complex64),
        "meta": weight.to("meta"),
        "quantized": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    }
    for tensor in odd.values():
        torch.save(whole | {"first.weight": tensor}, path)
        refused(program(*SMALL, "--checkpoint", path), "first.weight")
    for content in (circle, {"\n\x1b[2J" * 5000: weight}, {"model": {"a\nb": 3}}):
        torch.save(content, path)
        refused(program(*SMALL, "--checkpoint", path))
    huge = torch.zeros(1).expand(10**12)  # of four bytes
    torch.save(whole | {"first.weight": huge}, path)
    refused(program(*SMALL, "--checkpoint", path), "(1000000000000,) instead of (5, 6)")


# Paths

FOLDER, ODD = "größe 模型 👩‍🔬 'q' #1 %s $HOME {x}", "a b;c&d [1] *é"


def test_odd_names_everywhere(tmp_path: Path) -> None:
    """As programs of their own: what a name is on the way to a process counts too."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    import tiny_problem_for_tests

    tiny_problem_for_tests.checkpoint(folder / f"{ODD}.pt")
    shutil.copy(PROBLEMS / "tiny_problem_for_tests.py", folder / f"{ODD}.py")
    (folder / f"{ODD}.yaml").write_text("x: -1:1:3\ny: none\n", encoding="utf-8")
    words = ["--config", folder / f"{ODD}.yaml", "--problem", f"{folder / ODD}.py:tiny"]
    words += ["--checkpoint", folder / f"{ODD}.pt", "--output", folder / f"{ODD}.h5"]
    stopped = run_program(*words, "--problem.fault", "SIGTERM", "--problem.fault_at", 1, folder=tmp_path)
    assert stopped.code == 75, stopped
    finished = run_program(*words, folder=tmp_path, ranks=2)
    assert finished.code == 0, finished
    assert read(folder / f"{ODD}.h5", "done").all()
    for command in (["info"], ["plot", "-o", folder / "a $ b.svg"], ["export", "-o", folder / "ü.csv"]):
        said = run_program(*command, folder / f"{ODD}.h5", folder=tmp_path)
        assert said.code == 0 and "Traceback" not in said.err, said
    names = {f"{ODD}{suffix}" for suffix in (".pt", ".py", ".yaml", ".h5", ".png")} | {"a $ b.svg", "ü.csv"}
    assert set(os.listdir(folder)) - {"__pycache__"} <= names


def test_a_name_that_is_not_utf8(tmp_path: Path, program: Callable[..., Finished]) -> None:
    refused(program(*SMALL, "--output", os.fsdecode(b"\xff.h5")), r"--output \udcff.h5", "not UTF-8")
    refused(program("info", os.fsdecode(b"\xff.h5")), r"\udcff.h5: no such file")
    refused(program("info", "a\nb\x1b[2J.h5"), r"a\nb\x1b[2J.h5: no such file")
    refused(program(*SMALL, "--output", "x" * 300), "File name too long")
    assert listing(tmp_path) == {}


def test_a_link_to_a_file_elsewhere(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """The link stays, and the file that it leads to is the landscape: new, resumed and overwritten."""
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.h5", tmp_path / "link.h5"
    link.symlink_to("far/target.h5")  # which is not there yet
    stop = ["--problem.fault", "SIGTERM", "--problem.fault_at", 1]
    assert program(*SMALL, *stop, "--output", link).code == 75
    assert link.is_symlink() and read(target, "done").sum() == 1
    assert program(*SMALL, "--output", link).code == 0
    assert link.is_symlink() and read(target, "done").all()
    for words in ([], ["--overwrite"]):
        assert program(*SMALL, *words, "--output", link).code == 0
        assert link.is_symlink() and os.listdir(tmp_path / "far") == ["target.h5"]
    assert program("info", link).code == 0
    before = target.read_bytes()
    refused(program("export", target, "-o", tmp_path / "link.h5"))
    (tmp_path / "picture.png").symlink_to("far/target.h5")
    refused(program("plot", target, "-o", "picture.png"), "is a landscape file and is not overwritten")
    assert target.read_bytes() == before


def test_links_that_lead_nowhere(tmp_path: Path, program: Callable[..., Finished]) -> None:
    (tmp_path / "a.h5").symlink_to("b.h5")
    (tmp_path / "b.h5").symlink_to("a.h5")
    (tmp_path / "into.h5").symlink_to("absent/target.h5")
    (tmp_path / "folder.h5").symlink_to(".")
    for option in (["--overwrite"], []):
        refused(program(*SMALL, *option, "--output", "a.h5"), "--output a.h5", "symbolic links")
        refused(program(*SMALL, *option, "--output", "into.h5"), "--output into.h5", "absent", "no such directory")
        refused(program(*SMALL, *option, "--output", "folder.h5"), "is a directory")
    for command in ("info", "plot"):
        refused(program(command, "a.h5"), "a.h5")
        refused(program(command, "into.h5"), "no such file")
    refused(program(*SMALL, "--checkpoint", "a.h5"), "there is no such file")
    refused(program("--config", "a.h5"), "there is no such file")
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5", "folder.h5", "into.h5"]


def test_two_names_of_one_file_are_one_run(tmp_path: Path) -> None:
    from hpc_landscape.store.lock import lock_of

    (tmp_path / "link.h5").symlink_to("landscape.h5")
    assert lock_of(str(tmp_path / "link.h5")) == lock_of(str(tmp_path / "landscape.h5"))


# More than there is room for


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["--x=-1:1:1000000", "--y=-1:1:1000000"], ["1,000,000,000,000 points", "TiB", "lower N"]),
        (["--x=-1:1:100000", "--y=-1:1:100000", "--z=-1:1:100000"], ["1,000,000,000,000,000 points", "lower N"]),
        (["--z=-1:1:1000000000000"], ["--z -1:1:1000000000000: 1,000,000,000,000 points", "lower N"]),
        (["--x=-1e300:1e300:1000000000000000", "--y=none"], ["1,000,000,000,000,000 points", "lower N"]),
        (["--x=-1:1:9223372036854775807"], ["N is too large"]),
        (["--x=-1:1:4611686018427387904"], ["do not fit between MIN and MAX; lower N"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("option", [[], ["--dry_run"]])
def test_a_huge_grid(
    tmp_path: Path, program: Callable[..., Finished], axes: list[str], words: list[str], option: list[str]
) -> None:
    finished = program("--problem", TINY, "--plot", "false", *axes, *option)
    refused(finished, *words)
    assert listing(tmp_path) == {} and "problem" not in finished.out  # before anything is made


def test_a_hundred_thousand_squared(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """Refused, unless this machine has 400 GB of memory and 170 GB of disk free."""
    points = 10**10
    if points * room.INDEX * (1 + room.ON_ROOT) < room.free_memory() and points * room.LEAST < room.free(str(tmp_path)):
        pytest.skip("there is room for it")
    finished = program("--problem", TINY, "--x", "-1:1:100000", "--y", "-1:1:100000")
    refused(finished, "--x -1:1:100000 --y -1:1:100000: 10,000,000,000 points need", "GiB", "lower N")
    assert listing(tmp_path) == {}


def test_room_is_measured_against_what_is_free(tmp_path: Path) -> None:
    """The numbers of the rule: bytes of a point, and the ranks of a node."""
    path = str(tmp_path / "a.h5")
    fits = int(min(room.free(path) / room.LEAST, room.free_memory() / (room.INDEX * (2 + room.ON_ROOT))) * 0.9)
    room.check_axes({"x": f"-1:1:{fits}"}, path, 2, True)
    with pytest.raises(Exception, match="lower N"):
        room.check_axes({"x": f"-1:1:{2 * fits}"}, path, 2, True)
    assert 0 < room.free(path) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


HUGE = """
import numpy as np
from hpc_landscape.metrics import Metric

class Many(Metric):
    def __call__(self, model):
        return np.zeros(1_000_000)
"""


def test_a_huge_metric(tmp_path: Path, program: Callable[..., Finished]) -> None:
    (tmp_path / "huge.py").write_text(HUGE)
    before = listing(tmp_path)
    words = ["--metrics", "loss,huge.py:Many", "--x=-1:1:10000", "--y=-1:1:1000"]
    finished = program("--problem", TINY, "--plot", "false", *words)
    refused(finished, "--output landscape.h5", "10,000,000 points", "TiB", "many", "leave many out of --metrics")
    left = {name: content for name, content in listing(tmp_path).items() if "__pycache__" not in name}
    assert left == before


def test_a_grid_that_just_fits_runs(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """The rule turns nothing away that there is room for: here a file of many values of which three are computed."""
    (tmp_path / "some.py").write_text(HUGE.replace("1_000_000", "100_000"))
    finished = program(*SMALL, "--metrics", "loss,some.py:Many")
    assert finished.code == 0, finished
    with h5py.File(tmp_path / "landscape.h5") as file:
        assert file["many"].shape == (3, 100_000) and file["done"][()].all()
    assert program(*SMALL, "--output", "plain.h5").code == 0
    assert_same_landscape(tmp_path / "landscape.h5", tmp_path / "plain.h5", ["loss"])
