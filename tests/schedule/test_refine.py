"""Refinement of functions in closed form: against their values at all points, and round after round."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpc_landscape.errors import UserError
from hpc_landscape.schedule.refine import Cells, Told, check_size, estimate, levels_of, predict, refine

TOLERANCE = 0.01


def grid(*n: int) -> list[np.ndarray]:
    return np.meshgrid(*(np.linspace(-1, 1, m) for m in n), indexing="ij")


def rounds(values: np.ndarray, tolerance: float = TOLERANCE) -> tuple[list[np.ndarray], np.ndarray, Told]:
    """The points of each phase, which are done after all, and what is told at the end."""
    done, found = np.zeros(values.shape, bool), []
    while not (now := refine(np.where(done, values, np.nan), done, tolerance)).ended:
        assert not done.flat[now.points].any()
        found.append(now.points)
        done.flat[now.points] = True
    return found, done, now.tell(values, done)


def off(values: np.ndarray, done: np.ndarray, told: Told) -> float:
    """The true error over the grid, as a share of the range; on the scale of what is told."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled, guess = (np.log(v) if told.log else v for v in (values, told.values))
        away = np.abs(scaled - guess)
    there = scaled[done & np.isfinite(scaled)]
    return float(away[np.isfinite(away)].max() / np.ptp(there))


def bowl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.3 + x**2 + 2 * (y - 0.2) ** 2


CASES: dict[str, tuple[Callable[..., np.ndarray], tuple[int, ...], float]] = {
    "bowl": (bowl, (51, 51), 0.13),
    "even": (bowl, (50, 37), 0.2),
    "steep": (lambda x, y: np.exp(4 * (x**2 + y**2)), (51, 51), 0.13),
    "ripples": (lambda x, y: bowl(x, y) + 0.1 * np.cos(6 * x) * np.cos(6 * y), (51, 51), 0.2),
    "kink": (lambda x, y: np.abs(x) + np.abs(y - 0.3 * x), (51, 51), 0.2),
    "line": (lambda x: np.sin(3 * x), (101,), 0.25),
    "a fine line": (lambda x: 1 - np.exp(-20 * (x - 0.1) ** 2), (1001,), 0.1),
    "volume": (lambda x, y, z: bowl(x, y) + z**2, (21, 20, 19), 0.25),
    "a plane that is a line": (lambda x, y: np.sin(3 * x) + y, (101, 1), 0.25),
}


@pytest.mark.parametrize("case", CASES)
def test_the_true_error_is_not_above_twice_the_estimate(case: str) -> None:
    function, shape, share = CASES[case]
    values = function(*grid(*shape))
    _, done, told = rounds(values)
    true = off(values, done, told)
    assert true <= 2 * max(told.estimated_error, 1e-9) and told.estimated_error <= TOLERANCE
    assert told.true_error <= true * (1 + 1e-9) and told.held_out >= 4
    assert done.mean() <= share
    assert (told.error[done] == 0).all() and (told.values[done] == values[done]).all()


def test_values_that_span_decades_are_estimated_on_a_log_scale() -> None:
    values = np.exp(6 * np.sin(2 * grid(101)[0]))
    _, done, told = rounds(values)
    assert told.log and not done.all()
    assert (np.abs(values - told.values) <= 2 * told.error.max()).all()
    assert off(values, done, told) <= 2 * told.estimated_error


def test_a_cliff_attracts_points_to_its_edge_and_no_further() -> None:
    x, y = grid(101, 101)
    values = np.where(x + 0.5 * y > 0.6, np.nan, bowl(x, y))
    _, done, told = rounds(values)
    assert done.mean() < 0.1
    true = off(values, done, told)
    assert true <= 2 * told.estimated_error
    beyond = x + 0.5 * y > 0.9
    assert (
        done[beyond].mean() < 0.05
        and np.isnan(told.values[beyond]).all()
        and np.isnan(told.error[beyond & ~done]).all()
    )
    assert np.isfinite(told.values[x + 0.5 * y < 0.5]).all()
    nothing = np.full((51, 51), np.nan)
    nothing[0, 0] = np.inf
    assert rounds(nothing)[1].mean() < 0.06


def test_a_jump_is_found_and_a_plain_has_no_more_than_the_first_points() -> None:
    for n in (50, 51, 101):
        x, y = grid(n, n)
        jump = np.where(x + 0.5 * y > 0.6, 5.0, bowl(x, y))
        _, done, told = rounds(jump)
        assert off(jump, done, told) <= 2 * told.estimated_error and not done.all()
    assert rounds(np.full((51, 51), 0.7))[1].sum() == 81 + 26
    assert rounds(0.7 + 1e-16 * grid(51, 51)[0])[1].sum() == 81 + 26


@pytest.mark.parametrize("case", ["ripples", "line", "volume"])
def test_rounds_follow_from_what_is_done_in_any_order(case: str) -> None:
    """Killed anywhere within a round: the rest of that round is next, and then the same ones."""
    function, shape, _ = CASES[case]
    values, draw = function(*grid(*shape)), np.random.default_rng(0)
    expected, whole, told = rounds(values)
    assert len(expected) > 3
    done = np.zeros(shape, bool)
    for points in expected:
        some = draw.permutation(points)[: len(points) // 2]
        done.flat[some] = True
        there = np.where(done, values, np.nan)
        assert refine(there, done, TOLERANCE).points.tolist() == sorted(set(points) - set(some))
        done.flat[points] = True
    again = refine(np.where(done, values, np.nan), done, TOLERANCE)
    assert again.ended and again.tell(values, done).values.tobytes() == told.values.tobytes()
    more = done | (draw.random(shape) < 0.3)  # of a run without refinement: it changes nothing
    assert refine(values, more, TOLERANCE).ended and refine(values, more, TOLERANCE).tell(values, more).error.max() <= 1
    assert (refine(values, whole, TOLERANCE).tell(values, whole).true_error) == told.true_error


def test_other_points_are_held_out_by_another_seed() -> None:
    values = bowl(*grid(51, 51))
    _, done, _ = rounds(values)
    other = refine(values, done, TOLERANCE, seed=1)
    assert 0 < len(other.points) <= 26


def test_levels_hold_those_before_and_cells_are_even_to_one_step() -> None:
    for n in (9, 10, 51, 64, 100, 101, 1000):
        levels = [axes[0] for axes in levels_of([n])]
        assert levels[-1].tolist() == list(range(n))
        for coarse, fine in zip(levels, levels[1:], strict=False):
            assert set(coarse) < set(fine) and {0, n - 1} <= set(coarse)
            assert np.ptp(np.diff(coarse)) <= 1


def test_neighbouring_cells_are_of_neighbouring_levels() -> None:
    x, y = grid(101, 101)
    values = 1 - np.exp(-400 * ((x - 0.13) ** 2 + (y + 0.21) ** 2))
    cells = Cells(values.shape)
    while cells.cut_worst(estimate(cells, values), TOLERANCE):
        pass
    level = np.zeros([100, 100], int)  # of the leaf at each step of the grid
    for k, cut in enumerate(cells.cuts):
        steps = [np.searchsorted(axis, np.arange(100), "right") - 1 for axis in cells.levels[k]]
        level[cut[np.ix_(*steps)]] = k + 1
    assert level.max() >= 3
    for shift in ((1, 0), (0, 1), (1, 1)):
        here, there = level[: 100 - shift[0], : 100 - shift[1]], level[shift[0] :, shift[1] :]
        assert np.abs(here - there).max() <= 1


def test_predictions_are_exact_for_polynomials_and_do_not_cross_a_gap() -> None:
    p, q = np.array([0, 3, 4, 9, 11, 12]), np.arange(13)
    cubic = np.polynomial.Polynomial([1.0, -2.0, 0.5, 0.1])
    np.testing.assert_allclose(predict(cubic(p), 0, p, q, 3), cubic(q), rtol=1e-12)
    linear = predict(cubic(p), 0, p, q, 1)
    np.testing.assert_allclose(linear, np.interp(q, p, cubic(p)), rtol=1e-12)
    broken = np.where(p == 9, np.nan, cubic(p))
    found = predict(broken, 0, p, q, 3)
    assert np.isnan(found[5:11]).all() and np.isfinite(found[:5]).all() and np.isfinite(found[11:]).all()
    np.testing.assert_allclose(found[[3, 4]], cubic(np.array([3, 4])))


def test_a_grid_that_is_too_small_is_refused() -> None:
    for shape in ((5,), (1,), (5, 5), (1, 1, 4)):
        with pytest.raises(UserError, match="too small"):
            check_size(shape)
    for shape in ((10,), (9, 9), (101, 1), (9, 9, 9)):
        check_size(shape)
