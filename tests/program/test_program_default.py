"""The default job on real digits: its file, against the same points computed by hand."""

import re

import h5py
import numpy as np
import pytest
import torch
from programs import run_program
from torch.nn import functional as F

from hpc_landscape.problems.digits import SmallResNet, load_digits

BATCH = 479  # 1,437 images in three equal batches: then the warm-up is update_bn's average


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("default")
    options = ["--x=-1:1:5", "--y=-0.5:1:4", f"--batch_size={BATCH}"]
    return folder, run_program(*options, folder=folder)


def test_it_trains_a_network_that_is_right_on_held_out_images(job):
    folder, done = job
    assert done.code == 0, done
    right = float(re.search(r"([\d.]+)% of 360 held-out", done.out)[1])
    assert right >= 97


def test_it_says_what_it_does_and_where_the_results_are(job):
    folder, done = job
    for word in ("problem", "parameters", "directions", "grid", "ranks", "writer", "centre", "minimum", "landscape.h5"):
        assert word in done.out
    assert (folder / "landscape.png").stat().st_size > 10_000


def test_its_values_are_those_of_update_bn_and_an_evaluation_by_hand(job):
    folder, _ = job
    (images, labels), _ = load_digits()
    with h5py.File(folder / "landscape.h5") as file:
        origin = {name: torch.from_numpy(np.asarray(d[()])) for name, d in file["model"].items()}
        moves = [
            {name: torch.from_numpy(np.asarray(d[()])) for name, d in file[f"directions/along_{a}"].items()}
            for a in "xy"
        ]
        x, y, loss, accuracy = (file[name][()] for name in ("x", "y", "loss", "accuracy"))
    np.testing.assert_array_equal(x, np.linspace(-1, 1, 5))
    np.testing.assert_array_equal(y, np.linspace(-0.5, 1, 4))
    model = SmallResNet(12)
    for i, j in np.ndindex(5, 4):
        moved = {n: t + x[i] * moves[0][n] + y[j] * moves[1][n] if n in moves[0] else t for n, t in origin.items()}
        model.load_state_dict(moved)
        torch.optim.swa_utils.update_bn([(batch,) for batch in images.split(BATCH)], model)
        model.eval()
        with torch.no_grad():
            output = model(images).double()
        assert loss[i, j] == pytest.approx(F.cross_entropy(output, labels).item(), rel=1e-5)
        assert accuracy[i, j] == pytest.approx((output.argmax(1) == labels).double().mean().item(), abs=2 / len(labels))


def test_its_directions_are_filter_normalized(job):
    folder, _ = job
    with h5py.File(folder / "landscape.h5") as file:
        for name, direction in file["directions/along_x"].items():
            w, d = file["model"][name][()].astype(np.float64), direction[()].astype(np.float64)
            if w.ndim < 2:
                assert not d.any()
            else:
                norms = [np.linalg.norm(a.reshape(len(a), -1), axis=1) for a in (d, w)]
                np.testing.assert_allclose(*norms, rtol=1e-5)
