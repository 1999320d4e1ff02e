"""DiffPIR against an independent recursion and the closed-form posterior of Gaussian priors."""

import math
from itertools import pairwise

import pytest
import torch
from oracle import (
    dense,
    exact_moments,
    multicoil_problem,
    real_matrix,
    real_vector,
    reference_problem,
)

from recon.methods import METHODS, levels_of
from recon.methods.diffpir import diffpir, diffpir_levels
from recon.methods.diffusion import Counted
from recon.noise import Noise
from recon.schedules import ddpm_quadratic


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def recursion(p, sigmas, *, prior_weight, zeta):
    """Mean and covariance that DiffPIR must have on a Gaussian problem: every step is affine, x <- J x + b + noise."""
    A, y, C = dense(p.likelihood.A), p.likelihood.y.flatten(), p.covariance
    identity, mu = torch.eye(len(C), dtype=C.dtype), p.mean.flatten()
    m, covariance = torch.zeros_like(mu), sigmas[0] ** 2 * identity
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        K = C @ torch.linalg.inv(C + sigma**2 * identity)
        if sigma_next == 0:
            return real_vector(mu + K @ (m - mu)), real_matrix(K @ covariance @ K.mH)
        W = torch.linalg.inv(identity + sigma**2 / prior_weight * A.mH @ A)
        keep = sigma_next / sigma * math.sqrt(1 - zeta)
        J = (1 - keep) * W @ K + keep * identity
        m = (1 - keep) * W @ (mu + K @ (m - mu) + sigma**2 / prior_weight * A.mH @ y) + keep * m
        covariance = J @ covariance @ J.mH + zeta * sigma_next**2 * identity
    raise AssertionError("the levels end in 0")


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"])
@pytest.mark.parametrize(("prior_weight", "zeta"), [(1.0, 1.0), (8.0, 0.3), (0.5, 0.0)])
def test_mean_and_covariance_follow_the_recursion(p, prior_weight, zeta):
    sigmas = diffpir_levels(p.likelihood, p.denoiser, 6)
    moments = exact_moments(  # as many iterations as it takes to solve the system
        lambda rng: diffpir(
            p.likelihood, p.denoiser, sigmas, rng=rng, prior_weight=prior_weight, zeta=zeta, iterations=40
        )
    )
    for found, expected in zip(moments, recursion(p, sigmas, prior_weight=prior_weight, zeta=zeta), strict=True):
        assert torch.allclose(found, expected, atol=1e-10)  # rounding


@pytest.mark.parametrize(
    ("steps", "prior_weight", "zeta", "mean", "cov"), [(20, 1.0, 1.0, 0.155, 0.317), (100, 8.0, 0.3, 0.169, 0.995)]
)
def test_table_as_published(steps, prior_weight, zeta, mean, cov):
    """An independent run of 4000 chains, whose chance is .016 in the mean, had (.15, .32) and (.16, 1.0)."""
    p = reference_problem()
    found = p.error(*recursion(p, ddpm_quadratic(steps), prior_weight=prior_weight, zeta=zeta))
    assert found == pytest.approx((mean, cov), abs=5e-4)  # the digits of the docstring


def test_its_own_levels():
    p = reference_problem()
    found = p.error(*recursion(p, diffpir_levels(p.likelihood, p.denoiser), prior_weight=1.0, zeta=1.0))
    assert found == pytest.approx((0.08, 0.44), abs=5e-3)  # the digits of the docstring


def test_variance_preserving_steps_are_the_same_algorithm():
    """As published, in its own coordinates: x_vp = sqrt(abar) x0 + sqrt(1 - abar) n."""
    p, zeta, weight = reference_problem(), 0.3, 2.0
    sigmas = ddpm_quadratic(20)
    abar, A, y = 1 / (1 + sigmas**2), dense(p.A), p.y
    identity = torch.eye(8, dtype=torch.float64)

    def published(rng):
        x = rng.randn_like(p.likelihood.A.domain.zeros(len(rng))) * (1 - abar[0]).sqrt()
        for a, a_next in pairwise(abar):
            prior = a * p.covariance + (1 - a) * identity
            x0 = p.mean + a.sqrt() * torch.linalg.solve(prior, x - a.sqrt() * p.mean, left=False) @ p.covariance
            if a_next == 1:
                return x0
            rho = weight * p.sigma_y**2 * a / (1 - a)
            x0 = torch.linalg.solve(A.mT @ A + rho * identity, y @ A + rho * x0, left=False)
            epsilon = (x - a.sqrt() * x0) / (1 - a).sqrt()
            noise = math.sqrt(1 - zeta) * epsilon + math.sqrt(zeta) * rng.randn_like(x)
            x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * noise

    options = {"prior_weight": weight, "zeta": zeta, "iterations": 20}
    ours = diffpir(p.likelihood, p.denoiser, sigmas, rng=Noise(0, range(3)), **options)
    assert torch.allclose(ours, published(Noise(0, range(3))), atol=1e-9)  # a condition number of 157^2 / 0.02^2 = 6e7


@pytest.mark.parametrize(("name", "evaluations"), [("diffpir", 20), ("diffpir-20", 20), ("diffpir-100", 100)])
def test_one_evaluation_per_step_and_a_callback_each(name, evaluations):
    p, steps = reference_problem(), []
    p.denoiser.sigma_min, p.denoiser.sigma_max = 0.002, 10.0  # of the embedded prior, below that of DDPM
    counted, sigmas = Counted(p.denoiser), levels_of(METHODS[name])(p.likelihood, p.denoiser, None)
    METHODS[name](
        p.likelihood, counted, sigmas, rng=Noise(0, range(3)), callback=lambda step, x: steps.append((step, x.shape))
    )
    assert counted.evaluations == evaluations
    assert steps == [(step, (3, 8)) for step in range(evaluations)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_weight": 0.0}, "prior_weight: expected a number above 0, got 0"),
        ({"zeta": 1.1}, r"zeta: expected a share of fresh noise from 0 to 1, got 1\.1"),
        ({"zeta": -0.1}, "zeta"),
    ],
)
def test_refuses_options_outside_their_range(options, message):
    p = reference_problem()
    with pytest.raises(ValueError, match=message):
        diffpir(p.likelihood, p.denoiser, torch.tensor([1.0, 0.0]), rng=Noise(0, [0]), **options)
