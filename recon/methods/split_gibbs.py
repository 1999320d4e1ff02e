"""Split Gibbs sampling with a diffusion prior: exact draws from the likelihood and draws from the prior, in turn."""

from __future__ import annotations

import math
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
from .diffusion import ancestral, check_inputs, check_positive, denoise, start


def couplings(
    likelihood: Gaussian,
    denoiser: Denoiser,
    levels: int | None = None,
    *,
    largest: float = 3.0,
    smallest: float = 0.5,
) -> Tensor:
    """Coupling levels for `split_gibbs`, (levels + 1,), closest together at the end, where the chain mixes slowly.

    With Gaussian priors the 150 network evaluations of the default reach the posterior mean within 0.03 standard
    deviations and its variance within 3 % (benchmarks/results/oracle.md).

    Parameters
    ----------
    levels : 75 if None.
    largest : the first level, in units of the image; it should exceed the spread of the prior in any direction that was
        not measured, because z starts from 0 and must forget that. Lowered to the prior's sigma_max if need be.
    smallest : the last level, in units of 1 / ||A||, the noise of a fully sampled image. Raised to sqrt(2) times the
        prior's sigma_min if need be.
    """
    sigma_min = max(smallest / likelihood.A.norm(), math.sqrt(2) * denoiser.sigma_min)
    return karras(
        75 if levels is None else levels, sigma_min=sigma_min, sigma_max=min(largest, denoiser.sigma_max), rho=-3.0
    )


@described(levels=couplings)
@torch.no_grad()
def split_gibbs(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    stages: int = 1,
    iterations: int = 50,
    tolerance: float = 1e-4,
    callback: Callback | None = None,
) -> Tensor:
    """Split Gibbs sampling (plug-and-play diffusion): the posterior itself, given enough levels.

    The image is split in two, x for the data and z for the prior, coupled at the level rho: z ~ p(z), x = z + rho n.
    Each is drawn in turn given the other, x by `draw_data`, z by reverse diffusion (`draw_prior`), while rho falls
    through sigmas, one pass each. Once rho is below the noise, the posterior itself is invariant (see `draw_data`), and
    what remains to err is the haste of the descent.

    What many levels cannot do is to cross between distant modes: their proportion is settled when rho falls below the
    distance, at odds that are too even where the data say little (0.63 for 0.73 in the test of two clusters).

    Parameters
    ----------
    sigmas : (levels + 1,), the couplings rho, decreasing to a final 0 that stands for z = x; see `couplings`.
    stages : of every prior draw, see `draw_prior`; each costs 2 network evaluations per level.
    iterations, tolerance : of the conjugate gradients in `draw_data`.
    callback : called with the level and z.

    Returns
    -------
    (n_samples, *domain), the last z of one chain for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images, or sigmas leave its range.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Vono, Dobigeon, Chainais, IEEE Trans Signal Process 67, 1648 (2019); Coeurdoux, Dobigeon, Chainais, IEEE Trans Image
    Process 33, 3496 (2024); PnP-DM: Wu et al., NeurIPS 2024, algorithm 1 (their rho_k are sigmas). The prior draw is
    ours: two evaluations where they integrate the reverse diffusion in many steps.
    """
    check_inputs("split_gibbs", likelihood, denoiser, sigmas)
    check_positive("split_gibbs", stages=stages, iterations=iterations)
    _check_smallest(denoiser, float(sigmas[-2]), stages)
    norm = likelihood.A.norm()
    z = start(likelihood, rng)
    for level, rho in enumerate(sigmas.tolist()[:-1]):
        x = draw_data(likelihood, z, rho, norm=norm, rng=rng, iterations=iterations, tolerance=tolerance)
        z = draw_prior(denoiser, x, rho, rng=rng, stages=stages, step=level)
        if callback is not None:
            callback(level, z)
    return z


def draw_data(
    likelihood: Gaussian, z: Tensor, rho: float, *, norm: float, rng: Noise, iterations: int, tolerance: float
) -> Tensor:
    r"""A draw from p(x | z, y), x = z + rho n, with one of two models of how x and the data are related.

    While rho is large, y = A x + n: then y given z has the covariance I + rho^2 A A^H instead of I, a blurred posterior
    in which the chain moves freely. The draw is `Gaussian.draw`.

    Where rho ||A|| < 1, x can carry a part of the noise that is in the data: y = A x + e, e ~ N(0, I - rho^2 A A^H),
    gives y = A z + n exactly, so that z has the posterior itself at any such rho. Then

        x = z + rho^2 A^H (y - A z) + rho (I - G)^(1/2) n,    G = rho^2 A^H A,

    the root being I - G / 2 - G^2 / 8, within 0.2 % at the smallest of the default `couplings` (G <= 1 / 4).
    """
    if rho * norm >= 0.9:  # the series of the root needs G < 1, and the norm is known from below
        return likelihood.draw(z, rho**2, rng, iterations=iterations, tolerance=tolerance)
    noise = rng.randn_like(z)
    once = rho**2 * likelihood.A.gram(noise)
    twice = rho**2 * likelihood.A.gram(once)
    return z - rho**2 * likelihood.grad(z) + rho * (noise - once / 2 - twice / 8)


def draw_prior(denoiser: Denoiser, x: Tensor, sigma: float, *, rng: Noise, stages: int = 1, step: int = 0) -> Tensor:
    """A draw from p(x0 | x0 + sigma n = x): the reverse diffusion from x at level sigma down to 0.

    It steps through `stages` + 1 even levels by q(x_s | x_t, x0), which is exact if x0 ~ p(x0 | x_t), drawn by
    `draw_tweedie`. (The probability flow ODE would not do: from one x it reaches one point, not a sample.)

    References
    ----------
    q: Ho et al., NeurIPS 2020, equation 6.
    """
    levels = [sigma * (1 - stage / stages) for stage in range(stages + 1)]
    for t, s in pairwise(levels):
        x0 = draw_tweedie(denoiser, x, t, rng=rng, step=step)
        x = ancestral(x, x0, t, s, rng)
    return x


def draw_tweedie(denoiser: Denoiser, x: Tensor, sigma: float, *, rng: Noise, step: int = 0) -> Tensor:
    r"""A draw from p(x0 | x0 + sigma n = x), to second order in sigma^2, by two network evaluations.

    With m = D(x, sigma) and s = sigma / \sqrt 2: x_s ~ q(x_s | x, x0 = m), and the sample is m + 2 (D(x_s, s) - m). The
    bracket is the detail that the network finds when part of the noise is gone. It has mean 0 and half the spread of
    p(x0 | x): for a Gaussian prior of variance c the mean is exact, and the variance, c sigma^2 / (c + sigma^2), within
    the factor 1 - (sigma^2 / 2)^2 / (c + sigma^2 / 2)^2.
    """
    mean = denoise(denoiser, x, sigma, step)
    s = sigma / math.sqrt(2)
    x_s = ancestral(x, mean, sigma, s, rng)
    return 2 * denoise(denoiser, x_s, s, step) - mean


def _check_smallest(denoiser: Denoiser, rho: float, stages: int) -> None:
    """The prior draw asks the network for levels below rho."""
    smallest = rho / stages / math.sqrt(2)
    if smallest < denoiser.sigma_min:
        raise InputError(
            f"split_gibbs: {stages} stages from the last coupling {rho:.4g} ask the prior for sigma = {smallest:.4g}, "
            f"but it was trained down to {denoiser.sigma_min:.4g}; end sigmas higher or take fewer stages"
        )
