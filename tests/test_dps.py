"""Diffusion posterior sampling against the closed-form posterior of Gaussian priors; its gradients and their memory."""

import math
import weakref
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from oracle import (
    GaussianDenoiser,
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
from priors import chunked
from recon.errors import InputError
from recon.likelihood import Gaussian
from recon.methods.diffusion import Counted
from recon.methods.dps import (
    dps,
    dps_levels,
    dps_norm,
    dps_published_levels,
    guided,
    guided_diffusion,
    likelihood_rule,
    norm_rule,
)
from recon.noise import Noise
from recon.schedules import ddpm, geometric, start_at


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def with_curvature(p):
    """The same problem, and its likelihood knows the curvature of separable quadratics above it: |A|^T |A| 1."""
    A = p.likelihood.A
    bound = dense(A).abs().mT @ dense(A).abs().sum(1)
    return replace(p, likelihood=Gaussian(A, p.likelihood.y, curvature=bound.reshape(A.domain.shape)))


def recursion(p, sigmas, zeta):
    """Mean and covariance of `dps` on a Gaussian problem: x <- q x + (1 - q) x0 - w K^H A^H (A x0 - y) + noise, with
    x0 = mu + K (x - mu) and q = (sigma_next / sigma)^2, is affine."""
    A, y, C = dense(p.likelihood.A), p.likelihood.y.flatten(), p.covariance
    mu, identity = p.mean.flatten(), torch.eye(len(C), dtype=C.dtype)
    curvature = p.likelihood.A.norm() ** 2 * torch.ones(len(C)).double()
    if p.likelihood.curvature is not None:
        curvature = p.likelihood.curvature.flatten()
    m = p.likelihood.solve(torch.zeros_like(p.mean), float(sigmas[0]) ** 2, iterations=5).flatten()
    V = float(sigmas[0]) ** 2 * identity
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        K, q = C @ torch.linalg.inv(C + sigma**2 * identity), (sigma_next / sigma) ** 2
        G = K.mH @ torch.diag((1 - q**zeta) / (1 / sigma**2 + curvature)).to(K) @ A.mH
        J = q * identity + (1 - q) * K - G @ A @ K
        m = J @ (m - mu) + mu - G @ (A @ mu - y)
        V = J @ V @ J.mH + sigma_next**2 * (1 - q) * identity
    return real_vector(m), real_matrix(V)


# --- against the closed form -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p",
    [reference_problem(), multicoil_problem(shape=(4, 3)), with_curvature(reference_problem())],
    ids=["real", "multicoil", "curvature"],
)
@pytest.mark.parametrize("zeta", [0.5, 8.0])
def test_mean_and_covariance_follow_the_recursion(p, zeta):
    sigmas = dps_levels(p.likelihood, p.denoiser, 15)
    moments = exact_moments(lambda rng: dps(p.likelihood, p.denoiser, sigmas, rng=rng, zeta=zeta))
    for found, expected in zip(moments, recursion(p, sigmas, zeta), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)  # rounding


@pytest.mark.parametrize(
    ("p", "error", "ratio"),
    [
        (reference_problem(), 0.062, 0.911),
        (multicoil_problem(), 0.268, 0.466),
        (multicoil_problem(acceleration=4.0), 0.281, 0.916),
        (multicoil_problem(sigma_y=0.1), 0.6355, 0.345),
    ],
    ids=["one coil", "x2", "x4", "noisy"],
)
def test_documented_accuracy(p, error, ratio):
    """By the recursion, which the sampler was shown to follow, at its defaults."""
    found = p.error(*recursion(p, dps_levels(p.likelihood, p.denoiser), 8.0))
    assert found == pytest.approx((error, ratio), abs=5e-4)  # the digits


@pytest.mark.parametrize(
    ("zeta", "mean", "cov", "preserving"),
    [
        (1.0, 0.16, 8.1, True),
        (0.3, 0.14, 1.55, True),
        (0.1, 0.14, 0.94, True),
        (0.03, 0.05, 0.87, True),
        (0.3, 0.14, 1.55, False),
    ],
)
def test_table(zeta, mean, cov, preserving):
    """1000 steps as published, against an independent Monte Carlo of 4000 chains; its like in the other coordinates."""
    p = reference_problem()
    sigmas = dps_published_levels(p.likelihood, p.denoiser)
    rng = OneStream(0, 1000)
    x = dps_norm(p.likelihood, p.denoiser, sigmas, rng=rng, zeta=zeta, preserving=preserving)
    error, ratio = p.error(*sample_moments(x))
    # The chance of 1000 chains is sqrt(ratio / 1000), .032 where the ratio is 1, and half of that in the other run.
    assert error == pytest.approx(mean, abs=1.6 * math.sqrt(cov / 1000))
    assert ratio == pytest.approx(cov, rel=0.08)  # of some 4 effective components: sqrt(2 / 4000) = .022 and .011


def variance_preserving(p, sigmas, rng, weight):
    """DPS in the coordinates it was published in: x_vp = sqrt(abar) x0 + sqrt(1 - abar) n, DDPM's posterior step, and
    a step against the gradient with respect to x_vp."""
    A, y, C, mu = dense(p.likelihood.A), p.likelihood.y, p.covariance, p.mean
    abar = 1 / (1 + sigmas**2)
    x = rng.randn_like(p.likelihood.A.domain.zeros(len(rng)))
    for step, (a, b) in enumerate(pairwise(abar.tolist())):
        gain = math.sqrt(a) * C @ torch.linalg.inv(a * C + (1 - a) * torch.eye(len(C), dtype=C.dtype))
        x0 = mu + (x - math.sqrt(a) * mu) @ gain.mT
        gradient = (x0 @ A.mT - y) @ A @ gain  # of nll(x0) with respect to x_vp
        residual = torch.linalg.vector_norm(x0 @ A.mT - y, dim=-1)
        mean = (math.sqrt(b) * (1 - a / b) * x0 + math.sqrt(a / b) * (1 - b) * x) / (1 - a)
        noise = math.sqrt((1 - a / b) * (1 - b) / (1 - a)) * rng.randn_like(x) if b < 1 else 0.0
        x = mean + noise - weight(residual, step)[:, None] * gradient
    return x


def test_norm_rule_is_that_of_the_variance_preserving_process():
    p, zeta = reference_problem(), 0.3
    sigmas = ddpm(100)
    published = variance_preserving(
        p, sigmas, Noise(0, range(3)), lambda residual, step: zeta / (p.likelihood.A.norm() * residual)
    )
    x = dps_norm(p.likelihood, p.denoiser, sigmas, rng=Noise(0, range(3)), zeta=zeta)
    assert torch.allclose(x, published, atol=1e-10)  # rounding


def test_likelihood_rule_is_one_step_in_both_coordinates():
    """The weight of the gradient with respect to x_vp, from that with respect to x = x_vp sqrt(1 + sigma^2)."""
    p = reference_problem()
    sigmas = ddpm(100)
    rule = likelihood_rule(4.0, p.likelihood)

    def weight(residual, step):
        sigma, sigma_next = sigmas[step : step + 2].tolist()
        return rule(residual, sigma, sigma_next) / math.sqrt((1 + sigma**2) * (1 + sigma_next**2))

    x = math.hypot(1, float(sigmas[0])) * Noise(0, range(3)).randn_like(torch.zeros(3, 8).double())
    x = guided_diffusion(rule, p.likelihood, p.denoiser, sigmas, x, rng=Noise(0, range(3), draws=1))
    assert torch.allclose(x, variance_preserving(p, sigmas, Noise(0, range(3)), weight), atol=1e-10)  # rounding


def test_prior_that_is_not_gaussian():
    """Two clusters, (-d, -d) and (d, d), the first number measured: the data lead to the right one by their odds."""
    d, spread, sigma_y, y = 0.3, 0.2, 0.3, torch.tensor([0.1]).double()
    means = torch.tensor([[-d, -d], [d, d]]).double()
    likelihood = Gaussian((1 / sigma_y) * Matrix(torch.tensor([[1.0, 0.0]]).double()), y / sigma_y)
    denoiser = MixtureDenoiser(torch.tensor([0.5, 0.5]).double(), means, spread)
    odds = torch.softmax(-((y - means[:, 0]) ** 2) / (2 * (sigma_y**2 + spread**2)), 0)
    mean = d * (2 * float(odds[1]) - 1)
    x = dps(likelihood, denoiser, geometric(200, sigma_min=0.02, sigma_max=3.0), rng=OneStream(0, 2000), zeta=1.0)
    assert float(x[:, 1].mean()) == pytest.approx(mean, abs=0.1)  # a heuristic: without data the mean is 0
    assert float(x[:, 1].std()) == pytest.approx(math.sqrt(spread**2 + d**2 - mean**2), rel=0.1)


# --- step rules --------------------------------------------------------------------------------------------------


def test_rules_know_the_scale_and_the_noise_of_the_data():
    """Whitening with another factor: the norm rule is the same, the likelihood rule that of other noise."""
    p = reference_problem()
    louder = Gaussian(7.0 * p.likelihood.A, 7.0 * p.likelihood.y)
    sigmas = dps_levels(p.likelihood, p.denoiser, 20)
    x, same = (dps_norm(data, p.denoiser, sigmas, rng=Noise(0, [0, 1])) for data in (p.likelihood, louder))
    assert torch.allclose(x, same, rtol=1e-9)  # rounding
    other = dps(louder, p.denoiser, sigmas, rng=Noise(0, [0, 1]))
    assert not torch.allclose(other, dps(p.likelihood, p.denoiser, sigmas, rng=Noise(0, [0, 1])), rtol=1e-2)


@pytest.mark.parametrize("zeta", [0.1, 4.0, 1e6])
def test_likelihood_rule_is_stable_and_counts_no_levels(zeta):
    def likelihood(norm):
        return Gaussian(Matrix(norm * torch.eye(1).double()), torch.zeros(1).double())

    residual = torch.ones(2, 1).double()
    rule = likelihood_rule(zeta, likelihood(50.0))
    for sigma, sigma_next in ((3.0, 2.9), (0.1, 0.0), (0.02, 0.001)):
        assert (50.0**2 * rule(residual, sigma, sigma_next) < 1).all()
    # To first order, and two half steps are one step (sigma^2 ||A||^2 >> 1): (1 - w1 a^2) (1 - w2 a^2) = 1 - w a^2.
    slow = likelihood_rule(2.0, likelihood(1e6))
    left = [1 - 1e12 * float(slow(residual, *pair)[0]) for pair in ((1.0, 0.9), (0.9, 0.8), (1.0, 0.8))]
    assert left[0] * left[1] == pytest.approx(left[2], abs=1e-10)
    change = 2.0 * (1 - 0.999**2) / (1 + 50.0**2)
    assert float(likelihood_rule(2.0, likelihood(50.0))(residual, 1.0, 0.999)[0]) == pytest.approx(change, rel=2e-3)


def test_norm_rule_survives_data_that_agree():
    p = reference_problem()
    nothing = Gaussian(Matrix(torch.zeros(4, 8).double()), torch.zeros(4).double())
    sigmas = dps_levels(p.likelihood, p.denoiser, 5)
    assert torch.isfinite(dps_norm(nothing, p.denoiser, sigmas, rng=Noise(0, [0]))).all()
    assert torch.isfinite(norm_rule(1.0, 50.0, preserving=False)(torch.zeros(1), 1.0, 0.9)).all()


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [reference_problem(), multicoil_problem()], ids=["real", "multicoil"])
def test_gradient_is_that_of_the_likelihood_through_the_denoiser(p):
    x = p.mean + 0.3 * Noise(0, range(3)).randn_like(p.likelihood.A.domain.zeros(3))
    x = x.requires_grad_()
    (expected,) = torch.autograd.grad(p.likelihood.nll(p.denoiser(x, 0.3)).sum(), x)
    seen = []

    def rule(length, sigma, sigma_next):
        seen.append(length.flatten())
        return torch.ones_like(length)

    x0, gradient = guided(rule, p.likelihood, p.denoiser, x, 0.3, 0.2, step=0)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-10)  # rounding
    assert torch.allclose(seen[0] ** 2 / 2, p.likelihood.nll(p.denoiser(x, 0.3)), rtol=1e-10)
    assert not x0.requires_grad
    assert not gradient.requires_grad


class Metered(MixtureDenoiser):
    """Three layers of 64 features per number, which are counted as long as they are in memory."""

    def __init__(self):
        self.live = self.peak = 0

    def __call__(self, x, sigma):
        h = x.unsqueeze(-1) * torch.linspace(0.1, 1, 64, dtype=x.dtype)
        for _ in range(3):
            h = h.sin()
            self.live += h.numel()
            self.peak = max(self.peak, self.live)
            weakref.finalize(h.untyped_storage(), self.forget, h.numel())
        return h.mean(-1)

    def forget(self, numbers):
        self.live -= numbers


def test_memory_does_not_grow_with_the_samples():
    """Pieces of one image are checkpointed: their features are made again, one image at a time, for the gradient."""
    p = reference_problem()
    sigmas = dps_levels(p.likelihood, p.denoiser, 3)
    peaks, samples = {}, {}
    for n in (1, 8):
        for name, wrap in (("plain", lambda denoiser: denoiser), ("chunked", partial(chunked, max_pixels=8))):
            metered = Metered()
            samples[name, n] = dps(p.likelihood, wrap(metered), sigmas, rng=Noise(0, range(n)))
            peaks[name, n] = metered.peak
            assert metered.live == 0
    assert peaks["plain", 8] == 8 * peaks["plain", 1] == 8 * 3 * 8 * 64
    assert peaks["chunked", 8] == peaks["chunked", 1] <= peaks["plain", 1]
    assert torch.allclose(samples["plain", 8], samples["chunked", 8], rtol=1e-12, atol=1e-12)  # rounding


def test_refuses_a_prior_without_gradient():
    p = reference_problem()

    class Detached(GaussianDenoiser):
        def __call__(self, x, sigma):
            return super().__call__(x, sigma).detach()

    with pytest.raises(InputError, match="no gradient"):
        dps(p.likelihood, Detached(p.mean, p.covariance, 1), torch.tensor([1.0, 0.0]), rng=Noise(0, [0]))


# --- invariants --------------------------------------------------------------------------------------------------


def test_evaluations_callbacks_and_state():
    p, seen = reference_problem(), []
    counted = Counted(p.denoiser)
    sigmas = dps_levels(p.likelihood, p.denoiser, 5)
    state = torch.get_rng_state()
    x = dps(p.likelihood, counted, sigmas, rng=Noise(0, [0, 1]), callback=lambda step, x: seen.append((step, x.shape)))
    assert counted.evaluations == 5
    assert seen == [(step, (2, 8)) for step in range(5)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not x.requires_grad


def test_levels_lie_in_the_range_of_the_prior():
    p = reference_problem()
    assert len(dps_levels(p.likelihood, p.denoiser)) == 201
    assert torch.equal(dps_published_levels(p.likelihood, p.denoiser), ddpm(1000))
    p.denoiser.sigma_min, p.denoiser.sigma_max = 0.015, 10.0
    for levels in (dps_levels, dps_published_levels):
        sigmas = levels(p.likelihood, p.denoiser, 50)
        assert float(sigmas[0]) <= 10.0
        assert float(sigmas[-2]) >= 0.015
        assert float(sigmas[-1]) == 0
    assert torch.equal(dps_published_levels(p.likelihood, p.denoiser, 50)[:-1], start_at(ddpm(50), 10.0)[:-2])


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [dps, dps_norm])
@pytest.mark.parametrize("zeta", [0.0, -1.0, math.inf, math.nan])
def test_refuses_weights_that_are_not_positive(method, zeta):
    p = reference_problem()
    with pytest.raises(InputError, match="zeta: expected a positive strength"):
        method(p.likelihood, p.denoiser, torch.tensor([1.0, 0.0]), rng=Noise(0, [0]), zeta=zeta)
