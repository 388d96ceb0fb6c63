"""plot of several files: side by side, in one axis, their difference, an animation; one line for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from test_view_files import make, read_at_once, slanted

import hpc_landscape
from hpc_landscape.cli import main
from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view import titles

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.contour import ContourSet  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402
from test_view_plot import texts  # noqa: E402

from hpc_landscape.view.panels import rows_and_columns  # noqa: E402
from hpc_landscape.view.plot import plot  # noqa: E402

pytestmark = pytest.mark.usefixtures("at_once")

PLANE, LINE, VOLUME = (Axis(-1, 1, 5), Axis(-2, 3, 4)), (Axis(-0.5, 1.5, 9),), (Axis(-1, 1, 3),) * 3
HOSTILE = "$\\frac{x_$ <script> \x1b[31m\n"


def times(factor, offset=0.0):
    return lambda *c: factor * slanted(*c) + offset


def planes(folder, n, **attributes):
    """n files, the i-th with i + 1 times the values of the first, told apart by their checkpoints."""
    said = [{"settings": f"checkpoint: runs/epoch{i}.pt\nseed: 3", **attributes} for i in range(n)]
    return [make(folder / f"{i}.h5", PLANE, times(i + 1), **more) for i, more in enumerate(said)]


# Side by side


def test_heatmaps_side_by_side_hold_each_file_s_values_on_one_scale(tmp_path, figures):
    plot(planes(tmp_path, 3), str(tmp_path / "a.png"), kind="heatmap", log=False)
    panels = figures[0].axes[:3]
    meshes = [axes.collections[0] for axes in panels]
    for i, mesh in enumerate(meshes):
        corners = mesh.get_coordinates()
        centres = (corners[:-1, :-1] + corners[1:, 1:]) / 2
        np.testing.assert_allclose(mesh.get_array(), (i + 1) * slanted(centres[..., 0], centres[..., 1]))
        assert panels[i].get_title() == f"epoch{i}.pt"
    assert len({mesh.get_clim() for mesh in meshes}) == 1
    low, high = meshes[0].get_clim()
    assert low <= 979 and high >= 3 * 1031  # the smallest value of the first, the largest of the third


def test_contours_side_by_side_have_the_same_levels_and_colours(tmp_path, figures):
    plot(planes(tmp_path, 2), str(tmp_path / "a.png"), levels=[900.0, 1000.0, 1500.0, 2000.0, 2100.0], log=False)
    filled = [
        next(c for c in axes.collections if isinstance(c, ContourSet) and c.filled) for axes in figures[0].axes[:2]
    ]
    for contours in filled:
        np.testing.assert_array_equal(contours.levels, [900, 1000, 1500, 2000, 2100])
    values = np.linspace(900, 2100, 50)
    np.testing.assert_array_equal(*(contours.cmap(contours.norm(values)) for contours in filled))


def test_surfaces_side_by_side_have_one_height_and_one_view(tmp_path, figures):
    plot(planes(tmp_path, 2), str(tmp_path / "a.png"), kind="surface", log=False, elevation=20, azimuth=10, dpi=50)
    first, second = figures[0].axes[:2]
    assert first.get_zlim() == second.get_zlim()
    assert (first.elev, first.azim) == (second.elev, second.azim) == (20, 10)
    shapes = [c for c in second.collections if type(c).__name__ == "Poly3DCollection"]
    x, y, z = np.concatenate([np.asarray(face) for face in shapes[0]._faces]).T
    np.testing.assert_allclose(z, 2 * slanted(x, y))


def test_a_panel_says_its_own_numbers_and_the_legend_each_mark_once(tmp_path, figures):
    plot(planes(tmp_path, 2), str(tmp_path / "a.png"), log=False)
    said = texts(figures[0])
    assert "minimum: 979 at (-1, -2)" in said and "minimum: 1958 at (-1, -2)" in said
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["trained model", "minimum"]


@pytest.mark.parametrize(("n", "places"), [(3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (7, (3, 3)), (20, (4, 5))])
def test_rows_and_columns(n, places):
    assert rows_and_columns(n) == places


def test_other_extents_and_sizes_may_stand_side_by_side(tmp_path, figures):
    files = [make(tmp_path / "a.h5", PLANE), make(tmp_path / "b.h5", (Axis(0, 9, 3), Axis(-1, 0, 7)))]
    assert plot(files) == str(tmp_path / "a.png")
    assert [axes.get_xlim() for axes in figures[0].axes[:2]] == [(-1, 1), (0, 9)]


def test_what_is_missing_is_said_of_each_file(tmp_path, figures):
    files = planes(tmp_path, 2)
    make(files[1], PLANE, done=np.arange(20).reshape(5, 4) < 7, settings="checkpoint: x.pt")
    plot(files, str(tmp_path / "a.png"))
    assert "x.pt: 7 of 20 points done; gaps in grey" in texts(figures[0])


def test_a_metric_of_the_first_file_is_that_of_all(tmp_path):
    """The second has no loss, and its accuracy is not shown on the loss's scale."""
    files = [make(tmp_path / "a.h5"), make(tmp_path / "b.h5", quantities=(Quantity("accuracy"),))]
    with pytest.raises(UserError, match=r"b\.h5 has no metric 'loss'; it has accuracy"):
        plot(files)


# What tells files apart


def told(folder, *attributes):
    paths = [f"{folder}/{i}-x.h5" for i in range(len(attributes))]
    for path, said in zip(paths, attributes, strict=True):
        make(path, **said)
    return titles.labels(paths, [read_at_once(path) for path in paths])


def test_only_what_differs_names_a_panel(tmp_path):
    """And of that no more than tells all of them apart."""
    first, second = ({"title": "ResNet", "settings": f"checkpoint: {name}/1.pt\nseed: {name}"} for name in (1, 2))
    assert told(tmp_path, first, second) == ["seed 1", "seed 2"]
    four = [{"title": title, "seed": seed, "bn": "batch"} for title in ("ResNet", "VGG") for seed in (1, 2)]
    assert told(tmp_path, *four) == ["ResNet, seed 1", "ResNet, seed 2", "VGG, seed 1", "VGG, seed 2"]
    assert told(tmp_path, {"title": "ResNet", "seed": 1}, {"title": "VGG", "seed": 2}) == ["ResNet", "VGG"]
    assert told(tmp_path, {"title": "ResNet"}, {"title": "ResNet"}) == ["0-x", "1-x"]
    same = read_at_once(make(tmp_path / "x.h5"))
    assert titles.labels(["a/x.h5", "b/x.h5"], [same, same]) == ["a/x", "b/x"]


def test_hostile_names_are_text(tmp_path, figures):
    files = [make(tmp_path / f"{i}.h5", PLANE, title=HOSTILE * i or "plain") for i in (0, 1)]
    plot(files, str(tmp_path / "a.png"), title="$x$")
    plot(files, str(tmp_path / "b.gif"), dpi=40)
    plot(files, str(tmp_path / "c.png"), difference=True)
    said = texts(figures[0])
    assert "\\x1b" in said and "\x1b" not in said and "<script>" in said


# Lines


def test_lines_share_an_axis_in_colours_of_their_own(tmp_path, figures):
    files = [make(tmp_path / f"{i}.h5", (Axis(-1, 1, 5 + i),), times(i + 1), seed=i) for i in range(3)]
    plot(files, vmin=0, vmax=4000)
    (axes,) = figures[0].axes
    lines = [line for line in axes.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["seed 0", "seed 1", "seed 2"]
    assert len({line.get_color() for line in lines}) == 3 and axes.get_ylim() == (0, 4000)
    for i, line in enumerate(lines):
        np.testing.assert_allclose(line.get_xdata(), np.linspace(-1, 1, 5 + i))
        np.testing.assert_allclose(line.get_ydata(), (i + 1) * slanted(np.linspace(-1, 1, 5 + i)))


def hill(height):
    """Between models of the values 1 and 2, on the straight line between which a parabola of this height stands."""
    return lambda x: 1 + x + 4 * height * x * (1 - x)


def test_lines_between_models_say_their_barriers(tmp_path, figures):
    files = [
        make(tmp_path / f"{h}.h5", LINE, hill(h), settings=f"directions: interpolation\nto: {h}.pt") for h in (3, 5)
    ]
    plot(files)
    said = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert said == ["3.pt, barrier: 3 at 0.5", "5.pt, barrier: 5 at 0.5"]


# The difference


@pytest.mark.parametrize("kind", ["heatmap", "contour", "surface"])
def test_a_difference_is_the_second_less_the_first(tmp_path, figures, kind):
    files = [make(tmp_path / "a.h5", PLANE), make(tmp_path / "b.h5", PLANE, lambda x, y: slanted(x, y) + x - 3 * y)]
    assert plot(files, difference=True, kind=kind, dpi=50) == str(tmp_path / "a.png")
    said = texts(figures[0])
    assert "minimum: -10 at (-1, 3)" in said and "maximum: 7 at (1, -2)" in said
    assert "loss: b \N{MINUS SIGN} a" in said and "difference of loss" in said
    if kind == "heatmap":
        mesh = figures[0].axes[0].collections[0]
        x, y = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-2, 3, 4))
        np.testing.assert_allclose(mesh.get_array(), x - 3 * y, atol=1e-12)
        low, high = mesh.get_clim()
        assert low == -high and mesh.get_cmap().name == "RdBu_r"


def test_a_difference_is_centred_whatever_limits_and_levels_say(tmp_path, figures):
    files = planes(tmp_path, 2)
    plot(files, difference=True, kind="heatmap", vmax=500)
    plot(files, difference=True, kind="heatmap", levels=[0, 10, 2000], cmap="PuOr")
    plot([files[0], files[0]], difference=True, kind="heatmap")
    meshes = [figure.axes[0].collections[0] for figure in figures]
    assert [mesh.get_clim() for mesh in meshes] == [(-500, 500), (-2000, 2000), (-1, 1)]
    assert meshes[1].get_cmap().name == "PuOr"


def test_a_difference_has_a_gap_where_either_file_has(tmp_path, figures):
    files = planes(tmp_path, 2)
    make(files[0], PLANE, done=np.arange(20).reshape(5, 4) < 7)
    plot(files, difference=True, kind="heatmap")
    assert np.isnan(figures[0].axes[0].collections[0].get_array().filled(np.nan)).sum() == 13


def test_differences_of_lines_and_volumes_have_no_barrier(tmp_path, figures):
    lines = [make(tmp_path / f"{h}.h5", LINE, hill(h), settings="directions: interpolation") for h in (3, 5)]
    plot(lines, difference=True)
    np.testing.assert_allclose(
        figures[0].axes[0].lines[0].get_ydata(), [hill(5)(x) - hill(3)(x) for x in LINE[0].coordinates]
    )
    assert "barrier" not in texts(figures[0])
    volumes = [make(tmp_path / f"{i}.h5", VOLUME, times(i)) for i in (1, 2)]
    plot(volumes, difference=True, kind="heatmap")
    assert figures[1].axes[0].collections[0].get_array().min() == slanted(-1, -1, 0)


@pytest.mark.parametrize("other", [(Axis(-1, 1, 5), Axis(-2, 3, 5)), (Axis(-1, 1, 5), Axis(-2, 3.00001, 4))])
def test_grids_that_do_not_coincide_have_no_difference(tmp_path, other):
    files = [make(tmp_path / "a.h5", PLANE), make(tmp_path / "b.h5", other)]
    with pytest.raises(UserError, match=r"are not on one grid: y is -2:3:4 and -2:3"):
        plot(files, difference=True)


def test_rounding_does_not_part_grids(tmp_path):
    files = planes(tmp_path, 2)
    with h5py.File(files[1], "r+", locking=False) as file:
        file["x"][...] += 1e-11
    plot(files, difference=True, dpi=50)


# Animations


def test_a_gif_has_a_frame_for_each_file_in_their_order_on_one_scale(tmp_path, monkeypatch):
    files = planes(tmp_path, 3)
    first = np.arange(20).reshape(5, 4) < 7  # done; of which a line more tells, above the plane
    done = make(files[1], PLANE, times(2), done=first, settings="checkpoint: runs/epoch1.pt\nseed: 3")
    drawn = []
    from matplotlib.backends import backend_agg

    made = backend_agg.FigureCanvasAgg.__init__
    monkeypatch.setattr(
        backend_agg.FigureCanvasAgg, "__init__", lambda self, figure: (made(self, figure), drawn.append(figure))[0]
    )
    assert plot([files[2], done, files[0]], animate=True, kind="heatmap", fps=5, dpi=60) == str(tmp_path / "2.gif")
    last = drawn[-3:]
    meshes = [figure.axes[0].collections[0] for figure in last]
    assert [float(mesh.get_array().max()) for mesh in meshes] == [3 * 1031, 2 * 1029, 1031]
    assert len({mesh.get_clim() for mesh in meshes}) == 1
    alone, steady = (
        np.array([figure.axes[0].get_position(original=True).extents for figure in figures])
        for figures in (drawn[:-3], last)
    )
    assert (alone[0] != alone[1]).any()  # where matplotlib puts the panel, if it knows of no other frame
    np.testing.assert_array_equal(steady, [[*alone[:, :2].max(axis=0), *alone[:, 2:].min(axis=0)]] * 3)
    assert "7 of 20 points done" in texts(last[1]) and "epoch0.pt" in texts(last[2])
    with Image.open(tmp_path / "2.gif") as image:
        durations = []
        for i in range(image.n_frames):
            image.seek(i)
            durations.append(image.info["duration"])
            frame = image.convert("RGB")
            assert frame.getpixel((1, 1)) == (255, 255, 255) and frame.size == (336, 312)
        assert durations == [200] * 3 and image.info["loop"] == 0


def test_frames_of_lines_have_one_axis_with_all_values_in_it(tmp_path, monkeypatch):
    files = [make(tmp_path / f"{i}.h5", (Axis(-1, 1, 5),), lambda x, i=i: x * i) for i in (1, 50)]
    drawn = []
    monkeypatch.setattr(Figure, "set_dpi", lambda self, dpi: drawn.append(self), raising=True)
    plot(files, str(tmp_path / "a.gif"))  # the suffix asks for an animation
    assert {figure.axes[0].get_ylim() for figure in drawn} == {(-50, 50)}


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="no ffmpeg")
def test_an_mp4_has_the_frames_and_lasts_as_long(tmp_path):
    output = plot(planes(tmp_path, 3), str(tmp_path / "a.mp4"), kind="heatmap", fps=2, dpi=61)
    asked = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", output]
    (stream,) = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)["streams"]
    assert stream["nb_read_frames"] == "3" and float(stream["duration"]) == pytest.approx(1.5)
    assert stream["pix_fmt"] == "yuv420p" and stream["width"] % 2 == stream["height"] % 2 == 0


def test_without_ffmpeg_there_is_a_gif(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"an \.mp4 is made by ffmpeg, which is not installed; a \.gif needs nothing"):
        plot(planes(tmp_path, 2), str(tmp_path / "a.mp4"))


def test_an_ffmpeg_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").write_text("#!/bin/sh\necho 'no encoder here' >&2\nexit 3\n")
    (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(UserError, match=r"ffmpeg cannot make the \.mp4, take \.gif: no encoder here"):
        plot(planes(tmp_path, 2), str(tmp_path / "a.mp4"), dpi=40)
    assert (tmp_path / "a.mp4").read_bytes() == b"old" and not list(tmp_path.glob("*.tmp"))


OWN = """
from matplotlib.figure import Figure
from hpc_landscape.view.base import YES, Picture

class Histogram(Picture):
    def suits(self, shape):
        return YES

    def draw(self, shown):
        figure = Figure(layout="constrained")
        figure.add_subplot().hist(shown.fields[0].finite)
        return figure
"""


def test_a_picture_of_the_user_s_own_moves_and_stands_alone(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    files, kind = planes(tmp_path, 2), f"{tmp_path}/mine.py:Histogram"
    with Image.open(plot(files, animate=True, kind=kind, dpi=40)) as image:
        assert image.n_frames == 2
    plot(files, str(tmp_path / "a.png"), difference=True, kind=kind, dpi=40)
    with pytest.raises(UserError, match="a histogram shows one file; give one, or --animate"):
        plot(files, kind=kind)


# Mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.h5", "line.h5"], "line.h5 has 1 axis and a.h5 2 axes; files in one picture have the same number"),
        (["a.h5", "b.h5", "--metric", "accuracy"], "a.h5 has no metric 'accuracy'; it has loss, wall_time"),
        (["line.h5", "line.h5", "--metric", "loss,wall_time"], "several files show one metric"),
        (["cube.h5", "cube.h5"], "cube.h5 has three axes; several files side by side have two"),
        (["a.h5", "b.h5", "empty.h5"], "empty.h5: no point is done yet"),
        (["a.h5"] * 21, "21 files: at most 20 side by side"),
        (["line.h5"] * 21, "21 files: at most 20 lines in one axis"),
        (["a.h5", "b.h5", "--html"], "--html makes a page of one file"),
        (["a.h5", "b.h5", "-o", "a.html"], "--html makes a page of one file"),
        (["a.h5", "--difference"], "--difference is of two files, and 1 is given"),
        (["a.h5", "b.h5", "a.h5", "--difference"], "--difference is of two files, and 3 are given"),
        (["a.h5", "b.h5", "--difference", "--log"], "--difference has values below 0: leave out --log"),
        (["a.h5", "b.h5", "--difference", "--animate"], "are two pictures; take one"),
        (["a.h5", "--animate"], "--animate shows several files one after the other, and one is given"),
        (["a.h5", "b.h5", "--animate", "--fps", "0"], "--fps 0: expected 0.1 to 50"),
        (["a.h5", "b.h5", "--animate", "--fps", "nan"], "--fps nan: expected 0.1 to 50"),
        (
            ["a.h5", "b.h5", "--animate", "-o", "a.png"],
            "unknown suffix '.png'; the suffix chooses the format: .gif, .mp4",
        ),
        (["a.h5", "-o", "a.gif"], "unknown suffix '.gif'"),
        (["a.h5", "b.h5", "--animate", "-o", "nowhere/a.gif"], "there is no directory nowhere"),
        (["a.h5", "gone.h5"], "gone.h5"),
        (["a.h5", "b.h5", "-o", "b.h5"], "unknown suffix '.h5'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5", "b.h5"):
        make(name, PLANE)
    make("line.h5", LINE)
    make("cube.h5", VOLUME)
    make("empty.h5", PLANE, done=np.zeros((5, 4)))
    before = sorted(p.name for p in tmp_path.iterdir())
    if "gone.h5" in words:
        monkeypatch.undo()  # the reader that is at once looks at no missing file
        monkeypatch.chdir(tmp_path)
    assert main(["plot", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_command_takes_several_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    planes(tmp_path, 2)
    options = ["--kind", "heatmap", "--dpi", "40"]
    assert main(["plot", "0.h5", "1.h5", *options]) == 0 and capsys.readouterr().out == "0.png\n"
    assert main(["plot", "0.h5", "1.h5", "--animate", *options]) == 0 and capsys.readouterr().out == "0.gif\n"


def test_the_library_takes_a_path_or_several(tmp_path):
    files = planes(tmp_path, 2)
    assert hpc_landscape.plot(tmp_path / "0.h5", dpi=40) == str(tmp_path / "0.png")
    assert hpc_landscape.plot(files, str(tmp_path / "both.png"), kind="heatmap", dpi=40) == str(tmp_path / "both.png")
    with pytest.raises(UserError, match="no file"):
        hpc_landscape.plot([])
