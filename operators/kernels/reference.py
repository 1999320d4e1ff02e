"""Joseph's method in plain torch: runs anywhere, and says what the compiled kernels must give.

The rows of the image are taken one by one, all rays at once. Arguments are those of `operators.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def forward(images: Tensor, rays: Tensor, runs: Tensor) -> Tensor:
    """(batch, y, x) -> (batch, views, bins)."""
    _, views, bins = rays.shape
    result = images.new_zeros(len(images), views * bins)
    for axis, ray in _rays_by_axis(runs):
        start, step, length = rays.flatten(1)[:, ray]
        rows = torch.nn.functional.pad(images.mT if axis == 1 else images, (1, 2))
        total = images.new_zeros(len(images), len(ray))
        for k, row in enumerate(rows.unbind(1)):
            index, upper = _crossing(start, step, k, row.shape[-1] - 3)
            low = row[:, index]
            total += low + upper * (row[:, index + 1] - low)
        result[:, ray] = length * total
    return result.reshape(len(images), views, bins)


def adjoint(sinograms: Tensor, rays: Tensor, runs: Tensor, height: int, width: int) -> Tensor:
    """(batch, views, bins) -> (batch, y, x)."""
    result = sinograms.new_zeros(len(sinograms), height, width)
    for axis, ray in _rays_by_axis(runs):
        start, step, length = rays.flatten(1)[:, ray]
        values = length * sinograms.flatten(1)[:, ray]
        count, columns = (width, height) if axis == 1 else (height, width)
        rows = sinograms.new_zeros(len(sinograms), count, columns + 3)
        for k, row in enumerate(rows.unbind(1)):
            index, upper = _crossing(start, step, k, columns)
            part = upper * values
            row.index_add_(1, index, values - part)
            row.index_add_(1, index + 1, part)
        inside = rows[..., 1:-2]
        result += inside.mT if axis == 1 else inside
    return result


def _crossing(start: Tensor, step: Tensor, row: int, columns: int) -> tuple[Tensor, Tensor]:
    """The pixel before the crossing, counted in a row with a zero before it, and the weight of the pixel after it."""
    position = ((start + 1) + step * row).clamp(0, columns + 1)
    index = position.long()
    return index, position - index


def _rays_by_axis(runs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The flat indices of the rays that go row by row along y (0) and along x (1)."""
    for axis in range(2):
        first, count, _ = runs[runs[:, 2] == axis].long().unbind(1)
        before = count.cumsum(0) - count
        ray = torch.repeat_interleave(first - before, count)
        if len(ray) > 0:
            yield axis, ray + torch.arange(len(ray), device=runs.device)
