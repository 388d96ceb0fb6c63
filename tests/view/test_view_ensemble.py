"""What is said, drawn and exported of an ensemble of direction sets: against NumPy and SciPy."""

from __future__ import annotations

import csv
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from test_view_files import make, vtk_points

import hpc_landscape
from hpc_landscape import UserError
from hpc_landscape.grid import Axis
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view.compare import compare
from hpc_landscape.view.ensemble import clopper_pearson
from hpc_landscape.view.export import export
from hpc_landscape.view.field import SUMMARIES, read_field
from hpc_landscape.view.info import info
from hpc_landscape.view.numbers import numbers
from hpc_landscape.view.page.content import content
from hpc_landscape.view.plot import plot

pytestmark = pytest.mark.usefixtures("at_once")

LINE = (Axis(-1, 1, 9),)
PLANE = (Axis(-1, 1, 5), Axis(-2, 2, 5))
SETS = 7
STEEP = np.random.default_rng(0).uniform(0.5, 4, 100)


def bowls(which: Any, *c: Any) -> Any:
    """Each set has a bowl of its own steepness."""
    return 1 + STEEP[np.asarray(which, int)] * sum(np.square(x) for x in c)


def ensemble(path: Any, axes: Any = PLANE, values: Any = bowls, sets: int = SETS, **options: Any) -> str:
    return make(path, axes, values, sets=sets, directions="random", **options)


def stored_loss(path: str) -> np.ndarray:
    with h5py.File(path) as file:
        return file["loss"][()]


def test_the_interval_is_the_beta_distributions():
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 2, 10, 37, 1000):
        for k in sorted({0, 1, n // 3, n - 1, n}):
            low = 0.0 if k == 0 else stats.beta.ppf(0.025, k, n - k + 1)
            high = 1.0 if k == n else stats.beta.ppf(0.975, k + 1, n - k)
            np.testing.assert_allclose(clopper_pearson(k, n), (low, high), rtol=1e-10)
    low, high = clopper_pearson(3, 8, 0.9)
    np.testing.assert_allclose((low, high), stats.beta.ppf([0.05, 0.95], [3, 4], [6, 5]), rtol=1e-10)


def by_numpy(values: np.ndarray) -> dict[str, np.ndarray]:
    found = {"mean": np.nanmean(values, axis=0), "spread": np.nanstd(values, axis=0, ddof=1)}
    return found | {f"q{q}": np.nanpercentile(values, q, axis=0) for q in (5, 25, 50, 75, 95)}


def test_every_point_has_what_numpy_says_of_its_sets(tmp_path):
    done = np.ones((SETS, 5, 5), bool)
    done[5:, 2:] = False  # two sets are under way

    def gaps(which, x, y):  # and one diverges
        return np.where((which == 3) & (x > 0.4), np.where(y > 0, np.inf, np.nan), bowls(which, x, y))

    path = ensemble(tmp_path / "a.h5", values=gaps, done=done)
    values = stored_loss(path)
    values = np.where(np.isfinite(values), values, np.nan)
    stored = layout.read(path)
    for name, expected in by_numpy(values).items():
        field = read_field(path, stored, f"loss.{name}")
        np.testing.assert_allclose(field.values, expected, rtol=1e-14, atol=1e-15)
        assert (field.nans, field.infinities) == (6, 4)
        assert "145 of 175 points done" in field.gaps
    assert set(by_numpy(values)) == set(SUMMARIES)
    mean = read_field(path, stored, "loss")
    np.testing.assert_array_equal(mean.values, read_field(path, stored, "loss.mean").values)
    with pytest.raises(UserError, match=r"it has loss, wall_time; of each .mean, .spread, .q5"):
        read_field(path, stored, "loss.q6")


def test_the_share_of_directions_that_stay_below_a_level(tmp_path):
    path = ensemble(tmp_path / "a.h5", sets=20)
    worst = np.max(stored_loss(path)[:, 1:4, 2:3], axis=(1, 2))  # x to 0.5, y to 0
    stays = int((worst <= 1.5).sum())
    found = numbers(path, radius=0.5, level=1.5)
    assert 0 < stays < 20
    name = "share_of_directions_under_level"
    assert found[name] == stays / 20
    assert (found[f"{name}_at_least"], found[f"{name}_at_most"]) == clopper_pearson(stays, 20)
    assert found["directions"] == 20
    usual = numbers(path)  # radius: half the way to the nearest end; level: twice the value at the model
    assert (usual.options.radius, usual.options.level) == (0.5, 2.0)
    assert usual[name] == (worst <= 2).mean()


def test_what_is_not_finite_stays_nowhere_and_what_is_not_done_is_not_counted(tmp_path):
    done = np.ones((SETS, 9), bool)
    done[6, 4] = False

    def gaps(which, x):
        return np.where((which == 0) & (x == 0.25), np.nan, np.where((which == 1) & (x == 1), np.nan, 1.0))

    found = numbers(ensemble(tmp_path / "a.h5", LINE, gaps, done=done), radius=0.5, level=1)
    assert found["share_of_directions_under_level"] == 5 / 6


def test_of_an_accuracy_the_share_that_stays_above(tmp_path):
    names = (Quantity("accuracy"),)
    path = ensemble(tmp_path / "a.h5", LINE, lambda w, x: 1 - STEEP[np.asarray(w, int)] * x**2, quantities=names)
    found = numbers(path, "accuracy", radius=0.5, level=0.5)
    assert found["share_of_directions_over_level"] == (1 - STEEP[:SETS] * 0.25 >= 0.5).mean()


RAW = {"distribution": "normal", "normalization": "none", "ignore": "none"}


def test_the_trace_is_of_raw_normal_directions_with_the_model_between_two_points(tmp_path):
    found = numbers(ensemble(tmp_path / "a.h5", **RAW))
    second = np.repeat(2 * STEEP[:SETS], 2)  # both axes of a set
    np.testing.assert_allclose(found["hessian_trace"], second.mean(), rtol=1e-12)
    np.testing.assert_allclose(found["hessian_trace_error"], second.std(ddof=1) / (2 * SETS) ** 0.5, rtol=1e-12)
    notes = {n.name: n.note for n in found.numbers}
    assert "over 14 directions, step 0.5 and 1;" in notes["hessian_trace"]
    for i, (option, value) in enumerate((*RAW.items(), ("orthogonalize", "true"))):
        other = "uniform" if value == "normal" else "filter" if option == "normalization" else "biasbn"
        changed = RAW | {option: 1 if option == "orthogonalize" else other}
        assert numbers(ensemble(tmp_path / f"{i}.h5", **changed))["hessian_trace"] is None
    for i, axis in enumerate((Axis(0, 1, 5), Axis(-1, 1, 4), Axis(0.5, 1, 3))):
        assert numbers(ensemble(tmp_path / f"axis{i}.h5", (axis,), **RAW))["hessian_trace"] is None


def test_info_tells_of_the_sets(tmp_path):
    text = info(ensemble(tmp_path / "a.h5", **RAW))
    assert f"{SETS} sets of 5 x 5 = 175 points" in text
    for words in ("directions 7", "share of directions under level", "hessian trace", "Clopper and Pearson"):
        assert words in text
    assert "ensemble" not in info(make(tmp_path / "b.h5"))


def test_a_comparison_is_of_the_means(tmp_path):
    a, b = ensemble(tmp_path / "a.h5"), ensemble(tmp_path / "b.h5", sets=3)
    assert compare(a, b)["maximum"] == stored_loss(b).mean(axis=0).max() - stored_loss(a).mean(axis=0).max()


def test_csv_has_a_row_for_each_set_and_point(tmp_path):
    path = ensemble(tmp_path / "a.h5")
    with open(export(path, str(tmp_path / "a.csv")), newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["direction", "x", "y", "loss"] and len(rows) == SETS * 25
    assert [row["direction"] for row in rows[::25]] == [str(i) for i in range(SETS)]
    for name, expected in by_numpy(stored_loss(path)).items():
        column = np.reshape([float(row[f"loss.{name}"]) for row in rows], (SETS, 5, 5))
        np.testing.assert_allclose(column, np.broadcast_to(expected, column.shape), rtol=1e-14)


def test_arrays_and_datasets_have_all_sets_and_the_summaries(tmp_path):
    path = ensemble(tmp_path / "a.h5", quantities=(Quantity("loss"), Quantity("e", (2,), ("k",))), values={
        "loss": bowls, "e": lambda w, x, y: np.stack([bowls(w, x, y), -bowls(w, x, y)], -1),
    })  # fmt: skip
    loss = stored_loss(path)
    with np.load(export(path, str(tmp_path / "a.npz"))) as arrays:
        np.testing.assert_array_equal(arrays["loss"], loss)
        np.testing.assert_allclose(arrays["loss.q75"], np.percentile(loss, 75, axis=0), rtol=1e-14)
    with xarray.open_dataset(export(path, str(tmp_path / "a.nc")), engine="h5netcdf") as data:
        assert data["loss"].dims == ("direction", "x", "y") and data["loss.mean"].dims == ("x", "y")
        assert data["e"].dims == ("direction", "x", "y", "k") and data["e.q5"].dims == ("x", "y", "k")
        np.testing.assert_allclose(data["loss.mean"], data["loss"].mean("direction"), rtol=1e-14)
    opened = hpc_landscape.open(path)
    assert opened["loss"].dims == ("direction", "x", "y")
    assert opened.landscape.numbers()["directions"] == SETS


def test_formats_of_one_plane_have_the_mean(tmp_path):
    path = ensemble(tmp_path / "a.h5")
    mean = stored_loss(path).mean(axis=0)
    found = vtk_points(export(path, str(tmp_path / "a.vtkhdf")), "loss")
    assert found[-1.0, 2.0, 0.0] == (pytest.approx(mean[0, 4]),)
    spread = vtk_points(str(tmp_path / "a.vtkhdf"), "loss_spread")
    assert spread[-1.0, 2.0, 0.0] == (pytest.approx(stored_loss(path).std(axis=0, ddof=1)[0, 4]),)
    with h5py.File(export(path, str(tmp_path / "theirs.h5"), "loss-landscape")) as file:
        np.testing.assert_allclose(file["train_loss"], mean.T, rtol=1e-14)
    for name in ("a.stl", "b.npz"):
        assert export(path, str(tmp_path / name), "landscaper" if name == "b.npz" else None)


def test_a_line_has_its_bands(tmp_path, figures):
    path = ensemble(tmp_path / "a.h5", LINE)
    plot(path)
    axes = figures[0].axes[0]
    expected = by_numpy(stored_loss(path))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected["mean"], rtol=1e-14)
    for band, (low, high) in zip(axes.collections, (("q5", "q95"), ("q25", "q75")), strict=False):
        corners = band.get_paths()[0].vertices
        for edge, end in ((expected[low], min), (expected[high], max)):
            ends = [end(y for x, y in corners if x == at) for at in LINE[0].coordinates]
            np.testing.assert_allclose(ends, edge, rtol=1e-14)
    words = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert {"mean of 7 sets of directions", "5% to 95% of them", "25% to 75% of them"} <= set(words)
    assert "mean loss" in axes.get_ylabel()
    plot(path, str(tmp_path / "q.png"), "loss.q50,loss.spread")
    assert [axes.get_ylabel() for axes in figures[1].axes] == ["50% quantile of loss", "spread of loss (std. dev.)"]


@pytest.mark.parametrize("kind", ["contour", "heatmap"])
def test_a_plane_has_its_spread_beside_it(tmp_path, figures, kind):
    path = ensemble(tmp_path / "a.h5")
    plot(path, kind=kind)
    mean, spread = figures[0].axes
    assert mean.child_axes[0].get_ylabel() == "mean loss"
    assert spread.child_axes[0].get_ylabel() == "spread of loss (std. dev.)"
    if kind == "heatmap":
        expected = by_numpy(stored_loss(path))
        for axes, name in ((mean, "mean"), (spread, "spread")):
            np.testing.assert_allclose(axes.collections[0].get_array(), expected[name].T, rtol=1e-14)


def test_other_pictures_are_of_the_mean(tmp_path, figures):
    path = ensemble(tmp_path / "a.h5")
    plot(path, kind="surface")
    plot(ensemble(tmp_path / "volume.h5", (*PLANE, Axis(-1, 1, 3))))
    plot([path, make(tmp_path / "b.h5")], str(tmp_path / "both.png"))
    plot([path, path], str(tmp_path / "difference.png"), difference=True)
    plot([path, path], str(tmp_path / "both.gif"), animate=True)
    assert [len(figure.axes) for figure in figures[:3]] == [1, 3, 2]


def test_a_set_alone_under_way_has_no_spread_yet(tmp_path):
    done = np.zeros((SETS, 5, 5), bool)
    done[0] = True
    path = ensemble(tmp_path / "a.h5", done=done)
    assert plot(path) and info(path)
    assert np.isnan(read_field(path, layout.read(path), "loss.spread").values).all()


def test_the_page_has_every_summary(tmp_path):
    path = ensemble(tmp_path / "a.h5")
    tree = content(path, layout.read(path), "loss.mean", None, (None, None), "viridis", None)
    names = [metric["name"] for metric in tree["metrics"]]
    assert names[:3] == ["loss", "loss.spread", "loss.q5"] and tree["shown"] == [0]
    np.testing.assert_allclose(tree["metrics"][0]["values"], stored_loss(path).mean(axis=0).reshape(-1), rtol=1e-14)
    assert tree["summaries"][0] == {"spread": 1, "bands": [[2, 6], [3, 5]]}
    assert (tree["done"], tree["points"]) == (175, 175)


def test_a_file_whose_sets_are_not_those_of_its_values_is_damaged(tmp_path):
    path = ensemble(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["direction"]
    with pytest.raises((UserError, ValueError), match="the axes say"):
        layout.read(path)
