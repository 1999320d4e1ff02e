"""Annealed Langevin dynamics against the closed-form posterior of Gaussian priors, and of one that is not Gaussian."""

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
from recon.errors import InputError
from recon.likelihood import Gaussian
from recon.methods.diffusion import Counted
from recon.methods.score_ald import ald_levels, ald_published_levels, annealed_langevin, score_ald, score_ald_published
from recon.noise import Noise
from recon.schedules import geometric, karras


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def stable(p, *, step=1.0, gamma=1.0):
    """w and alpha at a level, from the definition."""

    norm = p.likelihood.A.norm()

    def at(sigma):
        weight = 1 / (1 + (gamma * sigma * norm) ** 2)
        return weight, step / (1 / sigma**2 + weight * norm**2)

    return at


def proportional(p, *, rate, gamma=1.0):
    """w and alpha = rate (sigma / sigma_L)^2, sigma_L = 0.01 the last level."""
    return lambda sigma: (1 / (1 + (gamma * sigma / p.sigma_y) ** 2), rate * (sigma / 0.01) ** 2)


def recursion(p, sigmas, at, *, updates=3, end=True):
    """Mean and covariance on a Gaussian problem: x <- x + alpha (s - w grad nll) + noise is affine."""
    A, y, C = dense(p.likelihood.A), p.likelihood.y.flatten(), p.covariance
    identity, mu = torch.eye(len(C), dtype=C.dtype), p.mean.flatten()
    m, V = torch.zeros_like(mu), sigmas[0] ** 2 * identity
    for sigma in sigmas[:-1].tolist():
        weight, alpha = at(sigma)
        precision = torch.linalg.inv(C + sigma**2 * identity)
        J = identity - alpha * (precision + weight * A.mH @ A)
        b = alpha * (precision @ mu + weight * A.mH @ y)
        for _ in range(updates):
            m, V = J @ m + b, J @ V @ J.mH + 2 * alpha * identity
    if end:
        K = C @ precision
        m, V = mu + K @ (m - mu), K @ V @ K.mH
    return real_vector(m), real_matrix(V)


# --- against the closed form -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"])
@pytest.mark.parametrize(("step", "gamma"), [(1.0, 1.0), (1.9, 0.1), (0.3, 0.0)])
def test_mean_and_covariance_follow_the_recursion(p, step, gamma):
    sigmas = ald_levels(p.likelihood, p.denoiser, 12)
    moments = exact_moments(
        lambda rng: score_ald(p.likelihood, p.denoiser, sigmas, rng=rng, step=step, gamma=gamma, updates=2)
    )
    expected = recursion(p, sigmas, stable(p, step=step, gamma=gamma), updates=2)
    for found, value in zip(moments, expected, strict=True):
        assert torch.allclose(found, value, atol=1e-10)  # rounding


@pytest.mark.parametrize(("rate", "mean", "cov"), [(5e-5, 0.021, 1.01), (1e-5, 0.011, 1.01)])
def test_table(rate, mean, cov):
    """gamma = sigma, alpha / sigma^2 = 0.5 and 0.1, 2311 levels, against an independent Monte Carlo of 4000 chains."""
    p = reference_problem()
    sigmas = geometric(2311, sigma_min=0.01, sigma_max=10.0)
    error, ratio = p.error(*recursion(p, sigmas, proportional(p, rate=rate), end=False))
    # The chance of that run is 1 / sqrt(4000) = .016 in the mean and .02 in the covariance.
    assert error == pytest.approx(mean, abs=0.016)
    assert ratio == pytest.approx(cov, abs=0.04)


def test_table_is_reached_by_the_sampler():
    """The row of 5e-5 on 150 levels, alpha as published, through `annealed_langevin`."""
    p = reference_problem()
    sigmas, at = geometric(150, sigma_min=0.01, sigma_max=3.0), proportional(p, rate=5e-5)
    x = annealed_langevin(
        lambda x, score, sigma: score - at(sigma)[0] * p.likelihood.grad(x),
        lambda sigma: at(sigma)[1],
        p.denoiser,
        sigmas,
        torch.zeros(4000, 8, dtype=torch.float64),
        rng=OneStream(0, 4000),
        updates=3,
    )
    error, ratio = p.error(*sample_moments(x))
    expected_error, expected_ratio = p.error(*recursion(p, sigmas, at))
    assert error == pytest.approx(expected_error, abs=0.03)  # twice the chance, 1 / sqrt(4000)
    assert ratio == pytest.approx(expected_ratio, abs=0.05)  # of some 4 effective components


@pytest.mark.parametrize("gamma", [0.1, 0.0])
def test_stable_where_the_published_step_diverges(gamma):
    p = reference_problem()
    sigmas = geometric(400, sigma_min=0.005, sigma_max=3.0)
    _, diverged = p.error(*recursion(p, sigmas, proportional(p, rate=5e-5, gamma=gamma)))
    assert not diverged < 1e10
    error, ratio = p.error(*recursion(p, sigmas, stable(p, gamma=gamma)))
    assert error < 0.01
    assert ratio == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize(
    ("p", "error", "ratio"),
    [
        (reference_problem(), 0.012, 1.025),
        (multicoil_problem(), 0.106, 1.090),
        (multicoil_problem(acceleration=4.0), 0.237, 1.087),
        (multicoil_problem(sigma_y=0.1), 0.038, 1.011),
    ],
    ids=["one coil", "x2", "x4", "noisy"],
)
def test_documented_accuracy(p, error, ratio):
    """By the recursion, which the sampler was shown to follow, at its defaults."""
    found = p.error(*recursion(p, ald_levels(p.likelihood, p.denoiser), stable(p)))
    assert found == pytest.approx((error, ratio), abs=5e-4)  # the digits


@pytest.mark.parametrize("acceleration", [2.0, 4.0])
def test_exact_as_levels_become_many(acceleration):
    p = multicoil_problem(acceleration=acceleration)
    sigmas = karras(1000, sigma_min=0.1 * p.sigma_y, sigma_max=3.0, rho=-3.0)
    error, ratio = p.error(*recursion(p, sigmas, stable(p)))
    assert error < 0.04  # ten times the levels
    assert ratio == pytest.approx(1, abs=0.015)


def two_clusters(distance, spread, *, levels):
    """Samples for a prior of two clusters, (-d, -d) and (d, d), whose first number is measured; which of them lie in
    the right cluster, and the true chance of that."""
    sigma_y, y = 0.3, torch.tensor([0.1]).double()
    means = torch.tensor([[-distance, -distance], [distance, distance]]).double()
    likelihood = Gaussian((1 / sigma_y) * Matrix(torch.tensor([[1.0, 0.0]]).double()), y / sigma_y)
    denoiser = MixtureDenoiser(torch.tensor([0.5, 0.5]).double(), means, spread)
    sigmas = karras(levels, sigma_min=0.02, sigma_max=3.0, rho=-3.0)
    x = score_ald(likelihood, denoiser, sigmas, rng=OneStream(0, 4000))
    odds = torch.softmax(-((y - means[:, 0]) ** 2) / (2 * (sigma_y**2 + spread**2)), 0)
    return x, x[:, 1] > 0, float(odds[1])


def test_prior_that_is_not_gaussian():
    x, _, odds = two_clusters(0.3, 0.2, levels=200)
    mean = 0.3 * (2 * odds - 1)
    std = math.sqrt(0.2**2 + 0.3**2 - mean**2)
    # Chance: std / sqrt(4000) = .006, and that of the std .004. Gaussian with this mean and std the prior is not.
    assert float(x[:, 1].mean()) == pytest.approx(mean, abs=0.02)
    assert float(x[:, 1].std()) == pytest.approx(std, rel=0.03)


def test_distant_modes_keep_the_odds_of_a_larger_sigma():
    """A documented limit: each cluster is sampled well, but the odds are too even (.5 would ignore the data)."""
    x, right, odds = two_clusters(0.5, 0.1, levels=200)
    found = float(right.double().mean())
    assert 0.58 < found < odds == pytest.approx(0.731, abs=1e-3)
    for cluster in (x[right, 1], x[~right, 1]):
        assert float(cluster.std()) == pytest.approx(0.1, rel=0.06)  # chance 1 / sqrt(2 * 1500) = .018


# --- as published ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mse", "mean", "cov"), [(1.0, 0.24, 1.6), (0.3, 0.67, 2.9)])
def test_table_norm_matched(mse, mean, cov):
    """Its own levels but 200 of them, against an independent run on all."""
    p = reference_problem()
    sigmas = ald_published_levels(p.likelihood, p.denoiser, 200)
    x = score_ald_published(p.likelihood, p.denoiser, sigmas, rng=OneStream(0, 4000), mse=mse)
    error, ratio = p.error(*sample_moments(x))
    assert error == pytest.approx(mean, abs=0.04)  # two runs of 4000 chains and 1.3 times the deviation: .02 each
    assert ratio == pytest.approx(cov, rel=0.06)


def test_norm_matched_diverges_as_published_and_says_so():
    p = reference_problem()
    sigmas = ald_published_levels(p.likelihood, p.denoiser, 100)
    with pytest.raises(InputError, match=r"diverged: .* take a smaller step \(or mse\)"):
        score_ald_published(p.likelihood, p.denoiser, sigmas, rng=Noise(0, [0]))


def test_published_levels_are_the_lower_half_of_the_ladder():
    p = reference_problem()
    ladder = geometric(2311, sigma_min=0.0066, sigma_max=232.0)
    assert torch.allclose(ald_published_levels(p.likelihood, p.denoiser), ladder[1156:], rtol=1e-12)  # rounding
    p.denoiser.sigma_min, p.denoiser.sigma_max = 0.01, 1.0
    inside = ald_published_levels(p.likelihood, p.denoiser, 20)
    assert (len(inside), float(inside[0]), float(inside[-2])) == (21, 1.0, pytest.approx(0.01))


def test_the_pull_of_the_data_is_relative_to_the_score_of_each_image():
    """Data of another noise level change nothing, and data that agree already do not divide by zero."""
    p = reference_problem()
    sigmas = ald_published_levels(p.likelihood, p.denoiser, 20)
    louder = Gaussian(7.0 * p.likelihood.A, 7.0 * p.likelihood.y)
    x, same = (
        score_ald_published(data, p.denoiser, sigmas, rng=Noise(0, [0, 1]), mse=0.3) for data in (p.likelihood, louder)
    )
    assert torch.allclose(x, same, rtol=1e-10)  # rounding
    nothing = Gaussian(Matrix(torch.zeros(4, 8).double()), torch.zeros(4).double())
    assert torch.isfinite(score_ald_published(nothing, p.denoiser, sigmas, rng=Noise(0, [0]))).all()


# --- invariants --------------------------------------------------------------------------------------------------


def test_evaluations_and_callbacks():
    p, seen = reference_problem(), []
    counted = Counted(p.denoiser)
    sigmas = ald_levels(p.likelihood, p.denoiser, 5)
    state = torch.get_rng_state()
    score_ald(
        p.likelihood,
        counted,
        sigmas,
        rng=Noise(0, range(2)),
        updates=4,
        callback=lambda level, x: seen.append((level, x.shape)),
    )
    assert counted.evaluations == 5 * 4 + 1
    assert seen == [(level, (2, 8)) for level in range(5)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(ald_levels(p.likelihood, p.denoiser)) == 101
    assert len(ald_published_levels(p.likelihood, p.denoiser)) == 1156


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (score_ald, {"step": 0.0}, r"step expects a fraction .* above 0 and below 2, got 0\.0"),
        (score_ald, {"step": -1.0}, "step expects"),
        (score_ald, {"step": 2.0}, "step expects"),
        (score_ald, {"step": math.nan}, "step expects"),
        (score_ald, {"gamma": -0.1}, "gamma expects"),
        (score_ald, {"gamma": math.inf}, "gamma expects"),
        (score_ald, {"updates": 0}, "expected updates of 1 or more"),
        (score_ald_published, {"step": -1.0}, "positive numbers"),
        (score_ald_published, {"mse": 0.0}, "positive numbers"),
        (score_ald_published, {"mse": -5.0}, "positive numbers"),
        (score_ald_published, {"updates": 0}, "expected updates of 1 or more"),
    ],
)
def test_refuses_options_out_of_range(method, options, message):
    p = reference_problem()
    with pytest.raises(InputError, match=message):
        method(p.likelihood, p.denoiser, ald_levels(p.likelihood, p.denoiser, 5), rng=Noise(0, [0]), **options)
