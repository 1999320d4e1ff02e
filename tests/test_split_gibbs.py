"""Split Gibbs sampling against the closed-form posterior of Gaussian priors, and of one that is not Gaussian."""

import math

import pytest
import torch
from oracle import (
    MixtureDenoiser,
    OneStream,
    dense,
    exact_moments,
    multicoil_problem,
    real_matrix,
    real_vector,
    reference_problem,
    sample_moments,
)

from operators.linop import Matrix
from recon.likelihood import Gaussian
from recon.methods.diffusion import Counted
from recon.methods.split_gibbs import couplings, draw_prior, split_gibbs
from recon.noise import Noise


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def recursion(p, sigmas):
    """Mean and covariance that split Gibbs with one stage must have on a Gaussian problem, level by level."""
    A, y, C = dense(p.likelihood.A), p.likelihood.y.flatten(), p.covariance
    identity = torch.eye(len(C), dtype=C.dtype)
    norm = p.likelihood.A.norm()
    mu = p.mean.flatten()
    mean, covariance = torch.zeros_like(mu), torch.zeros_like(C)
    for rho in sigmas[:-1]:
        G = rho**2 * A.mH @ A
        if rho * norm < 0.9:
            W, root = identity - G, identity - G / 2 - G @ G / 8
            mean = W @ mean + rho**2 * A.mH @ y
            covariance = W @ covariance @ W + rho**2 * root @ root
        else:
            W = torch.linalg.inv(identity + G)
            mean = W @ (mean + rho**2 * A.mH @ y)
            covariance = W @ covariance @ W + rho**2 * W
        K = C @ torch.linalg.inv(C + rho**2 * identity)
        half = C @ torch.linalg.inv(C + rho**2 / 2 * identity)  # D at sigma = rho / sqrt 2
        mean = mu + K @ (mean - mu)
        covariance = K @ covariance @ K.mH + rho**2 * half @ half.mH
    return real_vector(mean), real_matrix(covariance)


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"])
def test_mean_and_covariance_follow_the_recursion(p):
    sigmas = couplings(p.likelihood, p.denoiser, levels=10)
    mean, covariance = exact_moments(
        lambda rng: split_gibbs(p.likelihood, p.denoiser, sigmas, rng=rng, tolerance=1e-13)
    )
    expected_mean, expected_covariance = recursion(p, sigmas)
    # Conjugate gradients stop at 1e-13 ||b||, and ||b|| is up to 1e5 at the first level, which the others forget.
    assert torch.allclose(mean, expected_mean, atol=1e-10)
    assert torch.allclose(covariance, expected_covariance, atol=1e-10)


def test_reaches_the_posterior_of_the_reference_problem():
    p = reference_problem()
    counted = Counted(p.denoiser)
    sampler = lambda rng: split_gibbs(  # noqa: E731
        p.likelihood, counted, couplings(p.likelihood, p.denoiser), rng=rng, tolerance=1e-12
    )
    error, ratio = p.error(*exact_moments(sampler))
    assert counted.evaluations == 2 * 150  # exact_moments runs it twice
    assert error < 0.016  # the Monte Carlo error of 4000 chains
    assert ratio == pytest.approx(1, abs=0.01)


def test_reaches_the_posterior_of_the_multicoil_problem():
    p = multicoil_problem()
    x = split_gibbs(p.likelihood, p.denoiser, couplings(p.likelihood, p.denoiser), rng=OneStream(0, 1000))
    error, ratio = p.error(*sample_moments(x))
    # 1000 chains: the mean has 1 / sqrt(1000) = .032 by chance and .024 by the descent, .04 in quadrature, and of some
    # 20 effective components .005 more; the variance .01 by chance and .005 by the descent.
    assert error < 0.05
    assert ratio == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("acceleration", [2.0, 4.0])
@pytest.mark.parametrize("sigma_y", [0.005, 0.02, 0.1])
def test_exact_as_the_couplings_fall_slowly(sigma_y, acceleration):
    """By the recursion, which the sampler was shown to follow: no chance, and many levels."""
    p = multicoil_problem(sigma_y=sigma_y, acceleration=acceleration)
    error, ratio = p.error(*recursion(p, couplings(p.likelihood, p.denoiser)))
    assert error < 0.04
    assert ratio == pytest.approx(1, abs=0.03)  # what is asked of an accurate sampler
    error, ratio = p.error(*recursion(p, couplings(p.likelihood, p.denoiser, levels=1200, smallest=0.25)))
    assert error < 0.003  # sixteen times the levels
    assert ratio == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize(("stages", "tolerance"), [(1, 0.12), (4, 0.02), (16, 0.004)])
def test_prior_draw_converges_to_the_denoising_posterior(stages, tolerance):
    """p(x0 | x0 + sigma n = x) of a Gaussian prior is N(mu + K (x - mu), sigma^2 K), K = C / (C + sigma^2)."""
    p, sigma = reference_problem(), 0.1
    x = p.mean + 0.1
    K = p.covariance @ torch.linalg.inv(p.covariance + sigma**2 * torch.eye(8, dtype=torch.float64))
    mean, covariance = exact_moments(
        lambda rng: draw_prior(p.denoiser, x.expand(len(rng), 8), sigma, rng=rng, stages=stages)
    )
    assert torch.allclose(mean, p.mean + K @ (x - p.mean), atol=1e-12)  # exact at any number of stages: rounding
    # The factor of draw_tweedie for the component of this variance is 0.11 below 1 at its worst (c = sigma^2).
    assert float(covariance.trace() / (sigma**2 * K).trace()) == pytest.approx(1, abs=tolerance)


def two_clusters(distance, spread, *, levels, stages):
    """Samples for a prior of two clusters, (-d, -d) and (d, d), whose first number is measured; which of them lie in
    the right cluster, and the true chance of that."""
    sigma_y, y = 0.3, torch.tensor([0.1]).double()
    means = torch.tensor([[-distance, -distance], [distance, distance]]).double()
    likelihood = Gaussian((1 / sigma_y) * Matrix(torch.tensor([[1.0, 0.0]]).double()), y / sigma_y)
    denoiser = MixtureDenoiser(torch.tensor([0.5, 0.5]).double(), means, spread)
    sigmas = couplings(likelihood, denoiser, levels=levels)
    x = split_gibbs(likelihood, denoiser, sigmas, rng=OneStream(0, 4000), stages=stages)
    odds = torch.softmax(-((y - means[:, 0]) ** 2) / (2 * (sigma_y**2 + spread**2)), 0)
    return x, x[:, 1] > 0, float(odds[1])


def test_prior_that_is_not_gaussian():
    x, _, odds = two_clusters(0.3, 0.2, levels=150, stages=1)
    mean = 0.3 * (2 * odds - 1)
    std = math.sqrt(0.2**2 + 0.3**2 - mean**2)
    # Chance: std / sqrt(4000) = .006, and that of the std .004. Gaussian with this mean and std the prior is not.
    assert float(x[:, 1].mean()) == pytest.approx(mean, abs=0.02)
    assert float(x[:, 1].std()) == pytest.approx(std, rel=0.03)


def test_distant_modes_keep_the_odds_of_a_larger_coupling():
    """A documented limit: each cluster is sampled well, but the odds are too even (.5 would ignore the data)."""
    x, right, odds = two_clusters(0.5, 0.1, levels=75, stages=4)
    found = float(right.double().mean())
    assert 0.58 < found < odds == pytest.approx(0.731, abs=1e-3)
    for cluster in (x[right, 1], x[~right, 1]):
        assert float(cluster.std()) == pytest.approx(0.1, rel=0.05)  # chance 1 / sqrt(2 * 1500) = .018


def test_calls_back_at_every_level():
    p, seen = reference_problem(), []
    sigmas = couplings(p.likelihood, p.denoiser, levels=5)
    split_gibbs(
        p.likelihood,
        p.denoiser,
        sigmas,
        rng=Noise(0, range(2)),
        callback=lambda level, z: seen.append((level, z.shape)),
    )
    assert seen == [(level, (2, 8)) for level in range(5)]


def test_refuses_couplings_below_the_range_of_the_prior():
    p = reference_problem()
    p.denoiser.sigma_min = 0.02
    with pytest.raises(ValueError, match=r"trained down to 0\.02"):
        split_gibbs(p.likelihood, p.denoiser, torch.tensor([1.0, 0.025, 0.0]), rng=Noise(0, [0]))
    assert float(couplings(p.likelihood, p.denoiser)[-2]) == pytest.approx(0.02 * math.sqrt(2))
    with pytest.raises(ValueError, match="real_imag"):
        split_gibbs(multicoil_problem().likelihood, p.denoiser, torch.tensor([1.0, 0.0]), rng=Noise(0, [0]))
