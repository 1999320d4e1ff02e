"""What every sampler with a diffusion prior shares: its checks, and one guarded call of the network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError, ReconError
from ..likelihood import Gaussian
from ..noise import Noise
from ..schedules import check_schedule


class NonFiniteError(ReconError, FloatingPointError):
    """A network returned NaN or infinity."""


class Counted:
    """A denoiser that counts its evaluations: calls, hence evaluations per sample however many are in the batch."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.ndim, self.is_complex = denoiser.ndim, denoiser.is_complex
        self.evaluations = 0

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.evaluations += 1
        return self.denoiser(x, sigma)


def check_inputs(method: str, likelihood: Gaussian, denoiser: Denoiser, sigmas: Tensor) -> None:
    """Raise ValueError unless noise is Gaussian, the prior fits the images, and the levels fit the prior."""
    if not isinstance(likelihood, Gaussian):
        raise InputError(
            f"{method} needs a Gaussian likelihood, got {type(likelihood).__name__}; choose a method for that noise"
        )
    domain = likelihood.A.domain
    if domain.dtype.is_complex and not denoiser.is_complex:
        raise InputError(
            f"{method}: the prior is for real images and these are {domain.dtype}; wrap it: priors.real_imag(denoiser)"
        )
    if denoiser.is_complex and not domain.dtype.is_complex:
        raise InputError(f"{method}: the prior is for complex images and these are {domain.dtype}; use a real prior")
    if denoiser.ndim > len(domain.shape):
        raise InputError(
            f"{method}: the prior is {denoiser.ndim}-D, the images have shape {domain.shape}; use a prior of theirs"
        )
    try:
        check_schedule(sigmas, sigma_min=denoiser.sigma_min, sigma_max=denoiser.sigma_max)
    except InputError as error:
        raise InputError(f"{method}: {error}") from None


def check_positive(method: str, **options: float) -> None:
    """Raise InputError unless all options are finite numbers above 0."""
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise InputError(f"{method}: {name} expects a finite number above 0, got {value}")


def iterations_of(method: str, likelihood: Gaussian, iterations: int) -> int:
    """How many conjugate gradients to take: those asked for, or, for 0, those of the likelihood; InputError below 0."""
    iterations = iterations or likelihood.iterations
    check_positive(method, iterations=iterations)
    return iterations


def start(likelihood: Gaussian, rng: Noise, image: Tensor | None = None) -> Tensor:
    """A clean image for every sample, (n_samples, *domain): zeros, or `image` of shape ([n_samples,] *domain)."""
    zeros = likelihood.A.domain.zeros(len(rng))
    if image is None:
        return zeros
    likelihood.A.domain.check(image, "x0_start")
    return zeros + image


def noisy_start(likelihood: Gaussian, rng: Noise, sigma: float, *, iterations: int) -> Tensor:
    """Images with noise of level sigma for every sample, (n_samples, *domain): where a diffusion given y starts.

    They lie about E[x0 | y]. Noise alone will do where it hides images as a whole, not only their pixels; at a level
    below that a network sees an image of nothing in it, and its derivative shows no way to another. The mean is taken
    for argmin nll(v) + ||v||^2 / (2 sigma^2), by so many conjugate gradients.
    """
    zeros = likelihood.A.domain.zeros(1)
    mean = likelihood.solve(zeros, sigma**2, iterations=iterations)
    return mean + sigma * rng.randn_like(start(likelihood, rng))


def denoise(denoiser: Denoiser, x: Tensor, sigma: float, step: int) -> Tensor:
    """D(x, sigma), which must be finite.

    Raises
    ------
    NonFiniteError
        With the step and sigma.
    """
    x0 = denoiser(x, sigma)
    if not bool(torch.isfinite(torch.view_as_real(x0) if x0.is_complex() else x0).all()):
        raise NonFiniteError(
            f"the prior returned NaN or infinity at step {step} (sigma = {sigma:.4g}); check its weights, and that the "
            "images are scaled as it was trained"
        )
    return x0


def ancestral(x: Tensor, x0: Tensor, sigma: float, sigma_next: float, rng: Noise) -> Tensor:
    """A draw from q(x_next | x, x0): the step of DDPM from level sigma down to sigma_next, in VE coordinates.

    References
    ----------
    Ho et al., NeurIPS 2020, equation 6.
    """
    ratio = (sigma_next / sigma) ** 2
    x_mean = ratio * x + (1 - ratio) * x0
    return x_mean + sigma_next * math.sqrt(1 - ratio) * rng.randn_like(x) if sigma_next > 0 else x0
