"""Training pairs for networks that reconstruct directly: undersampled multi-coil data, and the image behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from operators.fourier import fftc, ifftc
from operators.masks import acceleration, mask_function
from operators.mri import sense
from priors.supervised import Supervised
from priors.train import Player

from .biot_savart import receive_fields
from .errors import InputError
from .likelihood import Gaussian
from .methods import METHODS
from .mri import centre
from .simulation import coil_array
from .training_images import Rng, TrainingImages

# Arrays of coils to choose from, by their number; pairs have the largest, the rest of it zero.
_COILS = (4, 6, 8)
_ARRAYS = 48
# Maps vary slowly: they are kept on a grid of so many points a side.
_COARSE = 40
# Noise per real component, for images whose bright tissue is about 1.
_NOISE = (0.005, 0.03)

FACTS = {
    "scans": "simulated: loops by Biot and Savart (4, 6 or 8 coils), white noise of 0.5 to 3 %, 144 x 144 pixels, "
    "lines left out along one axis; the maps given bear a smooth error of up to 3 % and are 0 outside the object",
    "intended_use": "baseline for research, for masks and anatomy as in training; not validated for diagnosis",
}
"""For the card."""

Example = tuple[Tensor, Tensor, Tensor, Tensor]
"""kspace (coil, y, x), whitened; mask (y, x); maps (1, coil, y, x) with the whitening in them; image (1, y, x)."""


class TrainingScans:
    """scans[i] is an example: an image through the coils of a random array, with noise, along the lines of a mask.

    The maps that come with the data are not those that made them: they bear a smooth error of up to 3 % and are 0 where
    a blurred image is dark, as maps estimated from data are. The image is what these maps make of all the data without
    noise.

    Parameters
    ----------
    images : larger than the examples; they lose the edge of their k-space, so that pixels become larger.
    mask, accelerations : name of a pattern of lines in `operators.masks.MASKS`, and what to choose from.
    shape : of the examples, (y, x); lines are left out along x.
    seed : of the whole series.

    Raises
    ------
    InputError
        If the mask is unknown, leaves out points instead of lines, or cannot give an acceleration.
    """

    def __init__(
        self,
        images: TrainingImages,
        *,
        mask: str,
        accelerations: Sequence[float],
        shape: tuple[int, int] = (144, 144),
        seed: int = 0,
    ) -> None:
        self.images, self.mask, self.accelerations = images, mask, tuple(accelerations)
        self.shape, self.seed = shape, seed
        if not self.accelerations:
            raise InputError("accelerations: expected at least one, got none; give 4,8, say")
        try:
            for value in self.accelerations:
                mask_function(mask)(shape, value, axis=-1, seed=0)
        except TypeError as error:
            raise InputError(f"mask {mask}: expected a pattern of lines, such as random, to train on") from error
        except ValueError as error:
            raise InputError(f"mask {mask}: {error}") from error
        rng = np.random.default_rng((seed, 0))
        self.arrays = [random_array(rng) for _ in range(_ARRAYS)]

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, 1, index))
        image = low_resolution(self.images[index], self.shape)
        coils = unit_energy(upsample(self.arrays[rng.integers(_ARRAYS)], self.shape))
        maps = estimated(coils, image, rng)
        sigma = math.exp(rng.uniform(*np.log(_NOISE)))
        mask = mask_function(self.mask)(
            self.shape, float(rng.choice(self.accelerations)), axis=-1, seed=int(rng.integers(2**32))
        )
        kspace = mask * (fftc(coils * image, (-2, -1)) / sigma + white(coils.shape, rng))
        return kspace, mask, maps[None] / sigma, (maps.conj() * coils).sum(0, keepdim=True) * image


def low_resolution(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The image on fewer pixels: the centre of its k-space."""
    scale = math.sqrt(math.prod(shape) / image.numel())
    return scale * ifftc(centre(fftc(image, (-2, -1)), shape), (-2, -1))


def random_array(rng: Rng) -> Tensor:
    """Fields of an array of loops around a head that fills 0.72 to 1 of 200 to 300 mm, (coil, y, x) on a coarse grid.

    The coils that an array lacks are zero.
    """
    fov, coils = rng.uniform(200, 300), int(rng.choice(_COILS))
    loops = coil_array(coils, (fov * rng.uniform(0.36, 0.5), fov * rng.uniform(0.36, 0.5)), rng)
    at = fov * (torch.arange(_COARSE) + 0.5 - _COARSE / 2) / _COARSE
    points = F.pad(torch.stack(torch.meshgrid(at, at, indexing="ij"), -1), (1, 0), value=rng.uniform(-30, 30))
    return F.pad(receive_fields(points, loops), (0, 0, 0, 0, 0, max(_COILS) - coils))


def white(shape: Sequence[int], rng: Rng) -> Tensor:
    """Complex noise of variance 1 per real component."""
    return torch.view_as_complex(torch.from_numpy(rng.standard_normal((*shape, 2), dtype=np.float32)))


def upsample(fields: Tensor, shape: Sequence[int]) -> Tensor:
    """(coil, y, x) complex on another grid."""
    channels = torch.view_as_real(fields).movedim(-1, 0)
    fine = F.interpolate(channels, tuple(shape), mode="bicubic", align_corners=False)
    return torch.view_as_complex(fine.movedim(0, -1).contiguous())


def unit_energy(fields: Tensor) -> Tensor:
    """Sum of squares over the coils 1."""
    return fields * torch.view_as_real(fields).square().sum((0, -1)).rsqrt()  # vector_norm takes ten times as long


def estimated(coils: Tensor, image: Tensor, rng: Rng) -> Tensor:
    """Maps as they would be estimated: with a smooth error, and without what is outside the object."""
    error, points = rng.uniform(0, 0.03), int(rng.integers(3, 8))
    fields = upsample(white((len(coils), points, points), rng), image.shape)
    maps = unit_energy(coils + error * fields * (coils.abs().amax((1, 2), keepdim=True) > 0))
    size = 2 * int(rng.integers(2, 6)) + 1
    blurred = F.avg_pool2d(image.abs()[None, None], size, stride=1, padding=size // 2)[0, 0]
    return maps * (blurred > rng.uniform(0.02, 0.08))


class Supervision:
    """The objective of a network that reconstructs (see priors.train.Objective); examples are those of TrainingScans.

    The loss is the error of an image over the image, both as norms: images count alike, dark ones and bright ones, with
    few lines and with many.
    """

    opponent: Player | None = None

    def __init__(self, network: Supervised) -> None:
        self.model = network

    def draw(self, batch: Sequence[Tensor], rng: torch.Generator) -> tuple[Tensor, ...]:
        """The examples as they are: all that is random in them was drawn with them."""
        return tuple(batch)

    def loss(self, *drawn: Tensor) -> Tensor:
        return torch.stack([self.error(*example) for example in zip(*drawn, strict=True)]).mean()

    def error(self, kspace: Tensor, mask: Tensor, maps: Tensor, image: Tensor) -> Tensor:
        """||x - image|| / ||image||."""
        likelihood = Gaussian(sense(mask, maps), kspace)
        x = METHODS[self.model.task](likelihood, network=self.model)
        return torch.linalg.vector_norm(x - image) / torch.linalg.vector_norm(image)

    @torch.no_grad()
    def errors(self, examples: Sequence[Example]) -> dict[float, float]:
        """Root mean square of the relative error, by acceleration."""
        device = next(self.model.parameters()).device
        found: dict[float, list[float]] = {}
        for kspace, mask, maps, image in examples:
            error = float(self.error(*(part.to(device) for part in (kspace, mask, maps, image))))
            found.setdefault(round(acceleration(mask), 1), []).append(error**2)
        return {factor: math.sqrt(sum(squares) / len(squares)) for factor, squares in sorted(found.items())}
