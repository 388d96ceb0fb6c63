"""A 2-D landscape as a surface in ParaView.

In its window: open the file, then run this by Macros > Import new macro. Without one:
pvpython paraview_surface.py landscape.h5 landscape.png
"""

import math
import sys

from paraview import simple

METRIC = "loss"
LOG = True  # the height is the logarithm, where all values are positive
HEIGHT = 0.5  # of the surface, in sides of the plane
ELEVATION, AZIMUTH = 35, -60  # of the eye, in degrees


def surface(source):
    """Show the metric of the plane as height and colour; points without a value are holes."""
    source.UpdatePipeline()
    low, high = source.GetPointDataInformation().GetArray(METRIC).GetRange(0)
    left, right, front, back = source.GetDataInformation().GetBounds()[:4]
    log = LOG and low > 0
    span = (math.log10(high / low) if log else high - low) or 1.0
    there = simple.Threshold(Input=source, Scalars=["POINTS", METRIC], LowerThreshold=low, UpperThreshold=high)
    height = simple.Calculator(Input=there, ResultArrayName="height", Function=f"log10({METRIC})" if log else METRIC)
    factor = HEIGHT * max(right - left, back - front) / span
    warped = simple.WarpByScalar(Input=height, Scalars=["POINTS", "height"], ScaleFactor=factor)
    view = simple.GetActiveViewOrCreate("RenderView")
    simple.Hide(source, view)
    display = simple.Show(warped, view)
    simple.ColorBy(display, ("POINTS", METRIC))
    colors = simple.GetColorTransferFunction(METRIC)
    colors.ApplyPreset("Viridis (matplotlib)", True)
    colors.RescaleTransferFunction(low, high)
    if log:
        colors.MapControlPointsToLogSpace()
        colors.UseLogScale = 1
    display.SetScalarBarVisibility(view, True)
    bar = simple.GetScalarBar(colors, view)
    bar.ScalarBarLength, bar.LabelFontSize, bar.TitleFontSize = 0.6, 12, 14
    look(view)
    return view


def look(view):
    """From above and aside, and all of it."""
    up, around = math.radians(ELEVATION), math.radians(AZIMUTH)
    view.CameraFocalPoint = [0, 0, 0]
    view.CameraPosition = [math.cos(up) * math.cos(around), math.cos(up) * math.sin(around), math.sin(up)]
    view.CameraViewUp = [0, 0, 1]
    view.ResetCamera(False)
    nearer = [end + 0.75 * (eye - end) for eye, end in zip(view.CameraPosition, view.CameraFocalPoint, strict=True)]
    view.CameraPosition = nearer
    simple.Render(view)


if len(sys.argv) == 3:
    path, picture = sys.argv[1:]
    hdf = path.endswith((".h5", ".vtkhdf"))
    shown = surface(simple.VTKHDFReader(FileName=path) if hdf else simple.OpenDataFile(path))
    like = {"OverrideColorPalette": "WhiteBackground", "FontScaling": "Do not scale fonts"}
    simple.SaveScreenshot(picture, shown, ImageResolution=[1200, 900], **like)
else:
    surface(simple.GetActiveSource())
