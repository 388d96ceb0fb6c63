"""What is chosen to move: frozen parameters, kinds that cannot, and what a run remembers of the choice."""

from __future__ import annotations

import importlib

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpc_landscape import LinearLossLandscape, UserError
from hpc_landscape.metrics import GradientNorm, Loss, LossGradient
from hpc_landscape.model.wrapper import GeneralModelWrapper, wrap_model

kind = importlib.import_module("kind_frozen")
FILE = kind.__file__
WORDS = ["--problem", f"{FILE}:adapted", "--plot", "false", "--x", "-1:1:3", "--y", "none", "--output", "a.h5"]
TRAINED = {"0.lora_A", "0.lora_B", "2.lora_A", "2.lora_B"}


def test_a_run_remembers_what_it_left(program):
    assert program(*WORDS, "--trainable").code == 0
    with h5py.File("a.h5") as file:
        assert file.attrs["trainable"] == 1 and set(file["directions/along_x"]) == TRAINED
        assert file.attrs["direction_recipe"].endswith(" trainable")
        values = file["loss"][()]
    assert "is complete" in program(*WORDS, "--trainable").out
    other = program(*WORDS)
    assert other.code == 2 and "a.h5 holds directions of another model" in other.err, other
    assert "trainable" in program("info", "a.h5").out
    model = wrap_model(kind.net()).restrict(trainable=True)
    line = LinearLossLandscape(model, 3).load_directions("a.h5")
    np.testing.assert_allclose(line.compute(Loss(F.cross_entropy, *kind.data())), values, rtol=1e-6)


def test_metrics_are_of_what_moves():
    """As many numbers as are trained; a frozen one's gradient, where it moves, counts too."""
    data = kind.data()
    every, trained = (LossGradient(F.cross_entropy, *data)(w) for w in (wrap_model(kind.net()), _trained()))
    assert (every.size, trained.size) == (113, 46)
    model = kind.net()
    F.cross_entropy(model(data[0]), data[1]).backward()
    expected = sum(float(p.grad.square().sum()) for p in model.parameters() if p.requires_grad) ** 0.5
    assert GradientNorm(F.cross_entropy, *data)(_trained()) == pytest.approx(expected, rel=1e-6)
    assert GradientNorm(F.cross_entropy, *data)(wrap_model(kind.net())) > 1.01 * expected


def _trained():
    return wrap_model(kind.net()).restrict(trainable=True)


def test_choices_add_up():
    wrapper = wrap_model(kind.net()).restrict(include="0", exclude="*.lora_A", trainable=True)
    assert [name for name, _ in wrapper.named_parameters()] == ["0.lora_B"]
    with pytest.raises(UserError, match="--trainable: every parameter is frozen"):
        wrap_model(kind.net().requires_grad_(False)).restrict(trainable=True)


class Agent:
    def __init__(self) -> None:
        self.counts, self.policy = nn.Embedding(3, 2), nn.Linear(2, 2)
        self.counts.weight = nn.Parameter(torch.ones(3, 2, dtype=torch.long), requires_grad=False)


def test_a_wrapper_of_what_cannot_move():
    agent = Agent()
    wrapper = GeneralModelWrapper(agent, [agent.counts], lambda agent, x: agent.policy(x))
    with pytest.raises(UserError, match="the model has no parameter that can move"):
        LinearLossLandscape(wrapper, 3).random_line(seed=0)
    both = GeneralModelWrapper(agent, [agent.counts, agent.policy], lambda agent, x: agent.policy(x))
    with pytest.raises(
        UserError, match=r"--include counts: none of the parameters that are left can move: counts.weight"
    ):
        both.restrict(include="counts")
    assert set(LinearLossLandscape(both, 3).random_line(seed=0).directions[0]) == {"policy.weight", "policy.bias"}


@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_a_fresh_adapter_is_told(normalization):
    with pytest.warns(UserWarning, match="2 of 4 tensors do not move, since .* 0.lora_B, 2.lora_B") as told:
        line = LinearLossLandscape(wrap_model(kind.net(fresh=True)).restrict(trainable=True), 3)
        line.random_line(2, normalization, seed=0)
    assert told[0].filename == __file__
    assert np.ptp(line.compute(Loss(F.cross_entropy, *kind.data()))) == 0


def test_a_part_of_zeros_is_told(program, tmp_path):
    """A branch that begins with zeros, as residual ones do: it does not move under filter normalization."""
    (tmp_path / "zero_problem.py").write_text(
        "import torch, kind_frozen\nfrom torch import nn\nfrom hpc_landscape import Problem\n"
        "def zero():\n    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))\n"
        "    nn.init.zeros_(model[1].weight)\n    return Problem(model, nn.CrossEntropyLoss(), kind_frozen.data())\n"
    )
    words = ["--problem", "zero_problem.py:zero", *WORDS[2:], "--overwrite"]
    run = program(*words)
    assert run.code == 0 and "note         1 of 4 tensors do not move, since a direction is scaled" in run.out, run
    assert "1.weight; --normalization none does not scale\n" in run.out
    assert "do not move" not in program(*words, "--normalization", "none").out
    assert "note" not in program(*words, "--include", "0").out
    run = program(*words, "--include", "1.weight")
    assert "note         zero everywhere, so that nothing changes along it: direction x, since" in run.out, run
