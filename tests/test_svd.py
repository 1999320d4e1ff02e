"""Singular value decompositions, where one is known: against the operator and dense matrices."""

import pytest
import torch

from operators.basic import Wavelet
from operators.linop import Identity, Matrix, Space
from operators.mri import sense

CPU = torch.device("cpu")


def randn(*shape, dtype=torch.complex128, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def phases(*shape):
    return torch.exp(1j * randn(*shape, dtype=torch.float64))


def points(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.5


OPERATORS = {
    "matrix, wide": Matrix(randn(3, 5)),
    "matrix, tall": Matrix(randn(5, 3)),
    "matrix, real": Matrix(randn(3, 5, dtype=torch.float64)),
    "matrix, rank 1": Matrix(randn(3, 1) @ randn(1, 4)),
    "identity": Identity(Space((3, 2), torch.complex128, CPU)),
    "identity, real": Identity(Space((3,), torch.float64, CPU)),
    "one coil, points": sense(points(5, 4), phases(1, 1, 5, 4)),
    "one coil, full": sense(torch.ones(4, 5, dtype=torch.bool), phases(1, 1, 4, 5)),
    "one coil, nothing sampled": sense(torch.zeros(3, 4, dtype=torch.bool), phases(1, 1, 3, 4)),
    "one coil, bright": sense(points(5, 4), 30 * phases(1, 1, 5, 4)),
    "one coil, slices": sense(points(4, 3), phases(2, 1, 1, 4, 3)),
    "one coil, 3-D": sense(points(2, 3, 4), phases(1, 1, 2, 3, 4)),
    "scaled": 2.5 * Matrix(randn(3, 5)),
    "scaled by a negative number": -2.5 * Matrix(randn(3, 5, dtype=torch.float64)),
    "scaled by a complex number": (3 - 4j) * sense(points(5, 4), phases(1, 1, 5, 4)),
    "scaled by zero": 0.0 * Matrix(randn(3, 5)),
    "scaled twice": 1j * (2 * Matrix(randn(3, 5))),
}
each = pytest.mark.parametrize("A", OPERATORS.values(), ids=OPERATORS)


def dense(A):
    basis = torch.eye(A.domain.size, dtype=A.domain.dtype).reshape(-1, *A.domain.shape)
    return A(basis).flatten(1).mT


@each
def test_is_the_operator(A):
    svd = A.svd()
    x = A.domain.randn(2, generator=torch.Generator().manual_seed(3))
    assert svd.V.codomain == A.domain
    assert svd.U.codomain == A.codomain
    assert svd.U.domain == svd.V.domain
    assert torch.allclose(svd.U(svd.values * svd.V.H(x)), A(x), atol=1e-12)  # rounding of numbers about 30


@each
def test_columns_are_orthonormal_and_values_are_those_of_the_dense_matrix(A):
    svd = A.svd()
    identity = torch.eye(svd.V.domain.size, dtype=A.domain.dtype)
    for factor in (svd.U, svd.V):
        matrix = dense(factor)
        assert torch.allclose(matrix.mH @ matrix, identity, atol=1e-12)  # rounding
    values = svd.values.broadcast_to(svd.V.domain.shape)
    assert values.dtype == A.domain.dtype.to_real()
    assert (values >= 0).all()
    expected = torch.linalg.svdvals(dense(A))
    assert torch.allclose(values.flatten().sort(descending=True).values, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("A", "message"),
    [
        (sense(points(5, 4), randn(1, 3, 5, 4)), "1 sets of 3 coils"),
        (sense(points(5, 4), phases(2, 1, 5, 4)), "2 sets of 1 coils"),
        (sense(points(5, 4), randn(1, 1, 5, 4)), "constant modulus"),
        (sense(points(5, 4), torch.zeros(1, 1, 5, 4, dtype=torch.complex128)), "constant modulus"),
        (2 * sense(points(5, 4), randn(1, 3, 5, 4)), "coil by coil"),
        (Wavelet(Space((4, 4), torch.float64, CPU)), "no singular value decomposition is known of Wavelet"),
        (Matrix(randn(3, 5)) + Matrix(randn(3, 5)), "no singular value decomposition is known of Sum"),
    ],
)
def test_says_where_none_is_known(A, message):
    with pytest.raises(ValueError, match=message):
        A.svd()
