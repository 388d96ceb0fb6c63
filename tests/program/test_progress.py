"""Progress as a log shows it, by a clock of the test's own; times and sizes as a person reads them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from hpc_landscape.progress import LINE_EVERY, Progress, duration, size, stage, stages_taken
from hpc_landscape.report import Rank, start_text


class Clock:
    """Stands still until it is told to move."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    assert not sys.stderr.isatty()  # pytest captures it: a log file
    return Clock()


def test_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2000, 0, clock)
    lines = []
    for second in range(1, 601):
        clock.now += 1
        progress.update(2 * second)
        if text := capsys.readouterr().err:
            lines.append((second, text))
    progress.close()
    assert LINE_EVERY == 60
    assert [second for second, _ in lines] == list(range(60, 601, 60))
    assert all(text.count("\n") == 1 and text.endswith("\n") for _, text in lines)
    assert lines[0][1] == "120/2000 points, 2 points/s, 15 min 40 s left\n"
    assert lines[-1][1] == "1200/2000 points, 2 points/s, 6 min 40 s left\n"


def test_points_that_take_longer_than_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(10, 0, clock)
    for done in range(1, 4):
        clock.now += 400
        progress.update(done)
        assert capsys.readouterr().err == f"{done}/10 points, 0.0025 points/s, {duration(400 * (10 - done))} left\n"


def test_the_rate_is_of_this_run_alone(clock: Clock) -> None:
    """Not of points that were there when it began."""
    progress = Progress(1000, 900, clock)
    assert progress.line() == "900/1000 points, 0 points/s, unknown left"
    clock.now += 10
    progress.update(910)
    assert progress.line() == "910/1000 points, 1 points/s, 1 min 30 s left"
    clock.now += 90
    progress.update(1000)
    assert progress.line() == "1000/1000 points, 1 points/s, 0 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.00123, "0.0012 s"), (9.4, "9.4 s"), (42.4, "42 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"),
     (7500, "2 h 05 min"), (273600, "3 d 04 h"), (1e9, "11574 d 01 h")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (541.2 * 1024, "541.2 KiB"), (3 * 2**30, "3.0 GiB"),
     (7.5 * 2**40, "7.5 TiB"), (5000 * 2**40, "5000.0 TiB")],
)  # fmt: skip
def test_size(n: float, text: str) -> None:
    assert size(n) == text


def test_stages_of_a_start() -> None:
    stages_taken()

    @stage("twice")
    def work(value: int) -> int:
        time.sleep(0.02)
        return value

    assert [work(1), work(2)] == [1, 2]
    with stage("once", before=100.0), pytest.raises(ArithmeticError), stage("failed"):
        raise ArithmeticError
    taken = stages_taken()
    assert [*taken] == ["twice", "failed", "once"] and stages_taken() == {}
    assert 0.04 <= taken["twice"] < 50 and 100 <= taken["once"] < 150


def test_the_age_of_a_process_counts_from_its_start() -> None:
    code = "import time; time.sleep(0.5); from hpc_landscape.progress import age; print(age(), time.process_time())"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    age, computed = map(float, done.stdout.split())
    assert (0.45 if sys.platform == "linux" else computed) <= age <= time.monotonic() - start + 0.1


def test_the_start_of_several_ranks_names_the_slow_and_the_fast() -> None:
    ranks = [Rank("n1", "cpu", {"imports": 3.0, "file": 0.1}), Rank("n2", "cpu", {"imports": 48.2, "file": 0.12})]
    assert start_text(ranks) == "imports 48 s on n2, 3 s on n1; file 0.12 s"
    assert start_text(ranks[:1] * 2) == "imports 3 s; file 0.1 s"
