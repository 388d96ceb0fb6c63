"""Two landscapes on one grid: against NumPy and SciPy, and what was different when they were made."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_view_files import AXES, make
from test_view_numbers import LINE, PLANE, bowl, refused, strict, well

from hpc_landscape.cli import main
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.view.compare import compare, pearson, ranks

pytestmark = pytest.mark.usefixtures("at_once")

MADE = {
    "directions": "random",
    "direction_recipe": "random normal filter ignore biasbn",
    "seed": 0,
    "sha256_directions": "d0",
    "sha256_model": "m0",
    "sha256_architecture": "a0",
    "sha256_data": "e0",
    "sha256_warmup_data": "w0",
    "sha256_loss": "l0",
    "sha256_forward": "f0",
    "sha256_count": "c0",
    "sha256_metric_loss": "k0",
    "loss_function": "CrossEntropyLoss()",
    "bn": "warmup",
    "bn_kept": "none",
    "batch_size": 512,
    "warmup_batch_size": 512,
    "precision": "fp32",
    "compute_dtype": "float32",
    "mode": "none",
    "problem_mode": "eval",
    "problem_reduction": "mean",
    "problem_name": "digits",
    "problem_arguments": "epochs=15",
    "metric_arguments": "none",
    "device_kind": "cpu",
    "torch_version": "2.13.0",
}


def two(folder: Any, first: Any, second: Any, axes: tuple[Axis, ...] = PLANE, **changed: Any) -> tuple[str, str]:
    """Two files on one grid that were made alike, but for what is changed in the second."""
    made = [{**MADE}, {**MADE, **changed}]
    return (
        make(folder / "a.h5", axes, first, **made[0]),
        make(folder / "b.h5", axes, second, **{k: v for k, v in made[1].items() if v is not None}),
    )


# How alike the values are


@pytest.mark.parametrize("axes", AXES.values())
def test_the_same_but_for_scale_and_offset(tmp_path, axes):
    found = compare(*two(tmp_path, bowl, lambda *c: 2 * bowl(*c) + 1, axes))
    assert found["correlation"] == pytest.approx(1) and found["rank_correlation"] == pytest.approx(1)
    mesh = np.meshgrid(*[axis.coordinates for axis in axes], indexing="ij")
    assert found["largest_difference"] == pytest.approx((bowl(*mesh) + 1).max())
    assert found["mean_difference"] == pytest.approx((bowl(*mesh) + 1).mean())
    assert found["minimum"] == pytest.approx(bowl(*mesh).min() + 1), "the second's less the first's"


def test_ranks_see_through_a_curve_and_correlation_does_not(tmp_path):
    found = compare(*two(tmp_path, lambda x, y: x + 2.5 * y, lambda x, y: -np.exp(5 * (x + 2.5 * y))))
    assert found["rank_correlation"] == pytest.approx(-1)
    assert -0.7 < found["correlation"] < 0


def test_only_points_with_a_value_in_both_count(tmp_path):
    first, second = np.random.default_rng(0).normal(size=(2, 41, 41))
    first[3, 4], second[5, 6], second[7, 8] = np.nan, np.inf, 1e6
    a, b = two(tmp_path, lambda x, y: first, lambda x, y: second)
    found = compare(a, b)
    both = np.isfinite(first) & np.isfinite(second)
    assert found["points_in_both"] == 41 * 41 - 2
    assert found["correlation"] == pytest.approx(np.corrcoef(first[both], second[both])[0, 1])
    largest = next(n for n in found.pointwise if n.name == "largest_difference")
    assert largest.value == pytest.approx(1e6 - first[7, 8]) and largest.at == pytest.approx((-0.65, -0.6))
    assert found["mean_difference"] == pytest.approx(np.abs(second - first)[both].mean())
    assert found.differences == ("points: 1 NaN in a", "points: 1 infinite in b")


SAMPLES = arrays(np.float64, (2, 12), elements=st.sampled_from([-2.0, 0.0, 1.0, 1.5, 3.0, 1e3]))


@given(SAMPLES)
@settings(max_examples=100, deadline=None)
def test_correlations_are_scipys(samples):
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the oracle")
    x, y = samples
    np.testing.assert_array_equal(ranks(x), stats.rankdata(x))
    if np.ptp(x) and np.ptp(y):
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
        assert pearson(ranks(x), ranks(y)) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    else:
        assert np.isnan(pearson(x, y))


@pytest.mark.parametrize("scale", [1e-308, 1e308])
def test_correlation_of_huge_and_tiny_values(scale):
    x = np.array([-1.0, 0.5, 1.0])
    assert pearson(scale * x, x) == pytest.approx(1)


def test_a_constant_has_no_correlation(tmp_path):
    found = compare(*two(tmp_path, bowl, lambda x, y: 3 + 0 * x))
    assert found["correlation"] is found["rank_correlation"] is None
    assert found["largest_difference"] == pytest.approx(6)


def test_without_a_point_in_both_there_is_nothing_to_correlate(tmp_path):
    left = np.arange(41)[:, None] * np.ones(41) < 20
    a = make(tmp_path / "a.h5", PLANE, bowl, done=left)
    b = make(tmp_path / "b.h5", PLANE, bowl, done=~left)
    found = compare(a, b)
    assert found["points_in_both"] == 0 and found["correlation"] is found["largest_difference"] is None
    strict(found.json())


# The numbers of both


def test_what_the_first_chooses_holds_for_the_second(tmp_path):
    found = compare(*two(tmp_path, bowl, lambda x, y: 10 * bowl(x, y)))
    row = next(row for row in found.rows if row.name == "share_under_level")
    assert row.a is not None and row.a > 0 and row.b == 0, "under 2, twice the first's value at the model, for both"
    assert found.options.level == 2
    assert compare(found.a, found.b, level=15)["share_under_level"] < 0


def test_barriers_are_compared(tmp_path):
    a, b = two(tmp_path, well, lambda x: 3 * well(x), LINE, directions="interpolation")
    found = compare(make(tmp_path / "c.h5", LINE, well, directions="interpolation"), b)
    assert found["barrier"] == 2
    one_sided = compare(a, b)
    row = next(row for row in one_sided.rows if row.name == "barrier")
    assert (row.a, row.b, row.difference) == (None, 3, None) and row.note == "a: there is one model on these axes"


# The grids


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ((Axis(-1, 1, 5),), "2 axes and 1 axis"),
        ((Axis(-1, 1, 41), Axis(-1, 1, 21)), "y is -1:1:41 and -1:1:21"),
        ((Axis(-1, 1.5, 41), Axis(-1, 1, 41)), "x is -1:1:41 and -1:1.5:41"),
        ((Axis(-1, 1 + 1e-6, 41), Axis(-1, 1, 41)), "x is -1:1:41 and -1:1.000001:41"),
    ],
)
def test_grids_that_differ_are_refused_in_a_line(tmp_path, capsys, axes, said):
    a, b = make(tmp_path / "a.h5", PLANE, bowl), make(tmp_path / "b.h5", axes, bowl)
    assert f"not on one grid: {said}" in refused(capsys, "compare", a, b)


def test_grids_that_differ_by_rounding_are_one(tmp_path):
    a = make(tmp_path / "a.h5", PLANE, bowl)
    b = make(tmp_path / "b.h5", (Axis(-1 - 1e-13, 1, 41), Axis(-1, 1, 41)), bowl)
    assert compare(a, b)["points_in_both"] == 41 * 41


@pytest.mark.parametrize(
    ("axis", "other", "same"),
    [
        (Axis(1000, 1000.001, 5), Axis(1000, 1000.001 + 1e-11, 5), True),
        (Axis(1000, 1000.001, 5), Axis(1000, 1000.0011, 5), False),
        (Axis(-1e-10, 1e-10, 5), Axis(-4e-10, 4e-10, 5), False),
        (Axis(0, 0, 1), Axis(1, 1, 1), False),
    ],
)
def test_points_coincide_to_a_millionth_of_a_step(axis, other, same):
    assert (Grid(axis).apart(Grid(other)) == "") == same


def test_a_level_that_the_first_has_not_is_not_taken_from_the_second(tmp_path):
    """0 at the model of the one, so that no level is a multiple of it; what is chosen by a goes for b, too."""
    a = make(tmp_path / "a.h5", PLANE, lambda x, y: x**2 + y**2)
    b = make(tmp_path / "b.h5", PLANE, lambda x, y: 1 + x**2 + y**2)
    row = next(row for row in compare(a, b).rows if row.name == "share_under_level")
    assert (row.a, row.b, row.difference) == (None, None, None)


def test_files_that_cannot_be_compared_are_refused_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    a = make(tmp_path / "a.h5", PLANE, bowl)
    assert "none.h5" in refused(capsys, "compare", a, str(tmp_path / "none.h5"))
    nothing = make(tmp_path / "nan.h5", PLANE, lambda x, y: x * np.nan)
    assert "no finite value" in refused(capsys, "compare", a, nothing)
    assert "no metric 'f1'" in refused(capsys, "compare", a, a, "--metric", "f1")
    assert "one of the two" in refused(capsys, "compare", a, a, "--json", "--csv")
    one = make(tmp_path / "one.h5", (Axis(0, 0, 1),))
    assert "one point" in refused(capsys, "compare", one, one)


# What was different


def test_two_that_were_made_alike_are_compared_without_a_word(tmp_path):
    found = compare(*two(tmp_path, bowl, bowl))
    assert not found.warnings and not found.differences


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bn": "running"}, "BN policy: warmup in a, running in b"),
        ({"bn_kept": "1.weight"}, "BN policy: none in a, 1.weight in b"),
        ({"sha256_data": "e1"}, "data: sha256 e0 in a, sha256 e1 in b"),
        ({"sha256_warmup_data": "w1"}, "warm-up data: sha256 w0 in a, sha256 w1 in b"),
        ({"warmup_batch_size": 64}, "warm-up batch size: 512 in a, 64 in b"),
        ({"loss_function": "MSELoss()", "sha256_loss": "l1"}, "loss: CrossEntropyLoss() in a, MSELoss() in b"),
        ({"sha256_loss": "l1"}, "loss: sha256 l0 in a, sha256 l1 in b"),
        ({"precision": "bf16"}, "precision: fp32 in a, bf16 in b"),
        ({"sha256_forward": "f1"}, "model's output: sha256 f0 in a, sha256 f1 in b"),
        ({"problem_mode": "train"}, "mode of the model: eval in a, train in b"),
        ({"metric_arguments": "loss(k=2)"}, "arguments of metrics: none in a, loss(k=2) in b"),
        ({"sha256_metric_loss": "k1"}, "code of the metric: sha256 k0 in a, sha256 k1 in b"),
        ({"sha256_directions": None}, "not said in both files, and so not compared: directions"),
        ({"sha256_data": None}, "not said in both files, and so not compared: data"),
    ],
)
def test_what_must_be_the_same_is_warned_of(tmp_path, changed, said):
    found = compare(*two(tmp_path, bowl, bowl, **changed))
    assert found.warnings == (said,) and not found.differences


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sha256_model": "m1"}, "model: sha256 m0 in a, sha256 m1 in b"),
        ({"sha256_architecture": "a1"}, "architecture: sha256 a0 in a, sha256 a1 in b"),
        ({"problem_arguments": "epochs=3"}, "problem: epochs=15 in a, epochs=3 in b"),
        ({"device_kind": "cuda"}, "execution: cpu in a, cuda in b"),
    ],
)
def test_what_one_may_want_to_compare_is_said(tmp_path, changed, said):
    found = compare(*two(tmp_path, bowl, bowl, **changed))
    assert found.differences == (said,) and not found.warnings


def test_the_batch_size_counts_where_batches_normalize(tmp_path):
    assert not compare(*two(tmp_path, bowl, bowl, batch_size=64)).warnings
    a = make(tmp_path / "e.h5", PLANE, bowl, **{**MADE, "bn": "running"})
    b = make(tmp_path / "f.h5", PLANE, bowl, **{**MADE, "bn": "running", "batch_size": 64, "warmup_batch_size": 1})
    assert not compare(a, b).warnings
    a = make(tmp_path / "c.h5", PLANE, bowl, **{**MADE, "bn": "batch"})
    b = make(tmp_path / "d.h5", PLANE, bowl, **{**MADE, "bn": "batch", "batch_size": 64, "warmup_batch_size": 1})
    assert compare(a, b).warnings == ("batch size: 512 in a, 64 in b",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "seed 0 in a, random normal filter ignore biasbn seed 1 in b"),
        ({"direction_recipe": "random normal layer ignore biasbn"}, "random normal layer ignore biasbn seed 0 in b"),
        ({"directions": "pca", "direction_recipe": "pca"}, "pca in b"),
        ({}, "made alike (random normal filter ignore biasbn seed 0), but each for its own model"),
    ],
)
def test_other_directions_are_warned_of(tmp_path, changed, said):
    found = compare(*two(tmp_path, bowl, bowl, sha256_directions="d1", **changed))
    assert len(found.warnings) == 1 and said in found.warnings[0]
    assert "--direction_files" in found.warnings[0]


def test_common_directions_are_the_same_however_they_came_to_be(tmp_path):
    found = compare(*two(tmp_path, bowl, bowl, directions="file", direction_recipe="file direction_files a.h5", seed=4))
    assert not found.warnings


# How it is printed


def test_table_json_and_csv_say_the_same(tmp_path, capsys):
    a, b = two(tmp_path, bowl, lambda x, y: 2 * bowl(x, y), bn="running")
    found = compare(a, b)
    said = {}
    for form in ("table", "json", "csv"):
        assert main(["compare", a, b, *([] if form == "table" else [f"--{form}"])]) == 0
        said[form] = capsys.readouterr()
    assert "warning  BN policy: warmup in a, running in b" in said["table"].out.splitlines()
    assert not said["table"].err and not said["json"].err
    assert said["csv"].err == "hpc_landscape: warning: BN policy: warmup in a, running in b\n"
    tree = strict(said["json"].out)
    assert (
        tree["warnings"] == list(found.warnings) and tree["pointwise"]["correlation"]["value"] == found["correlation"]
    )
    assert tree["numbers"]["maximum"] == {"a": 9, "b": 18, "difference": 9, "note": ""}
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(said["csv"].out))}
    assert rows["maximum"]["a"] == "9.0" and rows["maximum"]["difference"] == "9.0"
    assert float(rows["correlation"]["difference"]) == found["correlation"] and rows["correlation"]["a"] == ""
    assert rows["barrier"]["difference"] == "" and rows["barrier"]["note"] == "there is one model on these axes"


def test_texts_of_a_file_steer_no_terminal_and_fill_no_page(tmp_path, capsys):
    a, b = two(tmp_path, bowl, bowl, loss_function="\x1b[31m" + "x " * 5000)
    assert main(["compare", a, b]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and max(map(len, out.splitlines())) < 400
