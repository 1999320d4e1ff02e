"""DiffPIR: plug-and-play restoration along the levels of a diffusion, its noise predicted after the data are seen."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..schedules import ddpm_quadratic
from ..solvers import Callback
from .dds import dds_levels
from .description import Levels, described
from .diffusion import check_inputs, denoise, iterations_of, start


def diffpir_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Those of `dds_levels`, 20 if None."""
    return dds_levels(likelihood, denoiser, 20 if steps is None else steps)


@described(
    levels=diffpir_levels,
    caveat=(
        "DiffPIR is no sampler of the posterior: where that is known (Gaussian priors) its mean is off by up to 0.3 "
        "standard deviations and its samples hold 0.2 to 0.5 of the variance, 0.8 to 1.2 with 100 steps and zeta 0.1."
    ),
)
@torch.no_grad()
def diffpir(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    prior_weight: float = 1.0,
    zeta: float = 1.0,
    iterations: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """DiffPIR: half-quadratic splitting along the levels of a diffusion.

    At every level: x0 = D(x, sigma); x0' = argmin (sigma^2 / prior_weight) nll(x0') + 1/2 ||x0' - x0||^2, by conjugate
    gradients; epsilon = (x - x0') / sigma; x = x0' + sigma_next (sqrt(1 - zeta) epsilon + sqrt(zeta) n). The last step
    returns D(x, sigma) as it is. The likelihood is whitened: sigma^2 / prior_weight is sigma_y^2 / rho_t of the paper,
    prior_weight its lambda.

    It differs from `dds` in epsilon, which holds what the data have changed, and in zeta, which is eta^2 there.

    Not a sampler of the posterior: with a Gaussian prior the mean is 0.16 standard deviations off and the samples hold
    0.32 of the variance with 20 steps, prior_weight 1 and zeta 1 as published (`ddpm_quadratic`); 0.17 and 0.99 with
    100 steps, 8 and 0.3, the errors of which happen to cancel; 0.08 and 0.44 with the 20 of `diffpir_levels`.

    Parameters
    ----------
    sigmas : (steps + 1,) decreasing to 0; one network evaluation each, but for the 0.
    prior_weight : lambda, the weight of the prior against data of their measured noise.
    zeta : share of fresh noise in the variance of every step, from 0 (the predicted noise is kept) to 1.
    iterations : of conjugate gradients, 0 for those of the likelihood, 5 of MRI and 20 of CT; the paper has
        operators that are inverted exactly.

    Returns
    -------
    (n_samples, *domain), one sample for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images, sigmas leave its range, or an
        option is outside its own.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Zhu et al., CVPR Workshops 2023, algorithm 1. Their images run from -1 to 1 and their noise is given for 0 to 1, so
    that lambda in their configurations is a quarter of it here.
    """
    check_inputs("diffpir", likelihood, denoiser, sigmas)
    iterations = iterations_of("diffpir", likelihood, iterations)
    if not prior_weight > 0:
        raise InputError(f"diffpir: prior_weight: expected a number above 0, got {prior_weight}")
    if not 0 <= zeta <= 1:
        raise InputError(f"diffpir: zeta: expected a share of fresh noise from 0 to 1, got {zeta}")
    x = float(sigmas[0]) * rng.randn_like(start(likelihood, rng))
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoise(denoiser, x, sigma, step)
        if sigma_next > 0:
            x0 = likelihood.solve(x0, sigma**2 / prior_weight, iterations=iterations)
            epsilon = (x - x0) / sigma
            x = x0 + sigma_next * (math.sqrt(1 - zeta) * epsilon + math.sqrt(zeta) * rng.randn_like(x))
        if callback is not None:
            callback(step, x0)
    return x0


def diffpir_published_levels(evaluations: int) -> Levels:
    """DDPM timesteps of even squares within the range of the prior, `evaluations` by default."""
    return lambda likelihood, denoiser, steps: ddpm_quadratic(
        evaluations if steps is None else steps, sigma_min=denoiser.sigma_min, sigma_max=denoiser.sigma_max
    )
