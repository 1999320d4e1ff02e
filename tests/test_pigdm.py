"""PiGDM against an independent recursion and the closed-form posterior of Gaussian priors."""

import math
from itertools import pairwise

import pytest
import torch
from oracle import (
    MixtureDenoiser,
    dense,
    exact_moments,
    multicoil_problem,
    problem,
    real_matrix,
    real_vector,
    reference_problem,
)

from operators.linop import Matrix
from recon.likelihood import Gaussian
from recon.methods.diffusion import Counted
from recon.methods.pigdm import guided_mean, pigdm, pigdm_levels
from recon.noise import Noise
from recon.schedules import ddpm, karras


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def recursion(p, sigmas, *, eta=1.0, spread=1.0):
    """Mean and covariance that PiGDM must have on a Gaussian problem: every step is affine, x <- J x + b + noise."""
    A, y, C = dense(p.likelihood.A), p.likelihood.y.flatten(), p.covariance
    identity, mu = torch.eye(len(C), dtype=C.dtype), p.mean.flatten()
    m = torch.linalg.solve(identity / float(sigmas[0]) ** 2 + A.mH @ A, A.mH @ y)  # see noisy_start
    covariance = float(sigmas[0]) ** 2 * identity
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        variance = 1 / (1 / spread**2 + 1 / sigma**2)
        K = C @ torch.linalg.inv(C + sigma**2 * identity)
        middle = torch.linalg.inv(torch.eye(len(A), dtype=A.dtype) + variance * A @ A.mH)
        gain = sigma**2 * K.mH @ A.mH @ middle
        fresh = eta * math.sqrt(1 - sigma_next**2 / sigma**2)
        keep = sigma_next / sigma * math.sqrt(1 - fresh**2)
        W = (1 - keep) * (identity - gain @ A)
        m = W @ (mu + K @ (m - mu)) + (1 - keep) * gain @ y + keep * m
        J = W @ K + keep * identity
        covariance = J @ covariance @ J.mH + (sigma_next * fresh) ** 2 * identity
    return real_vector(m), real_matrix(covariance)


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"])
@pytest.mark.parametrize(("eta", "spread"), [(1.0, 1.0), (0.2, 0.3), (0.0, 1.0)])
def test_mean_and_covariance_follow_the_recursion(p, eta, spread):
    sigmas = pigdm_levels(p.likelihood, p.denoiser, 6)
    moments = exact_moments(  # as many iterations as it takes to solve the system
        lambda rng: pigdm(p.likelihood, p.denoiser, sigmas, rng=rng, eta=eta, spread=spread, iterations=40)
    )
    for found, expected in zip(moments, recursion(p, sigmas, eta=eta, spread=spread), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-7)  # of 40 conjugate gradients


def test_table():
    """r^2 = sigma^2 / (1 + sigma^2), 1000 timesteps. An independent run of 4000 chains had (.11, .97): chance is .016
    in the mean and about .02 in the covariance, which is 1.04 where steps add beta instead of the ancestral noise."""
    p = reference_problem()
    assert p.error(*recursion(p, ddpm(1000))) == pytest.approx((0.105, 0.937), abs=5e-4)


@pytest.mark.parametrize(
    ("options", "mean", "cov"), [({}, 0.112, 0.881), ({"spread": 0.15}, 0.044, 0.866), ({"eta": 0.0}, 0.217, 1.001)]
)
def test_its_own_levels(options, mean, cov):
    p = reference_problem()
    found = p.error(*recursion(p, pigdm_levels(p.likelihood, p.denoiser), **options))
    assert found == pytest.approx((mean, cov), abs=5e-4)  # the digits of the docstring and one more


def test_exact_for_a_white_prior_as_steps_become_many():
    """r^2 is the variance of p(x0 | x) then."""
    p, spread = reference_problem(), 0.2
    white = problem(p.A, p.mean, spread**2 * torch.eye(8, dtype=torch.float64), p.y, p.sigma_y, ndim=1)
    deviations = []
    for steps in (400, 1600):
        error, ratio = white.error(*recursion(white, karras(steps, sigma_min=1e-3, sigma_max=30), spread=spread))
        assert error < 1e-4  # of the start at 0
        deviations.append(abs(1 - ratio))
    assert deviations[1] < 0.3 * deviations[0] < 0.01  # first order in the steps


def test_guidance_is_the_gradient_of_the_data_through_the_denoiser():
    """Of a prior that is not Gaussian, by finite differences of -1/2 ||(1 + r^2 A A^H)^(-1/2) (y - A D(x))||^2."""
    A = Matrix(torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    likelihood = Gaussian(A, torch.tensor([0.7], dtype=torch.float64))
    weights, means = torch.tensor([0.3, 0.7]).double(), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double()
    denoiser, sigma, r2 = MixtureDenoiser(weights, means, 0.3), 0.8, 0.8**2 / (1 + 0.8**2)
    x = torch.tensor([[0.2, -0.3]], dtype=torch.float64)

    def log_density(x):
        return -0.5 * (0.7 - A(denoiser(x, sigma))).square().sum() / (1 + r2 * 5)

    h = 1e-5 * torch.eye(2, dtype=torch.float64)
    score = torch.stack([(log_density(x + e) - log_density(x - e)) / 2e-5 for e in h])
    found = (guided_mean(likelihood, denoiser, x, sigma, spread=1.0, iterations=2) - denoiser(x, sigma)) / sigma**2
    assert torch.allclose(found[0], score, atol=1e-8)  # differences of second order, h^2


def test_one_evaluation_per_step_no_graph_and_a_callback_each():
    p, steps = reference_problem(), []
    counted = Counted(p.denoiser)
    sigmas = pigdm_levels(p.likelihood, p.denoiser)
    x = pigdm(p.likelihood, counted, sigmas, rng=Noise(0, range(3)), callback=lambda step, x: steps.append(x))
    assert counted.evaluations == len(steps) == 50
    assert not any(image.requires_grad for image in (x, *steps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.1}, r"eta: expected a fraction of the ancestral noise from 0 to 1, got 1\.1"),
        ({"spread": 0.0}, "spread: expected the standard deviation of images, above 0, got 0"),
    ],
)
def test_refuses_options_outside_their_range(options, message):
    p = reference_problem()
    with pytest.raises(ValueError, match=message):
        pigdm(p.likelihood, p.denoiser, torch.tensor([1.0, 0.0]), rng=Noise(0, [0]), **options)
