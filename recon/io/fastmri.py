"""fastMRI HDF5: single- and multi-coil, in the train, validation and test layout.

Rows of k-space (axis -2) are the readout, columns (axis -1) the phase encoding, DC at n // 2.

References
----------
Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI, arXiv:1811.08839 (2018).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recon.errors import InputError
from recon.io import hdf5
from recon.io.arrays import as_mask, from_arrays, sampled_somewhere
from recon.io.hdf5 import HDF5Array, opened
from recon.mri import MRIScan

if TYPE_CHECKING:
    import h5py

LAYOUT = "fastMRI HDF5"
READOUT_AXIS = -2


def matches(path: Path) -> bool:
    """Whether the file is HDF5; readers of other layouts are asked before."""
    return hdf5.is_hdf5(path)


def read(path: Path) -> MRIScan:
    """Read a fastMRI file; k-space and reference stay on disk until slices are asked for.

    What was sampled: the file's `mask`; else the columns inside the encoding limits of its header (outside is padding),
    less the samples that are zero throughout the file; else what is not zero throughout the file.

    Raises
    ------
    InputError
        No `kspace` (says what there is), wrong axes, a mask of the wrong width, a truncated file, NaNs, zeros only.
    """
    import h5py

    path, name = path.absolute(), path.name
    with opened(path) as file:
        if not isinstance(file.get("kspace"), h5py.Dataset):
            raise InputError(
                f"{name}: expected a dataset 'kspace', came an HDF5 file with {', '.join(sorted(file)) or 'nothing'}; "
                "name the dataset so"
            )
        kspace = kspace_array(path, file["kspace"])
        mask = np.asarray(file["mask"]) if "mask" in file else None
        header = read_header(file)
        wanted = "reconstruction_rss" if file["kspace"].ndim == 4 else "reconstruction_esc"
        reference = HDF5Array(path, wanted, tuple(file[wanted].shape)) if wanted in file else None
        noise = np.asarray(file["noise"]) if "noise" in file else None  # not of fastMRI, but of `scan_writer`
    spatial, notes = (kspace.shape[-2], kspace.shape[-1]), list[str]()
    geometry = Geometry.from_xml(header.get("ismrmrd_header"), spatial, notes)
    acquirable = None if geometry.columns is None else acquirable_columns(kspace, geometry.columns, notes)
    if mask is not None:
        sampled, source = as_mask(mask, spatial, name), "mask of the file"
        if acquirable is not None:
            sampled = sampled & acquirable
    elif acquirable is not None:
        sampled, source = sampled_columns(kspace, acquirable, notes), "encoding limits of the file's header"
    else:
        sampled, source = None, ""
    scan = from_arrays(
        kspace,
        sampled,
        acquirable=acquirable,
        mask_source=source,
        recon_shape=crop_size(spatial, geometry.recon_shape, reference, notes),
        voxel_size=geometry.voxel_size,
        noise=noise,
        reference=reference,
        name=path.stem,
        header=header,
        notes=notes,
    )
    return replace(scan, readout_axis=READOUT_AXIS if whole_lines(scan.mask) else None)


def kspace_array(path: Path, dataset: h5py.Dataset) -> HDF5Array:
    """The k-space dataset as (slice, coil, readout, phase), refused if it has other axes or is not complex."""
    shape = tuple(dataset.shape)
    if len(shape) not in (3, 4):
        raise InputError(
            f"{path.name}: expected kspace of axes (slice, coil, readout, phase), or (slice, readout, phase) for one "
            f"coil, came shape {shape}; reorder its axes"
        )
    if dataset.dtype.kind != "c":
        raise InputError(
            f"{path.name}: expected complex kspace, came {dataset.dtype}; join real and imaginary parts in one"
        )
    return HDF5Array(path, "kspace", shape if len(shape) == 4 else (shape[0], 1, *shape[1:]))


def read_header(file: h5py.File) -> dict[str, str]:
    """The XML header and the attributes of a file, as text."""
    header = {key: str(value) for key, value in file.attrs.items()}
    if "ismrmrd_header" in file:
        xml = file["ismrmrd_header"][()]
        header["ismrmrd_header"] = xml.decode() if isinstance(xml, bytes) else str(xml)
    return header


@dataclass(frozen=True)
class Geometry:
    """What the ISMRMRD header says of a 2-D k-space.

    Parameters
    ----------
    columns : first and one past the last phase-encoding column that was acquired; None if not known.
    recon_shape : rows and columns of the image to crop to; None if not known.
    voxel_size : mm along (z, y, x); y are the rows (the header's x, the readout).
    """

    columns: tuple[int, int] | None = None
    recon_shape: tuple[int, int] | None = None
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @staticmethod
    def from_xml(xml: str | None, spatial: tuple[int, int], notes: list[str]) -> Geometry:
        """Read the header; what is missing or does not fit k-space is left unknown, and noted where it does not fit."""
        if xml is None:
            return Geometry()
        try:
            root = ElementTree.fromstring(xml)
            encoded, recon = Space.find(root, "encodedSpace"), Space.find(root, "reconSpace")
            limits = encoding_limits(root)
        except (ElementTree.ParseError, ValueError) as error:  # no XML, or no numbers where they should be
            notes.append(f"The file's XML header cannot be read ({error}) and was ignored.")
            return Geometry()
        fits = encoded is not None and encoded.matrix[:2] == spatial
        if encoded is not None and not fits:
            notes.append(
                f"The header encodes {encoded.matrix[0]} x {encoded.matrix[1]} samples and k-space has {spatial[0]} x "
                f"{spatial[1]}: its encoding limits were ignored."
            )
        space = encoded if fits else recon  # a crop keeps the pixel size of the encoded grid
        return Geometry(
            columns=encoded_columns(limits, spatial[1], notes) if fits and limits is not None else None,
            recon_shape=None if recon is None else recon.matrix[:2],
            voxel_size=(1.0, 1.0, 1.0) if space is None else space.voxel_size,
        )


@dataclass(frozen=True)
class Space:
    """Matrix size and field of view (mm) along the header's (x, y, z)."""

    matrix: tuple[int, int, int]
    fov: tuple[float, float, float]

    @staticmethod
    def find(root: ElementTree.Element, kind: str) -> Space | None:
        """The first encoding's `encodedSpace` or `reconSpace`, if it is there in full."""
        sizes = [root.findtext(f".//{{*}}{kind}/{{*}}matrixSize/{{*}}{axis}") for axis in "xyz"]
        lengths = [root.findtext(f".//{{*}}{kind}/{{*}}fieldOfView_mm/{{*}}{axis}") for axis in "xyz"]
        if None in sizes or None in lengths:
            return None
        (nx, ny, nz), (lx, ly, lz) = (int(n or 0) for n in sizes), (float(n or 0) for n in lengths)
        return Space((nx, ny, nz), (lx, ly, lz)) if min(nx, ny, nz) > 0 else None

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """mm along (z, y, x) of an image whose rows are the header's x; 1 where the header has no length."""
        x, y, z = (length / n if length > 0 else 1.0 for length, n in zip(self.fov, self.matrix, strict=True))
        return z, x, y


def encoding_limits(root: ElementTree.Element) -> tuple[int, int, int] | None:
    """Minimum, maximum and center of the phase-encoding lines, if they are there in full."""
    limits = [
        root.findtext(f".//{{*}}encodingLimits/{{*}}kspace_encoding_step_1/{{*}}{key}")
        for key in ("minimum", "maximum", "center")
    ]
    if None in limits:
        return None
    minimum, maximum, center = (int(n or 0) for n in limits)
    return minimum, maximum, center


def encoded_columns(limits: tuple[int, int, int], width: int, notes: list[str]) -> tuple[int, int] | None:
    """First and one past the last column that was acquired.

    Line number n of the scanner lies in column width // 2 - center + n: what is outside minimum ... maximum is padding,
    or the part that partial Fourier leaves out.
    """
    minimum, maximum, center = limits
    first = width // 2 - center
    left, right = first + minimum, first + maximum + 1
    if not 0 <= left < right <= width:
        notes.append(
            f"The header's encoding limits (columns {left} to {right - 1} of {width}) were ignored: they do not fit."
        )
        return None
    return left, right


def acquirable_columns(kspace: HDF5Array, columns: tuple[int, int], notes: list[str]) -> Tensor:
    """Everything but padding, (ky, kx) bool: the header's columns, and others that hold data in the middle slice."""
    acquirable = torch.zeros(kspace.shape[-2:], dtype=torch.bool)
    acquirable[:, slice(*columns)] = True
    padding_with_data = middle_slice(kspace).any(0) & ~acquirable[0]
    if padding_with_data.any():
        notes.append(f"{int(padding_with_data.sum())} columns that the header calls padding hold data and were kept.")
        acquirable[:, padding_with_data] = True
    return acquirable


def sampled_columns(kspace: HDF5Array, acquirable: Tensor, notes: list[str]) -> Tensor:
    """The acquirable samples, less those that are zero in every coil and slice (undersampled, without a mask)."""
    if not (acquirable & ~middle_slice(kspace)).any():
        return acquirable
    sampled = acquirable & sampled_somewhere(kspace)
    missing = int((acquirable & ~sampled).sum())
    if missing:
        notes.append(
            f"{missing} of {int(acquirable.sum())} samples inside the header's encoding limits are zero in every coil "
            "and slice and were taken as not sampled."
        )
    return sampled


def middle_slice(kspace: HDF5Array) -> Tensor:
    """Where the middle slice is not zero in every coil, (ky, kx) bool."""
    middle = kspace.shape[0] // 2
    return torch.as_tensor(kspace[middle : middle + 1] != 0).any(0).any(0)


def crop_size(
    spatial: tuple[int, int], recon_shape: tuple[int, int] | None, reference: HDF5Array | None, notes: list[str]
) -> tuple[int, int] | None:
    """The image size to crop to: the reference's, else the header's, at most that of k-space; None to keep all."""
    wanted = recon_shape if reference is None else (reference.shape[-2], reference.shape[-1])
    if wanted is None:
        return None
    crop = (min(wanted[0], spatial[0]), min(wanted[1], spatial[1]))
    if crop != wanted:
        notes.append(f"The file asks for an image of {wanted}, larger than k-space {spatial}: {crop} was taken.")
    return None if crop == spatial else crop


def whole_lines(mask: Tensor) -> bool:
    """Whether every row that is sampled at all is sampled alike, as a mask of whole readout lines is."""
    rows = mask[mask.any(1)]
    return bool((rows == rows[0]).all())
