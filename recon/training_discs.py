"""CT training images of industrial discs: one material with circular, polygonal and slotted holes, all synthetic."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.training_images import Rng, smooth_field, texture

PLASTIC = 0.035  # 1/mm, acrylic at 30 keV: the unit of the images


class DiscImages:
    """images[i] is a (y, x) float32 training image: a part of a random disc, attenuation over 0.035/mm.

    The same seed and index give the same image in any process and in any order.

    Parameters
    ----------
    shape : size of every image, (y, x); discs have radii of 70 to 260 pixels.
    seed : of the whole series.
    """

    def __init__(self, *, shape: tuple[int, int] = (256, 256), seed: int = 0) -> None:
        self.shape, self.seed = shape, seed

    def __getitem__(self, index: int) -> Tensor:
        return render(self.shape, np.random.default_rng((self.seed, index)))


def render(shape: tuple[int, int], rng: Rng) -> Tensor:
    """One image: material of the disc, less its holes, with cupping, shading and texture.

    X-rays harden on their way: thick parts seem less dense, by a quarter where the voltage is low, and together with
    scatter what is not there seems to be, in holes up to a fifth of the material.
    """
    radius = math.exp(rng.uniform(math.log(70), math.log(260)))
    room = np.maximum(0, 1.1 * radius - np.array(shape) / 2) + 10
    centre = rng.uniform(-room, room)
    y, x = torch.meshgrid(
        *(torch.arange(n) - (n - 1) / 2 - c for n, c in zip(shape, centre, strict=True)), indexing="ij"
    )
    outline = torch.hypot(y, x) - radius if rng.random() < 0.85 else polygon(y, x, corners(radius, rng))
    width = rng.uniform(1, 2.5)  # of a border in pixels: 1 for the mean over a pixel, more for a detector's blur
    material = coverage(outline, width)
    cupping = 1 - rng.uniform(0, 0.25) * (1 - (y.square() + x.square()) / radius**2).clamp(min=0)
    material = material * cupping * (1 + rng.uniform(0, 0.03) * smooth_field(shape, rng))
    filled = rng.random() < 0.1
    left = rng.uniform(0, 0.2) * (rng.random() < 0.7) * (1 + 0.3 * smooth_field(shape, rng))
    for distance in holes(y, x, radius, rng):
        hole = coverage(distance, width)
        material = material * (1 - hole) + (rng.uniform(0, 1.6) if filled else left) * hole
    image = material * (1 + rng.uniform(0, 0.25) * texture(shape, rng))
    if rng.random() < 0.5:  # what scatter and drift leave in air
        image = image + rng.uniform(-0.01, 0.02) + rng.uniform(0, 0.01) * smooth_field(shape, rng)
    return (image * math.exp(rng.uniform(math.log(0.7), math.log(1.4)))).float()


def coverage(distance: Tensor, width: float) -> Tensor:
    """The part of a pixel inside a border, from the signed distance (negative inside) in pixels."""
    return (0.5 - distance / width).clamp(0, 1)


def holes(y: Tensor, x: Tensor, radius: float, rng: Rng) -> list[Tensor]:
    """Signed distances to the holes of a disc that come into view; on most discs they keep clear of each other."""
    placed: list[tuple[float, float, float]] = []
    apart = rng.random() < 0.8
    biggest = math.log(rng.uniform(0.12, 0.5))
    for _ in range(rng.integers(0, 24)):
        size = radius * math.exp(rng.uniform(math.log(0.03), biggest))
        r, angle = (radius * 0.96 - size) * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
        cy, cx = r * math.sin(angle), r * math.cos(angle)
        if not apart or all(math.hypot(cy - v, cx - u) > size + other + 2 for v, u, other in placed):
            placed.append((cy, cx, size))
    kinds = rng.dirichlet((0.7, 1.2, 0.7))  # a disc's holes are often alike
    low, high = (float(y[0, 0]), float(x[0, 0])), (float(y[-1, -1]), float(x[-1, -1]))
    return [
        hole(y - cy, x - cx, size, rng.choice(3, p=kinds), rng)
        for cy, cx, size in placed
        if low[0] < cy + size and cy - size < high[0] and low[1] < cx + size and cx - size < high[1]
    ]


def hole(y: Tensor, x: Tensor, size: float, kind: int, rng: Rng) -> Tensor:
    """Signed distance to a circle or an ellipse, a polygon or a slot within `size` of the origin."""
    if kind == 0 and rng.random() < 0.5:
        return torch.hypot(y, x) - size
    if kind == 0:
        return ellipse(y, x, size, size * rng.uniform(0.4, 0.95), rng.uniform(0, math.pi))
    if kind == 1:
        rounding = size * rng.uniform(0, 0.4) * (rng.random() < 0.6)  # of the corners
        return polygon(y, x, corners(size - rounding, rng)) - rounding
    half, turn = size * rng.uniform(0.08, 0.45), rng.uniform(0, math.pi)
    along, across = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
    outside = (along.abs() - (size - half)).clamp(min=0)
    if rng.random() < 0.5:
        return torch.hypot(outside, across) - half
    return torch.maximum(along.abs() - 0.95 * (size - half / 2), across.abs() - half / 2)


def ellipse(y: Tensor, x: Tensor, long: float, short: float, turn: float) -> Tensor:
    """Signed distance to an ellipse with these semi-axes, to first order about its border."""
    u, v = (math.cos(turn) * x + math.sin(turn) * y) / long, (math.cos(turn) * y - math.sin(turn) * x) / short
    r = torch.hypot(u, v).clamp(min=1e-6)
    return (r - 1) * r / torch.hypot(u / long, v / short).clamp(min=1e-6)


def corners(size: float, rng: Rng) -> NDArray[np.float64]:
    """(corner, 2) of a polygon around the origin, y and x: regular, irregular or star-shaped."""
    count, kind = int(rng.integers(3, 9)), rng.random()
    angles = 2 * math.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count) * (kind > 0.5)) / count
    radii = size * (rng.uniform(0.45, 1, count) if kind > 0.75 else np.ones(count))
    points = np.stack((radii * np.sin(angles), radii * np.cos(angles)), -1)
    points[:, 0] *= rng.uniform(0.35, 1) if rng.random() < 0.4 else 1.0
    turn = rng.uniform(0, 2 * math.pi)
    return points @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])


def polygon(y: Tensor, x: Tensor, corners: NDArray[np.float64]) -> Tensor:
    """Signed distance to a polygon, negative inside: to the nearest edge, and by the parity of edges crossed."""
    square = torch.full(y.shape, math.inf)
    inside = torch.zeros(y.shape, dtype=torch.bool)
    for (ay, ax), (by, bx) in zip(corners.tolist(), np.roll(corners, -1, 0).tolist(), strict=True):
        ey, ex = by - ay, bx - ax
        share = (((y - ay) * ey + (x - ax) * ex) / (ey**2 + ex**2)).clamp(0, 1)
        square = square.minimum((y - ay - share * ey).square() + (x - ax - share * ex).square())
        if ey:
            inside ^= ((y > ay) != (y > by)) & (x < ax + (y - ay) * ex / ey)
    return square.sqrt() * torch.where(inside, -1.0, 1.0)
