"""DDRM against an independent recursion and the closed-form posterior of Gaussian priors."""

import math
from itertools import pairwise

import pytest
import torch
from oracle import (
    dense,
    exact_moments,
    multicoil_problem,
    problem,
    real_matrix,
    real_vector,
    reference_problem,
)

from operators.fourier import ifftc
from operators.linop import Matrix
from operators.mri import sense
from recon.likelihood import Gaussian
from recon.methods import METHODS, inputs_of, levels_of, options_of
from recon.methods.ddrm import ddrm, ddrm_levels
from recon.methods.diffusion import Counted
from recon.noise import Noise
from recon.schedules import ddpm, geometric


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def single_coil_problem(sigma_y=0.02):
    """The prior of the multi-coil problem, seen by one coil that turns the phase."""
    q = multicoil_problem(shape=(4, 3))
    generator = torch.Generator().manual_seed(0)
    maps = torch.exp(1j * torch.rand(1, 1, 4, 3, dtype=torch.float64, generator=generator))
    A = sense(torch.rand(4, 3, generator=generator) < 0.5, maps)
    y = A(q.mean + 0.1 * A.domain.randn(generator=generator)) + sigma_y * A.codomain.randn(generator=generator) * A.mask
    return problem(A, q.mean, q.covariance, y, sigma_y, ndim=2)


def recursion(p, sigmas, *, eta=0.85, eta_data=1.0):
    """Mean and covariance that DDRM must have on a Gaussian problem, in the basis of all right singular vectors."""
    A, y, C = dense(p.likelihood.A), p.likelihood.y.flatten(), p.covariance
    U, values, Vh = torch.linalg.svd(A)
    n = len(C)
    s, data = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=C.dtype)
    s[: len(values)], data[: len(values)] = values, (U.mH @ y)[: len(values)]
    s[s < 1e-9 * s.max()] = 0  # rounding
    measured = s > 0
    ybar = torch.where(measured, data / s.where(measured, 1.0), 0.0)
    spread2 = torch.where(measured, 1 / s.where(measured, 1.0).square(), math.inf)
    identity, mu, C = torch.eye(n, dtype=C.dtype), Vh @ p.mean.flatten(), Vh @ C @ Vh.mH
    sure = s * sigmas[0] >= 1
    m = torch.where(sure, ybar, 0.0)
    covariance = torch.diag(torch.where(sure, sigmas[0] ** 2 - spread2, sigmas[0] ** 2)).to(C.dtype)
    for sigma, t in pairwise(sigmas.tolist()):
        K = C @ torch.linalg.inv(C + sigma**2 * identity)
        x0 = mu + K @ (m - mu)
        if t == 0:
            m, covariance = x0, K @ covariance @ K.mH
            break
        keep, sure = math.sqrt(1 - eta**2), s * t >= 1
        of_x = torch.where(measured, 0.0, t * keep / sigma)  # x_next = of_x x + of_x0 x0 + fixed + noise
        of_x0 = torch.where(sure, 1 - eta_data, torch.where(measured, 1 - t * keep * s, 1 - t * keep / sigma))
        fixed = torch.where(sure, eta_data * ybar, torch.where(measured, t * keep * data, 0.0))
        noise = torch.where(sure, t**2 - eta_data**2 * spread2, (t * eta) ** 2)
        J = of_x[:, None] * identity + of_x0[:, None] * K
        m = of_x * m + of_x0 * x0 + fixed
        covariance = J @ covariance @ J.mH + torch.diag(noise).to(C.dtype)
    return real_vector(Vh.mH @ m), real_matrix(Vh.mH @ covariance @ Vh)


@pytest.mark.parametrize("p", [reference_problem(), single_coil_problem()], ids=["real", "one coil"])
@pytest.mark.parametrize(("eta", "eta_data"), [(0.85, 1.0), (0.5, 0.7), (0.0, 0.0), (1.0, 1.0)])
def test_mean_and_covariance_follow_the_recursion(p, eta, eta_data):
    sigmas = ddrm_levels(p.likelihood, p.denoiser, 20)
    assert sigmas[-2] < p.sigma_y < sigmas[0]  # components surer and less sure than the level
    moments = exact_moments(lambda rng: ddrm(p.likelihood, p.denoiser, sigmas, rng=rng, eta=eta, eta_data=eta_data))
    for found, expected in zip(moments, recursion(p, sigmas, eta=eta, eta_data=eta_data), strict=True):
        assert torch.allclose(found, expected, atol=1e-10)  # rounding


def test_singular_values_that_differ():
    generator = torch.Generator().manual_seed(0)
    q = reference_problem()
    A = Matrix(torch.randn(8, 8, dtype=torch.float64, generator=generator) * torch.logspace(0, -4, 8)[:, None].double())
    p = problem(A, q.mean, q.covariance, A(q.mean + 0.1), 0.01, ndim=1)
    sigmas = geometric(20, sigma_min=0.001, sigma_max=3)
    moments = exact_moments(lambda rng: ddrm(p.likelihood, p.denoiser, sigmas, rng=rng))
    for found, expected in zip(moments, recursion(p, sigmas), strict=True):
        assert torch.allclose(found, expected, atol=1e-10)  # rounding


@pytest.mark.parametrize(("steps", "mean", "cov"), [(20, 0.477, 0.748), (100, 0.139, 0.672), (1000, 0.042, 0.720)])
def test_table(steps, mean, cov):
    """An independent run of 4000 chains, whose chance is .016 in the mean and about .02 in the covariance, had
    (.48, .75), (.14, .68), (.04, .74)."""
    p = reference_problem()
    assert p.error(*recursion(p, ddpm(steps))) == pytest.approx((mean, cov), abs=5e-4)


def test_its_own_levels():
    p = reference_problem()
    found = p.error(*recursion(p, ddrm_levels(p.likelihood, p.denoiser)))
    assert found == pytest.approx((0.11, 0.65), abs=5e-3)  # the digits of the docstring


def test_full_sampling_without_noise_gives_the_inverse_fourier_transform():
    p = multicoil_problem()
    A = sense(torch.ones(6, 5, dtype=torch.bool), torch.ones(1, 1, 6, 5, dtype=torch.complex128))
    y = A.codomain.randn(generator=torch.Generator().manual_seed(0))
    sigmas = geometric(10, sigma_min=1e-6, sigma_max=3)
    x = ddrm(Gaussian(1e8 * A, 1e8 * y), p.denoiser, sigmas, rng=Noise(0, range(2)))
    assert torch.allclose(x, ifftc(y, (-2, -1)).expand_as(x), atol=1e-5)  # the last noise, 1e-6, of some deviations


def test_one_evaluation_per_step_and_a_callback_each():
    p, steps = reference_problem(), []
    counted, sigmas = Counted(p.denoiser), ddrm_levels(p.likelihood, p.denoiser)
    callback = lambda step, x: steps.append((step, x.shape))  # noqa: E731
    ddrm(p.likelihood, counted, sigmas, rng=Noise(0, range(3)), callback=callback)
    assert counted.evaluations == 20
    assert steps == [(step, (3, 8)) for step in range(20)]


def test_scans_of_many_coils_go_coil_by_coil():
    assert inputs_of(METHODS["ddrm"]) == ("scan", "denoiser", "sigmas", "rng")
    assert options_of(METHODS["ddrm"]) == {"eta": 0.85, "eta_data": 1.0}
    assert levels_of(METHODS["ddrm"]) is ddrm_levels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.1}, r"eta: expected a fraction from 0 to 1, got 1\.1"),
        ({"eta_data": -0.1}, r"eta_data: expected a fraction from 0 to 1, got -0\.1"),
    ],
)
def test_refuses_options_outside_their_range(options, message):
    p = reference_problem()
    with pytest.raises(ValueError, match=message):
        ddrm(p.likelihood, p.denoiser, torch.tensor([1.0, 0.0]), rng=Noise(0, [0]), **options)


def test_refuses_what_does_not_fit():
    q, sigmas = multicoil_problem(), torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match=r"ddrm: .* got 1 sets of 3 coils .* reconstruct coil by coil"):
        ddrm(q.likelihood, q.denoiser, sigmas, rng=Noise(0, [0]))
