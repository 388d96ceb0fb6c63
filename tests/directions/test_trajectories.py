"""Trajectories: several paths, directories of saved models, labels; and files in shards."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import pytest
import torch
from programs import PROBLEMS
from safetensors.torch import save_file

sys.path.insert(0, str(PROBLEMS))
import tiny_problem_for_tests  # noqa: E402

import hpc_landscape  # noqa: E402

TINY = f"{PROBLEMS / 'tiny_problem_for_tests.py'}:tiny"
WORDS = ["--problem", TINY, "--x=-1:1:3", "--y=-1:1:3", "--plot", "false"]


def state(step: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    tensors = tiny_problem_for_tests.tiny().model.state_dict()
    return {
        k: t + step * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for k, t in tensors.items()
    }


def saved_model(folder: Path, step: float) -> None:
    folder.mkdir(parents=True)
    save_file({k: t.contiguous() for k, t in state(step).items()}, str(folder / "model.safetensors"))
    (folder / "config.json").write_text("{}")
    torch.save({}, folder / "optimizer.pt")


def shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    places = {name: f"model-{i}.safetensors" for i, name in enumerate(tensors)}
    for name, place in places.items():
        save_file({name: tensors[name].contiguous()}, str(folder / place))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("how", ["options", "semicolon", "yaml"])
def test_several_paths(program, tmp_path, how):
    for run, sign in (("sgd", 1), ("adam", -1)):
        for step in (10, 2, 1):
            (tmp_path / run).mkdir(exist_ok=True)
            torch.save(state(sign * step / 10), tmp_path / run / f"epoch{step}.pt")
    (tmp_path / "a.yaml").write_text("trajectory: [[sgd], [adam/epoch1.pt, adam/epoch2.pt, adam/epoch10.pt]]\n")
    given = {
        "options": ["--trajectory", "sgd", "--trajectory=adam"],
        "semicolon": ["--trajectory", "sgd; adam"],
        "yaml": ["--config", "a.yaml"],
    }
    done = program(*WORDS, *given[how])
    assert done.code == 0 and "6 checkpoints on 2 paths" in done.out, done
    with h5py.File("landscape.h5") as file:
        assert file["trajectory/path"][()].tolist() == [0, 0, 0, 1, 1, 1]
        names = [label.decode() for label in file["trajectory/label"][()]]
        x = file["trajectory/x"][()]
    assert names == [f"{run}/epoch{step}" for run in ("sgd", "adam") for step in (1, 2, 10)]
    assert x[:3] == pytest.approx(-x[3:], rel=1e-3)
    assert "trajectory of 2 paths" in program("info", "landscape.h5").out
    assert program("plot", "landscape.h5", "-o", "a.svg").code == 0
    text = (tmp_path / "a.svg").read_text()
    assert "path sgd" in text and "path adam" in text


def test_saved_models_are_checkpoints(program, tmp_path):
    for step in (100, 2, 10):
        saved_model(tmp_path / "run" / f"checkpoint-{step}", step / 100)
    for given in ("run", "run/checkpoint-*", "run/*/model.safetensors"):
        done = program(*WORDS, "--trajectory", given, "--overwrite")
        assert done.code == 0 and "3 checkpoints, at most" in done.out, done
        with h5py.File("landscape.h5") as file:
            labels = [label.decode() for label in file["trajectory/label"][()]]
            assert labels == ["checkpoint-2", "checkpoint-10", "checkpoint-100"] and "path" not in file["trajectory"]


def test_shards(program, tmp_path):
    shards(tmp_path / "parts", state(0.3))
    torch.save(state(0.3), tmp_path / "whole.pt")
    found = []
    for given in ("whole.pt", "parts", "parts/model.safetensors.index.json"):
        assert program(*WORDS, "--checkpoint", given, "--overwrite").code == 0
        with h5py.File("landscape.h5") as file:
            found.append(file["loss"][()].tolist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda places: places.update(x="../../etc/passwd"), "is outside of its directory"),
        (lambda places: places.update(x="/etc/passwd"), "is outside of its directory"),
        (lambda places: places.update(x="none.safetensors"), "shard none.safetensors is missing"),
        (lambda places: places.update(x=3), "not an index of shards"),
        (lambda places: places.popitem(), "it lacks "),
    ],
)
def test_an_index_that_is_none(program, tmp_path, change, said):
    shards(tmp_path / "parts", state(0.3))
    path = tmp_path / "parts" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    done = program(*WORDS, "--checkpoint", "parts")
    assert done.code == 2 and said in done.err and not (tmp_path / "landscape.h5").exists(), done


def test_the_library_reads_them_too(tmp_path):
    raw, mean = state(0.1), state(0.2)
    torch.save({"raw": raw, "ema": {"module." + k: t for k, t in mean.items()}}, tmp_path / "two.pt")
    torch.save({**{"module." + k: t for k, t in mean.items()}, "n_averaged": torch.tensor(3)}, tmp_path / "swa.pt")
    line = hpc_landscape.LinearLossLandscape(tiny_problem_for_tests.tiny().model, 3)
    with pytest.raises(hpc_landscape.UserError, match="2 networks that fit the model: raw, ema"):
        line.interpolation(str(tmp_path / "two.pt"))
    line.interpolation(tmp_path / "two.pt", key="ema")
    wanted = line.directions[0]
    with pytest.warns(UserWarning, match="left out: n_averaged"):
        line.interpolation(tmp_path / "swa.pt")
    assert all(torch.equal(t, wanted[name]) for name, t in line.directions[0].items())
    line.pca([raw, tmp_path / "two.pt"], key="ema")
    assert line.trajectory.labels == ["0", "two"]
