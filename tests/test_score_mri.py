"""Score-MRI against the closed-form posterior of Gaussian priors; its four variants."""

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
    sample_moments,
)

from operators.fourier import fftc, ifftc
from operators.linop import LinearOperator, Matrix, Space
from operators.mri import sense
from priors.denoiser import real_imag
from recon.likelihood import Gaussian
from recon.methods.coilwise import coil_likelihood, coilwise
from recon.methods.diffusion import Counted
from recon.methods.score_mri import corrector, score_mri, score_mri_hard, score_mri_hybrid, ve_levels
from recon.methods.zero_filled import root_sum_of_squares
from recon.mri import PreparedMRI
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


# --- the predictor, which is affine, against a recursion -----------------------------------------------------------


def recursion(p, sigmas, consistency):
    """Mean and covariance of reverse diffusion; consistency(sigma) = (W, b) stands for x <- W x + b."""
    C, mu = p.covariance, p.mean.flatten()
    identity = torch.eye(len(C), dtype=C.dtype)
    W, b = consistency(sigmas[0])
    m, covariance = b, sigmas[0] ** 2 * W @ W.mH
    for sigma, sigma_next in pairwise(sigmas):
        score = -torch.linalg.inv(C + sigma**2 * identity)
        jump = sigma**2 - sigma_next**2
        J = identity + jump * score
        m = m + jump * score @ (m - mu)
        covariance = J @ covariance @ J.mH + (jump if sigma_next > 0 else 0) * identity
        W, b = consistency(sigma_next if sigma_next > 0 else sigma)
        m, covariance = W @ m + b, W @ covariance @ W.mH
    return real_vector(m), real_matrix(covariance)


def free(p):
    identity = torch.eye(len(p.covariance), dtype=p.mean.dtype)
    return lambda sigma: (identity, 0 * p.mean.flatten())


def projected(p):
    A, y = dense(p.likelihood.A), p.likelihood.y.flatten()
    A, y = A[A.abs().sum(1) > 0], y[A.abs().sum(1) > 0]
    inverse = torch.linalg.pinv(A)
    return lambda sigma: (torch.eye(A.shape[1], dtype=A.dtype) - inverse @ A, inverse @ y)


def weighted(p, strength):
    A, y = dense(p.likelihood.A), p.likelihood.y.flatten()

    def consistency(sigma):
        tau = strength * sigma**2
        W = torch.linalg.inv(torch.eye(A.shape[1], dtype=A.dtype) + tau * A.mH @ A)
        return W, tau * W @ A.mH @ y

    return consistency


def gradient_step(p, sigmas, first, last):
    A, y, norm = dense(p.likelihood.A), p.likelihood.y.flatten(), p.likelihood.A.norm()

    def consistency(sigma):
        part = int((sigmas[:-1] > sigma * (1 + 1e-9)).sum()) / (len(sigmas) - 2)
        weight = (first + part * (last - first)) / norm**2
        return torch.eye(A.shape[1], dtype=A.dtype) - weight * A.mH @ A, weight * A.mH @ y

    return consistency


def assert_moments(sampler, expected, *, atol=1e-10):
    for found, value in zip(exact_moments(sampler), expected, strict=True):
        assert torch.allclose(found, value, atol=atol)


def nothing():
    return Gaussian(Matrix(torch.zeros(4, 8, dtype=torch.float64)), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("sampler", [score_mri, score_mri_hard])
def test_predictor_without_data_follows_the_recursion(sampler):
    p, sigmas = reference_problem(), levels(12)
    assert_moments(
        lambda rng: sampler(nothing(), p.denoiser, sigmas, rng=rng, corrector_steps=0), recursion(p, sigmas, free(p))
    )


def test_predictor_without_data_reaches_the_prior():
    """By the recursion, which the sampler was shown to follow."""
    p, sigmas = reference_problem(), levels(1000, largest=378.0)
    mean, covariance = recursion(p, sigmas, free(p))
    # Steps of 1 % of the level, of first order: 0.6 % too wide; 60 levels are 20 % too wide.
    assert float(torch.linalg.vector_norm(mean - p.mean)) / math.sqrt(p.covariance.trace()) < 0.002
    assert float(covariance.trace() / p.covariance.trace()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "p",
    [reference_problem(0.0), multicoil_problem(shape=(4, 3), acceleration=3.0)],
    ids=["real", "multicoil"],
)
def test_hard_form_follows_the_recursion(p):
    sigmas = levels(8)
    assert_moments(
        lambda rng: score_mri_hard(
            p.likelihood, p.denoiser, sigmas, rng=rng, corrector_steps=0, iterations=100, tolerance=1e-14
        ),
        recursion(p, sigmas, projected(p)),
    )


def test_predictor_and_projection_on_the_reference_problem():
    """A small bias of the mean, by the recursion."""
    p = reference_problem(0.0)
    error, ratio = p.error(*recursion(p, levels(2000, largest=378.0), projected(p)))
    assert (error, ratio) == pytest.approx((0.13, 1.02), abs=0.005)  # two digits


@pytest.mark.parametrize(
    "p", [reference_problem(), multicoil_problem(shape=(4, 3), acceleration=3.0)], ids=["real", "multicoil"]
)
def test_weighted_form_follows_the_recursion(p):
    sigmas = levels(8)
    assert_moments(
        lambda rng: score_mri(p.likelihood, p.denoiser, sigmas, rng=rng, corrector_steps=0, iterations=60),
        recursion(p, sigmas, weighted(p, 0.5)),
        atol=1e-9,  # the system has a condition number of 10^2 / 0.02^2 / 2 = 1e5
    )


def test_hybrid_form_follows_the_recursion():
    p, sigmas = multicoil_problem(shape=(4, 3), acceleration=3.0), levels(8)
    assert_moments(
        lambda rng: score_mri_hybrid(p.likelihood, p.denoiser, sigmas, rng=rng, corrector_steps=0),
        recursion(p, sigmas, gradient_step(p, sigmas, 1.0, 0.2)),
    )


# --- with the corrector, whose step follows norms: by Monte Carlo --------------------------------------------------

CHAINS = 2000  # chance: 1 / sqrt(2000) = .022 in the mean, sqrt(2 / 2000 / 4) = .016 of the variance, relative


@pytest.mark.parametrize(
    ("corrector_first", "mean", "variance"),
    [
        (True, 0.09, 1.76),
        (False, 0.084, 1.74),  # 1.64 where the mean of a correction is returned in place of the denoised image
    ],
)
def test_published_orders_on_the_reference_problem(corrector_first, mean, variance):
    p = reference_problem(0.0)
    x = score_mri_hard(
        p.likelihood, p.denoiser, levels(500, largest=378.0), rng=OneStream(0, CHAINS), corrector_first=corrector_first
    )
    error, ratio = p.error(*sample_moments(x))
    assert error == pytest.approx(mean, abs=0.05)  # three times the chance of both
    assert ratio == pytest.approx(variance, abs=0.08)


@pytest.mark.parametrize(
    ("sampler", "p", "chains", "error", "low", "high"),
    [
        (score_mri, reference_problem(), 1000, 0.15, 1.75, 1.95),
        (score_mri, multicoil_problem(), 200, 0.5, 1.7, 2.05),
        (score_mri, multicoil_problem(acceleration=4.0), 200, 0.35, 1.05, 1.3),
        (score_mri_hybrid, multicoil_problem(acceleration=4.0), 200, 0.55, 1.15, 1.4),
    ],
    ids=["real", "multicoil x2", "multicoil x4", "hybrid x4"],
)
def test_noisy_data_leave_the_limits_of_the_docstring(sampler, p, chains, error, low, high):
    """The limits are what 2000 and 300 chains measured, and three times the chance of the mean, 1 / sqrt(chains)."""
    sigmas = ve_levels(100, largest=3.0)(p.likelihood, within(p.denoiser), None)
    found, ratio = p.error(*sample_moments(sampler(p.likelihood, p.denoiser, sigmas, rng=OneStream(0, chains))))
    assert found < error
    assert low < ratio < high


def within(denoiser, low=0.002, high=10.0):
    denoiser.sigma_min, denoiser.sigma_max = low, high
    return denoiser


def test_corrector_step_follows_the_norms_of_one_image():
    """Langevin: x + epsilon s + sqrt(2 epsilon) n with epsilon = 2 (snr ||n|| / ||s||)^2, image by image."""
    x, x0 = (
        torch.randn(3, 2, 4, 5, dtype=torch.complex128, generator=g) for g in (torch.Generator().manual_seed(0),) * 2
    )
    moved = corrector(x, x0, 0.3, snr=0.2, ndim=2, rng=Noise(0, range(3)))
    n = Noise(0, range(3)).randn_like(x)
    for i, j in ((0, 0), (1, 0), (2, 1)):
        s = (x0[i, j] - x[i, j]) / 0.09
        epsilon = 2 * (0.2 * n[i, j].norm() / s.norm()) ** 2
        assert torch.allclose(moved[i, j], x[i, j] + epsilon * s + (2 * epsilon).sqrt() * n[i, j], atol=1e-12)


# --- the four variants of the publication ----------------------------------------------------------------------------


class RealFourier(LinearOperator):
    """Masked k-space of a real image."""

    def __init__(self, mask):
        device = torch.device("cpu")
        super().__init__(
            Space(tuple(mask.shape), torch.float64, device), Space(tuple(mask.shape), torch.complex128, device)
        )
        self.mask = mask

    def forward(self, x):
        return fftc(x.to(torch.complex128), (-2, -1)) * self.mask

    def adjoint(self, y):
        return ifftc(y * self.mask, (-2, -1)).real


def real_prior(shape=(6, 5)):
    """Mean and covariance of a real image, not stationary."""
    row, column = (g.flatten().double() for g in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    s = 0.1 + 0.1 * row / shape[0]
    distance = torch.hypot(row[:, None] - row, column[:, None] - column)
    mean = (0.5 + 0.3 * torch.cos(2 * math.pi * row / shape[0])).reshape(shape)
    return mean, s[:, None] * s * torch.exp(-distance / 2)


def half_mask(shape=(6, 5), seed=0):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[shape[0] // 2, shape[1] // 2] = True
    return mask


def test_real_magnitude_images():
    mean, covariance = real_prior()
    A, denoiser = RealFourier(half_mask()), GaussianDenoiser(mean, covariance, 2)
    truth = mean + (torch.linalg.cholesky(covariance) @ Noise(1, [0]).randn_like(mean[None]).flatten()).reshape(6, 5)
    x = score_mri_hard(Gaussian(A, A(truth)), denoiser, levels(60), rng=OneStream(0, 400), tolerance=1e-10)
    assert x.dtype == torch.float64
    assert torch.allclose(A(x), A(truth).expand(400, 6, 5), atol=1e-8)  # conjugate gradients: the mask and its mirror

    matrix = torch.view_as_real(dense(A).mT.contiguous()).flatten(1).mT
    gain = covariance @ matrix.mT @ torch.linalg.pinv(matrix @ covariance @ matrix.mT, rtol=1e-10)
    posterior = covariance - gain @ matrix @ covariance
    expected = mean.flatten() + gain @ matrix @ (truth - mean).flatten()
    found, spread = sample_moments(x)
    assert float((found - expected).norm()) / math.sqrt(posterior.trace()) < 0.2
    assert 1 < float(spread.trace() / posterior.trace()) < 2  # too wide, as on the reference problem


def test_complex_images_of_one_coil_with_a_prior_of_magnitude():
    """Real and imaginary part through the network side by side are the complex prior of the same covariance."""
    mean, covariance = real_prior()
    mask, ones = half_mask(), torch.ones(1, 1, 6, 5, dtype=torch.complex128)
    A = sense(mask, ones)
    likelihood = Gaussian(A, A.codomain.randn(generator=torch.Generator().manual_seed(0)) * mask)
    split = real_imag(GaussianDenoiser(mean, covariance, 2))
    whole = GaussianDenoiser((mean + 1j * mean)[None], covariance.to(torch.complex128), 2)
    x = score_mri_hard(likelihood, split, levels(20), rng=Noise(0, range(2)))
    assert torch.allclose(x, score_mri_hard(likelihood, whole, levels(20), rng=Noise(0, range(2))), atol=1e-10)
    assert torch.allclose(A(x), likelihood.y.expand(2, 1, 6, 5), atol=1e-10)  # one step of conjugate gradients
    with pytest.raises(ValueError, match="real_imag"):
        score_mri_hard(likelihood, split.denoiser, levels(20), rng=Noise(0, [0]))


def prepared(mask):
    p = multicoil_problem(acceleration=1.0)
    kspace = (p.y * mask)[None]
    return PreparedMRI(kspace / p.sigma_y, mask, p.A.sens_maps[None], 1.0, (6, 5), kspace)


def test_coil_by_coil_without_maps():
    scan, denoiser = prepared(half_mask()), GaussianDenoiser(*(v.to(torch.complex128) for v in real_prior()), 2)
    x = coilwise(score_mri_hard)(scan, denoiser, levels(10), rng=Noise(0, range(2)), corrector_first=False)
    likelihood = coil_likelihood(scan)
    coils = score_mri_hard(likelihood, denoiser, levels(10), rng=Noise(0, range(2)), corrector_first=False)
    assert torch.allclose(likelihood.A(coils), likelihood.y.expand(2, 1, 3, 1, 6, 5), atol=1e-8)  # |y| is up to 60
    assert torch.allclose(x.real[:, :, 0], torch.linalg.vector_norm(coils, dim=2)[:, :, 0], atol=1e-10)

    full = prepared(torch.ones(6, 5, dtype=torch.bool))
    x = coilwise(score_mri_hard)(full, denoiser, levels(10), rng=Noise(0, [0]))
    assert torch.allclose(x[0], root_sum_of_squares(full), atol=1e-10)


def test_hybrid_with_maps():
    """Data of several coils are met to within what the last level leaves, by steps of the gradient alone."""
    p = multicoil_problem()
    data = p.A(p.mean + 0.3)
    x = score_mri_hybrid(Gaussian(p.A, data), p.denoiser, levels(100), rng=Noise(0, range(4)))
    error, before = (float((p.A(v) - data).norm()) for v in (x, p.mean.expand_as(x)))
    assert error < before / 3
    assert error / math.sqrt(2 * data.numel() * len(x)) < 0.02  # the smallest level is 0.01


# --- invariants ------------------------------------------------------------------------------------------------------

SAMPLERS = [score_mri, score_mri_hard, score_mri_hybrid]


def test_slices_do_not_depend_on_each_other():
    maps = torch.ones(2, 1, 1, 6, 5, dtype=torch.complex128)
    mean, covariance = real_prior()
    denoiser = GaussianDenoiser((mean + 0j), covariance.to(torch.complex128), 2)
    A = sense(half_mask(), maps)
    y = A.codomain.randn(generator=torch.Generator().manual_seed(0)) * A.mask
    x = score_mri_hard(Gaussian(A, y), denoiser, levels(10), rng=Noise(0, [0]))
    brighter = torch.stack([y[0], 3 * y[1]])
    assert torch.allclose(x[:, 0], score_mri_hard(Gaussian(A, brighter), denoiser, levels(10), rng=Noise(0, [0]))[:, 0])


@pytest.mark.parametrize(
    ("options", "evaluations"), [({}, 20), ({"corrector_first": False}, 19), ({"corrector_steps": 3}, 40)]
)
def test_network_evaluations_and_a_callback_for_each_level(options, evaluations):
    p, steps = reference_problem(), []
    counted = Counted(p.denoiser)
    score_mri(
        p.likelihood,
        counted,
        levels(10),
        rng=Noise(0, range(3)),
        callback=lambda step, x: steps.append((step, x.shape)),
        **options,
    )
    assert counted.evaluations == evaluations
    assert steps == [(step, (3, 8)) for step in range(10)]


def test_levels_are_the_published_ones_within_the_range_of_the_prior():
    p = reference_problem()
    published = ve_levels(2000)(p.likelihood, within(p.denoiser, 1e-3, 1e3), None)
    assert len(published) == 2001
    assert (float(published[0]), float(published[-2])) == pytest.approx((378.0, 0.01))
    assert torch.allclose(published[1:-1] / published[:-2], published[1] / published[0])
    cut = ve_levels(2000)(p.likelihood, within(p.denoiser, 0.05, 10.0), 30)
    assert len(cut) == 31
    assert (float(cut[0]), float(cut[-2])) == pytest.approx((10.0, 0.05))


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (score_mri, {"snr": 0.0}, "snr expects a finite number above 0, got 0"),
        (score_mri, {"corrector_steps": -1}, "corrector_steps expects 0 or more, got -1"),
        (score_mri, {"strength": 0.0}, "strength expects a finite number above 0"),
        (score_mri, {"iterations": -1}, "iterations expects a finite number above 0"),
        (score_mri_hard, {"iterations": 0}, "iterations expects a finite number above 0"),
        (score_mri_hybrid, {"first_weight": 2.0}, "weights above 0 and below 2, .* got first_weight=2.0"),
        (score_mri_hybrid, {"last_weight": 0.0}, "weights above 0"),
    ],
)
def test_refuses_options_out_of_range(sampler, options, message):
    p = reference_problem()
    with pytest.raises(ValueError, match=message):
        sampler(p.likelihood, p.denoiser, levels(5), rng=Noise(0, [0]), **options)
