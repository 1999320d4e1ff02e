"""Plug and play: splittings in which the denoiser stands for the proximal map of the prior. One image, no samples."""

from __future__ import annotations

import torch
from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..schedules import karras
from ..solvers import Callback
from .description import described
from .diffusion import check_inputs, denoise, iterations_of


def plug_and_play_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Noise levels for both, 30 if None: from 1 to the noise of a fully sampled image."""
    smallest = max(denoiser.sigma_min, 1 / likelihood.A.norm())
    return karras(30 if steps is None else steps, sigma_min=smallest, sigma_max=min(1.0, denoiser.sigma_max))


@described(levels=plug_and_play_levels)
@torch.no_grad()
def pnp_admm(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    strength: float = 1.0,
    iterations: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Plug-and-play ADMM: a single image from data and prior, the same every time.

    At every level, with tau = strength sigma^2:

        x = argmin tau nll(x) + 1/2 ||x - (z - u)||^2,    z = D(x + u, sigma),    u = u + x - z.

    u / tau is the multiplier of x = z; so u is scaled with tau where sigma falls, which fixed-step forms need not do.
    With a Gaussian prior and strength 1 it rests at the posterior mean, whatever sigma; how fast, sigma decides. In 30
    evaluations at its own levels it comes within 0.01 posterior standard deviations, if x is solved for well.

    On a measured head it is better than one sample of any sampler (benchmarks/results/samplers.md). Of its error it
    says nothing: for that, draw samples.

    Parameters
    ----------
    sigmas : (steps + 1,) decreasing to 0; one network evaluation each, but for the 0.
    strength : weight of the data relative to their measured noise. Above 1 the prior counts for less.
    iterations : of conjugate gradients for x, from z - u; 0 for those of the likelihood, 5 of MRI and 20 of CT. Few in
        MRI: more of them fit the errors of the coil maps.
    callback : called with the step and z.

    Returns
    -------
    (*domain), z of the last level.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images, or sigmas leave its range.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Venkatakrishnan, Bouman, Wohlberg, GlobalSIP 2013; Chan, Wang, Elgendy, IEEE Trans Comput Imaging 3, 84 (2017).
    """
    z = _start("pnp_admm", likelihood, denoiser, sigmas, strength)
    iterations = iterations_of("pnp_admm", likelihood, iterations)
    u, before = torch.zeros_like(z), float(sigmas[0])
    for step, sigma in enumerate(sigmas.tolist()[:-1]):
        u, before = (sigma / before) ** 2 * u, sigma
        x = likelihood.solve(z - u, strength * sigma**2, iterations=iterations)
        z = denoise(denoiser, x + u, sigma, step)
        u = u + x - z
        if callback is not None:
            callback(step, z)
    return z


@described(levels=plug_and_play_levels)
@torch.no_grad()
def pnp_hqs(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    strength: float = 1.0,
    iterations: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Plug-and-play half-quadratic splitting: the data and the denoiser in turn, at falling noise levels.

    x = argmin strength sigma^2 nll(x) + 1/2 ||x - z||^2, then z = D(x, sigma); `pnp_admm` without u, and without its
    memory of what both disagree on. With a Gaussian prior it rests where the
    covariance were C + sigma^2 instead of C, and denoises that: the last level decides.

    Parameters as for `pnp_admm`; the published lambda is 1 / strength, 0.23 there.

    References
    ----------
    DPIR: Zhang, Li, Zuo, Zhang, Van Gool, Timofte, IEEE Trans Pattern Anal Mach Intell 44, 6360 (2022).
    """
    z = _start("pnp_hqs", likelihood, denoiser, sigmas, strength)
    iterations = iterations_of("pnp_hqs", likelihood, iterations)
    for step, sigma in enumerate(sigmas.tolist()[:-1]):
        x = likelihood.solve(z, strength * sigma**2, iterations=iterations)
        z = denoise(denoiser, x, sigma, step)
        if callback is not None:
            callback(step, z)
    return z


def _start(method: str, likelihood: Gaussian, denoiser: Denoiser, sigmas: Tensor, strength: float) -> Tensor:
    check_inputs(method, likelihood, denoiser, sigmas)
    if not strength > 0:
        raise InputError(f"{method}: strength is a weight of the data, expected above 0, got {strength}")
    return likelihood.backprojection / likelihood.A.norm() ** 2
