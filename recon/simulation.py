"""Multi-coil scans simulated from label maps and magnitude volumes, by a model that no method inverts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from operators.fourier import fftc, ifftc

from .anatomy import Anatomy, slice_heights
from .biot_savart import Loops, receive_fields
from .coils import noise_factor
from .errors import InputError
from .mri import MRIScan, centre
from .training_images import Rng, Volume

# Part of the field of view that the object fills where the size of pixels is left open.
_FILL = 7 / 8
# Samples of the noise record.
_NOISE_SAMPLES = 4096
# Part of the coils' noise that comes from the body, which they share.
_SHARED_NOISE = 0.5
# Distance from the object to the coils, the largest radius of a loop, and how far rows and positions scatter, in mm.
_GAP, _LARGEST_LOOP, _ROW, _JITTER = 45.0, 70.0, 20.0, 4.0


def simulate(
    volume: Volume,
    *,
    shape: tuple[int, int] = (230, 180),
    slices: int = 1,
    position: float = 0.5,
    coils: int = 8,
    noise: float = 0.01,
    pixel: float | None = None,
    thickness: float = 3.0,
    oversampling: int = 3,
    seed: int = 0,
    name: str = "simulated",
) -> MRIScan:
    """A fully sampled Cartesian scan of axial slices through a head.

    The object is piecewise constant on cells `oversampling` times finer than the pixels, and several sub-slices thick:
    rho(r) = (mean over sub-slices of) m(r) t(r) exp(i (phi(r) + 2 pi TE df(r))), with brightness m of the tissues,
    texture and shading t, background phase phi and off-resonance df of air cavities. Coil c measures its exact Fourier
    transform, y_c(k) = integral of S_c rho exp(-2 pi i k r) dr + n_c, at the samples of the coarse grid, S_c the
    Biot-Savart field of a loop. Edges ring, tissues mix within pixels, maps must be estimated: no method inverts the
    model that made its data.

    The truth is the root sum of squares of the coil images of the noise-free k-space, hence what a perfect
    reconstruction with maps of unit sum of squares shows. It is the scan's `reference`. Its 99th percentile is 1.

    Parameters
    ----------
    volume : labels or magnitude (`recon.training_volumes.read_nifti`); labels get a contrast drawn as those of
        training images are.
    shape : (y, x) of k-space; rows are the readout.
    slices : how many, a thickness apart.
    position : of their middle, 0 to 1 between the heights where half of the largest area of brain (or body) is seen.
    coils : loops around the head.
    noise : standard deviation per real component in every coil, relative to the 99th percentile of the truth. The
        scan's `noise` is a record of 4096 samples (none for 0).
    pixel, thickness : of the image, in mm. None: the object fills 7/8 of the field of view along the tighter axis.
    oversampling : cells per pixel along each axis, at least 2.
    seed : of everything that is drawn; the same scan comes again on any machine.
    name : of the scan.

    Raises
    ------
    InputError
        For sizes out of range, a volume that shows nothing, or an object that reaches the edge of the field of view.

    References
    ----------
    Guerquin-Kern et al., IEEE Trans Med Imaging 31, 626 (2012) (the inverse crime, and coils by Biot-Savart).
    Billot et al., Med Image Anal 86, 102789 (2023) (random contrasts from label maps).
    """
    _check(shape, slices, position, coils, noise, pixel, thickness, oversampling)
    rng = np.random.default_rng((seed, 0))
    heights = slice_heights(volume, slices, position, thickness)
    head = Anatomy(volume, heights, rng=rng)
    if pixel is None:
        pixel = max(2 * half / (_FILL * n) for half, n in zip(head.half_extent, shape, strict=True))
    fine = (oversampling * shape[0], oversampling * shape[1])
    y, x = (_positions(n, pixel / oversampling) for n in fine)
    objects = [
        head.slice(height, y, x, thickness=thickness, rng=np.random.default_rng((seed, 1, i)))
        for i, height in enumerate(heights)
    ]
    _check_inside(objects, shape, pixel)

    loops = coil_array(coils, head.half_extent, rng)
    clean, overlap = [], torch.zeros(coils, coils, dtype=torch.complex128)
    for height, image in zip(heights, objects, strict=True):
        inside = image != 0
        points = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)[inside]
        points = F.pad(points, (1, 0), value=height - heights[len(heights) // 2])  # (point, zyx)
        fields = receive_fields(points, loops)
        overlap += (fields @ fields.mH).to(overlap)
        clean.append(torch.stack([fourier_samples(_scatter(image[inside] * s, inside), shape) for s in fields]))
    kspace = torch.stack(clean)
    truth = torch.linalg.vector_norm(ifftc(kspace, (-2, -1)), dim=1)
    scale = float(np.quantile(truth.numpy(), 0.99))
    kspace, truth = kspace / scale, truth / scale

    record = None
    if noise > 0:
        factor = noise_factor(noise**2 * noise_correlation(overlap)).to(kspace)
        record = factor @ _white((coils, _NOISE_SAMPLES), rng)
        white = torch.stack(
            [_white(kspace.shape[1:], np.random.default_rng((seed, 2, i))) for i in range(len(heights))]
        )
        kspace = kspace + torch.einsum("kc,scyx->skyx", factor, white)
    return MRIScan(
        kspace=kspace,
        mask=torch.ones(shape, dtype=torch.bool),
        mask_source="simulated, fully sampled",
        readout_axis=-2,
        voxel_size=(thickness, pixel, pixel),
        noise=record,
        reference=truth,
        fully_sampled=True,
        name=name,
        header={"simulation": f"{name}, seed {seed}, {coils} coils, noise {noise:g} of the 99th percentile"},
        notes=("simulated: the reference is the noise-free truth",),
    )


@dataclass(frozen=True)
class Distribution:
    """Where simulated scans of one slice are drawn from: what varies from scan to scan, and in which range.

    The slice's position in the brain is uniform, the level of the noise log-uniform; the rest is drawn by `simulate`.

    Parameters
    ----------
    shape, coils, thickness : as of `simulate`.
    noise : its least and largest level.
    """

    shape: tuple[int, int] = (230, 180)
    coils: int = 8
    noise: tuple[float, float] = (0.005, 0.02)
    thickness: float = 3.0

    def draw(self, volume: Volume, *, seed: int, index: int, name: str) -> MRIScan:
        """Scan `index` of the series that the seed names, of a volume.

        Raises
        ------
        InputError
            As `simulate`, and if the range of the noise is empty or not positive.
        """
        low, high = self.noise
        if not 0 < low <= high < math.inf:
            raise InputError(f"noise: expected a range LOW,HIGH of positive levels, got {low:g},{high:g}")
        rng = np.random.default_rng((seed, 3, index))
        return simulate(
            volume,
            shape=self.shape,
            coils=self.coils,
            thickness=self.thickness,
            position=float(rng.uniform()),
            noise=math.exp(rng.uniform(math.log(low), math.log(high))),
            seed=int(rng.integers(2**32)),
            name=name,
        )


def fourier_samples(cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """Fourier transform of a piecewise constant object at the samples of a coarser grid with the same field of view.

    Y(k) = sinc(k_y / n_y) sinc(k_x / n_x) sum_j f_j exp(-2 pi i k r_j), exact for cells of constant value.

    Parameters
    ----------
    cells : (..., y, x) complex; a whole multiple of `shape`. The origin is the centre of cell n // 2.
    shape : (ky, kx) of the samples, in cycles per field of view, DC at n // 2.

    Returns
    -------
    (..., ky, kx), scaled so that its inverse orthonormal FFT has the values of the cells.

    Raises
    ------
    ValueError
        If the cells are no whole multiple of the shape.
    """
    factors = [n / m for n, m in zip(cells.shape[-2:], shape, strict=True)]
    if not all(f >= 1 and f == int(f) for f in factors):
        raise InputError(
            f"fourier_samples: expected cells (y, x) a whole multiple of {shape}, got {tuple(cells.shape[-2:])}"
        )
    low = centre(fftc(cells, (-2, -1)), shape)
    for axis, (n, m) in enumerate(zip(cells.shape[-2:], shape, strict=True)):
        k = (torch.arange(m) - m // 2).to(low.real.dtype)
        low = low * torch.sinc(k / n).reshape(-1, *[1] * (1 - axis))
    return low / math.sqrt(math.prod(factors))


def coil_array(coils: int, half_extent: tuple[float, float], rng: Rng) -> Loops:
    """Loops on an elliptic cylinder around the object, tangential to it, in two rows above and below the slice.

    Parameters
    ----------
    half_extent : of the object along (y, x), in mm.
    """
    a, b = (h + _GAP for h in half_extent)
    angles = 2 * math.pi * (np.arange(coils) + rng.uniform()) / coils
    spacing = math.pi * (a + b) / coils  # about the circumference of the ellipse over the number of coils
    rows = _ROW * (np.arange(coils) % 2 - 0.5) * 2
    places = np.stack([rows, a * np.sin(angles), b * np.cos(angles)], 1)
    normals = np.stack([np.zeros(coils), np.sin(angles) / a, np.cos(angles) / b], 1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    places = places + np.abs(rng.normal(0, _JITTER, (coils, 1))) * normals  # outwards: wires stay clear of the object
    radius = min(0.6 * spacing, _LARGEST_LOOP)
    return Loops(torch.from_numpy(places).float(), torch.from_numpy(normals).float(), radius)


def noise_correlation(overlap: Tensor) -> Tensor:
    """Correlation of the coils' noise: half of it their own, half of the body that they share.

    Coils that see the same tissue see the same noise. What they share is taken as the overlap of their sensitivities,
    a stand-in for that of their electric fields.

    Parameters
    ----------
    overlap : (coil, coil) complex, sum of S S^H over the object.

    Returns
    -------
    (coil, coil) complex Hermitian, ones on its diagonal.
    """
    level = overlap.diagonal().real.sqrt()
    return (1 - _SHARED_NOISE) * torch.eye(len(overlap)) + _SHARED_NOISE * overlap / torch.outer(level, level)


def _positions(n: int, step: float) -> Tensor:
    """Centres of n cells in mm, the origin at n // 2."""
    return step * (torch.arange(n) - n // 2)


def _scatter(values: Tensor, inside: Tensor) -> Tensor:
    """Values at the points of a mask, 0 elsewhere."""
    return torch.zeros(inside.shape, dtype=values.dtype).masked_scatter(inside, values)


def _white(shape: tuple[int, ...], rng: Rng) -> Tensor:
    """Complex noise of variance 1 per real component."""
    return torch.view_as_complex(torch.from_numpy(rng.standard_normal((*shape, 2), dtype=np.float32)))


def _check_inside(objects: list[Tensor], shape: tuple[int, int], pixel: float) -> None:
    """Raise InputError if the object reaches the edge: what lies beyond would be cut off."""
    for image in objects:
        if not bool(image.any()):
            raise InputError("simulation: expected slices that show something, got an empty one; change the position")
        edge = torch.cat((image[0], image[-1], image[:, 0], image[:, -1]))
        if bool(edge.any()):
            raise InputError(
                f"simulation: the object reaches the edge of the field of view of {shape[0] * pixel:g} x "
                f"{shape[1] * pixel:g} mm; give more pixels (shape) or larger ones (pixel)"
            )


def _check(
    shape: tuple[int, int],
    slices: int,
    position: float,
    coils: int,
    noise: float,
    pixel: float | None,
    thickness: float,
    oversampling: int,
) -> None:
    expected: list[tuple[str, Any, bool, str]] = [
        ("shape", shape, len(shape) == 2 and min(shape) >= 16, "two sizes of at least 16"),
        ("slices", slices, slices >= 1, "at least 1"),
        ("position", position, 0 <= position <= 1, "0 to 1"),
        ("coils", coils, coils >= 1, "at least 1"),
        ("noise", noise, 0 <= noise < math.inf, "a finite number, 0 or more"),
        ("pixel", pixel, pixel is None or 0 < pixel < math.inf, "mm, above 0"),
        ("thickness", thickness, 0 < thickness < math.inf, "mm, above 0"),
        ("oversampling", oversampling, oversampling >= 2, "at least 2: with 1 the grid would be that of the image"),
    ]
    for name, value, good, what in expected:
        if not good:
            raise InputError(f"simulation: {name}: expected {what}, got {value}")
