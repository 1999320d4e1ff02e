"""What samples say: mean, spread and intervals of the image, and whether the spread covers the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .likelihood import Gaussian, Randn
from .metrics import fit_scale


def magnitude(x: Tensor, *, ndim: int = 2) -> Tensor:
    """The image that is shown: root sum of squares over map sets, (..., set, y, x) complex -> (..., y, x) real.

    Parameters
    ----------
    x : complex with the set axis before the trailing `ndim` ones; a real image is what is shown and returned as it is.
    ndim : number of spatial axes.
    """
    return torch.linalg.vector_norm(x, dim=-ndim - 1) if x.is_complex() else x


@dataclass(frozen=True)
class Posterior:
    """Samples of the posterior and the maps made of them.

    Every map is of the image that is shown (for MRI the magnitude): a reader compares it with that image, and its phase
    is a nuisance. The mean of the samples themselves is kept as `sample_mean`; its magnitude is lower where phases
    disagree, in noise above all.

    Parameters
    ----------
    samples : (sample, *domain), complex for MRI.
    sample_mean : (*domain) mean of the samples.
    mean : mean of the shown images, (y, x) for one slice.
    std : standard deviation of the shown images (divided by K - 1), None for a single sample.
    lower, upper : prediction interval of the shown image pixel by pixel (see `interval`), None for a single sample.
    level : nominal coverage of the interval.
    std_error : relative standard error of the std map, 1 / sqrt(2 (K - 1)) for Gaussian pixels, None for one sample.
    statement : what the maps are and how far they can be trusted, for the user.
    """

    samples: Tensor
    sample_mean: Tensor
    mean: Tensor
    std: Tensor | None
    lower: Tensor | None
    upper: Tensor | None
    level: float
    std_error: float | None
    statement: str

    def __len__(self) -> int:
        """Number of samples."""
        return self.samples.shape[0]


def summarize(samples: Tensor, *, level: float = 0.9, to_image: Callable[[Tensor], Tensor] = magnitude) -> Posterior:
    """Mean, standard deviation and intervals of the samples of one posterior.

    Parameters
    ----------
    samples : (sample, *domain); (sample, set, y, x) complex for MRI.
    level : nominal coverage of the interval maps.
    to_image : from samples to the images that are shown, sample by sample.

    Raises
    ------
    ValueError
        If there is no sample, a sample is not finite, or level is not between 0 and 1.
    """
    if samples.ndim < 2 or len(samples) == 0:
        raise InputError(f"samples: expected (sample, *domain) with at least one sample, got {tuple(samples.shape)}")
    if not bool(torch.isfinite(samples).all()):
        raise InputError("samples: expected finite values, got NaN or infinity; the sampler diverged")
    images, count = to_image(samples), len(samples)
    rule = describe_interval(count, level=level)
    std, lower, upper, std_error = None, None, None, None
    statement = "1 sample: a possible image, not a mean; its uncertainty is undefined. Draw at least 2 samples."
    if count > 1:
        std, std_error = images.std(0), 1 / math.sqrt(2 * (count - 1))
        lower, upper = interval(images, level=level)
        statement = (
            f"{count} samples: the std map is known to +-{100 * std_error:.0f} % (1/sqrt(2(K-1)), one standard error); "
            f"{rule}. The maps describe the spread of this sampler's draws: whether they cover the truth is a "
            "question of coverage."
        )
    return Posterior(samples, samples.mean(0), images.mean(0), std, lower, upper, level, std_error, statement)


def interval(values: Tensor, *, level: float = 0.9) -> tuple[Tensor, Tensor]:
    """Prediction interval of one further draw (the truth, if the samples are right), elementwise.

    K draws and the truth are exchangeable, so [x_(j), x_(K+1-j)] of the sorted draws covers the truth with probability
    (K + 1 - 2 j) / (K + 1), whatever the distribution. The largest j whose coverage is at least `level` is taken, where
    it is 2 or more, so that no single draw sets a limit: 39 draws for 90 %. Fewer draws give mean +- t s sqrt(1 + 1/K)
    with Student's t of K - 1 degrees of freedom, which is exact for Gaussian values (and may fall below 0).

    Parameters
    ----------
    values : (sample, ...) real, at least 2 samples.
    level : nominal coverage, between 0 and 1.

    Returns
    -------
    lower, upper : (...).

    Raises
    ------
    ValueError
        If there are fewer than 2 samples, values are complex, or level is not between 0 and 1.
    """
    if values.is_complex():
        raise InputError("interval: expected real values, got complex ones; take magnitude, real or imaginary part")
    count = len(values)
    if count < 2:
        raise InputError(f"interval: expected at least 2 samples, got {count}; the spread of one is undefined")
    j = _rank(count, level)
    if j >= 2:
        ordered = values.sort(0).values
        return ordered[j - 1], ordered[count - j]
    mean = values.mean(0)
    half = _student_t(count, level) * math.sqrt(1 + 1 / count) * values.std(0)
    return mean - half, mean + half


def describe_interval(count: int, *, level: float = 0.9) -> str:
    """The rule by which `interval` makes an interval of so many samples, in words."""
    j = _rank(count, level)
    if count < 2:
        return "no interval"
    if j >= 2:
        return (
            f"interval between the order statistics {j} and {count + 1 - j} of {count}, which covers "
            f"{100 * nominal_coverage(count, level):.1f} % (at least {100 * level:g} %) whatever the distribution"
        )
    return (
        f"{100 * level:g} % interval mean +- {_student_t(count, level):.2f} s sqrt(1 + 1/{count}) (Student t, as "
        f"{count} samples are too few for order statistics; assumes Gaussian pixels)"
    )


def _rank(count: int, level: float) -> int:
    """The largest j with (K + 1 - 2 j) / (K + 1) >= level."""
    if not 0 < level < 1:
        raise InputError(f"level: expected a coverage between 0 and 1, got {level}")
    return math.floor((count + 1) * (1 - level) / 2 + 1e-9)  # 40 * (1 - 0.9) / 2 is 2, but not in floating point


def nominal_coverage(count: int, level: float) -> float:
    """Coverage that the interval of `count` draws is made for: at least `level`."""
    j = _rank(count, level)
    return (count + 1 - 2 * j) / (count + 1) if j >= 2 else level


def _student_t(count: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + level) / 2))


@dataclass(frozen=True)
class Coverage:
    """How often predictive intervals hold the reference, over the pixels of the object.

    Parameters
    ----------
    levels : what was asked; `nominal` what the intervals of so many samples are made for (at least the level).
    coverage : fraction of the object's pixels whose interval holds the reference, one per level.
    width : mean length of the intervals over the mean of the reference in the object, one per level.
    scale : the one factor that was fitted to the mean and applied to all samples.
    samples : number of samples.
    """

    levels: tuple[float, ...]
    nominal: tuple[float, ...]
    coverage: tuple[float, ...]
    width: tuple[float, ...]
    scale: float
    samples: int

    @property
    def statement(self) -> str:
        """The reliability curve in words."""
        pairs = ", ".join(f"{100 * n:.0f} %: {100 * c:.1f} %" for n, c in zip(self.nominal, self.coverage, strict=True))
        return f"predictive coverage from {self.samples} samples inside the object (nominal: found): {pairs}"


def predictive_coverage(
    samples: Tensor,
    reference: Gaussian,
    inside: Tensor,
    *,
    rng: Randn,
    acquired: Tensor | None = None,
    combine: Callable[[Tensor], Tensor] | None = None,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
) -> Coverage:
    """Coverage of a reference that carries noise itself, by predictive draws.

    A reference r = combine(y) is no truth: it holds the noise of the fully sampled acquisition y = A x + n. So each
    sample is pushed through A, given noise and combined in the same way, and intervals of these draws are compared
    with r. One scale factor is fitted to their mean inside the object and applied to all of them.

    Where the samples were reconstructed from a part of y itself (retrospective undersampling), that part of the
    reference and its noise are known: pass it as `acquired`, and the draws hold it as it was measured. Without
    `acquired` the reference must be an acquisition of its own; otherwise the noise of the common part counts twice and
    the intervals are too wide.

    Parameters
    ----------
    samples : (sample, *domain), at least 2.
    reference : the fully sampled acquisition, whitened: operator A and data y.
    inside : bool of the shape of the combined image, (y, x) for one slice; the object (see `metrics.object_mask`).
    rng : `rng.randn_like` gives noise of variance 1 per real component, a stream per sample.
    acquired : bool that broadcasts to the codomain of A, (ky, kx) for Cartesian MRI; True where y was given to the
        sampler. None if none of it was.
    combine : from data (..., *codomain) to the real image that is compared; the magnitude of A^H y by default.
    levels : nominal coverages.

    Raises
    ------
    ValueError
        If there are fewer than 2 samples, the samples are not of the operator's domain, the mask does not fit or is
        empty, or a level is not between 0 and 1.

    References
    ----------
    Gelman, Meng, Stern, Statistica Sinica 6, 733 (1996) (predictive draws).
    """
    target, draws, scale = predictive_draws(samples, reference, inside, rng=rng, acquired=acquired, combine=combine)
    coverage, width = [], []
    for level in levels:
        lower, upper = interval(draws, level=level)
        coverage.append(float(((lower <= target) & (target <= upper)).double().mean()))
        width.append(float((upper - lower).double().mean() / target.double().mean()))
    nominal = tuple(nominal_coverage(len(samples), level) for level in levels)
    return Coverage(tuple(levels), nominal, tuple(coverage), tuple(width), scale, len(samples))


def predictive_draws(
    samples: Tensor,
    reference: Gaussian,
    inside: Tensor,
    *,
    rng: Randn,
    acquired: Tensor | None = None,
    combine: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, float]:
    """The reference and predictive draws of it in the object; what `predictive_coverage` compares, its parameters.

    Returns
    -------
    target (pixel,), draws (sample, pixel), both of the pixels inside, and the scale that the draws were given.
    """
    A, y = reference.A, reference.y
    if len(samples) < 2:
        raise InputError(f"predictive_coverage: expected at least 2 samples, got {len(samples)}; draw more")
    to_image = combine if combine is not None else lambda data: magnitude(A.adjoint(data))
    predicted = A(samples)
    predicted = predicted + rng.randn_like(predicted)
    if acquired is not None:
        predicted = torch.where(acquired, y, predicted)
    target, draws = to_image(y), to_image(predicted)
    scale = fit_scale(target, draws.mean(0), inside)
    return target[inside], scale * draws[:, inside], scale
