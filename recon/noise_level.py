"""The noise of the coils, from noise scans or from the data themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from operators.fourier import ifftc
from operators.masks import readout_axes

from .errors import InputError

# The covariance of n samples of c coils has eigenvalues off by factors of up to (1 +- sqrt(c / n))^2: 0.6 and 1.5.
_SAMPLES_PER_COIL = 20
# Air, in positions along the readout; lines needed to tell it from tissue.
_POSITIONS, _LINES = 4, 8
# Energy of inner over outer lines: near 1 in air, and above 15 in tissue. Ripples and ghosts of a bright object reach
# the air too, but with less than this part of the object's own ratio.
_AIR_RATIO, _AIR_PART = 4.0, 0.05
# Part of the samples (or of the lines) that counts as the outermost of k-space.
_OUTERMOST = 0.1


class NoiseEstimate(NamedTuple):
    """Noise of the coils.

    covariance : (coil, coil) complex Hermitian, for each real component: E[n n^H] = 2 covariance. Its diagonal holds
        the squared standard deviations of the real parts (and of the imaginary parts), in the units of k-space.
    source : how it was estimated, a sentence for the user.
    upper_bound : whether signal may be in it.
    """

    covariance: Tensor
    source: str
    upper_bound: bool = False


def noise_covariance(
    kspace: Tensor, mask: Tensor, *, noise: Tensor | None = None, readout_axis: int | None = None
) -> NoiseEstimate:
    """Covariance of the noise between coils, from the best source that there is.

    1. A noise scan.
    2. Air along the readout. An inverse FFT of complete readout lines leaves, for each position along the readout, its
       samples along the phase encoding. Where the object does not reach, inner ones hold no more energy than outer
       ones. The outer ones are used: they hold least of the ripples from the object's edges. Undersampling that keeps
       readout lines whole does not change what is found, except for its spread.
    3. Where lines are not whole or the object fills them: the smallest of robust estimates at the highest spatial
       frequencies (the outermost samples; the finest band along each axis, or all axes, with whole lines). Signal
       reaches there too: an upper bound.

    Nothing that was not sampled is looked at. In 2 and 3 outliers are discarded, see `robust_covariance`.

    Parameters
    ----------
    kspace : (..., coil, *mask.shape) complex, centred; leading axes (slices) are pooled.
    mask : (ky, kx) or (kz, ky, kx) bool; True where sampled.
    noise : (coil, sample) complex, a noise-only acquisition with the receiver bandwidth and gain of the scan.
    readout_axis : the frequency-encoding axis of k-space (negative). None looks for air along every axis with whole
        lines and takes the lowest level found.

    Raises
    ------
    InputError
        If shapes do not fit, if values are not finite, if a coil is zero throughout, or if too little was measured.

    References
    ----------
    Kellman and McVeigh, Magn Reson Med 54, 1439 (2005), noise scans and units; Rousseeuw and Van Driessen,
    Technometrics 41, 212 (1999), the robust covariance; Donoho and Johnstone, Biometrika 81, 425 (1994), finest band.
    """
    _check(kspace, mask, readout_axis)
    coils = kspace.shape[-mask.ndim - 1]
    if noise is not None:
        return NoiseEstimate(_of_noise_scan(noise, coils), f"noise from a noise scan of {noise.shape[1]} samples")

    kspace = kspace.reshape(-1, coils, *mask.shape).movedim(1, 0)  # (coil, slice, *shape)
    axes = list(range(-mask.ndim, 0)) if readout_axis is None else [readout_axis]
    air = [samples for axis in axes if (samples := _air(kspace, mask, axis)) is not None]
    if air:
        return NoiseEstimate(_smallest(air), "noise from the background along the readout")

    whole = readout_axes(mask)
    choices = {(), *((axis,) for axis in whole), tuple(whole)}
    bands = [band for axes in choices if (band := _finest_band(kspace, mask, axes)) is not None]
    if not bands:
        raise InputError(
            f"too few samples to estimate the noise of {coils} coils: expected {_SAMPLES_PER_COIL * coils} or more, "
            f"got {int(mask.sum())}; give a noise scan"
        )
    return NoiseEstimate(
        _smallest(bands),
        "noise from the highest spatial frequencies, an upper bound: no background along whole readout lines",
        upper_bound=True,
    )


def robust_covariance(samples: Tensor) -> Tensor:
    """Covariance of complex Gaussian noise, although up to half of the samples may hold signal as well.

    Concentration: the half of the samples with the smallest Mahalanobis distances gives the next covariance, from the
    median of each coil on; its scale is such that the median distance is that of Gaussian noise.

    Parameters
    ----------
    samples : (coil, sample) complex.

    Returns
    -------
    Tensor
        (coil, coil), for each real component.
    """
    from scipy.special import gammaincinv  # half a second to import

    data = samples.to(torch.complex128)
    covariance = torch.diag(data.abs().median(1).values.square()).to(data.dtype)
    for _ in range(10):
        distance = _mahalanobis(data, covariance)
        central = data[:, distance <= distance.median()]
        covariance = central @ central.mH / central.shape[1]
    # n^H covariance^-1 n follows chi^2 with 2 coils degrees of freedom.
    scale = _mahalanobis(data, covariance).median() / (2 * float(gammaincinv(len(data), 0.5)))
    return (scale * covariance).to(samples.dtype)


def _mahalanobis(samples: Tensor, covariance: Tensor) -> Tensor:
    """samples^H covariance^-1 samples, (sample,)."""
    factor = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(factor, samples, upper=False).abs().square().sum(0)


def _smallest(candidates: list[Tensor]) -> Tensor:
    """The robust covariance of lowest determinant among those of several sets of samples (coil, sample)."""
    return min(map(robust_covariance, candidates), key=lambda covariance: float(torch.linalg.slogdet(covariance)[1]))


def _of_noise_scan(noise: Tensor, coils: int) -> Tensor:
    if noise.ndim != 2 or noise.shape[0] != coils or not noise.is_complex():
        raise InputError(
            f"noise scan: expected complex ({coils} coils, samples) as in k-space, got {noise.dtype} of shape "
            f"{tuple(noise.shape)}; put its coils first, and take the scan that belongs to these data"
        )
    if not torch.isfinite(torch.view_as_real(noise)).all():
        raise InputError(
            "noise scan: expected finite values, got NaN or infinity; leave it out to estimate from the data"
        )
    if noise.shape[1] < _SAMPLES_PER_COIL * coils:
        raise InputError(
            f"noise scan: expected at least {_SAMPLES_PER_COIL * coils} samples for {coils} coils, "
            f"got {noise.shape[1]}; leave it out to estimate from the data"
        )
    _check_coils(noise, "noise scan")
    covariance: Tensor = torch.cov(noise).reshape(coils, coils) / 2  # of one coil torch gives a number
    return covariance


def _air(kspace: Tensor, mask: Tensor, axis: int) -> Tensor | None:
    """Samples (coil, sample) that hold noise only, from positions along the readout that the object does not reach."""
    mask = mask.movedim(axis, -1)
    read = mask.flatten(0, -2).any(0)  # an asymmetric echo leaves out the same samples of every line
    whole = (mask == read).all(-1)
    if read.double().mean() < 0.5 or whole.sum() < _LINES:
        return None
    outwards = _radius(whole.shape, mask.device)[whole].argsort()
    lines = kspace.movedim(axis, -1)[:, :, whole][:, :, outwards]  # (coil, slice, line, readout)

    taper = _taper(len(read), read.device) * read
    hybrid = ifftc(taper * torch.where(read, lines, 0), (-1,)) / taper.square().mean().sqrt()  # noise as in k-space
    inner, outer = (part.flatten(1, 2) for part in hybrid.tensor_split(2, dim=2))

    # Energy (coil, position); the median of outer lines is that of noise where there is noise only.
    outer_energy = outer.abs().square().median(1).values / math.log(2)
    inner_energy = inner.abs().square().mean(1)
    weight = 1 / outer_energy.quantile(0.1, dim=1, keepdim=True)  # coils of any gain count alike
    level = (weight * outer_energy).sum(0)
    ratio = (weight * inner_energy).sum(0) / level
    air = ratio < max(_AIR_RATIO, _AIR_PART * float(ratio.quantile(0.75)))
    samples = outer[..., air].flatten(1)
    enough = air.sum() >= _POSITIONS and samples.shape[1] >= _SAMPLES_PER_COIL * len(samples)
    return samples if enough else None


def _taper(n: int, device: torch.device) -> Tensor:
    """1 over the central half, falling to 0 as a cosine: the ripples of an edge fade with the distance cubed."""
    distance = (torch.arange(n, device=device) + 0.5) / n
    edge = torch.minimum(distance, 1 - distance)
    return torch.sin(2 * math.pi * edge.clamp(max=0.25)).square()


def _finest_band(kspace: Tensor, mask: Tensor, axes: tuple[int, ...]) -> Tensor | None:
    """Samples (coil, sample) farthest from the centre; along whole-line `axes` the outer half of k-space, in the image.

    That is the finest diagonal band of a Shannon wavelet: noise stays white, and signal gathers on a few edges.
    """
    for axis in axes:
        n = mask.shape[axis]
        mask = mask.narrow(axis, 0, 1)
        outer = torch.cat((kspace.narrow(axis, n - n // 4, n // 4), kspace.narrow(axis, 0, n // 4)), axis)
        kspace = torch.fft.ifft(outer, dim=axis, norm="ortho")
    mask = mask.squeeze(axes)
    lines = kspace.movedim(axes, tuple(range(-len(axes), 0)))[:, :, mask]  # (coil, slice, line, *position)
    coils, slices, count = lines.shape[:3]
    positions = lines.shape[3:].numel()
    count = max(math.ceil(_OUTERMOST * count), math.ceil(_SAMPLES_PER_COIL * coils / (slices * max(positions, 1))))
    if lines.shape[2] < count or positions == 0:
        return None
    outwards = _radius(mask.shape, mask.device)[mask].argsort()
    return lines[:, :, outwards[-count:]].flatten(1)


def _radius(shape: Sequence[int], device: torch.device) -> Tensor:
    """Distance from the origin of k-space, squared, 1 at the end of each axis."""
    squared = torch.zeros(tuple(shape), device=device)
    for axis, n in enumerate(shape):
        k = (torch.arange(n, device=device) - n // 2) / (n / 2)
        squared += k.square().reshape(-1, *[1] * (len(shape) - axis - 1))
    return squared


def _check(kspace: Tensor, mask: Tensor, readout_axis: int | None) -> None:
    if mask.dtype != torch.bool or not mask.any():
        raise InputError(f"mask: expected bool with at least one sample, got {mask.dtype}, {int(mask.sum())} sampled")
    if not kspace.is_complex() or kspace.ndim < mask.ndim + 1 or kspace.shape[-mask.ndim :] != mask.shape:
        raise InputError(
            f"expected complex k-space (..., coil, *{tuple(mask.shape)}) as the mask, got {kspace.dtype} of shape "
            f"{tuple(kspace.shape)}; give the mask of these data, one for all coils"
        )
    if readout_axis is not None and not -mask.ndim <= readout_axis < 0:
        raise InputError(f"readout_axis: expected {-mask.ndim} to -1, counted from the end, got {readout_axis}")
    samples = kspace.movedim(-mask.ndim - 1, 0)[..., mask].flatten(1)
    if not torch.isfinite(torch.view_as_real(samples)).all():
        raise InputError("k-space: expected finite samples, got NaN or infinity; repair or mask them out")
    _check_coils(samples, "k-space")


def _check_coils(samples: Tensor, name: str) -> None:
    """No coil (coil, sample) may be silent: it has no noise, so that its weight would be infinite."""
    silent = [coil for coil, values in enumerate(samples) if not values.any()]
    if len(silent) == len(samples):
        raise InputError(f"{name}: expected data, got zeros only; check that the file was exported completely")
    if silent:
        raise InputError(f"{name}: coils {silent} hold zeros only; leave them out")
