"""The house: who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = "hpc_landscape"
ROOT = Path(__file__).parents[1] / PACKAGE

# Part -> floor. Where parts of one floor need each other, the order among them is its decimal: 1.1 may import 1.0.
FLOORS = {
    "errors": 0,
    "console": 0,
    "words": 0,
    "objects": 0.1,  # raise UserError
    "registry": 0.2,  # finds objects
    "kinds": 0.3,  # tables of registries
    "cite": 0.4,
    "libraries": 2.1,
    "config": 1.0,
    "grid": 1.0,
    "options": 1.0,
    "help": 1.1,
    "progress": 0.9,
    "ranks": 1.0,
    "model": 1.1,
    "model_interface": 1.2,  # loss-landscapes' names for it
    "data": 1.2,  # is what a model is called with
    "metrics": 1.3,  # are of a model, over data
    "problems": 2.0,
    "store": 2.0,
    "directions": 2.1,  # may be read from a file
    "setting_groups": 2.15,
    "settings": 2.2,  # asks a kind of direction what goes with it
    "arguments": 2.3,
    "testing": 3,
    "evaluate": 3,
    "view": 3,
    "schedule": 1.0,
    "campaign": 4.0,
    "report": 4.1,  # tells of a plan
    "evaluation": 4.15,
    "run": 4.2,  # the pipeline
    "landscape": 4.2,
    "environment": 4.5,
    "commands": 4.9,  # that read stored files
    "cli": 5,
    "__main__": 6,
}
LONGEST = 400
LONGER: set[str] = set()


@functools.cache
def modules() -> list[str]:
    """Dotted names below the package: "grid", "store.layout", "store" for its __init__."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")) if module else ROOT
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def imports(module: str, everywhere: bool) -> tuple[str, ...]:
    """What a module imports, by full name; everywhere: inside functions too, else when it is imported itself."""
    path = file_of(module)
    package = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    if path.name != "__init__.py":
        package = package[:-1]

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not everywhere and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from walk(child)

    found: list[str] = []
    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{name}.{alias.name}"
                ours = inner.removeprefix(f"{PACKAGE}.")
                found.append(inner if name.startswith(PACKAGE) and ours in modules() else name)
    return tuple(found)


def ours(names: Iterable[str]) -> list[str]:
    return [n.removeprefix(PACKAGE).removeprefix(".") for n in names if n == PACKAGE or n.startswith(f"{PACKAGE}.")]


def part(module: str) -> str:
    return module.split(".")[0]


def closure(module: str, everywhere: bool = False) -> set[str]:
    """Everything that importing a module imports, packages on the way included."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        found = imports(name, everywhere)
        todo += [n for n in ours(found) if n] + ([part(name)] if "." in name else [])
        seen |= {f"!{n.split('.')[0]}" for n in found if not n.startswith(PACKAGE)}
    return seen


def test_there_is_a_house():
    assert {"grid", "store.layout", "evaluate.evaluator", "cli", ""} <= set(modules())
    assert "hpc_landscape.grid" in list(imports("store.layout", False))  # the reader of imports works
    assert "h5py" in list(imports("store.layout", False)) and "mpi4py" not in list(imports("ranks.comm", False))
    assert "mpi4py" in list(imports("ranks.comm", True))


@pytest.mark.parametrize("module", [m for m in modules() if m])
def test_nothing_is_imported_from_above(module):
    """Imports inside functions count as well. The package itself (its version) is nobody's floor."""
    assert part(module) in FLOORS, f"{module} has no floor: give it one here and in DESIGN.md"
    for other in ours(imports(module, everywhere=True)):
        if other and part(other) != part(module):
            assert FLOORS[part(other)] < FLOORS[part(module)], f"{module} -> {other}"


def test_the_package_itself_imports_nothing():
    assert not [n for n in closure("") if n.startswith("!") and n not in ("!__future__", "!importlib", "!typing")]
    assert [n for n in closure("") if not n.startswith("!")] == [""]


def test_no_circles():
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in ours(imports(module, everywhere=True)):
                if other:
                    visit(other, [*path, module])
            done.add(module)

    for module in modules():
        if module:
            visit(module, [])


def test_only_comm_imports_mpi4py():
    found = [m for m in modules() if any(n.split(".")[0] == "mpi4py" for n in imports(m, everywhere=True))]
    assert found == ["ranks.comm"]
    assert not [m for m in modules() if any(n.startswith("mpi4py") for n in imports(m, everywhere=False))]


COLLECTIVE = {"allgather", "node_allgather", "bcast", "bcast_array", "barrier", "raise_on_all_ranks", "from_root"}
COLLECTIVE |= {"least", "most", "to_root", "first_rank", "first_text", "on_all"}
TOGETHER = {"run", "campaign", "ranks"}  # where all ranks come by


def collectives(module: str) -> list[str]:
    """The calls in a module for which all ranks have to come."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    known = {*COLLECTIVE, "check_equal"}
    return [
        f"{call.attr}, line {call.lineno}" for call in calls if isinstance(call, ast.Attribute) and call.attr in known
    ]


def test_leaves_call_no_collectives():
    """A leaf may be called under conditions that hold on one rank or node alone."""
    assert collectives("campaign.data") and collectives("ranks.shared")  # the reader of calls works
    found = {m: calls for m in modules() if part(m) not in TOGETHER and (calls := collectives(m))}
    assert not found, found


def test_the_whole_of_the_settings_stops_at_the_run():
    """A room is given its own group of them."""

    def names(module: str) -> bool:
        tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
        return any(isinstance(node, ast.Name) and node.id == "Settings" for node in ast.walk(tree))

    assert {m for m in modules() if names(m)} == {"settings", "arguments", "cli", "run", "testing"}


@pytest.mark.parametrize("module", [m for m in modules() if part(m) == "view"])
def test_view_needs_neither_torch_nor_mpi(module):
    direct = {n.split(".")[0] for n in imports(module, everywhere=True)}
    assert not direct & {"torch", "mpi4py"}
    assert not closure(module) & {"!torch", "!mpi4py", "!matplotlib", "!plotly"}


@pytest.mark.parametrize(
    "module",
    ["settings", "arguments", "cli", "__main__", "grid", "errors", "progress", "ranks.comm", "directions.registry"],
)
def test_the_way_to_help_needs_nothing_heavy(module):
    heavy = {"!torch", "!mpi4py", "!matplotlib", "!h5py", "!scipy", "!yaml", "!tqdm"}
    assert not closure(module) & heavy


@pytest.mark.parametrize("module", modules())
def test_optional_packages_are_imported_where_they_are_needed(module):
    optional = {
        "matplotlib",
        "plotly",
        "scipy",
        "safetensors",
        "transformers",
        "torchvision",
        "gymnasium",
        "xarray",
        "curvlinops",
    }
    assert not {n.split(".")[0] for n in imports(module, everywhere=False)} & optional


def test_no_module_is_long():
    long = {m: n for m in modules() if (n := len(file_of(m).read_text(encoding="utf-8").splitlines())) > LONGEST}
    assert set(long) == LONGER, long


SCREEN = 60  # lines


def test_functions_fit_a_screen():
    long = []
    for module in modules():
        tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        long += [f"{module}.{f.name}" for f in functions if f.end_lineno - f.lineno >= SCREEN]
    assert not long
