"""What of PyTorch belongs to the whole process: changed for an evaluation, and restored."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch

from .generators import Generators

Function = TypeVar("Function", bound=Callable[..., Any])

# Held while a model is attached: parameters, generators and flags are shared by all threads of a process.
LOCK = threading.RLock()
KINDS = ("cuda", "mps", "xpu")  # beside the CPU, where autocast may be on


def one_at_a_time(function: Function) -> Function:
    """The function by one thread at a time, in PyTorch as it comes: outside of inference mode and autocast."""

    @functools.wraps(function)
    def alone(*arguments: Any, **keywords: Any) -> Any:
        with LOCK, neutral():
            return function(*arguments, **keywords)

    return cast(Function, alone)


@contextmanager
def neutral() -> Iterator[None]:
    """Whatever the caller is inside of: no inference mode, gradients can be taken, and no autocast."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        for kind in KINDS:
            if _autocasts(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _autocasts(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # torch before 2.4 asks for CUDA alone
        return kind == "cuda" and torch.is_autocast_enabled()
    except RuntimeError:  # no such device in this PyTorch
        return False


@contextmanager
def as_before() -> Iterator[None]:
    """What a factory sets meanwhile, of what belongs to the process, is undone at the end."""
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    dtype, device, threads = torch.get_default_dtype(), _default_device(), torch.get_num_threads()
    gradients, deterministic, cudnn = torch.is_grad_enabled(), _deterministic(), torch.backends.cudnn
    flags = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    with Generators(gpus).preserved(), _arithmetic_preserved():
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            if _default_device() != device:
                torch.set_default_device(None if device == torch.device("cpu") else device)
            torch.set_num_threads(threads)
            torch.set_grad_enabled(gradients)
            if _deterministic() != deterministic:  # to set it loads Inductor, which takes longer than a small run
                torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
            cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _default_device() -> torch.device | None:
    """Where tensors are made that do not say where; None where they cannot be."""
    try:
        return torch.empty(0).device
    except (RuntimeError, AssertionError):  # a GPU that is not there
        return None


@contextmanager
def matmul(precision: str) -> Iterator[None]:
    """TF32 where it is asked for, and nothing below float32 anywhere else."""
    allow = precision == "tf32"
    with _arithmetic_preserved():
        torch.set_float32_matmul_precision("high" if allow else "highest")
        torch.backends.cudnn.allow_tf32 = allow
        if not allow:
            for holder in _holders()[-1]:
                holder.fp32_precision = "ieee"
        yield


def _holders() -> list[list[Any]]:
    """What holds an ``fp32_precision`` (PyTorch from 2.9 on), from the most general to operations."""
    backends = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return [[]]
    cudnn: Any = backends.cudnn
    mkldnn: Any = backends.mkldnn
    operations = [backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    return [[backends], [cudnn, mkldnn], operations]


@contextmanager
def _arithmetic_preserved() -> Iterator[None]:
    """How exact float32 is, as told in both of PyTorch's ways: where they contradict each other, reading fails."""
    ways: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (lambda: torch.backends.cudnn.allow_tf32, lambda v: setattr(torch.backends.cudnn, "allow_tf32", v)),
    ]
    old: list[Callable[[], None]] = []
    for read, write in ways:
        try:
            old.append(functools.partial(write, read()))
        except RuntimeError:  # the other way has been used
            continue
    own = []
    for holders in _holders():  # what is inherited from above shows once that is gone
        for holder in holders:
            own.append((holder, holder.fp32_precision))
            holder.fp32_precision = "none"
    _write(own)
    try:
        yield
    finally:
        for restore in old:
            restore()
        _write(own)


def _write(own: list[tuple[Any, str]]) -> None:
    for holder, value in reversed(own):
        holder.fp32_precision = value
