"""What X-ray projections show without a model: filtered back-projection."""

from __future__ import annotations

import torch
from torch import Tensor

from operators.fbp import filtered_back_projection

from ..ct import PreparedCT
from .subsets import check_ct


def fbp(scan: PreparedCT, *, filter: str = "ram-lak", cutoff: float = 1.0) -> Tensor:
    """Filtered back-projection; fans by their own formula, short scans with Parker's weights.

    Bins without weight are interpolated between their neighbours of the same view.

    Parameters
    ----------
    filter : ram-lak, shepp-logan, cosine, hamming or hann: each smoother than the one before.
    cutoff : highest frequency that passes, in units of the highest that the bins can hold.

    Returns
    -------
    (slice, y, x) in units of the scan's scale.

    Raises
    ------
    InputError
        If it is no CT scan.
    ValueError
        As `operators.fbp.filtered_back_projection`.
    """
    check_ct(scan, "fbp")
    line_integrals = fill(scan.line_integrals, scan.weights > 0) / scan.scale
    return filtered_back_projection(line_integrals, scan.geometry, scan.grid, filter=filter, cutoff=cutoff)


def fill(values: Tensor, known: Tensor) -> Tensor:
    """Unknown values interpolated linearly along the last axis, continued beyond the last known; 0 where none is."""
    if bool(known.all()):
        return values
    n = values.shape[-1]
    index = torch.arange(n, device=values.device).expand(values.shape)
    before = index.where(known, -1).cummax(-1).values
    after = index.where(known, n).flip(-1).cummin(-1).values.flip(-1)
    left, right = before.where(before >= 0, after).clamp(max=n - 1), after.where(after < n, before).clamp(min=0)
    share = ((index - left) / (right - left).clamp(min=1)).to(values)
    filled = torch.lerp(values.gather(-1, left), values.gather(-1, right), share)
    return torch.where(known, values, filled).where(known.any(-1, keepdim=True), 0.0)
