"""A tiny problem that tells what it does, and does what a test asks: waits, sleeps, fails, signals itself."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import time
from contextlib import suppress

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hpc_landscape import Problem, UserError
from hpc_landscape.ranks.comm import launched

KEPT: list[tuple[nn.Module, list]] = []  # models made in this process, each as it was; the latest last

# What of a problem's arguments no value depends on.
NEUTRAL = ("log", "delay", "hold", "hold_rank", "hold_at", "fault", "fault_rank", "fault_at", "fault_when")
NEUTRAL += ("workers", "differs")


class Watch:
    """Called after each forward pass. A point is a warm-up pass, then one evaluation batch.

    log: the file to append to. hold: a file; this rank's point number hold_at waits until it exists. fault: what to do
    at point number fault_at, once the file fault_when exists. delay: seconds that a point takes.
    """

    def __init__(self, log: str, hold: str, hold_at: int, fault: str, fault_at: int, fault_when: str, delay: float):
        self.path, self.hold, self.hold_at = log, hold, hold_at
        self.fault, self.fault_at, self.fault_when, self.delay = fault, fault_at, fault_when, delay
        self.points, self.warm = 0, False
        self.log("begin")

    def __call__(self, model: nn.Module) -> None:
        if model.norm.training:
            self.warm = True
        elif self.warm:
            self.warm = False
            self.points += 1
            self.act()
            digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
            self.log("point", digest.hexdigest()[:16])

    def act(self) -> None:
        if self.hold and self.points == self.hold_at:
            self.log("holding")
            self.wait(self.hold)
        time.sleep(self.delay)
        if self.fault and self.points == self.fault_at:
            if self.fault_when:
                self.wait(self.fault_when)
            self.log("fault")
            fail(self.fault)

    def wait(self, path: str) -> None:
        while not os.path.exists(path):
            self.log("still")
            time.sleep(0.02)

    def log(self, kind: str, what: str = "-") -> None:
        """One line: kind, rank, process, time, what."""
        if self.path:
            line = f"{kind} {launched()[1]} {os.getpid()} {time.time():.6f} {what}\n"
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with suppress(OSError):  # a test may forbid this process to write
                os.write(descriptor, line.encode())
            os.close(descriptor)


def fail(how: str) -> None:
    """Raise, exit, send this process a signal, or stay in one call of a C library for ever: that takes no core."""
    if how == "kernel":
        mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        library.pthread_mutex_init(mutex, None)
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)  # without the interpreter's lock, and no signal ends it
    if how == "exit":
        sys.exit(3)
    if how == "exit_0":
        sys.exit(0)
    if how == "exit_text":
        sys.exit("words of the user's own")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "mistake":
        raise UserError("a mistake that one rank alone has found")
    if how.startswith("SIG"):
        return os.kill(os.getpid(), getattr(signal, how))
    raise ArithmeticError("the user's own fault")


class TinyNet(nn.Module):
    """Two layers with batch normalization between them."""

    def __init__(self, inputs: int, hidden: int, classes: int, watch: Watch | None):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, classes)
        self.watch = watch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last(torch.relu(self.norm(self.first(x))))
        if self.watch is not None:
            self.watch(self)
        return y


class Rows(Dataset):
    """Rows that a data-loading worker makes."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor):
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[i], self.targets[i]


def tiny(
    log: str = "",
    delay: float = 0.0,
    hold: str = "",
    hold_rank: int = 0,
    hold_at: int = 1,
    fault: str = "",
    fault_rank: int = 0,
    fault_at: int = 3,
    fault_when: str = "",
    samples: int = 48,
    hidden: int = 5,
    data_seed: int = 0,
    weight_seed: int = 0,
    loader_batch: int = 0,
    workers: int = 0,
    differs: str = "",
) -> Problem:
    """A classifier of random rows. hold_rank -1: every rank. differs: data or model, from rank to rank.

    The watch counts points only where the data is a single batch.
    """
    rank = launched()[1]
    data_seed += rank * (differs == "data")
    generator = torch.Generator().manual_seed(data_seed)
    inputs = torch.randn(samples, 6, generator=generator)
    targets = torch.randint(0, 3, (samples,), generator=generator)
    data = (inputs, targets)
    if loader_batch:
        data = DataLoader(Rows(inputs, targets), batch_size=loader_batch, num_workers=workers)
    watch = None
    if not loader_batch:
        held = hold if hold_rank in (rank, -1) else ""
        watch = Watch(log, held, hold_at, fault if fault_rank == rank else "", fault_at, fault_when, delay)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weight_seed)
        model = TinyNet(6, hidden + rank * (differs == "model"), 3, watch)
    model.last.eval()  # a state that is nowhere the default one
    model.norm.running_mean += 0.25
    model.first.weight.grad = torch.ones_like(model.first.weight)
    model.first.bias.requires_grad_(False)
    KEPT.append((model, fingerprint(model)))
    return Problem(model, nn.CrossEntropyLoss(), data, neutral=NEUTRAL)


def fingerprint(model: nn.Module) -> list:
    """All that a run must leave as it was: which tensors, where, their bits, gradients and modes."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        (name, id(t), t.data_ptr(), t.requires_grad, id(t.grad), str(t.dtype), t.detach().numpy().tobytes())
        for name, t in tensors
    ] + [(module.training, getattr(module, "momentum", None)) for module in model.modules()]


def checkpoint(path: str, **arguments: int) -> None:
    """Save what ``tiny(**arguments)`` starts with."""
    torch.save(tiny(**arguments).model.state_dict(), path)


def raises(only_on: int = -1) -> Problem:
    """A factory with a fault, on one rank or on all."""
    if only_on in (-1, launched()[1]):
        raise ArithmeticError("the user's own fault")
    return tiny()


def signals_itself(name: str) -> Problem:
    """A factory in which a signal comes."""
    os.kill(os.getpid(), getattr(signal, name))
    return tiny()


def no_data() -> Problem:
    """A problem without data."""
    return Problem(TinyNet(6, 5, 3, None), nn.CrossEntropyLoss(), None)


def empty_data() -> Problem:
    """A problem whose data holds nothing."""
    return Problem(TinyNet(6, 5, 3, None), nn.CrossEntropyLoss(), (torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)))


def not_a_problem() -> int:
    """A factory that returns something else."""
    return 3


def does_not_fit() -> Problem:
    """A model that cannot take its data."""
    return Problem(TinyNet(7, 5, 3, None), nn.CrossEntropyLoss(), tiny().data)


not_callable = 3
