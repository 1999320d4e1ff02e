"""CT on the line of `recon.pipeline`; see `recon.modalities.Modality`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from operators.fbp import filtered_back_projection
from operators.geometry import FanBeam, Geometry, ParallelBeam
from priors.denoiser import Denoiser, affine

from ..ct import CTScan, NoiseLevel, PreparedCT, likelihood, noise_of
from ..ct import prepare as prepare_ct
from ..ct_undersampling import Part, choose_views, turned
from ..ct_undersampling import undersample as undersample_ct
from ..datafit import Withheld
from ..errors import InputError
from ..likelihood import Gaussian, Randn
from ..methods.fbp import fbp
from ..methods.sart import sirt
from ..metrics import object_mask
from ..posterior import Coverage, predictive_coverage
from ..rotation_centre import centred
from ..settings import Settings

NAME = "CT"
SETTINGS = ("views", "angular_range", "dose", "rings", "rotation_centre")
PRIOR = "head-ct"
UNIT = "1/mm"
COMPLEX = False
DATA = "projections"
METHODS = ("fbp", "tv", "dds")
FALLBACK = "tv"
PARTS = ("views", "range", "dose")

__all__ = ["likelihood"]  # as it is


def read(scan: CTScan, index: int, device: str) -> CTScan:
    scan = scan[index : index + 1]
    flats, darks = (None if frames is None else frames.to(device) for frames in (scan.flats, scan.darks))
    return replace(scan, projections=torch.as_tensor(scan.projections[:]).to(device), flats=flats, darks=darks)


def adjusted(scan: CTScan, settings: Settings) -> CTScan:
    centre, rings, bins = settings.rotation_centre, settings.rings, scan.geometry.bins
    if rings is not None and rings > bins:
        raise InputError(f"rings: expected at most the {bins} bins of the detector, got {rings}")
    return scan if centre is None else centred(scan, None if centre == "find" else float(centre))


def missing(scan: CTScan) -> str:
    return ""


def undersampling(scan: CTScan, kind: str, acceleration: float, options: dict[str, Any]) -> dict[str, Any]:
    """Of `views` evenly fewer, of `range` those of the first part of the turn, of `dose` less."""
    if options:
        raise InputError(f"{', '.join(options)}: is for MRI masks, and {scan.name} is a scan of CT; leave it out")
    if not acceleration >= 1:
        raise InputError(f"accelerations: expected at least 1, got {acceleration:g}")
    if kind == "views":
        return {"views": max(1, round(scan.geometry.views / acceleration))}
    if kind == "range":
        return {"angular_range": (0.0, float(turned(scan.geometry).max()) / acceleration)}
    if kind == "dose":
        return {"dose": 1 / acceleration}
    raise InputError(f"masks: expected {', '.join(PARTS)} for {scan.name}, a scan of CT, got {kind}")


def choose_part(scan: CTScan, settings: Settings) -> Part | None:
    if settings.views is None and settings.angular_range is None and settings.dose is None:
        return None
    views = choose_views(scan.geometry, views=settings.views, angular_range=settings.angular_range)
    return Part(views) if settings.dose is None else Part(views, settings.dose, noise_of(scan))


def undersample(scan: CTScan, part: Part, *, stream: tuple[int, ...]) -> CTScan:
    return undersample_ct(scan, part, stream=stream)


def acceleration(scan: CTScan, part: Part | None) -> float:
    """Photons of all views over those that are given."""
    return 1.0 if part is None else scan.geometry.views / len(part.views) / part.dose


def describe(scan: CTScan, part: Part | None) -> str:
    views = scan.geometry.views
    if part is None:
        return f"all of {views} views"
    return f"{len(part.views)} of {views} views" + (f", {part.dose:g} of the dose" if part.dose != 1 else "")


def info(scan: CTScan) -> dict[str, str]:
    geometry, sizes = scan.geometry, scan.grid.pixel_sizes
    turn, beam = float(turned(geometry).max()), type(geometry).__name__
    if isinstance(geometry, ParallelBeam):
        beam += f" about bin {(geometry.bins - 1) / 2 - geometry.detector_offset / geometry.bin_size:.2f}"
    return {
        "projections": f"{len(scan)} slices, {geometry.views} views over {turn:.4g} degrees, {geometry.bins} bins",
        "beam": beam + (", counts" if scan.is_counts else ", line integrals"),
        "image": " x ".join(map(str, scan.shape)),
        "voxel": " x ".join(f"{size:.4g}" for size in (scan.slice_spacing, *sizes)) + " mm",
        "noise": noise_of(scan).source,
        "water": "not known, no HU" if scan.water is None else f"{scan.water:g} 1/mm",
        "reference": "none" if scan.reference is None else "in the file",
    }


def noise(scan: CTScan) -> NoiseLevel:
    return noise_of(scan)


def prepare(scan: CTScan, settings: Settings, noise: NoiseLevel) -> PreparedCT:
    return prepare_ct(scan, noise=noise, rings=settings.rings)


def denoiser(denoiser: Denoiser, card: Mapping[str, Any], prepared: PreparedCT) -> Denoiser:
    """Priors of CT are trained on attenuation over the `scale_per_mm` of their card."""
    return affine(denoiser, prepared.scale / card["scale_per_mm"]) if "scale_per_mm" in card else denoiser


def preview_name(scan: CTScan) -> str:
    return "FBP" if _invertible(scan.geometry) else "SIRT"


def _invertible(geometry: Geometry) -> bool:
    """Whether there is a formula for the inverse."""
    return isinstance(geometry, ParallelBeam | FanBeam)


def preview(prepared: PreparedCT) -> Tensor:
    """By filtered back-projection with its sharpest filter, in 1/mm; by SIRT where a geometry has no such formula."""
    if not _invertible(prepared.geometry):
        return prepared.image(sirt(prepared))[0]
    try:
        return prepared.image(fbp(prepared))[0]
    except ValueError as error:
        raise InputError(str(error)) from error


def reference(scan: CTScan, part: Part | None, settings: Settings, noise: NoiseLevel) -> Tensor | None:
    """The image of the file, which shows the object where a scan is simulated; else the preview of all views at full
    dose, where less is given."""
    if scan.reference is not None:
        return torch.as_tensor(scan.reference[:])[0]
    return None if part is None else preview(prepare_ct(scan, rings=settings.rings))


def describe_reference(scan: CTScan, part: Part | None) -> str:
    if scan.reference is not None:
        return "in the file"
    return f"{'filtered back-projection' if _invertible(scan.geometry) else 'SIRT'} of all views at full dose"


def water(scan: CTScan) -> float | None:
    return scan.water


def coverage(
    x: Tensor,
    prepared: PreparedCT,
    given: CTScan,
    scan: CTScan,
    part: Part | None,
    settings: Settings,
    noise: NoiseLevel,
    rng: Randn,
) -> Coverage | None:
    """Of the filtered back-projection of all views, whose noise the draws are given.

    Views that were given at full dose are held as they were measured; at a lower dose none is, though its noise is a
    part of that of the reference: intervals are then a little too wide.
    """
    if part is None:
        return None
    if not _invertible(scan.geometry):
        raise InputError("the reference, by SIRT, is not linear in the data")
    full = prepare_ct(scan, rings=settings.rings)
    root = full.weights.sqrt()
    acquired = None
    if part.dose == 1:
        acquired = torch.zeros(scan.geometry.views, 1, dtype=torch.bool, device=x.device)
        acquired[part.views] = True
    everything = likelihood(full)

    def combine(data: Tensor) -> Tensor:
        line_integrals = torch.where(root > 0, data / root, full.line_integrals)
        return filtered_back_projection(line_integrals, full.geometry, full.grid).squeeze(-3)  # the slice

    return predictive_coverage(
        x * (prepared.scale / full.scale),
        everything,
        object_mask(combine(everything.y)),
        rng=rng,
        acquired=acquired,
        combine=combine,
    )


# A view is withheld in segments, so that a prior must know what lies between two views.
_SEGMENTS = 8


def withhold(prepared: PreparedCT, *, seed: int, fraction: float) -> tuple[PreparedCT, Gaussian, Withheld]:
    """Segments of the views, each an eighth of the detector."""
    measured = (prepared.weights > 0).any(0)
    views, bins = measured.shape
    segment = torch.arange(bins, device=measured.device) * _SEGMENTS // bins
    count = round(fraction * views * _SEGMENTS)
    if count < 1:
        raise InputError(f"cannot withhold {fraction:.1%} of {views} views in {_SEGMENTS} segments; take more views")
    order = torch.randperm(views * _SEGMENTS, generator=torch.Generator().manual_seed(seed))[:count]
    chosen = torch.zeros(views * _SEGMENTS, dtype=torch.bool)
    chosen[order] = True
    withheld = chosen.reshape(views, _SEGMENTS).to(measured.device)[:, segment] & measured
    if not bool(withheld.any()):
        raise InputError("cannot withhold rays: those chosen were not measured")
    view, position = withheld.nonzero().unbind(1)
    where = Withheld(
        mask=withheld,
        radius=(position - (bins - 1) / 2).abs(),
        angle=prepared.geometry.view_angles().to(measured.device)[view],
        group=view * _SEGMENTS + segment[position],
        what="segments of views",
    )
    return _only(prepared, measured & ~withheld), likelihood(_only(prepared, withheld)), where


def _only(prepared: PreparedCT, rays: Tensor) -> PreparedCT:
    """The data as if only some rays had been measured."""
    counts, blank, background = (
        None if part is None else part * rays for part in (prepared.counts, prepared.blank, prepared.background)
    )
    return replace(
        prepared,
        line_integrals=prepared.line_integrals * rays,
        weights=prepared.weights * rays,
        counts=counts,
        blank=blank,
        background=background,
    )
