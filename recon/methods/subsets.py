"""Ordered subsets of the views of a CT scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from operators.ct import XRay
from operators.linop import LinearOperator

from ..ct import PreparedCT
from ..errors import InputError


@dataclass(frozen=True)
class Subset:
    """Some views: their indices, and A = scale * XRay of them alone, from images (..., y, x) to (..., views, bins)."""

    views: Tensor
    A: LinearOperator

    def of(self, sinogram: Tensor) -> Tensor:
        """Its views of a sinogram (..., views, bins)."""
        return sinogram[..., self.views, :]


def ordered_subsets(scan: PreparedCT, subset_views: int) -> list[Subset]:
    """Subsets of about so many views, each spread over all of them; one of all views for 0.

    They follow each other in bit-reversed order, each as far as can be from those before it.

    References
    ----------
    Hudson and Larkin, IEEE Trans Med Imaging 13, 601 (1994).
    Order: Guan and Gordon, Phys Med Biol 39, 2005 (1994), for powers of 2.
    """
    views = scan.geometry.views
    count = max(1, round(views / subset_views)) if subset_views else 1
    line_integrals = scan.line_integrals
    subsets = []
    for first in bit_reversed(count):
        chosen = torch.arange(first, views, count)
        projector = XRay(
            scan.geometry.select(chosen), scan.grid, dtype=line_integrals.dtype, device=line_integrals.device
        )
        subsets.append(Subset(chosen.to(line_integrals.device), scan.scale * projector))
    return subsets


def bit_reversed(n: int) -> list[int]:
    """0 to n - 1 by their binary digits read backwards."""
    bits = max(1, (n - 1).bit_length())
    return sorted(range(n), key=lambda i: f"{i:0{bits}b}"[::-1])


def check_ct(scan: PreparedCT, name: str) -> None:
    """Raise InputError unless it is a CT scan."""
    if not isinstance(scan, PreparedCT):
        raise InputError(f"{name} needs line integrals of a CT scan (PreparedCT), got {type(scan).__name__}")


def inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0: rays that miss the image, pixels that no ray meets."""
    return torch.where(x > 0, 1 / x.where(x > 0, 1.0), 0.0)
