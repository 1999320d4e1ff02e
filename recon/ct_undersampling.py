"""Less of a CT scan: some of its views, a range of its angles, a fraction of its dose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from operators.geometry import Geometry

from .ct import CTScan, blank_and_dark, noise_of
from .errors import InputError


@dataclass(frozen=True)
class Part:
    """What is kept of a scan.

    Parameters
    ----------
    views : (n,) int64; indices of the views, in their order.
    dose : part of the photons, 1 for all.
    """

    views: Tensor
    dose: float = 1.0


def choose_views(
    geometry: Geometry, *, views: int | None = None, angular_range: tuple[float, float] | None = None
) -> Tensor:
    """Indices of some views: those within a range of angles, and of these so many, evenly by their order.

    Parameters
    ----------
    views : how many; None for all.
    angular_range : first and last angle in degrees, both included; None for all. A range may pass 360.

    Raises
    ------
    InputError
        If there are not as many views, or the range reaches beyond the angles of the scan.
    """
    chosen = torch.arange(geometry.views)
    if angular_range is not None:
        chosen = _within(torch.rad2deg(geometry.view_angles()), *angular_range)
    if views is None:
        return chosen
    if not 1 <= views <= len(chosen):
        where = "" if angular_range is None else " in that range"
        raise InputError(f"views: expected 1 to {len(chosen)}, as the scan has{where}, got {views}")
    return chosen[torch.arange(views) * len(chosen) // views]


_ROUNDING = 1e-6  # degrees


def _within(angles: Tensor, first: float, last: float) -> Tensor:
    """Indices of the angles (degrees, modulo 360) from first to last, which must be among them but for one step."""
    if not 0 < last - first <= 360:
        raise InputError(f"angular_range: expected FIRST < LAST within one turn, in degrees, got {first:g} to {last:g}")
    from_first = torch.remainder(angles - first + _ROUNDING, 360) - _ROUNDING
    chosen = (from_first <= last - first + _ROUNDING).nonzero().squeeze(1)
    ordered = from_first.sort().values
    steps = ordered.diff()
    step = float(steps[steps > _ROUNDING].median()) if bool((steps > _ROUNDING).any()) else 360.0
    inside = from_first[chosen].sort().values
    gaps = torch.cat((inside[:1], inside.diff(), last - first - inside[-1:]))
    if not len(chosen) or float(gaps.max()) > max(2 * step, _ROUNDING):
        turned = angles.sort().values
        low, high = (float(value) for value in (turned[0], turned[-1]))
        raise InputError(
            f"angular_range: the scan has no views in a part of {first:g} to {last:g} degrees; its {len(angles)} views "
            f"lie from {low:g} to {high:g} (angles beyond half a turn count from -180)"
        )
    return chosen


def undersample(scan: CTScan, part: Part, *, stream: tuple[int, ...]) -> CTScan:
    """The scan as if only that part of it had been measured.

    Parameters
    ----------
    stream : names the random numbers of a lower dose.

    Raises
    ------
    InputError
        If the dose is not a fraction, or the noise cannot be found.
    """
    projections = torch.as_tensor(scan.projections[:])[:, part.views.to("cpu")]
    chosen = replace(scan, projections=projections, geometry=scan.geometry.select(part.views))
    return chosen if part.dose == 1 else thin(chosen, part.dose, stream=stream)


def thin(scan: CTScan, dose: float, *, stream: tuple[int, ...]) -> CTScan:
    """The scan at a part of its dose: of every photon that was counted a coin decides, heads with probability `dose`.

    Line integrals become the counts that they stand for, given the photons of a bin without object (`noise_of` where
    the scan does not say), so that a part of their noise is kept and the rest is added: that of the lower dose.
    Electronic noise is not added.

    Raises
    ------
    InputError
        If the dose is not between 0 and 1.
    """
    if not 0 < dose < 1:
        raise InputError(f"dose: expected a fraction between 0 and 1, got {dose:g}")
    noise = noise_of(scan)
    projections = torch.as_tensor(scan.projections[:]).float()
    if scan.is_counts:
        blank, dark = blank_and_dark(scan)
        photons, blank = noise.photons * (projections - dark), noise.photons * blank
    else:
        blank = torch.full_like(projections[:, :1], noise.photons)
        photons = blank * torch.exp(-projections)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((len(stream), *stream))))
    counts = generator.binomial(photons.clamp(min=0).round().cpu().numpy().astype(np.int64), dose)
    return replace(
        scan,
        projections=torch.from_numpy(counts).to(projections),
        is_counts=True,
        flats=dose * blank.movedim(1, 0),
        darks=None,
        gain=1.0,
        photons=None,
        notes=(*scan.notes, f"{dose:g} of the dose, simulated; before, {noise.source}"),
    )
