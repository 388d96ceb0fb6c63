"""What developers are told is what CI does; and no more is asked for than is used."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import hpc_landscape

ROOT = Path(__file__).parents[1]
LINTERS = ("ruff", "mypy", "shellcheck")
NOT_IMPORTED = {"mpich", "ruff", "mypy", "ipykernel", "pytest-xdist"}  # commands, a kernel, a plug-in
NOT_IMPORTED |= {"furo", "myst-parser", "sphinx-copybutton"}  # named in docs/conf.py


def in_ci() -> list[str]:
    """The linters' commands in .ci/run's lint."""
    body = re.search(r"^lint\(\) \{\n(.*?)^\}", (ROOT / ".ci/run").read_text(), re.MULTILINE | re.DOTALL)
    assert body is not None
    lines = [line.strip().removeprefix("in_env lint ") for line in body[1].splitlines()]
    return [line for line in lines if line.startswith(LINTERS)]


def test_before_a_commit_the_same_is_run_as_in_ci():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = repo["hooks"]
    words = [shlex.split(hook["entry"]) for hook in hooks]
    commands = [command[-1] if command[:2] == ["bash", "-c"] else " ".join(command) for command in words]
    assert commands == in_ci() and len(commands) == 4
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


def test_contributors_are_told_what_ci_runs():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert " && ".join(in_ci()) in text.splitlines()


def test_contributors_are_told_of_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [path.parent.name for path in (ROOT / "hpc_landscape").glob("*/__init__.py")]
    assert {"model", "store"} <= set(rooms) and not [room for room in rooms if f"`{room}/`" not in text]


def test_every_extra_is_of_something_that_is_imported():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {name for extra in extras.values() for text in extra for name in re.findall(r"^[\w-]+", text)}
    folders = ("hpc_landscape", "tests", "examples", "benchmarks", "docs", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in ("", ".py", ".ipynb")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    imported = set(re.findall(r"""(?:^|[\s"'])(?:import|from) +(\w+)""", text))
    imported |= set(re.findall(r"importorskip\([\"'](\w+)", text))
    assert {"scipy", "ruff", "hpc_landscape"} <= wanted and "torch" in imported
    assert not wanted - NOT_IMPORTED - imported


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["title"] == "hpc_landscape" and citation["authors"]
    assert citation["version"] == hpc_landscape.__version__
