"""Which part of what a file holds is the model's: nested state dicts, prefixes, the names of wrappers and adapters."""

from __future__ import annotations

import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of DDP, compile, FSDP
ADAPTER = re.compile(r"lora_|adapter|ia3_|prompt_|vera_|hada_|lokr_|oft_|modules_to_save")  # PEFT's
DEEPEST = 8  # mapping within mapping: one may hold itself
MOST_PREFIXES = 8  # of one mapping that are worth a look


def unwrapped(name: str) -> str:
    """A name without the parts that wrappers put in."""
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


class Names:
    """A model's names, and what files call them.

    A file's name may lack, or have, the parts of wrappers; lack a prefix that all of the model's names share; and lack
    what PEFT leaves out of an adapter's file (the adapter's name), or puts around a layer (base_layer).
    """

    def __init__(self, expected: Mapping[str, Any], modules: Iterable[str] = (), adapter: str = "default"):
        self.expected = expected
        self.adapter = adapter
        self.ignored: list[str] = []  # patterns of names that files had once
        self._known: dict[str, str] = {}
        plain = {key: unwrapped(key).split(".") for key in expected}
        own = (adapter, "modules_to_save", "base_layer")
        forms = [plain, {key: [word for word in words if word not in own] for key, words in plain.items()}]
        shared = len(os.path.commonprefix([words[:-1] for words in plain.values()])) if plain else 0
        for n in range(shared + 1):
            for form in forms:
                for key, words in form.items():
                    self._known.setdefault(".".join(words[n:]), key)
        self._modules = {unwrapped(name): name for name in modules}  # the innermost of those that are one to a file
        self.tops = {words[0] for words in plain.values()}

    @classmethod
    def of(cls, model: nn.Module) -> Names:
        try:
            expected = model.state_dict(keep_vars=True)  # tied tensors are one object
        except TypeError:  # an own one
            expected = model.state_dict()
        active = getattr(model, "active_adapter", "default")
        names = (name for name, _ in model.named_modules())
        found = cls(expected, names, active if isinstance(active, str) else "default")
        found.ignored = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])  # transformers' models
        return found

    def __call__(self, words: list[str]) -> str:
        """The model's name of a file's: its own, or a place in the same module, which a hook may know."""
        if (name := self._known.get(".".join(words))) is not None:
            return name
        for n in range(len(words) - 1, -1, -1):
            if (module := self.module(words[:n])) is not None:
                return ".".join([*filter(None, [module]), *words[n:]])
        return ".".join(words)

    def module(self, words: list[str]) -> str | None:
        """The model's name of a module."""
        return self._modules.get(".".join(words))

    def prefixes(self, mapping: Mapping[str, Any], split: Mapping[str, list[str]]) -> list[tuple[str, ...]]:
        """Prefixes of a mapping's names after which some are the model's; those first that leave the most in shape."""
        found: Counter[tuple[str, ...]] = Counter({(): 0})
        for key, words in split.items():
            for n in range(len(words)):
                if (name := self._known.get(".".join(words[n:]))) is not None:
                    found[tuple(words[:n])] += 1000 if same_shape(mapping[key], self.expected[name]) else 1
        shared = os.path.commonprefix([words[:-1] for words in split.values()])
        return sorted({*found, tuple(shared)}, key=lambda p: (-found[p], len(p), p))[:MOST_PREFIXES]


@dataclass
class Part:
    """One network's tensors in a file. where: keys that lead to the mapping; prefix: of its names, taken off.

    tensors: by the model's names, and what else the mapping has under the prefix; others: the names it has beside.
    """

    where: tuple[str, ...]
    prefix: tuple[str, ...]
    tensors: OrderedDict[str, Any]
    others: list[str]
    names: Names
    missing: list[str] = field(init=False)
    shapes: list[str] = field(init=False)  # that differ, in words
    unknown: list[str] = field(init=False)

    def __post_init__(self) -> None:
        expected, there = self.names.expected, self.tensors
        tied = {id(t): there[key] for key, t in expected.items() if key in there and isinstance(t, Tensor)}
        for key, tensor in expected.items():  # safetensors' save_model writes one of those tied alone
            if key not in there and id(tensor) in tied:
                there[key] = tied[id(tensor)]
        self.missing = [key for key in expected if key not in there]
        self.unknown = [key for key in there if key not in expected]
        self.shapes = [
            f"{key} {_shape(there[key])} instead of {tuple(wanted.shape)}"
            for key, wanted in expected.items()
            if key in there and isinstance(wanted, Tensor) and not same_shape(there[key], wanted)
        ]

    @property
    def name(self) -> str:
        """As --checkpoint_key calls it; "." is the file itself."""
        return ".".join((*self.where, *self.prefix)) or "."

    @property
    def known(self) -> list[str]:
        """The model's names that it holds."""
        return [key for key in self.names.expected if key in self.tensors]

    @property
    def foreign(self) -> list[str]:
        """Unknown names of something that is not in the model at all, or is no more."""
        tops = self.names.tops
        numbered = any(top.isdecimal() for top in tops)  # layers in a row: one more is another model
        firsts = {key: unwrapped(key).split(".")[0] for key in self.unknown}
        apart = {key for key, top in firsts.items() if top not in tops and not (numbered and top.isdecimal())}
        return [key for key in self.unknown if key in apart or any(re.search(p, key) for p in self.names.ignored)]

    @property
    def exact(self) -> bool:
        """Whether it is the whole model, name by name."""
        return not self.missing and not self.shapes and len(self.foreign) == len(self.unknown)

    @property
    def partial(self) -> bool:
        """Whether it is all that was trained, or an adapter, or all but an adapter, and nothing else."""
        if self.shapes or self.unknown or not self.known:
            return False
        expected = self.names.expected
        trained = {key for key, t in expected.items() if isinstance(t, nn.Parameter) and t.requires_grad}
        parameters = {key for key in self.known if isinstance(expected[key], nn.Parameter)}
        lacking = [key for key in self.missing if ADAPTER.search(key)]
        ours = [key for key in lacking if self.names.adapter in key.split(".")]
        of_peft = any(self.names.adapter in key.split(".") for key in self.known)  # then others may lack
        whole = all(map(ADAPTER.search, self.known)) and not (ours if of_peft else lacking)
        return whole or len(lacking) == len(self.missing) or parameters == trained

    @property
    def odd(self) -> list[str]:
        """Names of tensors that are of another kind than the model's: sparse, quantized, complex."""
        return [key for key in self.known if isinstance(t := self.tensors[key], Tensor) and self._odd(key, t)]

    def _odd(self, key: str, t: Tensor) -> bool:
        wanted = self.names.expected[key]
        if not isinstance(wanted, Tensor):
            return False
        return (
            t.layout != wanted.layout
            or t.is_meta
            or t.is_quantized != wanted.is_quantized
            or (t.is_complex() and not wanted.is_complex())
        )

    def without(self, names: Iterable[str]) -> OrderedDict[str, Any]:
        """The tensors, but for these names."""
        kept = OrderedDict((key, t) for key, t in self.tensors.items() if key not in set(names))
        if (metadata := getattr(self.tensors, "_metadata", None)) is not None:
            vars(kept)["_metadata"] = metadata
        return kept

    def same(self, other: Part) -> bool:
        """Whether both give the model the same values."""
        a, b = self.tensors, other.tensors
        return all(a[k] is b[k] if k in a and k in b else k not in a and k not in b for k in self.names.expected) or (
            set(self.known) == set(other.known) and all(_equal(a[key], b[key]) for key in self.known)
        )


def same_shape(value: object, wanted: object) -> bool:
    """Whether the value has the shape that is wanted; what is no tensor in the model may be anything."""
    return not isinstance(wanted, Tensor) or (isinstance(value, Tensor) and value.shape == wanted.shape)


def _shape(value: object) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _equal(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.layout != torch.strided or a.is_meta or b.is_meta:
        return a is b
    return a.layout == b.layout and a.shape == b.shape and bool(torch.equal(a, b))


def pure(mapping: Mapping[Any, Any]) -> bool:
    """Whether all in it are tensors by name."""
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in mapping.items())


def mappings(content: object) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every mapping of names to tensors in a file's content, with the keys that lead to it; the outer ones first."""
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    for _ in range(DEEPEST):
        inner: list[tuple[tuple[str, ...], Any]] = []
        for where, thing in level:
            if isinstance(thing, nn.Module):
                thing = thing.state_dict()
            if id(thing) in seen or not isinstance(thing, (Mapping, list, tuple)):
                continue
            seen.add(id(thing))
            items = thing.items() if isinstance(thing, Mapping) else enumerate(thing)
            inner += [((*where, str(key)), value) for key, value in items if not isinstance(value, Tensor)]
            if isinstance(thing, Mapping) and any(isinstance(k, str) and isinstance(v, Tensor) for k, v in items):
                yield where, thing
        level = inner


def parts(content: object, names: Names) -> list[Part]:
    """What in a file's content may be the model's, the likeliest first of each mapping."""
    return [
        part(mapping, where, prefix, names, split)
        for where, mapping in mappings(content)
        for split in [_split(mapping)]
        for prefix in names.prefixes(mapping, split)
    ]


def part(
    mapping: Mapping[str, Any],
    where: tuple[str, ...],
    prefix: tuple[str, ...],
    names: Names,
    split: Mapping[str, list[str]],
) -> Part:
    """The part of a mapping under a prefix, by the model's names, with the versions of its modules."""
    tensors: OrderedDict[str, Any] = OrderedDict()
    others, n = [], len(prefix)
    for key, words in split.items():
        if tuple(words[:n]) != prefix or len(words) == n:
            others.append(key)
            continue
        value = mapping[key]
        name = key if not prefix and key in names.expected else names(words[n:])
        tensors[name] = value.detach() if isinstance(value, Tensor) else value
    metadata = getattr(mapping, "_metadata", None)
    if isinstance(metadata, Mapping):
        versions = {
            names.module(words[n:]): value
            for key, value in metadata.items()
            if isinstance(key, str) and isinstance(value, Mapping)
            for words in [[word for word in unwrapped(key).split(".") if word]]
            if tuple(words[:n]) == prefix
        }
        vars(tensors)["_metadata"] = {key: value for key, value in versions.items() if key is not None}
    return Part(where, prefix, tensors, others, names)


def by_model_names(tensors: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by known names, as far as these are theirs without prefixes and wrappers."""
    names, split = Names(known), _split(tensors)
    found = part(tensors, (), names.prefixes(tensors, split)[0], names, split)
    return dict(found.tensors) | {key: tensors[key] for key in found.others}


def _split(mapping: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of what may be a model's, in parts; without those of wrappers, unless two would then be one."""
    keys = [k for k, v in mapping.items() if isinstance(k, str) and (isinstance(v, Tensor) or "_extra_state" in k)]
    plain = {key: unwrapped(key) for key in keys}
    if len(set(plain.values())) < len(plain) or "" in plain.values():
        plain = {key: key for key in keys}
    return {key: name.split(".") for key, name in plain.items()}
