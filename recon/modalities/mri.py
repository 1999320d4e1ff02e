"""MRI on the line of `recon.pipeline`; see `recon.modalities.Modality`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from operators.masks import acceleration as acceleration_of
from operators.masks import calibration_region, mask_function
from priors.denoiser import Denoiser

from .. import datafit
from ..coverage import retrospective_coverage
from ..datafit import Withheld
from ..errors import InputError
from ..likelihood import Gaussian, Randn
from ..methods.zero_filled import zero_filled
from ..mri import MRIScan, PreparedMRI, likelihood
from ..mri import prepare as prepare_mri
from ..mri import undersample as undersample_mri
from ..noise_level import NoiseEstimate
from ..posterior import Coverage, magnitude
from ..residual_noise import scan_noise
from ..settings import Settings

NAME = "MRI"
SETTINGS = ("mask", "acceleration", "mask_options", "coils", "sets")
PRIOR = "brain"
UNIT = ""  # that of the receiver
COMPLEX = True
DATA = "kspace"
METHODS = ("zero-filled", "l1-wavelet", "dds")
FALLBACK = "l1-wavelet"
PARTS = ("random", "equispaced", "gaussian1d", "gaussian2d", "poisson", "radial")

__all__ = ["likelihood"]  # as it is


def read(scan: MRIScan, index: int, device: str) -> MRIScan:
    scan = scan[index : index + 1]
    noise = None if scan.noise is None else scan.noise.to(device)
    return replace(scan, kspace=torch.as_tensor(scan.kspace[:]).to(device), mask=scan.mask.to(device), noise=noise)


def adjusted(scan: MRIScan, settings: Settings) -> MRIScan:
    return scan


def missing(scan: MRIScan) -> str:
    return "" if scan.fully_sampled else f"it is undersampled already ({scan.mask_source})"


def undersampling(scan: MRIScan, kind: str, acceleration: float, options: dict[str, Any]) -> dict[str, Any]:
    return {"mask": kind, "acceleration": acceleration, "mask_options": options}


def choose_part(scan: MRIScan, settings: Settings) -> Tensor | None:
    """The mask that was asked for; lines are left out along a phase-encoding axis, never along the readout."""
    if settings.mask is None:
        return None
    pattern = mask_function(settings.mask)
    options = dict(settings.mask_options)
    if "axis" in inspect.signature(pattern).parameters:
        options["axis"] = -2 if scan.readout_axis == -1 else -1
    try:
        return pattern(scan.shape, settings.acceleration, seed=settings.seed, **options)
    except (ValueError, TypeError) as error:
        size = " x ".join(map(str, scan.shape))
        raise InputError(
            f"mask {settings.mask}: {error} (acceleration {settings.acceleration:g} of {size} k-space)"
        ) from error


def undersample(scan: MRIScan, part: Tensor, *, stream: tuple[int, ...]) -> MRIScan:
    return undersample_mri(scan, part.to(scan.mask.device))  # nothing is drawn


def acceleration(scan: MRIScan, part: Tensor | None) -> float:
    mask = scan.mask.cpu()
    return acceleration_of(mask if part is None else mask & part.cpu())


def describe(scan: MRIScan, part: Tensor | None) -> str:
    return f"true acceleration {acceleration(scan, part):.2f}"


def info(scan: MRIScan) -> dict[str, str]:
    calibration = [block.stop - block.start for block in calibration_region(scan.mask)]
    return {
        "k-space": f"{len(scan)} slices, {scan.coils} coils, {' x '.join(map(str, scan.shape))}",
        "sampled": f"{acceleration(scan, None):.2f}-fold accelerated, {scan.mask_source}",
        "calibration": " x ".join(map(str, calibration)),
        "image": " x ".join(map(str, scan.recon_shape or scan.shape)),
        "voxel": " x ".join(f"{size:g}" for size in scan.voxel_size) + " mm",
        "noise": scan_noise(scan).source,
        "reference": "none" if scan.reference is None else "in the file",
    }


def noise(scan: MRIScan) -> NoiseEstimate:
    return scan_noise(scan)


def prepare(scan: MRIScan, settings: Settings, noise: NoiseEstimate) -> PreparedMRI:
    return prepare_mri(scan, noise=noise, coils=settings.coils, sets=settings.sets)


def denoiser(denoiser: Denoiser, card: Mapping[str, Any], prepared: PreparedMRI) -> Denoiser:
    return denoiser  # units are the receiver's: priors are trained on images that are prepared likewise


def preview_name(scan: MRIScan) -> str:
    return "zero-filled"


def preview(prepared: PreparedMRI) -> Tensor:
    return magnitude(prepared.image(zero_filled(likelihood(prepared)))[0], ndim=prepared.mask.ndim)


def reference(scan: MRIScan, part: Tensor | None, settings: Settings, noise: NoiseEstimate) -> Tensor | None:
    """Of fully sampled data the combination of its coil images with maps of all the data; else that of the file."""
    if part is not None and scan.fully_sampled:
        return preview(prepare_mri(scan, noise=noise, sets=settings.sets))  # of all coils
    return None if scan.reference is None else torch.as_tensor(scan.reference[:])[0]


def describe_reference(scan: MRIScan, part: Tensor | None) -> str:
    retrospective = part is not None and scan.fully_sampled
    return "all coils of all data, combined with their maps" if retrospective else "in the file"


def water(scan: MRIScan) -> float | None:
    return None


def coverage(
    x: Tensor,
    prepared: PreparedMRI,
    given: MRIScan,
    scan: MRIScan,
    part: Tensor | None,
    settings: Settings,
    noise: NoiseEstimate,
    rng: Randn,
) -> Coverage | None:
    if part is None or not scan.fully_sampled:
        return None
    # Points leave no whole readout lines: their images keep the oversampled field of view, and so must that of all.
    scan = replace(scan, readout_axis=given.readout_axis)
    return retrospective_coverage(x, prepared, scan, noise=noise, rng=rng, sets=settings.sets)


def withhold(prepared: PreparedMRI, *, seed: int, fraction: float) -> tuple[PreparedMRI, Gaussian, Withheld]:
    """Single points of k-space; the maps come from the calibration region, of which nothing is withheld."""
    kept, withheld = datafit.withhold(prepared.mask, seed=seed, fraction=fraction)
    return _only(prepared, kept), likelihood(_only(prepared, withheld)), Withheld.in_kspace(withheld)


def _only(prepared: PreparedMRI, mask: Tensor) -> PreparedMRI:
    """The data as if only a part had been sampled; the maps stay."""
    return replace(prepared, mask=mask, kspace=prepared.kspace * mask, measured=prepared.measured * mask)
