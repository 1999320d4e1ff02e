"""Every Cartesian undersampling pattern, in one table: MASKS, name -> function.

    mask = MASKS["random"](shape, acceleration, calibration=None, seed=0)      # (ky, kx) bool, True where sampled

shape : the k-space grid, of any number of axes; the origin of k-space is index n // 2.
acceleration : R >= 1, grid points per sample. A pattern takes N samples (or lines), the calibration among them, with N
    the whole number nearest to (grid points) / R. `acceleration(mask)` reports the true value.
calibration : number of fully sampled central lines, or side of the fully sampled central block; they begin at index
    n // 2 - calibration // 2. None takes of the lines a fraction 0.08 up to R = 4 and 0.04 above, at least 4, and as
    side 24 samples; but never more than half of the N lines, or a quarter of the N samples. 0 is none.
seed : of a local generator; the same seed gives the same mask.
axis, axes : the phase-encoding axis of a pattern of lines, the two of a 2-D pattern. All others are readout axes.
elliptical : nothing but the calibration is sampled outside the ellipse rho <= 1 inscribed in the grid.

In the formulas k = index - n // 2, and rho^2 = (2 ky / ny)^2 + (2 kx / nx)^2. Every pattern raises ValueError where the
acceleration is below 1 or leaves no sample, the calibration does not fit, or the shape lacks the axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from operators.fastmri_masks import (
    fastmri_equispaced,
    fastmri_equispaced_fraction,
    fastmri_magic,
    fastmri_magic_fraction,
    fastmri_random,
)
from operators.sampling import (
    acceleration,
    calibration_region,
    coordinates,
    plan_lines,
    plan_samples,
    radius,
    readout_axes,
    spread,
)

__all__ = [
    "MASKS",
    "acceleration",
    "calibration_region",
    "equispaced",
    "full",
    "gaussian1d",
    "gaussian2d",
    "mask_function",
    "poisson",
    "radial",
    "random",
    "readout_axes",
    "spiral",
]


def full(shape: tuple[int, ...]) -> Tensor:
    """Every sample of the grid."""
    return torch.ones(shape, dtype=torch.bool)


def random(
    shape: tuple[int, ...], acceleration: float, *, calibration: int | None = None, seed: int = 0, axis: int = -1
) -> Tensor:
    """Lines drawn without replacement, each outside the calibration with equal probability.

    References
    ----------
    Lustig et al., Sparse MRI, Magn Reson Med 58, 1182 (2007).
    """
    n, count, calibrated = plan_lines(shape, acceleration, calibration, axis)
    return spread(_draw(torch.zeros(n, dtype=torch.float64), count, calibrated, seed), shape, (axis,))


def gaussian1d(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    sigma: float = 0.2,
    axis: int = -1,
) -> Tensor:
    """Lines drawn without replacement, one after another with probability proportional to exp(-k^2 / (2 (sigma n)^2)).

    sigma : standard deviation as a fraction of the n lines, above 0.
    """
    n, count, calibrated = plan_lines(shape, acceleration, calibration, axis)
    k = torch.arange(n, dtype=torch.float64) - n // 2
    return spread(_draw(-((k / n / _positive(sigma=sigma)) ** 2) / 2, count, calibrated, seed), shape, (axis,))


def equispaced(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    offset: int | None = None,
    axis: int = -1,
) -> Tensor:
    """Equally spaced lines around a calibration of c lines; N in all, whatever the offset.

    The m = n - c lines outside the calibration are numbered from 0 to m - 1; sampled are those of the numbers
    floor(o + j s) mod m, j = 0 ... N - c - 1, with the spacing s = m / (N - c). It exceeds R, for the calibration is
    counted too; where s is no whole number neighbours are floor(s) or ceil(s) apart.

    offset : o, any whole number; None draws it from 0 ... ceil(s) - 1.
    """
    n, count, calibrated = plan_lines(shape, acceleration, calibration, axis)
    outer = (~calibrated).nonzero().flatten()
    m, spaced = len(outer), count - (n - len(outer))
    mask = calibrated.clone()
    if spaced > 0:
        if offset is None:
            offset = int(torch.randint(math.ceil(m / spaced), (), generator=_generator(seed)))
        mask[outer[(offset + torch.arange(spaced) * m // spaced) % m]] = True
    return spread(mask, shape, (axis,))


def gaussian2d(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    sigma: float = 0.2,
    axes: tuple[int, int] = (-2, -1),
) -> Tensor:
    """Samples drawn without replacement, as lines by `gaussian1d`, with weight
    exp(-(ky^2 / ny^2 + kx^2 / nx^2) / (2 sigma^2)).

    sigma : standard deviation as a fraction of the grid in either axis, above 0.
    """
    grid, count, block, _ = plan_samples(shape, acceleration, calibration, axes, elliptical=False)
    return spread(_draw(-((radius(grid) / 2 / _positive(sigma=sigma)) ** 2) / 2, count, block, seed), shape, axes)


def poisson(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    power: float = 1.0,
    elliptical: bool = True,
    axes: tuple[int, int] = (-2, -1),
) -> Tensor:
    """Variable-density Poisson disc: random samples that keep a distance from each other which grows with the radius.

    Samples p, q outside the calibration are at least min(D(p), D(q)) apart, in samples of the grid. D(k) is the
    distance d(k) = max(1, a rho^(power / 2)) rounded to one that two grid points can have (1, sqrt 2, 2, sqrt 5 ...),
    down or up at random such that the mean of 1 / D^2 is 1 / d^2. The density thus falls as rho^(-power). The grid is
    visited in random order and each point taken that keeps its distance; `a` is the largest that yields N samples.

    power : exponent of the density; 0 is uniform.

    References
    ----------
    Cook, Stochastic sampling in computer graphics, ACM Trans Graph 5, 51 (1986).
    Vasanawala et al., Practical parallel imaging compressed sensing MRI, Proc IEEE ISBI, 1039 (2011).
    """
    if power < 0:
        raise ValueError(f"expected a density exponent of 0 or more, got {power}")
    grid, count, block, free = plan_samples(shape, acceleration, calibration, axes, elliptical)
    generator = _generator(seed)
    shuffled = torch.randperm(free.numel(), generator=generator)
    order = shuffled[free.flatten()[shuffled]].tolist()
    dither = torch.rand(free.numel(), dtype=torch.float64, generator=generator).reshape(grid)
    falloff = radius(grid) ** (power / 2)
    wanted = count - int(block.sum())
    mask = block.flatten().clone()
    if wanted > 0:
        # Discs of distance d thrown on a plane fill it at about 0.7 / d^2, which bounds a from above.
        low, high = 0.0, 1.5 * math.sqrt(0.7 / wanted * float((1 / falloff[free].clamp(min=1e-3) ** 2).sum()))
        taken = order
        for _ in range(13):
            scale = (low + high) / 2
            tried = _throw(_round_to_lattice((scale * falloff).clamp(min=1), dither), order)
            if len(tried) >= wanted:
                low, taken = scale, tried
            else:
                high = scale
        mask[taken[:wanted]] = True  # leaving some out keeps every distance
    return spread(mask.reshape(grid), shape, axes)


def radial(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    angle: float | None = None,
    elliptical: bool = True,
    axes: tuple[int, int] = (-2, -1),
) -> Tensor:
    """The N grid points nearest to L spokes through the origin.

    Spoke j runs along (ky, kx) ~ (ny sin t_j, nx cos t_j) with t_j = angle + j pi / L.
    L is the smallest number of spokes within half a sample of which lie N points.

    angle : of the first spoke, in radians; None draws it from [0, pi / L).
    """
    grid, count, block, free = plan_samples(shape, acceleration, calibration, axes, elliptical)
    y, x = coordinates(grid)
    phi = torch.atan2(y / grid[0], x / grid[1])
    turn = _uniform(seed)

    def distance(spokes: float) -> Tensor:
        step = math.pi / math.ceil(spokes)
        first = turn * step if angle is None else angle
        t = first + ((phi - first) / step).round() * step
        sin, cos = grid[0] * t.sin(), grid[1] * t.cos()
        return (y * cos - x * sin).abs() / torch.hypot(sin, cos)

    return spread(_trace(distance, math.pi * max(grid), count, block, free), shape, axes)


def spiral(
    shape: tuple[int, ...],
    acceleration: float,
    *,
    calibration: int | None = None,
    seed: int = 0,
    power: float = 2.0,
    angle: float | None = None,
    elliptical: bool = True,
    axes: tuple[int, int] = (-2, -1),
) -> Tensor:
    """The N grid points nearest to a spiral, rho = (t / (2 pi T))^power at phi = angle + t.

    Here (ky, kx) = rho / 2 (ny sin phi, nx cos phi), and T is the smallest number of turns within half a sample of
    which lie N points. The distance is taken to first order, |f - round f| / |grad f|, where
    f = T rho^(1 / power) - (phi - angle) / 2 pi is a whole number on the spiral.

    power : 1 is the Archimedean spiral, of constant pitch; above 1 the centre is denser.
    angle : at which the spiral leaves the origin, in radians; None draws it from [0, 2 pi).
    """
    grid, count, block, free = plan_samples(shape, acceleration, calibration, axes, elliptical)
    y, x = coordinates(grid)
    v, w, rho = 2 * y / grid[0], 2 * x / grid[1], radius(grid)
    first = 2 * math.pi * _uniform(seed) if angle is None else angle
    fraction = (torch.atan2(v, w) - first) / (2 * math.pi)
    p = _positive(power=power)

    def distance(turns: float) -> Tensor:
        f = turns * rho ** (1 / p) - fraction
        along, across = turns / p * rho ** (1 / p - 2), 1 / (2 * math.pi * rho**2)  # (df / d rho) / rho, and of phi
        slope = torch.hypot((along * v - across * w) * 2 / grid[0], (along * w + across * v) * 2 / grid[1])
        return ((f - f.round()).abs() / slope).nan_to_num(0.0)  # the origin lies on it

    return spread(_trace(distance, p * max(grid), count, block, free), shape, axes)


MASKS: dict[str, Callable[..., Tensor]] = {
    "random": random,
    "equispaced": equispaced,
    "gaussian1d": gaussian1d,
    "gaussian2d": gaussian2d,
    "poisson": poisson,
    "radial": radial,
    "spiral": spiral,
    "fastmri-random": fastmri_random,
    "fastmri-equispaced": fastmri_equispaced,
    "fastmri-equispaced-fraction": fastmri_equispaced_fraction,
    "fastmri-magic": fastmri_magic,
    "fastmri-magic-fraction": fastmri_magic_fraction,
}


def mask_function(kind: str) -> Callable[..., Tensor]:
    """The pattern of that name in MASKS.

    Raises
    ------
    ValueError
        If there is none; the message lists the names.
    """
    if kind not in MASKS:
        raise ValueError(f"unknown mask {kind!r}; expected one of {', '.join(MASKS)}")
    return MASKS[kind]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _uniform(seed: int) -> float:
    return float(torch.rand((), dtype=torch.float64, generator=_generator(seed)))


def _positive(**parameter: float) -> float:
    ((name, value),) = parameter.items()
    if not value > 0:
        raise ValueError(f"expected {name} above 0, got {value}")
    return value


def _highest(score: Tensor, count: int) -> Tensor:
    """The `count` points of the highest score, as bool; of equal ones the first."""
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.reshape(score.shape)


def _draw(log_weight: Tensor, count: int, calibrated: Tensor, seed: int) -> Tensor:
    """The calibration and further points, `count` in all, drawn without replacement by their weights.

    The largest of log_weight + Gumbel noise are such a draw (Yellott, J Math Psychol 15, 109 (1977)).
    """
    u = torch.rand(log_weight.shape, dtype=torch.float64, generator=_generator(seed))
    return _highest((log_weight - (-u.log()).log()).masked_fill(calibrated, math.inf), count)


def _trace(distance: Callable[[float], Tensor], longest: float, count: int, block: Tensor, free: Tensor) -> Tensor:
    """The block and the free points nearest to a curve, `count` in all; the curve is the shortest that has so many.

    distance : of every point from the curve of a given length parameter, in samples.
    """
    low, high = 0.0, longest
    for _ in range(24):
        middle = (low + high) / 2
        near = (distance(middle) <= 0.5) & free | block
        low, high = (low, middle) if int(near.sum()) >= count else (middle, high)
    return _highest((-distance(high)).masked_fill(~free, -math.inf).masked_fill(block, math.inf), count)


def _round_to_lattice(distance: Tensor, dither: Tensor) -> Tensor:
    """Squares D^2 of the grid distances next to `distance` >= 1, one or the other by `dither`, mean 1 / D^2 kept."""
    reach = math.ceil(float(distance.max())) + 1
    side = torch.arange(reach + 1)
    squares = (side[:, None] ** 2 + side**2).unique()[1:]  # 1, 2, 4, 5, 8, 9, 10, 13 ...
    squares = squares[squares <= reach**2].to(distance.dtype)
    upper = torch.searchsorted(squares, distance**2, right=True)
    below, above = squares[upper - 1], squares[upper]
    chance = (1 / below - 1 / distance**2) / (1 / below - 1 / above)
    return torch.where(dither < chance, above, below).long()


def _throw(squares: Tensor, order: list[int]) -> list[int]:
    """Points taken when the grid is visited in `order` and each one taken closes those nearer than its distance.

    squares : (ny, nx) squared distance of every point; later points keep the distance of the earlier ones.
    """
    (ny, nx), values = squares.shape, squares.flatten().tolist()
    pad = math.isqrt(int(squares.max()))
    width = nx + 2 * pad
    closed = bytearray((ny + 2 * pad) * width)
    discs: dict[int, list[tuple[int, int, bytes]]] = {}  # rows of the open disc: begin, end, ones
    taken = []
    for index in order:
        at = (index // nx + pad) * width + index % nx + pad
        if closed[at]:
            continue
        taken.append(index)
        square = values[index]
        if square not in discs:
            reach = math.isqrt(square - 1)
            halves = [(dy, math.isqrt(square - 1 - dy * dy)) for dy in range(-reach, reach + 1)]
            discs[square] = [(dy * width - h, dy * width + h + 1, b"\1" * (2 * h + 1)) for dy, h in halves]
        for begin, end, ones in discs[square]:
            closed[at + begin : at + end] = ones
    return taken
