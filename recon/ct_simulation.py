"""Scans that were never measured: less dose from a scan, and a scan from an image, without inverting one's projector.

Counts in a bin: N ~ Poisson(photons * exp(-line integral)) + electronic noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from operators.ct import XRay
from operators.geometry import FanBeam, Geometry, Grid, ParallelBeam, ViewVectors

from .ct import CTScan, NoiseLevel, noise_of
from .errors import InputError
from .projections import from_hu, line_integrals

WATER = 0.0206
"""Attenuation of water at 60 keV in 1/mm (NIST: 0.2059 cm^2/g), about what 120 kV has in effect."""

Seed = int | Sequence[int]


def photon_counts(line_integrals: Tensor, photons: float | Tensor, *, seed: Seed, electronic: float = 0.0) -> Tensor:
    """Counts that line integrals lead to, one realisation: Poisson(photons exp(-p)) + Normal(0, electronic^2).

    Parameters
    ----------
    line_integrals : any shape.
    photons : without object, in each bin; broadcasts.
    seed : names the realisation; the same on every device.
    electronic : standard deviation in photons; counts may then be negative.

    Raises
    ------
    InputError
        If photons are not above 0 and at most 1e18 (whole numbers end there), electronic is negative, or a seed.
    """
    level = _checked_photons(photons, electronic)
    rng, expected = _generator(seed), level * torch.exp(-line_integrals.double().cpu())
    counts = rng.poisson(expected.numpy()).astype(np.float64)
    if electronic > 0:
        counts += electronic * rng.standard_normal(counts.shape)
    return torch.from_numpy(counts).to(line_integrals)


def _checked_photons(photons: float | Tensor, electronic: float) -> Tensor:
    level = torch.as_tensor(photons, dtype=torch.float64)
    wrong = level[~((level > 0) & (level <= 1e18))]
    if len(wrong):
        raise InputError(f"photons: expected a number above 0, at most 1e18, got {float(wrong[0]):g}")
    if not 0 <= electronic < math.inf:
        raise InputError(f"electronic: expected a standard deviation in photons, 0 or more, got {electronic:g}")
    return level


def thin(counts: Tensor, fraction: float, *, seed: Seed, gain: float = 1.0) -> Tensor:
    """Counts as at a fraction of the dose: each photon stays with that probability.

    N photons that are Poisson, thinned, are Poisson of `fraction` times the mean: exact where counts / gain are whole
    numbers. Where they are not (a detector that integrates energy), it is the normal law of the same mean and variance,
    fraction N + sqrt(fraction (1 - fraction) N) n.

    Parameters
    ----------
    counts : any shape, without background; those that are not above 0 are scaled alone.
    fraction : of the dose, above 0, at most 1.
    gain : counts for each photon.

    Raises
    ------
    InputError
        If fraction is not between 0 and 1, or gain not positive.
    """
    if not 0 < fraction <= 1 or not gain > 0:
        raise InputError(f"expected 0 < fraction <= 1 and gain > 0, got {fraction:g} and {gain:g}")
    rng, photons = _generator(seed), counts.double().cpu().numpy() / gain
    if np.array_equal(photons, np.rint(photons)) and photons.min() >= 0:
        left = rng.binomial(photons.astype(np.int64), fraction).astype(np.float64)
    else:
        spread = np.sqrt(fraction * (1 - fraction) * np.maximum(photons, 0))
        left = fraction * photons + spread * rng.standard_normal(photons.shape)
    return torch.from_numpy(gain * left).to(counts)


def low_dose(scan: CTScan, fraction: float, *, seed: Seed, noise: NoiseLevel | None = None) -> CTScan:
    """The scan as at a fraction of its dose, tube current or time.

    Counts are thinned above their darks, the mean of the flats is scaled, and darks stay. Line integrals become counts
    first, photons exp(-p) of them, and line integrals again. What noise the scan has stays in: the result is that of a
    scan at `fraction` of its own photons. Electronic noise, which is the same at every dose, is filled up to what the
    detector has.

    Parameters
    ----------
    scan : its slices are read into memory.
    noise : of the scan; found from these slices by default, see `noise_of`.

    Raises
    ------
    InputError
        If fraction is not above 0 and at most 1, or the scan's photons cannot be found.
    """
    projections, seeds = torch.as_tensor(scan.projections[:]), _seeds(seed)
    level, source, electronic = noise_of(scan) if noise is None else noise  # photons a count, or without object
    note = f"Simulated at {fraction:g} of the dose; all of it: {source}."
    missing = electronic * math.sqrt(max(0.0, 1 - fraction**2))
    extra = missing * torch.from_numpy(_generator((*seeds, 1)).standard_normal(projections.shape)).to(projections)
    if not scan.is_counts:
        counts = thin(level * torch.exp(-projections), fraction, seed=seeds) + extra
        blank = torch.full_like(projections[:1, 0].expand(len(projections), -1), fraction * level)
        low = line_integrals(counts, blank[None])
        return replace(scan, projections=low.values, photons=fraction * level, notes=(*scan.notes, note, *low.notes))
    if scan.flats is None:
        raise InputError("scan: expected flats with counts, got none")
    dark = torch.zeros_like(projections[:, 0]) if scan.darks is None else scan.darks.mean(0)
    left = thin(projections - dark[:, None], fraction, seed=seeds, gain=1 / level) + extra / level
    flats = dark + fraction * (scan.flats - dark)
    return replace(scan, projections=dark[:, None] + left, flats=flats, gain=1 / level, notes=(*scan.notes, note))


def simulate(
    hu: Tensor,
    geometry: Geometry,
    grid: Grid,
    *,
    photons: float,
    seed: Seed,
    electronic: float = 0.0,
    water: float = WATER,
    sub_bins: int = 4,
    sub_views: int = 1,
    name: str = "simulated",
) -> CTScan:
    """A scan of an image, such as a slice of a CT, by a finer model than any reconstruction here uses.

    The object is the image on pixels at most half as large as those of `grid`, every bin is a bundle of `sub_bins` rays
    across its width (a strip) and every view a bundle of `sub_views` angles across its step (the gantry does not
    stop). Their intensities, not their line integrals, are averaged, as in a detector; then photons are counted.

    Parameters
    ----------
    hu : (slice, y, x) Hounsfield units of an image that covers the same field as `grid`, with a whole number of its
        pixels in each pixel of grid along both axes. Where that is one, pixels are halved by linear interpolation.
        What is below -1000 (vacuum) becomes -1000, and is counted in the notes.
    geometry, grid : of the scan, and of the image to reconstruct.
    photons : in each bin without object.
    electronic : standard deviation of the detector's noise, in photons.
    water : 1/mm.
    seed : of the noise; slice i uses the stream (seed, i).

    Returns
    -------
    CTScan of line integrals; its reference is the object in 1/mm, averaged over the pixels of grid.

    Raises
    ------
    InputError
        If shapes do not fit, or a number is out of its range.
    """
    ratio, seeds = _ratio(hu, grid), _seeds(seed)
    _checked_photons(photons, electronic)
    if sub_bins < 1 or sub_views < 1:
        raise InputError(f"expected sub_bins and sub_views of at least 1, got {sub_bins} and {sub_views}")
    notes = [
        f"Simulated from an image in HU, with water at {water:g} 1/mm, {photons:g} photons a bin and electronic noise "
        f"of {electronic:g}; strips of {sub_bins} rays and {sub_views} angles a view, on a finer grid."
    ]
    if below := int((hu < -1000).sum()):
        notes.append(f"{below} of {hu.numel()} pixels were below -1000 HU and were taken as -1000.")
    image = from_hu(hu.float().clamp(min=-1000), water)
    if ratio == (1, 1):
        image = torch.nn.functional.interpolate(image[:, None], scale_factor=2, mode="bilinear")[:, 0]
        ratio = (2, 2)
    sizes = tuple(size / n for size, n in zip(grid.pixel_sizes, ratio, strict=True))
    fine = Grid((image.shape[-2], image.shape[-1]), (sizes[0], sizes[1]), grid.centre)
    clean = strip_integrals(image, geometry, fine, sub_bins=sub_bins, sub_views=sub_views)
    counts = torch.stack(
        [photon_counts(p, photons, seed=(*seeds, i), electronic=electronic) for i, p in enumerate(clean)]
    )
    found = line_integrals(counts, torch.full((1, len(counts), geometry.bins), photons))
    return CTScan(
        projections=found.values,
        geometry=geometry,
        grid=grid,
        photons=photons,
        electronic=electronic,
        water=water,
        reference=torch.nn.functional.avg_pool2d(image[:, None], ratio)[:, 0],
        name=name,
        notes=(*notes, *found.notes),
    )


def simulate_series(
    path: str | Path,
    *,
    shape: tuple[int, int],
    slices: tuple[int, int] | None = None,
    series: str | None = None,
    views: int = 720,
    photons: float = 2e5,
    electronic: float = 10.0,
    seed: Seed = 0,
) -> CTScan:
    """A scan of a DICOM series by a clinical fan, with three angles to a view; parameters as in `simulate`.

    Parameters
    ----------
    path : its folder or tar archive. A gap between slices is no matter: each is an object for itself.
    shape : (y, x) of the image to reconstruct, over the series' field of view.
    slices : first and one past the last, by position; None for all.
    series : its SeriesInstanceUID, where the folder holds several.

    Raises
    ------
    MissingFileError, InputError
        As `read_images` and `simulate`; if there are no such slices.
    """
    from .io.dicom import read_images

    images = read_images(path, series=series, gaps=True)
    first, last = slices or (0, len(images.hu))
    if not 0 <= first < last <= len(images.hu):
        raise InputError(f"slices: expected FIRST:LAST within 0:{len(images.hu)}, got {first}:{last}")
    if min(shape) < 1:
        raise InputError(f"shape: expected (y, x) of at least 1 pixel, got {shape}")
    y, x = (n * size / m for n, size, m in zip(images.hu.shape[1:], images.pixel_size, shape, strict=True))
    grid, name = Grid(shape, (y, x)), Path(path).name.split(".")[0]
    scan = simulate(
        images.hu[first:last],
        clinical_fan(grid, views=views),
        grid,
        photons=photons,
        seed=seed,
        electronic=electronic,
        sub_views=3 if views > 1 else 1,
        name=name,
    )
    steps = images.positions[first:last].diff()
    spacing = float(steps.median()) if len(steps) else float(images.thickness[first])
    return replace(scan, slice_spacing=spacing or 1.0, header=images.header, notes=(*scan.notes, *images.notes))


def clinical_fan(grid: Grid, *, views: int) -> FanBeam:
    """A fan as in a clinical scanner, over a turn, which sees the circle about the grid's shorter side whole.

    The source is 541 mm from the axis and 949 mm from its curved detector; bins are 0.7 pixels at the axis, and the
    detector is shifted by a quarter of one, so that opposite views interleave.

    Raises
    ------
    InputError
        If the source is inside the circle, or views not positive.
    """
    source_to_axis, source_to_detector = 541.0, 949.0
    radius = 1.02 * min(n * size for n, size in zip(grid.shape, grid.pixel_sizes, strict=True)) / 2
    if views < 1:
        raise InputError(f"views: expected at least 1, got {views}")
    if not radius < 0.9 * source_to_axis:
        raise InputError(
            f"image: expected a radius below {0.9 * source_to_axis:.0f} mm, to stay clear of the source, got "
            f"{radius:.0f} mm; make it or its pixels smaller"
        )
    size = 0.7 * min(grid.pixel_sizes) * source_to_detector / source_to_axis
    bins = 2 * math.ceil(source_to_detector * math.asin(radius / source_to_axis) / size)
    angles = torch.arange(views, dtype=torch.float64) * 2 * math.pi / views
    return FanBeam(angles, bins, size, source_to_axis, source_to_detector, curved=True, detector_offset=size / 4)


def strip_integrals(image: Tensor, geometry: Geometry, grid: Grid, *, sub_bins: int = 4, sub_views: int = 1) -> Tensor:
    """-log of the mean intensity over each bin's width and each view's step, without noise.

    Parameters
    ----------
    image : (slice, y, x) 1/mm on grid.

    Returns
    -------
    (slice, view, bin).

    Raises
    ------
    InputError
        If sub_views is above 1 and the geometry has no angles.
    """
    intensity = torch.zeros(())
    for angle in _offsets(geometry, sub_views):
        projector = XRay(_refined(geometry, sub_bins, angle), grid, dtype=image.dtype)
        intensity = intensity + torch.exp(-projector(image)).unflatten(-1, (-1, sub_bins)).mean(-1) / sub_views
    return -torch.log(intensity)


def _offsets(geometry: Geometry, sub_views: int) -> Tensor:
    """Angles about that of a view; evenly over a step."""
    if sub_views == 1:
        return torch.zeros(1, dtype=torch.float64)
    if not isinstance(geometry, ParallelBeam | FanBeam) or geometry.views < 2:
        raise InputError(f"sub_views: expected 1 with {type(geometry).__name__} of {geometry.views} views: no step")
    step = float(geometry.angles.double().diff().median())
    return (torch.arange(sub_views, dtype=torch.float64) - (sub_views - 1) / 2) * step / sub_views


def _refined(geometry: Geometry, parts: int, angle: Tensor) -> Geometry:
    """Every bin in parts, and all angles moved."""
    if isinstance(geometry, ParallelBeam | FanBeam):
        angles = geometry.angles.double() + angle
        return replace(geometry, angles=angles, bins=parts * geometry.bins, bin_size=geometry.bin_size / parts)
    if isinstance(geometry, ViewVectors):
        return replace(geometry, bin_step=geometry.bin_step / parts, bins=parts * geometry.bins)
    raise InputError(f"geometry: expected a parallel or fan beam or vectors, got {type(geometry).__name__}")


def _ratio(hu: Tensor, grid: Grid) -> tuple[int, int]:
    """Pixels of the image in one of the grid, along (y, x)."""
    if hu.ndim != 3 or hu.is_complex() or not bool(hu.isfinite().all()):
        raise InputError(f"hu: expected a finite image (slice, y, x), got {hu.dtype} of shape {tuple(hu.shape)}")
    y, x = (n // m for n, m in zip(hu.shape[1:], grid.shape, strict=True))
    if (y * grid.shape[0], x * grid.shape[1]) != tuple(hu.shape[1:]):
        raise InputError(
            f"grid: expected a shape that divides that of the image, {tuple(hu.shape[1:])}, got {tuple(grid.shape)}; "
            "pad or crop the image"
        )
    if (y == 1) != (x == 1):
        raise InputError(
            f"grid: expected a shape coarser than that of the image, {tuple(hu.shape[1:])}, along both axes or along "
            f"none, got {tuple(grid.shape)}; change it along the other axis as well"
        )
    return y, x


def _seeds(seed: Seed) -> tuple[int, ...]:
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    if any(part < 0 for part in seeds):
        raise InputError(f"seed: expected 0 or more, got {seed}")
    return seeds


def _generator(seed: Seed) -> np.random.Generator:
    seeds = _seeds(seed)
    # The length goes first, because SeedSequence pads with zeros: seed 0 and seed (0, 0) would be the same.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((len(seeds), *seeds))))
