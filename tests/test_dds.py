"""DDS and its schedules against the closed-form posterior of Gaussian priors."""

import math
from itertools import pairwise

import pytest
import torch
from oracle import (
    GaussianDenoiser,
    OneStream,
    dense,
    exact_moments,
    multicoil_problem,
    real_matrix,
    real_vector,
    reference_problem,
)

from recon.methods import METHODS, levels_of, options_of
from recon.methods.classical import l1_wavelet
from recon.methods.dds import dds, dds_hard, dds_levels, dds_published, dds_warm, warm_levels
from recon.methods.diffusion import Counted
from recon.methods.split_gibbs import couplings
from recon.noise import Noise
from recon.schedules import ddpm, geometric, karras, start_at


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


# --- schedules ---------------------------------------------------------------------------------------------------


def test_schedules_end_in_zero_and_take_as_many_steps_as_asked():
    for sigmas in (
        geometric(30, sigma_min=0.01, sigma_max=50),
        karras(30, sigma_min=0.01, sigma_max=50),
        karras(30, sigma_min=0.01, sigma_max=50, rho=-2),
        ddpm(30),
    ):
        assert sigmas.shape == (31,)
        assert sigmas[-1] == 0
        assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("levels", [dds_levels, couplings])
def test_no_number_of_levels_is_taken_for_another(levels):
    p = reference_problem()
    assert len(levels(p.likelihood, p.denoiser)) > 30
    assert len(levels(p.likelihood, p.denoiser, 1)) == 2
    with pytest.raises(ValueError, match="steps >= 1"):
        levels(p.likelihood, p.denoiser, 0)


def test_karras_shrinks_its_ratios_for_negative_rho():
    ratios = [s[1:-1] / s[:-2] for s in (karras(9, sigma_min=0.1, sigma_max=9, rho=r) for r in (7.0, -2.0, 1e9))]
    assert (ratios[0].diff() < 0).all()
    assert (ratios[1].diff() > 0).all()
    # |rho| -> infinity is geometric; 1e-6 is the rounding of x^(1e9)
    assert torch.allclose(ratios[2], torch.full((8,), 90.0, dtype=torch.float64) ** (-1 / 8), rtol=1e-6)


def test_ddpm_levels_are_those_of_its_timesteps():
    alpha = [1 - (1e-4 + t * (0.02 - 1e-4) / 999) for t in range(1000)]
    expected = [math.sqrt((1 - a) / a) for a in (math.prod(alpha[: t + 1]) for t in range(980, -1, -20))]
    assert torch.allclose(ddpm(50)[:-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-12)  # rounding


def test_early_start_cuts_the_top():
    sigmas = ddpm(50)
    kept = start_at(sigmas, 0.5)
    assert kept[0] <= 0.5 < sigmas[len(sigmas) - len(kept) - 1]
    with pytest.raises(ValueError, match="no level at or below"):
        start_at(sigmas, 1e-3)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0, 0.5], "end in 0"),
        ([0.5, 1.0, 0.0], "strictly decreasing"),
        ([1.0, -0.5, 0.0], "strictly decreasing"),
        ([0.0], "at least one level"),
        ([math.nan, 0.5, 0.0], "strictly decreasing"),
        ([100.0, 0.5, 0.0], "trained for 80 to 0.002"),
        ([1.0, 0.001, 0.0], "trained for 80 to 0.002"),
    ],
)
def test_refuses_other_levels(sigmas, message):
    p = reference_problem()
    p.denoiser.sigma_min, p.denoiser.sigma_max = 0.002, 80.0
    with pytest.raises(ValueError, match=message):
        dds(p.likelihood, p.denoiser, torch.tensor(sigmas), rng=Noise(0, [0]))


def test_refuses_schedules_that_do_not_exist():
    with pytest.raises(ValueError, match="steps >= 1"):
        geometric(0, sigma_min=0.01, sigma_max=1)
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        karras(10, sigma_min=2, sigma_max=1)
    with pytest.raises(ValueError, match="at least 1 step"):
        ddpm(1001)


# --- against the closed form -------------------------------------------------------------------------------------


def recursion(p, sigmas, eta, *, hard=False, tau=lambda sigma: sigma**2):
    """Mean and covariance that DDS must have on a Gaussian problem: every step is affine, x <- J x + b + noise."""
    A, y, identity = dense(p.likelihood.A), p.likelihood.y.flatten(), torch.eye(len(p.covariance), dtype=p.mean.dtype)
    mu = p.mean.flatten()
    m, covariance = torch.zeros_like(mu), sigmas[0] ** 2 * identity
    for sigma, sigma_next in pairwise(sigmas):
        K = p.covariance @ torch.linalg.inv(p.covariance + sigma**2 * identity)  # x0 = mu + K (x - mu)
        x0 = mu + K @ (m - mu)
        keep = sigma_next * math.sqrt(1 - eta**2) / sigma
        if hard:
            W = identity - torch.linalg.pinv(A) @ A
            b = torch.linalg.pinv(A) @ y
        else:
            W = torch.linalg.inv(identity + tau(sigma) * A.mH @ A)
            b = W @ (tau(sigma) * A.mH @ y)
        J = W @ K + keep * (identity - K)
        m = W @ x0 + b + keep * (m - x0)
        covariance = J @ covariance @ J.mH + (sigma_next * eta) ** 2 * identity
    return real_vector(m), real_matrix(covariance)


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"])
@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_mean_and_covariance_follow_the_recursion(p, eta):
    sigmas = start_at(ddpm(20), 30.0)
    moments = exact_moments(  # as many iterations as it takes to solve the system
        lambda rng: dds(p.likelihood, p.denoiser, sigmas, rng=rng, eta=eta, iterations=60)
    )
    for found, expected in zip(moments, recursion(p, sigmas, eta), strict=True):
        assert torch.allclose(found, expected, atol=1e-9)  # the system has a condition number of 30^2 / 0.02^2 = 2e6


@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_hard_form_follows_the_recursion(eta):
    p, sigmas = reference_problem(sigma_y=0.0), ddpm(20)
    moments = exact_moments(lambda rng: dds_hard(p.likelihood, p.denoiser, sigmas, rng=rng, eta=eta, tolerance=1e-12))
    for found, expected in zip(moments, recursion(p, sigmas, eta, hard=True), strict=True):
        assert torch.allclose(found, expected, atol=1e-10)  # rounding


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"])
@pytest.mark.parametrize(("gamma", "eta"), [(1.0, 0.85), (4.0, 0.0)])
def test_published_form_follows_the_recursion(p, gamma, eta):
    sigmas, norm = ddpm(10, sigma_max=10), torch.linalg.matrix_norm(dense(p.likelihood.A), 2)
    A = p.likelihood.A
    A.norm = lambda: float(norm)  # the power method is not that exact
    moments = exact_moments(
        lambda rng: dds_published(p.likelihood, p.denoiser, sigmas, rng=rng, gamma=gamma, eta=eta, iterations=30)
    )
    for found, expected in zip(moments, recursion(p, sigmas, eta, tau=lambda _: gamma / norm**2), strict=True):
        assert torch.allclose(found, expected, atol=1e-10)  # rounding


def test_variance_preserving_steps_are_the_same_algorithm():
    """DDS as published, in its own coordinates: x_vp = sqrt(abar) x0 + sqrt(1 - abar) n."""
    p, eta = reference_problem(), 0.85
    sigmas = ddpm(50)
    abar = 1 / (1 + sigmas**2)

    def published(rng):
        x = rng.randn_like(p.likelihood.A.domain.zeros(len(rng))) * (1 - abar[0]).sqrt()
        for a, a_next in pairwise(abar):
            prior = a * p.covariance + (1 - a) * torch.eye(8, dtype=torch.float64)
            epsilon = (1 - a).sqrt() * torch.linalg.solve(prior, x - a.sqrt() * p.mean, left=False)
            x0 = p.likelihood.solve((x - (1 - a).sqrt() * epsilon) / a.sqrt(), p.sigma_y**2, iterations=5)
            noise = eta * rng.randn_like(x) + math.sqrt(1 - eta**2) * epsilon if a_next < 1 else 0.0
            x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * noise
        return x

    ours = dds_published(p.likelihood, p.denoiser, sigmas, rng=Noise(0, range(3)), eta=eta)
    assert torch.allclose(ours, published(Noise(0, range(3))), atol=1e-10)  # rounding


@pytest.mark.parametrize(("eta", "mean", "cov"), [(0.0, 0.124, 0.624), (0.85, 0.183, 0.532), (1.0, 0.224, 0.378)])
def test_table_fixed_gamma(eta, mean, cov):
    """gamma = 1, 50 steps. The official code drops the noise of its last but one step: (0.0, 0.85, 1.0) it then has
    (.099, .183, .224) and (.534, .482, .365), which benchmarks/oracle.py shows."""
    p = reference_problem()
    found = p.error(*exact_moments(lambda rng: dds_published(p.likelihood, p.denoiser, ddpm(50), rng=rng, eta=eta)))
    assert found == pytest.approx((mean, cov), abs=5e-4)  # the digits of the table


@pytest.mark.parametrize(("eta", "mean", "cov"), [(0.0, 0.012, 0.94), (0.85, 0.022, 0.72), (1.0, 0.041, 0.46)])
def test_table_hard_consistency(eta, mean, cov):
    """Noise-free, 1000 steps (by the recursion that the sampler was shown to follow), against an independent run."""
    p = reference_problem(sigma_y=0.0)
    found = p.error(*recursion(p, ddpm(1000), eta, hard=True))
    # That run is a Monte Carlo of 4000 chains: 1 / sqrt(4000) = .016 in the mean, about .02 in the covariance, and it
    # drops the noise of the last but one step, which is worth .01 at eta = 0.
    assert found == pytest.approx((mean, cov), abs=0.03)


# --- invariants --------------------------------------------------------------------------------------------------


def test_early_start_from_the_posterior_mean():
    p = reference_problem()
    sigmas = start_at(ddpm(50), 0.2)
    x = dds(p.likelihood, p.denoiser, sigmas, rng=OneStream(0, 2000), x0_start=p.posterior_mean)
    error, _ = p.error(x.mean(0), torch.cov(x.mT))
    assert error < 0.15  # no worse than the whole schedule (0.116) and two Monte Carlo errors of 0.016
    with pytest.raises(ValueError, match="x0_start"):
        dds(p.likelihood, p.denoiser, sigmas, rng=Noise(0, [0]), x0_start=torch.zeros(7, dtype=torch.float64))


def test_warm_start_is_dds_from_the_wavelet_image():
    p = multicoil_problem()
    counted = Counted(p.denoiser)
    sigmas = warm_levels(p.likelihood, p.denoiser)
    x = dds_warm(p.likelihood, counted, sigmas, rng=Noise(1, [3, 5]), start=0.2, eta=0.5)
    assert counted.evaluations == int((sigmas <= 0.2).sum()) - 1
    image, kept = l1_wavelet(p.likelihood), start_at(sigmas, 0.2)
    assert torch.equal(x, dds(p.likelihood, p.denoiser, kept, rng=Noise(1, [3, 5]), eta=0.5, x0_start=image))
    alone = dds_warm(p.likelihood, p.denoiser, sigmas, rng=Noise(1, [5]), start=0.2, eta=0.5)
    assert torch.allclose(x[1], alone[0], atol=1e-10)  # rounding
    with pytest.raises(ValueError, match="no level at or below"):
        dds_warm(p.likelihood, p.denoiser, sigmas, rng=Noise(0, [0]), start=1e-4)


@pytest.mark.parametrize("evaluations", [19, 49, 99])
def test_published_settings_take_their_evaluations(evaluations):
    p, name = reference_problem(), f"dds-{evaluations}"
    p.denoiser.sigma_min, p.denoiser.sigma_max = 0.002, 10.0  # of the embedded prior, below that of DDPM
    assert options_of(METHODS[name]) == {"gamma": 1.0, "eta": 0.85, "iterations": 5}
    counted, levels = Counted(p.denoiser), levels_of(METHODS[name])
    sigmas = levels(p.likelihood, p.denoiser, None)
    x = METHODS[name](likelihood=p.likelihood, denoiser=counted, sigmas=sigmas, rng=Noise(0, range(2)))
    assert counted.evaluations == evaluations
    assert x.shape == (2, 8)
    assert len(levels(p.likelihood, p.denoiser, 7)) == 8


def test_one_evaluation_per_step_and_a_callback_each():
    p, steps = reference_problem(), []
    counted = Counted(p.denoiser)
    dds(p.likelihood, counted, ddpm(20), rng=Noise(0, range(3)), callback=lambda step, x: steps.append((step, x.shape)))
    assert counted.evaluations == 20
    assert steps == [(step, (3, 8)) for step in range(20)]


# --- errors ------------------------------------------------------------------------------------------------------


def test_refuses_what_does_not_fit():
    p, q = reference_problem(), multicoil_problem()
    rng = Noise(0, [0])
    with pytest.raises(ValueError, match="prior is for complex images"):
        dds(p.likelihood, q.denoiser, ddpm(5), rng=rng)
    with pytest.raises(ValueError, match="2-D"):
        dds(p.likelihood, GaussianDenoiser(p.mean, p.covariance, 2), ddpm(5), rng=rng)
    with pytest.raises(ValueError, match="eta"):
        dds(p.likelihood, p.denoiser, ddpm(5), rng=rng, eta=1.1)
