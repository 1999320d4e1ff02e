"""Manifold constrained gradients against the closed-form posterior of Gaussian priors."""

import math
from itertools import pairwise

import pytest
import torch
from oracle import (
    OneStream,
    dense,
    exact_moments,
    multicoil_problem,
    real_matrix,
    real_vector,
    reference_problem,
    sample_moments,
)

from recon.methods.diffusion import Counted
from recon.methods.dps import dps_levels, guided_diffusion, norm_rule
from recon.methods.mcg import mcg, mcg_hard, noisy_data, noisy_projection
from recon.noise import Noise
from recon.schedules import ddpm


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def recursion(p, sigmas, zeta):
    """Mean and covariance of `mcg` on a Gaussian problem, where it is affine: the step of DPS, then
    x <- W (x + tau A^H (y + sigma_next A n)) with W = (I + tau A^H A)^-1."""
    A, y, C = dense(p.likelihood.A), p.likelihood.y.flatten(), p.covariance
    norm, mu, gram = p.likelihood.A.norm(), p.mean.flatten(), A.mH @ A
    identity = torch.eye(len(C), dtype=C.dtype)
    m = torch.linalg.solve(identity / float(sigmas[0]) ** 2 + gram, A.mH @ y)  # see noisy_start
    V = float(sigmas[0]) ** 2 * identity
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        K, q = C @ torch.linalg.inv(C + sigma**2 * identity), (sigma_next / sigma) ** 2
        G = (1 - q**zeta) * sigma**2 / (1 + sigma**2 * norm**2) * K.mH @ A.mH
        J = q * identity + (1 - q) * K - G @ A @ K
        m = J @ (m - mu) + mu - G @ (A @ mu - y)
        V = J @ V @ J.mH + sigma_next**2 * (1 - q) * identity
        tau = sigma**2 - sigma_next**2
        W = torch.linalg.inv(identity + tau * gram)
        m = W @ (m + tau * A.mH @ y)
        V = W @ (V + (tau * sigma_next) ** 2 * gram @ gram) @ W.mH
    return real_vector(m), real_matrix(V)


# --- against the closed form -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"])
@pytest.mark.parametrize("zeta", [0.5, 4.0])
def test_mean_and_covariance_follow_the_recursion(p, zeta):
    sigmas = dps_levels(p.likelihood, p.denoiser, 15)
    moments = exact_moments(  # as many iterations as it takes to solve the system
        lambda rng: mcg(p.likelihood, p.denoiser, sigmas, rng=rng, zeta=zeta, iterations=60)
    )
    for found, expected in zip(moments, recursion(p, sigmas, zeta), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)  # condition number 2e4


@pytest.mark.parametrize(
    ("p", "error", "ratio"),
    [
        (reference_problem(), 0.070, 0.945),
        (multicoil_problem(), 0.297, 0.436),
        (multicoil_problem(acceleration=4.0), 0.227, 0.796),
        (multicoil_problem(sigma_y=0.1), 0.386, 0.439),
    ],
    ids=["one coil", "x2", "x4", "noisy"],
)
def test_documented_accuracy(p, error, ratio):
    """By the recursion, which the sampler was shown to follow, at its defaults."""
    found = p.error(*recursion(p, dps_levels(p.likelihood, p.denoiser), 1.0))
    assert found == pytest.approx((error, ratio), abs=5e-4)  # the digits


def test_default_iterations_are_enough():
    p = multicoil_problem()
    sigmas = dps_levels(p.likelihood, p.denoiser, 50)
    x = mcg(p.likelihood, p.denoiser, sigmas, rng=OneStream(0, 300))
    found, expected = p.error(*sample_moments(x)), p.error(*recursion(p, sigmas, 1.0))
    assert found == pytest.approx(
        expected, abs=0.08
    )  # of 300 chains: sqrt(0.44 / 300) = .04, and what 5 leave unsolved


def published(likelihood, rng):
    """The projection in the code that was published: x is at sigma_next, the data are given the noise of sigma."""
    return lambda x, sigma, sigma_next: likelihood.project(
        x, y=noisy_data(likelihood, x, sigma, rng), iterations=4, tolerance=1e-9
    )


def hard(p, sigmas, rng, constraint, zeta):
    x = math.hypot(float(sigmas[0]), 1) * rng.randn_like(p.likelihood.A.domain.zeros(len(rng)))
    rule = norm_rule(zeta, p.likelihood.A.norm(), preserving=True)
    return guided_diffusion(rule, p.likelihood, p.denoiser, sigmas, x, rng=rng, constraint=constraint)


def test_table():
    """1000 steps, zeta 1, data of level t as published, against an independent Monte Carlo of 4000 chains."""
    p, rng = reference_problem(), OneStream(0, 1000)
    error, ratio = p.error(*sample_moments(hard(p, ddpm(1000), rng, published(p.likelihood, rng), 1.0)))
    # The chance of 1000 chains is 1 / sqrt(1000) = .032 in the mean, half of that in the other run; in the variance,
    # which few directions carry, sqrt(2 / 1000) = .045 and .022.
    assert error == pytest.approx(1.08, abs=0.07)
    assert ratio == pytest.approx(0.87, abs=0.1)


def test_hard_form_as_documented():
    p = reference_problem()
    x = mcg_hard(p.likelihood, p.denoiser, ddpm(1000), rng=OneStream(1, 1000), zeta=0.1, tolerance=1e-9)
    error, ratio = p.error(*sample_moments(x))
    assert error == pytest.approx(0.34, abs=0.06)  # chance .032 in the mean, .045 in the variance
    assert ratio == pytest.approx(0.79, abs=0.09)


def test_projection_replaces_what_was_measured():
    """The published form for rows that are orthonormal: A^H (y + sigma A n) + (I - A^H A) x."""
    p, sigma = reference_problem(sigma_y=0.0), 0.3
    A = dense(p.A)
    x = Noise(0, range(2)).randn_like(torch.zeros(2, 8).double())
    n = Noise(1, range(2)).randn_like(x)
    y = p.y + sigma * n @ A.mT
    found = noisy_projection(p.likelihood, rng=Noise(1, range(2)), iterations=4, tolerance=0.0)(x, 0.5, sigma)
    assert torch.allclose(found, x + (y - x @ A.mT) @ A, atol=1e-12)  # rounding


# --- invariants --------------------------------------------------------------------------------------------------


def test_evaluations_callbacks_and_state():
    p, seen = reference_problem(), []
    counted = Counted(p.denoiser)
    sigmas = dps_levels(p.likelihood, p.denoiser, 5)
    state = torch.get_rng_state()
    for method in (mcg, mcg_hard):
        method(
            p.likelihood, counted, sigmas, rng=Noise(0, [0, 1]), callback=lambda step, x: seen.append((step, x.shape))
        )
    assert counted.evaluations == 10
    assert seen == 2 * [(step, (2, 8)) for step in range(5)]
    assert torch.equal(torch.get_rng_state(), state)


# --- errors ------------------------------------------------------------------------------------------------------
