"""Coil sensitivity maps from a fully sampled calibration region (ESPIRiT)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MAX_KERNEL_WIDTH = 6
# Pixel operators are raised to the power 2 ** 10 by squaring: the next eigenvector is damped to 3e-5 at a gap of 1 %.
_SQUARINGS = 10
# Elements (pixels * coils ** 2, or patches * columns) worked on at once: 2 MB in complex64, to stay in cache.
_BUDGET = 2**18


class Espirit(NamedTuple):
    """Sensitivity maps and what they rest on.

    maps : (..., set, coil, *shape) complex.
    eigenvalues : (..., set, *shape) real, descending over sets: near 1 where that many maps are needed to explain the
        calibration data, below 1 where there is no signal. Not cropped.
    """

    maps: Tensor
    eigenvalues: Tensor


def espirit(
    calibration: Tensor,
    shape: Sequence[int],
    *,
    kernel_width: int | Sequence[int] | None = None,
    threshold: float = 0.02,
    crop: float = 0.8,
    soft: bool = False,
    sets: int = 1,
) -> Espirit:
    """ESPIRiT: coil sensitivities as eigenvectors, pixel by pixel, of an operator that leaves calibration data alone.

    Every patch of multi-coil k-space, the size of a small kernel, lies in one low-dimensional space. Projecting all
    patches on it and averaging where they overlap is, in the image, a coil x coil matrix G(r) at each pixel r; the
    sensitivities are its eigenvectors of eigenvalue 1. k-space is that of the centred orthonormal transform.

    Parameters
    ----------
    calibration : (..., coil, *calibration size) complex; the fully sampled centre of k-space. Leading axes (slices)
        are calibrated one by one. The spatial axes are as many as in `shape` and may differ in length.
    shape : image size in pixels, two or three axes.
    kernel_width : samples, one number or one for each axis. None takes a third of the calibration along each axis, at
        least 2 and at most 6: with fewer positions for the kernel its patches do not span their space.
    threshold : singular values of the calibration matrix below `threshold` times the largest are noise.
    crop : maps are 0 where the eigenvalue is not above `crop`; 0 keeps every pixel.
    soft : instead of this step, fade the maps where the eigenvalue is within min(crop, 1 - crop) / 2 of `crop`.
    sets : maps for each pixel; two where the object is larger than the field of view and folds onto itself.

    Returns
    -------
    Espirit
        Inside the crop, each map has a sum of squares over coils of 1, and different sets are orthogonal. Phase: with
        w the first principal component over coils of the calibration samples, sum_c conj(w_c) map_c is real and not
        negative. It is smooth but for isolated pixels where that sum vanishes.

    Raises
    ------
    ValueError
        If the calibration is not complex, not finite, all zero, smaller than the kernel or larger than the image, or
        if an option is out of its range.

    References
    ----------
    Uecker et al., Magn Reson Med 71, 990 (2014).
    """
    shape = tuple(shape)
    kernel = _kernel_size(calibration, shape, kernel_width)
    _check(calibration, shape, threshold=threshold, crop=crop, sets=sets)

    ndim = len(shape)
    batch, coils = calibration.shape[: -ndim - 1], calibration.shape[-ndim - 1]
    slices = calibration.reshape(math.prod(batch), coils, *calibration.shape[-ndim:])
    maps = calibration.new_empty(len(slices), sets, coils, *shape)
    eigenvalues = calibration.real.new_empty(len(slices), sets, *shape)
    for i, slice_ in enumerate(slices):
        uncropped, eigenvalues[i] = _maps(slice_, shape, kernel, threshold, sets)
        maps[i] = uncropped * _crop_weight(eigenvalues[i], crop, soft=soft).unsqueeze(1)
    return Espirit(maps.reshape(*batch, sets, coils, *shape), eigenvalues.reshape(*batch, sets, *shape))


def _maps(
    calibration: Tensor, shape: tuple[int, ...], kernel: tuple[int, ...], threshold: float, sets: int
) -> tuple[Tensor, Tensor]:
    """Maps before the crop (set, coil, *shape) and eigenvalues (set, *shape) of one calibration (coil, *size)."""
    # The Gram matrix squares the singular values: in single precision a ratio of 1e-3 would drown in rounding.
    correlation = _correlation(_signal_space(calibration.to(torch.complex128), kernel, threshold), kernel)
    correlation = correlation.to(calibration.dtype)
    bases = [_fourier_basis(n, width, correlation) for n, width in zip(shape, kernel, strict=True)]
    maps = calibration.new_empty(math.prod(shape), sets, len(calibration))
    values = maps.real.new_empty(math.prod(shape), sets)
    _fill(maps, values, correlation[None], bases)

    combined = maps @ _principal_component(calibration).conj()
    maps = maps * torch.where(combined == 0, 1, torch.sgn(combined).conj()).unsqueeze(-1)
    return maps.movedim(0, -1).unflatten(-1, shape), values.movedim(0, -1).unflatten(-1, shape)


def _signal_space(calibration: Tensor, kernel: tuple[int, ...], threshold: float) -> Tensor:
    """Projector (coil, *kernel, coil, *kernel) on the space of all patches of the calibration (coil, *size)."""
    patches = calibration
    for axis, width in enumerate(kernel, start=1):
        patches = patches.unfold(axis, width, 1)
    patches = patches.movedim(0, len(kernel))  # (*position, coil, *kernel)
    columns = patches.shape[len(kernel) :].numel()
    covariance = calibration.new_zeros(columns, columns)
    for part in patches.split(max(1, _BUDGET // patches[0].numel())):
        rows = part.reshape(-1, columns)
        covariance += rows.mT @ rows.conj()

    values, vectors = torch.linalg.eigh(covariance)  # values: singular values squared, ascending
    signal = vectors[:, values > threshold**2 * values[-1]]
    return (signal @ signal.mH).reshape(patches.shape[len(kernel) :] * 2)


def _correlation(projector: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """K[d] = sum of P[k, k'] over k - k' = d, divided by the kernel's size: (*(2 kernel - 1), coil, coil)."""
    ndim, coils = len(kernel), projector.shape[0]
    correlation = projector.new_zeros(*(2 * width - 1 for width in kernel), coils, coils)
    projector = projector.movedim([0, ndim + 1], [-2, -1])  # (*k, *k', coil, coil)
    for position in itertools.product(*map(range, kernel)):
        window = tuple(slice(width - 1 - k, 2 * width - 1 - k) for k, width in zip(position, kernel, strict=True))
        correlation[window] += projector[(slice(None),) * ndim + position]
    return correlation / math.prod(kernel)


def _fourier_basis(n: int, width: int, like: Tensor) -> Tensor:
    """exp(2 pi i r d / n) over centred pixels r and displacements d, (n, 2 width - 1)."""
    pixels = torch.arange(n, device=like.device, dtype=torch.float64) - n // 2
    displacements = torch.arange(1 - width, width, device=like.device, dtype=torch.float64)
    return torch.exp(2j * math.pi / n * torch.outer(pixels, displacements)).to(like.dtype)


def _fill(maps: Tensor, values: Tensor, correlation: Tensor, bases: list[Tensor]) -> None:
    """Set maps and values to the eigenvectors of G(r) = sum_d K[d] exp(2 pi i r d / n), a block of pixels at a time.

    maps : (pixel, set, coil) and values : (pixel, set), pixels in row-major order.
    correlation : (pixel, displacement, ..., coil, coil), transformed along the axes of its pixels already.
    bases : the Fourier bases of the axes that are left.
    """
    if not bases:
        maps[:], values[:] = _dominant(correlation, maps.shape[1])
        return
    others = len(correlation) * math.prod(len(basis) for basis in bases[1:])  # pixels for each along the first basis
    step = max(1, _BUDGET // (others * correlation.shape[-1] ** 2))  # all of the axis, unless there is one pixel yet
    blocks = zip(bases[0].split(step), maps.split(step * others), values.split(step * others), strict=True)
    for basis, block_maps, block_values in blocks:
        transformed = (basis @ correlation.flatten(2)).reshape(-1, *correlation.shape[2:])
        _fill(block_maps, block_values, transformed, bases[1:])


def _dominant(operators: Tensor, sets: int) -> tuple[Tensor, Tensor]:
    """Dominant eigenvectors (pixel, set, coil) and eigenvalues (pixel, set) of positive matrices (pixel, coil, coil).

    Repeated squaring leaves the projector on the dominant eigenspace: its columns are eigenvectors, also where the
    eigenvalue is degenerate. Further sets are found in the complement of those before.
    """
    coils = operators.shape[-1]
    # A floor at rounding level, so that there is an eigenvector where nothing but zero is left.
    floor = 10 * torch.finfo(operators.dtype).eps * torch.eye(coils, dtype=operators.dtype, device=operators.device)
    operators = operators + floor
    vectors, values = [], []
    for _ in range(sets):
        power = operators
        for _ in range(_SQUARINGS // 2):
            power = _scale(power, 1 / _diagonal(power).sum(-1))  # trace 1: eigenvalues at least 1 / coils, at most 1
            power = power @ power
            power = power @ power
        largest = _diagonal(power).argmax(-1)
        vector = power[torch.arange(len(power), device=power.device), :, largest, None]
        vector = _scale(vector, torch.view_as_real(vector).square().sum((1, 2, 3)).rsqrt())
        image = operators @ vector
        value = (vector.mH @ image).real
        # (1 - v v^H) G (1 - v v^H)
        outer = vector @ image.mH
        operators = operators - outer - outer.mH + value * (vector @ vector.mH)
        vectors.append(vector[..., 0])
        values.append(value[:, 0, 0])
    return torch.stack(vectors, 1), torch.stack(values, 1)


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).real


def _scale(matrices: Tensor, factor: Tensor) -> Tensor:
    """Real factors (pixel,): a complex product by a real tensor costs three times as much."""
    return torch.view_as_complex(torch.view_as_real(matrices) * factor[:, None, None, None])


def _principal_component(calibration: Tensor) -> Tensor:
    """Weights (coil,) of the coil combination with the most energy; the largest weight is real and positive."""
    samples = calibration.flatten(1)
    weights = torch.linalg.eigh(samples @ samples.mH)[1][:, -1]
    return weights * torch.sgn(weights[weights.abs().argmax()]).conj()


def _crop_weight(values: Tensor, crop: float, *, soft: bool) -> Tensor:
    """0 below the crop and 1 above it: a step, or a cubic that is flat at both ends."""
    half_width = min(crop, 1 - crop) / 2
    if not soft or half_width == 0:
        return ((values > crop) | (crop == 0)).to(values.dtype)
    t = ((values - crop) / (2 * half_width) + 0.5).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _kernel_size(calibration: Tensor, shape: tuple[int, ...], width: int | Sequence[int] | None) -> tuple[int, ...]:
    if not 2 <= len(shape) <= 3 or calibration.ndim < len(shape) + 1:
        raise ValueError(
            f"expected an image shape of 2 or 3 axes and a calibration (..., coil, *size) of as many, "
            f"got shape {shape} and calibration {tuple(calibration.shape)}"
        )
    size = calibration.shape[-len(shape) :]
    if any(n > image for n, image in zip(size, shape, strict=True)):
        raise ValueError(
            f"calibration of {tuple(size)} samples is larger than the image {shape}: give shape in its order"
        )
    if width is None:
        kernel = tuple(min(_MAX_KERNEL_WIDTH, max(2, (n + 1) // 3)) for n in size)
    else:
        kernel = (width,) * len(shape) if isinstance(width, int) else tuple(width)
    if len(kernel) != len(shape) or min(kernel) < 1:
        raise ValueError(f"expected a kernel_width of at least 1 for each of {len(shape)} axes, got {width}")
    if any(k > n for k, n in zip(kernel, size, strict=True)):
        raise ValueError(
            f"kernel {kernel} does not fit into a calibration of {tuple(size)} samples: "
            f"calibrate on more lines or give a smaller kernel_width"
        )
    return kernel


def _check(calibration: Tensor, shape: tuple[int, ...], *, threshold: float, crop: float, sets: int) -> None:
    coils = calibration.shape[-len(shape) - 1]
    if not calibration.is_complex():
        raise ValueError(f"expected a complex calibration (k-space), got {calibration.dtype}")
    if not 1 <= sets <= coils:
        raise ValueError(f"expected between 1 and {coils} sets of maps (the number of coils), got {sets}")
    if not 0 <= threshold < 1 or not 0 <= crop < 1:
        raise ValueError(f"expected threshold and crop in [0, 1), got {threshold} and {crop}")
    largest = calibration.abs().flatten(-len(shape) - 1).amax(-1).flatten()
    if not largest.isfinite().all():
        raise ValueError("calibration holds NaN or infinite values")
    if not largest.all():
        raise ValueError(f"calibration of slice {int(largest.argmin())} is zero: is this the centre of its k-space?")
