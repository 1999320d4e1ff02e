"""Filtered back-projection: the inversion formula of the line integrals, for parallel beams and fans.

Its back-projector goes from pixels to the bins that see them, with the weights of the formula. It is not the adjoint of
the projector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .geometry import FanBeam, Geometry, Grid, ParallelBeam

FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "ram-lak": torch.ones_like,
    "shepp-logan": lambda r: torch.sinc(r / 2),
    "cosine": lambda r: torch.cos(math.pi * r / 2),
    "hamming": lambda r: 0.54 + 0.46 * torch.cos(math.pi * r),
    "hann": lambda r: 0.5 + 0.5 * torch.cos(math.pi * r),
}
"""Windows on the ramp, of the frequency in units of the cutoff (0 to 1)."""


def filtered_back_projection(
    sinogram: Tensor, geometry: Geometry, grid: Grid, *, filter: str = "ram-lak", cutoff: float = 1.0
) -> Tensor:
    r"""Images (..., y, x) in 1/mm from sinograms (..., views, bins) of line integrals.

    parallel:  f = \int q(angle, s) d angle,  q = h * p,
    fan:       f = \int R / L^2  q(angle, gamma) d angle,  q = h(sin) * (w cos(gamma) p),

    with R from source to axis, L from source to pixel, gamma from the ray to the axis to the ray to the pixel, h the
    ramp from its band-limited samples, and w the `redundancy` of rays. On a flat detector it is the same in its
    own coordinate. Bins beyond the detector count as 0.

    Views may be anywhere, once or more often: each counts by its distance to its neighbours (see `spacing`). Where
    too few are for an exact inversion, less than half a turn plus the fan, the missing ones count as 0.

    Parameters
    ----------
    geometry : ParallelBeam or FanBeam.
    filter : a key of FILTERS.
    cutoff : highest frequency that passes, in units of the highest that the bins can hold; 0 < cutoff <= 1.

    Raises
    ------
    ValueError
        If the geometry is another one, sinogram and geometry disagree, the filter is unknown, the cutoff is out of its
        range, or the grid reaches beyond the circle of the source.

    References
    ----------
    Kak and Slaney, Principles of Computerized Tomographic Imaging, chapter 3 (1988).
    Axis off the central ray: Gullberg et al., IEEE Trans Med Imaging 5, 142 (1986).
    """
    geometry.check(sinogram)
    if filter not in FILTERS:
        raise ValueError(f"filter: expected one of {', '.join(FILTERS)}, got {filter!r}")
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff: expected 0 < cutoff <= 1, in units of the highest frequency of bins, got {cutoff}")
    flat = sinogram.reshape(math.prod(sinogram.shape[:-2]), *sinogram.shape[-2:])
    if isinstance(geometry, ParallelBeam):
        kernel = _kernel(geometry.bins, geometry.bin_size, filter, cutoff)
        weights, _ = spacing(geometry.angles, math.pi)
        filtered = _convolve(weights.to(flat)[:, None] * flat, kernel)
    elif isinstance(geometry, FanBeam):
        if math.hypot(geometry.source_to_axis, geometry.rotation_offset) <= _reach(grid):
            raise ValueError(
                f"the grid reaches {_reach(grid):.4g} mm from the rotation axis, beyond the circle of the source at "
                f"{geometry.source_to_axis:g} mm; make it or its pixels smaller"
            )
        turn = geometry.bin_size / geometry.source_to_detector
        if geometry.curved:
            kernel = _kernel(geometry.bins, turn, filter, cutoff)
            angle = turn * torch.arange(1, geometry.bins, dtype=torch.float64)
            kernel = kernel * pad((angle / angle.sin()) ** 2, (1, 0), value=1.0)  # h(sin) = (angle / sin)^2 h(angle)
        else:
            # D on the detector and D / depth^2 behind it are 1 / L^2 in the coordinate of a flat detector.
            kernel = _kernel(geometry.bins, geometry.bin_size, filter, cutoff) * geometry.source_to_detector
        fan = _fan_angles(geometry)
        radius = math.hypot(geometry.source_to_axis, geometry.rotation_offset)
        weights, _ = spacing(geometry.angles, 2 * math.pi)
        weights = radius * fan.cos() * weights[:, None] * redundancy(geometry)
        filtered = _convolve(weights.to(flat) * flat, kernel)
    else:
        raise ValueError(
            f"filtered back-projection inverts ParallelBeam and FanBeam, got {type(geometry).__name__}; use an "
            "iterative method"
        )
    return _back_project(filtered, geometry, grid).reshape(*sinogram.shape[:-2], *grid.shape)


@dataclass(frozen=True)
class Gap:
    """A range of angles without views; radians."""

    middle: float
    half_width: float


def spacing(angles: Tensor, period: float) -> tuple[Tensor, list[Gap]]:
    """What each view counts in an integral over angles, and where there are no views.

    A view reaches half-way to its neighbours; those at one angle share. Between views more than four times as far
    apart as usual nothing was measured: there a view reaches as far as it usually does.

    Parameters
    ----------
    angles : (views,) radians; any order.
    period : after how much views repeat: pi for parallel beams, 2 pi for fans.

    Returns
    -------
    (views,) radians, float64; and the gaps.
    """
    ordered, order = (angles.detach().to("cpu", torch.float64) % period).sort()
    ahead = torch.cat((ordered[1:], ordered[:1] + period)) - ordered
    usual = float(ahead.quantile(0.75, interpolation="lower"))  # not the median: every angle may be there twice
    empty = ahead > 4 * usual
    gaps = [
        Gap(float(ordered[i] + ahead[i] / 2) % period, float(ahead[i] - usual) / 2) for i in empty.nonzero().squeeze(1)
    ]
    reach = torch.where(empty, usual, ahead) / 2
    weights = torch.empty_like(reach)
    weights[order] = reach + reach.roll(1)
    return weights, gaps


def redundancy(geometry: FanBeam) -> Tensor:
    """The share (views, bins) of each ray in what all rays along its line count, which is 1 in total.

    sin^2(pi / 2 * d / (d + d')) with d the distance of the view to the nearest end of the scanned range, and d' that of
    the view from the other side, 0 where there is none: Parker's weights on half a turn plus the fan, with smooth
    transitions on more, 1/2 on a full turn, and 1 on rays measured once.

    References
    ----------
    Parker, Med Phys 9, 254 (1982); more than his range: Silver, Med Phys 27, 773 (2000).
    """
    angles = geometry.angles.detach().to("cpu", torch.float64)
    _, gaps = spacing(angles, 2 * math.pi)
    other = angles[:, None] + math.pi - 2 * _fan_angles(geometry)
    if not gaps:
        return torch.full_like(other, 0.5)

    def depth(angle: Tensor) -> Tensor:
        turned = torch.stack([(angle - gap.middle + math.pi) % (2 * math.pi) - math.pi for gap in gaps])
        width = angles.new_tensor([gap.half_width for gap in gaps]).reshape(-1, *(1,) * angle.ndim)
        return (turned.abs() - width).amin(0).clamp_min(0)

    here, there = depth(angles)[:, None], depth(other)
    return torch.sin(math.pi / 2 * here / (here + there)) ** 2


def _fan_angles(geometry: FanBeam) -> Tensor:
    """(bins,) radians, from the ray through the rotation axis."""
    s = geometry.positions() / geometry.source_to_detector
    to_axis = math.atan2(geometry.rotation_offset, geometry.source_to_axis)
    return (s if geometry.curved else s.atan()) - to_axis


def _kernel(bins: int, step: float, filter: str, cutoff: float) -> Tensor:
    """(bins,) float64: the windowed ramp at 0, 1, ... steps, times the step of the integral."""
    size = 2 * bins
    n = torch.arange(bins + 1, dtype=torch.float64)
    ramp = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp_min(1)) ** 2, 0.0)
    ramp[0] = 0.25
    frequency = torch.arange(bins + 1, dtype=torch.float64) / (bins * cutoff)
    window = FILTERS[filter](frequency).where(frequency <= 1, 0.0)
    spectrum = torch.fft.rfft(torch.cat((ramp, ramp[1:-1].flip(0)))).real * window
    return torch.fft.irfft(spectrum, size)[:bins] / step


def _convolve(sinogram: Tensor, kernel: Tensor) -> Tensor:
    """Along the bins, with an even kernel of which one half is given; nothing wraps around."""
    bins = len(kernel)
    both = torch.cat((kernel, kernel.new_zeros(1), kernel[1:].flip(0)))
    spectrum = torch.fft.rfft(both).real.to(sinogram)
    return torch.fft.irfft(torch.fft.rfft(sinogram, 2 * bins) * spectrum, 2 * bins)[..., :bins]


def _back_project(filtered: Tensor, geometry: ParallelBeam | FanBeam, grid: Grid) -> Tensor:
    """Sums (batch, y, x) over views of (batch, views, bins) where each sees a pixel, interpolated between bins."""
    rows, columns = (
        grid.to_mm(torch.arange(n, dtype=torch.float64)[:, None].expand(-1, 2))[:, axis].to(filtered)
        for axis, n in enumerate(grid.shape)
    )
    y, x = rows[:, None], columns[None]
    # A bin of zeros on either side, so that the detector ends in zeros wherever a pixel falls beside it.
    values = pad(filtered, (1, 2))
    slopes = pad(values.diff(dim=-1), (0, 1))
    last = geometry.bins + 1
    image = filtered.new_zeros(len(filtered), *grid.shape)
    flat = image.flatten(1)
    for view, angle in enumerate(geometry.angles.tolist()):
        cos, sin = math.cos(angle), math.sin(angle)
        if isinstance(geometry, FanBeam):
            distance, step = geometry.source_to_detector, geometry.bin_size
            depth = y * cos + (geometry.source_to_axis - x * sin)
            across = y * sin + (geometry.rotation_offset + x * cos)
            middle = (geometry.bins + 1) / 2 - geometry.detector_offset / step
            if geometry.curved:
                bin_ = torch.atan2(across, depth).mul_(distance / step).add_(middle)
                weight = (depth.square_() + across.square_()).reciprocal_().flatten()
            else:
                weight = depth.reciprocal_()
                bin_ = across.mul_(weight).mul_(distance / step).add_(middle)
                weight = weight.square_().flatten()
        else:
            middle = (geometry.bins + 1) / 2 - geometry.detector_offset / geometry.bin_size
            bin_ = y * (sin / geometry.bin_size) + (x * (cos / geometry.bin_size) + middle)
            weight = None
        bin_ = bin_.clamp_(0, last).flatten()
        index = bin_.to(torch.int32)
        between = bin_.frac_()
        seen = values[:, view].index_select(1, index).addcmul_(slopes[:, view].index_select(1, index), between)
        flat.add_(seen) if weight is None else flat.addcmul_(seen, weight)
    return image


def _reach(grid: Grid) -> float:
    """mm from the rotation axis to the farthest middle of a pixel."""
    corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in grid.shape))
    return float(grid.to_mm(corners).norm(dim=-1).max())
