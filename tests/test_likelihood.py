"""The Gaussian likelihood against dense matrices: value, gradient, proximal step, projection, exact draws."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from operators.linop import LinearOperator, Matrix, Space
from operators.mri import sense
from recon.likelihood import Gaussian

C64, C128 = torch.complex64, torch.complex128


def randn(*shape: int, dtype: torch.dtype = C128, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def deficient(rows: int, columns: int, rank: int) -> Matrix:
    return Matrix(randn(rows, rank) @ randn(rank, columns, seed=1))


def small_sense(*leading: int) -> LinearOperator:
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) < 0.6
    return sense(mask, randn(*leading, 3, 4))


OPERATORS = [
    ("tall", lambda: Matrix(randn(5, 3))),
    ("wide", lambda: Matrix(randn(2, 4))),
    ("deficient", lambda: deficient(5, 4, 2)),
    ("real", lambda: Matrix(randn(4, 3, dtype=torch.float64))),
    ("sense", lambda: small_sense(1, 2)),
    ("sense, two sets, slices", lambda: small_sense(2, 2, 3)),
]
each = pytest.mark.parametrize("make", [make for _, make in OPERATORS], ids=[name for name, _ in OPERATORS])
Make = Callable[[], LinearOperator]


def vector(of: Space, *batch: int, seed: int = 0) -> Tensor:
    return of.randn(*batch, generator=torch.Generator().manual_seed(seed))


def real(x: Tensor, space: Space) -> Tensor:
    """(batch..., real components) of tensors of a space."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x[..., None]
    return x.flatten(x.ndim - len(space.shape) - 1)


def unreal(components: Tensor, space: Space) -> Tensor:
    """The inverse of `real`."""
    if not space.dtype.is_complex:
        return components.reshape(*components.shape[:-1], *space.shape)
    return torch.view_as_complex(components.reshape(*components.shape[:-1], *space.shape, 2))


def dense(A: LinearOperator) -> Tensor:
    """The real matrix between real components."""
    size = A.domain.size * (2 if A.domain.dtype.is_complex else 1)
    return real(A.forward(unreal(torch.eye(size, dtype=torch.float64), A.domain)), A.codomain).mT


class Given:
    """Noise given in advance, in place of random streams."""

    def __init__(self, *noise: Tensor) -> None:
        self.noise = list(noise)

    def randn_like(self, x: Tensor) -> Tensor:
        noise = self.noise.pop(0)
        assert noise.shape == x.shape
        return noise


@each
def test_nll_is_half_the_squared_residual(make: Make) -> None:
    A = make()
    x, y = vector(A.domain, 3), vector(A.codomain, 3, seed=1)
    residual = real(x, A.domain) @ dense(A).mT - real(y, A.codomain)
    nll = Gaussian(A, y).nll(x)
    assert nll.shape == (3,)
    assert nll.dtype == torch.float64
    assert torch.allclose(nll, residual.square().sum(-1) / 2, rtol=1e-12)  # float64 rounding


@each
def test_gradient_is_that_of_nll(make: Make) -> None:
    A = make()
    likelihood = Gaussian(A, vector(A.codomain, 3, seed=1))
    x = vector(A.domain, 3).requires_grad_()
    (expected,) = torch.autograd.grad(likelihood.nll(x).sum(), x)
    assert torch.allclose(likelihood.grad(x), expected, atol=1e-12)  # float64 rounding


@each
@pytest.mark.parametrize("tau", [0.01, 3.0])
def test_solve_is_the_proximal_point(make: Make, tau: float) -> None:
    A = make()
    M = dense(A)
    v, y = vector(A.domain, 3), vector(A.codomain, 3, seed=1)
    system = torch.eye(M.shape[1], dtype=torch.float64) + tau * M.mT @ M
    expected = torch.linalg.solve(system, (real(v, A.domain) + tau * real(y, A.codomain) @ M).mT).mT
    likelihood = Gaussian(A, y)
    for x0 in (None, vector(A.domain, 3, seed=2)):
        x = likelihood.solve(v, tau, iterations=2 * M.shape[1], x0=x0, tolerance=1e-13)
        assert torch.allclose(real(x, A.domain), expected, atol=1e-10)  # condition some hundreds, tolerance 1e-13
    assert torch.equal(likelihood.solve(v, tau, iterations=0), v)


@each
def test_project_is_the_nearest_least_squares_solution(make: Make) -> None:
    """v + A^+ (y - A v)."""
    A = make()
    M = dense(A)
    v, y, other = vector(A.domain, 3), vector(A.codomain, 3, seed=1), vector(A.codomain, 3, seed=2)
    likelihood = Gaussian(A, y)
    for data, x in [
        (y, likelihood.project(v, iterations=3 * M.shape[1], tolerance=1e-13)),
        (other, likelihood.project(v, iterations=3 * M.shape[1], tolerance=1e-13, y=other)),
    ]:
        correction = torch.linalg.lstsq(M, (real(data, A.codomain) - real(v, A.domain) @ M.mT).mT, driver="gelsd")
        expected = real(v, A.domain) + correction.solution.mT
        assert torch.allclose(real(x, A.domain), expected, atol=1e-8)  # the condition of A^H A, some thousands


@each
def test_draw_has_the_exact_mean_and_covariance(make: Make) -> None:
    """Basis vectors instead of noise turn the affine sampler into its mean and covariance, without sampling error.

    p(x) ~ exp(-1/2 ||A x - y||^2 - ||x - v||^2 / (2 tau)): precision P = A^T A + 1 / tau, mean P^-1 (A^T y + v / tau).
    """
    A, tau = make(), 0.7
    M = dense(A)
    rows, columns = M.shape
    v, y = vector(A.domain), vector(A.codomain, seed=1)
    unit = torch.eye(columns + rows, dtype=torch.float64)
    unit = torch.cat((torch.zeros_like(unit[:1]), unit))  # no noise, then each component of it
    rng = Given(unreal(unit[:, :columns], A.domain), unreal(unit[:, columns:], A.codomain))
    likelihood = Gaussian(A, y)
    drawn = real(likelihood.draw(v.expand(len(unit), *v.shape), tau, rng, tolerance=1e-13), A.domain)
    mean, deviations = drawn[0], drawn[1:] - drawn[0]

    covariance = torch.linalg.inv(M.mT @ M + torch.eye(columns, dtype=torch.float64) / tau)
    expected = covariance @ (M.mT @ real(y, A.codomain) + real(v, A.domain) / tau)
    assert torch.allclose(mean, expected, atol=1e-10)  # conjugate gradients stop at 1e-13, condition some hundreds
    assert torch.allclose(deviations.mT @ deviations, covariance, atol=1e-10)


def test_draw_of_random_noise_has_the_spread_it_should() -> None:
    """The same with drawn noise, in the units of recon: white noise of unit variance per real component."""

    class Random:
        generator = torch.Generator().manual_seed(0)

        def randn_like(self, x: Tensor) -> Tensor:
            return 2**0.5 * torch.randn(x.shape, dtype=x.dtype, generator=self.generator)

    A, tau, count = Matrix(randn(3, 2)), 0.5, 20000
    drawn = Gaussian(A, randn(3)).draw(randn(2, seed=1).expand(count, 2), tau, Random())
    expected = 2 * torch.linalg.inv(A.matrix.mH @ A.matrix + torch.eye(2) / tau)
    # 6 standard errors of 1 / sqrt(20000), relative to the largest variance.
    assert torch.allclose(torch.cov(drawn.mT), expected, atol=6 * float(expected.abs().max()) / count**0.5)


def test_every_batch_entry_is_a_problem_of_its_own() -> None:
    A = small_sense(1, 2)
    v, y = vector(A.domain, 2, 3), vector(A.codomain, 2, 3, seed=1)
    noise = vector(A.domain, 2, 3, seed=2), vector(A.codomain, 2, 3, seed=3)
    together, results = Gaussian(A, y), []
    for likelihood, part, given in [
        (together, v, noise),
        *((Gaussian(A, y[i, j]), v[i, j], [n[i, j] for n in noise]) for i in range(2) for j in range(3)),
    ]:
        results.append(
            [
                likelihood.nll(part),
                likelihood.grad(part),
                likelihood.solve(part, 2.0, iterations=4),
                likelihood.project(part, iterations=4),
                likelihood.draw(part, 2.0, Given(*given), iterations=4, tolerance=0),
            ]
        )
    for batch, *parts in zip(*results, strict=True):
        # Sums may run in another order: rounding, amplified by four steps of conjugate gradients.
        assert torch.allclose(batch.flatten(0, 1), torch.stack(parts), atol=1e-10)


def test_one_measurement_serves_a_batch_of_images() -> None:
    A = small_sense(1, 2)
    likelihood, x = Gaussian(A, vector(A.codomain)), vector(A.domain, 4)
    assert likelihood.nll(x).shape == (4,)
    assert likelihood.grad(x).shape == x.shape
    assert likelihood.solve(x, 1.0, iterations=3).shape == x.shape
    assert likelihood.project(x, iterations=3).shape == x.shape


def test_single_precision_stays_single() -> None:
    A = Matrix(randn(5, 3, dtype=C64))
    likelihood, v = Gaussian(A, randn(5, dtype=C64)), randn(3, dtype=C64)
    assert likelihood.nll(v).dtype == torch.float32
    for x in (likelihood.grad(v), likelihood.solve(v, 0.3, iterations=5), likelihood.project(v, iterations=5)):
        assert x.dtype == C64


@pytest.mark.parametrize("value", [torch.nan, torch.inf, complex(0, torch.nan)])
def test_values_that_are_not_finite_are_refused(value: complex) -> None:
    y = randn(2, 4)
    y[1, 2] = value
    with pytest.raises(ValueError, match="expected finite values, got NaN or infinity"):
        Gaussian(Matrix(randn(4, 3)), y)


def test_data_of_another_space_are_refused() -> None:
    A = small_sense(1, 2)
    with pytest.raises(ValueError, match=r"data of a Gaussian likelihood: expected trailing axes \(2, 3, 4\)"):
        Gaussian(A, randn(3, 3, 4))
    with pytest.raises(ValueError, match=r"expected dtype torch\.complex128, got torch\.complex64"):
        Gaussian(A, randn(2, 3, 4, dtype=C64))


def test_data_may_be_a_conjugate_view() -> None:
    A, y, x = Matrix(randn(4, 3)), randn(4), randn(3, seed=1)
    assert torch.equal(Gaussian(A, y.conj()).nll(x), Gaussian(A, y.conj().resolve_conj()).nll(x))
