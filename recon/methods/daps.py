"""Decoupled annealing posterior sampling: a clean image, a draw around it given the data, and noise again."""

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
from ..schedules import karras
from ..solvers import Callback
from .description import described
from .diffusion import check_inputs, check_positive, denoise, start
from .split_gibbs import couplings

Draw = Callable[[Tensor, float, int], Tensor]
"""From the clean image, the noise level it came from and the number of that level to a draw given the data."""


def daps_levels(likelihood: Gaussian, denoiser: Denoiser, levels: int | None = None) -> Tensor:
    """Noise levels for `daps`, 100 if None: `couplings` down to a quarter of the noise of a fully sampled image."""
    return couplings(likelihood, denoiser, 100 if levels is None else levels, smallest=0.25)


@described(levels=daps_levels)
def daps(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    flow_steps: int = 1,
    spread: float = 0.1,
    iterations: int = 50,
    tolerance: float = 1e-4,
    callback: Callback | None = None,
) -> Tensor:
    r"""DAPS with exact draws given the data.

    At every level: x0 = the end of the probability flow from x, in `flow_steps` steps of Euler; then
    x0' ~ exp(-nll(x0') - ||x0' - x0||^2 / (2 r^2)), by `Gaussian.draw`; then x = x0' + sigma_next n. Levels are
    decoupled: what one got wrong, the noise of the next can wash out.

    x0 and r stand for the mean and the spread of p(x0 | x). The paper takes the end of a flow of 5 steps, which is
    itself spread as the prior is, and r = sigma, which is too much where the prior knows better: with a Gaussian prior
    the samples then hold 2.7 times the posterior variance, or 1.6 times if the levels end at 0.01 instead of 0.1. One
    step of the flow ends at the mean (Tweedie's formula), and 1 / r^2 = 1 / sigma^2 + 1 / spread^2 is the variance for
    white images of that spread. So they hold 1.00 to 1.01 of it, and the mean is right within 0.01 to 0.10 standard
    deviations, in 100 evaluations (six problems; 0.88 to 1.01 and 0.02 to 0.5 at a spread of 0.03, where images vary
    by more than is assumed).

    As with all annealing, the proportion of distant modes is settled early and too even (0.60 for 0.73 in the test of
    two clusters). On a head at fourfold acceleration a spread of 0.05 gave 0.7 dB more than 0.1.

    Parameters
    ----------
    sigmas : (levels + 1,) decreasing to 0; `flow_steps` network evaluations each, but for the 0.
    flow_steps : 1 for the mean, or 5 as published, which cost five times as much and fit worse.
    spread : standard deviation of images about what is known of them at any level; math.inf as published.
    iterations, tolerance : of the conjugate gradients in the draw.
    callback : called with the level and x0'.

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
    Zhang, Chu, Berner, Meng, Anandkumar, Song, CVPR 2025, algorithm 1 with the exact draw of a linear operator.
    """
    check_inputs("daps", likelihood, denoiser, sigmas)
    check_positive("daps", iterations=iterations)
    if not spread > 0:
        raise InputError(f"daps: spread is a standard deviation, expected above 0, got {spread}")

    def draw(x0: Tensor, sigma: float, level: int) -> Tensor:
        variance = 1 / (1 / sigma**2 + 1 / spread**2)
        return likelihood.draw(x0, variance, rng, iterations=iterations, tolerance=tolerance)

    x0 = start(likelihood, rng)
    return decoupled_annealing(draw, denoiser, sigmas, x0, rng=rng, flow_steps=flow_steps, callback=callback)


def daps_langevin_levels(likelihood: Gaussian, denoiser: Denoiser, levels: int | None = None) -> Tensor:
    """The published levels: 200 if None, from 100 (or the prior's sigma_max) to 0.1."""
    return karras(200 if levels is None else levels, sigma_min=0.1, sigma_max=min(100.0, denoiser.sigma_max))


@described(
    levels=daps_langevin_levels,
    caveat=(
        "DAPS as published spreads too much: where the posterior is known (Gaussian priors) its samples hold 1.1 to "
        "2.9 of the variance, about a mean that is off by 0.1 to 1.1 standard deviations; daps is nearer."
    ),
)
def daps_langevin(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    flow_steps: int = 5,
    langevin_steps: int = 100,
    step_size: float = 0.5,
    callback: Callback | None = None,
) -> Tensor:
    """DAPS as published: x0' by Langevin steps from x0, r = sigma.

    x0' <- x0' - a (A^H (A x0' - y) + (x0' - x0) / sigma^2) + sqrt(2 a) n, with a = step_size / (||A||^2 + 1 / sigma^2)
    that falls linearly with the levels, to a hundredth. In the paper's units, where the noise is 0.01 and ||A|| = 1,
    step_size 0.5 is its rate 5e-5 (inpainting) and 1 its 1e-4 (super-resolution). Its code takes the residual twice, as
    if the noise were 0.007; here the likelihood is the right one.

    The steps are few for the larger levels, where the draw stays near x0. With a Gaussian prior and step_size 0.25 the
    mean is off by 0.3 posterior standard deviations and the samples hold 1.3 times the variance; 0.1 and 2.7 if the
    draw is exact.

    Parameters
    ----------
    sigmas : (levels + 1,); see `daps_langevin_levels`.
    langevin_steps : at every level, each an application of A^H A.
    step_size : from 0 to 2, beyond which the steps diverge.
    """
    check_inputs("daps_langevin", likelihood, denoiser, sigmas)
    if langevin_steps < 1 or not 0 < step_size < 2:
        raise InputError(
            "daps_langevin: expected at least 1 step, of a size between 0 and 2 (stability), got "
            f"langevin_steps={langevin_steps}, step_size={step_size}"
        )
    norm, levels = likelihood.A.norm(), len(sigmas) - 1

    def draw(x0: Tensor, sigma: float, level: int) -> Tensor:
        rate = (1 - 0.99 * level / levels) * step_size / (norm**2 + 1 / sigma**2)
        x = x0
        for _ in range(langevin_steps):
            drift = likelihood.grad(x) + (x - x0) / sigma**2
            x = x - rate * drift + math.sqrt(2 * rate) * rng.randn_like(x)
        return x

    x0 = start(likelihood, rng)
    return decoupled_annealing(draw, denoiser, sigmas, x0, rng=rng, flow_steps=flow_steps, callback=callback)


@torch.no_grad()
def decoupled_annealing(
    draw: Draw,
    denoiser: Denoiser,
    sigmas: Tensor,
    x0: Tensor,
    *,
    rng: Noise,
    flow_steps: int,
    callback: Callback | None = None,
) -> Tensor:
    """The loop of DAPS.

    Parameters
    ----------
    x0 : (n_samples, *domain); noise of level sigmas[0] is added to it.
    flow_steps : from every level through those of `karras` to a tenth of the last (0.1 and 0.01 in the paper), then to
        0, where the official code stops at 0.01.
    callback : called with the level and the draw.
    """
    smallest = max(float(sigmas[-2]) / 10, denoiser.sigma_min)
    if flow_steps < 1 or (flow_steps > 1 and smallest >= float(sigmas[-2])):
        raise InputError(
            f"daps: expected flow_steps of at least 1, and for several a last level above the prior's smallest sigma "
            f"{denoiser.sigma_min:.4g}; got flow_steps={flow_steps} and the level {float(sigmas[-2]):.4g}"
        )
    for level, sigma in enumerate(sigmas.tolist()[:-1]):
        x = x0 + sigma * rng.randn_like(x0)
        x0 = flow(denoiser, x, karras(flow_steps, sigma_min=smallest, sigma_max=sigma), step=level)
        x0 = draw(x0, sigma, level)
        if callback is not None:
            callback(level, x0)
    return x0


def flow(denoiser: Denoiser, x: Tensor, sigmas: Tensor, *, step: int) -> Tensor:
    """The end of the probability flow dx / dsigma = (x - D(x, sigma)) / sigma from x, by steps of Euler through sigmas.

    References
    ----------
    Song et al., ICLR 2021, equation 13.
    """
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x0 = denoise(denoiser, x, sigma, step)
        x = x0 + sigma_next / sigma * (x - x0)
    return x
