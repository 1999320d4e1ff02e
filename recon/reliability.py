"""Samples against a known truth: coverage, order of the errors, and a proper score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .posterior import interval, nominal_coverage

LEVELS = (0.5, 0.8, 0.9, 0.95)


def reliability(samples: Tensor, truth: Tensor, *, levels: Sequence[float] = LEVELS) -> tuple[list[float], list[float]]:
    """Coverage of the truth by intervals of the samples, beside what the intervals are made for.

    Parameters
    ----------
    samples : (sample, ...) real, at least 2.
    truth : (...), free of noise; for a reference that carries noise see `recon.posterior.predictive_coverage`.

    Returns
    -------
    nominal, coverage : one entry per level.
    """
    found = []
    for level in levels:
        lower, upper = interval(samples, level=level)
        found.append(float(((lower <= truth) & (truth <= upper)).double().mean()))
    return [nominal_coverage(len(samples), level) for level in levels], found


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score from K samples, unbiased for any K (the fair form), elementwise.

    E|X - y| - E|X - X'| / 2 is estimated by sum_i |x_i - y| / K - sum_ij |x_i - x_j| / (2 K (K - 1)), whose second sum
    is 2 sum_k (2 k - K - 1) x_(k) of the sorted samples. In the units of the image; the mean is lowest for the true
    posterior. One K is not penalised against another; a fair score may be negative.

    Parameters
    ----------
    samples : (sample, ...) real, at least 2.
    truth : (...).

    References
    ----------
    Gneiting and Raftery, J Am Stat Assoc 102, 359 (2007); Ferro, Q J R Meteorol Soc 140, 1917 (2014) (the fair form).
    """
    count = len(samples)
    if count < 2:
        raise InputError(f"crps: expected at least 2 samples, got {count}")
    rank = 2 * torch.arange(1, count + 1).to(samples) - count - 1
    spread = torch.tensordot(rank, samples.sort(0).values, dims=1) / (count * (count - 1))
    return (samples - truth).abs().mean(0) - spread


def rank_correlation(error: Tensor, std: Tensor) -> float:
    """Spearman's correlation of error and standard deviation; ties share their mean rank, NaN if one is constant."""
    ranks = torch.stack([_ranks(error), _ranks(std)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.flatten().unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]


@dataclass(frozen=True)
class Sparsification:
    """What remains of the error when the pixels said to be the most uncertain are left out.

    Parameters
    ----------
    fractions : left out.
    curve, oracle : root mean square error of the rest over that of all; the oracle leaves out the largest errors.
    area : mean distance between the two (AUSE); 0 where std orders the errors.
    """

    fractions: tuple[float, ...]
    curve: tuple[float, ...]
    oracle: tuple[float, ...]
    area: float


def sparsification(error: Tensor, std: Tensor, *, steps: int = 20) -> Sparsification:
    """The sparsification curve at fractions i / steps, i < steps.

    Parameters
    ----------
    error : (...) real; its sign does not count.
    std : (...).

    References
    ----------
    Ilg et al., Proc ECCV (2018).
    """
    square = error.flatten().double().square()
    if not bool(square.any()):
        raise InputError("sparsification: expected errors, got zeros only")
    fractions = tuple(i / steps for i in range(steps))
    kept = torch.tensor([max(1, round((1 - f) * len(square))) for f in fractions])

    def remaining(order: Tensor) -> Tensor:
        return (square[order].cumsum(0)[kept - 1] / kept / square.mean()).sqrt()

    curve, oracle = remaining(std.flatten().argsort()), remaining(square.argsort())
    area = float((curve - oracle).mean())
    return Sparsification(fractions, tuple(curve.tolist()), tuple(oracle.tolist()), area)
