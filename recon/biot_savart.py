"""Receive coils as circular loops: their magnetic field by the law of Biot and Savart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True)
class Loops:
    """Circular loops of thin wire; lengths in mm, vectors along (z, y, x).

    Parameters
    ----------
    centres : (loop, 3).
    normals : (loop, 3), of unit length.
    radius : of every loop.
    """

    centres: Tensor
    normals: Tensor
    radius: float

    def __len__(self) -> int:
        """Number of loops."""
        return len(self.centres)


def loop_field(points: Tensor, centre: Tensor, normal: Tensor, radius: float, *, segments: int = 32) -> Tensor:
    """Magnetic field of a loop that carries unit current, in units of mu_0 / (4 pi).

    B(r) = integral of dl x (r - l) / |r - l|^3 along the wire, by the trapezoidal rule: for a periodic integrand its
    error falls exponentially, about as exp(-segments * distance to the wire / radius). On the axis, at height z,
    B = 2 pi R^2 / (R^2 + z^2)^(3/2).

    Parameters
    ----------
    points : (..., 3) in mm.
    centre, normal : (3,); the normal of unit length.
    radius : R in mm.
    segments : points on the wire.

    Returns
    -------
    (..., 3). Infinite or NaN on the wire itself.

    Raises
    ------
    ValueError
        If the radius is not positive or there are fewer than 3 segments.

    References
    ----------
    Jackson, Classical Electrodynamics, 3rd ed., sections 5.2 and 5.5.
    """
    if not radius > 0 or segments < 3:
        raise InputError(
            f"loop: expected a positive radius and at least 3 segments, got radius {radius} and {segments} segments"
        )
    normal = normal.to(points)
    u = torch.linalg.cross(normal, torch.eye(3).to(points)[int(normal.abs().argmin())])
    u = u / u.norm()
    v = torch.linalg.cross(normal, u)  # u, v, normal are right-handed: the current turns from u to v
    p = points - centre.to(points)
    pu, pv, pw = p @ u, p @ v, p @ normal
    square = p.square().sum(-1) + radius**2
    total, even, odd = (torch.zeros_like(pu) for _ in range(3))
    for step in range(segments):
        cos, sin = math.cos(2 * math.pi * step / segments), math.sin(2 * math.pi * step / segments)
        weight = (square - 2 * radius * (cos * pu + sin * pv)).rsqrt() ** 3  # 1 / |r - l|^3
        total, even, odd = total + weight, even + cos * weight, odd + sin * weight
    # dl x (r - l) = R (w cos, w sin, R - u cos - v sin) d angle in the frame of the loop
    field = pw[..., None] * (even[..., None] * u + odd[..., None] * v)
    field = field + (radius * total - pu * even - pv * odd)[..., None] * normal
    return 2 * math.pi / segments * radius * field


def receive_fields(points: Tensor, loops: Loops) -> Tensor:
    """Sensitivities of loops by reciprocity, B_x - i B_y of a unit current, with the main field along z.

    Parameters
    ----------
    points : (..., 3) in mm along (z, y, x).

    Returns
    -------
    (loop, ...) complex.

    References
    ----------
    Hoult, Concepts Magn Reson 12, 173 (2000).
    """
    fields = [
        loop_field(points, centre, normal, loops.radius)
        for centre, normal in zip(loops.centres, loops.normals, strict=True)
    ]
    return torch.stack([torch.complex(b[..., 2], -b[..., 1]) for b in fields])
