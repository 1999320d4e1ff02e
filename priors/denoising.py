"""What training a denoiser consists of: patches, noise levels, the EDM loss, and the error that validates it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from priors.denoiser import EDM
from priors.train import Player, TrainConfig


@dataclass(frozen=True)
class DenoisingConfig(TrainConfig):
    """How to train a denoiser.

    Attributes
    ----------
    crops_per_image, crop : a batch is images_per_step * crops_per_image patches of crop x crop pixels.
    sigma_min, sigma_max : noise range, standard deviation per real component.
    sigma_median, sigma_spread : log-normal part of the noise distribution (spread in ln sigma).
    log_uniform : share of patches whose sigma is instead log-uniform over the whole range.
    sigma_data : standard deviation per real component of the images.
    """

    crops_per_image: int = 2
    crop: int = 128
    sigma_min: float = 0.002
    sigma_max: float = 10.0
    sigma_median: float = 0.12
    sigma_spread: float = 1.1
    log_uniform: float = 0.25
    sigma_data: float = 0.3


class Denoising:
    """The objective of a denoiser (see priors.train.Objective); examples are (y, x) images.

    Parameters
    ----------
    network : F(x, noise label) as in priors.denoiser.EDM, on the device to train on.
    config : patches and noise levels.

    References
    ----------
    Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS (2022).
    """

    opponent: Player | None = None

    def __init__(self, network: nn.Module, config: DenoisingConfig) -> None:
        self.model, self.config = edm(network, config), config

    def draw(self, batch: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Patches, a noise level for each, and noise."""
        x0 = crops(batch, self.config, rng)
        return x0, draw_sigmas(len(x0), self.config, rng), draw_noise(x0, rng)

    def loss(self, *drawn: Tensor) -> Tensor:
        x0, sigma, noise = drawn
        return edm_loss(self.model, x0, sigma, noise, self.config)

    def errors(self, examples: Sequence[Tensor]) -> dict[float, float]:
        return denoising_error(self.model, examples)


def edm(network: nn.Module, config: DenoisingConfig) -> EDM:
    return EDM(network, sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=config.sigma_data)


def crops(images: Tensor, config: DenoisingConfig, rng: torch.Generator) -> Tensor:
    """Random crop x crop patches, flipped and transposed, each with its own global phase."""
    if min(images.shape[1:]) < config.crop:
        raise ValueError(f"images of {tuple(images.shape[1:])} pixels are smaller than crops of {config.crop}")
    patches = []
    for image in images.repeat_interleave(config.crops_per_image, dim=0):
        top, left = (int(torch.randint(0, size - config.crop + 1, (), generator=rng)) for size in image.shape)
        patch = image[top : top + config.crop, left : left + config.crop]
        up, side, swap = (torch.rand(3, generator=rng) < 0.5).tolist()
        patch = patch.flip(0) if up else patch
        patch = patch.flip(1) if side else patch
        patches.append(patch.T if swap else patch)
    x0 = torch.stack(patches)
    if x0.is_complex():
        x0 = x0 * torch.exp(2j * torch.pi * torch.rand(len(x0), 1, 1, generator=rng))
    return x0


def draw_sigmas(count: int, config: DenoisingConfig, rng: torch.Generator) -> Tensor:
    """Noise levels: a log-normal cut to the range, by inverting its distribution function, mixed with a log-uniform."""
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    u = torch.rand(count, generator=rng, dtype=torch.float64)
    bounds = (torch.tensor([low, high], dtype=torch.float64) - math.log(config.sigma_median)) / config.sigma_spread
    a, b = torch.special.ndtr(bounds)
    normal = math.log(config.sigma_median) + config.sigma_spread * torch.special.ndtri(a + u * (b - a))
    uniform = low + u * (high - low)
    chosen = torch.rand(count, generator=rng) < config.log_uniform
    return torch.where(chosen, uniform, normal).exp().float()


def edm_loss(denoiser: EDM, x0: Tensor, sigma: Tensor, noise: Tensor, config: DenoisingConfig) -> Tensor:
    """lambda(sigma) |D(x0 + sigma n, sigma) - x0|^2 with lambda = 1 / c_out^2 (Karras et al. 2022, table 1)."""
    error = denoiser(x0 + sigma[:, None, None] * noise, sigma) - x0
    weight = (sigma**2 + config.sigma_data**2) / (sigma * config.sigma_data) ** 2
    return (weight[:, None, None] * error.abs().square()).mean()


def draw_noise(x0: Tensor, rng: torch.Generator) -> Tensor:
    """Noise like x0, of unit standard deviation per real component, drawn on the CPU whatever the device."""
    noise = torch.randn((*x0.shape, 2) if x0.is_complex() else x0.shape, generator=rng).to(x0.device)
    return torch.view_as_complex(noise) if x0.is_complex() else noise


def denoising_error(
    denoiser: EDM, images: Sequence[Tensor], *, sigmas: Sequence[float] = (0.03, 0.1, 0.3, 1.0)
) -> dict[float, float]:
    """Root mean square error per real component after denoising, by noise level; the noise is the same every time."""
    errors: dict[float, float] = {}
    for sigma in sigmas if len(images) else ():
        total, count = 0.0, 0
        for i, x0 in enumerate(images):
            rng = torch.Generator().manual_seed(i)
            with torch.no_grad():
                error = denoiser((x0 + sigma * draw_noise(x0, rng))[None], sigma)[0] - x0
            total += error.abs().square().sum().item()
            count += x0.numel() * (2 if x0.is_complex() else 1)
        errors[sigma] = math.sqrt(total / count)
    return errors
