"""The code of loss-landscapes' README runs as it stands, and gives what it says: values against points made by hand."""

from __future__ import annotations

import abc
import copy

import numpy as np
import pytest
import torch
from test_landscape import fingerprint, images, loss_by_hand, losses_by_hand, moved, network, re_estimated
from torch import nn
from torch.utils.data import TensorDataset

from hpc_landscape import eval_loss, eval_warm_up

# Each block as it is there but for this one, there: import loss_landscapes, import loss_landscapes.metrics
IMPORTS = """
import hpc_landscape as loss_landscapes
import hpc_landscape.metrics
"""

LOSS_IN_A_SUBSPACE = """
pll = loss_landscapes.PlanarLossLandscape(model, steps, deepcopy_model=True)
pll.random_plain(distance=5, normalization='filter', random='normal')
pll.stats_initializer()
metric = loss_landscapes.metrics.Loss(criterion, x, y)
landscape = pll.compute(metric)
"""

CUSTOM_METRICS = '''
class Metric(abc.ABC):
    """ A quantity that can be computed given a model or an agent. """

    def __init__(self):
        super().__init__()

    @abc.abstractmethod
    def __call__(self, model_wrapper: ModelWrapper):
        pass


class Loss(Metric):
    """ Computes a specified loss function over specified input-output pairs. """
    def __init__(self, loss_fn, inputs: torch.Tensor, target: torch.Tensor):
        super().__init__()
        self.loss_fn = loss_fn
        self.inputs = inputs
        self.target = target

    def __call__(self, model_wrapper: ModelWrapper) -> float:
        return self.loss_fn(model_wrapper.forward(self.inputs), self.target).item()
'''

AGENT = """
metric = ExpectedReturnMetric(env, n_samples)
agent_wrapper = GeneralModelWrapper(agent, [agent.q_function, agent.policy], lambda agent, x: agent.act(x))
"""

WARM_UP = """
pll = loss_landscapes.PlanarLossLandscape(model, steps, deepcopy_model=True)
pll.random_plain(distance=5, normalization='filter', random='normal')
pll.stats_initializer()
metric = loss_landscapes.metrics.Loss(criterion, x, y)
pll.warm_up(metric)
landscape = pll.compute(metric)
"""

ENTIRE_DATASET = """
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
train_loader = torch.utils.data.DataLoader(mnist_train, batch_size=BATCH_SIZE, shuffle=False)

pll = loss_landscapes.PlanarLossLandscape(model, steps, deepcopy_model=True)
pll.random_plain(distance=5, normalization='filter', random='normal')
pll.stats_initializer()
eval_warm_up(pll, train_loader, device, criterion)
landscape = eval_loss(pll, train_loader, device, criterion)
"""


def run(block: str, **names):
    """The namespace after the block, begun with what surrounds it there."""
    names |= {"torch": torch, "abc": abc}
    exec(compile(IMPORTS + block, "README.md", "exec"), names)
    return names


def given(steps: int = 4, n: int = 12) -> dict:
    x, y = images(n)
    return {"model": network(), "steps": steps, "criterion": nn.CrossEntropyLoss(), "x": x, "y": y}


def check_plane(names: dict) -> None:
    """A plane of 5 times the weights' length, around the model, filters normalized."""
    pll, steps = names["pll"], names["steps"]
    assert names["landscape"].shape == (steps, steps) and names["landscape"].dtype == np.float64
    for axis, direction in zip(pll.coordinates, pll.directions, strict=True):
        np.testing.assert_allclose(axis, np.linspace(-2.5, 2.5, steps), atol=1e-15)
        for name, w in names["model"].named_parameters():
            d, w = (t.detach().double().reshape(len(t), -1).norm(dim=1) for t in (direction[name], w))
            np.testing.assert_allclose(d, w if "weight" in name and name != "1.weight" else 0 * w, rtol=1e-5)
    assert pll.seed is not None


@pytest.mark.parametrize("steps", [4, 5])
def test_section_2_the_loss_in_a_subspace(steps):
    names = given(steps)
    before = fingerprint(names["model"])
    names = run(LOSS_IN_A_SUBSPACE, **names)
    check_plane(names)
    by_hand = losses_by_hand(names["model"], names["pll"], (names["x"], names["y"]))
    np.testing.assert_allclose(names["landscape"], by_hand, rtol=1e-4)
    if steps == 5:
        model = copy.deepcopy(names["model"]).double().eval()
        at_the_model = loss_by_hand(model, names["x"], names["y"])
        assert names["landscape"][2, 2] == pytest.approx(at_the_model, rel=1e-5)
    assert fingerprint(names["model"]) == before


@pytest.mark.parametrize("warmed", [False, True])
def test_section_3_a_metric_of_the_user_s_own(warmed):
    """Their Metric is a class of its own, not ours."""
    names = given(3)
    own = run(CUSTOM_METRICS + "metric = Loss(criterion, x, y)\n", ModelWrapper=None, **names)["metric"]
    pll = run(LOSS_IN_A_SUBSPACE, **names)["pll"]
    data = names["x"], names["y"]
    if warmed:
        pll.warm_up(own)
    by_hand = losses_by_hand(names["model"], pll, data, [names["x"]] if warmed else None)
    np.testing.assert_allclose(pll.compute(own), by_hand, rtol=1e-4)


def test_section_3_a_subclass_of_our_metric():
    """The same Loss on the library's Metric and ModelWrapper."""
    names = given(3)
    start = "from hpc_landscape.metrics import Metric\nfrom hpc_landscape import ModelWrapper\n"
    loss = CUSTOM_METRICS[CUSTOM_METRICS.index("class Loss") :]
    own = run(start + loss + "metric = Loss(criterion, x, y)\n", **names)["metric"]
    pll = run(LOSS_IN_A_SUBSPACE, **names)["pll"]
    pll.warm_up(own)
    by_hand = losses_by_hand(names["model"], pll, (names["x"], names["y"]), [names["x"]])
    np.testing.assert_allclose(pll.compute(own), by_hand, rtol=1e-4)


class Agent:
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.q_function, self.policy = nn.Linear(4, 2), nn.Linear(4, 2)
        with torch.no_grad():
            for p in (*self.q_function.parameters(), *self.policy.parameters()):
                p.copy_(torch.randn(p.shape, generator=generator))

    def act(self, observation):
        return int((self.policy(observation) + 0.1 * self.q_function(observation)).argmax())


def test_section_4_an_agent():
    gymnasium = pytest.importorskip("gymnasium")
    env, agent, n_samples = gymnasium.make("CartPole-v1"), Agent(), 3
    imports = "from hpc_landscape.metrics import ExpectedReturnMetric\nfrom hpc_landscape import GeneralModelWrapper\n"
    names = run(imports + AGENT, env=env, n_samples=n_samples, agent=agent)
    before = fingerprint(agent.policy) + fingerprint(agent.q_function)
    pll = run("pll = loss_landscapes.PlanarLossLandscape(agent_wrapper, 3, deepcopy_model=True)\n", **names)["pll"]
    pll.random_plain(distance=4, normalization="filter", random="normal", seed=0)
    found = pll.compute(names["metric"])
    assert found.shape == (3, 3, 2) and found[..., 0].max() > found[..., 0].min() >= 1
    weights = {}  # by hand: the mean over episodes that start with seeds 0, 1 and 2, and its standard error
    for prefix, module in (("q_function", agent.q_function), ("policy", agent.policy)):
        weights |= {f"{prefix}.{name}": (module, name, p.detach()) for name, p in module.named_parameters()}
    assert set(weights) == set(pll.directions[0])
    env = gymnasium.make("CartPole-v1")
    for where in np.ndindex(3, 3):
        here = copy.deepcopy(agent)
        for full, (_, name, value) in weights.items():
            steps = [axis[i] * d[full] for axis, i, d in zip(pll.coordinates, where, pll.directions, strict=True)]
            getattr(here, full.split(".")[0]).get_parameter(name).data = (value + sum(steps)).float()
        returns = []
        for episode in range(n_samples):
            observation, _ = env.reset(seed=episode)
            total, over = 0.0, False
            while not over:
                observation, reward, terminated, truncated, _ = env.step(here.act(torch.from_numpy(observation)))
                total, over = total + reward, terminated or truncated
            returns.append(total)
        wanted = [np.mean(returns), np.std(returns, ddof=1) / np.sqrt(n_samples)]
        np.testing.assert_allclose(found[where], wanted, rtol=1e-12)
    assert fingerprint(agent.policy) + fingerprint(agent.q_function) == before


def test_section_5_warm_up():
    """Not 10% of a correction: the statistics are those of the data at the point."""
    names = run(WARM_UP, **given(4))
    check_plane(names)
    x, y = names["x"], names["y"]
    by_hand = losses_by_hand(names["model"], names["pll"], (x, y), [x])
    np.testing.assert_allclose(names["landscape"], by_hand, rtol=1e-4)
    assert np.isfinite(names["landscape"]).all()
    bare = losses_by_hand(names["model"], names["pll"], (x, y))
    assert np.abs(bare / by_hand - 1).max() > 0.1, "or the test could not tell them apart"
    seen = []
    names["pll"].compute(lambda w: (seen.append(w.get_model()[1].running_var.clone()), 0.0)[1])
    for statistics, where in zip(seen, np.ndindex(4, 4), strict=True):
        here = re_estimated(moved(names["model"], names["pll"], where), [x])
        np.testing.assert_allclose(statistics, here[1].running_var, rtol=1e-4)


@pytest.mark.parametrize("n", [12, 14, 11])
def test_section_5_an_entire_dataset(n):
    """The last batch weighs by its samples, in the statistics and in the loss."""
    names = given(3, n)
    x, y = names["x"], names["y"]
    names |= {"mnist_train": TensorDataset(x, y), "BATCH_SIZE": 4}
    names = run(ENTIRE_DATASET, eval_warm_up=eval_warm_up, eval_loss=eval_loss, **names)
    check_plane(names)
    by_hand = losses_by_hand(names["model"], names["pll"], (x, y), x.split(4))
    np.testing.assert_allclose(names["landscape"], by_hand, rtol=1e-4)


def test_section_7_the_import_alone():
    names = run("")
    assert names["loss_landscapes"].metrics is names["hpc_landscape"].metrics
    for name in ("point", "linear_interpolation", "random_line", "planar_interpolation", "random_plane"):
        assert callable(getattr(names["loss_landscapes"], name))
    from hpc_landscape.model.wrapper import GeneralModelWrapper

    assert names["loss_landscapes"].model_interface.model_wrapper.GeneralModelWrapper is GeneralModelWrapper
