"""X-ray CT: the scan as measured, its preparation, and its likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from operators.ct import XRay
from operators.geometry import Geometry, Grid
from operators.linop import Weighted

from .likelihood import Gaussian
from .mri import SliceArray


@dataclass(frozen=True)
class CTScan:
    """Projections as measured, made by any reader.

    Parameters
    ----------
    projections : (slice, view, bin) float32; counts, or line integrals. Read lazily: `scan[2:5]` holds those slices as
        a tensor.
    geometry : where the rays run.
    grid : pixels of the image.
    is_counts : whether projections are counts.
    flats, darks : (frame, slice, bin) counts without object, and without beam; for counts.
    gain : counts for each photon, where projections are counts (1 for a photon counter); estimated if None.
    photons : that a bin counts without object, where projections are line integrals; estimated if None.
    water : attenuation of water in 1/mm, for HU.
    reference : (slice, y, x) image in 1/mm of the file's own reconstruction, if any.
    slice_spacing : mm from one slice to the next.
    name : what to call the scan in outputs.
    header : what else the file says, to be written back.
    notes : what was assumed while reading, in sentences for the user.
    """

    projections: SliceArray
    geometry: Geometry
    grid: Grid
    is_counts: bool = False
    flats: Tensor | None = None
    darks: Tensor | None = None
    gain: float | None = None
    photons: float | None = None
    water: float | None = None
    reference: SliceArray | None = None
    slice_spacing: float = 1.0
    name: str = "scan"
    header: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of slices."""
        return self.projections.shape[0]

    def __getitem__(self, index: slice) -> CTScan:
        """The scan of some slices, read into memory."""
        reference = None if self.reference is None else torch.as_tensor(self.reference[index])
        flats, darks = (None if frames is None else frames[:, index] for frames in (self.flats, self.darks))
        projections = torch.as_tensor(self.projections[index])
        return replace(self, projections=projections, flats=flats, darks=darks, reference=reference)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the image."""
        return tuple(self.grid.shape)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """mm along (z, y, x)."""
        return (self.slice_spacing, *self.grid.pixel_sizes)


@dataclass(frozen=True)
class PreparedCT:
    """A scan ready for reconstruction: line integrals = scale * XRay x + n, in images x whose material is about 1.

    Parameters
    ----------
    line_integrals : (slice, view, bin) float32.
    weights : of the same shape; inverse variance of a line integral, 0 for dead or saturated bins.
    geometry, grid : where the rays run, and the pixels of the image.
    scale : image in 1/mm = scale * x.
    counts, blank, background : of the same shape, in photons, for transmission statistics: E counts = blank *
        exp(-line integrals) + background.
    notes : what was estimated and how, in sentences for the user.
    """

    line_integrals: Tensor
    weights: Tensor
    geometry: Geometry
    grid: Grid
    scale: float
    counts: Tensor | None = None
    blank: Tensor | None = None
    background: Tensor | None = None
    notes: tuple[str, ...] = ()

    def image(self, x: Tensor) -> Tensor:
        """From x (..., y, x) to 1/mm."""
        return self.scale * x


def likelihood(prepared: PreparedCT) -> Gaussian:
    """Gaussian likelihood of the images (slice, y, x): whitened, by the square root of the weights."""
    root = prepared.weights.sqrt()
    projector = XRay(prepared.geometry, prepared.grid, dtype=root.dtype, device=root.device)
    return Gaussian(Weighted(prepared.scale * root, projector), root * prepared.line_integrals)
