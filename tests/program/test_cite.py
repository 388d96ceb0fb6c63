"""--cite: BibTeX that is well formed, agrees with CITATION.cff, and names what the settings use, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml
from programs import ROOT, run_program

from hpc_landscape.cite import ENTRIES, SOURCES, citations
from hpc_landscape.cli import main
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity

REQUIRED = {  # by BibTeX's own standard styles
    "article": {"author", "title", "journal", "year"},
    "book": {"author", "title", "publisher", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "misc": {"author", "title"},
}
ALWAYS = ["li2018visualizing", "hpc_landscape", "ansel2024pytorch", "hdf5", "collette2013python"]
EIGENVALUES = ["pearlmutter1994fast", "wu2000thick"]
BATCHNORM = ["ioffe2015batch", "izmailov2018averaging"]


def entries(text: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Key -> (type, fields) of BibTeX whose values are in braces; what is between entries is a comment."""
    found = {}
    while match := re.search(r"@(\w+)\{(\w+),", text):
        fields, text = {}, text[match.end() :]
        while field := re.match(r"\s*(\w+)\s*=\s*\{", text):
            depth, end = 1, field.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            fields[field[1]], text = text[field.end() : end - 1], text[end:].lstrip().removeprefix(",")
        assert text.lstrip().startswith("}"), f"{match[2]} is not closed"
        assert match[2] not in found, f"{match[2]} is there twice"
        found[match[2]], text = (match[1], fields), text.lstrip()[1:]
    return found


def cited(*words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main([*words, "--cite"]) == 0
    return list(entries(capsys.readouterr().out))


def stored(path: Path, **attributes: Any) -> str:
    """A file that holds no more than what was asked for."""
    layout.create(str(path), Grid(Axis(0, 1, 2)), [Quantity("loss")], attributes)
    return str(path)


def test_every_entry_is_well_formed():
    text = "\n".join(ENTRIES.values())
    assert text.isascii()
    found = entries(text)
    assert list(found) == list(ENTRIES) and len(found) >= 18
    for key, (kind, fields) in found.items():
        assert REQUIRED[kind] <= set(fields), key
        assert re.fullmatch(r"\d{4}", fields.get("year", "2000")), key
        assert re.fullmatch(r"10\.\d{4,}/\S+", fields.get("doi", "10.1234/x")), key
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields.get("eprint", "1712.09913")), key
        assert ("eprint" in fields) == ("archiveprefix" in fields), key
        assert not re.search(r"[^\\][&%_#]", fields["title"] + fields.get("journal", "")), f"{key}: TeX reads it"


def test_every_kind_with_a_source_is_one_and_its_sources_are_there():
    for (registry, name), keys in SOURCES.items():
        assert name in registry.built_in
        assert set(keys) <= set(ENTRIES)


def test_our_own_entry_agrees_with_the_citation_file():
    given = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    kind, ours = entries(ENTRIES["hpc_landscape"])["hpc_landscape"]
    plain = {name: text.replace("\\_", "_").strip("{}") for name, text in ours.items()}
    assert plain["title"] == given["title"]
    assert plain["author"] == " and ".join(author["name"] for author in given["authors"])
    assert plain["note"] == f"{given['abstract']}. Version {given['version']}"
    released = str(given.get("date-released", "")) or re.search(r"\d{4}", (ROOT / "LICENSE").read_text())[0]
    assert plain["year"] == released[:4]


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ((), ["alpaydin1998optical", "he2016deep", *BATCHNORM]),
        (("--bn", "batch"), ["alpaydin1998optical", "he2016deep", "ioffe2015batch"]),
        (("--problem", "x:y"), None),
        (
            ("--directions", "hessian", "--metrics", "loss,curvature(n=2),hessian_trace(n_vectors=4)"),
            ["alpaydin1998optical", "he2016deep", *EIGENVALUES, "hutchinson1989stochastic", *BATCHNORM],
        ),
        (
            (
                "--directions",
                "interpolation",
                "--to",
                "a.pt",
                "--metrics",
                "gradient_predictiveness,loss_perturbations",
            ),
            ["alpaydin1998optical", "he2016deep", "goodfellow2015qualitatively", "frankle2020linear"]
            + ["santurkar2018how", "ahmed2019understanding", *BATCHNORM],
        ),
        (("--metrics", "test_curvature"), ["alpaydin1998optical", "he2016deep", *EIGENVALUES, *BATCHNORM]),
        (("--metrics", "expected_return"), ["alpaydin1998optical", "he2016deep", "towers2024gymnasium", *BATCHNORM]),
    ],
)
def test_what_the_settings_use_is_cited(capsys, words, more):
    if more is None:  # a problem that cannot be found
        assert main([*words, "--cite"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    else:
        assert cited(*words, capsys=capsys) == ALWAYS + more


def test_settings_of_a_config_file_count(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("metrics: hessian_trace\nbn: running\n")
    found = cited("--config", str(tmp_path / "run.yaml"), capsys=capsys)
    assert found[5:] == ["alpaydin1998optical", "he2016deep", "pearlmutter1994fast", "hutchinson1989stochastic"] + [
        "ioffe2015batch"
    ]


def test_what_each_is_for_is_said_above_it():
    text = citations({"directions": "hessian", "metrics": "curvature(n=3)"})
    assert "% --directions hessian, --metrics curvature\n@article{pearlmutter1994fast" in text


OWN = '''
from hpc_landscape.metrics import Metric

class Mine(Metric):
    """Mine."""

    cites = """
@article{me2026,
  author = {Me}, title = {Mine}, journal = {Ours}, year = {2026}
}
"""
'''


def test_a_kind_of_the_users_own_says_what_it_is_from(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    spec = f"{tmp_path / 'own.py'}:Mine"
    assert "me2026" in cited("--metrics", f"loss,{spec},one_of_the_problem", capsys=capsys)
    assert main(["--metrics", f"{tmp_path / 'none.py'}:Mine", "--cite"]) == 2


def test_nothing_that_a_file_names_is_run(tmp_path, capsys):
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{OWN}")
    spec = f"{tmp_path / 'own.py'}:Mine"
    path = stored(tmp_path / "a.h5", directions="hessian", problem=spec, bn=spec, settings=f"metrics: {spec}", ranks=3)
    assert main(["info", path, "--cite"]) == 0
    assert list(entries(capsys.readouterr().out)) == [*ALWAYS, "dalcin2021mpi4py", *EIGENVALUES]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("strange", [b"\xff\xfe", 3.5, [1.0, 2.0], "\x1b[31mred(", "hessian(", ""])
def test_a_file_may_say_anything(tmp_path, capsys, strange):
    path = stored(tmp_path / "a.h5", directions=strange, problem=strange, bn=strange, ranks=strange)
    assert main(["info", path, "--cite"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and list(entries(out))[:5] == ALWAYS


def test_only_one_thing_is_printed_instead_of_a_run(capsys):
    assert main(["--cite", "--print_config"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "--print_config and --cite" in said.err


def test_no_torch_is_imported_for_it():
    code = "import sys; from hpc_landscape.cli import main; main(['--cite']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.mpi_stack
def test_of_several_ranks_one_speaks_and_mpi_is_cited(tmp_path):
    finished = run_program("--cite", folder=tmp_path, ranks=3)
    assert finished.code == 0 and finished.err == "", finished
    assert "dalcin2021mpi4py" in entries(finished.out)  # which fails where one is there twice
    assert not list(tmp_path.iterdir())


def test_a_file_puts_no_entry_of_its_own_into_the_answer(tmp_path, capsys):
    path = stored(tmp_path / "a.h5")
    with h5py.File(path, "r+", locking=False) as file:
        file.move("loss", "\x1b[31m\n@misc{fake}\n_curvature")
    assert main(["info", path, "--cite"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\n@misc{fake}" not in said


def test_an_own_metric_is_not_taken_for_a_built_in_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text('class fast_curvature:\n    cites = "@misc{mine2026,\\n  title = {Mine},\\n}"\n')
    assert main(["--metrics", "mine.py:fast_curvature", "--cite"]) == 0
    said = capsys.readouterr().out
    assert "mine2026" in said and "pearlmutter" not in said.lower()
