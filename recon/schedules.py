"""Noise levels: decreasing tensors of sigma that end in 0, one network evaluation for each step down.

Samplers are written in VE coordinates, x_t = x0 + sigma n. A variance-preserving process is the same one seen through
x_vp = sqrt(abar) x_ve, sigma = sqrt((1 - abar) / abar): its epsilon is (x_ve - x0) / sigma, so that the step

    x_vp = sqrt(abar) x0 + sqrt(1 - abar) (eta z + sqrt(1 - eta^2) epsilon)

divided by sqrt(abar) is x_ve = x0 + sigma (eta z + sqrt(1 - eta^2) epsilon) with the same eta. DDIM counts differently:
from sigma to s < sigma its eta is the fraction of the ancestral noise, and eta_DDIM sqrt(1 - s^2 / sigma^2) is that of
the fresh noise, the eta here. Only the start differs: N(0, 1) in VP is N(0, 1 + sigma^2) in VE, not N(0, sigma^2).

An early start from a warm image (Chung et al., CVPR 2022) is a schedule that begins at a smaller sigma, not below the
root mean square error of that image.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .errors import InputError


def geometric(steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """Equal ratios from sigma_max to sigma_min, then 0; shape (steps + 1,).

    References
    ----------
    VE: Song et al., ICLR 2021.
    """
    _check(steps, sigma_min, sigma_max)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _to_zero(sigma_max * (sigma_min / sigma_max) ** ramp)


def karras(steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Equal steps of sigma^(1 / rho) from sigma_max to sigma_min, then 0; shape (steps + 1,).

    The ratios between levels grow towards sigma_min where rho > 0, and shrink where rho < 0; `geometric` lies between,
    where |rho| goes to infinity.

    References
    ----------
    EDM: Karras et al., NeurIPS 2022, equation 5.
    """
    _check(steps, sigma_min, sigma_max)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _to_zero((sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho)


def ddpm(steps: int, *, sigma_min: float = 0.0, sigma_max: float = math.inf) -> Tensor:
    """The variance-preserving levels of DDPM (beta from 1e-4 to 0.02 over 1000 timesteps) at `steps` even timesteps.

    From timestep 1000 - 1000 / steps (sigma about 100) to timestep 0 (sigma = 0.01), then 0; shape (steps + 1,). Within
    the range of a prior, sigma_min to sigma_max, the even timesteps are those of the part of the 1000 that lies in it.

    Raises
    ------
    ValueError
        If that part has fewer than `steps`.

    References
    ----------
    Ho et al., NeurIPS 2020; the even timesteps: Song et al. (DDIM), ICLR 2021.
    """
    levels, first, end = _ddpm_levels(steps, sigma_min, sigma_max)
    timesteps = first + torch.arange(steps - 1, -1, -1) * (end - first) // steps
    return _to_zero(levels[timesteps])


def ddpm_quadratic(steps: int, *, sigma_min: float = 0.0, sigma_max: float = math.inf) -> Tensor:
    """The levels of DDPM at timesteps t of even (999 - t)^2, closest at low noise: from 999 (sigma = 157) to 0.

    Within the range of a prior as `ddpm`; the first and the last of its timesteps are included.

    Raises
    ------
    ValueError
        As `ddpm`, and if two of them fall on one timestep: more than about 500 steps of the whole range.

    References
    ----------
    DiffPIR: Zhu et al., CVPR Workshops 2023.
    """
    levels, first, end = _ddpm_levels(steps, sigma_min, sigma_max)
    below = torch.linspace(0, (end - first) ** 2, steps, dtype=torch.float64).sqrt().long()
    timesteps = (end - 1 - below).clamp_min(first)  # the last would be one below the range
    if (timesteps.diff() >= 0).any():
        raise InputError(f"ddpm_quadratic: {steps} steps fall twice on one of {end - first} timesteps; take fewer")
    return _to_zero(levels[timesteps])


def _ddpm_levels(steps: int, sigma_min: float, sigma_max: float) -> tuple[Tensor, int, int]:
    """sigma at the 1000 timesteps of DDPM; the first and the last (exclusive) of those from sigma_min to sigma_max."""
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    levels = ((1 - abar) / abar).sqrt()
    first, end = int((levels < sigma_min).sum()), int((levels <= sigma_max).sum())
    if not 1 <= steps <= end - first:
        raise InputError(
            f"ddpm: {max(end - first, 0)} of the 1000 timesteps have a sigma from {sigma_min:.4g} to {sigma_max:.4g}; "
            f"expected at least 1 step and at most so many, got {steps}"
        )
    return levels, first, end


def start_at(sigmas: Tensor, sigma: float) -> Tensor:
    """The part of a schedule that begins at or below `sigma`: an early start, or the range that a prior covers.

    Raises
    ------
    ValueError
        If nothing but 0 is left.
    """
    kept = sigmas[sigmas <= sigma]
    if kept.numel() < 2:
        raise InputError(f"start_at: no level at or below {sigma:.4g}; the smallest is {float(sigmas[-2]):.4g}")
    return kept


def check_schedule(sigmas: Tensor, *, sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless sigmas decrease strictly to 0, within the range that the prior was trained for."""
    values = sigmas.tolist()
    if sigmas.ndim != 1 or len(values) < 2:
        raise InputError(f"sigmas: expected at least one level and a final 0, shape (steps + 1,), got {values}")
    if values[-1] != 0 or not all(a > b for a, b in pairwise(values)):
        raise InputError(f"sigmas: expected strictly decreasing levels that end in 0, got {values}")
    rounding = 1e-6  # a range kept in float32
    if values[0] > sigma_max * (1 + rounding) or values[-2] < sigma_min * (1 - rounding):
        raise InputError(
            f"sigmas: the levels run from {values[0]:.4g} to {values[-2]:.4g}, but the prior was trained for "
            f"{sigma_max:.4g} to {sigma_min:.4g}; choose the schedule within that range (start_at cuts its top)"
        )


def _check(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1 or not 0 < sigma_min <= sigma_max or (steps > 1 and sigma_min == sigma_max):
        raise InputError(
            "schedule: expected steps >= 1 and 0 < sigma_min < sigma_max, "
            f"got steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}"
        )


def _to_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
