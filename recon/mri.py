"""MRI: the scan as measured, its preparation, and its likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from operators.espirit import espirit
from operators.fourier import fftc, ifftc
from operators.masks import calibration_region, readout_axes
from operators.mri import sense

from .coils import (
    apply_coil_matrix,
    as_measured,
    geometric_compression,
    noise_factor,
    remove_readout_oversampling,
    svd_compression,
    whitener,
)
from .errors import InputError
from .likelihood import Gaussian
from .noise_level import NoiseEstimate, noise_covariance


class SliceArray(Protocol):
    """What a reader hands over: an array that is read slice by slice (a tensor, a memory map, an HDF5 dataset)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: slice, /) -> np.ndarray | Tensor: ...


@dataclass(frozen=True)
class MRIScan:
    """Cartesian k-space as measured, made by any reader.

    Parameters
    ----------
    kspace : (slice, coil, ky, kx) complex64, or (slice, coil, kz, ky, kx) for volumes; DC at index n // 2, zero where
        nothing was sampled. Read lazily: `scan[2:5]` holds those slices as a tensor.
    mask : (ky, kx) or (kz, ky, kx) bool; what was sampled.
    mask_source : where the mask comes from, in words ("mask of the file", "assumed from zeros ...").
    readout_axis : the frequency-encoding axis of k-space (negative), None if unknown.
    recon_shape : size of the image to crop to along the spatial axes (removes readout oversampling), None to keep all.
    voxel_size : mm along (z, y, x) after cropping.
    noise : (coil, sample) complex, a noise-only acquisition, if there is one.
    reference : (slice, y, x) magnitude image of the file's own reconstruction, if any.
    fully_sampled : whether the mask covers everything that the scanner could sample.
    name : what to call the scan in outputs.
    header : what else the file says, to be written back (XML header, attributes).
    notes : what was assumed while reading, in sentences for the user.
    """

    kspace: SliceArray
    mask: Tensor
    mask_source: str
    readout_axis: int | None = None
    recon_shape: tuple[int, ...] | None = None
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: Tensor | None = None
    reference: SliceArray | None = None
    fully_sampled: bool = False
    name: str = "scan"
    header: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of slices."""
        return self.kspace.shape[0]

    def __getitem__(self, index: slice) -> MRIScan:
        """The scan of some slices, read into memory."""
        reference = None if self.reference is None else torch.as_tensor(self.reference[index])
        return replace(self, kspace=torch.as_tensor(self.kspace[index]), reference=reference)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of k-space."""
        return tuple(self.mask.shape)

    @property
    def coils(self) -> int:
        return self.kspace.shape[1]


@dataclass(frozen=True)
class PreparedMRI:
    """A scan ready for reconstruction: y = A x + n with white noise n and images x whose bright tissue is about 1.

    Parameters
    ----------
    kspace : (slice, coil, ky, kx) complex; whitened, of unit noise per real component.
    mask : (ky, kx) bool; what was sampled.
    sens_maps : (slice, set, coil, y, x) complex; whitening and intensity scale are in them: A = sense(mask, sens_maps).
    scale : image in the units of the measured data = scale * x.
    crop : size of the final image along the spatial axes.
    measured : (slice, coil, ky, kx) complex; k-space before whitening and compression.
    notes : what was estimated and how, in sentences for the user.
    """

    kspace: Tensor
    mask: Tensor
    sens_maps: Tensor
    scale: float
    crop: tuple[int, ...]
    measured: Tensor
    notes: tuple[str, ...] = ()

    def image(self, x: Tensor) -> Tensor:
        """From x (..., y, x) to the units of the measured data, cropped to the final size."""
        return self.scale * centre(x, self.crop)


def centre(x: Tensor, shape: Sequence[int]) -> Tensor:
    """View of the central `shape` of the trailing axes; the origin n // 2 stays the origin."""
    for axis, size in zip(range(-len(shape), 0), shape, strict=True):
        x = x.narrow(axis, x.shape[axis] // 2 - size // 2, size)
    return x


def undersample(scan: MRIScan, mask: Tensor) -> MRIScan:
    """The scan as if only `mask` had been sampled.

    Raises
    ------
    InputError
        If the mask has another shape than k-space, or nothing is left.
    """
    if tuple(mask.shape) != scan.shape:
        raise InputError(f"mask: expected shape {scan.shape} as k-space has, got {tuple(mask.shape)}")
    mask = mask & scan.mask
    if not bool(mask.any()):
        raise InputError("mask: no sample is left; lower the acceleration")
    whole_lines = scan.readout_axis in readout_axes(mask)
    return replace(
        scan,
        kspace=torch.as_tensor(scan.kspace[:]) * mask,
        mask=mask,
        mask_source="undersampled on request",
        readout_axis=scan.readout_axis if whole_lines else None,
        fully_sampled=False,
    )


def noise_of(scan: MRIScan) -> NoiseEstimate:
    """Noise covariance of a scan's coils, from its middle slice; see `recon.noise_level.noise_covariance`."""
    middle = len(scan) // 2
    kspace = torch.as_tensor(scan.kspace[middle : middle + 1])
    return noise_covariance(kspace, scan.mask, noise=scan.noise, readout_axis=scan.readout_axis)


def prepare(
    scan: MRIScan, *, noise: NoiseEstimate | None = None, coils: int | None = None, sets: int = 1, crop: float = 0.95
) -> PreparedMRI:
    """Whiten, compress the coils, remove readout oversampling, estimate the maps, fix the intensity scale.

    Parameters
    ----------
    scan : its slices are read into memory.
    noise : covariance between the coils; estimated from these slices by default.
    coils : virtual coils to compress to, for each position along the readout where its lines are whole; None keeps all.
    sets : ESPIRiT map sets; 2 where the field of view is smaller than the object.
    crop : ESPIRiT eigenvalue below which a pixel holds no signal.

    Raises
    ------
    InputError
        If there are fewer coils than asked for, or no calibration region.
    """
    kspace = torch.as_tensor(scan.kspace[:])
    coil_axis, positions = -len(scan.shape) - 1, None
    if coils is not None and not 1 <= coils <= scan.coils:
        raise InputError(f"coils: expected 1 to {scan.coils}, as the scan has, got {coils}")
    if noise is None:
        noise = noise_of(scan)
    factor = noise_factor(noise.covariance)
    crop_to = tuple(min(n, m) for n, m in zip(scan.recon_shape or scan.shape, scan.shape, strict=True))
    scale = intensity_scale(kspace, crop_to)
    measured, mask = _crop_readout(kspace, scan)
    kspace = apply_coil_matrix(whitener(noise.covariance), measured, coil_axis=coil_axis)
    if coils is not None and coils < scan.coils:
        positions = scan.readout_axis if scan.readout_axis in readout_axes(mask) else None
        kspace, compression = _compress(kspace, mask, coils, readout_axis=positions)
        factor = factor @ compression.mH
    maps = _sensitivities(_calibration(kspace, mask), mask.shape, sets=sets, crop=crop)
    maps = scale * as_measured(maps, factor, _calibration(measured, mask), coil_axis=coil_axis, axis=positions)
    return PreparedMRI(
        kspace=kspace,
        mask=mask,
        sens_maps=maps,
        scale=scale,
        crop=crop_to,
        measured=measured,
        notes=(f"sampled: {scan.mask_source}", noise.source, *scan.notes),
    )


def likelihood(prepared: PreparedMRI) -> Gaussian:
    """Gaussian likelihood of the images (slice, set, y, x)."""
    return Gaussian(sense(prepared.mask, prepared.sens_maps), prepared.kspace)


# Samples across the final image's own k-space: the narrowest fully sampled centre that masks leave, so that scales from
# it do not depend on the mask.
_SCALE_WIDTH = 8
# 99th percentile of the magnitude over that of the image from the centre alone, median of head images.
_SCALE_FACTOR = 1.6


def intensity_scale(kspace: Tensor, shape: Sequence[int]) -> float:
    """About the 99th percentile of the magnitude image, from the centre of k-space alone.

    The centre is that of 8 samples along each axis of the final image. Where the field of view is larger than that
    image (readout oversampling) these are more samples in as many cycles, and what is cropped does not count.

    Parameters
    ----------
    kspace : (slice, coil, *spatial) complex, as measured.
    shape : size of the final image, within k-space.

    Raises
    ------
    InputError
        If the centre of k-space is zero.
    """
    axes, sizes = tuple(range(-len(shape), 0)), kspace.shape[-len(shape) :]
    block = tuple(min(n, round(_SCALE_WIDTH * n / m)) for n, m in zip(sizes, shape, strict=True))
    low = torch.zeros_like(kspace)
    centre(low, block).copy_(centre(kspace, block))
    image = centre(torch.linalg.vector_norm(ifftc(low, axes), dim=-len(shape) - 1), shape)
    scale = _SCALE_FACTOR * float(torch.quantile(image.flatten()[:: max(1, image.numel() // 2**20)], 0.99))
    if not scale > 0:
        raise InputError("k-space: expected signal at its centre, got zeros; is the origin at index n // 2?")
    return scale


def _crop_readout(kspace: Tensor, scan: MRIScan) -> tuple[Tensor, Tensor]:
    """Drop the oversampled part of the field of view along the readout."""
    axis = scan.readout_axis
    if axis is None or scan.recon_shape is None or scan.recon_shape[axis] >= scan.shape[axis]:
        return kspace, scan.mask
    size = scan.recon_shape[axis]
    return remove_readout_oversampling(kspace, readout_axis=axis, size=size), scan.mask.narrow(axis, 0, size)


def _compress(kspace: Tensor, mask: Tensor, coils: int, *, readout_axis: int | None) -> tuple[Tensor, Tensor]:
    """K-space of virtual coils and their matrix, which is one for each position along the readout, if there is one."""
    coil_axis = -mask.ndim - 1
    if readout_axis is None:
        matrix = svd_compression(kspace, coils, coil_axis=coil_axis)
        return apply_coil_matrix(matrix, kspace, coil_axis=coil_axis), matrix
    matrix = geometric_compression(kspace, mask, coils, readout_axis=readout_axis)
    lines = ifftc(kspace, (readout_axis,))
    return fftc(apply_coil_matrix(matrix, lines, coil_axis=coil_axis, axis=readout_axis), (readout_axis,)), matrix


# Calibration samples used along each axis where there are more: more of them cost time and change little.
_CALIBRATION_WIDTH = 24


def _calibration(kspace: Tensor, mask: Tensor) -> Tensor:
    """The fully sampled centre of k-space, of limited width."""
    region = calibration_region(mask, longest=_CALIBRATION_WIDTH)
    for axis, block in zip(range(-mask.ndim, 0), region, strict=True):
        kspace = kspace.narrow(axis, block.start, block.stop - block.start)
    return kspace


def _sensitivities(calibration: Tensor, shape: Sequence[int], *, sets: int, crop: float) -> Tensor:
    """ESPIRiT maps (slice, set, coil, *spatial) of whitened data; one coil sees everything alike."""
    slices, coils = calibration.shape[:2]
    if coils > 1:
        try:
            return espirit(calibration, shape, sets=sets, crop=crop).maps
        except ValueError as error:
            raise InputError(f"sensitivity maps: {error}") from error
    if sets > 1:
        raise InputError(f"sets: one coil has one map set, got {sets}")
    return calibration.new_ones(slices, 1, 1, *shape)
