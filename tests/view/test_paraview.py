"""The pipeline of docs/paraview_surface.py, with VTK's own filters, and off the screen."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from test_view_files import make

from hpc_landscape.grid import Axis

MACRO = Path(__file__).parents[2] / "docs" / "paraview_surface.py"
SQUARE = (Axis(-1, 1, 11), Axis(-2, 2, 9))


def constants():
    """What the macro sets: METRIC, LOG, HEIGHT, ..."""
    tree = ast.parse(MACRO.read_text(encoding="utf-8"))
    plain = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in plain}


def warped(path):
    """The macro's filters: threshold, calculator, warp; and the range of the values."""
    vtk = pytest.importorskip("vtk")
    set_to = constants()
    reader = vtk.vtkHDFReader()
    reader.SetFileName(path)
    reader.Update()
    low, high = reader.GetOutput().GetPointData().GetArray(set_to["METRIC"]).GetRange()
    there = vtk.vtkThreshold()
    there.SetInputConnection(reader.GetOutputPort())
    there.SetInputArrayToProcess(0, 0, 0, 0, set_to["METRIC"])
    there.SetLowerThreshold(low)
    there.SetUpperThreshold(high)
    height = vtk.vtkArrayCalculator()
    height.SetInputConnection(there.GetOutputPort())
    height.AddScalarArrayName(set_to["METRIC"])
    height.SetFunction(f"log10({set_to['METRIC']})")
    height.SetResultArrayName("height")
    warp = vtk.vtkWarpScalar()
    warp.SetInputConnection(height.GetOutputPort())
    warp.SetInputArrayToProcess(0, 0, 0, 0, "height")
    warp.SetScaleFactor(set_to["HEIGHT"] * 4 / np.log10(high / low))  # 4: the plane's longer side
    warp.Update()
    return vtk, warp, (low, high)


def hilly(x, y):
    return 10 ** (x + 0.25 * y)  # the logarithm is a slanted plane


def test_the_surface_is_the_landscape_with_holes_where_points_are_missing(tmp_path):
    done = np.ones((11, 9), bool)
    done[2, 3] = False
    vtk, warp, _ = warped(make(tmp_path / "a.h5", SQUARE, hilly, done=done))
    from vtk.util.numpy_support import vtk_to_numpy

    x, y, z = vtk_to_numpy(warp.GetOutput().GetPoints().GetData()).astype(float).T
    assert len(x) == 11 * 9 - 1 and warp.GetOutput().GetNumberOfCells() == 10 * 8 - 4
    span = 3.0 * 1.0  # from -1.5 to 1.5, decades
    np.testing.assert_allclose(z, 0.5 * 4 / span * (x + 0.25 * y), atol=1e-5)


def test_it_is_drawn(tmp_path):
    vtk, warp, (low, high) = warped(make(tmp_path / "a.h5", SQUARE, hilly))
    from vtk.util.numpy_support import vtk_to_numpy

    mapper = vtk.vtkDataSetMapper()
    mapper.SetInputConnection(warp.GetOutputPort())
    mapper.SetScalarModeToUsePointFieldData()
    mapper.SelectColorArray("loss")
    mapper.SetScalarRange(low, high)
    actor = vtk.vtkActor()
    actor.SetMapper(mapper)
    renderer = vtk.vtkRenderer()
    renderer.AddActor(actor)
    renderer.SetBackground(1, 1, 1)
    renderer.GetActiveCamera().SetPosition(0.4, -0.7, 0.6)
    renderer.GetActiveCamera().SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetSize(200, 150)
    window.AddRenderer(renderer)
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.Update()
    pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(150, 200, 3)
    drawn = (pixels < 250).any(axis=2)
    assert 0.1 < drawn.mean() < 0.9 and len(np.unique(pixels[drawn], axis=0)) > 20
