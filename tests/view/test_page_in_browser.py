"""The page in a real browser: it opens without a complaint, its numbers are the file's, and its controls work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import pytest
from browsing import CHROMIUM, FLAT, OPTIONS, Opened
from test_view_files import make

from hpc_landscape.grid import Axis, Grid
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view.page.build import page as write_page

pytestmark = pytest.mark.slow

BOTH = (Quantity("loss"), Quantity("accuracy"))


def bowl(*c: Any) -> Any:
    return 0.1 + sum((k + 1) * (x - 0.1 * k) ** 2 for k, x in enumerate(c))


def tilted(*c: Any) -> Any:
    return sum(x / (k + 3) for k, x in enumerate(c)) - 0.3


VALUES = {"loss": bowl, "accuracy": tilted}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests; where there is none they are skipped, but not in CI."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed"
    else:
        missing = "" if CHROMIUM else "no chromium is installed"
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Any) -> Iterator[Callable[..., Opened]]:
    """Opens the page of a file; at the end the browser must have had nothing to complain of."""
    contexts, pages = [], []

    def open_page(path: str, script: str = "", expected: bool = False, **options: Any) -> Opened:
        shown = {k: options.pop(k) for k in ("metric", "log", "title", "vmax") if k in options}
        output = write_page(path, str(tmp_path / "page.html"), **shown)
        contexts.append(browser.new_context(**{"viewport": {"width": 1120, "height": 640}} | options))
        page = contexts[-1].new_page()
        if script:
            page.add_init_script(script)
        opened = Opened(page)
        pages.extend([] if expected else [opened])
        return opened.open(output)

    yield open_page
    complaints = [complaint for page in pages for complaint in page.complaints]
    for context in contexts:
        context.close()
    assert not complaints


def of_shape(path: Any, *shape: int, values: Any = VALUES, **options: Any) -> str:
    axes = tuple(Axis(-1, 1.5, n) if n > 1 else Axis(0, 0, 1) for n in shape)
    return make(path, axes, values, BOTH, **options)


def assert_the_files(path: str, readout: dict[str, str]) -> None:
    """The readout's numbers are the file's at its coordinates, to the bit."""
    with h5py.File(path) as file:
        names = [name for name in "xyz" if name in file]
        index = tuple(int(np.flatnonzero(file[name][()] == float(readout[name]))[0]) for name in names)
        for name in ("loss", "accuracy"):
            assert float(readout[name]) == file[name][index]
        assert float(readout["time per point (s)"]) == 2.0


SHAPES = {
    (1, 1): 0, (9,): 1, (1, 9): 1, (6, 1, 5): 2, (2, 2, 2): 4,
}  # fmt: skip


@pytest.mark.parametrize(("shape", "panels"), SHAPES.items())
def test_every_shape_opens_and_tells_the_files_numbers(opened, tmp_path, shape, panels):
    path = of_shape(tmp_path / "a.h5", *shape)
    page = opened(path)
    assert page.ask("panels.length") == panels
    assert_the_files(path, page.readout())


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_it_opens_whatever_the_values(opened, tmp_path, value):
    page = opened(of_shape(tmp_path / "a.h5", 4, 5, values={"loss": lambda x, y: value, "accuracy": tilted}))
    assert page.ask("panels.length") == 2


def test_pointing_tells_the_files_numbers_in_both_pictures(opened, tmp_path):
    path = of_shape(tmp_path / "a.h5", 11, 9)
    page = opened(path)
    x, y = (axis.coordinates for axis in (Axis(-1, 1.5, 11), Axis(-1, 1.5, 9)))
    page.point_at(1, x[2], y[6])
    readout = page.readout()
    assert (float(readout["x"]), float(readout["y"])) == (x[2], y[6])
    assert_the_files(path, readout)
    place = page.graph(0, "data.at(-1)")
    assert (place["x"], place["y"]) == ([x[2]], [y[6]]), "the surface shows the contours' point"
    tip = page.page.locator("#tip").inner_text()
    assert f"{float(readout['loss']):.4g}" in tip and f"{float(readout['accuracy']):.4g}" in tip

    page.page.locator(".graph").nth(0).hover()
    page.until("state.hovered !== null && panels[0].graph.matches(':hover')")
    page.settle()
    readout = page.readout()
    assert_the_files(path, readout)
    lines = page.graph(1, "layout.shapes")
    assert (lines[0]["x0"], lines[1]["y0"]) == (float(readout["x"]), float(readout["y"])), "and the other way round"


def of_sets(which: Any, *c: Any) -> Any:
    return bowl(*c) * (1 + which)


def test_an_ensembles_line_has_its_bands_and_its_plane_the_spread(opened, tmp_path):
    page = opened(of_shape(tmp_path / "a.h5", 9, values={"loss": of_sets, "accuracy": of_sets}, sets=5))
    bands = [trace for trace in page.graph(0, "data") if trace.get("fill") == "toself"]
    x = Axis(-1, 1.5, 9).coordinates
    for band, (low, high) in zip(bands, ((1.2, 4.8), (2, 4)), strict=True):  # quantiles of 1 to 5
        np.testing.assert_allclose(band["y"], [*low * bowl(x), *high * bowl(x[::-1])], rtol=1e-12)
        np.testing.assert_array_equal(band["x"], [*x, *x[::-1]])
    page = opened(of_shape(tmp_path / "b.h5", 9, 4, values={"loss": of_sets, "accuracy": of_sets}, sets=5), FLAT)
    assert page.ask("panels.length") == 2
    headings = page.page.locator(".plot h2").all_inner_texts()
    assert headings == ["Contours of mean loss", "Contours of spread of loss (std. dev.)"]
    page.page.locator("#metric").select_option(label="mean time per point (s)")
    assert "spread" not in page.page.locator(".plot h2").all_inner_texts()[1], "of which the page has none"


def heights(path: str, name: str, low: float, high: float, log: bool) -> np.ndarray:
    """Where the values lie between low and high, from 0 to 1, rows along y."""
    with h5py.File(path) as file:
        values = file[name][()].T
    if log:
        values, low, high = np.log10(values), np.log10(low), np.log10(high)
    return (values - low) / (high - low)


def test_metric_scale_clip_and_colours(opened, tmp_path):
    path = of_shape(tmp_path / "a.h5", 7, 6)
    page = opened(path)
    ends = page.ask("[scale().low, scale().high]")
    np.testing.assert_allclose(page.graph(1, "data[1].z"), heights(path, "loss", *ends, log=False))

    page.choose(log=True)
    ends = page.ask("[scale().low, scale().high]")
    np.testing.assert_allclose(page.graph(1, "data[1].z"), heights(path, "loss", *ends, log=True))
    np.testing.assert_allclose(page.graph(0, "data[0].z"), page.graph(1, "data[1].z"), err_msg="one scale")

    page.choose(low="0.5", high="2")
    np.testing.assert_allclose(page.graph(1, "data[1].z"), heights(path, "loss", 0.5, 2, log=True))
    clipped = np.clip(heights(path, "loss", 0.5, 2, log=True), 0, 1)
    np.testing.assert_allclose(page.graph(0, "data[0].z"), clipped)
    assert page.graph(1, "data[1].colorbar.ticktext")[:1] == ["0.5"]

    page.choose(high="0.1")
    assert "less than" in page.page.locator("#mistake").inner_text()
    page.choose(low="-1")
    assert "above 0" in page.page.locator("#mistake").inner_text()
    page.page.locator("#reset").click()
    assert page.page.locator("#mistake").inner_text() == ""
    np.testing.assert_allclose(page.graph(1, "data[1].z"), heights(path, "loss", *ends, log=True))

    page.choose(colors="cividis")
    scales = [page.graph(0, "data[0].colorscale"), page.graph(1, "data[1].colorscale")]
    assert scales[0] == scales[1] and scales[0][0][1] == "#00224e"

    page.choose(metric="accuracy")
    ends = page.ask("[scale().low, scale().high]")
    np.testing.assert_allclose(page.graph(1, "data[1].z"), heights(path, "accuracy", *ends, log=False))
    assert "maximum" in page.page.locator("#legend").inner_text()


def test_no_log_scale_where_nothing_is_positive(opened, tmp_path):
    page = opened(of_shape(tmp_path / "a.h5", 4, 4, values={"loss": lambda *c: -bowl(*c), "accuracy": bowl}), FLAT)
    assert page.page.locator("#log").is_disabled()
    assert "no value is positive" in page.page.locator("#controls").inner_text()


def test_the_camera_stays_where_it_was_turned_to(opened, tmp_path):
    page = opened(of_shape(tmp_path / "a.h5", 6, 6))
    scene = "_fullLayout.scene._scene"
    eye = f"{scene}.getCamera().eye.x"
    before = page.graph(0, eye)
    page.page.locator(".graph").nth(0).hover()
    page.until("state.hovered !== null")
    page.settle()
    assert page.graph(0, "data[panels[0].last].x") == [0]  # left alone, or it could not be turned at once
    page.until(f"panels[0].graph.{scene}.camera.view.lastT() < performance.now()")  # it can be turned again
    page.page.mouse.down()
    for x in range(200, 280, 20):  # as a hand does, which stops before it lets go: else plotly turns on for a while
        page.page.wait_for_timeout(100)
        page.page.mouse.move(x, 420)
    page.until(f"Math.abs(panels[0].graph.{eye} - {before}) > 0.05")
    turned = page.at_rest(f"panels[0].graph.{eye}")
    page.page.mouse.up()
    page.choose(metric="accuracy", colors="magma")
    assert page.graph(0, eye) == pytest.approx(turned)
    page.page.locator("#view").click()
    page.until(f"Math.abs(panels[0].graph.{eye} - {before}) < 1e-6")


def test_gaps_are_shown_and_counted(opened, tmp_path):
    x, y = Axis(-1, 1.5, 6).coordinates, Axis(-1, 1.5, 5).coordinates
    done = np.ones((6, 5), bool)
    done[4:] = False

    def with_gaps(*c: Any) -> Any:
        values = np.array(bowl(*c))
        values[0, 0], values[1, :2], values[2, 3], values[5, 0] = np.nan, np.inf, -np.inf, np.nan
        return values

    page = opened(of_shape(tmp_path / "a.h5", 6, 5, values={"loss": with_gaps, "accuracy": tilted}, done=done), FLAT)
    legend = page.page.locator("#legend").inner_text()
    for words in ("not computed yet: 10 points", "NaN: 1 point", "+infinity: 2 points", "-infinity: 1 point"):
        assert words in legend
    assert "20 of 30 points (66.7%)" in page.page.locator("#notes").inner_text()
    for i, j, word in ((4, 2, "not computed yet"), (0, 0, "NaN"), (1, 1, "+infinity"), (2, 3, "-infinity")):
        page.point_at(0, x[i], y[j])
        assert page.readout()["loss"] == word
    z = np.array(page.graph(0, "data[1].z"), dtype=float)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(np.isfinite(z), np.isfinite(file["loss"][()].T))


def test_one_axis_shows_several_metrics(opened, tmp_path):
    path = of_shape(tmp_path / "a.h5", 9, directions="interpolation")
    page = opened(path, metric="loss,accuracy")
    with h5py.File(path) as file:
        lines = [t for t in page.graph(0, "data") if t["mode"] == "lines+markers"]
        for name, line in zip(("loss", "accuracy"), lines, strict=True):
            np.testing.assert_array_equal(line["y"], file[name][()])
    page.page.get_by_role("checkbox", name="accuracy").uncheck()
    assert page.graph(0, "data.filter((t) => t.mode === 'lines+markers').length") == 1
    page.choose(log=True)
    assert page.graph(0, "layout.yaxis.type") == "log"
    x = Axis(-1, 1.5, 9).coordinates
    page.point_at(0, x[5], bowl(x[5]))
    assert_the_files(path, page.readout())


def test_a_volume_has_a_level_and_slices(opened, tmp_path):
    path = of_shape(tmp_path / "a.h5", 5, 4, 6)
    page = opened(path)
    page.page.locator("#level").fill("0.75")
    page.settle()
    assert page.graph(0, "data[0].isomin") == page.graph(0, "data[0].isomax") == 0.75
    low, high = page.ask("[scale().low, scale().high]")
    shown = float(page.page.locator("output").inner_text())
    assert shown == pytest.approx(low + 0.75 * (high - low), rel=1e-3)
    page.page.locator("#at-2").fill("4")
    page.settle()
    with h5py.File(path) as file:
        wanted = (file["loss"][:, :, 4].T - low) / (high - low)
    np.testing.assert_allclose(page.graph(1, "data[1].z"), wanted)
    assert page.page.locator("h2").nth(1).inner_text() == "Slice at z = 1"
    assert_the_files(path, page.readout())


def test_the_keyboard_moves_the_point(opened, tmp_path):
    path = of_shape(tmp_path / "a.h5", 6, 11)
    page = opened(path, FLAT)
    x, y = Axis(-1, 1.5, 6).coordinates, Axis(-1, 1.5, 11).coordinates
    page.page.locator(".plot").focus()
    start = page.ask("[...state.at]")
    for key in ("ArrowRight", "ArrowUp", "ArrowUp", "ArrowLeft", "ArrowRight"):
        page.page.keyboard.press(key)
    page.settle()
    readout = page.readout()
    assert (float(readout["x"]), float(readout["y"])) == (x[start[0] + 1], y[start[1] + 2])
    assert_the_files(path, readout)
    page.page.keyboard.press("Shift+ArrowDown")
    page.page.keyboard.press("ArrowDown")
    page.settle()
    assert float(page.readout()["y"]) == y[0]
    page.page.locator("#at-0").press("End")
    page.settle()
    assert float(page.readout()["x"]) == x[-1]
    assert page.page.locator("#readout").get_attribute("aria-live") == "polite"
    unnamed = "(c) => !c.ariaLabel && !c.labels?.length && !c.textContent"
    assert page.ask(f"[...document.querySelectorAll('button, input, select')].filter({unnamed}).length") == 0


def test_a_phone_has_one_column_and_no_sideways_scrolling(opened, tmp_path):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    path = of_shape(tmp_path / "a.h5", 6, 6)
    page = opened(path, title="A" * 300, **phone)
    assert page.ask("document.documentElement.scrollWidth") <= 390
    first, second = (page.page.locator(".plot").nth(i).bounding_box() for i in (0, 1))
    assert second["y"] >= first["y"] + first["height"]
    page.page.locator(".graph").nth(1).scroll_into_view_if_needed()
    page.page.locator(".graph").nth(1).tap(position={"x": 120, "y": 120})
    page.until("state.at.some((i) => i !== 2)")
    assert_the_files(path, page.readout())


def test_light_and_dark(opened, tmp_path):
    path = of_shape(tmp_path / "a.h5", 4, 4)
    page = opened(path, FLAT, color_scheme="dark", reduced_motion="reduce")
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "panels[0].graph._fullLayout.font.color"
    dark = page.ask(f"[{ground}, {ink}]")
    page.page.locator("#theme").click()
    light = page.ask(f"[{ground}, {ink}]")
    assert dark[0] == "rgb(20, 23, 27)" and light[0] == "rgb(255, 255, 255)" and dark[1] != light[1]


def test_without_webgl_the_contours_are_there_and_a_line_says_why(opened, tmp_path):
    page = opened(of_shape(tmp_path / "a.h5", 4, 4), FLAT)
    assert page.ask("panels.length") == 1
    assert "no WebGL" in page.page.locator("#notes").inner_text()


ATTACK = (
    "<!--<script x><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>&lt;b&gt;</a>"
)


NAME = "<img src=x onerror=alert(4)><b>loss<b>"


def hostile(path: Any, *axes: Axis) -> str:
    """A file whose every text is an attack."""
    grid = Grid(*axes)
    way = layout.Trajectory(np.full((2, len(axes)), 0.5), np.array([1.0, 0.0]), [ATTACK, ATTACK])
    attributes = {"title": ATTACK, "directions": ATTACK, "metrics": NAME, "command": ATTACK, ATTACK: ATTACK}
    layout.create(str(path), grid, [Quantity(NAME)], attributes, trajectory=way)
    with h5py.File(path, "r+") as file:
        file[NAME][...] = bowl(*np.meshgrid(*grid.coordinates, indexing="ij"))
        file["done"][...] = 1
    return str(path)


def test_a_hostile_file_runs_nothing_and_is_shown_as_text(opened, tmp_path):
    page = opened(hostile(tmp_path / "a.h5", Axis(-1, 1, 5), Axis(-1, 1, 5)))
    assert page.page.locator("h1").inner_text() == ATTACK
    assert page.page.locator("select#metric option").first.inner_text() == NAME
    page.point_at(1, 0.5, 0.5)
    assert ATTACK in page.page.locator("#tip").inner_text()
    page.page.locator("summary").click()
    assert "alert(1)" in page.page.locator("#info").inner_text()
    assert page.ask("document.querySelectorAll('img, a[href^=javascript], b').length") == 0


def test_plotly_takes_a_hostile_name_for_a_text(opened, tmp_path):
    page = opened(hostile(tmp_path / "a.h5", Axis(-1, 1, 5)))
    assert page.page.locator(".ytitle").text_content() == NAME


def test_the_policy_stops_what_an_escape_would_have_missed(opened, tmp_path):
    page = opened(of_shape(tmp_path / "a.h5", 3, 3), FLAT, expected=True)
    page.ask(
        """(() => {
          window.stopped = [];
          document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
          document.body.insertAdjacentHTML("beforeend", "<a onclick='window.ran = 1'>");
          document.body.lastChild.click();
          document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
          document.body.append(Object.assign(new Image(), { src: "https://example.invalid/x.png" }));
          fetch("https://example.invalid/x.json").catch(() => {});
        })()"""
    )
    page.until("stopped.length >= 4")
    assert set(page.ask("stopped")) == {"script-src-attr", "script-src-elem", "img-src", "connect-src"}
    assert page.ask("window.ran === undefined")
