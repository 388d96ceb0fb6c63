"""Landscape files that are damaged, or made by someone else: one clear line or right behaviour, never written to."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from programs import ROOT, TINY, environment, run_program

pytestmark = pytest.mark.slow

FILES = int(os.environ.get("HOSTILE_FILES", "12"))  # damaged files of each shape
SEED = int(os.environ.get("HOSTILE_SEED", "0"))
SHAPES = {
    "line": ["--x=-1:1:5", "--y=none", "--trajectory", "start.pt"],
    "plane": ["--x=-1:1:4", "--y=-1:1:3", "--save_model"],
    "arrays": ["--x=-1:1:3", "--y=-1:1:2", "--metrics", "loss,loss_gradient"],
}
READER = ROOT / "tests" / "reader_of_many_files.py"


def job(shape: str) -> list[str]:
    return ["--problem", TINY, "--plot", "false", *SHAPES[shape]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unfinished file of each shape, each with two points done."""
    folder = tmp_path_factory.mktemp("whole")
    sys.path.insert(0, str(Path(TINY).parent))
    import tiny_problem_for_tests

    tiny_problem_for_tests.checkpoint(folder / "start.pt", weight_seed=1)
    for shape in SHAPES:
        at = 4 if shape == "arrays" else 2  # a gradient is tried twice at the origin before the file is made
        stop = ["--problem.fault", "SIGTERM", "--problem.fault_at", at]
        finished = run_program(*job(shape), *stop, "--output", f"{shape}.h5", folder=folder)
        assert finished.code == 75, finished
    return folder


class Reader:
    """A process that gives file after file to commands."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(), cwd=folder,
        )  # fmt: skip

    def ends(self, path: Path, *commands: list[str]) -> list[dict]:
        """How each command ended, after what goes for all: no crash, no trace, one line, the file as it was."""
        print(json.dumps([str(path), commands]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"{path} has killed its reader: {self.process.wait()}"
        answer = json.loads(answer)
        for end in answer["ends"]:
            assert end["code"] in (0, 2), f"{path}: {end['code']}"
            assert len(end["err"].splitlines()) == (end["code"] == 2), (path, end)
            assert "Traceback" not in end["err"] + end["out"]
        assert answer["same"] and answer["left"] == [], (path, answer)
        return answer["ends"]

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()


@pytest.fixture(scope="module")
def reader(whole: Path) -> Iterator[Reader]:
    made = Reader(whole)
    yield made
    made.close()


def commands(path: Path, shape: str, picture: Path) -> list[list[str]]:
    resume = [*job(shape), "--output", str(path), "--dry_run"]  # it reads and checks all that a resume does
    return [["info", str(path)], ["plot", str(path), "-o", str(picture), "--dpi", "30"], resume]


def views(path: Path, folder: Path) -> list[list[str]]:
    """The other commands that read a file."""
    out = ["-o", str(folder / "a.html")], *(["-o", str(folder / f"a{suffix}")] for suffix in (".npz", ".nc"))
    return [
        *(["info", str(path), "--numbers"], ["info", str(path), "--cite"], ["compare", str(path), str(path)]),
        *(["plot", str(path), *out[0]], ["export", str(path), *out[1]], ["export", str(path), *out[2]]),
    ]


# Damage


def damage(content: bytes, draw: random.Random) -> bytes:
    """The content with something changed, put in, taken out or cut off, anywhere."""
    new, n = bytearray(content), len(content)
    where, length = draw.randrange(n), draw.choice([1, 8, 64, 512])
    kind = draw.choice(["bytes", "bytes", "bit", "cut", "insert", "delete", "zero", "copy"])
    if kind == "bytes":
        for _ in range(draw.choice([2, 8, 64])):
            new[draw.randrange(n)] ^= draw.randrange(1, 256)
    elif kind == "bit":
        new[draw.randrange(min(n, 4096))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del new[where:]
    elif kind == "insert":
        new[where:where] = draw.randbytes(length)
    elif kind == "delete":
        del new[where : where + length]
    else:
        other = bytes(n) if kind == "zero" else content[draw.randrange(n) :]
        piece = other[: min(length, n - where)]
        new[where : where + len(piece)] = piece
    return bytes(new)


@pytest.mark.parametrize("shape", SHAPES)
def test_damaged_files(whole: Path, tmp_path: Path, shape: str) -> None:
    draw = random.Random(f"{SEED} {shape}")
    content = (whole / f"{shape}.h5").read_bytes()
    contents = [damage(content, draw) for _ in range(FILES)]

    def give(half: int) -> Counter:
        seen: Counter = Counter()
        folder = tmp_path / str(half)
        folder.mkdir()
        reader = Reader(whole)
        for i, damaged in list(enumerate(contents))[half::2]:
            path = folder / f"{i}.h5"
            path.write_bytes(damaged)
            first, *others = commands(path, shape, whole / f"{half}.png")
            [end] = reader.ends(path, first)
            if "did not end" not in end["err"]:  # the others would wait as long
                found = reader.ends(path, *others)
                assert (end["code"] == 2) <= (found[0]["code"] == found[1]["code"] == 2)
            seen[end["code"]] += 1
        reader.close()
        return seen

    with ThreadPoolExecutor(2) as pool:
        seen = sum(pool.map(give, range(2)), Counter())
    assert seen[2] >= FILES // 3, seen  # damage is seen, but for what has no checksum: values and texts


def test_a_resume_that_is_refused_leaves_no_trace(whole: Path, tmp_path: Path, program: Callable) -> None:
    """Not in a dry run: with all that a run does before it has looked at the file."""
    draw, content = random.Random(SEED), (whole / "plane.h5").read_bytes()
    path = tmp_path / "landscape.h5"
    for length in sorted(draw.sample(range(len(content)), 3)):
        path.write_bytes(content[:length])
        finished = program(*job("plane"), "--output", path)
        assert finished.code == 2 and len(finished.err.splitlines()) == 1, finished
        assert path.read_bytes() == content[:length] and os.listdir(tmp_path) == ["landscape.h5"]


# Whole HDF5 files that hold something else

ANYTHING = {
    "an array": np.arange(3.0),
    "a matrix of text": np.array([["a", "b"]], dtype=h5py.string_dtype()),
    "a huge number": np.uint64(2**64 - 1),
    "a negative number": -1,
    "a fraction": 0.5,
    "not a number": np.nan,
    "infinity": np.inf,
    "empty": h5py.Empty("f8"),
    "bytes": np.void(b"\x00\xff"),
    "a line break": "a\nb\x1b[2J\nc",
    "a long text": "x" * 60_000,
    "complex": 1 + 2j,
    "a record": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
    "no UTF-8": np.bytes_(b"\xff\xfe"),
    "yes and no": np.array([True, False]),
}
KEPT = ("format", "format_version")


@pytest.mark.parametrize("what", ANYTHING)
def test_attributes_that_are_something_else(whole: Path, tmp_path: Path, reader: Reader, what: str) -> None:
    path = Path(shutil.copy(whole / "plane.h5", tmp_path))
    with h5py.File(path, "r+", locking=False) as file:
        for name in [*file.attrs, "title", "explained_variance_ratio", "größe\n\x1b[1m"]:
            if name not in KEPT:
                file.attrs[name] = ANYTHING[what]
    info, plot, resume = reader.ends(path, *commands(path, "plane", whole / "a.png"))
    assert info["code"] == plot["code"] == 0 and "2 of 12 done" in info["out"]
    assert resume["code"] == 2 and "is of another run" in resume["err"]
    assert "\x1b" not in info["out"] + resume["err"]
    assert not any(end["code"] for end in reader.ends(path, *views(path, whole)))


@pytest.mark.parametrize("name", KEPT)
def test_a_format_that_is_something_else(whole: Path, tmp_path: Path, reader: Reader, name: str) -> None:
    for number, what in enumerate(("an array", "a matrix of text", "empty", "not a number", "complex", "a line break")):
        path = Path(shutil.copy(whole / "plane.h5", tmp_path / f"{number}.h5"))
        with h5py.File(path, "r+", locking=False) as file:
            file.attrs[name] = ANYTHING[what]
        [end] = reader.ends(path, ["info", str(path)])
        assert end["code"] == 2


def _replaced(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def _chunked(name: str, shape: tuple[int, ...]) -> Callable[[h5py.File], None]:
    """An array that is declared, and takes no place in the file."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, "f8", chunks=True)

    return change


def _own_parent(file: h5py.File) -> None:
    file["loop"] = file["/"]
    file["model/again"] = file["model"]
    file["soft"] = h5py.SoftLink("/soft")


# What is wrong, how it is made, and whether the file is refused.
MADE = {
    "axis of text": (_replaced("x", ["a", "b", "c", "d"]), True),
    "axis with two dimensions": (_replaced("x", np.zeros((4, 3))), True),
    "axis that is a number": (_replaced("x", 1.0), True),
    "axis without points": (_replaced("x", np.zeros(0)), True),
    "axis that goes back": (_replaced("x", [0.0, 2.0, 1.0, 3.0]), True),
    "axis with NaN": (_replaced("x", [0.0, np.nan, 1.0, 3.0]), True),
    "axis that has no end": (_replaced("x", [0.0, 1.0, 2.0, np.inf]), True),
    "axis that links nowhere": (_replaced("x", h5py.SoftLink("/nowhere")), True),
    "axis that links to itself": (_replaced("x", h5py.SoftLink("/x")), True),
    "axis in another file": (_replaced("x", h5py.ExternalLink("/etc/passwd", "/x")), True),
    "done of text": (_replaced("done", np.full((4, 3), "1", dtype=h5py.string_dtype())), True),
    "done of another shape": (_replaced("done", np.zeros((3, 4), np.uint8)), True),
    "done a group": (lambda file: (file.move("done", "was"), file.create_group("done")), True),
    "loss of text": (_replaced("loss", np.full((4, 3), "1", dtype=h5py.string_dtype())), False),
    "loss complex": (_replaced("loss", np.zeros((4, 3), complex)), False),
    "loss a group": (lambda file: (file.move("loss", "was"), file.create_group("loss")), False),
    "loss in another file": (_replaced("loss", h5py.ExternalLink("/etc/passwd", "/loss")), True),
    "loss of no values": (_replaced("loss", np.zeros((4, 3, 0))), False),
    "loss as large as a disk": (_chunked("loss", (4, 3, 10**13)), True),
    "grid as large as a disk": (_chunked("done", (10**7, 10**7)), True),
    "no wall time": (lambda file: file.pop("wall_time"), True),
    "wall time of text": (_replaced("wall_time", np.full((4, 3), "1", dtype=h5py.string_dtype())), True),
    "wall time of another shape": (_replaced("wall_time", np.zeros(5)), True),
    "failed of another shape": (_replaced("failed", np.zeros(7, np.uint8)), True),
    "directions that are numbers": (_replaced("directions", np.zeros(3)), False),
    "model that is a number": (_replaced("model", 3.0), False),
    "model without names": (lambda file: file["model"].clear(), False),
    "groups in circles": (_own_parent, False),
    "trajectory of text": (lambda file: file.update({"trajectory/x": ["a"], "trajectory/y": ["b"]}), False),
    "trajectory of two lengths": (lambda file: file.update({"trajectory/x": [1.0], "trajectory/y": [1.0, 2]}), False),
    "trajectory that is a number": (lambda file: file.update({"trajectory": 1.0}), False),
    "trajectory whose labels are a group": (
        lambda file: file.update({"trajectory/x": [1.0], "trajectory/y": [1.0], "trajectory/label/a": 1.0}),
        False,
    ),
    "names that are formulas": (lambda file: file.move("loss", r"a$\frac$"), False),
    "names of arguments": (
        lambda file: file.update({name: np.zeros((4, 3)) for name in ("file", "allow_pickle", "attributes")}),
        False,
    ),
    "names that steer": (lambda file: file.update({"a\n\x1b[2J": np.zeros((4, 3)), "directions/\n": 1.0}), False),
}


@pytest.mark.parametrize("what", MADE)
def test_datasets_that_are_something_else(whole: Path, tmp_path: Path, reader: Reader, what: str) -> None:
    path = Path(shutil.copy(whole / "plane.h5", tmp_path))
    change, refused = MADE[what]
    with h5py.File(path, "r+", locking=False) as file:
        change(file)
    info, *others = commands(path, "plane", whole / "a.png")
    ends = reader.ends(path, info, *([] if refused else [*others, *views(path, whole)]))  # all read it the same way
    assert (ends[0]["code"] == 2) == refused, ends
    assert "\x1b" not in "".join(end["out"] + end["err"] for end in ends)


def test_settings_in_a_file_are_data(whole: Path, tmp_path: Path, reader: Reader) -> None:
    """Whoever reads or resumes a file that someone else has made runs nothing of it."""
    trace = tmp_path / "it_ran"
    call = f"os.mkdir ['{trace}']"
    bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
        for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    texts = {
        "call": f"problem: !!python/object/apply:{call}\nseed: !!python/object/new:{call}\n",
        "name": "problem: !!python/name:os.system ''\n",
        "module": "!!python/module:antigravity ''\n",
        "bomb": bomb + "problem: *k\nseed: *k\nbn: *k\n",
        "circle": "problem: &a [*a]\nseed: &b {b: *b}\nbn: *a\n",
        "deep": "problem: " + "[" * 5000,
        "long": "problem: " + "x" * 60_000 + "\n",
        "list": "[1, 2]",
        "odd": "problem: 2001-01-01\nseed: 1:2:3\nbn: .nan\nnormalization: !!binary aGVsbG8=\ndirections: {a: b}\n",
    }
    for name, text in texts.items():
        path = Path(shutil.copy(whole / "plane.h5", tmp_path / f"{name}.h5"))
        with h5py.File(path, "r+", locking=False) as file:
            for attribute in set(file.attrs) - set(KEPT):
                del file.attrs[attribute]
            file.attrs["settings"] = text
            file.attrs["command"] = f"python -c 'import os; os.mkdir(\"{trace}\")'"
        info, plot, resume = reader.ends(path, *commands(path, "plane", whole / "a.png"))
        assert info["code"] == plot["code"] == 0 and resume["code"] == 2, (name, info, plot, resume)
        assert max(map(len, info["out"].splitlines())) < 500 + len(str(tmp_path)), name
    assert not trace.exists()
