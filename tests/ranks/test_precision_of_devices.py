"""A precision that the device has not is refused, or it is said what it is; copies to the host are waited for."""

from __future__ import annotations

import builtins
import io

import pytest
import torch

from hpc_landscape.data.data import move
from hpc_landscape.errors import UserError
from hpc_landscape.ranks.device import check_precision, emulated


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of any capability, as far as questions about it go."""

    def is_there(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
        return torch.device("cuda", 0)

    return is_there


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_gpus_before_ampere(gpu, precision):
    with pytest.raises(UserError, match=f"--precision {precision}: Tesla V100 has none.*use fp32"):
        check_precision(precision, gpu((7, 0)))
    check_precision(precision, gpu((8, 0)))
    check_precision("fp32", gpu((7, 0)))


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ("processor : 0\nflags\t: fpu avx2 avx512f\n", True),
        ("processor : 0\nflags\t: fpu avx512_bf16 amx_bf16\n", False),
        ("processor : 0\nFeatures\t: fp asimd i8mm bf16\n", False),
        ("Features\t: fp asimd\n", True),
        ("cpu : POWER9\n", False),  # it cannot be told
    ],
)
def test_cpus_that_emulate(monkeypatch, info, said):
    real = builtins.open

    def cpu(path, *rest, **named):
        return io.StringIO(info) if path == "/proc/cpuinfo" else real(path, *rest, **named)

    monkeypatch.setattr(builtins, "open", cpu)
    note = emulated("bf16", torch.device("cpu"))
    assert ("no bf16 instructions" in note) == said
    assert emulated("fp32", torch.device("cpu")) == emulated("bf16", torch.device("cuda")) == ""


class Watched(torch.Tensor):
    """Tells how it was asked to move."""

    asked: list = []

    def to(self, *arguments, **keywords):
        self.asked.append(keywords.get("non_blocking"))
        return self


@pytest.mark.parametrize(("where", "ahead"), [("cpu", False), ("meta", True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_what_comes_to_the_host_is_waited_for(where, ahead, dtype):
    Watched.asked.clear()
    move([torch.ones(2, dtype=dtype).as_subclass(Watched)], torch.device(where))
    assert Watched.asked == [ahead]
