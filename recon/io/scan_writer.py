"""A scan as a fastMRI HDF5 file: k-space, its reference, the noise record, and a header that gives the voxel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recon.errors import InputError
from recon.io.atomic import atomic
from recon.io.writers import Disk
from recon.mri import MRIScan

_HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<experimentalConditions><H1resonanceFrequency_Hz>{frequency}</H1resonanceFrequency_Hz></experimentalConditions>
<encoding>
<encodedSpace>{space}</encodedSpace>
<reconSpace>{space}</reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center>
</kspace_encoding_step_1></encodingLimits>
<trajectory>cartesian</trajectory>
</encoding>
</ismrmrdHeader>
"""
_SPACE = (
    "<matrixSize><x>{ny}</x><y>{nx}</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>{ly:g}</x><y>{lx:g}</y><z>{lz:g}</z></fieldOfView_mm>"
)


def write_scan(path: str | Path, scan: MRIScan, *, overwrite: bool = False) -> None:
    """Write a 2-D scan so that `recon.io.load` reads it again, with its noise record.

    Datasets `kspace` (slice, coil, readout, phase) complex64, `reconstruction_rss` (slice, y, x) where there is a
    reference, `noise` (coil, sample) where there is one, `mask` (columns) unless the scan is fully sampled, and
    `ismrmrd_header`; texts of the scan's header become attributes.

    Raises
    ------
    InputError
        If the scan is 3-D, crops its readout, or its mask is not of whole columns: the layout has no place for it.
    ResultExistsError, WriteError
        If the file is there and `overwrite` is not set; if it cannot be written.
    """
    import h5py

    columns = scan.mask.any(0) if scan.mask.ndim == 2 else None
    if columns is None or scan.recon_shape is not None or not torch.equal(scan.mask, columns.expand_as(scan.mask)):
        raise InputError(
            f"{path}: expected a 2-D scan without readout oversampling whose mask is of whole columns, as the fastMRI "
            f"layout stores it, got a mask of shape {scan.shape}, cropped to {scan.recon_shape}"
        )
    with atomic(path, overwrite=overwrite) as temporary, Disk(temporary, "w+b") as disk:
        with h5py.File(disk, "w") as file:
            file["kspace"] = np.asarray(scan.kspace[:], np.complex64)
            if scan.reference is not None:
                file["reconstruction_rss"] = np.asarray(scan.reference[:], np.float32)
            if scan.noise is not None:
                file["noise"] = scan.noise.cpu().numpy().astype(np.complex64)
            if not scan.fully_sampled:
                file["mask"] = columns.cpu().numpy()
            file["ismrmrd_header"] = scan.header.get("ismrmrd_header", _header(scan))
            for key, text in scan.header.items():
                if key != "ismrmrd_header":
                    file.attrs[key] = text
        disk.check()


def _header(scan: MRIScan) -> str:
    (ny, nx), (dz, dy, dx) = scan.shape, scan.voxel_size
    space = _SPACE.format(ny=ny, nx=nx, ly=ny * dy, lx=nx * dx, lz=dz)
    return _HEADER.format(frequency=127728000, space=space, last=nx - 1, centre=nx // 2)
