"""Diffusion posterior sampling: ancestral sampling, guided by the gradient of the likelihood through the denoiser."""

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
from ..schedules import ddpm, geometric, start_at
from ..solvers import Callback
from .description import described
from .diffusion import ancestral, check_inputs, denoise, noisy_start, start

StepRule = Callable[[Tensor, float, float], Tensor]
"""From the residual norms ||A x0 - y||, (n_samples, 1...), and the noise levels sigma and sigma_next to the weights of
the gradients of nll(x0), x0 = D(x, sigma), with respect to x0: one for each sample, or for each pixel."""

Constraint = Callable[[Tensor, float, float], Tensor]
"""From images after a step from sigma to sigma_next, and the two levels, to images that agree better with the data."""


def dps_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Noise levels for `dps`: from above the spread of images of unit brightness to a quarter of the noise of the data.

    Parameters
    ----------
    steps : 200 if None.
    """
    smallest = max(denoiser.sigma_min, 0.25 / likelihood.A.norm())
    return geometric(200 if steps is None else steps, sigma_min=smallest, sigma_max=min(3.0, denoiser.sigma_max))


@described(
    levels=dps_levels,
    caveat=(
        "dps is a heuristic: where the posterior is known (Gaussian priors) its mean is off by 0.06 to 0.64 standard "
        "deviations and its samples hold 0.35 to 0.92 of the variance; split-gibbs holds all of it."
    ),
)
def dps(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    zeta: float = 8.0,
    callback: Callback | None = None,
) -> Tensor:
    r"""Diffusion posterior sampling with steps weighted by the noise: see `likelihood_rule`.

    At every level: x0 = D(x, sigma); x' ~ q(x_next | x, x0), the ancestral step; x_next = x' - w grad_x nll(x0). The
    gradient runs through the denoiser, one evaluation at a time, which takes three to four times as long as the
    evaluation alone. The same in variance-preserving coordinates: see `recon.schedules`.

    A heuristic: p(y | x) is not known, and x0 in place of the clean image leaves out what x0 is uncertain by. With
    Gaussian priors, at the 200 levels of `dps_levels`, the mean is 0.06 (one coil) to 0.64 standard deviations (three
    coils, noisy) off, and the variance 0.92 to 0.35 times that of the posterior. Their balance is a matter of zeta: at
    1 the data are followed too little (0.1 to 1.2, and 0.99 to 2.3), at 4 the figures are 0.03 to 0.47 and 0.5 to 1.06.
    Images want more than small problems do: of a simulated head at x4 one sample gains 1 dB from 4 to 8; of CT, whose
    operator is badly conditioned, 1.2 dB more from 8 to 32 (`recon tune --method dps --masks views --accelerations 10
    --set-grid zeta=8,32 --images 2 --samples 1 --shape 128,128` on label maps that no network has seen).

    Parameters
    ----------
    sigmas : (steps + 1,) decreasing to 0; one network evaluation each, but for the 0.
    zeta : strength of the guidance.
    callback : called with the step and x.

    Returns
    -------
    (n_samples, *domain), one sample for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images or not differentiable, sigmas
        leave its range, or zeta is not positive.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Chung et al., ICLR 2023, algorithm 1, but for the weight. Its approximation p(y | x0(x)) and the covariance in the
    weight: Song et al. (PiGDM), ICLR 2023.
    """
    check_inputs("dps", likelihood, denoiser, sigmas)
    rule = likelihood_rule(zeta, likelihood)
    x = noisy_start(likelihood, rng, float(sigmas[0]), iterations=likelihood.iterations)
    return guided_diffusion(rule, likelihood, denoiser, sigmas, x, rng=rng, callback=callback)


def dps_published_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Noise levels for `dps_norm`: those of DDPM that lie in the range of the prior.

    Parameters
    ----------
    steps : of all of DDPM, 1000 if None; those above the range are left out.
    """
    sigmas = start_at(ddpm(1000 if steps is None else steps), denoiser.sigma_max)
    return sigmas[(sigmas >= denoiser.sigma_min) | (sigmas == 0)]


@described(
    levels=dps_published_levels,
    caveat=(
        "dps-published does not follow the noise of the data: where the posterior is known (a Gaussian prior) its "
        "samples hold 0.9 to 8 of the variance, by its zeta; split-gibbs holds all of it."
    ),
)
def dps_norm(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    zeta: float = 0.5,
    preserving: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """Diffusion posterior sampling with the step rule as published: the gradient of the norm, see `norm_rule`.

    As `dps` in all else. The step does not know the noise of the data and hardly that of the level, so that zeta has to
    be tuned for every number of steps and size of image. With a Gaussian prior of 8 numbers and 1000 steps the mean is
    0.16, 0.14, 0.12, 0.05 standard deviations off and the variance 8, 1.5, 0.95, 0.89 times that of the posterior at
    zeta 1, 0.3, 0.1, 0.03; the more numbers, the larger the zeta that is stable, as their root.

    Parameters
    ----------
    zeta : length of the step in units of the image; as published, where ||A|| = 1 and images lie in [-1, 1], it is 0.5
        for inpainting and 0.3 for other operators.
    preserving : whether steps are of the variance-preserving process, as published, or of the variance-exploding one.

    References
    ----------
    Chung et al., ICLR 2023, algorithm 1. Their code clips x0 to [-1, 1] and learns the variance of the ancestral step.
    """
    check_inputs("dps_norm", likelihood, denoiser, sigmas)
    rule = norm_rule(zeta, likelihood.A.norm(), preserving=preserving)
    x = start(likelihood, rng)
    x = x + math.hypot(float(sigmas[0]), preserving) * rng.randn_like(x)  # N(0, 1) in VP coordinates
    return guided_diffusion(rule, likelihood, denoiser, sigmas, x, rng=rng, callback=callback)


def likelihood_rule(zeta: float, likelihood: Gaussian) -> StepRule:
    r"""w = (1 - (sigma_next / sigma)^{2 zeta}) / (1 / sigma^2 + c): a share of the step that would solve A x = y.

    c is ||A||^2, or in every pixel the curvature of the likelihood, where it has one: that of separable quadratics
    above the data term, which evens out what is badly conditioned.

    For many levels this is zeta (sigma^2 - sigma_next^2) grad nll / (1 + sigma^2 c), what the ancestral step makes of a
    score with zeta grad log N(y; A x0, I + sigma^2 c) added: an image x0 that is uncertain by sigma. The power
    integrates it over the step, so that w c < 1 for any zeta and number of levels. Noise, scale and size of the data
    are in c.
    """
    check_zeta(zeta)
    curvature = likelihood.A.norm() ** 2 if likelihood.curvature is None else likelihood.curvature

    def rule(residual: Tensor, sigma: float, sigma_next: float) -> Tensor:
        return (1 - (sigma_next / sigma) ** (2 * zeta)) / (1 / sigma**2 + curvature + torch.zeros_like(residual))

    return rule


def norm_rule(zeta: float, norm: float, *, preserving: bool) -> StepRule:
    r"""w = zeta / (||A|| ||A x0 - y||), hence zeta times the gradient of the norm ||A x0 - y|| / ||A||.

    The norm is that of data that are not whitened, where ||A|| is 1. In variance-preserving coordinates, x_vp = x /
    \sqrt{1 + sigma^2}, the gradient is \sqrt{1 + sigma^2} times as large, and the step is taken at sigma_next: there
    zeta grad_vp is \sqrt{(1 + sigma^2)(1 + sigma_next^2)} zeta grad in the coordinates here.
    """
    check_zeta(zeta)

    def exploding(residual: Tensor, sigma: float, sigma_next: float) -> Tensor:
        length = norm * residual
        return torch.where(length > 0, zeta / length, 0.0)  # where the data agree already, the gradient is 0

    def preserved(residual: Tensor, sigma: float, sigma_next: float) -> Tensor:
        return math.hypot(1, sigma) * math.hypot(1, sigma_next) * exploding(residual, sigma, sigma_next)

    return preserved if preserving else exploding


@torch.no_grad()
def guided_diffusion(
    rule: StepRule,
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    x: Tensor,
    *,
    rng: Noise,
    constraint: Constraint | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling from x, with a step against the gradient of nll(D(x, sigma)) at every level.

    Parameters
    ----------
    x : (n_samples, *domain), images with noise of level sigmas[0].
    constraint : what is done to the images after every step.
    callback : called with the step and x.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0, guidance = guided(rule, likelihood, denoiser, x, sigma, sigma_next, step)
        x = ancestral(x, x0, sigma, sigma_next, rng) - guidance
        if constraint is not None:
            x = constraint(x, sigma, sigma_next)
        if callback is not None:
            callback(step, x)
    return x


def guided(
    rule: StepRule, likelihood: Gaussian, denoiser: Denoiser, x: Tensor, sigma: float, sigma_next: float, step: int
) -> tuple[Tensor, Tensor]:
    """x0 = D(x, sigma), and J^H w A^H (A x0 - y), w by the rule: the gradient of nll(x0), weighted, taken back to x.

    J is the Jacobian of the denoiser; the operator is not differentiated through.
    """
    A = likelihood.A
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = denoise(denoiser, x, sigma, step)
    if not x0.requires_grad:
        raise InputError("the prior gave no gradient: expected a denoiser that PyTorch differentiates; take dds, say")
    residual = A.forward(x0.detach()) - likelihood.y
    length = A.domain.expand(A.codomain.inner(residual, residual).sqrt())
    (guidance,) = torch.autograd.grad(x0, x, rule(length, sigma, sigma_next) * A.adjoint(residual))
    return x0.detach(), guidance


def check_zeta(zeta: float) -> None:
    if not 0 < zeta < math.inf:
        raise InputError(f"zeta: expected a positive strength of the guidance, got {zeta}")
