"""Score-MRI and its kin: predictor-corrector sampling, made consistent with the data after every move."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..schedules import geometric
from ..solvers import Callback
from .dds import Consistency, hard, proximal
from .description import Levels, described
from .diffusion import check_inputs, check_positive, denoise, iterations_of, start

TOO_WIDE = (
    "{} is mostly too wide: where the posterior is known (Gaussian priors) its samples hold {} of the variance, about "
    "a mean that is off by {} standard deviations; split-gibbs is nearer."
)
PROJECTED = TOO_WIDE + " It takes the data to be free of noise, and carries theirs into the image."


def ve_levels(levels: int, *, largest: float = 378.0) -> Levels:
    """The schedule of variance-exploding networks: equal ratios from `largest` to 0.01, `levels` by default.

    Both ends move inwards where the range of the prior does not hold them; the number of levels stays.

    From a start far above the spread of the images nothing is left of its zeros, and a prior that was trained on crops
    puts tissue where no coil sees: beside a simulated head of brightness 1, 50 levels from 10 left 0.25 (root mean
    square) there, from 3 0.09.
    """
    return lambda likelihood, denoiser, steps: geometric(
        levels if steps is None else steps,
        sigma_min=max(0.01, denoiser.sigma_min),
        sigma_max=min(largest, denoiser.sigma_max),
    )


@described(levels=ve_levels(100, largest=3.0), caveat=TOO_WIDE.format("Score-MRI", "0.9 to 1.9", "0.1 to 0.5"))
def score_mri(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    snr: float = 0.16,
    corrector_steps: int = 1,
    corrector_first: bool = True,
    strength: float = 0.5,
    iterations: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Score-MRI, its consistency weighted by the measured noise.

    Reverse diffusion with Langevin corrections (see `predictor_corrector`), after every move of which x is taken to
    argmin strength sigma^2 nll(x') + 1/2 ||x' - x||^2. While sigma is large that is the projection on the data of the
    publication; below the noise of the data it fades, and what they hold of noise is left to the prior to remove.

    Mostly too wide: where the posterior is known (Gaussian priors), 100 levels from 3 give 1.9 times its variance with
    one coil and three coils x2, 1.2 times with three coils x4, 0.9 times where noise is strong, about means that are
    off by 0.1 (one coil) to 0.5 standard deviations. The corrector is to blame, its step being large for its noise:
    without it one coil holds 1.03 of the variance, and more levels do not help.

    On a measured head of eight coils, random x4, one sample of 60 levels has 29.2 dB (DDS 29.9 with 50 evaluations),
    and tissue in corners that no coil sees.

    Parameters
    ----------
    sigmas : (levels + 1,) decreasing to 0; 1 + corrector_steps network evaluations each, but for the 0.
    snr : of the corrector, from which its step follows; 0.16 as published.
    corrector_steps : at each level.
    corrector_first : whether the first level, of noise alone, is corrected too.
    strength : weight of the data relative to their measured noise, each time.
    iterations : of conjugate gradients, each time; 0 for those of the likelihood, 5 of MRI and 20 of CT.

    Returns
    -------
    (n_samples, *domain), one sample for each of `rng`: the last denoised image, made consistent.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images, sigmas leave its range, or an
        option is out of its range.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Chung and Ye, Med Image Anal 80, 102479 (2022), algorithms 1 to 3. There the data are taken to be free of noise
    (`score_mri_hard`); a magnitude prior goes through real and imaginary part (`priors.real_imag`), and several coils
    go one by one (`coilwise`) or through maps (`score_mri_hybrid`).
    """
    check_inputs("score_mri", likelihood, denoiser, sigmas)
    check_positive("score_mri", strength=strength)
    iterations = iterations_of("score_mri", likelihood, iterations)
    consistency = proximal(likelihood, lambda sigma: strength * sigma**2, iterations=iterations)
    x0 = predictor_corrector(
        consistency,
        denoiser,
        sigmas,
        start(likelihood, rng),
        rng=rng,
        snr=snr,
        corrector_steps=corrector_steps,
        corrector_first=corrector_first,
        callback=callback,
    )
    return consistency(x0, float(sigmas[-2]))


@described(caveat=PROJECTED.format("Score-MRI with projections", "1.75", "0.1"))
def score_mri_hard(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    snr: float = 0.16,
    corrector_steps: int = 1,
    corrector_first: bool = True,
    iterations: int = 10,
    tolerance: float = 1e-5,
    callback: Callback | None = None,
) -> Tensor:
    """Score-MRI in its hard form, for data without noise: x' is the solution of A x = y nearest to x.

    As `score_mri` in all else. With one coil A A^H is a multiple of the identity and the first iteration is the exact
    projection, which replaces what was measured in k-space; real images take two.

    Without noise and with a Gaussian prior the mean is off by 0.1 standard deviations and the variance 1.75 times that
    of the posterior, at 500 levels as at 2000; without corrector 0.13 and 1.02. Noisy data are taken at their word:
    with several coils conjugate gradients carry their noise into the image, amplified (the mean 4.4 standard deviations
    off with three coils x4; 15 dB on a simulated head of eight coils where `score_mri` has 28).

    Parameters
    ----------
    iterations : of conjugate gradients on A^H A x = A^H y, each time; with several coils they fit the noise.
    tolerance : where they stop, relative to ||A^H y||.
    """
    check_inputs("score_mri_hard", likelihood, denoiser, sigmas)
    check_positive("score_mri_hard", iterations=iterations)
    consistency = hard(likelihood, iterations=iterations, tolerance=tolerance)
    x0 = predictor_corrector(
        consistency,
        denoiser,
        sigmas,
        start(likelihood, rng),
        rng=rng,
        snr=snr,
        corrector_steps=corrector_steps,
        corrector_first=corrector_first,
        callback=callback,
    )
    return consistency(x0, float(sigmas[-2]))


@described(levels=ve_levels(500), caveat=TOO_WIDE.format("Score-MRI in its hybrid form", "0.5 to 1.7", "0.1 to 1.0"))
def score_mri_hybrid(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    snr: float = 0.16,
    corrector_steps: int = 1,
    corrector_first: bool = False,
    first_weight: float = 1.0,
    last_weight: float = 0.2,
    callback: Callback | None = None,
) -> Tensor:
    """Score-MRI with coil maps, in its hybrid form: after every move a step down the gradient of the likelihood.

    As `score_mri` in all else, with x' = x - weight A^H (A x - y) / ||A||^2. Where A A^H is a multiple of the identity,
    weight 1 is the exact projection; with several coils each step goes a part of the way, and what they hardly tell
    apart is left to the prior.

    With Gaussian priors and three noisy coils x4 the mean is off by 0.4 standard deviations, and the variance 1.3 times
    that of the posterior.

    In the published code x are coil images, kept consistent one by one, and every 50 levels maps are applied to them
    once more; its weight falls to 0.82 only. Here x is the combined image and the step is made after every move.

    Parameters
    ----------
    first_weight, last_weight : of the step, linear over the levels; above 0 and below 2.
    """
    check_inputs("score_mri_hybrid", likelihood, denoiser, sigmas)
    if not (0 < first_weight < 2 and 0 < last_weight < 2):
        raise InputError(
            "score_mri_hybrid: expected weights above 0 and below 2, where the step is stable, got "
            f"first_weight={first_weight} and last_weight={last_weight}"
        )
    levels, norm = sigmas.tolist()[:-1], likelihood.A.norm()
    weights = dict(zip(levels, torch.linspace(first_weight, last_weight, len(levels)).tolist(), strict=True))

    def consistency(x: Tensor, sigma: float) -> Tensor:
        return x - weights[sigma] / norm**2 * likelihood.grad(x)

    x0 = predictor_corrector(
        consistency,
        denoiser,
        sigmas,
        start(likelihood, rng),
        rng=rng,
        snr=snr,
        corrector_steps=corrector_steps,
        corrector_first=corrector_first,
        callback=callback,
    )
    return consistency(x0, levels[-1])


@torch.no_grad()
def predictor_corrector(
    consistency: Consistency,
    denoiser: Denoiser,
    sigmas: Tensor,
    x0: Tensor,
    *,
    rng: Noise,
    snr: float,
    corrector_steps: int,
    corrector_first: bool,
    callback: Callback | None = None,
) -> Tensor:
    """Predictor-corrector sampling with a data consistency step after every move; the last denoised image.

    Every corrector acts at the level that x has reached. Predictor first or corrector first are then one and the same
    sequence but for its first correction. (Published code that begins with the predictor corrects at the level before.)

    Parameters
    ----------
    x0 : (n_samples, *domain); noise of level sigmas[0] is added to it.
    callback : called with the step and x.

    References
    ----------
    Song et al., ICLR 2021, algorithms 2 and 4.
    """
    check_positive("predictor_corrector", snr=snr)
    if corrector_steps < 0:
        raise InputError(f"predictor_corrector: corrector_steps expects 0 or more, got {corrector_steps}")
    x = consistency(x0 + float(sigmas[0]) * rng.randn_like(x0), float(sigmas[0]))
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        for _ in range(corrector_steps if step > 0 or corrector_first else 0):
            denoised = denoise(denoiser, x, sigma, step)
            x = consistency(corrector(x, denoised, sigma, snr=snr, ndim=denoiser.ndim, rng=rng), sigma)
        x = predictor(x, denoise(denoiser, x, sigma, step), sigma, sigma_next, rng)
        if sigma_next > 0:
            x = consistency(x, sigma_next)
        if callback is not None:
            callback(step, x)
    return x


def predictor(x: Tensor, x0: Tensor, sigma: float, sigma_next: float, rng: Noise) -> Tensor:
    """Reverse diffusion: x + (sigma^2 - sigma_next^2) s + sqrt(sigma^2 - sigma_next^2) n, s = (x0 - x) / sigma^2.

    At the end, sigma_next = 0, the denoised x0 without noise.
    """
    x_mean = x + (1 - (sigma_next / sigma) ** 2) * (x0 - x)
    return x_mean + math.sqrt(sigma**2 - sigma_next**2) * rng.randn_like(x) if sigma_next > 0 else x0


def corrector(x: Tensor, x0: Tensor, sigma: float, *, snr: float, ndim: int, rng: Noise) -> Tensor:
    """Langevin dynamics: x + epsilon s + sqrt(2 epsilon) n, epsilon = 2 (snr ||n|| / ||s||)^2, s = (x0 - x) / sigma^2.

    The norms run over one image, the trailing `ndim` axes: no sample, slice or coil has a say in the step of another.
    (Published code averages them over the batch, and takes a step of its own for real and imaginary part, so that a
    change of the image's global phase changes more than the phase.)
    """
    score, noise = (x0 - x) / sigma**2, rng.randn_like(x)
    axes = tuple(range(-ndim, 0))
    ratio = torch.linalg.vector_norm(noise, dim=axes, keepdim=True) / torch.linalg.vector_norm(
        score, dim=axes, keepdim=True
    )
    epsilon = 2 * (snr * ratio) ** 2
    return x + epsilon * score + (2 * epsilon).sqrt() * noise
