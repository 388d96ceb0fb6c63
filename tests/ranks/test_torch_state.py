"""PyTorch's own state: values do not depend on what the caller is inside of, and it is as it was afterwards."""

from __future__ import annotations

import copy
import random
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from case import load
from torch import nn

import hpc_landscape
from hpc_landscape.metrics import GradientNorm, Loss, MetricPipeline
from hpc_landscape.ranks.torch_state import as_before

kinds = load("kind_torch_state.py")


@pytest.fixture(autouse=True)
def kept():
    with as_before():
        yield


def state() -> list:
    """All that can be read of it."""
    found = [torch.get_default_dtype(), torch.empty(0).device, torch.get_num_threads(), torch.is_grad_enabled()]
    found += [torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled()]
    found += [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:  # both ways have been used
            found.append("mixed")
    if hasattr(torch.backends, "fp32_precision"):
        parts = [torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn]
        parts += [torch.backends.cudnn.conv, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv]
        found += [part.fp32_precision for part in parts]
    return found


def values(metric=None) -> np.ndarray:
    line = hpc_landscape.LinearLossLandscape(kinds.net(), 3).random_line(distance=2, seed=0)
    metric = metric or Loss(nn.CrossEntropyLoss(), *kinds.data())
    line.warm_up(metric)
    return line.compute(metric)


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    yield


@contextmanager
def default_device():
    with torch.device("meta"):
        yield


AMBIENT = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "double": default_dtype,
    "device": default_device,
}


@pytest.mark.parametrize("where", AMBIENT)
def test_the_library_inside_of_it(where):
    x, y = kinds.data()
    model = kinds.net()
    metrics = [Loss(nn.CrossEntropyLoss(), x, y), GradientNorm(nn.CrossEntropyLoss(), x, y)]
    both = MetricPipeline(metrics)
    line = hpc_landscape.LinearLossLandscape(model, 3).random_line(distance=2, seed=0)
    line.warm_up(metrics[0])
    expected = line.compute(both)
    with AMBIENT[where]():
        before = state()
        again = hpc_landscape.LinearLossLandscape(model, 3).random_line(distance=2, seed=0)
        again.warm_up(metrics[0])
        np.testing.assert_array_equal(again.compute(both), expected)
        assert state() == before
    np.testing.assert_array_equal(again.compute(both), expected)  # what was made inside is of use outside


@pytest.mark.parametrize("what", [name for name in kinds.STATES])
def test_the_library_where_it_is_set(what):
    expected = values()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds.STATES[what]()
        before = state()
        if what in ("elsewhere", "double"):  # the model and its data are the user's: they are made elsewhere then
            with torch.device("cpu"):
                torch.set_default_dtype(torch.float32)
                model, (x, y) = kinds.net(), kinds.data()
            kinds.STATES[what]()
            before = state()
            line = hpc_landscape.LinearLossLandscape(model, 3).random_line(distance=2, seed=0)
            metric = Loss(nn.CrossEntropyLoss(), x, y)
            line.warm_up(metric)
            found = line.compute(metric)
        else:
            found = values()
            torch.manual_seed(0)
            before[8] = torch.get_rng_state().tolist()  # net() seeds it
        torch.manual_seed(0)
        after = state()
        before[8] = after[8]
        np.testing.assert_allclose(found, expected, rtol=1e-6 if what == "threads" else 0)
        assert after == before


def test_data_and_a_model_that_were_made_in_inference_mode():
    expected = values()
    with torch.inference_mode():
        x, y = kinds.data()
        model = kinds.net()
    metric = Loss(nn.CrossEntropyLoss(), x, y)
    with pytest.raises(hpc_landscape.UserError, match="inside of torch.inference_mode.*copy.deepcopy"):
        hpc_landscape.LinearLossLandscape(model, 3).random_line(seed=0).compute(metric)
    line = hpc_landscape.LinearLossLandscape(copy.deepcopy(model), 3).random_line(distance=2, seed=0)
    metrics = MetricPipeline([Loss(nn.CrossEntropyLoss(), x, y), GradientNorm(nn.CrossEntropyLoss(), x, y)])
    line.warm_up(metrics.metrics[0])
    np.testing.assert_array_equal(line.compute(metrics)[:, 0], expected)


@pytest.mark.parametrize("what", [name for name in kinds.STATES])
def test_the_program_gives_it_back(what, program, tmp_path):
    before = state()
    file = Path(kinds.__file__)
    options = ("--problem", f"{file}:sets", f"--problem.what={what}", "--x=-1:1:2", "--y=none", "--plot=false")
    assert program(*options, "--output", tmp_path / "a.h5").code == 0
    assert state() == before


def test_the_program_gives_it_back_after_a_mistake(program, tmp_path):
    before = state()
    options = ("--problem", f"{kinds.__file__}:sets", "--problem.what=double", "--metrics=nonsense")
    assert program(*options, "--output", tmp_path / "a.h5").code == 2
    assert state() == before


def test_casts_that_user_code_makes_are_of_one_point():
    """Inside of the caller's autocast the cache of casts is not emptied when the user's own context ends."""

    def forward(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch[0]).float()

    def compute():
        data = hpc_landscape.metrics.Data(kinds.data(), forward=forward)
        data.batches = [kinds.data()]
        return values(Loss(lambda output, batch: nn.functional.cross_entropy(output, batch[1]), data))

    expected = compute()
    assert len(set(expected)) == 3
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(compute(), expected)


def test_what_is_as_it_was_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing this imports PyTorch's compiler: seconds at the end of each run."""
    written = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: written.append(a))
    with as_before():
        pass
    assert written == []
