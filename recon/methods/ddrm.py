"""Denoising diffusion restoration models: a diffusion in the singular vectors of the operator."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..solvers import Callback
from .dds import dds_levels
from .description import described
from .diffusion import check_inputs, denoise, start


def ddrm_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Those of `dds_levels`, 20 if None."""
    return dds_levels(likelihood, denoiser, 20 if steps is None else steps)


@described(
    levels=ddrm_levels,
    caveat=(
        "DDRM goes coil by coil, what several coils tell together unused: where the posterior of one coil is known "
        "(Gaussian priors) its mean is off by 0.1 to 0.4 standard deviations, and its samples hold 0.6 to 0.85 of the "
        "variance."
    ),
)
@torch.no_grad()
def ddrm(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    eta: float = 0.85,
    eta_data: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    r"""DDRM: every singular component is taken from the data while their noise is below that of the level.

    With A = U S V^H and white noise of unit variance, a coefficient c = V^H x of singular value s is measured as ybar =
    (U^H y) / s with noise of standard deviation 1 / s. From x0 = D(x, sigma), of coefficient c0, to the level t:

        s = 0:      c = c0 + t (sqrt(1 - eta^2) epsilon + eta n),    epsilon = (x - x0) / sigma
        s t < 1:    c = c0 + t (sqrt(1 - eta^2) s (ybar - c0) + eta n)
        s t >= 1:   c = (1 - eta_data) c0 + eta_data ybar + sqrt(t^2 - eta_data^2 / s^2) n

    and x0 at the end. Components are treated one by one: what the data of one tell of another, they tell through the
    network alone. With a Gaussian prior that correlates them the mean is 0.48 standard deviations off with 20 steps of
    `schedules.ddpm`, 0.14 with 100 and 0.04 with 1000, and the samples hold 0.75, 0.67 and 0.72 of the variance; 0.11
    and 0.65 with the 20 of `ddrm_levels`.

    Parameters
    ----------
    sigmas : (steps + 1,) decreasing to 0; one network evaluation each, but for the 0.
    eta : fraction of fresh noise where nothing is measured, or less surely than the level, from 0 to 1.
    eta_data : weight of the data, against the denoised image, where they are surer than the level, from 0 to 1.
    callback : called with the step and x0.

    Returns
    -------
    (n_samples, *domain), one sample for each of `rng`.

    Raises
    ------
    ValueError
        If no singular value decomposition is known of the operator, the likelihood is not Gaussian, the prior is of
        another kind than the images, sigmas leave its range, or an option is outside its own.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Kawar, Elad, Ermon, Song, NeurIPS 2022, equations 7 and 8 (eta_data is their eta_b).
    """
    check_inputs("ddrm", likelihood, denoiser, sigmas)
    for name, value in (("eta", eta), ("eta_data", eta_data)):
        if not 0 <= value <= 1:
            raise InputError(f"ddrm: {name}: expected a fraction from 0 to 1, got {value}")
    try:
        svd = likelihood.A.svd()
    except ValueError as error:
        raise InputError(f"ddrm: {error} (coilwise(ddrm) goes coil by coil)") from error
    s, V, data = svd.values, svd.V, svd.U.adjoint(likelihood.y)  # data = s c + n
    ybar, sharpness = data / s.where(s > 0, 1.0), s.square()
    keep = math.sqrt(1 - eta**2)

    def replaced(x: Tensor, c: Tensor) -> Tensor:
        """x with the coefficients c where s > 0."""
        return x + V.forward(torch.where(s > 0, c - V.adjoint(x), 0.0))

    def surer(t: float, weight: float, c0: Tensor, n: Tensor) -> Tensor:
        """Coefficients from the data, with noise up to the level t."""
        return (1 - weight) * c0 + weight * ybar + (t**2 - weight**2 / sharpness).clamp_min(0).sqrt() * n

    n = rng.randn_like(start(likelihood, rng))
    t, cn = float(sigmas[0]), V.adjoint(n)
    x = replaced(t * n, torch.where(s * t >= 1, surer(t, 1.0, cn, cn), t * cn))
    for step, (sigma, t) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoise(denoiser, x, sigma, step)
        if t > 0:
            n = rng.randn_like(x)
            c0, cn = V.adjoint(x0), V.adjoint(n)
            less_sure = c0 + t * (keep * (data - s * c0) + eta * cn)
            free = x0 + t * (keep * (x - x0) / sigma + eta * n)
            x = replaced(free, torch.where(s * t >= 1, surer(t, eta_data, c0, cn), less_sure))
        if callback is not None:
            callback(step, x0)
    return x0
