"""--device as_built: parameters stay where the factory put them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from hpc_landscape import run
from hpc_landscape.data.data import Data
from hpc_landscape.errors import UserError
from hpc_landscape.model.wrapper import wrap_model
from hpc_landscape.ranks.device import built_on, check_precision

SMALL = Path(__file__).parent.parent / "problems_for_tests" / "small_problem_for_tests.py"
JOB = ("--problem", f"{SMALL}:small", "--x=-1:1:3", "--y", "none", "--plot", "false")


def loss(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["loss"][()]


def test_on_one_device_it_is_that_device(program, tmp_path):
    for device in ("cpu", "as_built"):
        done = program(*JOB, "--device", device, "--output", f"{device}.h5")
        assert done.code == 0, done.out
        assert "1 on 1 node, cpu," in done.out
    assert np.array_equal(loss(tmp_path / "cpu.h5"), loss(tmp_path / "as_built.h5"))


@pytest.mark.parametrize("metrics", ["loss,accuracy", "gradient_norm"])
def test_on_several_devices_each_parameter_stays(program, tmp_path, monkeypatch, metrics):
    """The way of several devices, taken on a machine that has but one."""
    assert program(*JOB, "--device", "cpu", "--metrics", metrics, "--output", "cpu.h5").code == 0
    monkeypatch.setattr(run, "built_on", lambda model: [torch.device("cpu")] * 2)
    done = program(*JOB, "--device", "as_built", "--metrics", metrics, "--output", "as_built.h5")
    assert done.code == 0 and "cpu and cpu" in done.out, done.err
    name = metrics.split(",")[0]
    with h5py.File("cpu.h5") as one, h5py.File("as_built.h5") as several:
        assert np.array_equal(one[name][()], several[name][()])
        assert one.attrs["device_kind"] == several.attrs["device_kind"] == "cpu"


class Pipeline(nn.Module):
    """Two stages: the input is on the first one's device, the output on the second one's."""

    def __init__(self, first: str, second: str):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, device=first), nn.Linear(4, 3, device=second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.device.type == self.first.weight.device.type
        return self.second(torch.tanh(self.first(x)).to(self.second.weight.device))


def test_what_is_on_no_device_is_refused(program, tmp_path):
    (tmp_path / "offloaded.py").write_text(
        "import torch\nfrom torch import nn\nfrom hpc_landscape import Problem\n"
        "def make():\n"
        "    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3, device='meta'))\n"
        "    return Problem(model, nn.MSELoss(), (torch.ones(5, 3), torch.ones(5, 3)))\n"
    )
    done = program("--problem", "offloaded.py:make", "--device", "as_built", "--output", "a.h5")
    assert done.code == 2 and not (tmp_path / "a.h5").exists()
    assert "--device as_built: 1.weight is on the meta device" in done.err and done.err.count("\n") == 1
    assert built_on(nn.Linear(2, 2)) == [torch.device("cpu")]
    with pytest.raises(UserError, match="meta device"):
        built_on(Pipeline("cpu", "meta"))


def test_batches_go_to_the_first_parameter_and_outputs_come_to_the_target():
    for first, second in (("meta", "cpu"), ("cpu", "meta")):
        model = wrap_model(Pipeline(first, second))
        data = Data(torch.ones(5, 3), torch.ones(5, 3))
        (batch,) = data.on(model)
        assert {t.device.type for t in batch} == {first}
        if second == "meta":  # from where nothing comes back
            with pytest.raises(NotImplementedError, match="meta tensor"):
                data.output(model, batch)
        else:
            model.root.forward = lambda x: torch.ones(5, 3)
            assert data.output(model, batch).device.type == first


def test_the_precision_is_checked_on_each_device(program):
    done = program(*JOB, "--device", "as_built", "--precision", "tf32")
    assert done.code == 2 and "--precision tf32: only NVIDIA GPUs have it" in done.err
    with pytest.raises(UserError):
        check_precision("fp64", torch.device("mps"))
