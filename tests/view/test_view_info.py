"""info: what it says, and that it reads a file that another process is writing."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest
from test_view_files import AXES, make, slanted

from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view.info import info

ATTRIBUTES = {
    "program_version": "1.2.3",
    "torch_version": "2.13.0",
    "numpy_version": "2.4",
    "h5py_version": "3.16",
    "hdf5_version": "2.0.0",
    "mpi_version": "MPICH 4.2",
    "created": "2026-01-02T03:04:05+00:00",
    "settings": "problem: digits\ndirections: random\nnormalization: filter\nx: '-1:1:5'\n",
    "seed": 17,
    "sha256_model": "0123456789abcdef" * 4,
    "bn": "warmup",
    "batch_size": 512,
    "precision": "fp32",
    "cosine": 0.001,
    "ranks": 8,
    "something_new": "of a later version",
}


def rows(text):
    """The first word of every line that has one, with what follows."""
    return {line.split()[0]: line[11:] for line in text.splitlines() if not line.startswith(" ")}


def test_a_complete_file(tmp_path):
    said = info(make(tmp_path / "a.h5", **ATTRIBUTES))
    row = rows(said)
    assert row["grid"] == "5 x 4 = 20 points" and "y from -2 to 3 in steps of 1.667" in said
    assert row["points"] == "all done, 2 s a point (2 s to 2 s)"
    assert row["problem"] == "digits" and row["directions"].startswith("random, filter, seed 17")
    assert row["measured"] == "BN warmup, batch size 512, fp32"
    assert row["created"] == "2026-01-02T03:04:05+00:00, 8 ranks"
    assert row["with"] == "hpc_landscape 1.2.3, PyTorch 2.13.0, NumPy 2.4, h5py 3.16, HDF5 2.0.0, MPICH 4.2"
    assert row["sha256"] == "model 0123456789ab" and row["also"] == "something new of a later version"
    assert row["stored"] == "no directions, no model"
    assert row["next"].startswith("python -m hpc_landscape plot ")
    assert len(said.splitlines()) <= 24 and max(map(len, said.splitlines())) <= 120 + len(str(tmp_path))


def test_no_attributes_at_all(tmp_path):
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+", locking=False) as file:
        for name in set(file.attrs) - {"format"}:
            del file.attrs[name]
    assert "all done" in info(path)


def test_settings_that_are_no_yaml(tmp_path):
    assert "all done" in info(make(tmp_path / "a.h5", settings="{: ["))


def test_the_table_of_metrics(tmp_path):
    quantities = (Quantity("loss"), Quantity("eigenvalues", (2,), ("eigenvalue",)))

    def loss(x, y):
        return np.where((x == 1) & (y == 1), np.nan, np.where((x == -1) & (y == 1), np.inf, x + 10 * y))

    values = {"loss": loss, "eigenvalues": lambda x, y: np.stack([x, y + 5], axis=-1)}
    said = info(make(tmp_path / "a.h5", (Axis(-1, 1, 3), Axis(-1, 1, 3)), values, quantities)).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in said if line.startswith(" ")}
    assert cells["loss"] == ["-11", "(-1,", "-1)", "10", "(0,", "1)", "0", "1", "1"]
    # Of equal extremes, the one nearest to the origin.
    assert cells["eigenvalues[0]"] == ["-1", "(-1,", "0)", "1", "(1,", "0)", "0", "-", "-"]
    assert cells["eigenvalues[1]"] == ["4", "(0,", "-1)", "6", "(0,", "1)", "5", "-", "-"]


def test_a_long_metric_does_not_hide_the_others(tmp_path):
    quantities = (Quantity("gradient", (100,), ("parameter",)), Quantity("loss"), Quantity("norm"))
    ones = {q.name: lambda x, y, shape=q.shape: np.ones(x.shape + shape) for q in quantities}
    said = info(make(tmp_path / "a.h5", values=ones, quantities=quantities))
    first = [line.split()[0] for line in said.splitlines() if line.startswith(" ")]
    shown = [word for word in first if word.startswith(("gradient", "loss", "norm"))]
    assert shown == [*(f"gradient[{i}]" for i in range(10)), "loss", "norm"] and "and 90 more" in said


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_number_of_axes(tmp_path, n):
    assert "all done" in info(make(tmp_path / "a.h5", AXES[n]))


def test_all_nan_and_nothing_done(tmp_path):
    said = info(make(tmp_path / "a.h5", values=lambda x, y: x * np.nan))
    assert [line for line in said.splitlines() if " loss " in line][0].split() == ["loss", *"-----", "20", "-"]
    said = info(make(tmp_path / "b.h5", done=np.zeros((5, 4))))
    assert rows(said)["points"] == "0 of 20 done (0.0%)"


def test_an_unfinished_file_says_how_far_and_how_to_go_on(tmp_path):
    done = np.arange(20).reshape(5, 4) < 5
    path = make(tmp_path / "a.h5", done=done, ranks=3)
    row = rows(info(path))
    assert row["points"].startswith(
        "5 of 20 done (25.0%), 2 s a point (2 s to 2 s), 1.5 points/s and 10 s left on the 3"
    )
    assert row["run"].startswith("none is at it; last written ")
    assert row["next"].endswith(f"--output {path}")
    almost = make(tmp_path / "b.h5", (Axis(-1, 1, 5000),), slanted, done=np.arange(5000) > 0)
    assert "(99.9%)" in info(almost)


def test_directions_and_model_that_the_file_holds(tmp_path):
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+", locking=False) as file:
        file["directions/along_x/weight"] = np.zeros(256, np.float32)
        file["model/weight"] = np.zeros(512, np.float32)
    assert rows(info(path))["stored"] == "directions x (1.0 KiB), model (2.0 KiB)"


def test_a_file_that_another_process_holds_open_for_writing(tmp_path):
    path = make(tmp_path / "a.h5", done=np.arange(20).reshape(5, 4) < 5)
    holder = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        assert "5 of 20" in info(path)
        process.stdin.close()


def test_files_that_are_not_ours(tmp_path):
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["x"] = [1.0]
    (tmp_path / "text.h5").write_text("not HDF5")
    for name, said in (
        ("foreign.h5", "not one of this program's"),
        ("text.h5", "not an HDF5"),
        ("no.h5", "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            info(str(tmp_path / name))
