"""Does the prior suit the data? Withhold some measured samples, predict them from the posterior, and look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .errors import InputError
from .likelihood import Gaussian, Randn


def withhold(mask: Tensor, *, seed: int, fraction: float = 0.03, calibration: int = 24) -> tuple[Tensor, Tensor]:
    """Split what was sampled into a part to reconstruct from and a part to predict, single points at random.

    Parameters
    ----------
    mask : (ky, kx) or (kz, ky, kx) bool; what was sampled, DC at index n // 2.
    seed : of the choice.
    fraction : part of the samples to withhold.
    calibration : width of the central block that is kept whole; an axis shorter than this is kept along its length.

    Returns
    -------
    kept, withheld : disjoint masks whose union is `mask`.

    Raises
    ------
    ValueError
        If mask is not bool, fraction is not between 0 and 1, or the samples outside the block are too few.
    """
    if mask.dtype != torch.bool:
        raise InputError(f"mask: expected dtype torch.bool, got {mask.dtype}; use mask != 0")
    if not 0 < fraction < 1:
        raise InputError(f"fraction: expected a number between 0 and 1, got {fraction}")
    candidates = mask.clone()
    candidates[tuple(slice(max((n - calibration) // 2, 0), (n + calibration) // 2) for n in mask.shape)] = False
    count = round(fraction * int(mask.sum()))
    index = candidates.flatten().nonzero().squeeze(-1)
    if not 1 <= count <= len(index):
        raise InputError(
            f"cannot withhold {count} of {int(mask.sum())} samples ({fraction:.1%}): {len(index)} lie outside the "
            f"central block of width {calibration}; change the fraction or the width of the block"
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = index[torch.randperm(len(index), generator=generator)[:count].to(index.device)]
    withheld = torch.zeros_like(mask)
    withheld.view(-1)[chosen] = True
    return mask & ~withheld, withheld


@dataclass(frozen=True)
class Withheld:
    """Where the data lie that were withheld; a place is one element of the mask.

    Parameters
    ----------
    mask : bool, of the last axes of the data; True where they were withheld.
    radius, angle : (place) from the middle of the data outwards, and radians; for sectors.
    group : (place) int64; places of one number have errors in common, and count as one.
    what : the groups, in words.
    """

    mask: Tensor
    radius: Tensor
    angle: Tensor
    group: Tensor
    what: str

    @classmethod
    def in_kspace(cls, mask: Tensor) -> Self:
        """Of a (ky, kx) or (kz, ky, kx) mask; angles are in the plane of the last two axes."""
        shape = torch.tensor(mask.shape, device=mask.device)
        k = (mask.nonzero() - shape // 2) / shape  # cycles per pixel
        radius, angle = torch.linalg.vector_norm(k, dim=1), torch.atan2(k[:, -2], k[:, -1])
        return cls(mask, radius, angle, torch.arange(len(k), device=mask.device), "k-space places")

    @property
    def groups(self) -> int:
        return len(self.group.unique())


@dataclass(frozen=True)
class DataFit:
    """How well the posterior predicts data that it has not seen.

    Parameters
    ----------
    z : standard normal score of the withheld data among the predictive draws, if the posterior is right.
    z_by_coil : (coil) float64, the same coil by coil.
    z_by_sector : (ring, angle) float64, the same by radius (from the centre out) and angle in k-space, or what stands
        for them (see `Withheld`); NaN where a sector is empty.
    ratio : rms prediction error over what spread and noise explain; 1 if the posterior is right.
    p_calibrated : probability of a score at least as high as z, if the posterior is right.
    ratio_to_fallback : rms prediction error of the posterior mean over that of the fallback, noise included; None if no
        fallback was given.
    p_not_worse : probability of losing to the fallback at least so clearly, if both are equally good; None likewise.
    fallback_name : the classical method to turn to.
    places : number of withheld places, of groups of them if their errors have something in common.
    what : they are, in words.
    false_alarm_rate : probability of a warning though all is well, for each of the two questions.
    """

    z: float
    z_by_coil: Tensor
    z_by_sector: Tensor
    ratio: float
    p_calibrated: float
    ratio_to_fallback: float | None
    p_not_worse: float | None
    fallback_name: str
    places: int
    false_alarm_rate: float
    what: str = "k-space places"

    @property
    def calibrated(self) -> bool:
        """Whether the spread of the samples explains the prediction errors."""
        return self.p_calibrated >= self.false_alarm_rate

    @property
    def ok(self) -> bool:
        """False is the warning: the fallback predicts clearly better, or errors beyond the spread have no excuse."""
        beaten = self.p_not_worse is not None and self.p_not_worse < self.false_alarm_rate
        excused = self.ratio_to_fallback is not None and self.ratio_to_fallback <= 1  # a good mean of too little spread
        return not beaten and (self.calibrated or excused)

    @property
    def statement(self) -> str:
        """The verdict for the user."""
        found = (
            f"{self.places} withheld {self.what} are predicted with {self.ratio:.2f} times the error that spread "
            f"and noise explain (z = {self.z:.1f})"
        )
        if self.ratio_to_fallback is not None:
            found += f", {self.ratio_to_fallback:.2f} times the error of {self.fallback_name}"
        if not self.ok and self.ratio_to_fallback is not None:
            return f"WARNING: the prior does not suit these data: {found}. Use {self.fallback_name} instead."
        if not self.ok:
            return (
                f"WARNING: the samples do not explain the data: {found}. The prior does not suit these data, or the "
                f"sampler spreads too little, or the noise level is too low. Compare with {self.fallback_name}."
            )
        if not self.calibrated:
            return f"The prior suits the data, but the spread of the samples is smaller than their error: {found}."
        return f"The prior suits the data: {found}."


def data_fit(
    samples: Tensor,
    withheld: Gaussian,
    where: Tensor | Withheld,
    *,
    rng: Randn,
    fallback: Tensor | None = None,
    fallback_name: str = "l1-wavelet",
    false_alarm_rate: float = 0.01,
    rings: int = 3,
    angles: int = 8,
) -> DataFit:
    """Predict withheld data from samples that were reconstructed without them.

    **Is the spread right?** If it is, the withheld data y_0 and the predictive draws y_k = A x_k + n_k (k = 1..K) are
    exchangeable: every statistic that treats all K + 1 alike has one distribution for all of them. Here it is the share
    of the squared distance from the mean of the others, averaged over the elements e of a coil, a sector, or all,

        T_i = mean_e |d_ie|^2 / sum_j |d_je|^2,    d_i = y_i - mean_{j != i} y_j.

    That is a z-score squared whose denominator, the sample variance with its factor 1 + 1/K plus the noise, is measured
    with the draws themselves: bounded, so that few samples make no heavy tails. T_0 among the T_k,
    (T_0 - mean_k T_k) / (sd_k(T_k) sqrt(1 + 1/K)), is Student t of K - 1 degrees of freedom, and reported as the
    standard normal number of equal probability. Coils and places may be correlated: they are so in T_k as in T_0.

    **Does the prior suit?** A sampler of too little spread (DDS) fails the first question though its mean be good. So
    the squared error of the mean, less the 1/K of the sample variance that more samples would remove, is compared with
    that of a `fallback`, a classical reconstruction from the same kept data: in all, and place by place (Wilcoxon's
    signed ranks, one-sided).

    The warning comes if the fallback is better place by place at the false-alarm rate, or if the first question is
    answered no and the mean is not better than the fallback in all. Without a fallback the first question decides.

    Parameters
    ----------
    samples : (sample, *domain), at least 3, reconstructed from the kept data only.
    withheld : operator to the withheld data and that data, whitened; 0 elsewhere.
    where : they were withheld; a (ky, kx) or (kz, ky, kx) bool mask for k-space.
    rng : `rng.randn_like` gives noise of variance 1 per real component, a stream per sample.
    fallback : (*domain), reconstructed from the kept data by the method `fallback_name`.
    false_alarm_rate : probability of a warning though all is well, for each of the two questions.
    rings, angles : k-space sectors; rings hold equally many withheld places.

    Raises
    ------
    ValueError
        If there are fewer than 3 samples, shapes do not fit, or nothing is withheld.

    References
    ----------
    Gelman, Meng, Stern, Statistica Sinica 6, 733 (1996) (posterior predictive assessment).
    Wilcoxon, Biometrics Bulletin 1, 80 (1945).
    """
    A, y = withheld.A, withheld.y
    places = where if isinstance(where, Withheld) else None
    mask = where if isinstance(where, Tensor) else where.mask
    if len(samples) < 3:
        raise InputError(f"data_fit: expected at least 3 samples, got {len(samples)}; draw more")
    if mask.dtype != torch.bool or A.codomain.shape[-mask.ndim :] != mask.shape or not bool(mask.any()):
        raise InputError(
            f"data_fit: expected a bool mask of shape {A.codomain.shape[-mask.ndim :]} with something withheld, got "
            f"{mask.dtype} of shape {tuple(mask.shape)} with {int(mask.sum())} places"
        )
    places = places or Withheld.in_kspace(mask)
    clean = A(samples)
    share = _shares(torch.cat((y[None], clean + rng.randn_like(clean)))[..., mask])  # (1 + K, ..., coil, place)
    share = share.reshape(len(share), -1, *share.shape[-2:]).mean(1)  # what lies before the coils (slices) is averaged
    sectors = _sectors(places, rings=rings, angles=angles)
    p_calibrated, z = _score(share.mean((1, 2)))
    z_by_coil = [_score(coil.mean(1))[1] for coil in share.unbind(1)]
    z_by_sector = [_score(share[..., sectors == s].mean((1, 2)))[1] for s in range(rings * angles)]

    y, predicted = y[..., mask], clean[..., mask]
    spread = predicted.var(0)  # of real and imaginary part together
    error = (y - predicted.mean(0)).abs().square()
    explained = (1 + 1 / len(samples)) * spread + (2 if y.is_complex() else 1)
    ratio_to_fallback, p_not_worse = None, None
    if fallback is not None:
        error_of_mean = error - spread / len(samples)
        error_of_fallback = (y - A(fallback)[..., mask]).abs().square()
        # An estimate of a square, whose expectation is not negative, may be.
        ratio_to_fallback = math.sqrt(max(0.0, float(error_of_mean.sum() / error_of_fallback.sum())))
        p_not_worse = _wilcoxon(error_of_mean - error_of_fallback, places.group)
    return DataFit(
        z=z,
        z_by_coil=torch.tensor(z_by_coil, dtype=torch.float64),
        z_by_sector=torch.tensor(z_by_sector, dtype=torch.float64).reshape(rings, angles),
        ratio=math.sqrt(float(error.sum() / explained.sum())),
        p_calibrated=p_calibrated,
        ratio_to_fallback=ratio_to_fallback,
        p_not_worse=p_not_worse,
        fallback_name=fallback_name,
        places=places.groups,
        false_alarm_rate=false_alarm_rate,
        what=places.what,
    )


def _shares(data: Tensor) -> Tensor:
    """|d_i|^2 / sum_j |d_j|^2 along the first axis; d_i = (K + 1) / K (y_i - mean), and the factor cancels."""
    squared = (data - data.mean(0)).abs().square()
    return squared / squared.sum(0)


def _score(statistics: Tensor) -> tuple[float, float]:
    """Is the first of K + 1 exchangeable numbers higher than the others? Its tail probability and normal score."""
    from scipy.special import ndtri, stdtr

    first, others = statistics[0], statistics[1:]
    t = float((first - others.mean()) / (others.std() * math.sqrt(1 + 1 / len(others))))
    p, p_far = float(stdtr(len(others) - 1, -t)), float(stdtr(len(others) - 1, -abs(t)))
    return p, math.copysign(float(-ndtri(p_far)), t)


def _wilcoxon(differences: Tensor, group: Tensor) -> float:
    """Tail probability that differences of mean zero are so positive; coils and slices of a group count as one."""
    from scipy.stats import wilcoxon

    each = differences.reshape(-1, differences.shape[-1]).sum(0)
    numbers, index = group.unique(return_inverse=True)
    by_place = each.new_zeros(len(numbers)).index_add(0, index, each)
    if not bool(by_place.any()):
        return 1.0  # the mean is the fallback
    return float(wilcoxon(by_place.double().cpu().numpy(), alternative="greater").pvalue)


def _sectors(places: Withheld, *, rings: int, angles: int) -> Tensor:
    """Sector number ring * angles + angle of every place."""
    rank = places.radius.argsort().argsort()
    ring = rank * rings // len(rank)
    return ring * angles + ((places.angle + math.pi) / (2 * math.pi) * angles).long() % angles
