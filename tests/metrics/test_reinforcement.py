"""The expected return, of environments whose returns are known."""

from __future__ import annotations

import builtins
import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpc_landscape.errors import UserError
from hpc_landscape.evaluate.evaluator import Evaluator
from hpc_landscape.metrics import ExpectedReturnMetric
from hpc_landscape.model import state
from hpc_landscape.model.placement import Placement
from hpc_landscape.model.wrapper import GeneralModelWrapper

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Target(gymnasium.Env):
    """Each step pays minus the squared distance of the action to a target that the seed draws. It ends after 5."""

    observation_space = BOX

    def __init__(self, action_space=BOX, ends="terminated"):
        self.action_space, self.ends, self.actions = action_space, ends, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.target, self.steps = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.target, {}

    def step(self, action):
        self.steps += 1
        self.actions.append(action)
        reward = -float(((np.asarray(action, np.float64) - self.target) ** 2).sum())
        over = self.steps == 5
        return self.target, reward, over and self.ends == "terminated", over and self.ends == "truncated", {}


class Counter(gymnasium.Env):
    """Pays what the action says, for ever."""

    observation_space = spaces.Discrete(3)

    def __init__(self, action_space, observation=1):
        self.action_space, self.observation = action_space, observation

    def reset(self, *, seed=None, options=None):
        return self.observation, {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation, float(np.sum(action)), False, False, {}


class Agent:
    """Acts by w * observation; or says something else."""

    def __init__(self, weight: float = 0.5, says=None):
        self.policy = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.policy.weight.fill_(weight)
        self.says, self.seen = says, []

    def act(self, x):
        assert not torch.is_grad_enabled()
        self.seen.append(x)
        return self.policy.weight[0, 0] * x if self.says is None else self.says

    @property
    def wrapper(self) -> GeneralModelWrapper:
        return GeneralModelWrapper(self, [self.policy], lambda agent, x: agent.act(x))


def targets(seeds) -> np.ndarray:
    return np.array([np.random.Generator(np.random.PCG64(s)).uniform(-1, 1, 2).astype(np.float32) for s in seeds])


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_mean_and_standard_error(ends):
    """An episode pays -5 (1 - w)^2 |target|^2."""
    metric = ExpectedReturnMetric(Target(ends=ends), 7, seed=3)
    agent = Agent(0.5)
    found = metric(agent.wrapper)
    returns = -5 * 0.25 * (targets(range(3, 10)).astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(found, [returns.mean(), returns.std(ddof=1) / np.sqrt(7)], rtol=1e-6)
    assert metric.name == "expected_return" and metric.shape == found.shape == (2,) and metric.dims == ("statistic",)
    assert len(agent.seen) == 35
    assert all(x.dtype == torch.float32 and x.shape == (2,) for x in agent.seen)
    np.testing.assert_array_equal(metric(agent.wrapper), found)  # again, whatever was before


def test_one_episode_has_no_error():
    found = ExpectedReturnMetric(Target(), 1)(Agent().wrapper)
    assert math.isfinite(found[0]) and math.isnan(found[1])


def test_max_steps():
    found = ExpectedReturnMetric(Counter(spaces.Discrete(9)), 2, max_steps=12)(Agent(says=4).wrapper)
    np.testing.assert_array_equal(found, [48, 0])


def test_made_from_a_callable_or_a_name_once_and_late():
    made = []

    def make():
        made.append(Target())
        return made[-1]

    metric = ExpectedReturnMetric(make, 2)
    assert not made
    expected = ExpectedReturnMetric(Target(), 2)(Agent().wrapper)
    for _ in range(2):
        np.testing.assert_array_equal(metric(Agent().wrapper), expected)
    assert len(made) == 1
    named = ExpectedReturnMetric("CartPole-v1", 4)
    agent = Agent(says=torch.tensor([0.0, 1.0]))
    found = named(agent.wrapper)
    assert 5 < found[0] < 15 and agent.seen[0].shape == (4,)  # pushed to one side, the pole falls
    for copied in (pickle.loads(pickle.dumps(named)), copy.deepcopy(named)):
        np.testing.assert_array_equal(copied(agent.wrapper), found)
    with pytest.raises(UserError, match="'NoSuch-v7' cannot be made") as error:
        ExpectedReturnMetric("NoSuch-v7")(agent.wrapper)
    assert "\n" not in str(error.value)


def test_a_policy_that_draws_depends_on_the_point_alone():
    class Draws(Agent):
        def act(self, x):
            return self.policy.weight[0, 0] * torch.randn(2) + torch.from_numpy(self.env.action_space.sample())

    agent = Draws()
    agent.env = Target()
    metric = ExpectedReturnMetric(agent.env, 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = metric(agent.wrapper)
    assert torch.equal(before, torch.get_rng_state())
    torch.randn(7)
    np.testing.assert_array_equal(metric(agent.wrapper), first)
    agent.policy.weight.data.mul_(2)
    assert metric(agent.wrapper)[0] != first[0]


def test_in_the_evaluator():
    agent = Agent(1.0)
    wrapper = agent.wrapper
    placement = Placement(state.parameters(wrapper.root), [{"policy.weight": torch.ones(1, 1)}])
    evaluate = Evaluator(wrapper, placement, {"return": ExpectedReturnMetric(Target(), 4)}, "none")
    squares = (targets(range(4)).astype(np.float64) ** 2).sum(axis=1).mean()
    with evaluate.attached():  # the weight is 1 + c
        for c in (-0.5, 0.0, -1.0):
            np.testing.assert_allclose(evaluate([c])["return"][0], -5 * c**2 * squares, rtol=1e-6, atol=1e-12)


# Observations


@pytest.mark.parametrize(
    ("observation", "dtype", "shape"),
    [
        (np.int64(2), torch.int64, ()),
        (2, torch.int64, ()),
        (np.array([1, 2], np.uint8), torch.float32, (2,)),
        (np.zeros((2, 3)), torch.float32, (2, 3)),
        (np.array(True), torch.float32, ()),
    ],
)
def test_observations(observation, dtype, shape):
    agent = Agent(says=0)
    ExpectedReturnMetric(Counter(spaces.Discrete(2), observation), 1, max_steps=1)(agent.wrapper)
    assert agent.seen[0].dtype == dtype and agent.seen[0].shape == shape
    np.testing.assert_array_equal(agent.seen[0].numpy(), observation)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_agents_of_other_precisions(dtype):
    agent = Agent()
    agent.policy.to(dtype)
    values = np.array([0.1, 0.7])
    metric = ExpectedReturnMetric(Counter(spaces.Box(-1, 1, (2,)), values), np.int64(2), np.int64(3), max_steps=1)
    found = metric(agent.wrapper)
    assert agent.seen[0].dtype == dtype and torch.equal(agent.seen[0], torch.tensor(values, dtype=dtype))
    assert found[0] == pytest.approx(0.4, rel=1e-2)
    agent.second = nn.Linear(1, 1)
    metric(agent.wrapper)
    assert agent.seen[-1].dtype == torch.float32


def test_nested_observations():
    agent = Agent(says=0)
    observation = {"a": np.ones(2), "b": (np.int64(1), np.zeros(1, np.float32))}
    ExpectedReturnMetric(Counter(spaces.Discrete(2), observation), 1, max_steps=1)(agent.wrapper)
    seen = agent.seen[0]
    assert isinstance(seen["a"], Tensor) and seen["a"].dtype == torch.float32
    assert isinstance(seen["b"], tuple) and seen["b"][0].dtype == torch.int64


def test_an_observation_that_is_no_number():
    with pytest.raises(UserError, match="an observation is a str"):
        ExpectedReturnMetric(Counter(spaces.Discrete(2), "text"), 1)(Agent(says=0).wrapper)


# Actions


@pytest.mark.parametrize(
    ("space", "says", "paid"),
    [
        (spaces.Discrete(3), 2, 2),
        (spaces.Discrete(3), np.int64(2), 2),
        (spaces.Discrete(3), torch.tensor(2), 2),
        (spaces.Discrete(3), torch.tensor([[1]]), 1),
        (spaces.Discrete(2), torch.tensor(True), 1),
        (spaces.Discrete(3), torch.tensor([0.1, 0.9, 0.5]), 1),  # scores
        (spaces.Discrete(3), torch.tensor([[0.1, 0.2, 0.5]], dtype=torch.bfloat16), 2),
        (spaces.Discrete(3, start=-1), torch.tensor([0.1, 0.9, math.inf]), 1),
        (spaces.Discrete(3, start=-1), torch.tensor(-1), -1),
        (BOX, torch.tensor([[0.25], [0.5]]), 0.75),
        (BOX, torch.tensor([0.25, 7.0], dtype=torch.float64), 1.25),  # clipped
        (BOX, [0.25, 0.5], 0.75),
        (spaces.MultiDiscrete([3, 4]), torch.tensor([2, 3]), 5),
        (spaces.MultiBinary(3), torch.tensor([True, False, True]), 2),
    ],
)
def test_actions(space, says, paid):
    found = ExpectedReturnMetric(Counter(space), 1, max_steps=2)(Agent(says=says).wrapper)
    assert found[0] == 2 * paid


@pytest.mark.parametrize(
    ("space", "says", "words"),
    [
        (spaces.Discrete(3), torch.tensor(3), "int64 of shape (), 3: the environment wants Discrete(3)"),
        (spaces.Discrete(3), torch.tensor([0.1, 0.9]), "float32 of shape (2,): the environment wants Discrete(3)"),
        (spaces.Discrete(3), torch.tensor(1.0), "float32 of shape (), 1: the environment wants Discrete(3)"),
        (spaces.Discrete(3), torch.tensor([0, 1, 2]), "int64 of shape (3,): the environment wants Discrete(3)"),
        (spaces.Discrete(3), "left", "a str: the environment wants Discrete(3)"),
        (spaces.Discrete(3), {"a": 1}, "a dict: the environment wants Discrete(3)"),
        (spaces.Discrete(3), (torch.zeros(2), torch.zeros(1)), "a tuple: the environment wants Discrete(3)"),
        (BOX, torch.zeros(3), "float32 of shape (3,): the environment wants Box(-1.0, 1.0, (2,), float32)"),
        (
            spaces.MultiDiscrete([3, 4]),
            torch.tensor([2, 4]),
            "int64 of shape (2,): the environment wants MultiDiscrete",
        ),
        (spaces.MultiDiscrete([3, 4]), torch.tensor([2.0, 3.0]), "float32 of shape (2,): the environment wants Multi"),
    ],
)
def test_actions_that_the_environment_does_not_take(space, says, words):
    with pytest.raises(UserError) as error:
        ExpectedReturnMetric(Counter(space), 1)(Agent(says=says).wrapper)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("space", "size"), [(BOX, 2), (spaces.Discrete(3), 3)])
def test_an_action_of_nan_is_a_return_of_nan(space, size):
    found = ExpectedReturnMetric(Counter(space), 3)(Agent(says=torch.full((size,), math.nan)).wrapper)
    assert np.isnan(found).all()


# Environments that are none


class Old(Counter):
    def step(self, action):
        return super().step(action)[:4]


class Older(Counter):
    def reset(self, *, seed=None, options=None):
        return np.zeros(3)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (Old(spaces.Discrete(2)), "step() returned 4 values, Gymnasium's returns 5"),
        (Older(spaces.Discrete(2)), "reset() returned a ndarray, Gymnasium's returns 2"),
        (7, "the environment is a int, not a gymnasium.Env"),
        (lambda: None, "the environment is a NoneType, not a gymnasium.Env"),
    ],
)
def test_environments_that_are_none(env, words):
    with pytest.raises(UserError) as error:
        ExpectedReturnMetric(env)(Agent(says=1).wrapper)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_gymnasium(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("gymnasium"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError) as error:
        ExpectedReturnMetric("CartPole-v1")(Agent().wrapper)
    assert str(error.value) == "expected_return needs gymnasium: pip install 'hpc_landscape[rl]'"


@pytest.mark.parametrize("wrong", [{"n_samples": 0}, {"max_steps": 0}])
def test_numbers_that_are_too_small(wrong):
    with pytest.raises(UserError, match="at least 1"):
        ExpectedReturnMetric(Target(), **wrong)
