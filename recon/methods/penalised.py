"""Statistical reconstruction of CT with a penalty that keeps edges: weighted least squares, and counts as Poisson."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import EllipsisType

import torch
from torch import Tensor

from ..ct import PreparedCT
from ..errors import InputError
from ..likelihood import PoissonTransmission
from ..solvers import Callback
from .classical import object_curvature
from .fbp import fbp
from .subsets import Subset, check_ct, inverse, ordered_subsets

Index = tuple[EllipsisType, slice, slice]
_NEIGHBOURS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 1 / math.sqrt(2)), (1, -1, 1 / math.sqrt(2)))


class EdgePreserving:
    """R(x) = weight sum over pairs of neighbours of w psi(x_j - x_k), psi(t) = delta^2 (sqrt(1 + (t / delta)^2) - 1).

    Quadratic where differences are below delta, and as total variation beyond; w is 1 over the distance of the pixels,
    of which each has 8 neighbours.
    """

    def __init__(self, weight: float, delta: float) -> None:
        self.weight, self.delta = weight, delta

    def value(self, x: Tensor) -> Tensor:
        """(batch...) of images (batch..., y, x)."""
        value = x.new_zeros(x.shape[:-2])
        for _, _, difference, w in self._pairs(x):
            bent = torch.sqrt(1 + (difference / self.delta) ** 2) - 1
            value = value + self.weight * w * self.delta**2 * bent.sum((-2, -1))
        return value

    def grad(self, x: Tensor) -> Tensor:
        gradient = torch.zeros_like(x)
        for here, there, difference, w in self._pairs(x):
            slope = self.weight * w * difference / torch.sqrt(1 + (difference / self.delta) ** 2)
            gradient[there] += slope
            gradient[here] -= slope
        return gradient

    def curvature(self, x: Tensor) -> Tensor:
        """(y, x): of separable quadratics above R, touching it anywhere."""
        curvature = torch.zeros_like(x[(0,) * (x.ndim - 2)])
        for here, there, difference, w in self._pairs(curvature):
            twice = torch.full_like(difference, 2 * self.weight * w)
            curvature[there] += twice
            curvature[here] += twice
        return curvature

    def _pairs(self, x: Tensor) -> Iterator[tuple[Index, Index, Tensor, float]]:
        """Where pixels and their neighbours are, their differences, and w."""
        for down, right, w in _NEIGHBOURS:
            rows = slice(None, x.shape[-2] - down), slice(down, None)
            if right >= 0:
                columns = slice(None, x.shape[-1] - right), slice(right, None)
            else:
                columns = slice(1, None), slice(None, -1)
            here: Index = (..., rows[0], columns[0])
            there: Index = (..., rows[1], columns[1])
            yield here, there, x[there] - x[here], w


def pwls(
    scan: PreparedCT,
    *,
    regularization: float = 0.02,
    delta: float = 0.005,
    subset_views: int = 20,
    iterations: int = 150,
    nonnegative: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """Penalised weighted least squares by ordered subsets and momentum, from filtered back-projection.

    min_x 1/2 ||A x - p||_W^2 + regularization c R(x), R as `EdgePreserving` of width delta, W the inverse variance
    of line integrals, and c the curvature of the data term in the object, see `object_curvature`.

    Separable quadratic surrogates with momentum, on subsets in the first eighth of the iterations. That is fast, and
    ends beside the minimum, farther the longer it lasts; the rest, on all views with momentum begun anew, goes there.

    Parameters
    ----------
    regularization : weight of the penalty.
    delta : smallest differences that count as an edge, in units of the scan's scale (1 is the object's attenuation);
        above 0.
    subset_views : about so many views at a time; 0 for all of them.
    iterations : 0 of them leave the back-projection.
    nonnegative : keep pixels at 0 or above.

    Returns
    -------
    (slice, y, x) in units of the scan's scale.

    Raises
    ------
    InputError
        If it is no CT scan, or delta is not above 0.

    References
    ----------
    Kim, Ramani, Fessler, IEEE Trans Med Imaging 34, 167 (2015); Erdogan and Fessler, Phys Med Biol 44, 2835 (1999).
    """
    check_ct(scan, "pwls")
    p, weights = scan.line_integrals, scan.weights
    whole, subsets = ordered_subsets(scan, 0), ordered_subsets(scan, subset_views)
    x = start(scan, nonnegative)
    penalty = penalty_of(scan, regularization, delta)
    step = inverse(data_curvature(scan) + penalty.curvature(x))
    z, t = x, 1.0
    for iteration in range(iterations):
        parts = subsets if iteration < iterations // 8 else whole
        if iteration == iterations // 8:
            z, t = x, 1.0
        for part in parts:
            gradient = part.A.adjoint(part.of(weights) * (part.A.forward(z) - part.of(p)))
            x_before, x = x, z - step * (len(parts) * gradient + penalty.grad(z))
            if nonnegative:
                x = x.clamp(min=0)
            t_before, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
            z = x + (t_before - 1) / t * (x - x_before)
        if callback is not None:
            callback(iteration, x)
    return x


def transmission(
    scan: PreparedCT,
    *,
    regularization: float = 0.02,
    delta: float = 0.005,
    subset_views: int = 0,
    iterations: int = 20,
    callback: Callback | None = None,
) -> Tensor:
    """Penalised likelihood of the counts themselves, E counts = blank exp(-A x) + background, with x >= 0; from `pwls`.

    max_x log p(counts | x) - regularization c R(x), R and c as in `pwls`, by separable paraboloidal surrogates with
    the curvatures of Erdogan and Fessler, which change with x. On all views no step makes the objective worse; on
    subsets steps are faster, and end beside the maximum. Where few photons are left it differs from `pwls`, which
    takes logarithms of them.

    Parameters
    ----------
    regularization, delta : as in `pwls`.
    subset_views : about so many views at a time; 0 for all of them.
    iterations : 0 of them leave the image of `pwls`.

    Returns
    -------
    (slice, y, x) in units of the scan's scale.

    Raises
    ------
    InputError
        If it is no CT scan, or one without counts; if delta is not above 0.

    References
    ----------
    Erdogan and Fessler, IEEE Trans Med Imaging 18, 801 (1999); Phys Med Biol 44, 2835 (1999) on ordered subsets.
    """
    check_ct(scan, "transmission")
    parts = [(part, _counts(scan, part)) for part in ordered_subsets(scan, subset_views)]
    x = pwls(scan, regularization=regularization, delta=delta)
    penalty = penalty_of(scan, regularization, delta)
    ones, flat = torch.ones_like(x), penalty.curvature(x)
    for iteration in range(iterations):
        for part, term in parts:
            lines = part.A.forward(x)
            curvature = len(parts) * part.A.adjoint(term.curvature(lines) * part.A.forward(ones))
            gradient = len(parts) * part.A.adjoint(term.slope(lines)) + penalty.grad(x)
            x = (x - inverse(curvature + flat) * gradient).clamp(min=0)
        if callback is not None:
            callback(iteration, x)
    return x


def _counts(scan: PreparedCT, part: Subset) -> PoissonTransmission:
    if scan.counts is None or scan.blank is None or scan.background is None:
        raise InputError(
            "transmission needs counts, blank and background of a scan, got line integrals alone; use pwls"
        )
    return PoissonTransmission(part.A, part.of(scan.counts), part.of(scan.blank), part.of(scan.background))


def data_curvature(scan: PreparedCT) -> Tensor:
    """(slice, y, x): of separable quadratics above 1/2 ||A x - p||_W^2, A^T W A 1."""
    (whole,) = ordered_subsets(scan, 0)
    return whole.A.adjoint(scan.weights * whole.A.forward(scan.line_integrals.new_ones(scan.grid.shape)))


def penalty_of(scan: PreparedCT, regularization: float, delta: float) -> EdgePreserving:
    """R of weight regularization c; raises InputError if delta is not above 0."""
    if not 0 < delta < math.inf:
        raise InputError(f"penalty: expected delta, the smallest difference of an edge, above 0, got {delta:g}")
    (whole,) = ordered_subsets(scan, 0)
    seen = whole.A.adjoint(scan.weights * scan.line_integrals)
    return EdgePreserving(regularization * object_curvature(data_curvature(scan), seen), delta)


def start(scan: PreparedCT, nonnegative: bool) -> Tensor:
    """Filtered back-projection, smooth; 0 where there is none of that geometry."""
    try:
        x = fbp(scan, filter="hann")
    except ValueError:
        return scan.line_integrals.new_zeros(len(scan.line_integrals), *scan.grid.shape)
    return x.clamp(min=0) if nonnegative else x
