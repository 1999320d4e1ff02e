"""Training images from folders of scans: endless, complex-valued, reproducible by index."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recon.errors import InputError

Rng = np.random.Generator


@dataclass(frozen=True)
class Volume:
    """A stack of slices to draw training images from.

    Attributes
    ----------
    data : (z, y, x) magnitude scaled to a 99th percentile of 1 (float16), complex image (complex64), or labels (uint8).
    spacing : mm along z, y, x.
    axes : the axes along which slices may be cut (a stack of thick slices only along its first).
    tissues, labels : for label maps, the tissue class of each label index, and FreeSurfer's label; None for images.
    """

    data: NDArray[np.generic]
    spacing: tuple[float, float, float]
    axes: tuple[int, ...] = (0, 1, 2)
    tissues: tuple[int, ...] | None = None
    weight: float = 1.0
    labels: tuple[int, ...] | None = None


class TrainingImages:
    """images[i] is a (y, x) complex64 training image: a random slice of a random volume, made to look as measured.

    The same seed and index give the same image in any process and in any order, and no global random state is touched.

    Parameters
    ----------
    volumes : where to cut slices.
    shape : size of every image, (y, x).
    seed : of the whole series.
    """

    def __init__(self, volumes: Sequence[Volume], *, shape: tuple[int, int] = (192, 192), seed: int = 0) -> None:
        if not volumes:
            raise InputError("training images need at least one volume, got none")
        self.volumes, self.shape, self.seed = list(volumes), shape, seed
        weights = np.array([v.weight for v in volumes])
        self.probabilities = weights / weights.sum()

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self.seed, index))
        for _ in range(TRIES):  # a slice may miss the head altogether
            image = render(self.volumes[rng.choice(len(self.volumes), p=self.probabilities)], self.shape, rng)
            if image is not None:
                return image
        raise InputError(
            f"{TRIES} random slices of the training volumes show next to nothing on {self.shape} pixels of about 1 mm: "
            "look at their voxel sizes, and leave out empty volumes"
        )


TRIES = 200
MARGIN = 12  # pixels cut off again after filtering in k-space, which wraps round


def render(volume: Volume, shape: tuple[int, int], rng: Rng) -> Tensor | None:
    """One training image, or None if there is nothing on the slice."""
    axis = int(rng.choice(volume.axes))
    plane, spacing = cut(volume, axis, rng)
    padded = (shape[0] + 2 * MARGIN, shape[1] + 2 * MARGIN)
    image = resample(plane, spacing, padded, rng)
    magnitude = image.abs()
    if (magnitude > 0.1).float().mean() < 0.05:
        return None
    if volume.tissues is not None:
        image = image * (1 + texture(padded, rng))
    elif not image.is_complex():
        image = contrast(image, rng)
    image = image * torch.exp(rng.uniform(0, 0.35) * smooth_field(padded, rng))
    if not image.is_complex():
        image = image * torch.exp(1j * phase(padded, rng))
    image = low_pass(image, rng)
    image = image / quantile(image, 0.99)
    image = receiver_noise(image, magnitude, rng)
    image = image[MARGIN:-MARGIN, MARGIN:-MARGIN]
    top = quantile(image, 0.99)
    if top < 0.2:
        return None
    return (image / top * math.exp(rng.uniform(math.log(0.7), math.log(1.45)))).to(torch.complex64)


def cut(volume: Volume, axis: int, rng: Rng) -> tuple[Tensor, tuple[float, float]]:
    """A slice (a slab of up to 3 mm) across `axis`, and its pixel spacing."""
    count = volume.data.shape[axis]
    thick = 1 + int(rng.integers(0, max(1, round(3 / volume.spacing[axis]))))
    start = int(rng.integers(0, max(1, count - thick + 1)))
    slab = np.moveaxis(volume.data, axis, 0)[start : start + thick]
    if volume.tissues is not None:
        slab = intensities(volume.tissues, rng)[slab]
    dtype = np.complex64 if np.iscomplexobj(slab) else np.float32
    spacing = [s for i, s in enumerate(volume.spacing) if i != axis]
    return torch.from_numpy(slab.astype(dtype).mean(axis=0)), (spacing[0], spacing[1])


# Tissue classes of label maps, with mean intensities for T1, proton density and T2 weighting.
TISSUES = ("air", "white matter", "cortex", "deep grey matter", "fluid", "other")
CONTRASTS = np.array(
    [
        [0.0, 0.95, 0.62, 0.74, 0.20, 0.60],
        [0.0, 0.70, 0.88, 0.82, 1.00, 0.60],
        [0.0, 0.40, 0.55, 0.48, 1.00, 0.40],
    ]
)


def intensities(tissues: tuple[int, ...], rng: Rng) -> NDArray[np.float32]:
    """One intensity per label: a T1-, PD- or T2-like table with scatter, or all at random."""
    kind = rng.choice(4, p=[0.5, 0.15, 0.15, 0.2])
    table = CONTRASTS[kind] + rng.normal(0, 0.07, 6) if kind < 3 else rng.uniform(0.05, 1, 6)
    values = table[list(tissues)] + rng.normal(0, 0.03, len(tissues))
    other = np.array(tissues) == TISSUES.index("other")
    values[other] = rng.uniform(0.02, 1.2, other.sum())
    values[np.array(tissues) == 0] = 0
    return np.maximum(values, 0).astype(np.float32)


def resample(plane: Tensor, spacing: tuple[float, float], shape: tuple[int, int], rng: Rng) -> Tensor:
    """The plane on a grid of 0.65 to 1.5 mm, shifted, turned, flipped and a little stretched (bicubic)."""
    pixel = math.exp(rng.uniform(math.log(0.7), math.log(1.4)))
    angle = rng.normal(0, 0.2) + math.pi / 2 * rng.integers(0, 4)
    stretch = np.exp(rng.normal(0, 0.06, 2)) * pixel
    flip = rng.choice([-1.0, 1.0])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.diag([flip * stretch[0], stretch[1]])  # output pixels to mm
    extent = np.array([n * s for n, s in zip(plane.shape, spacing, strict=True)])
    room = np.maximum(0, extent - np.array(shape) * pixel) / 2 + 10
    centre = rng.uniform(-room, room)
    y, x = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1) @ torch.from_numpy(matrix.T).float()
    grid = 2 * (grid + torch.from_numpy(centre).float()) / torch.from_numpy(extent).float()  # [-1, 1] over the plane
    channels = torch.view_as_real(plane).movedim(-1, 0) if plane.is_complex() else plane[None]
    out = F.grid_sample(channels[None], grid.flip(-1)[None], mode="bicubic", align_corners=False)[0]
    return torch.view_as_complex(out.movedim(0, -1).contiguous()) if plane.is_complex() else out[0].relu()


def contrast(image: Tensor, rng: Rng) -> Tensor:
    """A mild power law, so that three heads do not mean three contrasts."""
    return image.clamp(min=0) ** math.exp(rng.normal(0, 0.2))


def random_grid(shape: tuple[int, int], size: tuple[int, int], rng: Rng) -> Tensor:
    """Independent normal values on a coarse grid, interpolated (bicubic) to `shape`."""
    values = torch.from_numpy(rng.standard_normal(size).astype(np.float32))
    return F.interpolate(values[None, None], shape, mode="bicubic", align_corners=True)[0, 0]


def smooth_field(shape: tuple[int, int], rng: Rng) -> Tensor:
    n = int(rng.integers(2, 5))
    return random_grid(shape, (n, n), rng)


def texture(shape: tuple[int, int], rng: Rng) -> Tensor:
    """Fluctuation within a tissue, of several grain sizes."""
    total = torch.zeros(shape)
    for grain in (1.5, 3, 6, 16):
        size = (int(shape[0] / grain), int(shape[1] / grain))
        total = total + rng.uniform(0, 0.045) * random_grid(shape, size, rng)
    return total


def phase(shape: tuple[int, int], rng: Rng) -> Tensor:
    """Global phase, a low-order polynomial, a smooth field, and now and then a sharper one, in radians."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    terms = torch.stack([torch.ones(shape), y, x, y * y, x * x, x * y])
    strength = rng.choice([0.3, 1.0, 2.0])
    weights = rng.normal(0, strength, 6)
    weights[0] = rng.uniform(0, 2 * math.pi)
    total = torch.tensordot(torch.from_numpy(weights).float(), terms, dims=1)
    total = total + rng.uniform(0, 0.8) * smooth_field(shape, rng)
    if rng.random() < 0.25:
        n = int(rng.integers(8, 24))
        total = total + rng.uniform(0, 0.4) * random_grid(shape, (n, n), rng)
    return total


def low_pass(image: Tensor, rng: Rng) -> Tensor:
    """Half of the images lose the edge of k-space, sharply (Gibbs ringing) or through a taper."""
    if rng.random() < 0.5:
        return image
    windows = []
    for n in image.shape:
        frequency = torch.fft.fftfreq(n).abs() * 2
        edge, width = rng.uniform(0.65, 1.0), rng.choice([0.01, 0.1, 0.3])
        windows.append(torch.sigmoid((edge - frequency) / width * 4))
    return torch.fft.ifft2(torch.fft.fft2(image) * windows[0][:, None] * windows[1])


def receiver_noise(image: Tensor, magnitude: Tensor, rng: Rng) -> Tensor:
    """Complex noise of 0 to 1.2 % of the 99th percentile; on most images the outside of a dilated mask is then zero."""
    noise = rng.standard_normal((*image.shape, 2)).astype(np.float32)
    image = image + rng.uniform(0, 0.012) / math.sqrt(2) * torch.view_as_complex(torch.from_numpy(noise))
    if rng.random() < 0.35:
        return image
    size = 2 * int(rng.integers(2, 8)) + 1
    blurred = F.avg_pool2d(magnitude[None, None], size, stride=1, padding=size // 2)
    blurred = F.avg_pool2d(blurred, 5, stride=1, padding=2)[0, 0]
    return image * (blurred > rng.uniform(0.01, 0.08))


def quantile(image: Tensor, q: float) -> float:
    magnitude = image.abs().flatten()
    return float(magnitude.kthvalue(max(1, int(q * magnitude.numel()))).values) + 1e-6
