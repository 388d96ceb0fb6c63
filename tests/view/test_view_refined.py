"""What pictures, pages, numbers and exports make of a file whose points are not all evaluated."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpc_landscape.grid import Axis, Grid
from hpc_landscape.schedule.refine import refine
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity
from hpc_landscape.store.refinement import SUMMARY
from hpc_landscape.view.export import export
from hpc_landscape.view.field import read_field
from hpc_landscape.view.info import info
from hpc_landscape.view.numbers import numbers
from hpc_landscape.view.page.content import content
from hpc_landscape.view.plot import plot

pytestmark = pytest.mark.usefixtures("at_once")


def make(path: Path, *n: int) -> Path:
    """A bowl, refined to 2%; the estimate of its lowest point, which is not evaluated, is made lower."""
    grid = Grid(*(Axis(-1, 1, m) for m in n))
    values = 1 + sum((c - 0.3) ** 2 for c in np.meshgrid(*grid.coordinates, indexing="ij"))
    done = np.zeros(grid.shape, bool)
    while not (now := refine(np.where(done, values, np.nan), done, 0.02)).ended:
        done.flat[now.points] = True
    told = now.tell(values, done)
    layout.create(
        str(path), grid, [Quantity("loss"), Quantity("norms", (2,), ("which",))], {"refined": "loss"}, refined=["loss"]
    )
    lowest = np.unravel_index(np.argmin(np.where(done, np.inf, told.values)), grid.shape)
    told.values[lowest] = 0.5
    with h5py.File(path, "r+", locking=False) as file:
        file["loss"][...], file["done"][...] = np.where(done, values, np.nan), done
        file["loss_estimate"][...], file["loss_error"][...] = told.values, told.error
        file[SUMMARY][...] = [[1, told.estimated_error, told.true_error, told.held_out, told.log]]
    return path


def test_the_estimate_is_drawn_and_extremes_are_of_evaluated_points(tmp_path: Path) -> None:
    path = str(make(tmp_path / "a.h5", 31, 31))
    stored = layout.read(path)
    field = read_field(path, stored, "loss")
    assert field.finite.size == 961 and 0 < stored.done.sum() < 400
    assert field.best is not None and field.done[field.best] and field.values[field.best] > field.values.min() == 0.5
    assert f"{stored.done.sum()} of 961 points evaluated, the others estimated to" in field.gaps
    assert "at worst at 9 points held out" in field.gaps
    assert read_field(path, stored, "norms[0]").gaps.startswith(f"{stored.done.sum()} of 961 points done")
    assert np.nanmax(read_field(path, stored, "loss_error").values) <= 0.02 * np.ptp(field.values)
    assert "refinement loss estimated to" in info(path) and f"{stored.done.sum()} of 961 done" in info(path)
    assert numbers(path)["points"] == 961


@pytest.mark.parametrize("kind", ["contour", "heatmap", "surface", "line", "slices"])
def test_evaluated_points_are_marked(tmp_path: Path, figures: list[Any], kind: str) -> None:
    shape = {"line": (101,), "slices": (17, 17, 17)}.get(kind, (31, 31))
    path = make(tmp_path / "a.h5", *shape)
    plot(str(path), kind=None if kind == "slices" else kind)
    done = layout.read(str(path)).done
    axes = figures[0].axes[0]
    if kind == "line":
        assert sorted(map(len, (line.get_xdata() for line in axes.lines))) == [done.sum(), 101]
    else:
        (dots,) = [c for c in axes.collections if c.get_label() == "evaluated"]
        assert len(dots.get_offsets()) == (done[:, :, 8] if kind == "slices" else done).sum()
    said = " ".join(text.get_text().replace("\n", " ") for text in figures[0].texts)
    assert f"{done.sum()} of {done.size} points evaluated, the others estimated to" in said and "grey" not in said


def test_exports_have_the_estimate_beside_what_was_evaluated(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", 31, 31)
    stored = layout.read(str(path))
    with open(export(str(path), str(tmp_path / "a.csv")), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] != "" for row in rows] == stored.done.reshape(-1).tolist()
    guess = layout.read_values(str(path), "loss_estimate")
    assert [float(row["loss_estimate"]) for row in rows] == guess.reshape(-1).tolist()
    with np.load(export(str(path), str(tmp_path / "a.npz"))) as arrays:
        assert np.isnan(arrays["loss"][~stored.done]).all() and (arrays["loss_estimate"] == guess).all()
    with h5py.File(export(str(path), str(tmp_path / "b.h5"), "loss-landscape"), "r") as file:
        assert (file["train_loss"][()] == guess.T).all()


def test_a_page_has_the_estimate_and_knows_what_was_evaluated(tmp_path: Path) -> None:
    path = str(make(tmp_path / "a.h5", 31, 31))
    page = content(path, layout.read(path), None, None, (None, None), "viridis", None)
    done = layout.read(path).done.reshape(-1).tolist()
    loss, norm = page["metrics"][:2]
    assert loss["evaluated"] == done and None not in loss["values"] and loss["missing"] == 0
    assert norm["evaluated"] is None and norm["missing"] == 961 - sum(done)
    assert "points are evaluated. The others: loss estimated to" in page["notes"][0]


def test_a_file_that_says_it_is_refined_and_is_not_is_read_as_one_that_is_not(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", 31, 31)
    for attribute in ("loss,other", "loss,loss", "norms", ""):
        with h5py.File(path, "r+", locking=False) as file:
            file.attrs["refined"] = attribute
        assert layout.read(str(path)).refined == {}
        assert "points done" in read_field(str(path), layout.read(str(path)), "loss").gaps
