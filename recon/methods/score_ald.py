"""Score-ALD: annealed Langevin dynamics, driven by the score of the prior and the gradient of the likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from operators.linop import Space
from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..schedules import geometric, karras
from ..solvers import Callback
from .description import described
from .diffusion import check_inputs, denoise, start

Drift = Callable[[Tensor, Tensor, float], Tensor]
"""From the images, the score of the prior and the noise level sigma to the direction in which the images drift."""


def ald_levels(likelihood: Gaussian, denoiser: Denoiser, levels: int | None = None) -> Tensor:
    """Noise levels for `score_ald`, closest together at the end, where the chain mixes slowly.

    From above the spread of images of unit brightness to a quarter of the noise of the data.

    Parameters
    ----------
    levels : 100 if None.
    """
    smallest = max(denoiser.sigma_min, 0.25 / likelihood.A.norm())
    return karras(
        100 if levels is None else levels, sigma_min=smallest, sigma_max=min(3.0, denoiser.sigma_max), rho=-3.0
    )


@described(
    levels=ald_levels,
    caveat=(
        "score-ald is slightly too wide with its own number of levels: where the posterior is known (Gaussian priors) "
        "its samples hold 1.01 to 1.09 of the variance, about a mean that is off by up to 0.24 standard deviations."
    ),
)
def score_ald(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    step: float = 1.0,
    gamma: float = 1.0,
    updates: int = 3,
    callback: Callback | None = None,
) -> Tensor:
    r"""Annealed Langevin dynamics on the posterior: the posterior itself as levels become many and end low.

    At every level, `updates` times: x <- x + alpha [s(x, sigma) - w grad nll(x)] + \sqrt{2 alpha} n. Then D(x, sigma).
    The score is s = (D - x) / sigma^2, and w = 1 / (1 + gamma_t^2 ||A||^2), gamma_t = gamma sigma, lets the likelihood
    in as sigma falls. The likelihood is whitened: w grad nll is A^H (A x - y) / (sigma_y^2 + gamma_t^2) of data that
    are not, for ||A|| = 1 there and 1 / sigma_y here. Where the rows of A are orthogonal and of one length, it is the
    gradient of nll for images that carry noise of level gamma_t.

    The step is a fraction of what is stable, alpha = step / (1 / sigma^2 + w ||A||^2): the bracket bounds the curvature
    of the target, and Langevin dynamics diverge at twice that. A constant alpha / sigma^2, as published, diverges for
    small gamma, and at gamma 1 from alpha = sigma^2 on.

    Too wide where the chain is short: with Gaussian priors the 301 evaluations of `ald_levels` leave the mean 0.01 (one
    coil) to 0.24 standard deviations (three coils, x4) from the posterior's, and 1.01 to 1.09 of its variance. Distant
    modes keep the odds of a larger sigma, where the data weigh less.

    Parameters
    ----------
    sigmas : (levels + 1,) decreasing to 0; `updates` network evaluations each, but for the 0, and one more.
    step : fraction, above 0 and below 2. The stationary variance of a direction of curvature k is 1 / (1 - alpha k / 2)
        too large; at the last levels alpha k is small for all but noise.
    gamma : of gamma_t = gamma sigma; 0 gives the likelihood its full weight at all levels.
    callback : called with the level and x.

    Returns
    -------
    (n_samples, *domain), one sample for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images, sigmas leave its range, or an
        option is out of its range.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Jalal et al., NeurIPS 2021, equation 4; Song and Ermon, NeurIPS 2019, algorithm 1. The denoised end:
    Jolicoeur-Martineau et al., ICLR 2021.
    """
    check_inputs("score_ald", likelihood, denoiser, sigmas)
    if not 0 < step < 2:
        raise InputError(f"score_ald: step expects a fraction of the stable step, above 0 and below 2, got {step}")
    if not 0 <= gamma < math.inf:
        raise InputError(f"score_ald: gamma expects a finite number, 0 or more, got {gamma}")
    norm = likelihood.A.norm()

    def weight(sigma: float) -> float:
        return 1 / (1 + (gamma * sigma * norm) ** 2)

    def drift(x: Tensor, score: Tensor, sigma: float) -> Tensor:
        return score - weight(sigma) * likelihood.grad(x)

    def step_size(sigma: float) -> float:
        return step / (1 / sigma**2 + weight(sigma) * norm**2)

    x = start(likelihood, rng)
    return annealed_langevin(drift, step_size, denoiser, sigmas, x, rng=rng, updates=updates, callback=callback)


def ald_published_levels(likelihood: Gaussian, denoiser: Denoiser, levels: int | None = None) -> Tensor:
    """Noise levels for `score_ald_published`: the lower half of 2311 that fall geometrically from 232 to 0.0066.

    Parameters
    ----------
    levels : 1155 if None, from 1.23 down; others have their ratios in proportion. The ends move inwards where the
        range of the prior does not hold them.
    """
    largest = 232.0 * (0.0066 / 232.0) ** (1156 / 2310)  # the first that was used
    return geometric(
        1155 if levels is None else levels,
        sigma_min=max(0.0066, denoiser.sigma_min),
        sigma_max=min(largest, denoiser.sigma_max),
    )


@described(
    levels=ald_published_levels,
    caveat=(
        "score-ald-published is no sampler of the posterior: where that is known (Gaussian priors) its mean is off by "
        "0.25 standard deviations and its samples hold 1.6 of the variance at an mse of 1; at 5 it diverges."
    ),
)
def score_ald_published(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    mse: float = 5.0,
    step: float = 5e-5 / 0.0066**2,
    updates: int = 3,
    callback: Callback | None = None,
) -> Tensor:
    r"""Annealed Langevin dynamics as its code was published: the likelihood's pull is as strong as the prior's.

    As `score_ald`, with the drift s - mse (||s|| / ||grad nll||) grad nll, the norms over one image, and the step
    alpha = step sigma^2. The noise of the data has no say in it.

    Not a sampler of the posterior, and stable only if the score of the network is bounded: at its mse of 5 it diverges
    with Gaussian priors and with the embedded one, which is refused. With Gaussian priors the mean is 0.25 standard
    deviations off and the variance 1.6 times that of the posterior at an mse of 1, 0.66 and 2.8 at 0.3.

    Parameters
    ----------
    mse : length of the likelihood's pull, relative to that of the score.
    step : alpha / sigma^2; 5e-5 at sigma = 0.0066.

    Raises
    ------
    ValueError
        As `score_ald`, and if it diverges.

    References
    ----------
    Jalal et al., NeurIPS 2021. Their code starts from uniform noise and leaves that of the last level in the image.
    """
    check_inputs("score_ald_published", likelihood, denoiser, sigmas)
    if not (0 < step < math.inf and 0 < mse < math.inf):
        raise InputError(f"score_ald_published: step and mse expect positive numbers, got {step} and {mse}")
    space = likelihood.A.domain

    def drift(x: Tensor, score: Tensor, sigma: float) -> Tensor:
        gradient = likelihood.grad(x)
        direction = gradient / _length(gradient, space).clamp_min(torch.finfo(x.real.dtype).tiny)
        return score - mse * _length(score, space) * direction

    x = start(likelihood, rng)
    return annealed_langevin(
        drift, lambda sigma: step * sigma**2, denoiser, sigmas, x, rng=rng, updates=updates, callback=callback
    )


@torch.no_grad()
def annealed_langevin(
    drift: Drift,
    step_size: Callable[[float], float],
    denoiser: Denoiser,
    sigmas: Tensor,
    x0: Tensor,
    *,
    rng: Noise,
    updates: int,
    callback: Callback | None = None,
) -> Tensor:
    """Langevin dynamics at each level in turn, x <- x + alpha drift + sqrt(2 alpha) n, and the denoised end.

    Parameters
    ----------
    step_size : from the noise level sigma to alpha.
    x0 : (n_samples, *domain); noise of level sigmas[0] is added to it.
    callback : called with the level and x.
    """
    if updates < 1:
        raise InputError(f"annealed Langevin dynamics: expected updates of 1 or more for each level, got {updates}")
    levels = sigmas.tolist()[:-1]
    x = x0 + levels[0] * rng.randn_like(x0)
    for level, sigma in enumerate(levels):
        alpha = step_size(sigma)
        for _ in range(updates):
            score = (denoise(denoiser, x, sigma, level) - x) / sigma**2
            x = x + alpha * drift(x, score, sigma) + math.sqrt(2 * alpha) * rng.randn_like(x)
        if callback is not None:
            callback(level, x)
    _check_converged(x, levels[0])
    return denoise(denoiser, x, levels[-1], len(levels))


def _check_converged(x: Tensor, largest: float) -> None:
    """Images that were lost in noise of level `largest` at the start are not ten thousand times brighter than that."""
    reached = float(x.abs().max())
    if not reached < 1e4 * largest:
        raise InputError(
            f"Langevin dynamics diverged: expected images no brighter than the first noise level, {largest:.3g}, got "
            f"values of {reached:.3g}; take a smaller step (or mse)"
        )


def _length(x: Tensor, space: Space) -> Tensor:
    """||x|| of every image, to multiply or divide it."""
    return space.expand(space.inner(x, x).sqrt())
