"""From detector counts to line integrals: flats, darks, dead bins, air, rotation centre, rings; and HU."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError

_MANY = 0.05  # of the counts: so many that are too low leave their mark on an image


@dataclass(frozen=True)
class LineIntegrals:
    """What counts say of the object.

    Parameters
    ----------
    values : (slice, view, bin); line integrals. Dead bins hold what their neighbours say.
    signal : (slice, view, bin); counts without background, at least `least`; 0 in dead bins.
    blank : (slice, bin); counts without object and without background.
    background : (slice, bin); counts without beam.
    replaced : (slice, view, bin) bool; where counts were below `least`, or the bin is dead.
    notes : what was replaced, in sentences for the user.
    """

    values: Tensor
    signal: Tensor
    blank: Tensor
    background: Tensor
    replaced: Tensor
    notes: tuple[str, ...] = ()


def line_integrals(
    counts: Tensor, flats: Tensor, darks: Tensor | None = None, *, least: float | None = None
) -> LineIntegrals:
    """-log((counts - dark) / (flat - dark)), where the logarithm exists.

    Counts are those of a bin less the mean of its darks. Below `least` they say no more than that the bin was dark, and
    `least` is put in their place: that bounds a line integral and is counted in the notes, never silent. A bin whose
    flats are not above its darks is dead, and is interpolated from its neighbours.

    Parameters
    ----------
    counts : (slice, view, bin).
    flats, darks : (frame, slice, bin) counts without object, and without beam (none: 0).
    least : the smallest count that is believed; by default one count, or 1/10,000 of the median flat where that is
        below 100 (transmissions between 0 and 1).

    Raises
    ------
    InputError
        If shapes differ, values are not finite, least is not positive, or no bin of a slice is alive, or above `least`.

    Warns
    -----
    UserWarning
        If more than 5 % of the counts of live bins were below `least`.
    """
    for name, frames in (("flats", flats), ("darks", darks)):
        if frames is not None and (frames.ndim != 3 or frames.shape[1:] != (counts.shape[0], counts.shape[-1])):
            raise InputError(
                f"{name}: expected (frame, slice, bin) with {counts.shape[0]} slices and {counts.shape[-1]} bins as "
                f"the projections have, got shape {tuple(frames.shape)}"
            )
    if not all(bool(x.isfinite().all()) for x in (counts, flats, darks) if x is not None):
        raise InputError("projections: expected finite counts, flats and darks, got NaN or infinity; mask those bins")
    background = torch.zeros_like(counts[:, 0]) if darks is None else darks.to(counts).mean(0)
    blank = flats.to(counts).mean(0) - background
    alive = blank > 0
    if not bool(alive.any(-1).all()):
        raise InputError("flats: expected counts above the darks, got none in some slice; are flats and darks swapped?")
    if least is None:
        usual = float(blank[alive].median())
        least = 1.0 if usual >= 100 else 1e-4 * usual
    if not 0 < least < math.inf:
        raise InputError(f"least: expected a positive number of counts, got {least}")
    alive &= blank > least
    signal = counts - background[:, None]
    low = (signal < least) & alive[:, None]
    zero = int(((signal <= 0) & alive[:, None]).sum())
    signal = torch.where(low, least, signal)
    values = interpolate_bins(-torch.log(signal.clamp(min=least) / blank.clamp(min=least)[:, None]), ~alive)
    _check_counts(signal, alive, low, least)
    notes = []
    if bool(low.any()):
        notes.append(
            f"{int(low.sum())} of {low.numel()} counts were below {least:g} above the darks ({zero} of them zero or "
            f"negative) and were taken as {least:g}."
        )
    if not bool(alive.all()):
        notes.append(f"{int((~alive).sum())} bins are dead (flats not above darks) and were interpolated.")
    dead = ~alive[:, None].expand_as(counts)
    return LineIntegrals(values, signal * ~dead, blank * alive, background, low | dead, tuple(notes))


def _check_counts(signal: Tensor, alive: Tensor, low: Tensor, least: float) -> None:
    """Of live bins (slice, bin): is any count (slice, view, bin) above `least`, and are few too low?"""
    believed = ((signal > least) & alive[:, None]).flatten(1).any(1)
    if not bool(believed.all()):
        raise InputError(
            f"projections: expected counts of more than {least:g} above the darks, got none in slice "
            f"{int((~believed).nonzero()[0])}; are they counts, and of the same scan as flats and darks?"
        )
    part = float(low.sum()) / (int(alive.sum()) * low.shape[1])
    if part > _MANY:
        warnings.warn(
            f"{100 * part:.0f} % of the counts were below {least:g} above the darks and were taken as {least:g}: line "
            "integrals there are too small; check flats and darks, or use transmission, which takes no logarithm",
            stacklevel=3,
        )


def interpolate_bins(sinogram: Tensor, dead: Tensor) -> Tensor:
    """Dead bins replaced by the straight line between their live neighbours; at an end, by the last live bin.

    Parameters
    ----------
    sinogram : (slice, view, bin).
    dead : (slice, bin) bool.

    Raises
    ------
    InputError
        If a slice has no live bin.
    """
    if not bool((~dead).any(-1).all()):
        raise InputError("dead: expected a live bin in every slice, got none; leave that slice out")
    result = sinogram.clone()
    for image, row in zip(result, dead, strict=True):
        live, lost = (~row).nonzero().flatten(), row.nonzero().flatten()
        if len(lost):
            right = torch.searchsorted(live, lost)
            lower, upper = live[(right - 1).clamp(min=0)], live[right.clamp(max=len(live) - 1)]
            part = ((lost - lower) / (upper - lower).clamp(min=1)).clamp(min=0).to(image)
            image[:, lost] = image[:, lower] * (1 - part) + image[:, upper] * part
    return result


def air_offset(line_integrals: Tensor, *, bins: int = 8) -> Tensor:
    """What air reads, per slice: the median of the outer bins of both ends, over all views. Subtract it.

    It is air only where the detector is wider than the object; see `truncated_views`.

    Parameters
    ----------
    line_integrals : (slice, view, bin).
    bins : how many at each end.

    Returns
    -------
    (slice,).

    Raises
    ------
    InputError
        If there are fewer than 2 * bins bins.
    """
    return _ends(line_integrals, bins).flatten(1).median(-1).values


def truncated_views(line_integrals: Tensor, *, bins: int = 8, threshold: float = 0.05) -> Tensor:
    """In which views the object is seen at an end of the detector, so that it may go on beyond.

    Parameters
    ----------
    line_integrals : (slice, view, bin), of which air reads about 0.
    bins : of an end, whose median is taken.
    threshold : above this part of the slice's largest line integrals (99.9th percentile) it is not air.

    Returns
    -------
    (slice, view) bool.
    """
    ends = _ends(line_integrals, bins).unflatten(-1, (2, bins)).median(-1).values.amax(-1)
    top = torch.stack(
        [torch.quantile(image.flatten()[:: 1 + image.numel() // 2**23], 0.999) for image in line_integrals]
    )
    return ends > threshold * top[:, None]


def _ends(line_integrals: Tensor, bins: int) -> Tensor:
    """(slice, view, 2 * bins); the outer bins."""
    if not 0 < 2 * bins <= line_integrals.shape[-1]:
        raise InputError(f"bins: expected 1 to {line_integrals.shape[-1] // 2} at each end, got {bins}")
    return torch.cat((line_integrals[..., :bins], line_integrals[..., -bins:]), -1)


# -- The rotation centre ----------------------------------------------------------------------------------------------


def centre_from_opposite_views(sinogram: Tensor, angles: Tensor) -> float:
    """The bin (a fraction, from 0) that a parallel beam's rotation axis projects onto, from views half a turn apart.

    They are mirror images of each other, p(angle + pi, c + s) = p(angle, c - s); their correlation is largest at c.
    Every view that has one opposite within a step of the angles takes part: one pair in a scan over half a turn.

    Parameters
    ----------
    sinogram : (view, bin) line integrals.
    angles : (view,) radians.

    Raises
    ------
    InputError
        If no view has an opposite one.
    """
    _check(sinogram, angles)
    difference = angles.double() - angles.double()[:, None]
    gap, opposite = (torch.remainder(difference, 2 * math.pi) - math.pi).abs().min(1)  # to half a turn
    step = float(angles.double().sort().values.diff().median())
    pairs = (gap <= 1.01 * step).nonzero().flatten()
    if len(pairs) == 0:
        raise InputError(
            f"angles: expected views half a turn apart, got none among {len(angles)} over "
            f"{math.degrees(float(angles.max() - angles.min())):.1f} degrees; use centre_from_consistency"
        )
    spectrum = _spectrum(sinogram)
    return _best_centre(-(spectrum[opposite[pairs]] * spectrum[pairs]).conj().sum(0), sinogram.shape[-1])


def centre_from_consistency(sinogram: Tensor, angles: Tensor) -> float:
    """The bin (a fraction, from 0) that a parallel beam's rotation axis projects onto, from a scan over half a turn.

    Mirrored about the right bin, the views of the first half turn are those of the second, and the sinogram of the
    whole turn obeys the Helgason-Ludwig conditions: its Fourier transform over angle (k) and bin (w) is zero where
    abs(k) > 2 pi w R, R the radius of the object. The energy there is a trigonometric polynomial in the centre, and is
    found for all centres at once; each w is weighted by the inverse of its amplitude, as in a phase correlation.

    Parameters
    ----------
    sinogram : (view, bin) line integrals. Of a scan over a turn its first half is used.
    angles : (view,) radians, evenly over half a turn (or a turn), without its end.

    Raises
    ------
    InputError
        If the angles are not even, or do not cover half a turn.

    References
    ----------
    Edholm, Lewitt & Lindholm, Proc SPIE 671, 8 (1986); Vo et al., Opt Express 22, 19078 (2014).
    """
    _check(sinogram, angles)
    steps = angles.double().diff()
    step = float(steps.mean())
    views = round(math.pi / abs(step)) if step else 0
    if not bool((steps - step).abs().max() < 0.01 * abs(step)) or not 2 <= views <= len(angles):
        raise InputError(
            f"angles: expected even steps over at least half a turn, got {len(angles)} views over "
            f"{math.degrees(float(angles.max() - angles.min())):.1f} degrees; give that part of the scan"
        )
    half = _spectrum(sinogram[:views])
    own, mirrored = (torch.fft.fft(x, n=2 * len(half), dim=0) for x in (half, half.conj()))
    mirrored = mirrored * torch.where(torch.arange(2 * len(half)) % 2 == 0, 1, -1)[:, None]  # half a turn later
    k = torch.fft.fftfreq(2 * len(half), 1 / (2 * len(half)), dtype=torch.float64).abs()[:, None]
    bins = sinogram.shape[-1]
    outside = k > 2 * math.pi * _frequencies(bins) * bins / 2 + 2  # the wedge has soft sides
    cross = (own.conj() * mirrored * outside).sum(0)
    power = ((own.abs() ** 2 + mirrored.abs() ** 2) * outside).sum(0)
    return _best_centre(cross / power.clamp(min=1e-12 * float(power.max())).sqrt(), bins)


def _check(sinogram: Tensor, angles: Tensor) -> None:
    if sinogram.ndim != 2 or angles.shape != sinogram.shape[:1] or len(angles) < 2:
        raise InputError(
            f"sinogram: expected (view, bin) with an angle for each view, got shape {tuple(sinogram.shape)} with "
            f"{tuple(angles.shape)} angles; give one slice"
        )


def _frequencies(bins: int) -> Tensor:
    return torch.fft.rfftfreq(2 * bins, dtype=torch.float64)


def _spectrum(sinogram: Tensor) -> Tensor:
    """(view, frequency); padded to twice the bins, so that shifts do not wrap around."""
    return torch.fft.rfft(sinogram.double(), n=2 * sinogram.shape[-1], dim=-1)


def _best_centre(cross: Tensor, bins: int) -> float:
    """The c in the middle half of the detector where Re sum_w cross(w) exp(-4 pi i w c) is smallest."""
    fine = 20  # steps in a bin; w = m / (2 bins) makes the sum a Fourier transform of length bins * fine
    costs = torch.fft.fft(cross, n=bins * fine).real
    first, last = fine * (bins // 4), fine * (3 * bins // 4)
    return (first + int(costs[first : last + 1].argmin())) / fine


# -- Rings ------------------------------------------------------------------------------------------------------------


def remove_rings(sinogram: Tensor, *, size: int = 11) -> Tensor:
    """Take out stripes that stay in one bin through the views, and would be rings in the image.

    The values of each bin are sorted; bins next to each other, which see about the same object, then differ row by row
    by their response alone. A running median over the bins evens that out, and every value goes back to its view. It
    rounds what the object itself has finer than the median: 0.1 to 0.7 % of the largest value for 5 to 21 of 320 bins.

    Parameters
    ----------
    sinogram : (..., view, bin) line integrals.
    size : odd number of bins of the median; stripes up to half of it go.

    Raises
    ------
    InputError
        If size is even or larger than the detector.

    References
    ----------
    Vo, Atwood & Drakopoulos, Opt Express 26, 28396 (2018), algorithm 3.
    """
    bins = sinogram.shape[-1]
    if size % 2 == 0 or not 0 < size <= bins:
        raise InputError(f"size: expected an odd number of bins, at most {bins}, got {size}")
    result = torch.empty_like(sinogram, memory_format=torch.contiguous_format)
    shape = (-1, *sinogram.shape[-2:])
    for image, target in zip(sinogram.reshape(shape), result.view(shape), strict=True):
        values, order = image.sort(dim=0)
        padded = torch.nn.functional.pad(values[None], (size // 2, size // 2), mode="reflect")[0]
        target.scatter_(0, order, padded.unfold(-1, size, 1).median(-1).values)
    return result


# -- Hounsfield units -------------------------------------------------------------------------------------------------


def to_hu(image: Tensor, water: float) -> Tensor:
    """Attenuation in 1/mm to Hounsfield units, 1000 (mu - water) / water: water 0, vacuum -1000.

    Raises
    ------
    InputError
        As `checked_water`.
    """
    return 1000 * (image / checked_water(water) - 1)


def from_hu(hu: Tensor, water: float) -> Tensor:
    """Hounsfield units to attenuation in 1/mm; below -1000 it is negative. Raises as `to_hu`."""
    return checked_water(water) * (1 + hu / 1000)


def checked_water(water: float) -> float:
    """The attenuation of water in 1/mm, as it is.

    Raises
    ------
    InputError
        If it is not between 0.005 and 0.2, about its values at 2 MeV and 14 keV.
    """
    if not 5e-3 < water < 0.2:
        raise InputError(f"water: expected an attenuation in 1/mm, such as 0.02, got {water:g}; is it in 1/cm or 1/m?")
    return water
