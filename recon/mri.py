"""MRI: the scan as measured, its preparation, and its likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class SliceArray(Protocol):
    """What a reader hands over: an array that is read slice by slice (a tensor, a memory map, an HDF5 dataset)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: slice, /) -> np.ndarray | Tensor: ...


@dataclass(frozen=True)
class MRIScan:
    """Cartesian k-space as measured, made by any reader.

    Parameters
    ----------
    kspace : (slice, coil, ky, kx) complex64, or (slice, coil, kz, ky, kx) for volumes; DC at index n // 2, zero where
        nothing was sampled. Read lazily: `scan[2:5]` holds those slices as a tensor.
    mask : (ky, kx) or (kz, ky, kx) bool; what was sampled.
    mask_source : where the mask comes from, in words ("mask of the file", "assumed from zeros ...").
    readout_axis : the frequency-encoding axis of k-space (negative), None if unknown.
    recon_shape : size of the image to crop to along the spatial axes (removes readout oversampling), None to keep all.
    voxel_size : mm along (z, y, x) after cropping.
    noise : (coil, sample) complex, a noise-only acquisition, if there is one.
    reference : (slice, y, x) magnitude image of the file's own reconstruction, if any.
    fully_sampled : whether the mask covers everything that the scanner could sample.
    name : what to call the scan in outputs.
    header : what else the file says, to be written back (XML header, attributes).
    notes : what was assumed while reading, in sentences for the user.
    """

    kspace: SliceArray
    mask: Tensor
    mask_source: str
    readout_axis: int | None = None
    recon_shape: tuple[int, ...] | None = None
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: Tensor | None = None
    reference: SliceArray | None = None
    fully_sampled: bool = False
    name: str = "scan"
    header: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of slices."""
        return self.kspace.shape[0]

    def __getitem__(self, index: slice) -> MRIScan:
        """The scan of some slices, read into memory."""
        reference = None if self.reference is None else torch.as_tensor(self.reference[index])
        return replace(self, kspace=torch.as_tensor(self.kspace[index]), reference=reference)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of k-space."""
        return tuple(self.mask.shape)

    @property
    def coils(self) -> int:
        return self.kspace.shape[1]
