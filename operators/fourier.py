"""Centred orthonormal Fourier transforms: index n // 2 is the origin in both domains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fftc(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Centred orthonormal FFT along `axes`, image to k-space (unitary)."""
    axes = list(axes)
    x = torch.fft.fftn(torch.fft.ifftshift(x, dim=axes), dim=axes, norm="ortho")
    return torch.fft.fftshift(x, dim=axes)


def ifftc(y: Tensor, axes: Sequence[int]) -> Tensor:
    """Centred orthonormal inverse FFT along `axes`, k-space to image (unitary)."""
    axes = list(axes)
    y = torch.fft.ifftn(torch.fft.ifftshift(y, dim=axes), dim=axes, norm="ortho")
    return torch.fft.fftshift(y, dim=axes)
