"""DAPS against the closed-form posterior of Gaussian priors, and of one that is not Gaussian."""

import math
from itertools import pairwise

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
from recon.methods.daps import daps, daps_langevin, daps_langevin_levels, daps_levels
from recon.methods.diffusion import Counted
from recon.methods.split_gibbs import couplings
from recon.noise import Noise
from recon.schedules import karras


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def recursion(p, sigmas, draw, *, flow_steps):
    """Mean and covariance that DAPS must have on a Gaussian problem, level by level.

    draw(mean, covariance, sigma, level) gives those of x0' from those of x0.
    """
    C, mu = p.covariance, p.mean.flatten()
    identity = torch.eye(len(C), dtype=C.dtype)
    mean, covariance = torch.zeros_like(mu), torch.zeros_like(C)
    smallest = float(sigmas[-2]) / 10
    for level, sigma in enumerate(sigmas.tolist()[:-1]):
        covariance = covariance + sigma**2 * identity
        for s, t in pairwise(karras(flow_steps, sigma_min=smallest, sigma_max=sigma).tolist()):
            K = C @ torch.linalg.inv(C + s**2 * identity)
            F = K + t / s * (identity - K)
            mean, covariance = mu + F @ (mean - mu), F @ covariance @ F.mH
        mean, covariance = draw(mean, covariance, sigma, level)
    return real_vector(mean), real_matrix(covariance)


def exact_draw(p, spread):
    A, y = dense(p.likelihood.A), p.likelihood.y.flatten()
    identity = torch.eye(A.shape[1], dtype=A.dtype)

    def draw(mean, covariance, sigma, level):
        v = 1 / (sigma**-2 + spread**-2)
        W = torch.linalg.inv(identity + v * A.mH @ A)
        return W @ (mean + v * A.mH @ y), W @ covariance @ W + v * W

    return draw


def langevin_draw(p, levels, *, langevin_steps, step_size):
    """The same chain in closed form: x <- M x + (I - M) target + noise, M = I - a (A^H A + I / sigma^2)."""
    A, y = dense(p.likelihood.A), p.likelihood.y.flatten()
    identity, norm = torch.eye(A.shape[1], dtype=A.dtype), p.likelihood.A.norm()

    def draw(mean, covariance, sigma, level):
        a = (1 - 0.99 * level / levels) * step_size / (norm**2 + sigma**-2)
        H = A.mH @ A + identity / sigma**2
        powers = [torch.linalg.matrix_power(identity - a * H, k) for k in range(langevin_steps + 1)]
        rest = (identity - powers[-1]) @ torch.linalg.inv(H)
        J = powers[-1] + rest / sigma**2
        noise = 2 * a * sum(M @ M for M in powers[:-1])
        return J @ mean + rest @ A.mH @ y, J @ covariance @ J.mH + noise

    return draw


PROBLEMS = pytest.mark.parametrize(
    "p", [reference_problem(), multicoil_problem(shape=(4, 3))], ids=["real", "multicoil"]
)


@PROBLEMS
@pytest.mark.parametrize(("flow_steps", "spread"), [(1, 0.1), (3, 0.1), (5, math.inf)])
def test_mean_and_covariance_follow_the_recursion(p, flow_steps, spread):
    sigmas = daps_levels(p.likelihood, p.denoiser, 10)
    moments = exact_moments(
        lambda rng: daps(
            p.likelihood, p.denoiser, sigmas, rng=rng, flow_steps=flow_steps, spread=spread, tolerance=1e-13
        )
    )
    expected = recursion(p, sigmas, exact_draw(p, spread), flow_steps=flow_steps)
    for found, right in zip(moments, expected, strict=True):
        assert torch.allclose(found, right, atol=1e-10)  # rounding, and conjugate gradients that stop at 1e-13 ||b||


@PROBLEMS
def test_langevin_form_follows_the_recursion(p):
    sigmas, steps = karras(6, sigma_min=0.05, sigma_max=3), {"langevin_steps": 4, "step_size": 1.2}
    moments = exact_moments(lambda rng: daps_langevin(p.likelihood, p.denoiser, sigmas, rng=rng, flow_steps=3, **steps))
    for found, right in zip(moments, recursion(p, sigmas, langevin_draw(p, 6, **steps), flow_steps=3), strict=True):
        assert torch.allclose(found, right, atol=1e-10)  # rounding


def test_reaches_the_posterior_of_the_reference_problem():
    p, counted = reference_problem(), Counted(reference_problem().denoiser)
    sigmas = daps_levels(p.likelihood, p.denoiser)
    error, ratio = p.error(*exact_moments(lambda rng: daps(p.likelihood, counted, sigmas, rng=rng, tolerance=1e-12)))
    assert counted.evaluations == 2 * 100  # exact_moments runs it twice
    assert error < 0.016  # the Monte Carlo error of 4000 chains
    assert ratio == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("sigma_y", "acceleration"), [(0.005, 4.0), (0.02, 2.0), (0.02, 4.0), (0.1, 2.0)])
def test_exact_as_the_levels_fall_slowly(sigma_y, acceleration):
    """By the recursion, which the sampler was shown to follow: no chance, and many levels."""
    p = multicoil_problem(sigma_y=sigma_y, acceleration=acceleration)
    draw = exact_draw(p, 0.1)
    error, ratio = p.error(*recursion(p, daps_levels(p.likelihood, p.denoiser), draw, flow_steps=1))
    assert error < 0.06
    assert ratio == pytest.approx(1, abs=0.03)  # what is asked of an accurate sampler
    slow = couplings(p.likelihood, p.denoiser, 800, smallest=0.1)
    error, ratio = p.error(*recursion(p, slow, draw, flow_steps=1))
    assert error < 0.01  # eight times the levels
    assert ratio == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize(("smallest", "expected"), [(0.1, (0.13, 2.7)), (0.01, (0.03, 1.7))])
def test_published_flow_and_spread_are_over_dispersed(smallest, expected):
    p = reference_problem()
    sigmas = karras(200, sigma_min=smallest, sigma_max=100)
    found = p.error(*recursion(p, sigmas, exact_draw(p, math.inf), flow_steps=5))
    # Figures of 4000 chains (.016 and .02 by chance) whose flow stopped at 0.01: at a tenth of the last level here, and
    # then at 0, which takes .1 off the variance of the second.
    assert found == pytest.approx(expected, abs=0.12)


def test_langevin_form_has_the_published_moments():
    p = reference_problem()
    sigmas = daps_langevin_levels(p.likelihood, p.denoiser)
    draw = langevin_draw(p, 200, langevin_steps=100, step_size=0.25)  # its rate is 1e-4 where the noise is 0.02
    found = p.error(*recursion(p, sigmas, draw, flow_steps=5))
    assert found == pytest.approx((0.31, 1.3), abs=0.06)  # 4000 chains, at a rate that is 4 % larger


def test_samples_of_the_exact_form_by_chance():
    """As a user runs it: independent noise, single samples."""
    p = multicoil_problem()
    x = daps(p.likelihood, p.denoiser, daps_levels(p.likelihood, p.denoiser), rng=OneStream(0, 500))
    error, ratio = p.error(*sample_moments(x))
    assert error < 0.08  # 1 / sqrt(500) = .045 by chance, .026 by the descent
    assert ratio == pytest.approx(1, abs=0.05)  # sqrt(2 / 500 / 20) = .014 of 20 effective components


def two_clusters(distance, spread, *, flow_steps=1):
    """As in test_split_gibbs: two clusters, whose first number is measured; samples, which are right, the true odds."""
    sigma_y, y = 0.3, torch.tensor([0.1]).double()
    means = torch.tensor([[-distance, -distance], [distance, distance]]).double()
    likelihood = Gaussian((1 / sigma_y) * Matrix(torch.tensor([[1.0, 0.0]]).double()), y / sigma_y)
    denoiser = MixtureDenoiser(torch.tensor([0.5, 0.5]).double(), means, spread)
    sigmas = karras(100, sigma_min=0.03, sigma_max=3)
    x = daps(likelihood, denoiser, sigmas, rng=OneStream(0, 4000), flow_steps=flow_steps, spread=math.inf)
    odds = torch.softmax(-((y - means[:, 0]) ** 2) / (2 * (sigma_y**2 + spread**2)), 0)
    return x, x[:, 1] > 0, float(odds[1])


def test_prior_that_is_not_gaussian():
    x, _, odds = two_clusters(0.3, 0.2)
    mean = 0.3 * (2 * odds - 1)
    std = math.sqrt(0.2**2 + 0.3**2 - mean**2)
    assert float(x[:, 1].mean()) == pytest.approx(mean, abs=0.03)  # chance .006; too even, see below
    assert float(x[:, 1].std()) == pytest.approx(std, rel=0.03)  # chance .011


def test_distant_modes_are_too_even():
    """A documented limit: each cluster is sampled well, but the odds are too even (.5 would ignore the data)."""
    x, right, odds = two_clusters(0.5, 0.1)
    found = float(right.double().mean())
    assert 0.56 < found < odds == pytest.approx(0.731, abs=1e-3)
    for cluster in (x[right, 1], x[~right, 1]):
        assert float(cluster.std()) == pytest.approx(0.1, abs=0.01)  # chance .002; too wide by the haste


def test_five_steps_of_the_flow_widen_the_modes():
    x, right, _ = two_clusters(0.5, 0.1, flow_steps=5)
    assert float(x[right, 1].std()) == pytest.approx(0.13, abs=0.01)


def test_evaluations_and_a_callback_at_every_level():
    p, seen = reference_problem(), []
    counted = Counted(p.denoiser)
    daps(
        p.likelihood,
        counted,
        daps_levels(p.likelihood, p.denoiser, 4),
        rng=Noise(0, range(2)),
        flow_steps=3,
        callback=lambda level, x: seen.append((level, x.shape)),
    )
    assert counted.evaluations == 12
    assert seen == [(level, (2, 8)) for level in range(4)]


def test_levels_stay_in_the_range_of_the_prior():
    p = reference_problem()
    p.denoiser.sigma_min, p.denoiser.sigma_max = 0.02, 10.0
    assert len(daps_levels(p.likelihood, p.denoiser)) == 101
    published = daps_langevin_levels(p.likelihood, p.denoiser)
    assert len(published) == 201
    assert (float(published[0]), float(published[-2])) == pytest.approx((10.0, 0.1))
    assert len(daps_langevin_levels(p.likelihood, p.denoiser, 7)) == 8


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (daps, {"spread": 0.0}, "spread is a standard deviation, expected above 0, got 0"),
        (daps, {"flow_steps": 0}, "flow_steps of at least 1.*got flow_steps=0"),
        (daps_langevin, {"step_size": 0.0}, "between 0 and 2"),
        (daps_langevin, {"step_size": 2.0}, "between 0 and 2"),
        (daps_langevin, {"langevin_steps": 0}, "at least 1 step"),
    ],
)
def test_refuses_options_without_sense(method, options, message):
    p = reference_problem()
    with pytest.raises(ValueError, match=message):
        method(p.likelihood, p.denoiser, torch.tensor([1.0, 0.3, 0.0]), rng=Noise(0, [0]), **options)


def test_refuses_what_does_not_fit():
    p = reference_problem()
    p.denoiser.sigma_min = 0.02
    with pytest.raises(ValueError, match=r"above the prior's smallest sigma 0\.02"):
        daps(p.likelihood, p.denoiser, torch.tensor([1.0, 0.02, 0.0]), rng=Noise(0, [0]), flow_steps=2)
