"""Files that lead into others: neither read nor written through, by any command. And names that are paths in HDF5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fault_table
import h5py
import numpy as np
import pytest
from programs import TINY, Finished, read

from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store import layout

JOB = ("--problem", TINY, "--x=-1:1:3", "--y=none", "--plot", "false")


def _external_link(file: h5py.File, victim: Path) -> None:
    file["loss"] = h5py.ExternalLink(str(victim), "values")


def _link_in_a_group(file: h5py.File, victim: Path) -> None:
    file.move("loss", "kept")
    file["loss"] = file["kept"]
    file["directions/w"] = h5py.ExternalLink(str(victim), "values")


def _external_storage(file: h5py.File, victim: Path) -> None:
    file.create_dataset("loss", (3,), np.float64, external=[(str(victim), 0, 24)])


def _virtual(file: h5py.File, victim: Path) -> None:
    whole = h5py.VirtualLayout((3,), np.float64)
    whole[:] = h5py.VirtualSource(str(victim), "values", (3,))
    file.create_virtual_dataset("loss", whole)


@pytest.mark.parametrize("kind", [_external_link, _link_in_a_group, _external_storage, _virtual])
def test_what_leads_elsewhere(tmp_path: Path, program: Callable[..., Finished], kind: Callable) -> None:
    assert program(*JOB, "--save_directions", "true").code == 0
    victim = tmp_path / "victim.h5"
    with h5py.File(victim, "w") as file:
        file["values"] = np.array([1.0, 2.0, 3.0])
    with h5py.File(tmp_path / "landscape.h5", "r+") as file:
        if kind is not _link_in_a_group:
            del file["VTKHDF"], file["loss"]
        kind(file, victim)
        file["done"][0] = 0
    before = victim.read_bytes(), (tmp_path / "landscape.h5").read_bytes()
    for words in (
        JOB,
        ("info", "landscape.h5"),
        ("plot", "landscape.h5"),
        ("export", "landscape.h5", "-o", "out.csv"),
        (*JOB, "--directions", "file", "--direction_files", "landscape.h5", "--output", "other.h5"),
    ):
        finished = program(*words)
        assert finished.code == 2 and len(finished.err.splitlines()) == 1, finished
        assert "which is neither read nor written" in finished.err, finished
    assert before == (victim.read_bytes(), (tmp_path / "landscape.h5").read_bytes())
    assert not (tmp_path / "other.h5").exists() and not (tmp_path / "out.csv").exists()
    fault_table.record("a file that leads into another file", tries=5, then="exit 2, one line; both are as they were")


def test_values_that_lie_over_each_other(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """Two names of one dataset, in a file that someone has made: flags written there would be values."""
    assert program(*JOB).code == 0
    with h5py.File(tmp_path / "landscape.h5", "r+") as file:
        del file["failed"]
        file["failed"] = file["done"]
        file["done"][0] = 0
    before = (tmp_path / "landscape.h5").read_bytes()
    finished = program(*JOB, "--writer", "gather")
    assert finished.code == 2 and "overlap" in finished.err and len(finished.err.splitlines()) == 1, finished
    assert before == (tmp_path / "landscape.h5").read_bytes()


def test_names_that_are_paths(tmp_path: Path) -> None:
    """A parameter's name with a slash, as modules' names may have, is read back as it was saved."""
    names = ["layer/0", "layer", "a%2Fb", "a/b", "/", ".", "..", "", "50%", "ünïcode", "nul\0", "\udc80"]
    arrays = {name: np.full(2, i, float) for i, name in enumerate(names)}
    layout.create(str(tmp_path / "l.h5"), Grid(Axis(-1, 1, 3)), [], {}, {"x": arrays}, arrays)
    for group in ("model", "directions/along_x"):
        found = layout.read_arrays(str(tmp_path / "l.h5"), group)
        assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}


SLASHES = """
import torch
from torch import nn
from hpc_landscape import Problem

def slashes():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("block/0", nn.Linear(4, 3))
    model.add_module("block", nn.Linear(3, 2))
    return Problem(model, nn.CrossEntropyLoss(), (torch.randn(12, 4), torch.arange(12) % 2))
"""


def test_a_model_whose_names_are_paths(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """Saved with its directions, gone on with, and the directions of another run."""
    (tmp_path / "p.py").write_text(SLASHES)
    job = ("--problem", "p.py:slashes", "--x=-1:1:3", "--y=none", "--plot", "false", "--save_model")
    assert program(*job).code == 0
    whole = read(tmp_path / "landscape.h5", "loss")
    with h5py.File(tmp_path / "landscape.h5", "r+") as file:
        file["done"][1:], file["loss"][1:] = 0, np.nan
    finished = program(*job)
    assert finished.code == 0 and "2 still to do" in finished.out, finished
    assert read(tmp_path / "landscape.h5", "loss").tobytes() == whole.tobytes()
    again = (*job, "--directions", "file", "--direction_files", "landscape.h5", "--normalization", "none")
    finished = program(*again, "--output", "again.h5")
    assert finished.code == 0, finished
    np.testing.assert_allclose(read(tmp_path / "again.h5", "loss"), whole, rtol=1e-12)


def test_groups_within_themselves(tmp_path: Path, program: Callable[..., Finished]) -> None:
    """By two names, which would double with each step: each group is looked into once."""
    job = ("--problem", TINY, "--x=-1:1:3", "--y=none", "--plot", "false")
    assert program(*job, "--save_directions", "true", "--output", "theirs.h5").code == 0
    with h5py.File(tmp_path / "theirs.h5", "r+") as file:
        group = file["directions/along_x"]
        group["a"] = group["b"] = group
    finished = program(*job, "--directions", "file", "--direction_files", "theirs.h5")
    assert finished.code == 0, finished
