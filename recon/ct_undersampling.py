"""Less of a CT scan: some of its views, a range of its angles, a fraction of its dose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from operators.geometry import Geometry

from .ct import CTScan, NoiseLevel
from .ct_simulation import low_dose
from .errors import InputError


@dataclass(frozen=True)
class Part:
    """What is kept of a scan.

    Parameters
    ----------
    views : (n,) int64; indices of the views, in their order.
    dose : part of the photons, 1 for all.
    noise : of all of the scan, which a lower dose is made with.
    """

    views: Tensor
    dose: float = 1.0
    noise: NoiseLevel | None = None


def choose_views(
    geometry: Geometry, *, views: int | None = None, angular_range: tuple[float, float] | None = None
) -> Tensor:
    """Indices of some views: those within a range of angles, and of these so many, evenly by their order.

    Parameters
    ----------
    views : how many; None for all.
    angular_range : first and last angle in degrees, both included, counted from the first view in the direction of the
        scan; None for all.

    Raises
    ------
    InputError
        If there are not as many views, or the range reaches beyond the scan or holds no view.
    """
    chosen = torch.arange(geometry.views)
    if angular_range is not None:
        chosen = _within(turned(geometry), *angular_range)
    if views is None:
        return chosen
    if not 1 <= views <= len(chosen):
        where = "" if angular_range is None else " in that range"
        raise InputError(f"views: expected 1 to {len(chosen)}, as the scan has{where}, got {views}")
    return chosen[torch.arange(views) * len(chosen) // views]


_ROUNDING = 1e-6  # degrees


def turned(geometry: Geometry) -> Tensor:
    """(views,) degrees from the first view, in the direction in which the scan turns; a full turn ends at 360."""
    angles = torch.rad2deg(geometry.view_angles())
    steps = torch.remainder(angles.diff() + 180, 360) - 180
    forward = 1 if not len(steps) or float(steps.median()) >= 0 else -1
    if bool((forward * steps > -_ROUNDING).all()):
        return torch.cat((steps.new_zeros(1), (forward * steps).cumsum(0)))
    return torch.remainder(forward * (angles - angles[0]) + _ROUNDING, 360) - _ROUNDING  # views in no order


def _within(turned: Tensor, first: float, last: float) -> Tensor:
    """Indices of the views from first to last; the range may go beyond all of them by the distance of two views."""
    step = (turned.max() - turned.min()) / max(1, len(turned) - 1)
    low, high = float(turned.min()), float(turned.max())
    chosen = ((turned >= first - _ROUNDING) & (turned <= last + _ROUNDING)).nonzero().squeeze(1)
    if first < low - _ROUNDING or last > high + float(step) + _ROUNDING:
        raise InputError(
            f"angular_range: expected degrees within {low:g} to {high:g}, which the views cover from the first on, got "
            f"{first:g} to {last:g}"
        )
    if not len(chosen):
        raise InputError(
            f"angular_range: expected a range with a view in it, got {first:g} to {last:g} degrees, and views are "
            f"about {float(step):.3g} apart; make it wider"
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
        If the noise cannot be found, which a lower dose is made with.
    """
    projections = torch.as_tensor(scan.projections[:])
    views = part.views.to(projections.device)
    chosen = replace(scan, projections=projections[:, views], geometry=scan.geometry.select(part.views))
    return chosen if part.dose == 1 else low_dose(chosen, part.dose, seed=stream, noise=part.noise)
