"""The library under a user's hands: landscapes that are pickled or copied, and several threads."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

import hpc_landscape
from hpc_landscape.metrics import Loss


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=generator), torch.randint(0, 3, (30,), generator=generator)


def noisy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Draws from all generators, so that threads that share them would show."""
    noise = torch.randn_like(output) + np.random.random() + np.random.random(output.shape[1]).sum()
    return nn.functional.cross_entropy(output + noise * torch.arange(3), target)


def plane(of: nn.Module, steps: int = 3, **options) -> hpc_landscape.PlanarLossLandscape:
    made = hpc_landscape.PlanarLossLandscape(of, steps, **options)
    return made.random_plane(distance=2, seed=0)


WAYS = {"pickled": lambda thing: pickle.loads(pickle.dumps(thing)), "copied": copy.deepcopy}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["at first", "after warm_up", "after compute"])
def test_a_landscape_that_was_sent_elsewhere(way, when):
    loss = Loss(noisy, *data())
    own = plane(model())
    if when != "at first":
        own.warm_up(loss)
    values = own.compute(loss)
    before = plane(model())
    if when != "at first":
        before.warm_up(loss)
    if when == "after compute":
        before.compute(loss)
    other = WAYS[way](before)
    np.testing.assert_array_equal(other.compute(loss), values)
    np.testing.assert_array_equal(before.compute(loss), values)  # what was sent goes on here
    assert len(np.unique(values)) == values.size
    np.testing.assert_array_equal(other.coordinates, own.coordinates)


def test_a_copy_has_a_model_of_its_own():
    loss = Loss(noisy, *data())
    first = plane(model())
    values = first.compute(loss)
    other = copy.deepcopy(first)
    with torch.no_grad():
        first.model_wrapper.root[0].weight.zero_()
        first.model_wrapper.root[0].bias.zero_()
    np.testing.assert_array_equal(other.compute(loss), values)


def at_once(*functions) -> list:
    """What each gives, in a thread of its own, all started together."""
    results: list = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def work(i: int) -> None:
        start.wait()
        try:
            results[i] = functions[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def values_of(of: nn.Module, seed: int = 0, **options) -> np.ndarray:
    loss = Loss(noisy, *data())
    made = hpc_landscape.PlanarLossLandscape(of, 5, **options).random_plane(distance=2, seed=seed)
    made.warm_up(loss)
    return made.compute(loss)


def test_two_threads_on_one_model():
    shared = model()
    before = copy.deepcopy(shared.state_dict())
    serial = [values_of(shared, seed) for seed in (1, 2)]
    for _ in range(3):
        together = at_once(lambda: values_of(shared, 1), lambda: values_of(shared, 2))
        for found, expected in zip(together, serial, strict=True):
            np.testing.assert_array_equal(found, expected)
    for name, tensor in shared.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_two_threads_on_two_models_share_the_generators():
    serial = [values_of(model(seed)) for seed in (1, 2)]
    one, two = model(1), model(2)
    for _ in range(3):
        together = at_once(lambda: values_of(one), lambda: values_of(two))
        for found, expected in zip(together, serial, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_thread_copies_a_model_while_another_has_it_at_a_point():
    shared = model()
    serial = values_of(shared)
    long = Loss(noisy, *data())

    def compute():
        return plane(shared, 12).compute(long)

    results = at_once(compute, *[lambda: values_of(shared, deepcopy_model=True)] * 3)
    for found in results[1:]:
        np.testing.assert_array_equal(found, serial)


def test_one_landscape_in_two_threads():
    one, loss = plane(model(), 5), Loss(noisy, *data())
    expected = one.compute(loss)
    for found in at_once(*[lambda: one.compute(loss)] * 3):
        np.testing.assert_array_equal(found, expected)


def test_points_and_functions_in_threads():
    shared, end, loss = model(), model(1), Loss(noisy, *data())  # here: to make one draws from the process's generator
    at_a_point = hpc_landscape.point(shared, loss)
    line = hpc_landscape.linear_interpolation(shared, end, loss, 5)
    point, found = at_once(
        lambda: hpc_landscape.point(shared, loss),
        lambda: hpc_landscape.linear_interpolation(shared, end, loss, 5),
    )
    assert point == at_a_point
    np.testing.assert_array_equal(found, line)
