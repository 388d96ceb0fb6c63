"""Data that is read anew in each pass: what is not the same each time is refused, wherever in the data it differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import PROBLEMS, Finished, read, run_program
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hpc_landscape.data.fingerprint import GLANCED, glance
from hpc_landscape.data.prepare import prepare
from hpc_landscape.data.readings import OtherData, Readings
from hpc_landscape.data.streams import StreamBatches
from hpc_landscape.errors import UserError

N = 20
STREAMS = PROBLEMS / "stream_problem_for_tests.py"
JOB = ("--y=none", "--plot=false", "--metrics=loss")


class Stream(IterableDataset):
    """sizes: samples in each pass; wrong: (pass, sample) that is another one."""

    def __init__(self, sizes: tuple[int, ...] = (N,), wrong: tuple[int, int] = (-1, -1)):
        self.sizes, self.wrong, self.passes = sizes, wrong, -1

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        size = self.sizes[min(self.passes, len(self.sizes) - 1)]
        return (torch.tensor([i + 100.0 * ((self.passes, i) == self.wrong)]) for i in range(size))


class Items(Dataset):
    """The last one is another in every reading."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return torch.rand(1) if i == N - 1 else torch.zeros(1)


def passes(data: Any, count: int) -> None:
    batches = prepare(DataLoader(data, batch_size=4), 4, None, 0, "test data", print)
    batches.readings.what = "test data"
    for _ in range(count):
        list(batches.to(None, torch.float64))


def test_what_is_the_same_is_read_again_and_again() -> None:
    passes(Stream(), 4)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Stream(wrong=(1, 0)), "the problem's test data differs between two readings of its first batch: random"),
        (Stream(wrong=(1, N - 1)), "the problem's test data differs between two readings, in batch 5: random"),
        (Stream(wrong=(3, 9)), "differs between two readings, in batch 3"),
        (Stream((N, N, N + 1)), "differs between two readings, in batch 6"),
        (Stream((N, N - 4)), "had 5 batches, and has 4 when it is read again"),
        (Stream((N, N, 0)), "can be read only once"),
        (Items(), "differs between two readings, in batch 5"),
    ],
)
def test_what_differs_is_told(data: Any, said: str) -> None:
    with pytest.raises(OtherData, match=said):
        passes(data, 4)


def test_a_pass_that_is_not_finished_counts_as_far_as_it_came() -> None:
    batches = prepare(DataLoader(Stream(wrong=(1, 9)), batch_size=4), 4, None, 0, "data", print)
    next(iter(batches))
    with pytest.raises(OtherData, match="in batch 3"):
        [list(batches) for _ in range(2)]


def test_another_rank_s_reading_counts_too() -> None:
    """Of a stream whose end it has not waited for, as far as it came."""
    theirs, mine = Readings(), Readings()
    for number in range(2):
        theirs.see(number, torch.tensor(number))
    mine.take(theirs.checks, ended=False)
    for number in range(3):
        mine.see(number, torch.tensor(number))
    mine.take(theirs.checks, ended=True)
    with pytest.raises(OtherData, match="in batch 2"):
        mine.see(1, torch.tensor(5))
    with pytest.raises(OtherData, match="in batch 3"):
        mine.see(2, torch.tensor(2))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_glance_sees_every_image(order: torch.memory_format) -> None:
    """Any that is another, or elsewhere; whatever the order in memory."""
    images = torch.randn(32, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert images.numel() > 10 * GLANCED
    before = glance({"x": images, "y": ["cat"]})
    images = images.contiguous(memory_format=order)
    assert glance({"x": images, "y": ["cat"]}) == before != glance({"x": images, "y": ["dog"]})
    assert glance({"x": images.double(), "y": ["cat"]}) != before
    for i in range(32):
        other = images.clone()
        other[i] = other[i].flip(2)
        assert glance({"x": other, "y": ["cat"]}) != before
    swapped = images[[1, 0, *range(2, 32)]]
    assert glance({"x": swapped, "y": ["cat"]}) != before


def test_a_glance_sees_arrays_and_what_is_no_plain_tensor() -> None:
    array = np.random.default_rng(0).normal(size=(500, 100))
    assert glance(array) == glance(np.asfortranarray(array)) != glance(array[::-1])
    assert glance(torch.eye(4).to_sparse()) != glance(2 * torch.eye(4).to_sparse())


# By the program


def test_a_stream_that_changes_later_ends_the_run(program: Callable[..., Finished], tmp_path: Path) -> None:
    """Before a point is evaluated on it, and whatever is recorded."""
    run = program("--problem", f"{STREAMS}:drifting", "--x=-1:1:9", "--on_error=record", "--block=1", *JOB)
    assert run.code == 2 and run.err.count("\n") == 1, run
    assert "the problem's data differs between two readings, in batch 5" in run.err, run
    loss, done = read(tmp_path / "landscape.h5", "loss", "done")
    assert 0 < done.sum() < 9 and np.isfinite(loss[done.astype(bool)]).all()


@pytest.mark.slow
@pytest.mark.mpi_stack
def test_a_stream_that_is_another_on_another_rank(tmp_path: Path) -> None:
    """Beyond its first batch: compared with what rank 0 has read before the first point."""
    words = ("--problem", f"{STREAMS}:drifting", "--problem.by_rank", "true", "--x=-1:1:2", *JOB)
    run = run_program(*words, folder=tmp_path, ranks=2)
    assert run.code == 2 and "the problem's data differs between two readings, in batch 5" in run.err, run


SAME = {
    "hugging_face": {"shuffles": True},
    "hugging_face_with_workers": {"shuffles": True, "workers": 2},
    "web_dataset": {"workers": 2},
}
REFUSED = {
    "hugging_face": ({"epochs": True}, "differs between two readings"),
    "web_dataset": ({"shuffles": True}, "differs between two readings"),
    "web_dataset_resampled": ({"resampled": True}, "differs between two readings"),
    "web_loader": ({"loader": True}, "a WebLoader whose items look like batches, of (4, 4), (4,): give DataLoader"),
}


def words(kind: str, options: dict[str, Any]) -> list[str]:
    factory = "hugging_face" if kind.startswith("hugging") else "web_dataset"
    given = [word for key, value in options.items() for word in (f"--problem.{key}", str(value).lower())]
    return ["--problem", f"{STREAMS}:{factory}", *given, "--x=-1:1:2", *JOB]


@pytest.mark.parametrize("kind", SAME)
def test_streams_of_other_libraries(program: Callable[..., Finished], tmp_path: Path, kind: str) -> None:
    """With as many workers, every sample once: other batches, but without batch normalization the same mean."""
    run = program(*words(kind, SAME[kind]))
    assert run.code == 0 and "warning" not in run.out + run.err, run
    right = program("--problem", f"{STREAMS}:plain", "--x=-1:1:2", *JOB, "--output=right.h5")
    assert right.code == 0, right
    np.testing.assert_allclose(read(tmp_path / "landscape.h5", "loss"), read(tmp_path / "right.h5", "loss"), rtol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_streams_of_other_libraries_that_are_refused(program: Callable[..., Finished], kind: str) -> None:
    options, said = REFUSED[kind]
    run = program(*words(kind, options))
    assert run.code == 2 and run.err.count("\n") == 1 and said in run.err, run


# What a stream says of its length


class Told(Stream):
    def __init__(self, told: int, size: int = N):
        super().__init__((size,))
        self.length = told

    def __len__(self) -> int:
        return self.length


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize(("told", "without_end"), [(N, False), (2 * N, False), (8, True)])
def test_a_length_is_not_believed(told: int, without_end: bool) -> None:
    """A stream that goes on beyond it may have no end: a stop is obeyed there."""
    batches = prepare(DataLoader(Told(told), batch_size=4), 4, None, 0, "data", print)
    assert isinstance(batches, StreamBatches)
    waited = []
    batches.end.stop = lambda: waited.append(0) or 0
    assert len(list(batches)) == N // 4 and bool(waited) == without_end
    assert batches.may_go_on(3) == without_end
    waited.clear()
    list(batches)
    assert not waited  # its end has been seen


def test_a_stream_of_batches_is_asked_for() -> None:
    class Pairs(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return iter([(torch.ones(8, 4), torch.arange(8))] * 3)

    with pytest.raises(UserError, match=r"a Pairs whose items look like batches, of \(8, 4\), \(8,\)"):
        prepare(Pairs(), 4, None, 0, "data", print)
    assert len(list(prepare(DataLoader(Pairs(), batch_size=None), 4, None, 0, "data", print))) == 3
    assert len(list(prepare(DataLoader(Pairs(), batch_size=2), 4, None, 0, "data", print))) == 2
