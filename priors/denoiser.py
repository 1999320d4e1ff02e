"""The Denoiser: every prior in one form, D(x, sigma) = E[x0 | x0 + sigma n = x]."""

from typing import Protocol

import torch
from torch import Tensor, nn


class Denoiser(Protocol):
    sigma_min: float
    sigma_max: float
    ndim: int
    is_complex: bool

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor: ...


def per_sample(sigma: Tensor | float, x: Tensor, ndim: int) -> Tensor:
    """sigma as a real tensor that broadcasts against x: one value, or one for each of the leading (batch) indices."""
    value = torch.as_tensor(sigma, dtype=x.real.dtype, device=x.device)
    return value.reshape(*value.shape, *[1] * (x.ndim - value.ndim)) if value.ndim else value


class EDM(nn.Module):
    def __init__(self, network: nn.Module, *, sigma_min: float, sigma_max: float, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.ndim: int = network.ndim  # type: ignore[assignment]
        self.is_complex: bool = network.is_complex  # type: ignore[assignment]

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        s = per_sample(sigma, x, self.ndim)
        total = (s**2 + self.sigma_data**2).sqrt()
        label = (s.log() / 4).expand(*x.shape[: -self.ndim], *[1] * self.ndim).reshape(x.shape[: -self.ndim])
        return self.sigma_data**2 / total**2 * x + s * self.sigma_data / total * self.network(x / total, label)
