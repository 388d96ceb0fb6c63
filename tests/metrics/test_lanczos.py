"""Eigenvalues by Lanczos iterations, against NumPy's of the same matrices and SciPy's ARPACK."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_landscape.metrics import lanczos


class Matrix:
    """A symmetric matrix with these eigenvalues that counts its products. noise: of them, relative to the norm."""

    def __init__(self, eigenvalues: np.ndarray, noise: float = 0.0, seed: int = 0):
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))[0]
        A = (Q * eigenvalues) @ Q.T
        self.A, self.noise = torch.from_numpy((A + A.T) / 2), noise * float(np.abs(eigenvalues).max())
        self.expected = np.sort(eigenvalues)
        self.products = 0
        self.start = torch.from_numpy(rng.standard_normal(len(eigenvalues)))
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, vector: Tensor) -> Tensor:
        self.products += 1
        off = torch.randn(len(vector), generator=self.generator, dtype=torch.float64)
        return self.A @ vector + self.noise * off / off.norm()

    def ends(self, low: int, high: int, tolerance: float = 1e-5, floor: float = 1e-3) -> lanczos.Ends:
        return lanczos.ends(self, self.start, low, high, tolerance, floor)

    def wanted(self, low: int, high: int) -> np.ndarray:
        return np.concatenate([self.expected[:low], self.expected[len(self.expected) - high :]])


def network(size: int, seed: int = 1) -> np.ndarray:
    """Few large ones, and many around zero."""
    rng = np.random.default_rng(seed)
    half = size // 2 - 2
    return np.concatenate([-(10 ** rng.uniform(-8, -1, half)), 10 ** rng.uniform(-8, -1, half), [1, 3, 9, 90]])


SPECTRA = {
    "network": network(400),
    "dense": np.random.default_rng(3).standard_normal(300),
    "semicircle": np.cos(np.random.default_rng(4).uniform(0, np.pi, 200)),  # dense at its ends
    "negative": -1 - np.random.default_rng(5).uniform(0, 1, 150),
    "tiny": 1e-12 * network(150),
}


@pytest.mark.parametrize("low,high", [(1, 1), (3, 3), (0, 4), (4, 0), (2, 5)])
@pytest.mark.parametrize("name", SPECTRA)
def test_ends_of_spectra(name, low, high):
    matrix = Matrix(SPECTRA[name])
    found = matrix.ends(low, high)
    expected, norm = matrix.wanted(low, high), np.abs(matrix.expected).max()
    assert found.converged.all() and found.products == matrix.products
    assert (np.abs(found.values - expected) <= 1e-5 * (np.abs(expected) + 1e-3 * norm)).all()
    vectors = found.vectors.numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(low + high), atol=1e-12)
    off = np.linalg.norm(vectors @ matrix.A.numpy() - found.values[:, None] * vectors, axis=1)
    assert (off <= 1e-5 * (np.abs(expected) + 1e-3 * norm)).all()


@pytest.mark.parametrize("noise", [1e-7, 1e-6])
@pytest.mark.parametrize("name", SPECTRA)
def test_products_in_float32(name, noise):
    """Their rounding error neither stops the search, nor is it in the values more than once."""
    matrix = Matrix(SPECTRA[name], noise)
    found = matrix.ends(1, 1, floor=1.2e-7 / 1e-5)
    expected, norm = matrix.wanted(1, 1), np.abs(matrix.expected).max()
    assert found.converged.all()
    assert (np.abs(found.values - expected) <= 1e-5 * np.abs(expected) + (1.2e-7 + 3 * noise) * norm).all()


@pytest.mark.parametrize("low,high", [(1, 1), (3, 3), (0, 7)])
def test_restarts(monkeypatch, low, high):
    """With few vectors at a time, and those combined in pieces."""
    monkeypatch.setattr(lanczos, "VECTORS", (13, 13))
    monkeypatch.setattr(lanczos, "COLUMNS", 7)
    matrix, restarts = Matrix(network(100)), []
    restart = lanczos._Krylov.restart
    monkeypatch.setattr(lanczos._Krylov, "restart", lambda self, *rest: restarts.append(0) or restart(self, *rest))
    found = matrix.ends(low, high, tolerance=1e-9)
    expected = matrix.wanted(low, high)
    assert found.converged.all() and restarts
    np.testing.assert_allclose(found.values, expected, rtol=1e-8, atol=1e-11 * 90)
    off = found.vectors.numpy() @ matrix.A.numpy() - found.values[:, None] * found.vectors.numpy()
    assert np.abs(off).max() <= 1e-8 * 90


@pytest.mark.parametrize("n", [1, 2, 3])
def test_repetitions_where_the_start_leads_to_few_vectors(n):
    """Of a matrix of low rank all zeros are alike: as many of them are found as are wanted."""
    eigenvalues = np.concatenate([np.zeros(80), np.random.default_rng(0).uniform(0.1, 5, 9)])
    matrix = Matrix(eigenvalues)
    found = matrix.ends(n, n)
    np.testing.assert_allclose(found.values, matrix.wanted(n, n), atol=1e-8)
    assert found.converged.all() and found.products < 20
    twice = Matrix(np.concatenate([np.zeros(30), np.full(40, -2.0), np.full(30, 7.0)]))
    np.testing.assert_allclose(twice.ends(n, n).values, [-2] * n + [7] * n, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_of_a_small_matrix(size):
    matrix = Matrix(np.arange(1.0, size + 1))
    np.testing.assert_allclose(matrix.ends(size // 2, size - size // 2).values, matrix.expected, rtol=1e-12)
    assert matrix.products == size
    zero = Matrix(np.zeros(size))
    np.testing.assert_allclose(zero.ends(size, 0).values, np.zeros(size), atol=1e-15)


def test_what_has_not_converged_is_told(monkeypatch):
    matrix = Matrix(np.concatenate([1e-6 * np.arange(1000), [1.0, 2.0]]))
    for products in (20, 37, 60):
        monkeypatch.setattr(lanczos, "PRODUCTS", products)
        matrix.products = 0
        found = matrix.ends(1, 1)
        assert found.products == matrix.products == products
    assert found.converged.tolist() == [False, True]
    np.testing.assert_allclose(found.values[1], 2, rtol=1e-9)
    assert found.values[0] > 1e-7  # it is the tenth or so


@pytest.mark.parametrize("size,wanted,vectors", [(10**4, 2, 160), (10**6, 2, 40), (10**6, 20, 60), (30, 2, 30)])
def test_how_many_vectors_are_kept(size, wanted, vectors):
    assert lanczos._how_many(torch.empty(size, dtype=torch.float64), wanted) == vectors


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ["network", "dense", "negative"])
def test_fewer_products_than_arpack_and_the_same_values(name, n):
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is the oracle")
    ours, theirs = Matrix(SPECTRA[name]), Matrix(SPECTRA[name])
    found = ours.ends(n, n)
    shift = 1e-3 * np.abs(ours.expected).max()  # its criterion is relative to the eigenvalue alone
    size = len(ours.start)
    shifted = linalg.LinearOperator(
        (size, size), dtype=np.float64,
        matvec=lambda v: theirs(torch.from_numpy(v.reshape(-1).copy())).numpy() - shift * v.reshape(-1),
    )  # fmt: skip
    values = np.sort(linalg.eigsh(shifted, 2 * n, which="BE", v0=ours.start.numpy(), ncv=40, tol=1e-5)[0]) + shift
    np.testing.assert_allclose(found.values, values, rtol=1e-5, atol=1e-5 * shift)
    assert ours.products < theirs.products
