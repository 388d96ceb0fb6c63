"""What users bring that values depend on, but for data and weights, as checksums of what it is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..errors import printable
from ..kinds import METRICS, NORMALIZATIONS
from ..metrics.registry import MetricRegistry
from ..problems.problem import Problem
from ..store.identity import architecture, checksum
from ..store.resume import METRIC


def made_of(spec: str, metric_names: Sequence[str], bn: str, problem: Problem) -> dict[str, str]:
    """What users bring, but for data and weights: before anything of it has been called."""
    wrapper, registry = problem.wrapper, MetricRegistry(problem, dict.fromkeys(problem.sets))
    known = [*problem.root.modules(), *problem.root.parameters(), *problem.root.buffers(), wrapper]
    called = (problem.forward, type(wrapper), getattr(wrapper, "forward_fn", None))
    where, colon, name = spec.rpartition(":")
    own = {}
    for asked in metric_names or registry.default:
        word, _ = METRICS.parse(asked)
        own[METRIC + word.rpartition(":")[2]] = registry.own.get(word) or registry.find(asked)[0]
    counted = [(k, v) for k, v in sorted(problem.arguments.items()) if k not in problem.neutral]
    arguments = {key: _argument(value, known) for key, value in counted}
    return {
        "problem_name": os.path.basename(where) + colon + name,
        "problem_arguments": ", ".join(f"{key}={value}" for key, value in arguments.items()) or "none",
        "problem_mode": str(getattr(problem, "mode", None) or "eval"),
        "problem_reduction": str(getattr(problem, "reduction", None) or "mean"),
        "sha256_architecture": architecture(problem.root),
        "sha256_loss": checksum(problem.loss, known, problem.neutral),
        "sha256_forward": checksum(called, known, problem.neutral),
        "sha256_count": checksum(problem.count, known, problem.neutral),
        **{name: checksum(metric, known) for name, metric in own.items()},
        **({} if bn in NORMALIZATIONS.built_in else {"sha256_bn": checksum(NORMALIZATIONS.load(bn), known)}),
    }


def _argument(value: Any, known: list[Any]) -> str:
    """As text where it is short and plain."""
    plain = isinstance(value, (str, int, float, bool, type(None), list, tuple, dict))
    text = printable(str(value)) if plain else ""
    return text if 0 < len(text) <= 200 else checksum(value, known)
