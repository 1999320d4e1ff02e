"""What a sampling mask says of itself, and the parts that every pattern of `operators.masks` is made of.

A mask is a bool tensor over the k-space axes, True where sampled, with the origin of k-space at index n // 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def acceleration(mask: Tensor) -> float:
    """True acceleration of a mask: grid points per sample.

    Raises
    ------
    ValueError
        If nothing is sampled.
    """
    samples = int(mask.count_nonzero())
    if samples == 0:
        raise ValueError(f"expected a mask with at least one sample, got none in {tuple(mask.shape)}")
    return mask.numel() / samples


def readout_axes(mask: Tensor) -> tuple[int, ...]:
    """Axes along which the mask is constant, counted from the end: they are sampled as whole lines or not at all.

    On these axes the Fourier transforms of A^H A cancel.
    """
    return tuple(axis for axis in range(-mask.ndim, 0) if bool((mask == mask.narrow(axis, 0, 1)).all()))


def calibration_region(mask: Tensor, *, longest: int | None = None) -> tuple[slice, ...]:
    """Fully sampled block of the largest volume around the origin of k-space, one slice per axis.

    Centred to half a sample: a side of even length may reach one sample further on either side of index n // 2.
    Where the origin itself is not sampled every slice is empty.

    longest : no side is longer than this; None sets no limit. Patterns that are dense in the middle often hold a long
        thin block of a volume larger than that of their calibration square: `longest=24` finds the square.
    """
    sampled, origin = mask.bool(), tuple(n // 2 for n in mask.shape)
    best, best_volume = (*(slice(c, c) for c in origin),), 0
    if mask.ndim == 0 or not sampled[origin]:
        return best
    constant = readout_axes(mask)
    if constant:  # whole lines: one sample of each says all
        here = mask.ndim + constant[0]
        rest = calibration_region(sampled.select(here, 0), longest=longest)
        length = mask.shape[here] if longest is None else min(longest, mask.shape[here])
        start = origin[here] - length // 2
        return (*rest[:here], slice(start, start + length), *rest[here:])
    line = sampled
    for c in reversed(origin[1:]):
        line = line[..., c]
    before = int(line[: origin[0]].flip(0).cumprod(0).sum())  # samples on end on either side of the origin
    after = int(line[origin[0] + 1 :].cumprod(0).sum())
    for j in range(after + 1):  # of two blocks of even length the one from n // 2 - length // 2 comes first
        for i in range(max(j - 1, 0), min(j + 1, before) + 1):
            if longest is not None and i + j + 1 > longest:
                break
            block = slice(origin[0] - i, origin[0] + j + 1)
            rest = calibration_region(sampled[block].all(dim=0), longest=longest)
            volume = (i + j + 1) * math.prod(s.stop - s.start for s in rest)
            if volume > best_volume:
                best, best_volume = (block, *rest), volume
    return best


def lines(shape: Sequence[int], axis: int) -> int:
    """Number of lines of the grid along its phase-encoding axis.

    Raises
    ------
    ValueError
        If `shape` is not one of positive whole numbers, or has no such axis.
    """
    if len(shape) == 0 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"expected a shape of positive whole numbers such as (ky, kx), got {tuple(shape)}")
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"expected a phase-encoding axis of the shape {tuple(shape)}, got {axis}")
    return shape[axis]


def plane(shape: Sequence[int], axes: tuple[int, int]) -> tuple[int, int]:
    """Size of the grid in the two axes that a 2-D pattern lies in.

    Raises
    ------
    ValueError
        If `shape` is not one of positive whole numbers, or has no two such axes.
    """
    if len(axes) != 2 or len(shape) < 2 or axes[0] % len(shape) >= axes[1] % len(shape):
        raise ValueError(f"expected a shape (ky, kx) or more and two rising axes of it, got {tuple(shape)} and {axes}")
    return lines(shape, axes[0]), lines(shape, axes[1])


def budget(total: int, factor: float) -> int:
    """Number of samples, or lines, nearest to total / factor (halves up).

    Raises
    ------
    ValueError
        If the acceleration `factor` is below 1, or so high that nothing is left.
    """
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"expected an acceleration of 1 or more, got {factor}")
    count = math.floor(total / factor + 0.5)
    if count == 0:
        raise ValueError(f"acceleration {factor} leaves nothing of {total}; lower it to {2 * total} or less")
    return count


def check_calibration(calibration: int, largest: int, available: float) -> int:
    """The calibration width, once it fits the grid (`largest`) and takes no more samples than `available`.

    Raises
    ------
    ValueError
        If it is negative, larger than the grid, or takes more samples than the acceleration leaves.
    """
    if not 0 <= calibration <= largest:
        raise ValueError(f"expected a calibration of 0 to {largest} lines on this grid, got {calibration}")
    if calibration > available:
        raise ValueError(
            f"a calibration of {calibration} does not fit: the acceleration leaves {available:g}; lower one of the two"
        )
    return calibration


def centre(n: int, width: int) -> Tensor:
    """(n,) bool: the `width` lines n // 2 - width // 2, ... around the origin."""
    k = torch.arange(n) - n // 2 + width // 2
    return (k >= 0) & (k < width)


def plan_lines(shape: tuple[int, ...], factor: float, calibration: int | None, axis: int) -> tuple[int, int, Tensor]:
    """Lines of the grid n, lines to sample N, and the calibration as (n,) bool."""
    n = lines(shape, axis)
    count = budget(n, factor)
    if calibration is None:
        calibration = max(1, min(max(round(n * (0.08 if factor <= 4 else 0.04)), 4), count // 2))
    return n, count, centre(n, check_calibration(calibration, n, count))


def plan_samples(
    shape: tuple[int, ...], factor: float, calibration: int | None, axes: tuple[int, int], elliptical: bool
) -> tuple[tuple[int, int], int, Tensor, Tensor]:
    """Grid (ny, nx), samples N, the calibration block and the other points that may be sampled, (ny, nx) bool each."""
    grid = plane(shape, axes)
    count = budget(math.prod(grid), factor)
    if calibration is None:
        calibration = max(1, min(24, math.isqrt(count // 4), *grid))
    check_calibration(calibration, min(grid), math.isqrt(count))
    block = centre(grid[0], calibration)[:, None] & centre(grid[1], calibration)
    free = ~block & (radius(grid) <= 1) if elliptical else ~block
    available = int((block | free).sum())
    if count > available:
        raise ValueError(
            f"acceleration {factor} asks for {count} samples, the ellipse holds {available}; "
            f"raise it to {math.prod(grid) / available:.4g} or pass elliptical=False"
        )
    return grid, count, block, free


def coordinates(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """ky (ny, 1) and kx (1, nx), in samples from the origin."""
    ny, nx = grid
    y, x = torch.arange(ny, dtype=torch.float64) - ny // 2, torch.arange(nx, dtype=torch.float64) - nx // 2
    return y[:, None], x[None, :]


def radius(grid: tuple[int, int]) -> Tensor:
    """rho, (ny, nx): 1 on the ellipse inscribed in the grid."""
    y, x = coordinates(grid)
    return torch.hypot(2 * y / grid[0], 2 * x / grid[1])


def spread(pattern: Tensor, shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    """The pattern laid on its axes of the grid and repeated along all others, which become readout axes."""
    view = [1] * len(shape)
    for n, axis in zip(pattern.shape, axes, strict=True):
        view[axis] = n
    return pattern.reshape(view).expand(*shape).contiguous()
