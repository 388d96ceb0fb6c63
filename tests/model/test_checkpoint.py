"""Checkpoints: read in every usual form, refused in one line, and never run."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from hpc_landscape.errors import UserError
from hpc_landscape.model.checkpoint import find_checkpoints, load_checkpoint, read_parameters

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def network(seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 3))
    model[1].running_mean.normal_()
    model[1].num_batches_tracked.fill_(seed)
    return model


def assert_loaded(path, source: nn.Module, weights_only: bool = True) -> None:
    model = network(99)
    pointers = [p.data_ptr() for p in model.parameters()]
    load_checkpoint(str(path), model, weights_only)
    wanted = source.state_dict()
    assert all(torch.equal(t, wanted[name]) for name, t in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers  # in place


def refused(path, weights_only: bool = True, model: nn.Module | None = None) -> str:
    """The message; the model is as it was."""
    model = network(99) if model is None else model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_checkpoint(str(path), model, weights_only)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    text = str(error.value)
    assert text.startswith(f"--checkpoint {path}: ") and "\n" not in text
    return text


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a", "größe 模型.pt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files(tmp_path, name, legacy):
    source = network(1)
    torch.save(source.state_dict(), tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert_loaded(tmp_path / name, source)


@pytest.mark.parametrize("name", ["a.safetensors", "größe 模型.safetensors"])
def test_safetensors(tmp_path, name):
    source = network(2)
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, str(tmp_path / name))
    assert_loaded(tmp_path / name, source)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_nested(tmp_path, key):
    source = network(3)
    optimizer = torch.optim.SGD(source.parameters(), 0.1, momentum=0.9).state_dict()
    torch.save({"epoch": 7, key: source.state_dict(), "optimizer": optimizer, "best": 0.93}, tmp_path / "a.pt")
    assert_loaded(tmp_path / "a.pt", source)
    torch.save({"outer": 1, "state_dict": {key: source.state_dict(), "epoch": 3}}, tmp_path / "b.pt")
    assert_loaded(tmp_path / "b.pt", source)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net."]
)
def test_prefixes(tmp_path, prefix):
    source = network(4)
    prefixed = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save({"state_dict": prefixed}, tmp_path / "a.pt")
    assert_loaded(tmp_path / "a.pt", source)
    save_file({k: v.contiguous() for k, v in prefixed.items()}, str(tmp_path / "a.safetensors"))
    assert_loaded(tmp_path / "a.safetensors", source)


def test_a_prefix_that_belongs_to_the_model_stays(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.module = network(seed)

    source, model = Wrapped(5), Wrapped(6)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    load_checkpoint(str(tmp_path / "a.pt"), model)
    assert torch.equal(model.module[0].weight, source.module[0].weight)


def test_another_precision_is_converted(tmp_path):
    source = network(7).half()
    torch.save(source.state_dict(), tmp_path / "a.pt")
    model = network(8)
    load_checkpoint(str(tmp_path / "a.pt"), model)
    assert model[0].weight.dtype == torch.float32 and torch.equal(model[0].weight, source[0].weight.float())


# Tied weights


class Tied(nn.Module):
    """Three names for one parameter, and two for a buffer; names that all begin as a prefix does."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "norm": nn.LayerNorm(4), "z": nn.Linear(4, 7)})
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.model["z"].weight = self.model["embed"].weight
        self.model["norm"].register_buffer("b", torch.randn(2))
        self.register_buffer("a", self.model["norm"].b)


@pytest.mark.parametrize("kept", [None, "model.embed.weight", "model.z.weight", "lm_head.weight"])
def test_tied_weights_are_written_once(tmp_path, kept):
    """As safetensors' save_model writes them, or as another choice of the name that stays would."""
    source, model, path = Tied(1), Tied(2), str(tmp_path / "a.safetensors")
    if kept is None:
        save_model(source, path)
    else:
        gone = {"model.embed.weight", "model.z.weight", "lm_head.weight", "a"} - {kept}
        save_file({k: v for k, v in source.state_dict().items() if k not in gone}, path)
    load_checkpoint(path, model)
    assert all(torch.equal(t, source.state_dict()[name]) for name, t in model.state_dict().items())
    assert model.lm_head.weight is model.model["embed"].weight


def test_equal_weights_are_not_tied_ones(tmp_path):
    """A missing key is forgiven for a tie in the model, not for equal values or for a tie in the file."""
    source, model, path = Tied(1), Tied(2), tmp_path / "a.safetensors"
    save_model(source, str(path))
    with torch.no_grad():
        model.lm_head.weight = nn.Parameter(model.model["embed"].weight.clone())
    assert "it lacks" in refused(path, model=model)
    del model.lm_head
    tensors = {k: v for k, v in source.state_dict().items() if k not in ("a", "model.norm.weight", "lm_head.weight")}
    save_file({k: v.clone() for k, v in tensors.items()}, str(path))
    assert "it lacks model.norm.weight" in refused(path, model=model)


# Read


def test_reading_changes_nothing(tmp_path):
    source, model = network(1).half(), network(2)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "a.pt")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    tensors = read_parameters(str(tmp_path / "a.pt"), model, names)
    assert all(torch.equal(t, tensors[k]) and t.dtype == tensors[k].dtype for k, t in source.named_parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_read_parameters(tmp_path):
    source, model = network(1), network(2)
    parameters = dict(source.named_parameters())
    torch.save({**source.state_dict(), **parameters}, tmp_path / "a.pt")  # ones that want gradients
    names = [name for name, _ in model.named_parameters()][::-1]
    found = read_parameters(str(tmp_path / "a.pt"), model, names)
    assert list(found) == names and len(names) == 6
    assert all(torch.equal(t, parameters[name]) and not t.requires_grad for name, t in found.items())


def test_read_parameters_of_a_tied_model(tmp_path):
    source = Tied(1)
    save_model(source, str(tmp_path / "a.safetensors"))
    names = [name for name, _ in source.named_parameters()]
    found = read_parameters(str(tmp_path / "a.safetensors"), Tied(2), names)
    assert "model.embed.weight" in found and all(torch.equal(t, found[name]) for name, t in source.named_parameters())


@pytest.mark.parametrize("content", [None, b"garbage", {}, {"weight": torch.ones(2)}, nn.Linear(2, 2)])
def test_messages_name_the_option(tmp_path, content):
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    for read in (load_checkpoint, lambda *a, **k: read_parameters(*a, [], **k)):
        with pytest.raises(UserError) as error:
            read(str(path), network(1), option="--trajectory")
        assert str(error.value).startswith(f"--trajectory {path}: ") and "--checkpoint" not in str(error.value)


def test_keys_that_are_no_names(tmp_path):
    torch.save({0: torch.ones(2), 1: torch.ones(3)}, tmp_path / "a.pt")
    assert "holds no state dict" in refused(tmp_path / "a.pt")


# Found


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Touches files by name, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)

    def touch(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    return touch


EPOCHS = ["epoch1.pt", "epoch2.pt", "epoch9.pth", "epoch10.pt", "epoch10b.safetensors", "epoch0100.pt"]


def test_a_directory_in_natural_order(files):
    files(*(f"run/{name}" for name in EPOCHS[::-1]), "run/log.txt", "run/.hidden.pt", "run/sub/epoch3.pt", "run/d.pt/a")
    for spec in ("run", "run/"):
        assert find_checkpoints(spec, "--trajectory") == [f"run/{name}" for name in EPOCHS]


def test_a_glob_in_natural_order(files):
    files(
        *(f"run/{name}" for name in EPOCHS), "run/log.txt", "run/epoch5.pt/inside", "run2/epoch1.pt", "run10/epoch0.pt"
    )
    wanted = ["run/epoch1.pt", "run/epoch2.pt", "run/epoch10.pt", "run/epoch0100.pt"]
    assert find_checkpoints("run/*.pt", "--trajectory") == wanted
    assert find_checkpoints("run/epoch?.p*", "--to") == ["run/epoch1.pt", "run/epoch2.pt", "run/epoch9.pth"]
    assert find_checkpoints("run[0-9]*/*.pt", "--to") == ["run2/epoch1.pt", "run10/epoch0.pt"]
    assert "run10/epoch0.pt" in find_checkpoints("**/*.pt", "--to")


def test_numbers_in_folders_and_equal_numbers(files):
    files("r10/a.pt", "r9/a.pt", "r9/a01.pt", "r9/a1.pt", "r9/a001.pt")
    assert find_checkpoints("r*/*.pt", "-") == ["r9/a001.pt", "r9/a01.pt", "r9/a1.pt", "r9/a.pt", "r10/a.pt"]


def test_a_list_keeps_its_order(files):
    files("b10.pt", "b2.pt", "run/a2.pt", "run/a1.pt", "x.ckpt")
    assert find_checkpoints("b10.pt, run ,x.ckpt,,b2.pt,", "--to") == [
        "b10.pt",
        "run/a1.pt",
        "run/a2.pt",
        "x.ckpt",
        "b2.pt",
    ]


def test_each_file_once(files, tmp_path):
    files("run/a1.pt", "run/a2.pt")
    assert find_checkpoints("run/a2.pt,run", "--to") == ["run/a2.pt", "run/a1.pt"]
    assert find_checkpoints(f"run/a1.pt,./run/a1.pt,{tmp_path}/run/a1.pt,run/*", "--to") == ["run/a1.pt", "run/a2.pt"]


def test_odd_names(files):
    files("größe 模型/ß 2.pt", "größe 模型/ß 10.pt", "lr=0.1,seed=3.pt", "run[1]/a.pt", "a[1].pt", "a1.pt", "٢.pt")
    assert find_checkpoints("größe 模型", "--to") == ["größe 模型/ß 2.pt", "größe 模型/ß 10.pt"]
    assert find_checkpoints("größe 模型/ß*.pt,a1.pt", "--to")[:2] == ["größe 模型/ß 2.pt", "größe 模型/ß 10.pt"]
    assert find_checkpoints("lr=0.1,seed=3.pt", "--to") == ["lr=0.1,seed=3.pt"]
    assert find_checkpoints("run[1]", "--to") == ["run[1]/a.pt"]
    assert find_checkpoints("a[1].pt", "--to") == ["a[1].pt"]
    assert find_checkpoints("?.pt", "--to") == ["٢.pt"]


@pytest.mark.parametrize(
    "spec, where, what",
    [
        ("none.pt", "none.pt: ", "no such file"),
        ("a.pt,none.pt", "none.pt: ", "no such file"),
        ("run/none,a.pt", "run/none: ", "no such file"),
        ("run/*.pt", "run/*.pt: ", "matches no file"),
        ("a.pt,ru[n]", "ru[n]: ", "matches no file"),  # a directory alone
        ("run", "run: ", "holds no .pt, .pth, .safetensors file"),
        ("", "", "names no checkpoint"),
        (" , ,", "", "names no checkpoint"),
    ],
)
def test_nothing_found(files, spec, where, what):
    files("a.pt", "run/log.txt")
    with pytest.raises(UserError) as error:
        find_checkpoints(spec, "--trajectory")
    text = str(error.value)
    assert what in text and "\n" not in text
    assert text.startswith(f"--trajectory {where}" if where else "--trajectory: ")


# What does not fit


def test_it_says_which_keys(tmp_path):
    there = network(1).state_dict()
    there["extra.weight"] = torch.zeros(2)
    del there["3.bias"]
    torch.save(there, tmp_path / "a.pt")
    text = refused(tmp_path / "a.pt")
    assert "does not fit the model: it lacks 3.bias; the model has no extra.weight" in text


def test_it_says_which_shapes(tmp_path):
    torch.save(network(1, width=5).state_dict(), tmp_path / "a.pt")
    text = refused(tmp_path / "a.pt")
    assert "belongs to another architecture" in text
    assert "0.weight (5, 2, 3, 3) instead of (4, 2, 3, 3)" in text and "and 4 more" in text


def test_long_lists_are_cut(tmp_path):
    torch.save({f"layer{i}": torch.zeros(1) for i in range(1000)}, tmp_path / "a.pt")
    text = refused(tmp_path / "a.pt")
    assert "layer0, layer1, layer2 and 997 more" in text and len(text) < 400


# Not a checkpoint


def test_no_such_file(tmp_path):
    assert "there is no such file" in refused(tmp_path / "none.pt")
    assert "it is no file" in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not a checkpoint at all\n" * 50,
        b"PK\x03\x04" + b"\0" * 500,
        b"\x80\x02",
        b"\x80\x04\x95\xff",
        b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
        bytes(range(256)) * 20,
        b"\xff" * 100,
        b"{}",
        np.random.default_rng(0).bytes(5000),
        np.random.default_rng(1).bytes(17),
    ],
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_garbage(tmp_path, content, suffix, weights_only):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    text = refused(path, weights_only)
    assert "code that would run" not in text  # it is no checkpoint: nobody should be told to trust it


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_short(tmp_path, legacy):
    torch.save(network(1).state_dict(), tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    content = (tmp_path / "whole.pt").read_bytes()
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        (tmp_path / "a.pt").write_bytes(content[:length])
        refused(tmp_path / "a.pt")
    save_file({k: v.contiguous() for k, v in network(1).state_dict().items()}, str(tmp_path / "w.safetensors"))
    content = (tmp_path / "w.safetensors").read_bytes()
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        (tmp_path / "a.safetensors").write_bytes(content[:length])
        refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        5,
        "text",
        {"epoch": 3},
        {"state_dict": {}},
        {"state_dict": 5},
        torch.zeros(3),
        [torch.zeros(3)],
        {"a": torch.zeros(2), "b": 3},
    ],
)
def test_a_checkpoint_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert "holds no state dict" in refused(tmp_path / "a.pt")


def test_a_whole_zip_that_is_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    refused(tmp_path / "a.pt")


# Code in a checkpoint


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_code_is_refused_and_does_not_run(tmp_path, kind, suffix):
    trace, path = tmp_path / "it_ran", tmp_path / f"a{suffix}"
    content = {"state_dict": network(1).state_dict(), "extra": Malicious(str(trace))}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    text = refused(path)
    if kind != "pickle":  # a bare pickle is no checkpoint anyway
        assert "code that would run" in text and "--weights_only false" in text
    assert not trace.exists()


def test_a_pickled_model_needs_trust(tmp_path):
    source = network(1)
    torch.save(source, tmp_path / "a.pt")
    assert "code that would run" in refused(tmp_path / "a.pt")
    assert_loaded(tmp_path / "a.pt", source, weights_only=False)
    torch.save({"model": source, "epoch": 3}, tmp_path / "b.pt")
    assert_loaded(tmp_path / "b.pt", source, weights_only=False)


def test_trusted_code_that_is_not_there(tmp_path):
    """A pickled class whose module is missing here."""
    (tmp_path / "a.pt").write_bytes(b"\x80\x02cno_such_module_at_all\nThing\nq\x00)\x81q\x01.")
    assert "no_such_module_at_all" in refused(tmp_path / "a.pt", weights_only=False)
