"""Sparsifying transforms: finite differences and orthonormal wavelets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .linop import LinearOperator, Space


class FiniteDifference(LinearOperator):
    """Forward differences along the spatial axes, stacked on a new first trailing axis; 0 at the far edges.

    (D x)_a[i] = x[i + 1] - x[i] along axis a; ||D||^2 < 4 space.ndim.

    Parameters
    ----------
    space : the images.
    """

    def __init__(self, space: Space) -> None:
        super().__init__(space, Space((space.ndim, *space.shape), space.dtype, space.device, space.ndim))
        self._stack_axis = -len(space.shape) - 1
        self._axes = range(-space.ndim, 0)

    def forward(self, x: Tensor) -> Tensor:
        gradient = x.new_zeros((*x.shape[: x.ndim + self._stack_axis + 1], *self.codomain.shape))
        for index, axis in enumerate(self._axes):
            length = x.shape[axis] - 1
            part = gradient.select(self._stack_axis, index).narrow(axis, 0, length)
            part.copy_(x.narrow(axis, 1, length) - x.narrow(axis, 0, length))
        return gradient

    def adjoint(self, y: Tensor) -> Tensor:
        result = torch.zeros_like(y.select(self._stack_axis, 0))
        for axis, part in zip(self._axes, y.unbind(self._stack_axis), strict=True):
            length = part.shape[axis] - 1
            inner = part.narrow(axis, 0, length)
            result.narrow(axis, 1, length).add_(inner)
            result.narrow(axis, 0, length).sub_(inner)
        return result


# Orthonormal scaling filters of Daubechies with 1, 2 and 4 vanishing moments (Ten Lectures on Wavelets, table 6.1).
_SQRT3, _SQRT2 = math.sqrt(3), math.sqrt(2)
SCALING_FILTERS = {
    "haar": (1 / _SQRT2, 1 / _SQRT2),
    "db2": tuple(c / (4 * _SQRT2) for c in (1 + _SQRT3, 3 + _SQRT3, 3 - _SQRT3, 1 - _SQRT3)),
    "db4": (
        0.2303778133088964, 0.7148465705529154, 0.6308807679298587, -0.0279837694168599,
        -0.1870348117190931, 0.0308413818355607, 0.0328830116668852, -0.0105974017850690,
    ),
}  # fmt: skip


class Wavelet(LinearOperator):
    """Orthonormal periodic wavelet transform of the spatial axes (Mallat's pyramid, in place).

    Each level multiplies every axis by a small orthogonal matrix: at image sizes matrix products are faster than
    strided convolutions, and the adjoint is exact. A length that is odd at some level carries its last sample over to
    the next one, so that any size is allowed and W^H W = W W^H = I always.

    Parameters
    ----------
    space : the images, real or complex.
    name : a key of SCALING_FILTERS.
    levels : depth of the pyramid; None goes down to 16 samples along the shortest axis, as is usual in MRI.

    References
    ----------
    Mallat, IEEE Trans Pattern Anal Mach Intell 11, 674 (1989).
    """

    def __init__(self, space: Space, *, name: str = "db2", levels: int | None = None) -> None:
        if name not in SCALING_FILTERS:
            raise ValueError(f"wavelet: expected one of {', '.join(SCALING_FILTERS)}, got {name!r}")
        if levels is not None and levels < 0:
            raise ValueError(f"levels: expected 0 or more, got {levels}")
        super().__init__(space, space)
        if levels is None:
            levels = max(1, int(math.log2(max(min(space.shape[-space.ndim :]), 32) / 16)))
        real = space.dtype.to_real()
        taps = torch.tensor(SCALING_FILTERS[name], dtype=torch.float64)
        self._levels: list[list[Tensor]] = []
        shape = space.shape[-space.ndim :]
        for _ in range(levels):
            self._levels.append([_level_matrix(n, taps).to(real).to(space.device) for n in shape])
            shape = tuple((n + 1) // 2 for n in shape)

    @property
    def levels(self) -> int:
        return len(self._levels)

    def scaling(self, coefficients: Tensor) -> Tensor:
        """View of the scaling coefficients, the coarse image, which a sparsity penalty leaves alone."""
        for axis, n in zip(range(-self.domain.ndim, 0), self.domain.shape[-self.domain.ndim :], strict=True):
            coefficients = coefficients.narrow(axis, 0, -(-n // 2**self.levels))
        return coefficients

    def forward(self, x: Tensor) -> Tensor:
        return _from_planes(self._analyse(_to_planes(x)), x.is_complex())

    def adjoint(self, y: Tensor) -> Tensor:
        return _from_planes(self._synthesise(_to_planes(y)), y.is_complex())

    def gram(self, x: Tensor) -> Tensor:
        return x

    def _analyse(self, planes: Tensor) -> Tensor:
        coefficients = planes.clone()
        for matrices in self._levels:
            block = _corner(coefficients, matrices)
            block.copy_(_multiply(block, matrices))
        return coefficients

    def _synthesise(self, planes: Tensor) -> Tensor:
        coefficients = planes.clone()
        for matrices in reversed(self._levels):
            block = _corner(coefficients, matrices)
            block.copy_(_multiply(block, [matrix.mT for matrix in matrices]))
        return coefficients


def _level_matrix(n: int, taps: Tensor) -> Tensor:
    """One level on n samples: scaling coefficients first, then wavelet coefficients."""
    even = n - n % 2
    high = taps.flip(0) * torch.tensor([(-1.0) ** k for k in range(len(taps))], dtype=taps.dtype)
    matrix = torch.zeros(n, n, dtype=taps.dtype)
    for i in range(even // 2):
        for k in range(len(taps)):
            matrix[i, (2 * i + k) % even] += taps[k]
            matrix[n - even // 2 + i, (2 * i + k) % even] += high[k]
    if n % 2:
        matrix[even // 2, n - 1] = 1.0
    return matrix


def _corner(coefficients: Tensor, matrices: list[Tensor]) -> Tensor:
    """View of the block on which a level acts."""
    for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
        coefficients = coefficients.narrow(axis, 0, len(matrix))
    return coefficients


def _multiply(block: Tensor, matrices: list[Tensor]) -> Tensor:
    """Apply one matrix along each trailing axis."""
    ndim = len(matrices)
    for axis, matrix in zip(range(-ndim, 0), matrices, strict=True):
        if axis == -1:
            block = block @ matrix.mT
        elif axis == -2:
            block = matrix @ block
        else:
            block = (matrix @ block.flatten(axis + 1)).unflatten(-1, block.shape[axis + 1 :])
    return block


def _to_planes(x: Tensor) -> Tensor:
    """Real and imaginary parts as a batch of two real images (products of real matrices with them are cheapest)."""
    return torch.stack((x.real, x.imag)) if x.is_complex() else x


def _from_planes(planes: Tensor, is_complex: bool) -> Tensor:
    return torch.complex(planes[0], planes[1]) if is_complex else planes
