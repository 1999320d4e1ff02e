"""Decomposed diffusion sampling: denoise, enforce data consistency by conjugate gradients, add noise again."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..schedules import ddpm, karras, start_at
from ..solvers import Callback
from .classical import l1_wavelet
from .description import Levels, described
from .diffusion import check_inputs, check_positive, denoise, iterations_of, start

Consistency = Callable[[Tensor, float], Tensor]
"""From the denoised images and their noise level sigma to images that agree better with the data."""

_UNDER_DISPERSED = (
    "DDS is under-dispersed: where the posterior is known (Gaussian priors) its samples hold 0.4 to 0.6 of its "
    "variance, so that std map and intervals are too narrow; split-gibbs holds all of it."
)


def dds_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Noise levels for `dds`: from above the spread of images of unit brightness to half the noise of the data.

    Parameters
    ----------
    steps : 50 if None.
    """
    smallest = max(denoiser.sigma_min, 0.5 / likelihood.A.norm())
    return karras(50 if steps is None else steps, sigma_min=smallest, sigma_max=min(3.0, denoiser.sigma_max))


@described(levels=dds_levels, caveat=_UNDER_DISPERSED)
def dds(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    eta: float = 1.0,
    strength: float = 1.0,
    iterations: int = 0,
    x0_start: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDS in its proximal form, weighted by the measured noise.

    At every level: x0 = D(x, sigma); x0' = argmin strength sigma^2 nll(x0') + 1/2 ||x0' - x0||^2, by `iterations` of
    conjugate gradients; then noise again (see `consistent_diffusion`). The likelihood is whitened: this is gamma_t =
    strength sigma_t^2 / sigma_y^2 of the paper, which keeps gamma at a constant.

    The noise is all new by default (eta 1). Kept noise holds the prior's disagreement with the data: with Gaussian
    priors, where all is known in closed form, and several coils it moves the mean by 0.2 to 0.4 standard deviations at
    eta 0.9 and by 0.6 to 1.2 at eta 0.5. On simulated scans of heads that the prior has not seen, the mean of 4 samples
    was 0.5 to 3.3 dB nearer to the truth with eta 1 and 60 levels than with 0.9 and 30 (ten masks).

    Under-dispersed: x0' is a point where p(x0 | x_t, y) has a spread, and what is lost there, the noise added next
    does not bring back: the samples hold about half of the posterior variance (benchmarks/results/oracle.md). For
    intervals that hold, use `split_gibbs`.

    Parameters
    ----------
    sigmas : (steps + 1,) decreasing to 0; one network evaluation each, but for the 0.
    eta : fraction of fresh noise in every step, from 0 (the predicted noise is kept) to 1.
    strength : weight of the data relative to their measured noise.
    iterations : of conjugate gradients; 0 for those of the likelihood, 5 of MRI and 20 of CT.
    x0_start : ([n_samples,] *domain), a warm image for an early start: sigmas[0] should not be below its error.

    Returns
    -------
    (n_samples, *domain), one sample for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images, or sigmas leave its range.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Chung, Lee, Ye, ICLR 2024, algorithm 2; early start: Chung, Sim, Ye, CVPR 2022.
    """
    check_inputs("dds", likelihood, denoiser, sigmas)
    check_positive("dds", strength=strength)
    iterations = iterations_of("dds", likelihood, iterations)
    consistency = proximal(likelihood, lambda sigma: strength * sigma**2, iterations=iterations)
    x0 = start(likelihood, rng, x0_start)
    return consistent_diffusion(consistency, denoiser, sigmas, x0, rng=rng, eta=eta, callback=callback)


@described(levels=dds_levels, caveat=_UNDER_DISPERSED)
def dds_hard(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    eta: float = 0.9,
    iterations: int = 10,
    tolerance: float = 1e-5,
    x0_start: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDS in its hard form, for data without noise: x0' is the solution of A x = y nearest to the denoised image.

    As `dds` in all else, but for the default of eta. With a Gaussian prior and 1000 steps its samples hold 0.96 of the
    posterior variance at eta 0, 0.73 at eta 0.85 and 0.47 at eta 1.

    Parameters
    ----------
    iterations : of conjugate gradients on A^H A x = A^H y; noisy data want few, since more of them fit the noise.
    tolerance : where they stop, relative to ||A^H y||.
    """
    check_inputs("dds_hard", likelihood, denoiser, sigmas)
    check_positive("dds_hard", iterations=iterations)
    consistency = hard(likelihood, iterations=iterations, tolerance=tolerance)
    x0 = start(likelihood, rng, x0_start)
    return consistent_diffusion(consistency, denoiser, sigmas, x0, rng=rng, eta=eta, callback=callback)


def published_levels(evaluations: int) -> Levels:
    """The schedule of `dds_published`: even DDPM timesteps within the range of the prior, `evaluations` by default."""
    return lambda likelihood, denoiser, steps: ddpm(
        evaluations if steps is None else steps, sigma_min=denoiser.sigma_min, sigma_max=denoiser.sigma_max
    )


@described(
    caveat=(
        "DDS as published does not follow the measured noise: where the posterior is known (Gaussian priors) its mean "
        "is off by 0.1 to 1.4 standard deviations and its samples hold 0.4 to 1.8 of the variance; dds is nearer, "
        "split-gibbs holds all of it."
    ),
)
def dds_published(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    gamma: float = 1.0,
    eta: float = 0.85,
    iterations: int = 5,
    callback: Callback | None = None,
) -> Tensor:
    """DDS as published: gamma is a constant, whatever the measured noise and the level.

    As `dds` with x0' = argmin gamma / 2 ||A x - y||^2 + 1/2 ||x - x0||^2, A of unit norm and y not whitened: gamma = 1
    takes what was measured half way to the data at every level, be they noisy or not. With a Gaussian prior and 50
    steps the samples hold 0.53 of the posterior variance at eta 0.85, and the mean is off by 0.18 standard deviations.

    Two things are other in the published code: it adds no noise in its last step but one, and with multi-coil data it
    multiplies gamma A^H y by 1 + i (a broadcast of complex numbers against pairs of real ones).

    Parameters
    ----------
    sigmas : published with `schedules.ddpm`; the paper counts 19, 49 and 99 network evaluations.

    References
    ----------
    Chung, Lee, Ye, ICLR 2024, algorithm 2 and tables of section 4.
    """
    check_inputs("dds_published", likelihood, denoiser, sigmas)
    check_positive("dds_published", gamma=gamma, iterations=iterations)
    tau = gamma / likelihood.A.norm() ** 2
    consistency = proximal(likelihood, lambda sigma: tau, iterations=iterations)
    x0 = start(likelihood, rng)
    return consistent_diffusion(consistency, denoiser, sigmas, x0, rng=rng, eta=eta, callback=callback)


def warm_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Those of `dds_levels`, 15 if None, of which `dds_warm` leaves out about half."""
    return dds_levels(likelihood, denoiser, 15 if steps is None else steps)


@described(levels=warm_levels, caveat=_UNDER_DISPERSED)
def dds_warm(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    start: float = 0.3,
    eta: float = 0.9,
    strength: float = 1.0,
    iterations: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """DDS with an early start from the l1-wavelet image, at the first of its levels that is at most `start`.

    What the l1-wavelet image has wrong by more than `start`, aliasing say, stays. On simulated acquisitions of heads
    that the prior has not seen (twelve, 4 to 6 times undersampled) a sample of the default, 8 evaluations, had a PSNR
    from 0.6 dB below to 0.2 dB above that of `dds` with 30, 0.2 dB below on the mean; `dds` with 8 was 0.3 dB above.

    Parameters
    ----------
    sigmas : as for `dds`; the levels above `start` are left out, and their evaluations saved.
    start : not below the root mean square error of the l1-wavelet image, in units of the image.

    References
    ----------
    CCDF: Chung, Sim, Ye, CVPR 2022, who start from a network's image or the zero-filled one.
    """
    levels = start_at(sigmas, start)
    check_inputs("dds_warm", likelihood, denoiser, levels)
    return dds(
        likelihood,
        denoiser,
        levels,
        rng=rng,
        eta=eta,
        strength=strength,
        iterations=iterations,
        x0_start=l1_wavelet(likelihood),
        callback=callback,
    )


def proximal(likelihood: Gaussian, tau: Callable[[float], float], *, iterations: int) -> Consistency:
    """x0' = argmin tau(sigma) nll(x0') + 1/2 ||x0' - x0||^2, by conjugate gradients from x0."""
    return lambda x0, sigma: likelihood.solve(x0, tau(sigma), iterations=iterations)


def hard(likelihood: Gaussian, *, iterations: int, tolerance: float) -> Consistency:
    """x0' = the solution of A x = y nearest to x0, by conjugate gradients from x0."""
    return lambda x0, sigma: likelihood.project(x0, iterations=iterations, tolerance=tolerance)


@torch.no_grad()
def consistent_diffusion(
    consistency: Consistency,
    denoiser: Denoiser,
    sigmas: Tensor,
    x0: Tensor,
    *,
    rng: Noise,
    eta: float,
    callback: Callback | None = None,
) -> Tensor:
    """Diffusion sampling with a data consistency step on every denoised image.

    Parameters
    ----------
    x0 : (n_samples, *domain); noise of level sigmas[0] is added to it.
    callback : called with the step and x0'.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"dds: eta: expected a fraction of fresh noise from 0 to 1, got {eta}")
    x = x0 + float(sigmas[0]) * rng.randn_like(x0)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(denoiser, x, sigma, step)  # E[x0 | x], Tweedie
        epsilon = (x - denoised) / sigma
        x = consistency(denoised, sigma)
        if callback is not None:
            callback(step, x)
        if sigma_next > 0:
            x = x + sigma_next * (eta * rng.randn_like(x) + math.sqrt(1 - eta**2) * epsilon)
    return x
