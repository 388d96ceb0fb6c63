"""What a dry run says of the time of all points."""

from __future__ import annotations

import pytest

from hpc_landscape.report import makespan


@pytest.mark.parametrize(
    ("points", "seconds", "stealing", "strided"),
    [
        (100, [2.0], 200.0, 200.0),
        (100, [2.0, 2.0], 100.0, 100.0),
        (400, [1.0, 1.0, 1.0, 5.0], 125.0, 500.0),
        (2, [1.0, 3.0, 1.0], 3.0, 3.0),
        (0, [1.0, 2.0], 0.0, 0.0),
    ],
)
def test_makespan(points: int, seconds: list[float], stealing: float, strided: float) -> None:
    assert makespan(points, seconds, True) == pytest.approx(stealing)
    assert makespan(points, seconds, False) == pytest.approx(strided)
