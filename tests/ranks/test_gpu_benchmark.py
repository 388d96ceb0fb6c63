"""The benchmarks that want a GPU, on next to nothing and on the CPU: so that what is lent is not spent on a slip."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; what is compiled runs as it is."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    return importlib.import_module("benchmarks.gpu")


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch.profiler")  # of a PyTorch without Kineto's GPU part
@pytest.mark.parametrize("part", ["ceilings", "layers", "small", "large", "batches"])
def test_every_part_runs(gpu: Any, part: str) -> None:
    found = dict(gpu.PARTS[part](1, CPU, gpu.TINY))
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert found and all(math.isfinite(value) and value >= 0 for value in numbers)
    targets = [key for key, value in found.items() if gpu.verdict(key, value)]
    if part == "large":
        kinds = [*gpu.FORMS, f"{gpu.FIRST}, cuDNN's choice timed"]
        assert {*targets} == {*(f"{kind}: {gpu.BARE}" for kind in kinds), f"{gpu.FIRST}: {gpu.WHOLE}"}
    assert len(targets) == {"large": 11, "small": 2}.get(part, 0)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bf16: bare / ours", 0.95, "at least 0.95: met"),
        ("bf16: bare / ours", 0.94, "at least 0.95: MISSED"),
        ("bf16: bare / ours", float("nan"), "at least 0.95: MISSED"),
        ("bf16: 51 x 51 points, minutes, extrapolated from these", 9.9, "at most 10: met"),
        ("bf16: 51 x 51 points, minutes, extrapolated from these", 10.1, "at most 10: MISSED"),
        ("MLP: bare, eager / our best", 17.0, "at least 5: met"),
        ("bf16: ours, s a point", 0.5, ""),
    ],
)
def test_the_target_stands_beside_the_number(gpu: Any, key: str, value: float, said: str) -> None:
    assert gpu.verdict(key, value) == said


def test_what_was_measured_before_a_hang_is_kept(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hangs(*_: Any) -> Any:
        """Says something first."""
        yield "bf16: bare / ours", 0.5
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.PARTS, "batches", hangs)
    file = tmp_path / "a.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "batches", "--device=cpu", "--tiny", f"--json={file}"])
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    assert json.loads(file.read_text()) == {"batches: bf16: bare / ours": 0.5}
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["gpu", "--targets", str(file), "none.json"])
    gpu.main()
    said = capsys.readouterr().out
    assert " ".join(said.split()) == (
        "batches: bf16: bare / ours 0.5 at least 0.95: MISSED none.json: nothing was measured"
    )


@pytest.mark.parametrize("words", [["nothing"], ["large", "--forms=bf16,fp8"]])
def test_a_slip_in_the_command_costs_no_time(gpu: Any, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device=cpu", "--tiny", *words])
    with pytest.raises(SystemExit):
        gpu.main()


def test_traffic_is_what_the_layers_say(gpu: Any) -> None:
    """Counted by hand for two images sides of 8: a stem and three blocks of 16, 32 and 64 channels."""
    with torch.device("meta"):
        model = gpu.ResNet(1, 16, 3)
    found = importlib.import_module("benchmarks.kernels").traffic(model, (3, 8, 8))
    a, b, c = 16 * 64, 32 * 16, 64 * 4  # numbers of an activation in each stage
    convolved = (3 * 64 + a) + 2 * (a + a) + (a + b) + (b + b) + (a + b) + (b + c) + (c + c) + (b + c)
    outputs = a + 2 * a + 3 * b + 3 * c  # of convolutions
    inside, blocks = a + a + b + c, a + b + c  # what a ReLU follows within a block, and at the end of one
    pointwise = 2 * inside + 3 * blocks
    one_pass = (
        convolved + 2 * outputs + 2 * (inside + blocks) + 3 * blocks + c
    )  # normalize, ReLU, add; the mean at last
    assert found == {
        "launched one by one": 2 * one_pass + outputs,
        "the same, folded": 2 * one_pass - outputs,
        "compiled: convolution; statistics; pointwise": 2 * convolved + outputs + 2 * pointwise,
        "the same, evaluation in the convolutions": 2 * convolved + outputs + pointwise + blocks,
        "all in the convolutions, statistics too": 2 * convolved + 3 * blocks,
    }


def test_a_run_in_its_kernels(gpu: Any) -> None:
    x, weight = torch.randn(4, 8, 16, 16), torch.randn(8, 8, 3, 3)
    seconds, wall = importlib.import_module("benchmarks.kernels").kernel_seconds(
        lambda: torch.nn.functional.conv2d(x, weight).relu(), CPU
    )
    assert any("conv" in name for name in seconds) and any("relu" in name or "clamp" in name for name in seconds)
    assert 0 < sum(seconds.values()) <= wall * 1.01


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "convolutions and products",
            [
                "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64_cudnn",
                "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized>",
                "triton_tem_fused_convolution_relu_6",
            ],
        ),
        (
            "reductions, the statistics among them",
            [
                "triton_red_fused__native_batch_norm_legit_functional_3",
                "triton_per_fused_convolution_var_mean_4",
                "void at::native::batch_norm_collect_statistics_channels_last_kernel",
                "void at::native::batch_norm_transform_input_channels_last_kernel",
            ],
        ),
        (
            "pointwise",
            ["triton_poi_fused_add_convolution_relu_5", "void at::native::vectorized_elementwise_kernel<8, clamp>"],
        ),
        ("changes of order", ["void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>"]),
        ("copies", ["Memcpy DtoH (Device -> Pageable)"]),
        ("others", ["what nobody knows"]),
    ],
)
def test_a_kernel_is_of_a_kind(gpu: Any, kind: str, names: list[str]) -> None:
    kind_of = importlib.import_module("benchmarks.kernels").kind_of
    assert {kind_of(name) for name in names} == {kind}


def test_a_step_that_hangs_leaves_the_others(tmp_path: Path) -> None:
    """The script with a stand-in for Python, of which one command never ends, in a budget that is soon spent."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "called $*"\ncase "$*" in *curvature*) exec sleep 1000;; *gpu.json*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    results = tmp_path / "results"
    environment = {**os.environ, "PYTHON": str(python), "DEVICE": "cpu", "BUDGET": "9", "RESULTS": str(results)}
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh"], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1, done
    assert "=== STOPPED after" in done.stdout and "=== LEFT OUT" in done.stdout, done
    for word in ("test_gpu.py -k cpu and compiled", "--precision bf16", "--targets"):
        assert any(line.startswith("called") and word in line for line in done.stdout.splitlines()), word
    assert (results / "log.txt").read_text() == done.stdout
