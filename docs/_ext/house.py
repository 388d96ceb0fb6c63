"""The structure of the code, read from it: the floors of tests/test_house.py, and what each file says that it is."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hpc_landscape"


def floors() -> dict[str, float]:
    """The floor of each room, as tests/test_house.py has them."""
    tree = ast.parse((ROOT / "tests" / "test_house.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return ast.literal_eval(node.value)
    raise LookupError("tests/test_house.py has no FLOORS")


def diagram() -> str:
    """The floors, the highest first; a floor's rooms in the order in which one may import another."""
    found = sorted(floors().items(), key=lambda pair: pair[1])
    lines = []
    for floor in sorted({int(height) for _, height in found}, reverse=True):
        rooms = [f"{room}/" if (PACKAGE / room).is_dir() else room for room, height in found if int(height) == floor]
        rows = ["   ".join(rooms[at : at + 6]) for at in range(0, len(rooms), 6)]
        lines += [f"{floor if row == rows[0] else ' '}   {row}" for row in rows]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def files(room: str) -> str:
    """The files of a room, with the first sentence of each."""
    paths = sorted(path for path in (PACKAGE / room).rglob("*.py") if path.name != "__init__.py")
    return "".join(f"- `{path.relative_to(PACKAGE / room)}`: {_first(path)}\n" for path in paths)


def rooms() -> list[str]:
    """The rooms of several files."""
    return [room for room in floors() if (PACKAGE / room).is_dir()]


def _first(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.partition("\n\n")[0].replace("\n", " ")
