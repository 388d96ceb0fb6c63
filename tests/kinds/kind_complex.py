"""Parameters that are complex numbers: they move as pairs of reals do."""

from __future__ import annotations

from pathlib import Path

import torch
from case import Case
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_landscape import Problem


class Spectral(nn.Module):
    """Weights on the lowest frequencies."""

    def __init__(self, width: int, modes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        modes = self.weight.shape[2]
        low = torch.einsum("bik,iok->bok", spectrum[..., :modes], self.weight)
        return torch.fft.irfft(F.pad(low, (0, spectrum.shape[-1] - modes)), n=x.shape[-1])


class Operator(nn.Module):
    """A small Fourier neural operator."""

    def __init__(self, seed: int = 0, width: int = 4):
        super().__init__()
        torch.manual_seed(seed)
        self.lift, self.out = nn.Conv1d(1, width, 1), nn.Conv1d(width, 1, 1)
        self.spectral = nn.ModuleList([Spectral(width, 5) for _ in range(2)])
        self.skip = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for spectral, skip in zip(self.spectral, self.skip, strict=True):
            x = F.gelu(spectral(x) + skip(x))
        return self.out(x)


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 1, 16, generator=torch.Generator().manual_seed(0))
    return x, x.roll(3, -1)


def operator() -> Problem:
    return Problem(Operator(), nn.MSELoss(), data())


def right(model: nn.Module) -> Tensor:
    x, y = data()
    return F.mse_loss(model(x), y)


def gradient_norm(model: nn.Module) -> Tensor:
    gradients = torch.autograd.grad(right(model), list(model.parameters()))
    return sum(g.abs().double().square().sum() for g in gradients).sqrt()


class Diagonal(nn.Module):
    """A state space with complex poles, one number each, and a real gain: nothing has two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.poles = nn.Parameter(0.5 * torch.exp(2j * torch.rand(6)))
        self.c = nn.Parameter(torch.randn(6, dtype=torch.cfloat).conj())  # lazily conjugated
        self.gain = nn.Parameter(torch.tensor(0.3 + 0.2j))

    def forward(self, x: Tensor) -> Tensor:
        times = torch.arange(x.shape[-1])
        kernel = (self.c[:, None] * self.poles[:, None] ** times).sum(0).real
        length = 2 * x.shape[-1]
        wave = torch.fft.irfft(torch.fft.rfft(x, length) * torch.fft.rfft(kernel, length), length)
        return wave[..., : x.shape[-1]] * self.gain.abs()


def diagonal() -> Problem:
    return Problem(Diagonal(), nn.MSELoss(), data())


class Signals(nn.Module):
    """Complex in and out; a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a = nn.Parameter(torch.randn(8, 5, dtype=torch.cfloat).t())
        self.b = nn.Linear(5, 3, dtype=torch.cfloat)
        self.register_buffer("turn", torch.tensor(0.6 + 0.8j))

    def forward(self, z: Tensor) -> Tensor:
        h = F.linear(z, self.a) * self.turn
        return self.b(h * F.relu(h.abs() - 0.1))


def waves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(20, n, dtype=torch.cfloat, generator=generator) for n in (8, 3))


def power(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().square().mean()


def signals() -> Problem:
    return Problem(Signals(), power, waves())


def right_signals(model: nn.Module) -> Tensor:
    z, w = waves()
    return power(model(z.to(model.a.dtype)), w)


def other(folder: Path) -> None:
    torch.save(Operator(5).state_dict(), folder / "other.pt")


def path(folder: Path) -> None:
    for epoch in range(4):
        torch.save(Operator(10 + epoch).state_dict(), folder / f"epoch{epoch}.pt")


class Odd(nn.Module):
    """Pairs that begin at odd places among the numbers, of which there is an odd number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.gain, self.w, self.out = nn.Parameter(torch.rand(3)), nn.Parameter(torch.randn(9) + 0j), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.fft.irfft(torch.fft.rfft(x) * self.w, n=16)) * self.gain.sum()


def odd() -> Problem:
    return Problem(Odd(), nn.MSELoss(), (data()[0], data()[1][..., :2]))


def right_odd(model: nn.Module) -> Tensor:
    return F.mse_loss(model(data()[0]), data()[1][..., :2])


class Counting(nn.Module):
    """Whole numbers as a parameter, which nothing can move."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(16, 16)
        self.steps = nn.Parameter(torch.arange(1, 17), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x / self.steps)


def counting() -> Problem:
    return Problem(Counting(), nn.MSELoss(), data())


TO = ["--directions", "interpolation", "--to", "other.pt", "--x", "0:1:3"]

PCA = ["--directions", "pca", "--trajectory", "epoch*.pt", "--x", "-1:1:2", "--y", "-1:1:2"]

CASES = [
    Case("operator", right),
    Case("operator", right, options=["--normalization", "layer", "--distribution", "uniform", "--ignore", "none"]),
    Case("operator", right, options=["--x", "-1:1:2", "--normalization", "model", "--orthogonalize"], library=False),
    Case("operator", right, options=["--precision", "fp64"], library=False),
    Case("operator", right, options=["--precision", "bf16"], rtol=0.1, library=False),
    Case("operator", right, options=["--block", "2"], library=False),
    Case("operator", right, options=["--include", "spectral.*"], said=["of which 160 can move"], library=False),
    Case("operator", right, options=TO, prepare=other, library=False),
    Case("operator", right, others={"gradient_norm": gradient_norm}, options=["--metrics", "loss,gradient_norm"]),
    Case("diagonal", right),
    Case("odd", right_odd, options=["--metrics", "loss,curvature,hessian_trace"], library=False),
    Case("signals", right_signals),
    Case("signals", right_signals, options=["--precision", "fp64"], library=False),
    Case("operator", right, options=PCA, prepare=path, model=lambda: Operator(13), rtol=2e-5, library=False),
    Case("counting", right, said=["of which 272 can move .int64 cannot.", "thread each, fp32\n"]),
    Case(
        "counting",
        refused="--include steps: none of the parameters that are left can move: steps .int64.",
        options=["--include", "steps"],
        library=False,
    ),
]
