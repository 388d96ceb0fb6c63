"""The arithmetic of vectors of tensors, against NumPy on the flattened numbers."""

import numpy as np
import pytest
import torch

from hpc_landscape.model.parameters import ModelParameters, orthogonal_to, rand_n_like, rand_u_like

SHAPES = [(4, 3, 2), (5,), (), (2, 6)]


def vector(seed: int, dtype: torch.dtype = torch.float64) -> ModelParameters:
    generator = torch.Generator().manual_seed(seed)
    return ModelParameters(torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES)


def copied(v: ModelParameters) -> ModelParameters:
    return ModelParameters(p.clone() for p in v)


def test_operators_are_those_of_the_flat_vector():
    a, b = vector(1), vector(2)
    x, y = a.as_numpy(), b.as_numpy()
    for found, expected in [
        (a + b, x + y), (a - b, x - y), (-a, -x), (a * 3, x * 3), (3 * a, 3 * x), (a / 4, x / 4), (a // 0.5, x // 0.5),
    ]:  # fmt: skip
        np.testing.assert_array_equal(found.as_numpy(), expected)
    np.testing.assert_array_equal(a.__rsub__(b).as_numpy(), y - x)  # the other minus this one
    np.testing.assert_array_equal((np.float64(3) * a).as_numpy(), 3 * x)
    np.testing.assert_array_equal((torch.tensor(3.0) * a).as_numpy(), 3 * x)
    assert a.dot(b) == pytest.approx(x @ y, rel=1e-13)
    assert a @ b == a.dot(b)


@pytest.mark.parametrize(
    ("method", "operand", "expected"),
    [
        ("add_", vector(2), lambda x, y: x + y),
        ("sub_", vector(2), lambda x, y: x - y),
        ("mul_", 3.0, lambda x, y: x * y),
        ("truediv_", 4.0, lambda x, y: x / y),
        ("floordiv_", 0.5, lambda x, y: x // y),
    ],
)
def test_in_place(method, operand, expected):
    v = vector(1)
    tensors, before = list(v), v.as_numpy().copy()
    number = operand.as_numpy() if isinstance(operand, ModelParameters) else operand
    assert getattr(v, method)(operand) is v
    assert all(a is b for a, b in zip(v, tensors, strict=True))
    np.testing.assert_array_equal(v.as_numpy(), expected(before, number))


@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_norms(order):
    v = vector(3)
    assert v.model_norm(order) == pytest.approx(np.linalg.norm(v.as_numpy(), order))
    for i, p in enumerate(v):
        assert v.layer_norm(i, order) == pytest.approx(np.linalg.norm(p.numpy().reshape(-1), order))
    assert v.filter_norm((0, 2), order) == pytest.approx(np.linalg.norm(v[0][2].numpy().reshape(-1), order))


@pytest.mark.parametrize("order", [1, 2])
def test_normalization_gives_the_references_norms(order):
    w = vector(4)
    d = copied(vector(5)).model_normalize_(w, order)
    assert d.model_norm(order) == pytest.approx(w.model_norm(order), rel=1e-8)
    d = copied(vector(5)).layer_normalize_(w, order)
    for i in range(len(SHAPES)):
        assert d.layer_norm(i, order) == pytest.approx(w.layer_norm(i, order), rel=1e-8)
    d, original = copied(vector(5)), vector(5)
    d.filter_normalize_(w, order)
    for f in range(4):
        assert d.filter_norm((0, f), order) == pytest.approx(w.filter_norm((0, f), order), rel=1e-8)
        ratio = (d[0][f] / original[0][f]).numpy()
        assert np.ptp(ratio) < 1e-12 * abs(ratio.flat[0])  # only scaled, by one number per filter
        assert ratio.flat[0] > 0
    assert d.layer_norm(1, order) == pytest.approx(w.layer_norm(1, order), rel=1e-8)  # a bias is one filter


def test_zero_norms_give_zeros_and_no_nan():
    w, d = vector(6), vector(7)
    w[0][1] = 0
    assert not d.filter_normalize_(w)[0][1].any()
    zero = vector(7) * 0
    for method in ("model_normalize_", "layer_normalize_", "filter_normalize_"):
        assert not getattr(copied(zero), method)(w).as_numpy().any()
        assert not getattr(copied(vector(7)), method)(zero).as_numpy().any()


def test_random_vectors():
    torch.manual_seed(0)
    big = ModelParameters([torch.zeros(200, 200), torch.zeros(100)])
    uniform, normal = rand_u_like(big).as_numpy(), rand_n_like(big).as_numpy()
    assert uniform.min() < -0.99
    assert uniform.max() > 0.99
    assert abs(uniform).max() <= 1
    assert abs(normal.mean()) < 0.03
    assert normal.std() == pytest.approx(1, abs=0.03)
    v = vector(8)
    other = orthogonal_to(v)
    assert abs(v.dot(other)) < 1e-12 * v.model_norm() * other.model_norm()


def test_half_precision_norms_do_not_overflow():
    v = ModelParameters([torch.full((1000,), 300.0, dtype=torch.float16), torch.ones(3, dtype=torch.bfloat16)])
    assert v.model_norm() == pytest.approx(np.sqrt(1000 * 300.0**2 + 3))
    assert v.as_numpy().shape == (1003,)


def test_what_does_not_fit_is_refused():
    a = vector(1)
    with pytest.raises(ValueError, match="tensors on one side"):
        a + ModelParameters(list(a)[:2])
    with pytest.raises(ValueError, match="tensor 1: shape"):
        a.dot(ModelParameters([torch.zeros(6) if i == 1 else p for i, p in enumerate(a)]))


def test_equality_and_sizes():
    a = vector(1)
    assert a == copied(a)
    assert a != vector(2)
    assert len(a) == 4
    assert a.numel() == sum(int(np.prod(s)) for s in SHAPES)


def test_parameters_that_need_a_gradient_can_change_in_place():
    layer = torch.nn.Linear(2, 2)
    v = ModelParameters(layer.parameters())
    v.mul_(2)
    assert all(p.requires_grad for p in v)
    assert v[0] is layer.weight
