"""Operators against dense matrices and literal formulas; one list of them drives every property."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from operators.basic import FiniteDifference, Wavelet
from operators.ct import FanBeam, Geometry, Grid, ParallelBeam, ViewVectors, XRay
from operators.fourier import fftc, ifftc
from operators.linop import Identity, LinearOperator, Matrix, Space, Stack
from operators.mri import sense

C64, C128 = torch.complex64, torch.complex128
CPU = torch.device("cpu")


def randn(*shape: int, dtype: torch.dtype = C128, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def space(*shape: int, dtype: torch.dtype, ndim: int = -1) -> Space:
    return Space(shape, dtype, CPU, ndim)


def full(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def points(*shape: int) -> Tensor:
    """Single samples at random."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5


def lines(*shape: int, along: int) -> Tensor:
    """Every second line, whole along one axis."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for axis in set(range(-len(shape), 0)) - {along}:
        index = torch.arange(shape[axis]) % 2 == 0
        mask |= index.reshape([-1 if a == axis else 1 for a in range(-len(shape), 0)])
    return mask


def sense_of(mask: Tensor, *leading: int) -> Callable[[torch.dtype], LinearOperator]:
    """leading: (..., set, coil)."""
    return lambda dtype: sense(mask, randn(*leading, *mask.shape, dtype=dtype))


def matrix(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Matrix:
    return Matrix(randn(rows, columns, dtype=dtype, seed=seed))


def synthesis_sense(mask: Tensor, dtype: torch.dtype) -> LinearOperator:
    return sense_of(mask, 1, 2)(dtype) @ Wavelet(space(1, *mask.shape, dtype=dtype, ndim=mask.ndim)).H


def xray(geometry: Geometry, *shape: int) -> Callable[[torch.dtype], LinearOperator]:
    return lambda dtype: XRay(geometry, Grid(shape, (1.0, 1.2), (0.3, -0.2)), dtype=dtype.to_real())


def angles(views: int) -> Tensor:
    return torch.linspace(0.2, 5.9, views, dtype=torch.float64)


def pairs(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 2)


# Each makes its operator in a complex dtype; the real ones are of the same precision.
OPERATORS: list[tuple[str, Callable[[torch.dtype], LinearOperator]]] = [
    ("sense, one coil, full", sense_of(full(4, 5), 1, 1)),
    ("sense, coils, full", sense_of(full(5, 4), 1, 3)),
    ("sense, coils, lines along y", sense_of(lines(4, 5, along=-2), 1, 3)),
    ("sense, coils, lines along x", sense_of(lines(5, 6, along=-1), 1, 2)),
    ("sense, coils, points", sense_of(points(4, 4), 1, 3)),
    ("sense, one coil, points", sense_of(points(5, 5), 1, 1)),
    ("sense, two sets", sense_of(points(5, 4), 2, 3)),
    ("sense, two sets, one coil", sense_of(lines(3, 4, along=-2), 2, 1)),
    ("sense, slices", sense_of(lines(4, 3, along=-2), 2, 1, 2)),
    ("sense, nothing sampled", sense_of(~full(3, 4), 1, 2)),
    ("sense, 3-D, points", sense_of(points(2, 3, 4), 1, 2)),
    ("sense, 3-D, lines along z", sense_of(lines(3, 3, 2, along=-3), 1, 2)),
    ("sense, 3-D, two sets, slices", sense_of(lines(2, 3, 3, along=-2), 2, 2, 2)),
    ("sense, 3-D, full", sense_of(full(3, 2, 2), 1, 1)),
    ("differences, real", lambda dtype: FiniteDifference(space(4, 3, dtype=dtype.to_real()))),
    ("differences, channels", lambda dtype: FiniteDifference(space(2, 3, 4, dtype=dtype, ndim=2))),
    ("differences, 3-D", lambda dtype: FiniteDifference(space(2, 3, 2, dtype=dtype))),
    ("differences, axis of one", lambda dtype: FiniteDifference(space(1, 5, dtype=dtype))),
    ("wavelet, haar, even", lambda dtype: Wavelet(space(4, 6, dtype=dtype), name="haar")),
    ("wavelet, db2, odd", lambda dtype: Wavelet(space(5, 7, dtype=dtype), name="db2")),
    ("wavelet, db4, real", lambda dtype: Wavelet(space(9, 4, dtype=dtype.to_real()), name="db4", levels=2)),
    ("wavelet, channels", lambda dtype: Wavelet(space(2, 5, 4, dtype=dtype, ndim=2), levels=3)),
    ("wavelet, 3-D", lambda dtype: Wavelet(space(2, 3, 3, 4, dtype=dtype, ndim=3), levels=2)),
    ("x-ray, parallel", xray(ParallelBeam(angles(3), 7, 0.9, 0.4), 5, 4)),
    ("x-ray, flat fan", xray(FanBeam(angles(4), 6, 1.9, 9.0, 14.0, rotation_offset=0.5), 4, 6)),
    ("x-ray, curved fan", xray(FanBeam(angles(3), 5, 1.9, 9.0, 14.0, curved=True, detector_offset=0.3), 5, 5)),
    ("x-ray, vectors", xray(ViewVectors(pairs(-5, 0, 1, 6), pairs(0, 1, -1, 0), 6, source=pairs(9, 1, -2, -8)), 3, 4)),
    ("matrix", lambda dtype: matrix(4, 3, dtype)),
    ("matrix, real", lambda dtype: matrix(3, 5, dtype.to_real())),
    ("identity", lambda dtype: Identity(space(3, 2, dtype=dtype))),
    ("stack", lambda dtype: Stack(matrix(4, 3, dtype), matrix(4, 3, dtype, 1), 2j * matrix(4, 3, dtype, 2))),
    ("stack of sense", lambda dtype: Stack(sense_of(points(3, 4), 1, 2)(dtype), sense_of(full(3, 4), 1, 2)(dtype))),
    ("sum", lambda dtype: matrix(4, 3, dtype) + matrix(4, 3, dtype, 1)),
    ("difference", lambda dtype: matrix(4, 3, dtype) - 1j * matrix(4, 3, dtype, 1)),
    ("negative", lambda dtype: -matrix(4, 3, dtype)),
    ("scaled", lambda dtype: (2 - 3j) * matrix(4, 3, dtype)),
    ("scaled, real", lambda dtype: matrix(4, 3, dtype.to_real()) * 0.5),
    ("composition", lambda dtype: matrix(2, 4, dtype, 1) @ matrix(4, 3, dtype)),
    ("composition of sense", lambda dtype: synthesis_sense(points(4, 5), dtype)),
    ("adjoint", lambda dtype: matrix(4, 3, dtype).H),
    ("adjoint of sense", lambda dtype: sense_of(lines(4, 3, along=-2), 1, 2)(dtype).H),
]  # fmt: skip

each = pytest.mark.parametrize("make", [make for _, make in OPERATORS], ids=[name for name, _ in OPERATORS])


def vector(of: Space, *batch: int, seed: int = 0) -> Tensor:
    return of.randn(*batch, generator=torch.Generator().manual_seed(seed))


def dense(function: Callable[[Tensor], Tensor], domain: Space) -> Tensor:
    """The matrix of a linear function, from basis vectors in one batch."""
    basis = torch.eye(domain.size, dtype=domain.dtype).reshape(domain.size, *domain.shape)
    return function(basis).reshape(domain.size, -1).mT


@each
@pytest.mark.parametrize(("dtype", "tolerance"), [(C64, 1e-6), (C128, 1e-12)])
def test_adjoint_by_the_dot_product(
    make: Callable[[torch.dtype], LinearOperator], dtype: torch.dtype, tolerance: float
) -> None:
    """Re<A x, y> = Re<x, A^H y>, relative to the lengths of A x and y."""
    A = make(dtype)
    x, y = vector(A.domain, 3), vector(A.codomain, 3, seed=1)
    Ax = A(x)
    A.codomain.check(Ax, "A x")  # of the dtype and shape that A says
    A.domain.check(A.H(y), "A^H y")
    difference = A.codomain.inner(Ax, y) - A.domain.inner(x, A.H(y))
    lengths = (A.codomain.inner(Ax, Ax) * A.codomain.inner(y, y)).sqrt()
    assert (difference.abs() <= tolerance * lengths).all()


@each
def test_dense_matrix(make: Callable[[torch.dtype], LinearOperator]) -> None:
    A = make(C128)
    M = dense(A.forward, A.domain)
    # Rounding of float64 in sums of some tens of numbers about 1.
    assert torch.allclose(dense(A.adjoint, A.codomain), M.mH, atol=1e-12)
    assert torch.allclose(dense(A.gram, A.domain), M.mH @ M, atol=1e-12)
    assert torch.allclose(dense(A.H.gram, A.codomain), M @ M.mH, atol=1e-12)


@each
def test_gram_in_single_precision(make: Callable[[torch.dtype], LinearOperator]) -> None:
    A = make(C64)
    x = vector(A.domain)
    expected = A.adjoint(A.forward(x))
    assert A.gram(x).dtype == expected.dtype
    assert torch.allclose(A.gram(x), expected, atol=1e-5 * float(expected.abs().max()))  # float32 rounding


@each
def test_batch_equals_loop(make: Callable[[torch.dtype], LinearOperator]) -> None:
    A = make(C128)
    for function, of in [(A.forward, A.domain), (A.adjoint, A.codomain), (A.gram, A.domain)]:
        x = vector(of, 2, 3)
        one_by_one = torch.stack([torch.stack([function(part) for part in row]) for row in x])
        assert torch.allclose(function(x), one_by_one, atol=1e-13)  # sums may run in another order


@each
def test_inputs_are_left_alone(make: Callable[[torch.dtype], LinearOperator]) -> None:
    A = make(C128)
    for function, of in [(A.forward, A.domain), (A.adjoint, A.codomain), (A.gram, A.domain)]:
        x = vector(of, 2)
        before = x.clone()
        function(x)
        assert torch.equal(x, before)


@each
def test_views_of_any_layout(make: Callable[[torch.dtype], LinearOperator]) -> None:
    """Conjugate views, expanded and transposed tensors give what their contiguous copies give."""
    A = make(C128)
    for function, of in [(A.forward, A.domain), (A.adjoint, A.codomain), (A.gram, A.domain)]:
        x = vector(of, 2)
        for view in (x.conj(), x[:1].expand(x.shape), x.mT.contiguous().mT):
            copy = view.resolve_conj().clone(memory_format=torch.contiguous_format)
            assert torch.allclose(function(view), function(copy), atol=1e-13)
            assert torch.allclose(of.inner(view, x), of.inner(copy, x), atol=1e-13)


@each
def test_derivatives(make: Callable[[torch.dtype], LinearOperator]) -> None:
    A = make(C128)
    for function, of in [(A.forward, A.domain), (A.adjoint, A.codomain), (A.gram, A.domain)]:
        x = vector(of).requires_grad_()
        assert torch.autograd.gradcheck(function, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


@each
def test_norm(make: Callable[[torch.dtype], LinearOperator]) -> None:
    A = make(C128)
    expected = float(torch.linalg.matrix_norm(dense(A.forward, A.domain), 2))
    # The power method errs by the square of the angle that is left; close singular values leave much, but err little.
    assert A.norm(iterations=300) == pytest.approx(expected, rel=1e-4)
    assert A.norm() <= expected * (1 + 1e-12)  # a lower bound, up to rounding
    assert A.norm() >= 0.95 * expected


# Algebra


def test_algebra_is_that_of_matrices() -> None:
    A, B, C = matrix(4, 3, C128), matrix(4, 3, C128, 1), matrix(2, 4, C128, 2)
    a, b, c = A.matrix, B.matrix, C.matrix
    pairs = [
        (A + B, a + b),
        (A - B, a - b),
        (-A, -a),
        (2.5 * A, 2.5 * a),
        (A * 1j, 1j * a),
        ((1 + 2j) * (C @ (A + B)), (1 + 2j) * c @ (a + b)),
        ((C @ A).H, (c @ a).mH),
        (((1 + 2j) * A).H, (1 - 2j) * a.mH),
        (A.H @ A, a.mH @ a),
        (Stack(A, B), torch.cat((a, b))),
        (np.float64(2) * A, 2 * a),
        (A * np.complex64(1 + 2j), (1 + 2j) * a),
    ]
    for operator, expected in pairs:
        assert torch.allclose(dense(operator.forward, operator.domain), expected, atol=1e-13)
        assert torch.allclose(dense(operator.adjoint, operator.codomain), expected.mH, atol=1e-13)
        assert torch.allclose(dense(operator.gram, operator.domain), expected.mH @ expected, atol=1e-13)


def test_adjoint_of_the_adjoint_is_the_operator_itself() -> None:
    A = matrix(4, 3, C128)
    assert A.H.H is A


def test_stack_of_images_keeps_their_spatial_axes() -> None:
    A = sense(full(3, 4), randn(1, 2, 3, 4))
    assert Stack(A, A).codomain.ndim == A.codomain.ndim == 2
    assert Stack(A, A).codomain.shape == (2, 2, 3, 4)


def test_what_does_not_fit_is_refused() -> None:
    A, B = matrix(4, 3, C128), matrix(4, 5, C128)
    with pytest.raises(ValueError, match=r"cannot compose: Matrix\(\(3,\) -> \(4,\)\)"):
        A @ B
    with pytest.raises(ValueError, match="cannot add"):
        A + B
    with pytest.raises(ValueError, match="cannot add"):
        A - matrix(4, 3, C64)
    with pytest.raises(ValueError, match="cannot stack"):
        Stack(A, B)
    with pytest.raises(ValueError, match="real"):
        1j * matrix(4, 3, torch.float64)


def test_input_that_is_not_of_the_domain_is_refused() -> None:
    A = sense(full(3, 4), randn(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"Sense.*expected trailing axes \(1, 3, 4\).*got shape \(1, 4, 3\)"):
        A(randn(1, 4, 3))
    with pytest.raises(ValueError, match=r"got shape \(3, 4\)"):
        A(randn(3, 4))
    with pytest.raises(ValueError, match=r"expected dtype torch.complex128, got torch.complex64; convert"):
        A(randn(1, 3, 4, dtype=C64))
    with pytest.raises(ValueError, match=r"expected a tensor on cpu, got one on meta; move the data"):
        A(torch.empty(1, 3, 4, dtype=C128, device="meta"))
    with pytest.raises(ValueError, match=r"expected trailing axes \(2, 3, 4\)"):
        A.H(randn(1, 3, 4))
    assert A(randn(5, 1, 3, 4)).shape == (5, 2, 3, 4)


def test_sense_refuses_masks_and_maps_that_do_not_fit() -> None:
    mask, maps = full(3, 4), randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"expected dtype torch\.bool, got torch\.float32"):
        sense(mask.float(), maps)
    with pytest.raises(ValueError, match="complex"):
        sense(mask, maps.real)
    with pytest.raises(ValueError, match="add axes for set and coil"):
        sense(mask, maps[0])
    with pytest.raises(ValueError, match=r"mask \(4, 3\) and sens_maps \(1, 2, 3, 4\) differ in their last 2 axes"):
        sense(mask.mT, maps)
    with pytest.raises(ValueError, match="meta"):
        sense(mask.to("meta"), maps)


# Literal formulas


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (3, 3, 2), (1, 6)])
def test_fftc_is_numpys_centred_transform(shape: tuple[int, ...]) -> None:
    axes = tuple(range(-len(shape), 0))
    x = randn(2, *shape)
    expected = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(x.numpy(), axes), axes=axes, norm="ortho"), axes)
    assert np.allclose(fftc(x, axes).numpy(), expected, atol=1e-13)
    assert torch.allclose(ifftc(fftc(x, axes), axes), x, atol=1e-13)


def centred_dft(n: int) -> Tensor:
    """exp(-2 pi i k r / n) / sqrt(n), k and r counted from index n // 2."""
    r = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-2j * math.pi * torch.outer(r, r) / n) / math.sqrt(n)


@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 3)])
def test_sense_is_its_formula(shape: tuple[int, ...]) -> None:
    """y_c = M F sum_s S_sc x_s, with F a Kronecker product of one-dimensional transforms."""
    sets, coils, pixels = 2, 3, math.prod(shape)
    mask, maps = points(*shape), randn(sets, coils, *shape)
    F = torch.ones(1, 1, dtype=C128)
    for n in shape:
        F = torch.kron(F, centred_dft(n))
    S = maps.reshape(sets, coils, pixels)
    rows = [torch.cat([mask.flatten()[:, None] * F * S[s, c] for s in range(sets)], 1) for c in range(coils)]
    A = sense(mask, maps)
    assert torch.allclose(dense(A.forward, A.domain), torch.cat(rows), atol=1e-13)


def test_sense_of_normalised_maps_has_norm_1() -> None:
    maps = randn(1, 3, 4, 5)
    maps = maps / maps.norm(dim=1, keepdim=True)
    assert sense(full(4, 5), maps).norm() == pytest.approx(1, rel=1e-12)
    assert sense(points(4, 5), maps).norm(iterations=300) <= 1 + 1e-12


def test_gram_differentiates_by_the_maps() -> None:
    """A network that estimates maps is trained through the gram as through the adjoint of the forward."""
    x, mask = randn(1, 4, 3), points(4, 3)
    maps = randn(1, 2, 4, 3, seed=1).requires_grad_()
    A = sense(mask, maps)
    (expected,) = torch.autograd.grad(A.adjoint(A.forward(x)).abs().square().sum(), maps)
    (gradient,) = torch.autograd.grad(A.gram(x).abs().square().sum(), maps)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_finite_differences_are_their_formula() -> None:
    x = randn(2, 3, 4)
    result = FiniteDifference(space(2, 3, 4, dtype=C128, ndim=2))(x)
    assert result.shape == (2, 2, 3, 4)
    for c, i, j in product(range(2), range(3), range(4)):
        assert result[0, c, i, j] == (x[c, i + 1, j] - x[c, i, j] if i < 2 else 0)
        assert result[1, c, i, j] == (x[c, i, j + 1] - x[c, i, j] if j < 3 else 0)


def test_noise_of_a_space_has_unit_variance_per_real_component() -> None:
    x = vector(space(20000, dtype=C128))
    # 20000 samples: 6 standard errors of sqrt(2 / 20000).
    assert x.real.square().mean() == pytest.approx(1, abs=0.06)
    assert x.imag.square().mean() == pytest.approx(1, abs=0.06)
    assert vector(space(20000, dtype=torch.float64)).square().mean() == pytest.approx(1, abs=0.06)
