"""CT training images of heads: label maps rendered as attenuation in units of 0.02/mm, that of water nearly."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recon.errors import InputError
from recon.training_images import Rng, Volume, random_grid, smooth_field, texture

WATER = 0.02  # 1/mm at 62 keV: the unit of the images


class Material(NamedTuple):
    """Labels of FreeSurfer's kind, CT number in HU, and its standard deviation from image to image."""

    labels: tuple[int, ...]
    hu: float
    scatter: float


MATERIALS = (
    Material((0,), -1000, 0),
    Material((515,), 1350, 250),
    Material((516,), 550, 200),
    Material((), 55, 8),  # every other label from 500 on: muscle, and fat in it
    Material((511,), 40, 20),
    Material((509,), 35, 12),
    Material((30, 62, 508, 514), 55, 10),
    Material((512, 530), 28, 3),  # and every other label: white matter
    Material((3, 8, 17, 18, 42, 47, 53, 54), 38, 3),
    Material((10, 11, 12, 13, 26, 49, 50, 51, 52, 58), 36, 3),
    Material((4, 5, 14, 15, 24, 43, 44, 72), 7, 4),
    Material((506,), 12, 5),
)
AIR, COMPACT, SPONGY, SOFT = range(4)
BRAIN = WHITE, CORTEX, DEEP = 7, 8, 9
FAT = (-95.0, 12.0)
FINE = 0.75  # mm: larger pixels are the mean of 2 x 2 samples


class HeadImages:
    """images[i] is a (y, x) float32 training image: a random axial slice of a random head, attenuation over 0.02/mm.

    The same seed and index give the same image in any process and in any order.

    Parameters
    ----------
    volumes : label maps.
    shape : size of every image, (y, x); pixels have 0.5 to 1.2 mm.
    seed : of the whole series.

    Raises
    ------
    InputError
        If there is no volume, one is no label map, or one shows no brain.
    """

    def __init__(self, volumes: Sequence[Volume], *, shape: tuple[int, int] = (192, 192), seed: int = 0) -> None:
        if not volumes or any(v.labels is None for v in volumes):
            raise InputError(
                "CT images of heads are rendered from FreeSurfer label maps: expected these alone, got "
                f"{sum(v.labels is None for v in volumes)} other volumes of {len(volumes)}; leave those out (exclude)"
            )
        self.heads, self.shape, self.seed = [Head(v) for v in volumes], shape, seed
        weights = np.array([v.weight for v in volumes])
        self.probabilities = weights / weights.sum()

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        head = self.head(rng)
        return render(head, self.shape, math.exp(rng.uniform(math.log(0.5), math.log(1.2))), rng)

    def head(self, rng: Rng) -> "Head":
        """A random one, by the weights of their volumes."""
        return self.heads[rng.choice(len(self.heads), p=self.probabilities)]


class Head:
    """A label map as materials, and where it lies: heights of its cortex in mm, and its ends."""

    def __init__(self, volume: Volume) -> None:
        assert volume.labels is not None
        known = {label: i for i, material in enumerate(MATERIALS) for label in material.labels}
        others = [SOFT if label >= 500 else WHITE for label in volume.labels]
        materials = np.array([known.get(*pair) for pair in zip(volume.labels, others, strict=True)], np.uint8)
        self.materials, self.spacing = materials[volume.data], volume.spacing
        brain = np.flatnonzero((self.materials == CORTEX).any((1, 2)))
        if not len(brain):
            raise InputError(
                "CT images of heads: expected a label map that shows a brain, got one without; leave it out"
            )
        dz, dy, dx = volume.spacing
        body = self.materials[brain] != AIR
        self.heights = (brain[0] * dz, brain[-1] * dz)
        self.y, self.x = ((np.flatnonzero(body.any(a))[[0, -1]] * d).tolist() for a, d in (((0, 2), dy), ((0, 1), dx)))

    def at(self, points: Tensor) -> Tensor:
        """The material at points (..., 3) in mm along z, y, x; air outside."""
        voxels = (points / torch.tensor(self.spacing)).round().long()
        size = torch.tensor(self.materials.shape)
        inside = ((voxels >= 0) & (voxels < size)).all(-1)
        z, y, x = (voxels.clamp(torch.zeros(3, dtype=torch.long), size - 1)).unbind(-1)
        return torch.from_numpy(self.materials)[z, y, x].where(inside, AIR)


def render(head: Head, shape: tuple[int, int], pixel: float, rng: Rng) -> Tensor:
    """One slice of 1 to 5 mm, its gantry tilted, through a head a little stretched and turned; pixel in mm."""
    samples = 1 if pixel < FINE else 2  # a pixel, along each axis
    fine = (samples * shape[0], samples * shape[1])
    tilt, turn = rng.uniform(-0.15, 0.4), rng.normal(0, 0.12)
    middle = np.array([np.mean(head.y), np.mean(head.x)])
    room = np.maximum(0, np.array([np.ptp(head.y), np.ptp(head.x)]) - np.array(shape) * pixel) / 2 + 12
    middle = middle + rng.uniform(-room, room)
    stretch = np.exp(rng.normal(0, 0.05, 2)) * pixel / samples
    v, u = (stretch[i] * (torch.arange(n) - (n - 1) / 2) for i, n in enumerate(fine))
    v, u = torch.meshgrid(v.float(), u.float() * rng.choice([-1.0, 1.0]), indexing="ij")
    y, x = math.cos(turn) * v - math.sin(turn) * u, math.sin(turn) * v + math.cos(turn) * u
    height = rng.uniform(*head.heights) + (middle[0] - np.mean(head.y)) * math.tan(tilt)
    thickness = math.exp(rng.uniform(0, math.log(5)))
    depths = thickness * ((np.arange(count := math.ceil(thickness)) + 0.5) / count - 0.5)
    bias = torch.from_numpy(rng.uniform(0.85, 1.15, len(MATERIALS))).float()
    bias[[COMPACT, SPONGY]] *= rng.uniform(0.8, 1.6)  # thin and thick skulls
    size = max(3, 2 * round(0.6 * samples / pixel) + 1)  # 1.2 mm or more
    parts = torch.zeros(len(MATERIALS), *fine)
    for depth in depths:
        z = height + depth * math.cos(tilt) + y * math.sin(tilt)
        points = (z, middle[0] + y * math.cos(tilt) - depth * math.sin(tilt), middle[1] + x)
        add_parts(parts, head.at(torch.stack(points, -1).float()), bias, size)
    hu = (parts * ct_numbers(fine, pixel / samples, rng)).sum(0) / len(depths)
    hu = hu.maximum(holder(y + middle[0] - head.y[0], x + middle[1] - np.mean(head.x), rng))
    hu = F.avg_pool2d(hu[None, None], samples)
    a = rng.uniform(0, 0.2) if rng.random() < 0.8 else rng.uniform(-0.06, 0)  # soft kernels, and sharp ones
    for weights in (torch.tensor([[a, 1 - 2 * a, a]]), torch.tensor([[a], [1 - 2 * a], [a]])):
        hu = F.conv2d(hu, weights[None, None].float(), padding="same")
    return ((1 + hu[0, 0] / 1000).clamp(min=0) * rng.uniform(0.95, 1.05)).float()


def add_parts(parts: Tensor, materials: Tensor, bias: Tensor, size: int) -> None:
    """Add each material's part of every sample: smoothed over `size` samples and sharpened again, so that voxels do
    not show, borders keep their width, and a bias makes bone thicker or thinner."""
    found = materials.unique()
    weight = (materials == found[:, None, None]).float()[None]
    for kernel in ((1, size), (size, 1)) * 2:
        weight = F.avg_pool2d(weight, kernel, stride=1, padding=(kernel[0] // 2, kernel[1] // 2))
    weight = (weight[0] * bias[found.long(), None, None]).square().square()
    parts[found.long()] += weight / weight.sum(0)


def ct_numbers(shape: tuple[int, int], pixel: float, rng: Rng) -> Tensor:
    """(material, y, x) in HU: each material's own value, and how it varies over the slice."""

    def field(grain: float) -> Tensor:
        """Normal values that vary over `grain` mm."""
        size = (max(2, round(shape[0] * pixel / grain)), max(2, round(shape[1] * pixel / grain)))
        return random_grid(shape, size, rng)

    mean = np.array([m.hu for m in MATERIALS]) + np.array([m.scatter for m in MATERIALS]) * rng.standard_normal(
        len(MATERIALS)
    )
    hu = torch.from_numpy(mean).float()[:, None, None].repeat(1, *shape)
    hu[COMPACT] *= (1 + 0.1 * field(15) + rng.uniform(0, 0.08) * field(2)).clamp(0.5, 1.5)
    hu[SPONGY] += rng.uniform(0, 0.2) * hu[COMPACT] * field(2) + 0.1 * hu[COMPACT] * field(12)
    if rng.random() < 0.4:  # air cells, as in the mastoid
        cells = (field(40) > rng.uniform(0.4, 1.2)) & (field(rng.uniform(2, 5)) > rng.uniform(-0.3, 0.6))
        hu[[COMPACT, SPONGY]] = torch.where(cells, rng.uniform(-1000, -400), hu[[COMPACT, SPONGY]])
    fat = torch.sigmoid(rng.uniform(3, 8) * (field(rng.uniform(5, 12)) + rng.uniform(-0.8, 1.2)))
    hu[SOFT] += fat * (rng.normal(*FAT) - hu[SOFT])
    grains = 100 * texture(shape, rng)
    hu[1:] += grains + rng.uniform(0, 6) * smooth_field(shape, rng)
    hu[SOFT] += 2 * grains
    for _ in range(rng.poisson(0.5)):
        lesion(hu, pixel, rng)
    return hu


def lesion(hu: Tensor, pixel: float, rng: Rng) -> None:
    """Blood, infarct or calcification in the brain: an ellipse with an uneven border."""
    change, low, high = ((35.0, 3.0, 25.0), (-14.0, 4.0, 30.0), (200.0, 1.0, 4.0))[rng.choice(3)]
    shape = hu.shape[1], hu.shape[2]
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    cy, cx = (rng.uniform(0, n) for n in shape)
    radii = rng.uniform(low, high) * np.exp(rng.normal(0, 0.25, 2)) / pixel
    distance = ((y - cy) / radii[0]).square() + ((x - cx) / radii[1]).square()
    inside = torch.sigmoid(rng.uniform(4, 12) * (1 - distance + 0.3 * smooth_field(shape, rng)))
    hu[list(BRAIN)] += change * rng.uniform(0.6, 1.4) * inside


def holder(y: Tensor, x: Tensor, rng: Rng) -> Tensor:
    """A curved shell behind the head, in HU, with foam on it or not; y, x in mm from the back of the head's middle."""
    air = torch.full(y.shape, -1000.0)
    if rng.random() < 0.4:
        return air
    radius, gap, thickness = rng.uniform(90, 150), rng.uniform(2, 20), rng.uniform(1.5, 6)
    centre = radius - gap
    r, angle = torch.hypot(y - centre, x), torch.atan2(x, centre - y).abs()
    arc = angle < rng.uniform(0.6, 1.7)
    shell, foam = (r > radius) & (r < radius + thickness) & arc, (r > radius - gap) & (r <= radius) & arc
    core = shell & (r > radius + 1) & (r < radius + thickness - 1)
    air[foam] = rng.uniform(-985, -900) if rng.random() < 0.6 else -1000
    air[shell] = rng.uniform(-300, 200)
    air[core] = rng.uniform(-950, 100)
    return air
