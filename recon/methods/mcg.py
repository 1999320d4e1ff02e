"""Manifold constrained gradient: DPS, with a projection on noisy data after every step."""

from __future__ import annotations

import math

from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..solvers import Callback
from .description import described
from .diffusion import check_inputs, iterations_of, noisy_start, start
from .dps import Constraint, dps_levels, dps_published_levels, guided_diffusion, likelihood_rule, norm_rule


@described(
    levels=dps_levels,
    caveat=(
        "mcg uses the data twice: where the posterior is known (Gaussian priors) its mean is off by 0.07 to 0.39 "
        "standard deviations and its samples hold 0.44 to 0.94 of the variance; split-gibbs holds all of it."
    ),
)
def mcg(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    zeta: float = 1.0,
    iterations: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Manifold constrained gradients for data with noise: the projection is weighted by it.

    At every level a step of `dps`; then `noisy_proximal`, a step towards y + sigma_next A n, which are data of images
    with noise of level sigma_next.

    The data count twice, in the gradient and in the projection, and the samples are too narrow: with Gaussian priors
    and the 200 levels of `dps_levels` they hold 0.94 of the posterior variance with one coil and 0.44 to 0.80 with
    three, about a mean that is 0.07 and 0.23 to 0.39 standard deviations off.

    Parameters
    ----------
    sigmas : (steps + 1,) decreasing to 0; one network evaluation each, but for the 0.
    zeta : strength of the guidance, see `likelihood_rule`.
    iterations : of the conjugate gradients at the start and in every projection; 0 for those of the likelihood, 5 of
        MRI and 20 of CT.
    callback : called with the step and x.

    Returns
    -------
    (n_samples, *domain), one sample for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images or not differentiable, sigmas
        leave its range, or an option is out of its range.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Chung et al., NeurIPS 2022, equation 14, which projects as `mcg_hard` does.
    """
    check_inputs("mcg", likelihood, denoiser, sigmas)
    iterations, rule = iterations_of("mcg", likelihood, iterations), likelihood_rule(zeta, likelihood)
    constraint = noisy_proximal(likelihood, rng=rng, iterations=iterations)
    x = noisy_start(likelihood, rng, float(sigmas[0]), iterations=iterations)
    return guided_diffusion(rule, likelihood, denoiser, sigmas, x, rng=rng, constraint=constraint, callback=callback)


@described(
    levels=dps_published_levels,
    caveat=(
        "mcg-published takes noise for signal: where the posterior is known (a Gaussian prior) its mean is off by 1.05 "
        "standard deviations and its samples hold 0.8 of the variance; split-gibbs holds all of it."
    ),
)
def mcg_hard(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    zeta: float = 1.0,
    iterations: int = 10,
    tolerance: float = 1e-5,
    callback: Callback | None = None,
) -> Tensor:
    """Manifold constrained gradients as published for inpainting, in variance-preserving steps, for data without noise.

    At every level a step of `dps_norm`, then `noisy_projection`. Where the rows of A are orthonormal that is x <-
    x - A^H A x + A^H (y + sigma_next A n): the measured part is replaced, and the gradient acts on the rest alone.

    Noise of the data is taken for signal. And the gradient biases the mean: with a Gaussian prior, one coil and 1000
    steps it is 1.05 standard deviations off at zeta 1 and 0.34 at 0.1, with 0.79 of the posterior variance; without the
    gradient 0.11 and 0.90.

    Parameters
    ----------
    zeta : length of the step, see `norm_rule`.
    iterations, tolerance : of the conjugate gradients in every projection, tolerance relative to ||A^H y||; noisy data
        want few, since more of them fit the noise.

    References
    ----------
    Chung et al., NeurIPS 2022, algorithm 1. Their code gives the data the noise of level sigma, not of the sigma_next
    that x has: 1.06 and 0.83 in the example above.
    """
    check_inputs("mcg_hard", likelihood, denoiser, sigmas)
    rule = norm_rule(zeta, likelihood.A.norm(), preserving=True)
    constraint = noisy_projection(likelihood, rng=rng, iterations=iterations, tolerance=tolerance)
    x = start(likelihood, rng)
    x = x + math.hypot(float(sigmas[0]), 1) * rng.randn_like(x)  # N(0, 1) in VP coordinates
    return guided_diffusion(rule, likelihood, denoiser, sigmas, x, rng=rng, constraint=constraint, callback=callback)


def noisy_proximal(likelihood: Gaussian, *, rng: Noise, iterations: int) -> Constraint:
    """argmin_v tau nll(v) + 1/2 ||v - x||^2 for data y + sigma_next A n, tau = sigma^2 - sigma_next^2.

    An ancestral step moves by tau times the score: this is such a step along -grad nll, taken implicitly, hence stable
    (by conjugate gradients from x). The data count as often as they should, whatever the number of levels.
    """
    _check(iterations)

    def constrain(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        y = noisy_data(likelihood, x, sigma_next, rng)
        return likelihood.solve(x, sigma**2 - sigma_next**2, y=y, iterations=iterations)

    return constrain


def noisy_projection(likelihood: Gaussian, *, rng: Noise, iterations: int, tolerance: float) -> Constraint:
    """The solution of A v = y + sigma A n nearest to x, by conjugate gradients from x."""
    _check(iterations)

    def constrain(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        y = noisy_data(likelihood, x, sigma_next, rng)
        return likelihood.project(x, y=y, iterations=iterations, tolerance=tolerance)

    return constrain


def noisy_data(likelihood: Gaussian, x: Tensor, sigma: float, rng: Noise) -> Tensor:
    """y + sigma A n: the data of images with noise of level sigma, for every sample."""
    return likelihood.y + sigma * likelihood.A.forward(rng.randn_like(x))


def _check(iterations: int) -> None:
    if iterations < 1:
        raise InputError(f"iterations: expected at least 1 of conjugate gradients, got {iterations}")
