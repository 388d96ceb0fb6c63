"""plot: pictures, an interactive page, several landscapes, an animation."""

from __future__ import annotations

import argparse

from ..kinds import VIEWS

DESCRIPTION = "Draw a stored landscape, or several on one scale; --html makes a page to turn, zoom and point at."


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be said of a picture."""
    kinds = f"{', '.join(VIEWS.names())}, or {VIEWS.own}; default: line for one axis, contour for two and three"
    metric = "default: loss; one component: NAME[0]; on a line also two: loss,accuracy; of an ensemble also NAME.q95"
    parser.add_argument("files", nargs="+", metavar="FILE", help="a landscape file; several: side by side, or one axis")
    parser.add_argument(
        "-o", "--output", help="picture: .png, .pdf or .svg; .html; animation: .gif or .mp4 (default: beside the file)"
    )
    parser.add_argument("--html", action="store_true", help="one page that works offline, in any browser")
    parser.add_argument("--difference", action="store_true", help="of two files on one grid: the second less the first")
    parser.add_argument("--animate", action="store_true", help="the files in their order, on one scale: .gif, .mp4")
    parser.add_argument("--fps", type=float, default=4.0, help="files a second (default: %(default)s)")
    parser.add_argument("--metric", help=metric)
    parser.add_argument("--kind", help=kinds)
    parser.add_argument("--log", action=argparse.BooleanOptionalAction, help="default: where the values span decades")
    parser.add_argument("--levels", type=_levels, default=12, metavar="N|A,B,...", help="about how many, or which")
    parser.add_argument("--vmin", type=float, help="lowest value of the scale")
    parser.add_argument("--vmax", type=float, help="highest value of the scale")
    parser.add_argument("--title", help="instead of title and description; empty for none")
    parser.add_argument("--cmap", help="matplotlib's colour map (default: viridis, of a difference RdBu_r)")
    parser.add_argument("--dpi", type=int, help="default: 200, of an animation 120")
    parser.add_argument("--elevation", type=float, default=35.0, help="of the eye above a surface, in degrees")
    parser.add_argument("--azimuth", type=float, default=-60.0, help="of the eye around it")


def run(options: argparse.Namespace) -> None:
    """Draw, and print the picture's name."""
    from ..view.plot import plot

    given = vars(options)
    print(plot(given.pop("files"), **given))


def _levels(text: str) -> int | list[float]:
    try:
        return [float(level) for level in text.split(",")] if "," in text or "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected how many, or the levels with commas between") from None
