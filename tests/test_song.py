"""Song et al. 2022 against the closed-form posterior of Gaussian priors."""

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

from operators.fourier import fftc
from operators.mri import sense
from recon.likelihood import Gaussian
from recon.methods.dds import hard
from recon.methods.diffusion import Counted
from recon.methods.song import noised, song, song_hard
from recon.noise import Noise
from recon.schedules import geometric


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the problems are tiny
    yield
    torch.set_num_threads(threads)


def levels(steps, *, largest=10.0):
    return geometric(steps, sigma_min=0.01, sigma_max=largest)


# --- the step, and the predictor, which is affine --------------------------------------------------------------------


def test_step_is_the_merge_of_kspace():
    """lambda M (y + sigma F z) + (1 - lambda M) F x, with one coil."""
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    A = sense(mask, torch.ones(1, 1, 6, 5, dtype=torch.complex128))
    x, y = (A.codomain.randn(2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    project = hard(Gaussian(A, y[0] * mask), iterations=5, tolerance=1e-12)
    merged = noised(lambda v, sigma: v + 0.8 * (project(v, sigma) - v), Noise(0, range(2)))(x, 0.3)
    z = Noise(0, range(2)).randn_like(x)
    expected = 0.8 * mask * (y[0] + 0.3 * fftc(z, (-2, -1))) + (1 - 0.8 * mask) * fftc(x, (-2, -1))
    assert torch.allclose(fftc(merged, (-2, -1)), expected, atol=1e-12)  # rounding


def test_step_is_the_projection_on_noised_data():
    p = multicoil_problem()
    x = p.A.domain.randn(2, generator=torch.Generator().manual_seed(0))
    found = noised(hard(p.likelihood, iterations=200, tolerance=1e-13), Noise(0, range(2)))(x, 0.3)
    y = p.likelihood.y + 0.3 * p.likelihood.A(Noise(0, range(2)).randn_like(x))
    assert torch.allclose(found, p.likelihood.project(x, y=y, iterations=200, tolerance=1e-13), atol=1e-9)


def recursion(p, sigmas, consistency, last):
    """Mean and covariance without corrector; consistency(sigma) = (W, b) stands for x <- z + W (x - z) + b, sigma z
    noise, and `last` for that of the denoised image without noise."""
    C, mu = p.covariance, p.mean.flatten()
    identity = torch.eye(len(C), dtype=C.dtype)
    m, covariance = torch.zeros_like(mu), sigmas[0] ** 2 * identity
    for sigma, sigma_next in pairwise(sigmas):
        W, b = consistency(sigma)
        m = W @ m + b
        covariance = W @ covariance @ W.mH + sigma**2 * (identity - W) @ (identity - W).mH
        score = -torch.linalg.inv(C + sigma**2 * identity)
        jump = sigma**2 - sigma_next**2
        m = m + jump * score @ (m - mu)
        covariance = (identity + jump * score) @ covariance @ (identity + jump * score).mH
        covariance = covariance + (jump if sigma_next > 0 else 0) * identity
    W, b = last
    return real_vector(W @ m + b), real_matrix(W @ covariance @ W.mH)


def projected(p, weight):
    A, y = dense(p.likelihood.A), p.likelihood.y.flatten()
    A, y = A[A.abs().sum(1) > 0], y[A.abs().sum(1) > 0]
    inverse = weight * torch.linalg.pinv(A)
    return torch.eye(A.shape[1], dtype=A.dtype) - inverse @ A, inverse @ y


@pytest.mark.parametrize("weight", [1.0, 0.7])
@pytest.mark.parametrize(
    "p",
    [reference_problem(0.0), multicoil_problem(shape=(4, 3), acceleration=3.0)],
    ids=["real", "multicoil"],
)
def test_hard_form_follows_the_recursion(p, weight):
    sigmas = levels(8)
    moments = exact_moments(
        lambda rng: song_hard(
            p.likelihood,
            p.denoiser,
            sigmas,
            rng=rng,
            corrector_steps=0,
            weight=weight,
            iterations=100,
            tolerance=1e-14,
        )
    )
    expected = recursion(p, sigmas, lambda sigma: projected(p, weight), projected(p, 1.0))
    for found, value in zip(moments, expected, strict=True):
        assert torch.allclose(found, value, atol=1e-10)


@pytest.mark.parametrize(
    "p", [reference_problem(), multicoil_problem(shape=(4, 3), acceleration=3.0)], ids=["real", "multicoil"]
)
def test_weighted_form_follows_the_recursion(p):
    sigmas, A, y = levels(8), dense(p.likelihood.A), p.likelihood.y.flatten()

    def consistency(sigma):
        W = torch.linalg.inv(torch.eye(A.shape[1], dtype=A.dtype) + 0.5 * sigma**2 * A.mH @ A)
        return W, 0.5 * sigma**2 * W @ A.mH @ y

    moments = exact_moments(
        lambda rng: song(p.likelihood, p.denoiser, sigmas, rng=rng, corrector_steps=0, iterations=60)
    )
    for found, value in zip(moments, recursion(p, sigmas, consistency, consistency(sigmas[-2])), strict=True):
        assert torch.allclose(found, value, atol=1e-9)  # the system has a condition number of 10^2 / 0.02^2 / 2 = 1e5


# --- with the corrector, whose step follows norms: by Monte Carlo ----------------------------------------------------

CHAINS = 2000  # chance: 1 / sqrt(2000) = .022 in the mean, sqrt(2 / 2000 / 4) = .016 of the variance, relative


@pytest.mark.parametrize(("snr", "mean", "variance"), [(0.16, 0.10, 1.75), (0.517, 0.16, 3.7)])
def test_published_form_on_the_reference_problem(snr, mean, variance):
    p = reference_problem(0.0)
    x = song_hard(p.likelihood, p.denoiser, levels(500, largest=128.0), rng=OneStream(0, CHAINS), snr=snr)
    error, ratio = p.error(*sample_moments(x))
    assert error == pytest.approx(mean, abs=0.06)  # three times the chance of both
    assert ratio == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize(
    ("p", "chains", "error", "low", "high"),
    [
        (reference_problem(), 1000, 0.15, 1.75, 1.95),
        (multicoil_problem(), 200, 0.5, 1.65, 2.0),
        (multicoil_problem(acceleration=4.0), 200, 0.35, 1.0, 1.3),
    ],
    ids=["real", "multicoil x2", "multicoil x4"],
)
def test_noisy_data_leave_the_limits_of_the_docstring(p, chains, error, low, high):
    """The limits are what 2000 and 300 chains measured, and three times the chance of the mean, 1 / sqrt(chains)."""
    found, ratio = p.error(
        *sample_moments(song(p.likelihood, p.denoiser, levels(100, largest=3.0), rng=OneStream(0, chains)))
    )
    assert found < error
    assert low < ratio < high


# --- invariants ------------------------------------------------------------------------------------------------------


def test_network_evaluations_and_a_callback_for_each_level():
    p, steps = reference_problem(), []
    counted = Counted(p.denoiser)
    song(
        p.likelihood,
        counted,
        levels(10),
        rng=Noise(0, range(3)),
        callback=lambda step, x: steps.append((step, x.shape)),
    )
    assert counted.evaluations == 20
    assert steps == [(step, (3, 8)) for step in range(10)]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (song, {"snr": 0.0}, "snr expects a finite number above 0, got 0"),
        (song, {"strength": math.inf}, "strength expects a finite number above 0"),
        (song, {"iterations": -1}, "iterations expects a finite number above 0"),
        (song_hard, {"corrector_steps": -1}, "corrector_steps expects 0 or more, got -1"),
        (song_hard, {"iterations": 0}, "iterations expects a finite number above 0"),
        (song_hard, {"weight": 0.0}, "weight expects a number above 0 and up to 1, got 0"),
        (song_hard, {"weight": 1.1}, r"weight expects a number above 0 and up to 1, got 1\.1"),
    ],
)
def test_refuses_options_out_of_range(sampler, options, message):
    p = reference_problem()
    with pytest.raises(ValueError, match=message):
        sampler(p.likelihood, p.denoiser, levels(5), rng=Noise(0, [0]), **options)
