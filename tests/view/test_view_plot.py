"""plot: the right values in the right place, on every shape of file, and one line for every mistake."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pytest
from test_view_files import AXES, make, slanted

from hpc_landscape import commands
from hpc_landscape.cli import main
from hpc_landscape.errors import UserError
from hpc_landscape.grid import Axis
from hpc_landscape.store import layout
from hpc_landscape.store.layout import Quantity
from hpc_landscape.view import scale
from hpc_landscape.view.field import read_field

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

from hpc_landscape.view.plot import plot  # noqa: E402

pytestmark = pytest.mark.usefixtures("at_once")

SUFFIX = {b"\x89PNG": ".png", b"%PDF": ".pdf", b"<?xm": ".svg"}


def axis(n, low=-1.0, high=1.0):
    return Axis(low, high, n)


def bowl(x, y=0.0, z=0.0):
    return 0.5 + x**2 + 2 * (y - 0.1) ** 2 + z**2


def texts(figure):
    """All text of a picture."""
    figure.draw_without_rendering()
    return " | ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text())


# The right place


def test_contour_has_axis_0_across_and_axis_1_up(tmp_path, figures):
    """The level lines of x + 10 y + 1000 pass through just the points at which it has their level."""
    plot(make(tmp_path / "a.h5", (axis(5), axis(4, -2, 3))), levels=[980.0, 990.0, 1000.0, 1010.0, 1030.0], log=False)
    lines = [c for c in figures[0].axes[0].collections if isinstance(c, matplotlib.contour.ContourSet) and not c.filled]
    count = 0
    for level, path in zip(lines[0].levels, lines[0].get_paths(), strict=True):
        for x, y in path.vertices:
            assert slanted(x, y) == pytest.approx(level)
            count += 1
    assert count > 20
    assert figures[0].axes[0].get_xlim() == (-1, 1) and figures[0].axes[0].get_ylim() == (-2, 3)


def test_heatmap_has_axis_0_across_and_axis_1_up(tmp_path, figures):
    plot(make(tmp_path / "a.h5", AXES[2]), kind="heatmap", log=False)
    mesh = figures[0].axes[0].collections[0]
    corners = mesh.get_coordinates()
    centres = (corners[:-1, :-1] + corners[1:, 1:]) / 2
    np.testing.assert_allclose(mesh.get_array(), slanted(centres[..., 0], centres[..., 1]))


def test_surface_has_every_vertex_at_its_value(tmp_path, figures):
    plot(make(tmp_path / "a.h5", AXES[2]), kind="surface", log=False)
    shapes = [c for c in figures[0].axes[0].collections if type(c).__name__ == "Poly3DCollection"]
    x, y, z = np.concatenate([np.asarray(face) for face in shapes[0]._faces]).T
    np.testing.assert_allclose(z, slanted(x, y))
    assert (x.min(), x.max(), y.min(), y.max()) == (-1, 1, -2, 3)


def test_slices_are_those_through_the_origin(tmp_path, figures):
    axes = (axis(3), axis(5, -2, 2), axis(4, 1, 2))  # the third without the origin: its middle
    plot(make(tmp_path / "a.h5", axes), kind="heatmap", log=False)
    titles = ["direction 3 = 1.667", "direction 2 = 0", "direction 1 = 0"]
    assert [panel.get_title() for panel in figures[0].axes[:3]] == titles
    for panel, (across, up, through, at) in zip(
        figures[0].axes, ((0, 1, 2, 5 / 3), (0, 2, 1, 0), (1, 2, 0, 0)), strict=False
    ):
        corners = panel.collections[0].get_coordinates()
        centres = (corners[:-1, :-1] + corners[1:, 1:]) / 2
        place = np.empty((3, *centres.shape[:2]))
        place[across], place[up], place[through] = centres[..., 0], centres[..., 1], at
        np.testing.assert_allclose(panel.collections[0].get_array(), slanted(*place))


def test_line_has_its_values_and_breaks_at_gaps(tmp_path, figures):
    values = {"loss": lambda x: np.where(x == 0, np.nan, bowl(x))}
    plot(make(tmp_path / "a.h5", (axis(5),), values))
    x, y = figures[0].axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, np.linspace(-1, 1, 5))
    np.testing.assert_allclose(y, np.where(x == 0, np.nan, bowl(x)))
    assert "1 NaN" in texts(figures[0])


def test_two_metrics_share_a_line_picture(tmp_path, figures):
    quantities = (Quantity("loss"), Quantity("accuracy"))
    path = make(tmp_path / "a.h5", (axis(5),), {"loss": bowl, "accuracy": lambda x: 1 - x**2}, quantities)
    plot(path, metric="loss, accuracy", vmin=0, vmax=3)
    left, right = figures[0].axes
    assert (left.get_ylabel(), right.get_ylabel(), left.get_ylim()) == ("loss", "accuracy", (0, 3))
    np.testing.assert_allclose(right.lines[0].get_ydata(), 1 - np.linspace(-1, 1, 5) ** 2)


# What is said and marked


def test_the_model_and_the_minimum_are_marked(tmp_path, figures):
    plot(make(tmp_path / "a.h5", (axis(21), axis(21)), bowl))
    said = texts(figures[0])
    assert "trained model: 0.52" in said and "minimum: 0.5 at (0, 0.1)" in said
    offsets = [tuple(c.get_offsets()[0]) for c in figures[0].axes[0].collections if len(c.get_offsets()) == 1]
    assert (0, 0) in offsets and any(np.allclose(o, (0, 0.1)) for o in offsets)
    assert figures[0].axes[0].get_aspect() == 1.0


def test_an_accuracy_has_its_maximum_marked(tmp_path, figures):
    path = make(tmp_path / "a.h5", (axis(5), axis(5)), lambda x, y: 1 - x**2 - y**2, (Quantity("accuracy"),))
    plot(path)
    assert "maximum: 1 at (0, 0)" in texts(figures[0])


def test_the_origin_outside_is_not_marked(tmp_path, figures):
    plot(make(tmp_path / "a.h5", (axis(5, 1, 2), axis(5)), bowl))
    assert "trained model" not in texts(figures[0])


def test_an_interpolation_names_both_models(tmp_path, figures):
    plot(make(tmp_path / "a.h5", (axis(5, 0, 1),), bowl, settings="directions: interpolation"))
    said = texts(figures[0])
    assert "first model: 0.52" in said and "second model: 1.52" in said and "0: first model, 1: second" in said


def test_gaps_are_counted_and_grey(tmp_path, figures):
    def loss(x, y):
        return np.where(x < -0.9, np.nan, np.where(y > 0.9, np.inf, bowl(x, y)))

    plot(make(tmp_path / "a.h5", (axis(5), axis(5)), loss, done=np.arange(25).reshape(5, 5) < 20))
    assert "20 of 25 points done, 5 NaN, 3 infinite; gaps in grey" in texts(figures[0])


def test_how_it_was_made_is_said_and_a_title_replaces_it(tmp_path, figures):
    settings = "problem: digits\ndirections: random\nnormalization: filter\nbn: warmup\n"
    path = make(tmp_path / "a.h5", settings=settings, seed=7)
    plot(path)
    said = texts(figures[0])
    assert "loss of digits" in said and "5 x 4 points, random directions, filter-normalized, seed 7, BN warmup" in said
    assert "direction 1 (filter-normalized)" in said
    plot(path, title=r"$\alpha$ of 100 \$")
    assert r"$\alpha$" in texts(figures[1]) and "seed 7" not in texts(figures[1])
    plot(path, title="")
    assert "digits" not in texts(figures[2])


def test_a_trajectory_is_drawn_over_the_plane(tmp_path, figures):
    path = make(tmp_path / "a.h5", (axis(5), axis(5)), bowl)
    with h5py.File(path, "r+", locking=False) as file:
        file["trajectory/x"], file["trajectory/y"] = [0.9, 0.4, 0.0], [-0.5, -0.2, 0.0]
        file["trajectory/label"] = ["epoch 0", "epoch 1", "$ 2_"]
    plot(path)
    np.testing.assert_array_equal(figures[0].axes[0].lines[0].get_xydata(), [[0.9, -0.5], [0.4, -0.2], [0, 0]])
    said = texts(figures[0])
    assert "epoch 0" in said and "$ 2_" in said and "epoch 1" not in said


def with_trajectory(name, distance=None, **columns):
    with h5py.File(make(name, (axis(5), axis(5)), bowl), "r+", locking=False) as file:
        file["trajectory/x"], file["trajectory/y"] = [0.9, 0.4, 0.1, 0.0], [-0.5, -0.2, 0.0, 0.0]
        for key, column in {"distance": distance, **columns}.items():
            if column is not None:
                file[f"trajectory/{key}"] = column
    return str(name)


def discs(figure):
    """The diameters of the discs around checkpoints, in points."""
    ways = [c for c in figure.axes[0].collections if len(c.get_offsets()) == 4]
    return [np.sqrt(way.get_sizes()) for way in ways]


def test_how_far_checkpoints_are_from_the_plane_is_seen_and_said(tmp_path, figures):
    plot(with_trajectory(tmp_path / "a.h5", [3.0, 1.5, 0.75, 0.0]))
    (diameters,) = discs(figures[0])
    np.testing.assert_allclose((diameters - diameters[3]) / (diameters[0] - diameters[3]), [1, 0.5, 0.25, 0])
    said = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert "1.5 from the plane (Euclidean)" in said and "3 from the plane (Euclidean)" in said
    sizes = {name: np.sqrt(h.get_sizes()) for h, name in zip(figures[0].legends[0].legend_handles, said, strict=True)}
    np.testing.assert_allclose(sizes["1.5 from the plane (Euclidean)"], diameters[1])
    np.testing.assert_allclose(sizes["3 from the plane (Euclidean)"], diameters[0])


def test_paths_share_the_size_of_their_distances(tmp_path, figures):
    path = with_trajectory(
        tmp_path / "a.h5", [1.0, 0.5, 4.0, 2.0], path=[0, 0, 1, 1], label=["a/1", "a/2", "b/1", "b/2"]
    )
    plot(path)
    first, second = (np.sqrt(c.get_sizes()) for c in figures[0].axes[0].collections if len(c.get_offsets()) == 2)
    assert first[1] < first[0] < second[1] < second[0] and "4 from the plane" in texts(figures[0])


@pytest.mark.parametrize("distance", [None, [0.0] * 4, [1.0], "far", [[1.0, 2.0]], [np.nan] * 4])
def test_a_trajectory_without_distances_is_drawn_as_ever(tmp_path, figures, distance):
    plot(with_trajectory(tmp_path / "a.h5", distance))
    assert len(figures[0].axes[0].lines[0].get_xdata()) == 4 and "from the plane" not in texts(figures[0])


def test_a_distance_that_is_no_number_hides_no_other(tmp_path, figures):
    plot(with_trajectory(tmp_path / "a.h5", [np.nan, np.inf, 2.0, -1.0]))
    (diameters,) = discs(figures[0])
    assert np.isfinite(diameters).all() and diameters[0] == diameters[3] and "2 from the plane" in texts(figures[0])


def parabola(x):
    """Between models of 1 and 2 it is 0.75 above the straight line, halfway."""
    return 1 + x + 3 * x * (1 - x)


@pytest.mark.parametrize(("metric", "values"), [("loss", parabola), ("accuracy", lambda x: 3 - parabola(x))])
def test_a_barrier_is_marked_and_said(tmp_path, figures, metric, values):
    path = tmp_path / "a.h5"
    plot(make(path, (axis(9, -0.5, 1.5),), values, (Quantity(metric),), settings="directions: interpolation"))
    assert "barrier: 0.75 at 0.5" in texts(figures[0])
    (mark,) = [line for line in figures[0].axes[0].lines if "barrier" in str(line.get_label())]
    foot = 1.5  # the mean of the ends, of both
    np.testing.assert_allclose(mark.get_xydata(), [[0.5, foot], [0.5, values(0.5)]])
    straight = figures[0].axes[0].lines[figures[0].axes[0].lines.index(mark) - 1].get_xydata()
    np.testing.assert_allclose(straight[[0, -1]], [[0, values(0)], [1, values(1)]])


def test_no_barrier_where_there_are_no_two_models(tmp_path, figures):
    plot(make(tmp_path / "a.h5", (axis(9, -0.5, 1.5),), parabola))
    plot(make(tmp_path / "b.h5", (axis(9, 0.1, 1.5),), parabola, settings="directions: interpolation"))
    assert all("barrier" not in texts(figure) for figure in figures)


def test_a_log_scale_is_taken_where_it_is_needed_and_said(tmp_path, figures):
    path = make(tmp_path / "a.h5", (axis(9), axis(9)), lambda x, y: np.exp(5 * (x**2 + y**2)))
    for log in (None, True, False):
        plot(path, log=log)
    assert ["log scale" in texts(figure) for figure in figures] == [True, True, False]


def test_one_of_several_values_a_point(tmp_path, figures):
    quantity = Quantity("eigenvalues", (2, 2), ("a", "b"))

    def four(x, y):
        return np.stack([x, y, 0 * x, bowl(x, y)], axis=-1).reshape(*x.shape, 2, 2)

    path = make(tmp_path / "a.h5", (axis(5), axis(5)), four, (quantity,))
    plot(path, metric="eigenvalues[1,1]")
    assert "minimum: 0.52 at (0, 0)" in texts(figures[0])
    with pytest.raises(UserError, match=r"choose one of eigenvalues\[0,0\]"):
        plot(path, metric="eigenvalues")
    with pytest.raises(UserError, match="no metric"):
        plot(path, metric="eigenvalues[2,0]")


# Every shape of file


@pytest.mark.parametrize("kind", ["contour", "heatmap", "surface"])
@pytest.mark.parametrize(
    "values",
    [
        lambda x, y: 0 * x + 2.5,
        lambda x, y: 0 * x,
        lambda x, y: x * np.nan,
        lambda x, y: np.where(x * y == 0, np.inf, 1e-30 * (2 + x)),
        lambda x, y: np.where((x == 0) & (y == 0), 1.0, np.nan),
        lambda x, y: np.where(x == 0, 0.0, 10.0 ** (20 * x)),
        lambda x, y: -(10.0 ** (20 * x)),
        lambda x, y: 1 + 1e-15 * x,
        lambda x, y: np.where(x < 0, -1e308, 1e308),
    ],
    ids=["constant", "zero", "nan", "tiny", "lonely", "decades", "negative", "rounding", "huge"],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in dot:RuntimeWarning")  # in matplotlib's projection
def test_values_of_every_kind(tmp_path, kind, values):
    plot(make(tmp_path / "a.h5", (axis(5), axis(4)), values), kind=kind, dpi=50)


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 1), (1, 4), (4, 1), (2, 2), (1, 1, 1), (2, 1, 3), (3, 4, 2)])
def test_grids_of_every_shape(tmp_path, shape, figures):
    path = make(tmp_path / "a.h5", tuple(axis(n) for n in shape), bowl)
    assert plot(path, dpi=50) == str(tmp_path / "a.png")
    if len(shape) == 2:
        plot(path, str(tmp_path / "b.png"), kind="contour", dpi=50)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_formats_and_the_same_bytes_again(tmp_path, suffix):
    path = make(tmp_path / "a.h5")
    first, second = ((tmp_path / plot(path, str(tmp_path / f"{k}{suffix}"))).read_bytes() for k in "ab")
    assert SUFFIX[first[:4]] == suffix and first == second


def test_the_user_s_matplotlib_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    plot(make(tmp_path / "a.h5"))
    assert dict(matplotlib.rcParams) == before


def test_imports_stay_light():
    """Neither torch nor MPI at all, and matplotlib and xarray only when they are needed."""
    code = (
        "import sys, h5py; start = set(sys.modules)\n"
        "from hpc_landscape.view import export, info, plot\n"
        "print({'torch', 'mpi4py', 'matplotlib', 'xarray', 'yaml'} & (set(sys.modules) - start))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# Mistakes


@pytest.mark.parametrize(
    "options, said",
    [
        ({"metric": "losss"}, "no metric 'losss'; it has loss, wall_time"),
        ({"metric": "loss,wall_time"}, "a contour shows one metric"),
        ({"kind": "pie"}, "unknown kind 'pie'"),
        ({"kind": "line"}, "cannot be drawn as line; take contour or surface or heatmap"),
        ({"output": "a.gif"}, "unknown suffix '.gif'"),
        ({"output": "a.h5"}, "unknown suffix '.h5'"),
        ({"output": "nowhere/a.png"}, "there is no directory nowhere"),
        ({"output": "folder.png"}, "is a directory"),
        ({"vmin": 2, "vmax": 1}, "vmin 2 must be less than vmax 1"),
        ({"log": True, "vmin": -1}, "begins above 0"),
        ({"log": True, "vmax": 0}, "ends above 0"),
        ({"levels": 1}, "levels 1"),
        ({"levels": [3]}, "at least two"),
        ({"levels": [0, 1], "log": True}, "level 0"),
        ({"cmap": "rainbowest"}, "unknown colour map"),
        ({"dpi": 0}, "dpi 0"),
        ({"elevation": np.nan}, "elevation nan"),
        ({"azimuth": np.inf}, "azimuth inf"),
        ({"html": True, "kind": "contour"}, "--kind is of pictures"),
        ({"html": True, "levels": 5}, "--levels is of pictures"),
        ({"title": r"$\nonsense$"}, "not a formula"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    make("a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(UserError, match=said) as error:
        plot("a.h5", **options)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "folder.png"]
    assert (tmp_path / "a.h5").read_bytes() == before


def test_no_log_without_positive_values_and_no_surface_of_a_line(tmp_path):
    with pytest.raises(UserError, match="log scale needs positive values"):
        plot(make(tmp_path / "a.h5", values=lambda x, y: -slanted(x, y)), log=True)
    with pytest.raises(UserError, match="cannot be drawn as surface; take line"):
        plot(make(tmp_path / "b.h5", AXES[1]), kind="surface")
    with pytest.raises(UserError, match="cannot be drawn as surface"):
        plot(make(tmp_path / "c.h5", (axis(1), axis(4))), kind="surface")


def test_nothing_done_yet(tmp_path):
    with pytest.raises(UserError, match="no point is done yet"):
        plot(make(tmp_path / "a.h5", done=np.zeros((5, 4))))
    assert not (tmp_path / "a.png").exists()


def test_a_landscape_is_never_overwritten(tmp_path):
    path, other = make(tmp_path / "a.png"), make(tmp_path / "b.png")  # landscapes in spite of their names
    for output in (path, other):
        with pytest.raises(UserError, match="is not overwritten"):
            plot(path, output)


def test_a_write_that_fails_leaves_the_old_picture(tmp_path, monkeypatch):
    path, picture = make(tmp_path / "a.h5"), tmp_path / "a.png"
    picture.write_bytes(b"old")

    def full(self, name, **options):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UserError, match="No space left"):
        plot(path)
    assert picture.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_matplotlib_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"needs matplotlib: pip install 'hpc_landscape\[plot\]'"):
        plot(make(tmp_path / "a.h5"))


# The scale


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("span", [(0.1, 0.11), (0.03, 7.2), (1, 1e3), (1e-12, 1e6), (2e-30, 3e-30), (1, 1 + 1e-9)])
def test_levels_increase_enclose_and_are_round_and_few(log, span):
    values = np.linspace(*span, 50) if not log else np.geomspace(*span, 50)
    chosen = scale.choose(values, log=log)
    levels = chosen.levels
    assert (np.diff(levels) > 0).all() and 4 <= len(levels) <= 24
    assert levels[0] <= span[0] * (1 + 1e-9) and levels[-1] >= span[1] * (1 - 1e-9)
    assert len(set(chosen.texts)) == len(levels)
    np.testing.assert_allclose([float(text) for text in chosen.texts], levels, rtol=1e-9, atol=1e-12 * levels[-1])


def test_limits_bound_the_levels():
    chosen = scale.choose(np.linspace(0, 10, 100), vmin=1.3, vmax=7.7)
    assert chosen.levels[0] == 1.3 and chosen.levels[-1] == 7.7 and chosen.extend == "both"
    assert scale.choose(np.linspace(0, 10, 100), levels=[0, 5, 20]).extend == "neither"


def test_when_a_log_scale_is_taken():
    flat, steep = np.linspace(1, 10, 100), np.geomspace(1e-3, 1e3, 100)
    assert not scale.choose(flat).log and scale.choose(steep).log
    assert not scale.choose(-steep).log and scale.choose(np.append(steep, 0.0)).log
    assert not scale.choose(steep, vmin=-1).log and not scale.choose(steep, vmax=-1).log
    assert not scale.choose(steep, log=False).log


def test_an_outlier_does_not_take_all_the_colours():
    values = np.append(np.linspace(-1, 1, 1000), 1e9)
    chosen = scale.choose(values)
    assert chosen.levels[-1] < 2 and chosen.extend == "max"


def test_numbers_as_a_reader_writes_them():
    assert scale.numbers([0.1, 1000, 2e4, 1e-5, -0.0]) == ["0.1", "1000", "2e4", "1e-5", "0"]
    assert scale.numbers([1.00001, 1.00002]) == ["1.00001", "1.00002"]


def test_the_extreme_of_several_is_the_nearest_to_the_origin_however_far_that_is(tmp_path):
    path = make(tmp_path / "a.h5", (axis(3, -1e300, 2e300), axis(3, -1, 1)), lambda x, y: 0 * x)
    assert read_field(path, layout.read(path), "loss").best is not None  # and no warning


def test_an_interrupt_ends_a_command_without_a_word(tmp_path, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.command("plot"), "run", interrupted)
    assert main(["plot", make(tmp_path / "a.h5")]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["a,b", "x", "1,"])
def test_levels_that_are_no_numbers(tmp_path, capsys, text):
    assert main(["plot", make(tmp_path / "a.h5"), "--levels", text]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "expected how many, or the levels with commas between" in said


@pytest.mark.parametrize("n", [6, 11, 21])
@pytest.mark.parametrize("size", [0.5, 1.0, 1.2, 2.0])
def test_levels_increase_where_the_lowest_value_is_one_but_for_rounding(n, size):
    x, y = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n))
    for log in (True, False):
        assert (np.diff(scale.choose((size * (x**2 + y**2)).reshape(-1), log).levels) > 0).all()


@pytest.mark.parametrize(
    ("name", "larger"),
    [("accuracy", True), ("test_accuracy", True), ("expected_return", True), ("f1", True), ("loss", False)]
    + [("cauchy_loss", False), ("returned_loss", False)],
)
def test_which_metrics_are_better_where_they_are_larger(tmp_path, name, larger):
    path = make(tmp_path / "a.h5", values={name: slanted}, quantities=(Quantity(name),))
    assert read_field(path, layout.read(path), name).larger_is_better == larger
