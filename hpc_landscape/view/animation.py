"""Several files one after the other, on one scale: a GIF, or an MP4 where there is ffmpeg."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from . import sheet
from .output import write_whole
from .scale import Scale
from .several import about, title
from .sheet import Options, Source
from .titles import labels

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox
    from PIL.Image import Image as Frame

SUFFIXES = (".gif", ".mp4")
DPI = 120
SLOWEST, FASTEST = 0.1, 50.0  # files per second: browsers slow down what is faster


def animation(paths: Sequence[str], output: str, options: Options, fps: float) -> str:
    """Draw the files in their order, each for 1 / fps seconds; returns output.

    Raises UserError where they cannot be drawn on one scale, and nothing is written.
    """
    if not SLOWEST <= fps <= FASTEST:
        raise UserError(f"--fps {fps:g}: expected {SLOWEST:g} to {FASTEST:g} files per second")
    suffix, picture, sources = sheet.read_all(paths, output, SUFFIXES, options)
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserError(f"{output}: an .mp4 is made by ffmpeg, which is not installed; a .gif needs nothing")
    names = labels(paths, [source.stored for source in sources])
    scale = sheet.common_scale(sources, options)
    limits = _limits(sources, scale, options)
    shown = [replace(one, limits=limits) for one in sheet.shown_of(sources, [scale], options)]

    def draw(i: int) -> FigureCanvasAgg:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = picture.draw(shown[i])
        figure.set_dpi(options.dpi or DPI)
        named = [] if options.title is None else [names[i]]
        made, *missing = about(sources[i : i + 1], names[i : i + 1], figure)
        sheet.head(figure, options.title, f"{title(sources)}: {names[i]}", [made, *named, *missing])
        return FigureCanvasAgg(figure)

    with sheet.look():
        frame = _steady(draw, len(paths))
        write = _write_gif if suffix == ".gif" else _write_mp4
        write_whole(output, lambda name: write(name, frame, len(paths), fps))
    return output


def _limits(sources: Sequence[Source], scale: Scale, options: Options) -> tuple[float, float]:
    """The ends of a line's axis: all values are inside, unless other ends are asked for."""
    values = np.concatenate([source.fields[0].finite for source in sources])
    values = np.append(values[values > 0] if scale.log else values, scale.levels[[0, -1]])
    low = float(values.min()) if options.vmin is None else options.vmin
    high = float(values.max()) if options.vmax is None else options.vmax
    return low, high


def _steady(draw: Callable[[int], FigureCanvasAgg], n: int) -> Callable[[int], Frame]:
    """From i to the i-th frame: every panel stays where there is room for it in all frames, whatever its labels."""
    from matplotlib.transforms import Bbox
    from PIL import Image

    def places(i: int) -> list[Bbox]:
        figure = draw(i).figure
        figure.draw_without_rendering()
        return [axes.get_position(original=True) for axes in figure.axes]

    def common(boxes: Sequence[Bbox]) -> Bbox:
        corners = np.array([box.extents for box in boxes])
        return Bbox.from_extents(*corners[:, :2].max(axis=0), *corners[:, 2:].min(axis=0))

    room = [common(boxes) for boxes in zip(*map(places, range(n)), strict=True)]

    def frame(i: int) -> Frame:
        canvas = draw(i)
        canvas.figure.set_layout_engine("none")
        for axes, box in zip(canvas.figure.axes, room, strict=True):
            axes.set_position(box)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    return frame


def _write_gif(name: str, frame: Callable[[int], Frame], n: int, fps: float) -> None:
    """Each frame with the 256 colours that suit it."""
    first, *rest = (frame(i).quantize(256) for i in range(n))
    first.save(name, "GIF", save_all=True, append_images=rest, duration=round(100 / fps) * 10, loop=0)


def _write_mp4(name: str, frame: Callable[[int], Frame], n: int, fps: float) -> None:
    """By ffmpeg, in colours that every player shows; these need an even number of pixels."""
    first = frame(0)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{first.width}x{first.height}"]
    even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        made = os.path.join(folder, "animation.mp4")  # in which ffmpeg goes back to and fro
        command = ["ffmpeg", "-loglevel", "error", *raw, "-framerate", f"{fps:g}", "-i", "-", *even, made]
        with suppress(BrokenPipeError), subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as ffmpeg:
            assert ffmpeg.stdin is not None
            for i in range(n):
                ffmpeg.stdin.write(frame(i).tobytes())
        if ffmpeg.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").split("\n")
            raise UserError(f"ffmpeg cannot make the .mp4, take .gif: {next(filter(None, lines), ffmpeg.returncode)}")
        shutil.copyfile(made, name)
