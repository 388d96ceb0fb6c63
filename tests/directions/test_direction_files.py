"""Directions from files: what was written comes back, anything else is refused in one line, and nothing is run."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hpc_landscape.directions.reading import read_directions
from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.model import state
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

SHAPES = {"conv.weight": (4, 3, 2, 2), "conv.bias": (4,), "scale": (), "empty": (0, 4)}
KINDS = [".npz", ".pt", ".pth", ".safetensors"]


def drawn(seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    draw = np.random.default_rng(seed)
    return {name: torch.as_tensor(draw.standard_normal(shape)).to(dtype) for name, shape in SHAPES.items()}


WEIGHTS = drawn(0)


def written(path, direction) -> str:
    path = str(path)
    if path.endswith(".npz"):
        np.savez(path, **state.arrays(direction))
    elif path.endswith(".safetensors"):
        save_file({name: t.contiguous() for name, t in direction.items()}, path)
    else:
        torch.save(direction, path)
    return path


def landscape(path, *directions) -> str:
    axes = [Axis(-1, 1, 3)] * len(directions)
    stored = {name: state.arrays(d) for name, d in zip("xyz", directions, strict=False)}
    layout.create(str(path), Grid(*axes), [Quantity("loss")], {}, stored)
    return str(path)


def refused(paths, count: int = 1, weights=WEIGHTS) -> str:
    paths = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    with pytest.raises(UserError) as error:
        read_directions(paths, weights, count)
    text = str(error.value)
    assert text.startswith("--direction_files ") and "\n" not in text and len(text) < 600
    assert any(path in text for path in paths)
    return text


def assert_equal(found, expected, dtype=torch.float32) -> None:
    assert list(found) == list(SHAPES)
    for name, t in found.items():
        assert t.dtype == dtype and t.shape == SHAPES[name] and torch.equal(t, expected[name].to(dtype))


@pytest.mark.parametrize("folder", [".", "größe 模型, zwei"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_direction_each(tmp_path, kind, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    directions = [drawn(1), drawn(2), drawn(3)]
    paths = [written(tmp_path / folder / f"ein d{i}{kind}", d) for i, d in enumerate(directions)]
    for count in (1, 2, 3):
        found = read_directions(paths[:count], WEIGHTS, count)
        assert len(found) == count
        for direction, expected in zip(found, directions, strict=False):
            assert_equal(direction, expected)


@pytest.mark.parametrize("name", ["a.h5", "ohne endung", "größe 模型.h5"])
def test_landscape(tmp_path, name):
    directions = [drawn(1), drawn(2), drawn(3)]
    path = landscape(tmp_path / name, *directions)
    for count in (1, 2, 3):  # the first ones
        found = read_directions([path], WEIGHTS, count)
        assert len(found) == count
        for direction, expected in zip(found, directions, strict=False):
            assert_equal(direction, expected)


def test_kinds_together(tmp_path):
    line = landscape(tmp_path / "a.h5", drawn(1))
    found = read_directions([line, written(tmp_path / "b.npz", drawn(2))], WEIGHTS, 2)
    assert_equal(found[0], drawn(1))
    assert_equal(found[1], drawn(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, ".h5"])
def test_the_weights_precision(tmp_path, kind, dtype):
    path = tmp_path / f"a{kind}"
    path = landscape(path, drawn(1, dtype)) if kind == ".h5" else written(path, drawn(1, dtype))
    assert_equal(read_directions([path], WEIGHTS, 1)[0], drawn(1, dtype))  # to float32
    assert_equal(read_directions([path], drawn(0, dtype), 1)[0], drawn(1, dtype), dtype)  # to what it was
    kinds = dict(zip(SHAPES, [torch.bfloat16, torch.float32, torch.float64, torch.float16], strict=True))
    mixed = {name: t.to(kinds[name]) for name, t in WEIGHTS.items()}
    (found,) = read_directions([path], mixed, 1)
    assert all(torch.equal(t, drawn(1, dtype)[name].to(kinds[name])) for name, t in found.items())
    assert {name: t.dtype for name, t in found.items()} == kinds


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_lacks_does_not_move(tmp_path, kind):
    path = written(tmp_path / f"a{kind}", {"scale": drawn(1)["scale"]})
    (found,) = read_directions([path], WEIGHTS, 1)
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    assert_equal(found, {**zeros, "scale": drawn(1)["scale"]})


def test_nested_prefixed_and_wanting_gradients(tmp_path):
    wrapped = {f"module.{name}": nn.Parameter(t) for name, t in drawn(1).items()}
    path = written(tmp_path / "a.pt", {"epoch": 3, "state_dict": wrapped})
    (found,) = read_directions([path], WEIGHTS, 1)
    assert_equal(found, drawn(1))
    assert not any(t.requires_grad for t in found.values())
    del wrapped["module.scale"], wrapped["module.conv.weight"]
    path = written(tmp_path / "b.npz", {name: t.detach() for name, t in wrapped.items()})
    assert torch.equal(read_directions([path], WEIGHTS, 1)[0]["conv.bias"], drawn(1)["conv.bias"])


def test_other_numbers_and_layouts(tmp_path):
    """Integers, the other byte order, Fortran order, views: values count. The result is laid out as the weights are."""
    values = np.arange(48).reshape(4, 3, 2, 2)
    weights = {**WEIGHTS, "conv.weight": WEIGHTS["conv.weight"].contiguous(memory_format=torch.channels_last)}
    for i, array in enumerate([values, values.astype(">f4"), np.asfortranarray(values * 1.0), values.astype("u1")]):
        np.savez(tmp_path / f"{i}.npz", **{"conv.weight": array})
        (found,) = read_directions([str(tmp_path / f"{i}.npz")], weights, 1)
        assert np.array_equal(found["conv.weight"].numpy(), values)
        assert found["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    torch.save({"conv.bias": torch.arange(20)[::5]}, tmp_path / "a.pt")
    (found,) = read_directions([str(tmp_path / "a.pt")], weights, 1)
    assert found["conv.bias"].tolist() == [0, 5, 10, 15]


def test_weights_are_left_as_they_are(tmp_path):
    path = written(tmp_path / "a.pt", drawn(1))
    weights = {name: nn.Parameter(t.clone()) for name, t in WEIGHTS.items()}
    for t in read_directions([path], weights, 1)[0].values():
        assert not t.requires_grad
        t.add_(1)
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in SHAPES)


# How many


def test_too_few(tmp_path):
    a, b = (written(tmp_path / f"{name}.npz", drawn(1)) for name in "ab")
    assert "found: 1, needed: 2" in refused([a], 2)
    assert "found: 2, needed: 3" in refused([a, b], 3)
    assert "found: 1, needed: 2" in refused(landscape(tmp_path / "a.h5", drawn(1)), 2)


def test_too_many(tmp_path):
    a, b = (written(tmp_path / f"{name}.npz", drawn(1)) for name in "ab")
    assert f"{b}: " in refused([a, b], 1)
    assert f"{b}: " in refused([landscape(tmp_path / "a.h5", drawn(1), drawn(2)), b], 2)


# Not this model's


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_names(tmp_path, kind):
    direction = {**drawn(1), **{f"layer{i}": torch.ones(1) for i in range(8)}}
    text = refused(written(tmp_path / f"a{kind}", direction))
    assert "no parameter layer0, layer1, layer2 and 5 more" in text


@pytest.mark.parametrize("kind", KINDS)
def test_other_shapes(tmp_path, kind):
    direction = {**drawn(1), "conv.bias": torch.ones(5), "scale": torch.ones(1)}
    text = refused(written(tmp_path / f"a{kind}", direction))
    assert "conv.bias (5,) instead of (4,), scale (1,) instead of ()" in text


def test_a_landscape_of_another_model(tmp_path):
    other = {"dense.weight": torch.ones(3, 3)}
    assert "no parameter dense.weight" in refused(landscape(tmp_path / "a.h5", other))
    other = {**drawn(1), "scale": torch.ones(2)}
    assert "scale (2,) instead of ()" in refused(landscape(tmp_path / "b.h5", other))


# Not a direction


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [*KINDS, ".h5"])
def test_not_finite(tmp_path, kind, value):
    direction = {**drawn(1), "scale": torch.tensor(value)}
    path = tmp_path / f"a{kind}"
    path = landscape(path, direction) if kind == ".h5" else written(path, direction)
    assert "not finite" in refused(path) and "scale" in refused(path)


def test_too_large_for_the_weights(tmp_path):
    path = written(tmp_path / "a.npz", {"scale": torch.tensor(1e6)})
    assert read_directions([path], WEIGHTS, 1)[0]["scale"] == 1e6
    assert "not finite, in the model's precision: scale" in refused(path, weights=drawn(0, torch.float16))


@pytest.mark.parametrize("kind", KINDS)
def test_zero(tmp_path, kind):
    path = written(tmp_path / f"a{kind}", {"scale": torch.tensor(0.0), "conv.bias": torch.zeros(4)})
    assert "zero for every parameter" in refused(path)


def test_not_real_numbers(tmp_path):
    for i, array in enumerate([np.array(1j), np.array("text"), np.array(True), np.array(3, "M8[s]")]):
        np.savez(tmp_path / f"{i}.npz", scale=array)
        assert "not of real numbers: scale" in refused(tmp_path / f"{i}.npz")
    for i, tensor in enumerate([torch.ones(4, dtype=torch.complex64), torch.ones(4).to_sparse()]):
        torch.save({"conv.bias": tensor}, tmp_path / f"{i}.pt")
        assert "real numbers: conv.bias" in refused(tmp_path / f"{i}.pt")


# Not such a file


@pytest.mark.parametrize("kind", [*KINDS, ".h5", ".npy", ""])
def test_garbage(tmp_path, kind):
    contents = [b"", b"not it\n" * 50, b"PK\x03\x04" + b"\0" * 500, b"\x89HDF\r\n\x1a\n" + b"\0" * 100, b"\xff" * 99]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}{kind}").write_bytes(content)
        refused(tmp_path / f"{i}{kind}")
    assert "there is no such file" in refused(tmp_path / f"none{kind}")
    assert "there is no such file" in refused(tmp_path)


@pytest.mark.parametrize("kind", [*KINDS, ".h5"])
def test_cut_short(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    landscape(path, drawn(1)) if kind == ".h5" else written(path, drawn(1))
    content = path.read_bytes()
    for length in np.linspace(1, len(content) - 1, 3 if kind == ".h5" else 20).astype(int):
        path.write_bytes(content[:length])
        refused(path)


def test_bytes_changed_in_an_npz(tmp_path):
    path = tmp_path / "a.npz"
    written(path, drawn(1))
    content = bytearray(path.read_bytes())
    at = content.find(drawn(1)["conv.weight"].numpy().tobytes())
    content[at + 5] ^= 1
    path.write_bytes(content)
    assert "CRC" in refused(path)


def test_an_array_called_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(4))
    os.rename(tmp_path / "a.npy", tmp_path / "a.npz")
    refused(tmp_path / "a.npz")


def test_other_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["directions/along_x/scale"] = 1.0
    assert "not one of this program's" in refused(tmp_path / "a.h5")


def test_a_landscape_without_directions(tmp_path):
    layout.create(str(tmp_path / "a.h5"), Grid(Axis(-1, 1, 3)), [Quantity("loss")], {})
    assert "without its directions" in refused(tmp_path / "a.h5")


# Code


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "npz", "pickle as npz"])
def test_code_is_refused_and_does_not_run(tmp_path, kind):
    trace = tmp_path / "it_ran"
    hostile = Malicious(str(trace))
    content = {**drawn(1), "extra": hostile}
    path = tmp_path / ("a.npz" if "npz" in kind else "a.pt")
    if kind == "npz":
        np.savez(path, scale=np.float32(1), extra=np.array([hostile], dtype=object))
    elif "pickle" in kind:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    text = refused(path)
    assert not trace.exists()
    assert "--weights_only" not in text  # it would not help
    if kind in ("zip", "legacy"):
        assert "code that would run" in text and "dictionary of tensors" in text
    with suppress(Exception):  # whoever trusts it runs it
        dict(np.load(path, allow_pickle=True)) if "npz" in kind else torch.load(path, weights_only=False)
    assert trace.exists()
