"""K-space from arrays: the one place where every reader's data is checked and its sampling established."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recon.errors import InputError
from recon.mri import MRIScan, SliceArray

ZEROS = "assumed from zeros"
UNSAID = "Neither a mask nor a header says what was sampled: "


@dataclass(frozen=True)
class CheckedKspace:
    """K-space that is checked and masked as it is read; holds nothing but its source (picklable if that is).

    Parameters
    ----------
    source : (slice, coil, ky, kx) or (slice, coil, kz, ky, kx).
    mask : (ky, kx) or (kz, ky, kx) bool; everything else reads as zero. None to leave the source as it is.
    name : what to call it in messages.
    """

    source: SliceArray
    mask: Tensor | None
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    def __getitem__(self, index: slice, /) -> Tensor:
        kspace = torch.as_tensor(self.source[index]).to(torch.complex64)
        if not torch.isfinite(torch.view_as_real(kspace)).all():
            bad = (~torch.isfinite(kspace)).flatten(1).sum(1)
            first = int(bad.nonzero()[0])
            number = range(self.shape[0])[index][first]
            raise InputError(
                f"{self.name}: expected finite k-space; {int(bad[first])} of {kspace[first].numel()} samples of slice "
                f"{number} are NaN or infinite; leave that slice out or repair the file"
            )
        return kspace if self.mask is None else kspace * self.mask


def from_arrays(
    kspace: SliceArray,
    mask: np.ndarray | Tensor | None = None,
    *,
    acquirable: Tensor | None = None,
    mask_source: str = "mask given",
    readout_axis: int | None = None,
    recon_shape: Sequence[int] | None = None,
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
    noise: np.ndarray | Tensor | None = None,
    reference: SliceArray | None = None,
    name: str = "scan",
    header: dict[str, str] | None = None,
    notes: Sequence[str] = (),
) -> MRIScan:
    """Check arrays, lazy or in memory, and make them a scan.

    Parameters
    ----------
    kspace : (slice, coil, ky, kx) or (slice, coil, kz, ky, kx) complex; DC at index n // 2. Only slices are ever
        read from it, one at a time here; NaNs are reported when the slice that holds them is read.
    mask : True where sampled, over all spatial axes or over the last one alone. None: from zeros, which is said in
        `mask_source` and `notes`.
    acquirable : as `mask`, what the scanner could sample at most (everything but padding); None for everything.
    readout_axis, recon_shape, voxel_size, noise, reference, name, header, notes : as in MRIScan. A reference of another
        size than the image is left out, and that is noted.

    Raises
    ------
    InputError
        Wrong number of axes, real data, a mask of the wrong width or of nothing, NaNs (middle slice), zeros only.
    """
    shape = tuple(kspace.shape)
    if len(shape) not in (4, 5) or 0 in shape:
        raise InputError(
            f"{name}: expected k-space with non-empty axes (slice, coil, ky, kx) or (slice, coil, kz, ky, kx), came "
            f"shape {shape}; reorder the axes or add those of length 1"
        )
    spatial, remarks = shape[2:], list(notes)
    if isinstance(kspace, np.ndarray | Tensor):
        refuse_real(kspace, name)
    middle = CheckedKspace(kspace, None, name)[shape[0] // 2 : shape[0] // 2 + 1]
    nonzero = (middle != 0).any(0).any(0)
    if not nonzero.any() and not sampled_somewhere(kspace).any():
        raise InputError(f"{name}: expected measured k-space, came zeros only; the file holds no data")

    if mask is None:
        sampled = nonzero if bool(nonzero.all()) else sampled_somewhere(kspace)
        fully_sampled, masked = bool(sampled.all()), None
        mask_source = ZEROS
        missing = sampled.numel() - int(sampled.sum())
        remarks.append(
            f"{UNSAID}the {missing} of {sampled.numel()} samples that are zero in every coil and slice were taken as "
            "not sampled, be they left out, padding, partial Fourier or an elliptical shutter."
            if missing
            else f"{UNSAID}none is zero in every coil and slice, so all were taken as sampled."
        )
    else:
        sampled = as_mask(mask, spatial, name)
        if (nonzero & ~sampled).any():
            remarks.append("K-space is not zero outside the mask; what lies outside was set to zero.")
        limit = torch.ones(spatial, dtype=torch.bool) if acquirable is None else as_mask(acquirable, spatial, name)
        fully_sampled, masked = bool((sampled >= limit).all()), sampled
    crop = None if recon_shape is None else check_recon_shape(recon_shape, spatial, name)
    expected = (shape[0], *(crop or spatial))
    if reference is not None and tuple(reference.shape) != expected:
        remarks.append(f"The reference was left out: it is {tuple(reference.shape)} and the image is {expected}.")
        reference = None
    return MRIScan(
        kspace=CheckedKspace(kspace, masked, name),
        mask=sampled,
        mask_source=mask_source,
        readout_axis=readout_axis,
        recon_shape=crop,
        voxel_size=voxel_size,
        noise=None if noise is None else check_noise(noise, shape[1], name),
        reference=reference,
        fully_sampled=fully_sampled,
        name=name,
        header=dict(header or {}),
        notes=tuple(remarks),
    )


def sampled_somewhere(kspace: SliceArray) -> Tensor:
    """Samples that are not exactly zero in every coil and slice; reads slice by slice until nothing is missing.

    Parameters
    ----------
    kspace : (slice, coil, *spatial) complex.

    Returns
    -------
    (*spatial) bool.
    """
    sampled = torch.zeros(tuple(kspace.shape[2:]), dtype=torch.bool)
    for i in range(kspace.shape[0]):
        sampled |= (torch.as_tensor(kspace[i : i + 1]) != 0).any(0).any(0)
        if sampled.all():
            break
    return sampled


def as_mask(mask: np.ndarray | Tensor, spatial: tuple[int, ...], name: str) -> Tensor:
    """The mask over all spatial axes, from one over all of them or over the last alone; axes of length 1 may be there.

    Raises
    ------
    InputError
        If it has another shape, values other than 0 and 1, or samples nothing.
    """
    values = torch.as_tensor(mask)
    squeezed = values.squeeze()
    wanted = tuple(n for n in spatial if n != 1)
    if tuple(squeezed.shape) not in (wanted, wanted[-1:]):
        raise InputError(
            f"{name}: expected a mask of shape {spatial} or ({spatial[-1]},), the size of k-space, came "
            f"{tuple(values.shape)}; give the mask that this k-space was measured with"
        )
    if not ((squeezed == 0) | (squeezed == 1)).all():
        raise InputError(f"{name}: expected a mask of zeros and ones, came values {values.min():g} to {values.max():g}")
    full = (
        (squeezed != 0).reshape(spatial) if squeezed.numel() == math.prod(spatial) else (squeezed != 0).expand(spatial)
    )
    if not full.any():
        raise InputError(f"{name}: expected a mask that samples something, came one without a single sample")
    return full.contiguous()


def refuse_real(kspace: np.ndarray | Tensor, name: str) -> None:
    """Raise InputError unless the array is complex."""
    complex_ = np.iscomplexobj(kspace) if isinstance(kspace, np.ndarray) else kspace.is_complex()
    if not complex_:
        raise InputError(
            f"{name}: expected complex k-space, came {kspace.dtype}; join real and imaginary parts into one array"
        )


def check_recon_shape(recon_shape: Sequence[int], spatial: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The crop as a tuple, refused unless it fits inside k-space."""
    crop = tuple(int(n) for n in recon_shape)
    if len(crop) != len(spatial) or not all(0 < n <= m for n, m in zip(crop, spatial, strict=True)):
        raise InputError(f"{name}: expected an image size (recon_shape) within k-space {spatial}, came {crop}")
    return crop


def check_noise(noise: np.ndarray | Tensor, coils: int, name: str) -> Tensor:
    """The noise scan as a complex64 tensor, refused unless it is (coil, sample), complex and finite."""
    samples = torch.as_tensor(noise)
    if samples.ndim != 2 or samples.shape[0] != coils or not samples.is_complex() or not torch.isfinite(samples).all():
        raise InputError(
            f"{name}: expected a finite complex noise scan of shape ({coils}, sample), one row per coil, came "
            f"{samples.dtype} of shape {tuple(samples.shape)}"
        )
    return samples.to(torch.complex64)
