"""RED-diff: an image fitted to the data by gradients, with the prior's opinion at one noise level after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..schedules import ddpm, karras
from ..solvers import Callback
from .description import described
from .diffusion import check_inputs, denoise, start


def red_diff_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """Noise levels for `red_diff`, 100 if None: from 1 to the noise of a fully sampled image."""
    smallest = max(denoiser.sigma_min, 1 / likelihood.A.norm())
    return karras(100 if steps is None else steps, sigma_min=smallest, sigma_max=min(1.0, denoiser.sigma_max))


@described(
    levels=red_diff_levels,
    caveat=(
        "RED-diff searches for one image: the spread of its results is no uncertainty (where the posterior is known, "
        "with Gaussian priors, 0.1 to 0.6 of its variance, about a mean that is off by up to 0.9 standard deviations)."
    ),
)
@torch.no_grad()
def red_diff(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    learning_rate: float = 0.05,
    regularization: float = 0.25,
    callback: Callback | None = None,
) -> Tensor:
    r"""RED-diff: regularisation by denoising with a diffusion prior.

    From mu = A^H y / ||A||^2, one step of Adam (beta .9, .99) at every level along

        grad nll(mu) + regularization ||A||^2 (mu - D(mu + sigma n, sigma)).

    It follows from the paper's objective, 1/2 ||y - A mu||^2 + lambda_t sg[epsilon - n] . mu with lambda_t =
    0.25 sigma_t, since epsilon - n = (mu - D) / sigma. There A has norm 1, so that whitening multiplies both terms by
    ||A||^2, to which Adam is blind. Its means over elements make `regularization` 0.25 times (numbers in y) / (numbers
    in x), and its images from -1 to 1 make the rate 0.1 one of 0.05 here, where they are bright at 1.

    A search for one image, not a sampler: the spread of mu over n is the restlessness of the last steps. With Gaussian
    priors it is 0.07 to 0.35 of the posterior variance, about a mean that is off by 0.0 to 0.9 standard deviations: the
    exact weight were 1 / sigma^2. With a network that weight is too much, by 7 dB on a head; and there the image comes
    out better than any of the samplers' (36.0 dB for 33.6 of `split_gibbs`).

    Parameters
    ----------
    sigmas : (steps + 1,) decreasing to 0; one network evaluation each, but for the 0.
    learning_rate : by which a component of the image moves in a step at most, about.
    regularization : weight of the prior.
    callback : called with the step and mu.

    Returns
    -------
    (n_samples, *domain), one mu for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images, or sigmas leave its range.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Mardani, Song, Kautz, Vahdat, ICLR 2024, algorithm 1.
    """
    check_inputs("red_diff", likelihood, denoiser, sigmas)
    if not (learning_rate > 0 and regularization >= 0):
        raise InputError(
            "red_diff: expected a learning_rate above 0 and a regularization of 0 or more, got "
            f"{learning_rate} and {regularization}"
        )
    square = likelihood.A.norm() ** 2
    mu = start(likelihood, rng, likelihood.backprojection / square)
    optimizer = torch.optim.Adam([mu], lr=learning_rate, betas=(0.9, 0.99))
    for step, sigma in enumerate(sigmas.tolist()[:-1]):
        denoised = denoise(denoiser, mu + sigma * rng.randn_like(mu), sigma, step)
        mu.grad = likelihood.grad(mu) + regularization * square * (mu - denoised)
        optimizer.step()
        if callback is not None:
            callback(step, mu)
    return mu


def red_diff_published_levels(likelihood: Gaussian, denoiser: Denoiser, steps: int | None = None) -> Tensor:
    """The published levels: of the 1000 of DDPM those in the range of the prior, or so many even ones in it."""
    low, high = denoiser.sigma_min, denoiser.sigma_max
    if steps is not None:
        return ddpm(steps, sigma_min=low, sigma_max=high)
    sigmas = ddpm(1000)
    return sigmas[(sigmas == 0) | ((sigmas >= low) & (sigmas <= high))]
