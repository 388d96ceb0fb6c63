"""A batch's mean and variance by channel, against float64, in every order and for any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hpc_landscape.model.estimation import RunningStatistics
from hpc_landscape.model.moments import ROWS, SUMS, _parts, moments

SHAPES = [
    (500, 16, 28, 28),
    (64, 512, 7, 7),
    (437, 24, 7, 7),
    (3, 5, 31, 17),
    (4, 6, 9, 10, 11),
    (700, 3, 50),
    (5003, 64),
]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def images(shape: tuple[int, ...], kind: str) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 1.5
    return x.relu_().add_(0.3) if kind == "atoms" else x  # most are one number: its roundings all go the same way


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["normal", "atoms"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_are_those_of_float64(shape, last, kind, threads):
    x = images(shape, kind)
    if last and len(shape) in LAST:
        x = x.contiguous(memory_format=LAST[len(shape)])
    mean, variance = moments(x)
    other = [dim for dim in range(x.ndim) if dim != 1]
    exact, center = torch.var_mean(x.double(), other, correction=0)
    near = 1e-6 if kind == "atoms" else 2e-7
    assert ((mean - center) / exact.sqrt()).abs().max() < near
    assert (variance / exact - 1).abs().max() < near


def test_pytorch_itself_is_less_exact_there():
    x = images((500, 16, 28, 28), "normal").contiguous(memory_format=torch.channels_last)
    exact = x.double().var((0, 2, 3), correction=0)
    off = [
        (variance / exact - 1).abs().max()
        for variance in (torch.batch_norm_update_stats(x, None, None, 0)[1], moments(x)[1])
    ]
    assert off[0] > 100 * off[1], "else this file can go"


@pytest.mark.parametrize("shape", [(64, 32, 28, 28), (500, 8, 28, 28), (400, 4, 56, 56)], ids=str)
def test_16_bits_are_added_up_in_more(shape):
    x = images(shape, "normal").bfloat16().contiguous(memory_format=torch.channels_last)
    mean, variance = moments(x)
    exact, center = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert ((mean - center) / exact.sqrt()).abs().max() < 1e-4 and (variance / exact - 1).abs().max() < 1e-4


@pytest.mark.parametrize("last", [False, True])
def test_running_statistics_are_the_average_of_the_batches(last, threads):
    layer = nn.BatchNorm2d(6)
    batches = [images((n, 6, 21, 20), "normal").mul_(1 + n / 100) for n in (40, 3, 40, 17)]
    with RunningStatistics([layer]) as estimate, torch.no_grad():
        for x in batches:
            estimate.begin(len(x))
            layer(x.contiguous(memory_format=torch.channels_last) if last else x)
    weights = torch.tensor([len(x) for x in batches], dtype=torch.float64) / 100
    means, variances = (
        [f(x.double()) for x in batches] for f in (lambda x: x.mean((0, 2, 3)), lambda x: x.var((0, 2, 3)))
    )
    for found, exact in ((layer.running_mean, means), (layer.running_var, variances)):
        exact = (weights[:, None] * torch.stack(exact)).sum(0)
        assert torch.allclose(found.double(), exact, rtol=1.5e-7, atol=1.5e-7)


def test_gradients_go_through_as_ever():
    layer = nn.BatchNorm2d(4)
    x = images((30, 4, 8, 8), "normal")
    found, expected = [], []
    for into in (found, expected):
        here = x.clone().requires_grad_()
        if into is found:
            with RunningStatistics([layer]):
                layer(here).square().sum().backward()
        else:
            layer.train()
            layer(here).square().sum().backward()
        into += [here.grad, layer.weight.grad.clone()]
        layer.zero_grad()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_one_value_per_channel_is_refused():
    with RunningStatistics([layer := nn.BatchNorm2d(4)]), pytest.raises(ValueError, match="more than 1 value"):
        layer(torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("channels", [1, 3, 16, 2048, 100_000])
@pytest.mark.parametrize("rows", [513, 1000, 5003, 24_500, 392_000, 1_605_632, 7_919_000])
def test_rows_are_taken_in_few_parts_of_short_sums(rows, channels):
    parts = [*_parts(rows, channels)]
    assert sum(length for length, _ in parts) == rows
    assert all(length % sums == 0 and sums * channels <= max(SUMS, channels) for length, sums in parts)
    assert all(length // sums <= max(ROWS) for length, sums in parts)
    assert len(parts) <= 2 + rows * channels / SUMS / max(ROWS) * (1 if channels < SUMS else channels / SUMS)
