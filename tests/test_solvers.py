"""Solvers against dense solutions, optimality conditions and scipy; proximal functions against their definitions."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, minimize
from torch import Tensor

from operators.basic import FiniteDifference
from operators.linop import Matrix, Space
from recon.solvers import cg, fista, pdhg, project_ball, soft_threshold

C128, F64 = torch.complex128, torch.float64
CPU = torch.device("cpu")


def randn(*shape: int, dtype: torch.dtype = C128, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def space(*shape: int, dtype: torch.dtype = C128) -> Space:
    return Space(shape, dtype, CPU)


def hermitian(n: int, condition: float, seed: int = 0) -> Tensor:
    Q = torch.linalg.qr(randn(n, n, seed=seed))[0]
    return Q * torch.logspace(0, -np.log10(condition), n, dtype=F64) @ Q.mH


# Conjugate gradients


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [F64, C128])
def test_cg_solves_the_system(condition: float, dtype: torch.dtype) -> None:
    H = hermitian(12, condition)
    H = H.real @ H.real.mT if dtype == F64 else H
    b, x0 = randn(12, dtype=dtype), randn(12, dtype=dtype, seed=1)
    x = cg(lambda p: p @ H.mT, b, x0, space=space(12, dtype=dtype), iterations=200, tolerance=1e-13)
    assert (b - x @ H.mT).norm() <= 1e-11 * b.norm()  # the recursive residual drifts from the true one by rounding


def test_cg_ends_after_as_many_steps_as_there_are_unknowns() -> None:
    H, b = hermitian(6, 20), randn(6)
    x = cg(lambda p: p @ H.mT, b, torch.zeros_like(b), space=space(6), iterations=6)
    assert torch.allclose(x, torch.linalg.solve(H, b), atol=1e-11)  # rounding times the condition


def test_cg_gives_every_problem_its_own_steps() -> None:
    """Problems of very different condition and size in one batch run as they would alone."""
    systems = torch.stack([hermitian(8, 1.0), hermitian(8, 1e3, seed=1), 1e6 * hermitian(8, 10.0, seed=2)])
    b, x0 = randn(3, 8, seed=3) * torch.tensor([1.0, 1e-3, 1e6])[:, None], randn(3, 8, seed=4)
    for iterations in (1, 3, 6):
        together = cg(
            lambda p: (systems @ p[..., None])[..., 0], b, x0, space=space(8), iterations=iterations, tolerance=1e-6
        )
        for H, right, start, x in zip(systems, b, x0, together, strict=True):
            alone = cg(lambda p, H=H: H @ p, right, start, space=space(8), iterations=iterations, tolerance=1e-6)
            assert torch.allclose(x, alone, rtol=1e-9, atol=0)  # sums may run in another order


def test_cg_leaves_a_converged_problem_alone() -> None:
    """While others go on, it does not change by a single bit."""
    systems, b = torch.stack([hermitian(40, 2.0), hermitian(40, 1e4, seed=1)]), randn(2, 40, seed=2)
    easy = []
    for iterations in (14, 18, 200):  # the easy one needs 12, the hard one more than 40
        x = cg(
            lambda p: (systems @ p[..., None])[..., 0],
            b,
            torch.zeros_like(b),
            space=space(40),
            iterations=iterations,
            tolerance=1e-8,
        )
        easy.append(x[0])
        assert torch.isfinite(x).all()
    assert torch.equal(easy[0], easy[1])
    assert torch.equal(easy[0], easy[2])


def test_cg_stops_at_its_tolerance() -> None:
    H, b, steps = hermitian(30, 1e3), randn(2, 30), []
    x = cg(
        lambda p: p @ H.mT,
        b,
        torch.zeros_like(b),
        space=space(30),
        iterations=500,
        tolerance=1e-3,
        callback=lambda step, _: steps.append(step),
    )
    assert steps == list(range(len(steps)))
    assert len(steps) < 100
    assert ((b - x @ H.mT).norm(dim=-1) <= 1e-3 * b.norm(dim=-1) * (1 + 1e-9)).all()


def test_cg_starts_where_it_is_told() -> None:
    H, b = hermitian(5, 3), randn(5)
    assert torch.equal(cg(lambda p: p @ H.mT, b, b, space=space(5), iterations=0), b)
    solution = torch.linalg.solve(H, b)
    assert torch.allclose(cg(lambda p: p @ H.mT, b, solution, space=space(5), iterations=20), solution, atol=1e-13)
    nothing = torch.zeros(2, 5, dtype=C128)
    assert torch.equal(cg(lambda p: p @ H.mT, nothing, nothing, space=space(5), iterations=20), nothing)


# Proximal gradient


def lasso(A: Tensor, y: Tensor, weight: float, **options: float) -> tuple[Tensor, list[float]]:
    """min 1/2 ||A x - y||^2 + weight ||x||_1, and its objective after every iteration."""
    objective = []

    def record(_: int, x: Tensor) -> None:
        objective.append(float(0.5 * (x @ A.mT - y).norm() ** 2 + weight * x.abs().sum()))

    x = fista(
        lambda x: (x @ A.mT - y) @ A.conj(),
        lambda v, step: soft_threshold(v, step * weight),
        torch.zeros(A.shape[1], dtype=A.dtype),
        step=1 / float(torch.linalg.matrix_norm(A, 2)) ** 2,
        space=space(A.shape[1], dtype=A.dtype),
        iterations=int(options.get("iterations", 2000)),
        tolerance=options.get("tolerance", 0.0),
        callback=record,
    )
    return x, objective


def test_fista_of_an_orthonormal_matrix_is_a_soft_threshold() -> None:
    Q, y = torch.linalg.qr(randn(6, 6))[0], randn(6, seed=1)
    x, _ = lasso(Q, y, 0.4, iterations=3)
    assert torch.allclose(x, soft_threshold(Q.mH @ y, 0.4), atol=1e-13)  # one step does it


@pytest.mark.parametrize("dtype", [F64, C128])
def test_fista_meets_the_optimality_conditions(dtype: torch.dtype) -> None:
    """A^H (A x - y) = -weight x / |x| where x is not 0, and at most weight in magnitude where it is."""
    A, y, weight = randn(10, 20, dtype=dtype), randn(10, dtype=dtype, seed=1), 0.8
    x, objective = lasso(A, y, weight)
    gradient = (A @ x - y) @ A.conj()
    support = x.abs() > 1e-9
    assert 0 < support.sum() < 20
    assert torch.allclose(gradient[support], -weight * x[support] / x[support].abs(), atol=1e-8)  # 2000 iterations
    assert (gradient[~support].abs() <= weight + 1e-8).all()
    # Momentum may overshoot for some iterations, but not for long.
    assert objective[0] > objective[10] > objective[100] > objective[1000] - 1e-12


def test_fista_is_faster_than_without_momentum() -> None:
    A, y = randn(30, 30, dtype=F64) @ torch.diag(torch.logspace(0, -2, 30, dtype=F64)), randn(30, dtype=F64, seed=1)
    _, objective = lasso(A, y, 0.01, iterations=200)
    step, x = 1 / float(torch.linalg.matrix_norm(A, 2)) ** 2, torch.zeros(30, dtype=F64)
    for _ in range(200):
        x = soft_threshold(x - step * (A @ x - y) @ A, step * 0.01)
    plain = float(0.5 * (A @ x - y).norm() ** 2 + 0.01 * x.abs().sum())
    best = lasso(A, y, 0.01, iterations=4000)[1][-1]
    assert objective[-1] - best < 0.3 * (plain - best)  # 0.17


def test_fista_restarts_its_momentum() -> None:
    """On a strongly convex problem it converges at a linear rate: without restarts 500 steps leave 1e-6."""
    H = hermitian(20, 100.0)
    expected = randn(20)
    x = fista(lambda x: H @ (x - expected), lambda v, _: v, 0 * expected, step=1.0, space=space(20), iterations=500)
    assert (x - expected).norm() < 1e-10 * expected.norm()


def test_fista_restarts_every_problem_by_itself() -> None:
    systems = torch.stack([hermitian(6, 3.0), hermitian(6, 1e3, seed=1)])
    b = randn(2, 6, seed=2)

    def run(H: Tensor, b: Tensor) -> Tensor:
        return fista(
            lambda x: (H @ x[..., None])[..., 0] - b,
            lambda v, step: soft_threshold(v, 0.01 * step),
            torch.zeros_like(b),
            step=1.0,
            space=space(6),
            iterations=50,
        )

    alone = torch.stack([run(H, right) for H, right in zip(systems, b, strict=True)])
    assert torch.allclose(run(systems, b), alone, atol=1e-11)  # sums may run in another order


def test_fista_stops_at_its_tolerance() -> None:
    A, y = randn(20, 10, dtype=F64), randn(20, dtype=F64, seed=1)
    _, objective = lasso(A, y, 0.1, iterations=2000, tolerance=1e-6)
    assert len(objective) < 500
    assert objective[-1] == pytest.approx(lasso(A, y, 0.1)[1][-1], rel=1e-6)


# Primal-dual


def total_variation(A: Tensor, y: Tensor, weight: float, shape: tuple[int, ...], **options: float) -> Tensor:
    """min 1/2 ||A x - y||^2 + weight sum |grad x|; y: (batch..., rows)."""
    D = FiniteDifference(space(*shape, dtype=A.dtype))
    return pdhg(
        lambda x: ((x.flatten(-len(shape)) @ A.mT - y) @ A.conj()).unflatten(-1, shape),
        float(torch.linalg.matrix_norm(A, 2)) ** 2,
        D,
        (4 * len(shape)) ** 0.5,
        lambda u: project_ball(u, weight, -len(shape) - 1),
        torch.zeros(*y.shape[:-1], *shape, dtype=A.dtype),
        iterations=int(options.get("iterations", 5000)),
        ratio=options.get("ratio", 1.0),
        tolerance=options.get("tolerance", 0.0),
    )


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 5.0])
def test_pdhg_finds_the_total_variation_minimum(identity: bool, ratio: float) -> None:
    """The dual, a least-squares problem with bounds, is solved by scipy.

    With H = A^T A: x = H^-1 (A^T y - D^T u), u = argmin ||H^(-1/2) (A^T y - D^T u)|| within |u| <= weight.
    """
    n, weight = 12, 0.4
    A = torch.eye(n, dtype=F64) if identity else torch.eye(n, dtype=F64) + 0.2 * randn(n, n, dtype=F64)
    y = torch.cumsum(randn(n, dtype=F64, seed=1).round(), 0)
    D = torch.diff(torch.eye(n, dtype=F64), dim=0)
    inverse = torch.linalg.inv(torch.linalg.cholesky(A.mT @ A))  # inverse^T inverse = H^-1
    dual = lsq_linear((inverse @ D.mT).numpy(), (inverse @ A.mT @ y).numpy(), bounds=(-weight, weight), tol=1e-14)
    expected = inverse.mT @ inverse @ (A.mT @ y - D.mT @ torch.from_numpy(dual.x))
    x = total_variation(A, y, weight, (n,), ratio=ratio)
    assert torch.allclose(x, expected, atol=1e-5)  # bounded least squares end at about 1e-7


def test_pdhg_converges_without_curvature() -> None:
    """min 0.5 x + |x|, from 1: without extrapolation x and its dual variable circle for ever."""
    K = Matrix(torch.ones(1, 1, dtype=F64))
    slope, start = torch.full((1,), 0.5, dtype=F64), torch.ones(1, dtype=F64)
    x = pdhg(lambda _: slope, 1.0, K, 1.0, lambda u: u.clamp(-1, 1), start, iterations=200)
    assert x.abs() < 1e-9


def test_pdhg_of_an_underdetermined_problem() -> None:
    """The objective against L-BFGS-B: with x the running sum of p - q, p, q >= 0, the penalty is smooth."""
    n, weight = 12, 0.2
    A, y = randn(3, n, dtype=F64), 3 * randn(3, dtype=F64, seed=1)
    sums = torch.tril(torch.ones(n, n, dtype=F64))
    B = (A @ torch.cat((sums, -sums[:, 1:]), 1)).numpy()  # the first value may be negative and costs nothing
    price = np.r_[0, np.full(2 * n - 2, weight)]

    def value_and_gradient(z: np.ndarray) -> tuple[float, np.ndarray]:
        residual = B @ z - y.numpy()
        return 0.5 * residual @ residual + price @ z, B.T @ residual + price

    bounds = [(None, None), *[(0, None)] * (2 * n - 2)]
    found = minimize(value_and_gradient, np.zeros(2 * n - 1), jac=True, method="L-BFGS-B", bounds=bounds)
    x = total_variation(A, y, weight, (n,))
    ours = float(0.5 * (A @ x - y).square().sum() + weight * x.diff().abs().sum())
    assert ours == pytest.approx(found.fun, abs=1e-5)  # L-BFGS-B ends at about 1e-6


def test_pdhg_finds_the_isotropic_minimum_of_complex_images() -> None:
    """No lower value is found by L-BFGS on a smoothed penalty, which is off by at most weight * smoothing * pixels."""
    shape, weight, smoothing = (4, 5), 0.5, 1e-4
    A = torch.eye(20, dtype=C128) + 0.1 * randn(20, 20)
    y = randn(20, seed=1)
    D = FiniteDifference(space(*shape))

    def objective(x: Tensor, smoothing: float = 0.0) -> Tensor:
        lengths = (D.forward(x).abs().square().sum(-3) + smoothing**2).sqrt()
        return 0.5 * (A @ x.flatten() - y).abs().square().sum() + weight * lengths.sum()

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parts = torch.from_numpy(flat).requires_grad_()
        value = objective(torch.view_as_complex(parts.reshape(*shape, 2)), smoothing)
        value.backward()
        return value.item(), parts.grad.numpy()

    found = minimize(value_and_gradient, np.zeros(40), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    x = total_variation(A, y, weight, shape)
    theirs = torch.view_as_complex(torch.from_numpy(found.x).reshape(*shape, 2))
    assert objective(x) <= objective(theirs) + 1e-9
    assert objective(x) == pytest.approx(float(objective(theirs)), abs=2 * weight * smoothing * 20)


def test_pdhg_of_a_batch_is_that_of_its_parts() -> None:
    A, y = torch.eye(9, dtype=F64) + 0.1 * randn(9, 9, dtype=F64), randn(2, 9, dtype=F64, seed=1)
    together = total_variation(A, y, 0.3, (3, 3), iterations=50)
    alone = torch.stack([total_variation(A, part, 0.3, (3, 3), iterations=50) for part in y])
    assert torch.allclose(together, alone, atol=1e-12)  # sums may run in another order


def test_pdhg_stops_at_its_tolerance() -> None:
    A, y = torch.eye(9, dtype=F64), randn(9, dtype=F64)
    loose = total_variation(A, y, 0.3, (9,), tolerance=1e-2)
    tight = total_variation(A, y, 0.3, (9,), tolerance=1e-9)
    best = total_variation(A, y, 0.3, (9,))
    assert 1e-6 < (loose - best).norm() < 0.1 * best.norm()
    # x may stand still for a step while the dual variable moves: that is not the end.
    assert (tight - best).norm() < 1e-6


# Proximal functions


@pytest.mark.parametrize("dtype", [F64, C128])
def test_soft_threshold_is_the_minimum_of_its_definition(dtype: torch.dtype) -> None:
    x, threshold = randn(50, dtype=dtype), 0.7
    u = soft_threshold(x, threshold)

    def objective(u: Tensor) -> Tensor:
        return threshold * u.abs() + 0.5 * (u - x).abs().square()

    for seed in range(20):
        assert (objective(u) <= objective(u + 0.1 * randn(50, dtype=dtype, seed=seed)) + 1e-14).all()
    assert (objective(u) <= objective(torch.zeros_like(x))).all()
    assert ((u.abs() - (x.abs() - threshold).clamp_min(0)).abs() < 1e-14).all()
    assert torch.allclose(u * x.abs(), u.abs() * x, atol=1e-14)  # of the same sign, or phase


def test_soft_threshold_at_its_edges() -> None:
    x = randn(4, 5)
    assert torch.allclose(soft_threshold(x, 0.0), x, rtol=1e-15)
    assert torch.equal(soft_threshold(torch.zeros_like(x), 0.0), torch.zeros_like(x))
    assert torch.equal(soft_threshold(x, 1e9), torch.zeros_like(x))
    each = torch.linspace(0, 2, 5, dtype=F64)  # thresholds that broadcast
    assert torch.equal(soft_threshold(x, each)[:, 3], soft_threshold(x[:, 3], float(each[3])))
    x = x.clone().index_fill_(0, torch.tensor(1), 0).requires_grad_()
    soft_threshold(x, 0.5).abs().square().sum().backward()
    assert torch.isfinite(torch.view_as_real(x.grad)).all()


@pytest.mark.parametrize("dtype", [F64, C128])
def test_project_ball_is_the_nearest_point(dtype: torch.dtype) -> None:
    u, radius = randn(3, 40, dtype=dtype), 1.2
    p = project_ball(u, radius, 0)
    assert (p.norm(dim=0) <= radius * (1 + 1e-14)).all()
    inside = u.norm(dim=0) <= radius
    assert 0 < inside.sum() < 40
    assert torch.equal(p[:, inside], u[:, inside])
    assert torch.allclose(project_ball(p, radius, 0), p, atol=1e-14)
    for seed in range(20):  # <u - p, q - p> <= 0 for every q of the ball
        q = project_ball(2 * randn(3, 40, dtype=dtype, seed=seed), radius, 0)
        assert (((u - p).conj() * (q - p)).real.sum(0) <= 1e-12).all()


def test_project_ball_of_radius_0_is_0() -> None:
    u = torch.cat((torch.zeros(2, 3), torch.ones(2, 3)), 1)
    assert torch.equal(project_ball(u, 0.0, 0), torch.zeros(2, 6))


def test_cg_stops_at_rounding_where_the_system_is_singular() -> None:
    """Four of eight directions are seen: iterations beyond the fourth must not chase what rounding left of the rest."""
    generator = torch.Generator().manual_seed(0)
    A = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator))[0][:4]
    x0 = 1e3 * torch.randn(50, 8, dtype=torch.float64, generator=generator)
    y = torch.randn(4, dtype=torch.float64, generator=generator)
    x = cg(lambda v: v @ A.mT @ A, y @ A, x0, space=Space.of(y @ A), iterations=60)
    assert torch.allclose(x, x0 + (y - x0 @ A.mT) @ A, atol=1e-10)  # eps * 1e3, some iterations long
