"""Plug and play against the fixed points that it has in closed form with Gaussian priors."""

import math

import pytest
import torch
from oracle import dense, multicoil_problem, reference_problem

from recon.likelihood import Gaussian
from recon.methods.diffusion import Counted
from recon.methods.plug_and_play import plug_and_play_levels, pnp_admm, pnp_hqs
from recon.schedules import geometric

BOTH = pytest.mark.parametrize("method", [pnp_admm, pnp_hqs])
PROBLEMS = pytest.mark.parametrize(
    "p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"]
)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def fixed(sigma, steps=300):
    """So many steps at one level: a schedule must fall, and this one does by 1e-9 of itself."""
    return torch.cat([sigma * torch.linspace(1 + 1e-9, 1, steps, dtype=torch.float64), torch.zeros(1).double()])


def tikhonov(p, covariance, strength):
    """argmin strength nll(x) + 1/2 (x - mu)^H covariance^-1 (x - mu)."""
    A, mu = dense(p.likelihood.A), p.mean.flatten()
    gain = covariance @ A.mH @ torch.linalg.inv(A @ covariance @ A.mH + torch.eye(len(A), dtype=A.dtype) / strength)
    return mu + gain @ (p.likelihood.y.flatten() - A @ mu)


@PROBLEMS
@pytest.mark.parametrize(("sigma", "strength"), [(0.05, 1.0), (0.1, 1.0), (0.05, 0.3)])
def test_admm_rests_at_the_posterior_mean_at_any_level(p, sigma, strength):
    z = pnp_admm(p.likelihood, p.denoiser, fixed(sigma), strength=strength, iterations=30)
    assert torch.allclose(z.flatten(), tikhonov(p, p.covariance, strength), atol=1e-7)


@PROBLEMS
@pytest.mark.parametrize(("sigma", "strength"), [(0.05, 1.0), (0.1, 1.0), (0.05, 0.3)])
def test_half_quadratic_splitting_rests_at_that_of_a_wider_prior(p, sigma, strength):
    """x is the minimum for the covariance C + sigma^2 (strength 1), and z is x denoised."""
    z = pnp_hqs(p.likelihood, p.denoiser, fixed(sigma), strength=strength, iterations=30)
    C, identity = p.covariance, torch.eye(len(p.covariance), dtype=p.covariance.dtype)
    # tau grad(x) + x - z = 0 and x - z = sigma^2 (C + sigma^2)^-1 (x - mu), tau = strength sigma^2
    x = tikhonov(p, C + sigma**2 * identity, strength)
    mu = p.mean.flatten()
    expected = mu + C @ torch.linalg.inv(C + sigma**2 * identity) @ (x - mu)
    assert torch.allclose(z.flatten(), expected, atol=1e-7)


@pytest.mark.parametrize("sigma_y", [0.005, 0.02, 0.1])
def test_near_the_posterior_mean_with_its_own_levels(sigma_y):
    """In 30 evaluations, far from rest."""
    p = multicoil_problem(sigma_y=sigma_y, acceleration=4.0)
    sigmas = plug_and_play_levels(p.likelihood, p.denoiser)
    mean = torch.view_as_complex(p.posterior_mean.reshape(-1, 2))
    for method, tolerance in [(pnp_admm, 0.01), (pnp_hqs, 0.15)]:  # posterior standard deviations, as found
        z = method(p.likelihood, p.denoiser, sigmas, iterations=30)
        assert float(torch.linalg.vector_norm(z.flatten() - mean)) < tolerance * math.sqrt(p.trace)


@BOTH
def test_without_data_the_prior_mean_remains(method):
    p = reference_problem()
    nothing = Gaussian(1e-9 * p.A, torch.zeros(4, dtype=torch.float64))
    z = method(nothing, p.denoiser, geometric(200, sigma_min=0.2, sigma_max=1.0))
    assert torch.allclose(z, p.mean, atol=1e-6)


@BOTH
def test_the_same_image_every_time_and_random_states_left_alone(method):
    p = multicoil_problem()
    sigmas = plug_and_play_levels(p.likelihood, p.denoiser, 8)
    state = torch.get_rng_state()
    first = method(p.likelihood, p.denoiser, sigmas)
    assert first.shape == p.likelihood.A.domain.shape
    assert torch.equal(first, method(p.likelihood, p.denoiser, sigmas))
    assert torch.equal(torch.get_rng_state(), state)


@BOTH
def test_one_evaluation_per_level_and_a_callback_each(method):
    p, seen = reference_problem(), []
    counted = Counted(p.denoiser)
    sigmas = plug_and_play_levels(p.likelihood, p.denoiser, 6)
    last = method(p.likelihood, counted, sigmas, callback=lambda step, z: seen.append((step, z)))
    assert counted.evaluations == 6
    assert [step for step, _ in seen] == list(range(6))
    assert torch.equal(seen[-1][1], last)


def test_levels_stay_in_the_range_of_the_prior():
    p = reference_problem()
    assert len(plug_and_play_levels(p.likelihood, p.denoiser)) == 31
    p.denoiser.sigma_min, p.denoiser.sigma_max = 0.05, 0.5
    sigmas = plug_and_play_levels(p.likelihood, p.denoiser, 4)
    assert len(sigmas) == 5
    assert (float(sigmas[0]), float(sigmas[-2])) == pytest.approx((0.5, 0.05))
