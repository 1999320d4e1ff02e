"""Compressed sensing with a generative model: the latent whose image fits the data."""

from __future__ import annotations

import torch
from torch import Tensor

from priors.denoiser import Denoiser
from priors.generator import Generator

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..schedules import karras
from ..solvers import Callback
from .description import described
from .diffusion import NonFiniteError, start


class CountedGenerator:
    """A generator that counts its evaluations, as `recon.methods.diffusion.Counted` does those of a denoiser."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.latents, self.evaluations = generator, generator.latents, 0

    def __call__(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        return self.generator(z)


def csgm_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Noise levels of a denoiser's probability flow, the generator for `csgm` where the prior has none: 4 if None."""
    smallest, largest = max(denoiser.sigma_min, 0.02), min(1.0, denoiser.sigma_max)
    return karras(4 if steps is None else steps, sigma_min=smallest, sigma_max=largest)


@described(
    levels=csgm_levels,
    caveat=(
        "CSGM searches for the most probable image: the spread of its results is that of local minima and of searches "
        "that ended early, no uncertainty (where the posterior is known, 0 to 0.4 of its variance, about a mean that "
        "is off by 0.2 to 0.9 standard deviations)."
    ),
)
@torch.enable_grad()
def csgm(
    likelihood: Gaussian,
    generator: Generator,
    *,
    rng: Noise,
    iterations: int = 100,
    learning_rate: float = 0.1,
    weight: float = 1.0,
    restarts: int = 1,
    callback: Callback | None = None,
) -> Tensor:
    """CSGM: search in the latent space of a generator.

    min_z nll(G(z)) + weight / 2 ||z||^2 by Adam from z ~ N(0, I), its rate falling linearly to 0. The likelihood is
    whitened and z is white, so that a weight of 1 is that of the most probable z given the data; the paper weighs by
    hand. (With f = -log p it is the regularised reconstruction in z.) For a linear G the image is the posterior mean.

    It finds no more than G can make: the distance of the true image from its range remains. And it is a search, no
    sampler: where it has converged, what is left of the spread are local minima.

    Parameters
    ----------
    generator : images of the operator's domain from latents.
    iterations : evaluations of the generator, with their gradients, and one more where there are several starts.
    weight : of the latent's distance from 0.
    restarts : starts for each sample, of which the one with the lowest objective is kept.
    callback : called with the iteration and the images of the first starts.

    Returns
    -------
    (n_samples, *domain), one image for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, or the generator makes other images than the operator takes.
    NonFiniteError
        If the generator returns NaN or infinity.

    References
    ----------
    Bora, Jalal, Price, Dimakis, ICML 2017.
    """
    if not isinstance(likelihood, Gaussian):
        raise InputError(f"csgm needs a Gaussian likelihood, got {type(likelihood).__name__}; choose another method")
    if iterations < 1 or restarts < 1 or not (learning_rate > 0 and weight >= 0):
        raise InputError(
            "csgm: expected at least 1 iteration and 1 start, a learning_rate above 0 and a weight of 0 or more, got "
            f"iterations={iterations}, restarts={restarts}, learning_rate={learning_rate}, weight={weight}"
        )
    zeros = generator.latents(start(likelihood, rng))
    z = torch.stack([rng.randn_like(zeros) for _ in range(restarts)]).requires_grad_()  # (restart, sample, *latent)
    optimizer = torch.optim.Adam([z], lr=learning_rate, betas=(0.9, 0.95))
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - iteration / iterations)
        x, energy = _evaluate(likelihood, generator, z, weight)
        (z.grad,) = torch.autograd.grad(energy.sum(), z)
        optimizer.step()
        if callback is not None:
            callback(iteration, x[0].detach())
    with torch.no_grad():
        x, energy = _evaluate(likelihood, generator, z, weight)
    return x[energy.argmin(0), torch.arange(len(rng))]


def _evaluate(likelihood: Gaussian, generator: Generator, z: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The images of latents z (restart, sample, *latent), and the objective (restart, sample)."""
    x = generator(z)
    likelihood.A.domain.check(x, "images of the generator")
    square = (torch.view_as_real(z) if z.is_complex() else z).square().flatten(2).sum(2)
    energy: Tensor = likelihood.nll(x) + weight / 2 * square
    if not bool(torch.isfinite(energy).all()):
        raise NonFiniteError(
            "csgm: the generator returned NaN or infinity; lower the learning_rate, or check its weights"
        )
    return x, energy
