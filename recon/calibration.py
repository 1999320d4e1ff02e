"""A factor that makes intervals hold what they promise (conformal risk control), and its transfer to measured scans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError
from .likelihood import Gaussian, Randn
from .posterior import interval, predictive_draws

# Conformal risk control: a factor for the intervals


def scores(mean: Tensor, lower: Tensor, upper: Tensor, truth: Tensor) -> Tensor:
    """|truth - mean| over half the interval's width: the factor from which on mean +- factor * half holds the truth.

    Infinite where the interval has no width and misses.
    """
    error, half = (truth - mean).abs(), (upper - lower) / 2
    return torch.where(error == 0, 0.0, error / half)


def risk(image_scores: Tensor, factor: float) -> float:
    """Part of an image's pixels outside mean +- factor * half-width."""
    return float((image_scores > factor).double().mean())


def fewest_images(alpha: float) -> int:
    """The least n for which 1 / (n + 1) <= alpha: with fewer not even intervals that hold everything give a guarantee.

    Raises
    ------
    InputError
        If alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha: expected a risk between 0 and 1, got {alpha}")
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_factor(images: Sequence[Tensor], *, alpha: float = 0.1) -> float:
    """The factor by which intervals are widened (or narrowed) so that few pixels lie outside, guaranteed on average.

    The unit is the image. Its risk R_i(f) is the part of its pixels outside mean +- f * half-width, which never
    rises with f. The least f with n / (n + 1) mean_i R_i(f) + 1 / (n + 1) <= alpha gives E[R_(n+1)(f)] <= alpha for one
    further image if the n + 1 are exchangeable: in expectation over the calibration images too, whatever the sampler
    and the prior. Pixels of one image need not be independent.

    Parameters
    ----------
    images : `scores` of each image's object, (pixel,) of any number of pixels.
    alpha : risk that is allowed, 0.1 for 90 % intervals.

    Raises
    ------
    InputError
        If there are fewer images than `fewest_images(alpha)`, or pixels without any spread are too many.

    References
    ----------
    Angelopoulos, Bates, Fisch, Lei, Schuster, Conformal risk control, Proc ICLR (2024), theorem 1.
    """
    n = len(images)
    if n < fewest_images(alpha):
        raise InputError(
            f"calibration: expected at least {fewest_images(alpha)} images for a risk of {alpha:g} (1 / (n + 1) <= "
            f"alpha), got {n}; simulate more images, or allow a larger risk"
        )
    values, order = torch.cat([torch.zeros(1), *(image.flatten().cpu() for image in images)]).double().sort()
    one = torch.ones(1, dtype=torch.float64)
    weights = torch.cat([0 * one, *(one.expand(image.numel()) / (n * image.numel()) for image in images)])[order]
    outside = weights.flip(0).cumsum(0).flip(0) - weights  # mean risk at a factor of each value; of the last, 0
    enough = outside <= ((n + 1) * alpha - 1) / n + 1e-12
    factor = float(values[int(enough.double().argmax())])
    if not math.isfinite(factor):
        stuck = sum(float(image.isinf().double().mean()) for image in images) / n
        raise InputError(
            f"calibration: no factor gives a risk of {alpha:g}: the samples of {100 * stuck:.0f} % of the pixels have "
            "no spread and miss the truth; use another method, or allow a larger risk"
        )
    return factor


def inflate(samples: Tensor, factor: float) -> Tensor:
    """Samples at `factor` times their distance from their mean: what scaled intervals are the spread of."""
    mean = samples.mean(0)
    return mean + factor * (samples - mean)


# Transfer to a measured scan: a figure with its own uncertainty


@dataclass(frozen=True)
class Transfer:
    """Coverage of calibrated intervals where the calibration guarantees nothing.

    Parameters
    ----------
    coverage : part of the object's pixels whose predictive interval holds the reference.
    low, high : bootstrap interval of the coverage.
    width : mean length of the intervals over the mean of the reference.
    units : blocks that were resampled.
    """

    coverage: float
    low: float
    high: float
    width: float
    units: int


def transfer(
    samples: Tensor,
    reference: Gaussian,
    inside: Tensor,
    *,
    factor: float,
    rng: Randn,
    level: float = 0.9,
    acquired: Tensor | None = None,
    combine: Callable[[Tensor], Tensor] | None = None,
    block: int = 16,
    seed: int = 0,
) -> Transfer:
    """Coverage of calibrated intervals on a measured, fully sampled scan, with a bootstrap interval.

    Samples are moved to `factor` times their distance from their mean; the rest is `recon.posterior.predictive_draws`.
    Errors of neighbouring pixels go together, so whole blocks are resampled: the interval says what other pieces of
    such an image would give, not what other scans would.

    Parameters
    ----------
    samples, reference, inside, rng, acquired, combine : as of `recon.posterior.predictive_coverage`.
    factor : of the calibration; 1 for intervals as they are.
    level : nominal coverage of the intervals, 1 - alpha.
    block : edge in pixels of the squares that are resampled.
    seed : of the bootstrap.

    References
    ----------
    Hall, Stoch Process Appl 20, 231 (1985) (resampling of blocks).
    """
    target, draws, _ = predictive_draws(
        inflate(samples, factor), reference, inside, rng=rng, acquired=acquired, combine=combine
    )
    lower, upper = interval(draws, level=level)
    held = inside.clone().masked_scatter(inside, (lower <= target) & (target <= upper))
    hits, counts = by_block(held, inside, size=block)
    low, high = bootstrap_interval(hits, counts, seed=seed)
    width = float((upper - lower).double().mean() / target.double().mean())
    return Transfer(float(hits.sum() / counts.sum()), low, high, width, len(counts))


def by_block(held: Tensor, inside: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
    """Pixels held, and pixels in all, in each square of `size` pixels that touches the object.

    Parameters
    ----------
    held, inside : (..., y, x) bool.
    """
    counts = [
        F.avg_pool2d(values.double().reshape(-1, 1, *inside.shape[-2:]), size, ceil_mode=True, divisor_override=1)
        for values in (held & inside, inside)
    ]
    touched = counts[1] > 0
    return counts[0][touched], counts[1][touched]


def bootstrap_interval(
    hits: Tensor, counts: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of sum(hits) / sum(counts) over units drawn with replacement.

    Parameters
    ----------
    hits, counts : (unit,); of images or blocks, which should be independent.
    level : of the interval.
    resamples : of all units.
    seed : of the draws.

    Raises
    ------
    InputError
        If there are fewer than 2 units, or level is not between 0 and 1.

    References
    ----------
    Efron and Tibshirani, An introduction to the bootstrap (1993), chapter 13.
    """
    if len(counts) < 2 or not 0 < level < 1:
        raise InputError(f"bootstrap: expected at least 2 units and 0 < level < 1, got {len(counts)} and {level}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(counts), (resamples, len(counts)), generator=generator)
    ratios = hits.cpu().double()[drawn].sum(1) / counts.cpu().double()[drawn].sum(1)
    low, high = ratios.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=ratios.dtype))
    return float(low), float(high)
