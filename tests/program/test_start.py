"""What a run does before its first point: no more than it needs, and once."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import Counter

import pytest
from programs import PROBLEMS, TINY, environment

from hpc_landscape.campaign import loop
from hpc_landscape.kinds import METRICS

CALLS = f"{PROBLEMS / 'calls_problem_for_tests.py'}:calls"
ELSEWHERE = {"scipy", "matplotlib", "plotly", "sympy", "pandas", "tqdm", "mpi4py", "gymnasium"}
COMPILER = ("torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes")
LINE = ("--x=0:1:2", "--y=none")


def in_a_process(code: str, *words: object) -> list[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


AFTERWARDS = "import sys; from hpc_landscape.cli import main; assert main() == 0; "


def test_a_plain_run_imports_nothing_that_it_has_no_use_for(tmp_path):
    said = "print(*sorted(sys.modules))"
    words = "--problem", TINY, "--output", tmp_path / "a.h5", "--plot=false", *LINE
    torch = set(in_a_process(f"import sys, torch; {said}")[-1].split())
    more = set(in_a_process(AFTERWARDS + said, *words)[-1].split()) - torch
    assert not {name.partition(".")[0] for name in more} & ELSEWHERE
    assert not [name for name in more if name.startswith((*COMPILER, "hpc_landscape.view."))]
    assert "h5py" in more and "hpc_landscape.run" in more


def test_it_looks_for_no_kinds_that_packages_bring_where_all_are_built_in(tmp_path):
    code = "from importlib import metadata; import torch; metadata.entry_points = None; "  # PyTorch looks for its own
    words = "--problem", TINY, "--output", tmp_path / "a.h5", "--plot=false", *LINE
    assert any(line.startswith("finished") for line in in_a_process(code + AFTERWARDS, *words))


def test_a_name_is_a_kind_whoever_brings_it(monkeypatch):
    assert "loss" in METRICS and "lost" not in METRICS
    monkeypatch.setitem(vars(METRICS), "_plugins", {"lost": None})
    assert "lost" in METRICS


def test_what_was_imported_is_kept_from_the_collector_and_it_is_at_work(tmp_path):
    code = "; import gc; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    words = "--problem", TINY, "--output", tmp_path / "a.h5", "--plot=false", *LINE
    assert in_a_process(AFTERWARDS.rstrip("; ") + code, *words)[-1] == "True True"


def test_in_a_process_of_others_their_collector_is_left_alone(program, tmp_path):
    before = gc.get_freeze_count()
    assert program("--problem", TINY, "--output", "a.h5", "--plot=false", *LINE).code == 0
    assert gc.isenabled() and gc.get_freeze_count() == before


@pytest.mark.parametrize("enabled", ["enable", "disable"])
def test_the_library_is_imported_past_the_collector(enabled):
    code = f"""
import gc, hpc_landscape
gc.{enabled}()
seen = []
gc.callbacks.append(lambda phase, info: seen.append(info["generation"]))
hpc_landscape.PlanarLossLandscape, hpc_landscape.metrics
gc.callbacks.clear()
print(gc.isenabled(), max(seen, default=0), gc.get_freeze_count())
"""
    # Once it is at work again, the youngest are collected, perhaps: never all
    assert in_a_process(code)[-1] in [f"{enabled == 'enable'} {generation} 0" for generation in (0, 1)]


def calls_before_the_first_point(program, monkeypatch, tmp_path, *words: str) -> tuple[Counter, dict[int, Counter]]:
    """How often the model is called on so many samples, from the first one on; and from any other one."""
    log, run = tmp_path / "log", loop.Campaign.run
    log.write_text("")
    before: list[str] = []

    def noted(self) -> None:
        before.extend(log.read_text().splitlines())
        run(self)

    monkeypatch.setattr(loop.Campaign, "run", noted)
    words = ("--problem", CALLS, f"--problem.log={log}", "--batch_size=50", "--plot=false", *LINE, *words)
    assert program("--output", tmp_path / "a.h5", "--overwrite", *words).code == 0
    found: dict[int, Counter] = {}
    for line in before:
        start, size = map(int, line.split())
        found.setdefault(start, Counter())[size] += 1
    return found.pop(0), found


@pytest.mark.parametrize("norm", [True, False])
def test_each_batch_is_tried_once_whole_and_once_in_parts(program, monkeypatch, tmp_path, norm):
    first, others = calls_before_the_first_point(program, monkeypatch, tmp_path, f"--problem.norm={norm}")
    # Six batches of 50: whether the loss of each is the mean over its parts. On the first one there is more to see: the
    # mode and what may be folded, the same value twice, and at two points which normalization's input moves
    assert set(first) == {50, 1} and first[1] == 1 and first[50] <= (6 if norm else 3)
    parts = {batch + start: Counter({size: 1}) for batch in range(0, 300, 50) for start, size in ((1, 24), (25, 25))}
    assert others == parts | {batch: Counter({50: 1, 1: 1}) for batch in range(50, 300, 50)}
