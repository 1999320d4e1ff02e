"""Algebraic reconstruction of CT: SIRT, and SART on ordered subsets."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ct import PreparedCT
from ..errors import InputError
from ..solvers import Callback
from .subsets import check_ct, inverse, ordered_subsets


def sirt(
    scan: PreparedCT, *, iterations: int = 150, nonnegative: bool = True, callback: Callback | None = None
) -> Tensor:
    """SIRT: x <- x + C A^T R (p - A x), R and C the inverse sums of rows and columns of A.

    It goes to the minimum of ||p - A x||_R; stopped before, it is the smoother the earlier.

    Parameters
    ----------
    iterations : 0 of them leave an image of zeros.
    nonnegative : set negative pixels to 0 after each iteration.

    Returns
    -------
    (slice, y, x) in units of the scan's scale.

    Raises
    ------
    InputError
        If it is no CT scan.

    References
    ----------
    Gilbert, J Theor Biol 36, 105 (1972); with these sums: Gregor and Benson, IEEE Trans Med Imaging 27, 918 (2008).
    """
    check_ct(scan, "sirt")
    return _sart(scan, 0, 1.0, 0.0, iterations, nonnegative, callback)


def os_sart(
    scan: PreparedCT,
    *,
    subset_views: int = 6,
    relaxation: float = 1.0,
    decay: float = 0.1,
    iterations: int = 20,
    nonnegative: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """OS-SART: as SIRT, with some of the views at a time, and steps that shorten.

    Parameters
    ----------
    subset_views : about so many views at a time, spread over all; 0 for all of them.
    relaxation : length of the steps in the first iteration; above 0 and below 2.
    decay : in iteration k (from 0) they are relaxation / (1 + decay k). With 0 inconsistent data lead to a cycle.
    iterations : 0 of them leave an image of zeros.
    nonnegative : set negative pixels to 0 after each step.

    Returns
    -------
    (slice, y, x) in units of the scan's scale.

    Raises
    ------
    InputError
        If it is no CT scan, or relaxation is not between 0 and 2.

    References
    ----------
    Andersen and Kak, Ultrason Imaging 6, 81 (1984); Wang and Jiang, J X-Ray Sci Technol 12, 169 (2004).
    """
    check_ct(scan, "os-sart")
    if not 0 < relaxation < 2:
        raise InputError(f"os-sart: expected relaxation above 0 and below 2, got {relaxation:g}")
    return _sart(scan, subset_views, relaxation, decay, iterations, nonnegative, callback)


def _sart(
    scan: PreparedCT,
    subset_views: int,
    relaxation: float,
    decay: float,
    iterations: int,
    nonnegative: bool,
    callback: Callback | None,
) -> Tensor:
    p, measured = scan.line_integrals, (scan.weights > 0).to(scan.line_integrals)
    x = p.new_zeros(len(p), *scan.grid.shape)
    parts = []
    for subset in ordered_subsets(scan, subset_views):
        rows = inverse(subset.A.forward(torch.ones_like(x))) * subset.of(measured)
        columns = inverse(subset.A.adjoint(subset.of(measured)))
        parts.append((subset, rows, columns))
    for iteration in range(iterations):
        step = relaxation / (1 + decay * iteration)
        for subset, rows, columns in parts:
            x = x + step * columns * subset.A.adjoint(rows * (subset.of(p) - subset.A.forward(x)))
            if nonnegative:
                x = x.clamp(min=0)
        if callback is not None:
            callback(iteration, x)
    return x
