"""What an agent achieves in a Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..model.wrapper import ModelWrapper
from .base import Metric
from .statistics import mean_and_error


class ExpectedReturnMetric(Metric):
    """The mean return of an agent over episodes, and its standard error: shape (2,).

    env: a Gymnasium environment, the registered name of one, or what makes one. n_samples: episodes; episode i starts
    with ``env.reset(seed=seed + i)``. torch starts from the seed too, so that a policy that draws its actions depends
    on the point alone; torch's generators are afterwards as they were. max_steps: ends an episode that goes on.

    The agent's action is ``model_wrapper.forward(observation)``, without a gradient. The observation is a tensor on the
    model's device and in its dtype (float32 where it has several), without a batch dimension; the integer of a Discrete
    space is an int64 one; Dict and Tuple spaces give dicts and tuples of these. For a Discrete space the action is an
    integer, or a score for each choice, of which the largest wins; for a Box it is reshaped to it and clipped. An
    action of NaN makes the return NaN; one that the environment does not take is a UserError, as is an environment with
    Gym's older API.
    """

    name = "expected_return"
    shape = (2,)
    dims = ("statistic",)

    def __init__(self, env: Any, n_samples: int = 10, seed: int = 0, max_steps: int | None = None):
        super().__init__()
        if n_samples < 1 or (max_steps is not None and max_steps < 1):
            raise UserError(f"expected_return: n_samples={n_samples}, max_steps={max_steps} must be at least 1")
        self.env, self.n_samples, self.seed, self.max_steps = env, n_samples, index(seed), max_steps
        self._made: Any = None

    def __call__(self, model_wrapper: ModelWrapper) -> np.ndarray:
        if self._made is None:  # not before: the metric is made where the environment may be missing
            self._made = _make(self.env)
        parameters = list(model_wrapper.root.parameters())
        devices = {parameter.device for parameter in parameters}
        dtypes = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
        device = next(iter(devices)) if len(devices) == 1 else None
        dtype = next(iter(dtypes)) if len(dtypes) == 1 else torch.float32

        def act(observation: object) -> Any:
            return model_wrapper.forward(_tensor(observation, device, dtype))

        with torch.random.fork_rng([d for d in devices if d.type == "cuda"]), torch.no_grad():
            torch.manual_seed(self.seed)
            self._made.action_space.seed(self.seed)  # for those who sample from it
            returns = [self._episode(act, self.seed + i) for i in range(self.n_samples)]
        return mean_and_error(returns)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None}  # a copy makes its own

    def _episode(self, act: Callable[[Any], Any], seed: int) -> float:
        env, total, steps = self._made, 0.0, 0
        observation, _ = _expect(env.reset(seed=seed), 2, "reset")
        while steps != self.max_steps:
            action = _action(act(observation), env.action_space)
            if action is None:
                return math.nan
            observation, reward, terminated, truncated, _ = _expect(env.step(action), 5, "step")
            total, steps = total + float(reward), steps + 1
            if terminated or truncated:
                break
        return total


def _make(env: object) -> Any:
    """The environment; UserError where there is none."""
    try:
        import gymnasium
    except ImportError:
        raise UserError("expected_return needs gymnasium: pip install 'hpc_landscape[rl]'") from None
    if isinstance(env, str):
        try:
            return gymnasium.make(env)
        except (gymnasium.error.Error, ImportError) as error:
            raise UserError(f"expected_return: the environment '{env}' cannot be made: {_line(error)}") from None
    made = env() if not isinstance(env, gymnasium.Env) and callable(env) else env
    if not isinstance(made, gymnasium.Env):
        raise UserError(f"expected_return: the environment is a {type(made).__name__}, not a gymnasium.Env")
    return made


def _expect(result: object, count: int, method: str) -> tuple[Any, ...]:
    if isinstance(result, tuple) and len(result) == count:
        return result
    came = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
    raise UserError(
        f"expected_return: the environment's {method}() returned {came}, Gymnasium's returns {count} (the older API of "
        "Gym is not supported)"
    )


def _tensor(observation: object, device: torch.device | None, dtype: torch.dtype) -> Any:
    """An observation as tensors."""
    if isinstance(observation, Mapping):
        return {key: _tensor(value, device, dtype) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_tensor(value, device, dtype) for value in observation)
    array = np.asarray(observation)
    if array.dtype.kind not in "fiub":
        raise UserError(f"expected_return: an observation is a {type(observation).__name__}, not numbers")
    discrete = array.ndim == 0 and array.dtype.kind in "iu"
    return torch.tensor(array, dtype=torch.int64 if discrete else dtype, device=device)


def _action(output: Any, space: Any) -> Any:
    """What the agent says, as the environment takes it; None where it says NaN."""
    array = _array(output)
    if array is not None and array.dtype.kind == "f" and np.isnan(array).any():
        return None
    action = output if array is None else _fit(array, space)
    if action is None or not space.contains(action):
        came = f"a {type(output).__name__}"
        if array is not None:
            came = f"{array.dtype} of shape {array.shape}" + (f", {array.item():g}" if array.size == 1 else "")
        raise UserError(f"expected_return: the agent's action is {came}: the environment wants {_line(space)}")
    return action


def _fit(array: np.ndarray, space: Any) -> Any:
    """An array as an action of the space, None where it is none."""
    from gymnasium import spaces

    scores, same_size = array.dtype.kind == "f", array.size == math.prod(space.shape or ())
    if isinstance(space, spaces.Discrete):
        if scores:
            return int(array.argmax() + space.start) if array.size == space.n else None
        return int(array.item()) if same_size else None
    if isinstance(space, spaces.Box) and same_size:
        return np.clip(array.reshape(space.shape), space.low, space.high).astype(space.dtype)
    if space.shape is not None and same_size and not scores:
        return array.reshape(space.shape).astype(space.dtype)
    return array


def _array(output: Any) -> np.ndarray | None:
    """The output as an array of numbers, None where it is something else."""
    if isinstance(output, Tensor):
        output = output.detach().cpu()
        return (output.float() if output.dtype == torch.bfloat16 else output).numpy()
    try:
        array = np.asarray(output)
    except ValueError:
        return None
    return array if array.dtype.kind in "fiub" else None


def _line(text: object) -> str:
    return " ".join(str(text).split())
