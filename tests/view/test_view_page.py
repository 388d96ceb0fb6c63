"""The page's text: the file's numbers to the bit, none of its texts as markup, and one line for every mistake."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import sys

import h5py
import numpy as np
import pytest
from test_view_files import AXES, make, read_at_once, slanted

from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view import scale

pytest.importorskip("plotly")
from hpc_landscape.view.page import content  # noqa: E402
from hpc_landscape.view.page.build import page  # noqa: E402

pytestmark = pytest.mark.usefixtures("at_once")

LOSS, ACCURACY = Quantity("loss"), Quantity("accuracy")


class Parts(html.parser.HTMLParser):
    """What a page consists of, as an HTML parser that is not ours sees it."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(path, **options):
    """The page of the file at path, its parts, and its data."""
    output = str(path).replace(".h5", ".html")
    assert page(str(path), output, **options) == output
    with open(output, encoding="utf-8", newline="") as file:
        parts = Parts(file.read())
    return parts, json.loads(parts.scripts[0])


def decoded(values):
    return np.array([np.nan if v is None else float(v) for v in values])


# The numbers


@pytest.mark.parametrize("axes", AXES.values())
def test_every_number_is_the_files_to_the_bit(tmp_path, axes):
    def awkward(*c):
        return np.nextafter(slanted(*c) / 3, 1e9) * np.where(c[0] > 0, 1e-300, -1e150)

    path = make(tmp_path / "a.h5", axes, awkward)
    _, data = made(path)
    with h5py.File(path) as file:
        for axis in data["axes"]:
            assert np.float64(axis["values"]).tobytes() == file[axis["name"]][()].tobytes()
        for metric in data["metrics"]:
            assert decoded(metric["values"]).tobytes() == file[metric["name"]][()].tobytes()
    assert [metric["name"] for metric in data["metrics"]] == ["loss", "wall_time"]


def test_nan_infinities_and_points_not_done_are_told_apart(tmp_path):
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1.5, np.nan, 7.0])
    done = [True, True, True, True, True, False, False]
    _, data = made(make(tmp_path / "a.h5", (Axis(0, 6, 7),), lambda x: special, done=done))
    loss = data["metrics"][0]
    assert loss["values"] == ["NaN", "Infinity", "-Infinity", 0.0, 1.5, None, None]
    assert np.signbit(loss["values"][3])
    assert (loss["nan"], loss["plus"], loss["minus"], loss["finite"]) == (1, 1, 1, 2)
    assert (data["done"], data["points"]) == (5, 7)


def test_components_are_metrics_of_their_own(tmp_path):
    quantities = (LOSS, Quantity("eigenvalues", (2,), ("eigenvalue",)))
    values = {"loss": slanted, "eigenvalues": lambda *c: np.stack([slanted(*c), -slanted(*c)], axis=-1)}
    path = make(tmp_path / "a.h5", AXES[2], values, quantities)
    _, data = made(path, metric="eigenvalues[1]")
    assert [m["name"] for m in data["metrics"]] == ["loss", "eigenvalues[0]", "eigenvalues[1]", "wall_time"]
    assert data["shown"] == [2]
    np.testing.assert_array_equal(data["metrics"][2]["values"], -np.array(data["metrics"][1]["values"]))


@pytest.mark.parametrize("options", [{}, {"log": True}, {"vmin": 990.0}, {"log": False, "vmax": 1010.0}])
def test_the_scale_is_the_pictures(tmp_path, options):
    _, data = made(make(tmp_path / "a.h5"), **options)
    values = slanted(*np.meshgrid(*Grid(*AXES[2]).coordinates, indexing="ij")).reshape(-1)
    assert data["metrics"][0]["linear"]["levels"] == scale.choose(values, False).levels.tolist()
    assert data["metrics"][0]["log"]["levels"] == scale.choose(values, True).levels.tolist()
    assert data["start"]["log"] is bool(options.get("log"))
    assert (data["start"]["low"], data["start"]["high"]) == (options.get("vmin"), options.get("vmax"))


def test_no_log_scale_where_nothing_is_positive(tmp_path):
    _, data = made(make(tmp_path / "a.h5", values=lambda x, y: -(x**2) - y**2))
    assert data["metrics"][0]["log"] is None and data["metrics"][0]["notPositive"] == 20
    with pytest.raises(UserError, match="positive"):
        made(tmp_path / "a.h5", log=True)


# Size and thinning


def test_a_page_of_51_by_51_points_has_less_than_6_mb(tmp_path):
    wave = {"loss": lambda x, y: np.exp(np.sin(3 * x) * y), "accuracy": lambda x, y: np.cos(x - y) / 3}
    path = make(tmp_path / "a.h5", (Axis(-1, 1, 51), Axis(-1, 1, 51)), wave, (LOSS, ACCURACY))
    made(path)
    assert (tmp_path / "a.html").stat().st_size < 6e6


def pit(at):
    """One lowest point, between those that even steps would take."""
    return lambda *c: sum((x - x0) ** 2 for x, x0 in zip(c, at, strict=True)) + 0.1


@pytest.mark.parametrize("shape", [(1000, 1000), (100, 100, 100), (40_000,), (7, 100_000)])
def test_a_large_grid_is_thinned_but_keeps_the_ends_the_model_and_the_minimum(tmp_path, shape):
    axes = tuple(Axis(-1, 1, n) for n in shape)
    at = tuple(float(axis.coordinates[axis.n // 3 + 1]) for axis in axes)
    path = make(tmp_path / "a.h5", axes, pit(at))
    stored = read_at_once(path)
    fields = [content.read_field(path, stored, "loss")]
    most = content.MOST_POINTS[len(shape)]
    kept = content._kept(stored, fields, most)
    assert np.prod([len(k) for k in kept]) < 1.2 * most
    for indices, c, x in zip(kept, stored.grid.coordinates, at, strict=True):
        assert indices[0] == 0 and indices[-1] == len(c) - 1
        assert x in c[indices] and np.abs(c).min() == np.abs(c[indices]).min()


def test_a_thinned_page_says_so_and_its_numbers_are_the_files(tmp_path, monkeypatch):
    monkeypatch.setitem(content.MOST_POINTS, 2, 30)
    path = make(tmp_path / "a.h5", (Axis(-1, 1, 21), Axis(-2, 2, 31)))
    _, data = made(path)
    assert data["notes"] and "21 x 31" in data["notes"][0] and data["points"] == 21 * 31
    mesh = np.meshgrid(*(axis["values"] for axis in data["axes"]), indexing="ij")
    assert len(data["metrics"][0]["values"]) < 100
    np.testing.assert_array_equal(decoded(data["metrics"][0]["values"]), slanted(*mesh).reshape(-1))


def test_many_components_are_some_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "MOST_NUMBERS", 100)
    quantities = (LOSS, Quantity("spectrum", (64,), ("bin",)))
    values = {"loss": slanted, "spectrum": lambda *c: slanted(*c)[..., None] * np.arange(64)}
    path = make(tmp_path / "a.h5", AXES[2], values, quantities)
    _, data = made(path, metric="spectrum[63]")
    assert [m["name"] for m in data["metrics"]] == ["loss", *(f"spectrum[{i}]" for i in range(3)), "spectrum[63]"]
    assert data["shown"] == [4] and "5 of the 66 numbers" in data["notes"][0]


# Texts of a file

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script ></script <!--",
    "<img src=x onerror=alert(1)>",
    "\"'` onload=alert(1) &lt;b&gt; {{plotly}} {{data}}",
    "line\u2028separator\u2029 \r\n\t\x1b[31m\x7f \u202e",
    "%{z} $\\href{javascript:alert(1)}{x}$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_of_the_file_is_never_markup(tmp_path, text):
    plain, _ = made(make(tmp_path / "plain.h5"))
    path = make(tmp_path / "a.h5", title=text, problem=text, directions=text, command=text, **{"bn": text})
    with h5py.File(path, "r+") as file:
        file.attrs["note " + text.replace("\0", "")] = text
    parts, data = made(path)
    assert [tag for tag, _ in parts.elements] == [tag for tag, _ in plain.elements]
    assert parts.scripts[1:] == plain.scripts[1:]
    assert not set("<>&") & set(parts.scripts[0])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u2029]", "".join(parts.scripts[0] + "".join(parts.words)))
    assert data["title"].startswith(text[:4])


@pytest.mark.parametrize("name", ["<script>alert(1)", "<img src=x onerror=alert(1)>", "a\u2028'\"&b"])
def test_a_metrics_name_is_never_markup(tmp_path, name):
    path = make(tmp_path / "a.h5", AXES[2], {name: slanted}, (Quantity(name),))
    parts, data = made(path)
    assert len(parts.scripts) == 3 and len(parts.attributes("img")) == 0
    assert "loss" not in [metric["name"] for metric in data["metrics"]]


def test_a_long_title_is_cut(tmp_path):
    assert len(made(make(tmp_path / "a.h5", title="x" * 5000))[1]["title"]) <= 200


def test_a_title_given_is_the_heading(tmp_path):
    path = make(tmp_path / "a.h5", title="of the file")
    assert made(path)[1]["title"] == "of the file"
    parts, data = made(path, title="<b>mine</b>")
    assert data["title"] == "<b>mine</b>" and not parts.attributes("b") and not data["description"]


def test_nothing_but_the_three_scripts_can_run_and_nothing_is_loaded(tmp_path):
    parts, _ = made(make(tmp_path / "a.h5"))
    (policy,) = (m["content"] for m in parts.attributes("meta") if m.get("http-equiv") == "Content-Security-Policy")
    sums = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in parts.scripts[1:]]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["script-src"] == " ".join(f"'sha256-{s}'" for s in sums)
    assert not [a for _, attributes in parts.elements for a in attributes if a.startswith("on") or a == "srcset"]
    assert {a["href"] for _, a in parts.elements if "href" in a} == {"data:,"}
    assert not [a for _, a in parts.elements if "src" in a]


def test_the_same_file_makes_the_same_page(tmp_path):
    path = make(tmp_path / "a.h5", done=np.arange(20).reshape(5, 4) < 12)
    made(path)
    first = (tmp_path / "a.html").read_bytes()
    made(path)
    assert (tmp_path / "a.html").read_bytes() == first and str(tmp_path).encode() not in first


def test_the_page_says_what_info_says(tmp_path):
    _, data = made(make(tmp_path / "a.h5", created="2026-01-01", torch_version="2.13"))
    assert "PyTorch 2.13" in data["info"] and "2026-01-01" in data["info"]
    assert not re.search(r"^(file|run|next) ", data["info"], re.MULTILINE)


def test_marks_barrier_and_trajectories_are_the_files(tmp_path):
    path = str(tmp_path / "a.h5")
    grid = Grid(Axis(-1, 2, 7))
    x = grid.coordinates[0]
    layout.save(path, grid, {"loss": 1 + x**2 * (1 - x) ** 2}, {"directions": "interpolation"})
    _, data = made(path)
    metric = data["metrics"][0]
    assert [(mark["where"], mark["value"]) for mark in metric["marks"]][:2] == [([0.0], 1.0), ([1.0], 1.0)]
    assert metric["barrier"]["height"] == 1 / 16 and metric["barrier"]["where"] == [0.5]


def test_trajectories_have_their_points_and_distances(tmp_path):
    path = str(tmp_path / "a.h5")
    grid = Grid(*AXES[2])
    way = layout.Trajectory(
        np.array([[0.5, 1.0], [np.nan, 0.0], [0.0, 0.0]]), np.array([3.0, 1.0, 0.25]), ["<b>", "", "c"]
    )
    loss = slanted(*np.meshgrid(*grid.coordinates, indexing="ij"))
    layout.save(path, grid, {"loss": loss}, {"directions": "pca"}, trajectory=way)
    (found,) = made(path)[1]["trajectories"]
    assert found == {"name": "", "labels": ["<b>", "c"], "x": [0.5, 0.0], "y": [1.0, 0.0], "distance": [3.0, 0.25]}


# Files of all kinds, and mistakes


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1), (4, 1), (1, 4), (2, 2), (3, 1, 4), (1, 1, 3), (2, 2, 2)])
def test_axes_of_one_point(tmp_path, shape):
    axes = tuple(Axis(-1, 1, n) if n > 1 else Axis(0.5, 0.5, 1) for n in shape)
    _, data = made(make(tmp_path / "a.h5", axes))
    assert [len(axis["values"]) for axis in data["axes"]] == list(shape)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -3.0, 1e300, 5e-324])
def test_one_value_everywhere(tmp_path, value):
    _, data = made(make(tmp_path / "a.h5", values=lambda x, y: value))
    assert data["metrics"][0]["finite"] == (20 if np.isfinite(value) else 0)


REFUSED = {
    "suffix": ({"output": "a.png"}, "suffix"),
    "folder": ({"output": "nowhere/a.html"}, "no directory"),
    "metric": ({"metric": "flops"}, "no metric 'flops'"),
    "two metrics of a plane": ({"metric": "loss,loss"}, "begins with one metric"),
    "limits": ({"vmin": 2.0, "vmax": 1.0}, "less than"),
    "a limit that is none": ({"vmin": np.nan}, "vmin nan"),
    "an endless limit": ({"vmax": np.inf}, "vmax inf"),
    "log limit": ({"log": True, "vmin": -1.0}, "above 0"),
    "colour map": ({"cmap": "mud"}, "unknown colour map 'mud'"),
    "itself": ({"output": "a.h5"}, "suffix"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, options, said):
    path = make(tmp_path / "a.h5")
    before = sorted(p.name for p in tmp_path.iterdir())
    output = str(tmp_path / options.pop("output", "a.html"))
    with pytest.raises(UserError, match=said) as refusal:
        page(path, output, **options)
    assert "\n" not in str(refusal.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_file_without_a_point_is_refused(tmp_path):
    with pytest.raises(UserError, match="no point is done"):
        made(make(tmp_path / "a.h5", done=np.zeros((5, 4))))


def test_without_plotly_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UserError, match=r"pip install 'hpc_landscape\[plot\]'"):
        made(make(tmp_path / "a.h5"))


def test_several_metrics_of_a_line(tmp_path):
    values = {"loss": slanted, "accuracy": slanted}
    path = make(tmp_path / "a.h5", AXES[1], values, (LOSS, ACCURACY))
    assert made(path, metric="accuracy, loss")[1]["shown"] == [1, 0]
