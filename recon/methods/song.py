"""Song et al. 2022: predictor-corrector sampling, given data that are noised to the level of the images."""

from __future__ import annotations

from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from ..noise import Noise
from ..solvers import Callback
from .dds import Consistency, hard, proximal
from .description import described
from .diffusion import check_inputs, check_positive, iterations_of, start
from .score_mri import PROJECTED, TOO_WIDE, predictor_corrector, ve_levels


@described(
    levels=ve_levels(100, largest=3.0), caveat=TOO_WIDE.format("The sampler of Song et al.", "0.9 to 1.9", "0.1 to 0.5")
)
def song(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    snr: float = 0.16,
    corrector_steps: int = 1,
    strength: float = 0.5,
    iterations: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Song et al. 2022, its consistency weighted by the measured noise.

    As `score_mri`, but images that carry noise of level sigma meet data that carry it too, y_t = y + sigma A z: what
    was measured keeps the noise that the network expects. Before every move x is taken to argmin strength sigma^2 / 2
    ||A x' - y_t||^2 + 1/2 ||x' - x||^2, and the last denoised image is made consistent with y itself.

    Too wide as Score-MRI is, for the same reason: with Gaussian priors 100 levels from 3 give 1.1 (three coils x4) to
    1.85 times the posterior variance (one coil, and three coils x2), 0.9 times where noise is strong, about means that
    are off by 0.1 to 0.5 standard deviations. Data that were noisy become more so: on simulated heads of eight coils
    one sample is 1 to 2 dB worse than one of `score_mri`.

    Parameters
    ----------
    sigmas : (levels + 1,) decreasing to 0; 1 + corrector_steps network evaluations each, but for the 0.
    snr : of the corrector, from which its step follows; published as 0.517 with a weight of 1 for MRI.
    corrector_steps : at each level.
    strength : weight of the data relative to their measured noise, each time.
    iterations : of conjugate gradients, each time; 0 for those of the likelihood, 5 of MRI and 20 of CT.

    Returns
    -------
    (n_samples, *domain), one sample for each of `rng`.

    Raises
    ------
    ValueError
        If the likelihood is not Gaussian, the prior is of another kind than the images, sigmas leave its range, or an
        option is out of its range.
    NonFiniteError
        If the network returns NaN or infinity.

    References
    ----------
    Song, Shen, Xing, Ermon, ICLR 2022, algorithm 1, for data without noise (`song_hard`).
    """
    check_inputs("song", likelihood, denoiser, sigmas)
    check_positive("song", strength=strength)
    iterations = iterations_of("song", likelihood, iterations)
    consistency = proximal(likelihood, lambda sigma: strength * sigma**2, iterations=iterations)
    x0 = predictor_corrector(
        noised(consistency, rng),
        denoiser,
        sigmas,
        start(likelihood, rng),
        rng=rng,
        snr=snr,
        corrector_steps=corrector_steps,
        corrector_first=True,
        callback=callback,
    )
    return consistency(x0, float(sigmas[-2]))


@described(
    levels=ve_levels(1000, largest=128.0),
    caveat=PROJECTED.format("The sampler of Song et al. with its published snr", "3.8", "0.16"),
)
def song_hard(
    likelihood: Gaussian,
    denoiser: Denoiser,
    sigmas: Tensor,
    *,
    rng: Noise,
    snr: float = 0.16,
    corrector_steps: int = 1,
    weight: float = 1.0,
    iterations: int = 10,
    tolerance: float = 1e-5,
    callback: Callback | None = None,
) -> Tensor:
    """Song et al. 2022 as published, for data without noise: x goes to the solution of A x = y_t nearest to it.

    As `song` in all else. With one coil that merges k-space, lambda M y_t + (1 - lambda M) F x.

    Without noise and with a Gaussian prior the mean is off by 0.1 standard deviations at an snr of 0.16 and 0.16 at the
    published 0.517, and the variance 1.75 and 3.8 times that of the posterior. Noisy data of several coils are taken at
    their word, as in `score_mri_hard`.

    Parameters
    ----------
    weight : lambda, which part of the way x goes, above 0 and up to 1; the last step goes all of it.
    iterations : of conjugate gradients on A^H A x = A^H y, each time; with several coils they fit the noise.
    tolerance : where they stop, relative to ||A^H y||.
    """
    check_inputs("song_hard", likelihood, denoiser, sigmas)
    check_positive("song_hard", iterations=iterations)
    if not 0 < weight <= 1:
        raise InputError(f"song_hard: weight expects a number above 0 and up to 1, got {weight}")
    project = hard(likelihood, iterations=iterations, tolerance=tolerance)
    x0 = predictor_corrector(
        noised(lambda x, sigma: x + weight * (project(x, sigma) - x), rng),
        denoiser,
        sigmas,
        start(likelihood, rng),
        rng=rng,
        snr=snr,
        corrector_steps=corrector_steps,
        corrector_first=True,
        callback=callback,
    )
    return project(x0, float(sigmas[-2]))


def noised(consistency: Consistency, rng: Noise) -> Consistency:
    """The consistency step for data that carry noise of level sigma, y_t = y + sigma A z.

    A x - y_t = A (x - sigma z) - y: it is the step for y, seen from sigma z.
    """

    def step(x: Tensor, sigma: float) -> Tensor:
        z = sigma * rng.randn_like(x)
        return z + consistency(x - z, sigma)

    return step
