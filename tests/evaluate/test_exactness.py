"""How far a fast way is off, as it is stated; and that it is given up where that is too much."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from programs import Finished, assert_same_landscape, read, run_program

from hpc_landscape.campaign.fallback import Choice
from hpc_landscape.evaluate.exactness import SAMPLED, SIDES, compare, sample
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.metrics import Accuracy, Data, Loss
from hpc_landscape.store.exactness import told

SHAPES = [
    (17,),
    (51,),
    (10**6,),
    (4, 5),
    (13, 13),
    (51, 51),
    (2, 40),
    (1, 30),
    (40, 1),
    (3, 3, 3),
    (11, 7, 5),
    (1, 9, 9),
]


# Where it is seen


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_corners_and_points_all_over_the_grid(shape: tuple[int, ...]) -> None:
    points = sample(shape)
    assert len(points) == len({*points.tolist()}) == SAMPLED
    assert points.min() >= 0 and points.max() < math.prod(shape) and (np.diff(points) > 0).all()
    where = {tuple(map(int, np.unravel_index(point, shape))) for point in points}
    assert {*itertools.product(*({0, n - 1} for n in shape))} <= where
    assert tuple(n // 2 for n in shape) in where, "the model in the middle"
    np.testing.assert_array_equal(sample(shape), points)


@pytest.mark.parametrize("shape", [(1,), (16,), (4, 4), (2, 2, 2), (1, 1), (3, 5)], ids=str)
def test_all_points_where_there_are_no_more(shape: tuple[int, ...]) -> None:
    assert sample(shape).tolist() == [*range(math.prod(shape))]


def test_the_sequence_is_that_of_the_golden_ratio() -> None:
    golden = (1 + math.sqrt(5)) / 2
    inside = [int((0.5 + i / golden) % 1 * 10**6) for i in range(SAMPLED - 2)]
    assert sample((10**6,)).tolist() == sorted({0, 10**6 - 1, *inside})


def test_every_part_of_the_plane_has_its_share() -> None:
    """Each of the nine ninths has one of the 12 points inside; of random ones 3 draws in 100 miss none."""
    x, y = np.unravel_index(sample((90, 90)), (90, 90))
    inside = (x % 89 > 0) | (y % 89 > 0)
    assert len({*zip((x[inside] // 30).tolist(), (y[inside] // 30).tolist(), strict=True)}) == 9


# What it is


def errors(plain: list[float], fast: list[float], metric: object = None, points: int = 100):
    grid, at = Grid(Axis(-1, 1, points)), np.arange(len(plain))
    metric = metric or Loss(torch.nn.MSELoss(), torch.zeros(1), torch.zeros(1))
    return compare(grid, at, {"it": np.array(fast)}, {"it": np.array(plain)}, {"it": metric})


def test_more_than_the_worst_and_the_worst_relative_to_its_size() -> None:
    found = errors([2.0, 4.0, -8.0], [2.02, 3.9, -8.05])
    assert found.stated["it"] == pytest.approx(2.5 * 0.1) and found.relative["it"] == pytest.approx(0.1 / 4)
    np.testing.assert_allclose(found.differences["it"], [0.02, -0.1, -0.05])
    excess = found.beyond(0.024)
    assert excess is not None and (excess.metric, excess.point) == ("it", 1)
    assert (excess.error, excess.relative) == pytest.approx((0.1, 0.025))
    assert found.beyond(0.026) is None


def test_the_worst_itself_where_all_points_were_computed() -> None:
    assert errors([2.0, 4.0, 8.0], [2.02, 3.9, 8.05], points=3).stated["it"] == pytest.approx(0.1)


def test_what_has_cancelled_out_is_compared_with_what_is_usual() -> None:
    """A loss of 1e-9 beside losses of 1 is nothing that float32 can be right about."""
    found = errors([1e-9, 1.0, 1.0], [2e-9, 1.0, 1.0])
    assert found.relative["it"] == pytest.approx(1e-6)
    assert errors([0.0, 0.0, 1.0], [1e-9, 0.0, 1.0]).relative["it"] == pytest.approx(1e-6)
    assert errors([0.0, 0.0], [0.0, 0.0]).relative["it"] == 0


@pytest.mark.parametrize(
    ("plain", "fast", "off"),
    [
        (math.nan, math.nan, 0),
        (math.inf, math.inf, 0),
        (math.inf, -math.inf, math.inf),
        (math.nan, math.inf, math.inf),
        (1.0, math.nan, math.inf),
        (math.inf, 1.0, math.inf),
        (1e308, -1e308, math.inf),
    ],
)
def test_what_is_not_finite(plain: float, fast: float, off: float) -> None:
    found = errors([1.0, plain], [1.0, fast])
    assert found.stated["it"] == found.relative["it"] == off
    assert (found.beyond(1e9) is not None) == (off > 0)


@pytest.mark.parametrize(("n", "sides"), [(1, 1), (5, 1), (100, 4), (10_000, 49), (10**6, 1999)])
def test_a_few_samples_change_sides_in_any_mode(n: int, sides: int) -> None:
    """One at least, and as many as the accuracy is uncertain by itself, at most; but they are stated."""
    metric = Accuracy(torch.zeros(n, 2), torch.zeros(n, dtype=torch.long))
    metric.data = Data(iter([]))
    metric.data.batches = Sized(n)
    for count, beyond in ((sides, False), (2 * sides, True)):
        found = errors([0.5], [0.5 + count / n], metric)
        assert found.stated["it"] == pytest.approx(2.5 * count / n) and found.relative["it"] == pytest.approx(count / n)
        assert (found.beyond(1e-4) is not None) == beyond, (count, n)
    metric.data.batches = Sized(None)
    assert errors([0.5], [0.5 + 0.9 * SIDES], metric).beyond(1e-4) is None
    assert errors([0.5], [0.5 + 2 * SIDES], metric).beyond(1e-4) is not None


class Sized(list):
    """Batches that are read anew, of so many samples."""

    streamed = True

    def __init__(self, size: int | None):
        super().__init__()
        self.size = size


def test_a_file_of_before_is_read() -> None:
    old = {
        "execution_error_points": np.arange(8),
        "execution_error_loss": np.float64(0.012),
        "execution_error_differences_loss": np.zeros(8),
    }
    assert told(old, 25) == "loss off by about 0.012 (estimated at 8 points)"
    new = {**old, "execution_relative_error_loss": np.float64(0.003)}
    assert told(new, 25) == "loss off by up to 0.012 (2.5 times the worst of 8 points; relative at worst 0.003)"
    assert told(new, 8) == "loss off by up to 0.012 (the worst of all 8 points; relative at worst 0.003)"
    assert told({}, 8) == told({"execution_error_loss": 1.0}, 8) == ""


# In a file: one weight near 1000, of which bfloat16 keeps every fourth number alone, and a loss by hand

TEXT = """
import torch
from torch import nn
from hpc_landscape import Problem

class Layer(nn.Linear):
    raises = False
    def forward(self, x):
        if self.raises and self.weight.item() > 1002:
            raise ArithmeticError("too far")
        return super().forward(x)

def problem(weight: float = 1000.3, raises: bool = False):
    model = Layer(1, 1, bias=False)
    model.raises = raises
    with torch.no_grad():
        model.weight.fill_(weight)
    return Problem(model, nn.MSELoss(), (torch.ones(20, 1), torch.full((20, 1), 1000.0)))
"""
AXES = ("--x=-1:1:5", "--y=-1:1:5", "--normalization=none", "--plot=false", "--metrics=loss")


@pytest.fixture
def far(tmp_path: Path) -> tuple[str, ...]:
    """The options of a run in which bfloat16 is far off."""
    (tmp_path / "far_off.py").write_text(TEXT)
    sys.modules.pop("far_off", None)
    return ("--problem", "far_off.py:problem", *AXES)


def in_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even: the upper half of a float32."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def by_hand(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss at every point with the weight in bfloat16, and in float32."""
    with h5py.File(path) as file:
        x, y = (float(file[f"directions/along_{axis}/weight"][0, 0]) for axis in "xy")
        steps = file["x"][()][:, None] * x + file["y"][()][None, :] * y
    weights = (1000.3 + steps).astype(np.float32)
    low, full = (((w.astype(np.float64) - 1000) ** 2).reshape(-1) for w in (in_bfloat16(weights), weights))
    return low, full


def attributes(path: str) -> dict:
    with h5py.File(path) as file:
        return dict(file.attrs)


def test_what_is_stated_is_what_is_seen(program: Callable[..., Finished], far: tuple[str, ...]) -> None:
    done = program(*far, "--precision=bf16", "--max_error=.inf")
    assert done.code == 0, done
    low, full = by_hand("landscape.h5")
    np.testing.assert_allclose(read("landscape.h5", "loss").reshape(-1), low, rtol=1e-5)
    said = attributes("landscape.h5")
    assert "--max_error=.inf" in shlex.split(said["command"]) and "max_error: .inf\n" in said["settings"]
    points = said["execution_error_points"]
    assert points.tolist() == sample((5, 5)).tolist()
    seen = (low - full)[points]
    np.testing.assert_allclose(said["execution_error_differences_loss"], seen, rtol=1e-3, atol=1e-3)
    assert said["execution_error_loss"] == pytest.approx(2.5 * np.abs(seen).max(), rel=1e-3)
    sizes = np.maximum(full[points], 1e-3 * np.median(full[points]))
    assert said["execution_relative_error_loss"] == pytest.approx((np.abs(seen) / sizes).max(), rel=1e-2)
    words = told(said, 25)
    assert re.fullmatch(r"loss off by up to \S+ \(2\.5 times the worst of 16 points; relative at worst \S+\)", words)
    assert f"execution    weights in bfloat16: {words}\n" in done.out, done
    assert f"execution  weights in bfloat16: {words}\n" in program("info", "landscape.h5").out


def test_what_is_too_far_off_is_given_up(program: Callable[..., Finished], far: tuple[str, ...]) -> None:
    assert program(*far, "--output=plain.h5").code == 0
    done = program(*far, "--precision=bf16", "--output=low.h5")
    assert done.code == 0 and done.err == "", done
    low, full = by_hand("plain.h5")
    points = sample((5, 5))
    seen = np.abs(low - full)[points] / np.maximum(full[points], 1e-3 * np.median(full[points]))
    worst = int(points[seen.argmax()])
    grid = Grid(Axis(-1, 1, 5), Axis(-1, 1, 5))
    line = next(line for line in done.out.splitlines() if line.startswith("execution"))
    found = re.fullmatch(
        r"execution    fp32, plain, instead of weights in bfloat16: loss is off by (\S+) at (\(.*\)), (\S+) of its "
        r"size, more than --max_error 0.01; --max_error (\S+) would take it",
        line,
    )
    assert found is not None and found[2] == grid.text_of(worst), line
    assert float(found[1]) == pytest.approx(abs(low - full)[worst], rel=0.06)
    assert float(found[3]) == pytest.approx(seen.max(), rel=0.06) and float(found[4]) >= seen.max()
    assert ", fp32\n" in done.out and ", bf16\n" not in done.out
    assert_same_landscape("low.h5", "plain.h5", ["loss"])
    plain, said = attributes("plain.h5"), attributes("low.h5")
    for name in ("precision", "execution", "compute_dtype"):
        assert said[name] == plain[name], name
    assert said["given_up"].startswith("weights in bfloat16: loss is off by ") and "given_up" not in plain
    assert not [name for name in said if name.startswith(("execution_error", "execution_relative"))]
    assert "given up weights in bfloat16: loss is off by" in program("info", "low.h5").out
    taken = program(*far, "--precision=bf16", f"--max_error={found[4]}", "--output=taken.h5")
    assert taken.code == 0 and attributes("taken.h5")["precision"] == "bf16", taken
    np.testing.assert_allclose(read("taken.h5", "loss").reshape(-1), low, rtol=1e-5)


def test_a_threshold_for_modes_in_full_precision(
    program: Callable[..., Finished], far: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program(*far, "--output=plain.h5").code == 0
    done = program(*far, "--block=4", "--output=near.h5")
    assert done.code == 0 and "execution    4 points at a time: loss off by up to" in done.out, done
    real = Choice._values

    def farther(self: Choice, evaluator: object, points: np.ndarray) -> list[dict[str, float]]:
        off = 2e-4 * (evaluator is self.fast)
        return [{name: (1 + off) * v for name, v in values.items()} for values in real(self, evaluator, points)]

    monkeypatch.setattr(Choice, "_values", farther)
    done = program(*far, "--block=4", "--output=far.h5")
    assert done.code == 0 and "0.0002 of its size, more than --max_error 0.0001; --max_error 0.000" in done.out
    assert_same_landscape("far.h5", "plain.h5", ["loss"])
    assert program(*far, "--block=4", "--max_error=1e-3", "--output=taken.h5").code == 0
    assert attributes("far.h5")["execution"] == "plain" and attributes("taken.h5")["execution"] == "4 points at a time"


def never(*_: object) -> None:
    raise AssertionError("it is measured once, for a new file")


@pytest.mark.parametrize("options", [(), ("--max_error=.inf",)], ids=["given up", "taken"])
def test_a_file_is_gone_on_with_as_it_began(
    program: Callable[..., Finished], far: tuple[str, ...], options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*far, "--precision=bf16")
    assert program(*command, *options).code == 0
    whole, before = read("landscape.h5", "loss"), attributes("landscape.h5")
    with h5py.File("landscape.h5", "r+") as file:
        file["done"][1:4] = 0
        file["loss"][1:4] = np.nan
    there = Path("landscape.h5").read_bytes()
    monkeypatch.setattr(Choice, "_measured", never)
    if not options:
        other = program(*far, "--block=2")
        assert other.code == 2 and "execution" in other.err and Path("landscape.h5").read_bytes() == there, other
    done = program(*command, "--max_error=1e-3")  # is asked of a new file alone
    assert done.code == 0 and ("as the file has it" in done.out) == (not options), done
    np.testing.assert_array_equal(read("landscape.h5", "loss"), whole)
    after = attributes("landscape.h5")
    assert {name: str(value) for name, value in after.items()} == {name: str(value) for name, value in before.items()}


def test_a_dry_run_measures_nothing(
    program: Callable[..., Finished], far: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Choice, "_measured", never)
    done = program(*far, "--precision=bf16", "--dry_run")
    assert done.code == 0 and "execution    weights in bfloat16\n" in done.out, done


def test_a_point_that_raises_is_recorded_all_the_same(program: Callable[..., Finished], far: tuple[str, ...]) -> None:
    """Where error is to be seen, too: what it is there is not known. Rounded, one more weight may be too far."""
    raises = ("--problem.raises=true", "--precision=bf16", "--max_error=.inf", "--on_error=record")
    done = program(*far, *raises)
    assert done.code == 0, done
    low, full = by_hand("landscape.h5")
    failed = read("landscape.h5", "failed").astype(bool).reshape(-1)
    said = attributes("landscape.h5")
    points = said["execution_error_points"]
    assert failed[points].any() and not failed[points].all()
    seen = np.where(failed, 0, low - full)[points]
    known = np.isclose(said["execution_error_differences_loss"], seen, rtol=1e-3, atol=1e-3)
    assert (known | (said["execution_error_differences_loss"] == 0)).all() and known.sum() > 8


@pytest.mark.parametrize(("value", "said"), [("-1", "must not be negative"), (".nan", "negative"), ("far", "a number")])
def test_what_makes_no_sense(program: Callable[..., Finished], far: tuple[str, ...], value: str, said: str) -> None:
    done = program(*far, "--precision=bf16", f"--max_error={value}")
    assert done.code == 2 and done.err.count("\n") == 1 and "--max_error" in done.err and said in done.err, done
    assert not Path("landscape.h5").exists()


@pytest.mark.slow
@pytest.mark.mpi_stack
@pytest.mark.parametrize("options", [(), ("--max_error=.inf",)], ids=["given up", "taken"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_agree(tmp_path: Path, far: tuple[str, ...], options: tuple[str, ...], ranks: int) -> None:
    command = (*far, "--precision=bf16", *options)
    for output, n in (("one.h5", None), ("several.h5", ranks)):
        done = run_program(*command, "--output", output, folder=tmp_path, ranks=n)
        assert done.code == 0 and done.out.count("\nexecution ") + done.out.startswith("execution ") == 1, done
    assert_same_landscape(tmp_path / "several.h5", tmp_path / "one.h5", ["loss"])
    one, several = (attributes(str(tmp_path / name)) for name in ("one.h5", "several.h5"))
    for name in {*one, *several} - {"created", "ranks", "settings", "command", "mpi_version"}:
        assert str(one[name]) == str(several[name]), name
