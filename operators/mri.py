"""Multi-coil MRI: Cartesian SENSE."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .fourier import fftc, ifftc
from .linop import SVD, Identity, LinearOperator, Space
from .sampling import readout_axes


def sense(mask: Tensor, sens_maps: Tensor) -> LinearOperator:
    """Cartesian SENSE: k-space of an image seen by several coils.

    The transform is centred and orthonormal, so with maps whose sum of squares is 1 the operator norm is at most 1.

    Parameters
    ----------
    mask : (ky, kx) or (kz, ky, kx) bool; True where sampled.
    sens_maps : (..., set, coil, y, x) or (..., set, coil, z, y, x) complex; axes before `set` (slices, say) are
        problems side by side. One set of maps of ones is single-coil MRI.

    Returns
    -------
    LinearOperator from images (..., set, y, x) to k-space (..., coil, ky, kx), which is 0 where nothing was sampled.

    Raises
    ------
    ValueError
        If mask is not bool, maps are not complex, or their trailing axes differ.

    References
    ----------
    Pruessmann et al., Magn Reson Med 42, 952 (1999); several sets: Uecker et al., Magn Reson Med 71, 990 (2014).
    """
    return Sense(mask, sens_maps)


class Sense(LinearOperator):
    """See `sense`."""

    def __init__(self, mask: Tensor, sens_maps: Tensor) -> None:
        ndim = mask.ndim
        if mask.dtype != torch.bool:
            raise ValueError(f"mask: expected dtype torch.bool, got {mask.dtype}; use mask != 0")
        if not sens_maps.is_complex() or sens_maps.ndim < ndim + 2:
            raise ValueError(
                f"sens_maps: expected complex (..., set, coil, *{tuple(mask.shape)}), got {sens_maps.dtype} of shape "
                f"{tuple(sens_maps.shape)}; add axes for set and coil, or convert with sens_maps.to(torch.complex64)"
            )
        if sens_maps.shape[-ndim:] != mask.shape:
            raise ValueError(
                f"mask {tuple(mask.shape)} and sens_maps {tuple(sens_maps.shape)} differ in their last {ndim} axes; "
                "estimate the maps at the size of the mask"
            )
        if mask.device != sens_maps.device:
            raise ValueError(f"mask is on {mask.device}, sens_maps on {sens_maps.device}; move them to one device")
        *batch, sets, coils = sens_maps.shape[:-ndim]
        domain = Space((*batch, sets, *mask.shape), sens_maps.dtype, sens_maps.device, ndim)
        codomain = Space((*batch, coils, *mask.shape), sens_maps.dtype, sens_maps.device, ndim)
        super().__init__(domain, codomain)
        self.mask = mask
        self.sens_maps = sens_maps
        self._axes = tuple(range(-ndim, 0))
        self._coil_axis = -ndim - 1
        # A^H A = S^H F^H M F S. F^H M F is a circular convolution: it commutes with the shifts of the centred
        # transform, and it is the identity along every axis that is sampled in whole lines.
        whole = readout_axes(mask) if bool(mask.any()) else ()
        self._gram_axes = [axis for axis in self._axes if axis not in whole]
        self._gram_mask = torch.fft.ifftshift(mask, dim=self._axes).to(sens_maps.dtype)
        for axis in whole:
            self._gram_mask = self._gram_mask.narrow(axis, 0, 1)

    @property
    def support(self) -> Tensor:
        """(..., set, y, x) bool: where some coil sees the image."""
        return (self.sens_maps != 0).any(self._coil_axis)

    # Coil by coil throughout: the working set stays in cache, and memory does not grow with the coils.

    def forward(self, x: Tensor) -> Tensor:
        coils = [fftc(self._coil_image(x, sens_map), self._axes) * self.mask for sens_map in self._coils()]
        return torch.cat(coils, self._coil_axis)

    def adjoint(self, y: Tensor) -> Tensor:
        result: Tensor | float = 0.0
        for sens_map, data in zip(self._coils(), y.split(1, self._coil_axis), strict=True):
            image = ifftc(data * self.mask, self._axes)
            result = result + sens_map.conj() * image
        assert isinstance(result, Tensor)
        return result

    def svd(self) -> SVD:
        """Of one coil whose map has the same modulus everywhere: V^H is the Fourier transform of the image times the
        phase of the map, and the singular values are the mask times that modulus.

        Raises
        ------
        ValueError
            With several coils, several sets, or a map of varying modulus.
        """
        modulus = self.sens_maps.abs()
        least, largest = (float(m) for m in modulus.aminmax())
        sets, coils = self.sens_maps.shape[self._coil_axis - 1 : self._coil_axis + 1]
        if sets > 1 or coils > 1 or not least > (1 - 1e-5) * largest:  # rounding of normalised maps
            raise ValueError(
                f"the singular value decomposition of SENSE is known for one set of one coil with a map of constant "
                f"modulus, got {sets} sets of {coils} coils with moduli from {least:.4g} to {largest:.4g}; reconstruct "
                "coil by coil, or choose a method that does without"
            )
        whole = torch.ones_like(self.mask)
        return SVD(
            Identity(self.codomain), largest * self.mask.to(modulus.dtype), Sense(whole, self.sens_maps / largest).H
        )

    def _coils(self) -> Iterator[Tensor]:
        """The maps (..., set, y, x) of one coil after the other."""
        return iter(self.sens_maps.unbind(self._coil_axis))

    def _coil_image(self, x: Tensor, sens_map: Tensor) -> Tensor:
        """(..., 1, y, x): what one coil sees of all sets."""
        image = sens_map * x
        return image if image.shape[self._coil_axis] == 1 else image.sum(self._coil_axis, keepdim=True)

    def gram(self, x: Tensor) -> Tensor:
        if self.sens_maps.requires_grad:  # _SenseGram knows its derivative by x alone
            return super().gram(x)
        result: Tensor = _SenseGram.apply(x, self)
        return result

    def _gram(self, x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for sens_map in self._coils():
            image = self._coil_image(x, sens_map)
            if self._gram_axes:
                image = torch.fft.fftn(image, dim=self._gram_axes)
                image *= self._gram_mask
                image = torch.fft.ifftn(image, dim=self._gram_axes)
            result.addcmul_(sens_map.conj(), image)
        return result


class _SenseGram(torch.autograd.Function):
    """A^H A is its own adjoint, hence its own derivative."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, operator: Sense) -> Tensor:
        ctx.operator = operator  # type: ignore[attr-defined]
        return operator._gram(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        result: Tensor = _SenseGram.apply(gradient, ctx.operator)  # type: ignore[attr-defined]
        return result, None
