"""Distances between a reconstruction and its reference.

Two families that are never mixed: `psnr`, `ssim`, `nmse` follow the fastMRI definitions (no scaling, whole image);
`psnr_scaled`, `ssim_scaled`, `nmse_scaled` fit one scale factor and look only inside an object mask.
All work in float64 on magnitude images and return a number.

References
----------
Knoll et al., Magn Reson Med 84, 3054 (2020) (the fastMRI definitions).
Wang et al., IEEE Trans Image Process 13, 600 (2004) (SSIM).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .errors import InputError


def psnr(reference: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(max(r)^2 / mean((r - m)^2)), over the whole volume.

    Parameters
    ----------
    reference, image : (..., y, x) real; r and m. The maximum is that of the volume, not of a slice.

    Returns
    -------
    float, infinite for equal images.

    Raises
    ------
    ValueError
        If shapes differ, an image is complex or not finite, or the reference is zero.
    """
    r, m = _pair(reference, image)
    return _decibel(float(r.max()) ** 2, float((r - m).square().mean()))


def nmse(reference: Tensor, image: Tensor) -> float:
    """Normalised mean squared error ||r - m||^2 / ||r||^2 over the whole volume; parameters and errors as `psnr`."""
    r, m = _pair(reference, image)
    return float((r - m).square().sum() / r.square().sum())


def ssim(reference: Tensor, image: Tensor) -> float:
    """Structural similarity: the mean over 7x7 windows inside each slice, then over slices.

    With means, sample variances and covariance in uniform windows, L the maximum of the reference volume,
    c1 = (0.01 L)^2 and c2 = (0.03 L)^2:
    (2 mean_r mean_m + c1) (2 cov + c2) / ((mean_r^2 + mean_m^2 + c1) (var_r + var_m + c2)).

    Parameters
    ----------
    reference, image : (..., y, x) real, at least 7 pixels along y and x.

    Raises
    ------
    ValueError
        As `psnr`, and if a slice is smaller than the window.
    """
    r, m = _pair(reference, image)
    return float(_ssim_map(r, m, peak=float(r.max())).mean())


def fit_scale(reference: Tensor, image: Tensor, inside: Tensor) -> float:
    """The factor s = <m, r> / <m, m> inside the mask that minimises ||r - s m||.

    Parameters
    ----------
    reference, image : (..., y, x) real; r and m.
    inside : (..., y, x) bool; the object (see `object_mask`), one mask for every method that is compared.

    Raises
    ------
    ValueError
        As `psnr`, and if the mask is empty, not bool, of another shape, or the image or the reference is zero inside.
    """
    r, m = _inside(reference, image, inside)
    return float((m @ r) / (m @ m))


def psnr_scaled(reference: Tensor, image: Tensor, inside: Tensor) -> float:
    """PSNR in dB inside the object after least-squares scaling, 10 log10(max(r)^2 / mean((r - s m)^2)).

    Maximum and mean run over the mask; s, parameters and errors as `fit_scale`.
    """
    r, m = _inside(reference, image, inside)
    return _decibel(float(r.max()) ** 2, float((r - (m @ r) / (m @ m) * m).square().mean()))


def nmse_scaled(reference: Tensor, image: Tensor, inside: Tensor) -> float:
    """||r - s m||^2 / ||r||^2 inside the object; s, parameters and errors as `fit_scale`."""
    r, m = _inside(reference, image, inside)
    return float((r - (m @ r) / (m @ m) * m).square().sum() / r.square().sum())


def ssim_scaled(reference: Tensor, image: Tensor, inside: Tensor) -> float:
    """SSIM of r and s m: the mean over the windows whose centre is in the object, L the maximum of r in the object.

    Windows at the rim of the object see what lies outside it. s, parameters and errors as `fit_scale` and `ssim`.
    """
    scale = fit_scale(reference, image, inside)
    r, m = _pair(reference, image)
    centres = inside[..., 3:-3, 3:-3]
    if not bool(centres.any()):
        raise InputError("ssim_scaled: no 7x7 window has its centre in the object mask; use a larger object or psnr")
    return float(_ssim_map(r, scale * m, peak=float(r[inside].max()))[centres].mean())


def object_mask(reference: Tensor, *, threshold: float = 0.1, smoothing: float = 1.0, closing: int = 5) -> Tensor:
    """The object in a reference image: smooth, threshold, close, fill, and keep the largest connected piece.

    Parameters
    ----------
    reference : (y, x) or (slice, y, x) real magnitude.
    threshold : fraction of the 99th percentile of the volume.
    smoothing : standard deviation of a Gaussian along y and x, in pixels.
    closing : radius in pixels up to which gaps in the rim are closed before holes are filled, slice by slice.

    Returns
    -------
    bool tensor of the reference's shape, on its device.

    Raises
    ------
    ValueError
        If the reference is not a real (y, x) or (slice, y, x) image, not finite, zero, or nothing lies above the
        threshold.
    """
    from scipy import ndimage

    if reference.ndim not in (2, 3):
        raise InputError(f"object_mask: expected (y, x) or (slice, y, x), got shape {tuple(reference.shape)}")
    values = _pair(reference, reference)[0].cpu().numpy().reshape(-1, *reference.shape[-2:])
    level = threshold * np.quantile(values, 0.99)
    if level <= 0:
        raise InputError("object_mask: the 99th percentile of the reference is not positive; give a magnitude image")
    found = ndimage.gaussian_filter(values, (0, smoothing, smoothing)) > level
    y, x = np.mgrid[-closing : closing + 1, -closing : closing + 1]
    disc = x * x + y * y <= closing * closing
    for index, slice_ in enumerate(found):
        padded = ndimage.binary_closing(np.pad(slice_, closing + 1), disc)[(slice(closing + 1, -closing - 1),) * 2]
        found[index] = ndimage.binary_fill_holes(padded)
    labels, pieces = ndimage.label(found)
    if pieces == 0:
        raise InputError(f"object_mask: nothing lies above {threshold} of the 99th percentile; lower the threshold")
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return torch.from_numpy(labels == largest).reshape(reference.shape).to(reference.device)


def _pair(reference: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, checked."""
    if reference.shape != image.shape or reference.ndim < 2:
        raise InputError(
            f"expected two images of one shape (..., y, x), got reference {tuple(reference.shape)} and image "
            f"{tuple(image.shape)}; crop or resample one of them"
        )
    if reference.is_complex() or image.is_complex():
        raise InputError("expected real magnitude images, got a complex one; take its magnitude")
    r, m = reference.to(torch.float64), image.to(torch.float64)
    if not bool(torch.isfinite(r).all() & torch.isfinite(m).all()):
        raise InputError("expected finite images, got NaN or infinity")
    if not bool(r.any()):
        raise InputError("the reference is zero everywhere: nothing to compare with")
    return r, m


def _inside(reference: Tensor, image: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The values of both inside the object mask, as vectors."""
    r, m = _pair(reference, image)
    if inside.dtype != torch.bool or inside.shape != r.shape:
        raise InputError(
            f"object mask: expected bool of shape {tuple(r.shape)}, got {inside.dtype} of shape {tuple(inside.shape)}; "
            "make it with object_mask(reference)"
        )
    if not bool(inside.any()):
        raise InputError("object mask: expected at least one pixel, got none")
    r, m = r[inside], m[inside]
    if not bool(r.any()) or not bool(m.any()):
        raise InputError("reference or image is zero inside the object mask: no scale factor fits")
    return r, m


def _decibel(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def _ssim_map(r: Tensor, m: Tensor, *, peak: float) -> Tensor:
    """(..., y, x) -> (..., y - 6, x - 6): SSIM of every 7x7 window that lies inside the slice."""
    size = 7
    if min(r.shape[-2:]) < size:
        raise InputError(f"ssim: expected slices of at least {size}x{size} pixels, got {tuple(r.shape[-2:])}")

    def mean(values: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(values.reshape(-1, 1, *r.shape[-2:]), size, stride=1)

    unbiased = size**2 / (size**2 - 1)
    mean_r, mean_m = mean(r), mean(m)
    var_r = unbiased * (mean(r * r) - mean_r**2)
    var_m = unbiased * (mean(m * m) - mean_m**2)
    cov = unbiased * (mean(r * m) - mean_r * mean_m)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    values = (2 * mean_r * mean_m + c1) * (2 * cov + c2) / ((mean_r**2 + mean_m**2 + c1) * (var_r + var_m + c2))
    return values.reshape(*r.shape[:-2], *values.shape[-2:])
