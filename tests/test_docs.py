"""The documentation: its blocks have marks, its pages are found, and what is made from the code misses nothing."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hpc_landscape import commands
from hpc_landscape.kinds import KINDS, METRICS
from hpc_landscape.settings import OPTIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SCRIPT = ROOT / ".ci" / "docs"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("docs_runner", str(SCRIPT))
    spec = importlib.util.spec_from_loader("docs_runner", loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_runner"] = module
    write, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no cache beside a script
    loader.exec_module(module)
    sys.dont_write_bytecode = write
    return module


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    sys.path.insert(0, str(DOCS / "_ext"))
    import reference

    return reference


def test_every_block_of_code_has_its_mark():
    done = subprocess.run([SCRIPT, "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"\d+ pages: \d+ blocks are run, \d+ are files, \d+ are not run, \d+ are no code\n", done.stdout
    )


PAGE = """
<!-- ci: run -->
```bash
cat <<'END'
~~~
<!-- ci: of the body -->
```

- in a list

  <!-- ci: file a/b.py -->
  ```python
  if True:
      print(1)
  ```

~~~~ text
```
~~~
~~~~
<!-- ci: not run: it needs a cluster -->
````yaml
```
````
``` not a fence ``` but code
"""


def test_blocks_are_what_markdown_says(runner):
    found = runner.blocks(Path("page.md"), PAGE)
    assert [(block.line, block.language, block.mark) for block in found] == [
        (3, "bash", "run"),
        (12, "python", "file a/b.py"),
        (17, "text", None),
        (22, "yaml", "not run: it needs a cluster"),
    ]
    assert [block.body for block in found] == [
        "cat <<'END'\n~~~\n<!-- ci: of the body -->\n",
        "if True:\n    print(1)\n",
        "```\n~~~\n",
        "```\n",
    ]
    assert not [said for block in found if (said := runner.fault(block))]


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nls\n```",  # no mark
        "<!-- ci: run -->\n\n```bash\nls\n```",  # not on the line before
        "<!-- ci: run -->\ntext",
        "text <!-- ci: run -->\n```bash\nls\n```",
        "<!-- ci: run -->\n```bash\nls",  # never closed
        "<!-- ci: run -->\n```sh\nls\n```",
        "```console\n$ ls\n```",
        "```{code-block} python\nprint()\n```",
        "<!-- ci: run -->\n```yaml\na: 1\n```",
        "<!-- ci: runs -->\n```bash\nls\n```",
        "<!-- ci: not run -->\n```bash\nls\n```",
        "<!-- ci: not run: -->\n```bash\nls\n```",
        "<!-- ci: file ../x -->\n```toml\na = 1\n```",
        "<!-- ci: file /x -->\n```toml\na = 1\n```",
        "<!-- ci: file -->\n```toml\na = 1\n```",
    ],
)
def test_what_is_not_marked_as_it_should_be_is_said(runner, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{text}\n")
    with pytest.raises(runner.Wrong, match=r"page\.md:\d+: "):
        runner.checked([page])


def test_blocks_are_run_in_order_and_the_first_failure_ends_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- ci: file in/a.py -->\n```python\nVALUE = 3\n```\n"
        "<!-- ci: run -->\n```bash\npython -c 'import sys; print(sys.executable)' > python\necho 1 | cat > one\n```\n"
        "<!-- ci: run -->\n```python\nfrom pathlib import Path\nimport sys\nsys.path.append('in')\nimport a\n"
        "Path('three').write_text(f'{a.VALUE}')\nassert Path('python').read_text().strip() == sys.executable\n```\n"
        "<!-- ci: run -->\n```bash\nfalse | true\ntouch never\n```\n"
        "<!-- ci: run -->\n```bash\ntouch never\n```\n"
    )
    done = subprocess.run([sys.executable, SCRIPT, "run", tmp_path / "x" / "y", page], capture_output=True, text=True)
    assert done.returncode == 1 and f"exit 1: {page}:20" in done.stderr, done
    assert [line.split()[2] for line in done.stdout.splitlines()] == [f"{page}:{line}" for line in (6, 11, 20)]
    names = {path.name for path in (tmp_path / "x" / "y").iterdir()}
    assert {"in", "one", "python", "three"} <= names and "never" not in names


SITE = {
    "index.html": '<a href="b/c.html#there">x</a> <a href="b/">x</a> <img src="p%20q.png"> <a href="#">x</a>'
    '<a href="https://example.org/a?b=c#d">x</a> <a href="mailto:a@b.org">x</a><link href="s.css" rel="stylesheet">',
    "b/index.html": '<a href="../index.html">x</a><img src="data:image/png;base64,AA">',
    "b/c.html": '<p id="there"></p>',
    "p q.png": "",
    "s.css": "a { background: url('data:image/svg+xml;x') }",
}


@pytest.mark.parametrize(
    "page, text, wrong",
    [
        ("x.html", "", None),
        ("x.html", '<a href="gone.html">', "x.html: gone.html is not there"),
        ("x.html", '<a href="b/c.html#gone">', "b/c.html#gone has no such anchor"),
        ("x.html", '<a href="#gone">', "#gone has no such anchor"),
        ("x.html", '<img src="gone.png">', "gone.png is not there"),
        ("x.html", '<a href="../outside.html">', "../outside.html is not there"),
        ("x.html", '<script src="https://example.org/x.js"></script>', "is loaded from elsewhere"),
        ("x.html", '<script src="//example.org/x.js"></script>', "is loaded from elsewhere"),
        ("x.html", '<link rel="stylesheet" href="http://example.org/x.css">', "is loaded from elsewhere"),
        ("x.html", '<a href="https://example">', "is no link"),
        ("x.html", '<a href="https://example.org/a b">', "is no link"),
        ("x.html", '<a href="https://example.org/a).">', "is no link"),
        ("x.html", '<a href="javascript:x()">', "is no link"),
        ("x.css", "@import 'https://example.org/x.css';", "is loaded from elsewhere"),
        ("x.css", "a { src: url(//example.org/x.woff) }", "is loaded from elsewhere"),
    ],
)
def test_links_of_the_site_are_followed(tmp_path, page, text, wrong):
    site = tmp_path / "site"
    for name, content in {**SITE, page: text}.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
    (tmp_path / "outside.html").write_text("")
    done = subprocess.run([SCRIPT, "links", site], capture_output=True, text=True)
    assert done.returncode == (wrong is not None) and (wrong or "") in done.stderr, done
    if wrong is None:
        assert done.stdout.splitlines()[:2] == ["https://example.org/a?b=c#d", "mailto:a@b.org"]


# Where an error is made of what another place has said.
PASSED_ON = {
    "arguments",
    "campaign.metrics",
    "cli",
    "directions.base",
    "ranks.base",
    "registry",
}


def test_the_page_of_messages_has_them_all(generated):
    sites = generated.errors.sites()
    assert len(sites) > 250
    for path in (ROOT / "hpc_landscape").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "hpc_landscape").with_suffix("").parts)
        made = re.findall(r"(?<!class )\bUserError\(", path.read_text(encoding="utf-8"))
        assert len(made) == len([site for site in sites if site.module == module]), module
    assert {site.module for site in sites if not site.texts} <= PASSED_ON
    page = generated.messages()
    assert set(generated.errors.REMEDIES) == set(generated.ABOUT)
    for title, remedy in generated.errors.REMEDIES.items():
        assert len(remedy.split()) > 10 and f"## {title}\n\n{remedy}\n\n- `" in page, title
    assert "`--config <path>: there is no such file`" in page
    assert "`--seed <seed>: must not be negative[, and less than 2^63]`" in page
    assert "`plot needs matplotlib: pip install 'hpc_landscape[plot]'`" in page


def test_the_reference_has_every_option_command_and_kind(generated):
    text = generated.options()
    assert not [
        name for name in [*OPTIONS, "config", "help"] if f"\n(option-{name})=\n````{{option}} --{name}" not in text
    ]
    text = generated.the_commands()
    assert not [name for name in commands.NAMES if f"\n## {name}\n" not in text] and "{option} --kind KIND" in text
    for registry in KINDS:
        (label,) = [label for label, found in generated.LABELS.items() if found is registry]
        text = generated.kinds(label)
        assert not [name for name in registry.built_in if f"({label}-{name})=" not in text]
    assert "`k` (`int`, default: `1`)" in generated.kinds("metric")
    assert "`epochs` (`int`, default: `15`): how often its training" in generated.kinds("problem")
    (step,) = METRICS.describe("gradient_predictiveness")[1]
    assert step.help == "a length in units of the gradient, or several: then the shape is (steps,)"  # two lines of code


def test_text_from_the_code_is_said_as_it_is(generated):
    assert generated.plain("a*b_c [x] <y> ``d_e`` $5") == r"a\*b\_c \[x\] \<y\> ``d_e`` \$5"
    assert generated.exit_codes().count("\n| ") == 5 and "| 75 |" in generated.exit_codes()


def test_what_the_page_says_of_the_file_is_in_the_code(generated):
    table = (DOCS / "reference" / "file.md").read_text(encoding="utf-8").partition("## Attributes")[2]
    names = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "hpc_landscape").rglob("*.py"))
    made = {"sha256_model", "sha256_data", "sha256_directions", "sha256_loss"}
    assert len(names) > 20 and not [name for name in names - made if f'"{name}"' not in code]
    assert "| `x` | float64 | 5 |" in generated.file() and "| `loss` | float64 | 5 x 4 |" in generated.file()


def test_contributors_are_shown_every_room(generated):
    import house

    page = (DOCS / "contributing" / "structure.md").read_text(encoding="utf-8")
    rooms = [room for room in house.rooms() if room != "model_interface"]
    assert "store" in rooms and not [room for room in rooms if f"\n<!-- generated: files of {room} -->\n" not in page]
    assert "- `layout.py`: The file: one HDF5 file" in house.files("store")
    lines = house.diagram().splitlines()
    assert lines[1] == "6   __main__" and re.match(r"4 .* campaign/ .* run ", lines[3]), lines
