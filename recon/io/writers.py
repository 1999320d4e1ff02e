"""Results as files: HDF5 in the fastMRI submission layout, NIfTI, run.json. Each appears whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from recon.errors import InputError
from recon.io import files_of
from recon.io.atomic import atomic

if TYPE_CHECKING:
    import h5py

SUBMISSION, NIFTI, PANEL, RUN = "reconstruction.h5", "reconstruction.nii.gz", "panel.png", "run.json"
RESULT_NAMES = (SUBMISSION, NIFTI, PANEL, RUN)
"""What a run leaves in its folder."""
DICOM, DICOM_STD = "reconstruction-dicom", "std-dicom"
ALL_NAMES = (*RESULT_NAMES, DICOM, DICOM_STD)
"""What it may leave there: folders of DICOM files on request."""


class Disk(io.FileIO):
    """A file for HDF5 to write to: a failed write would crash the process, so errors wait for `check`."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class Submission:
    """An open submission file that grows slice by slice; made by `submission`."""

    file: h5py.File
    disk: Disk

    def append(
        self,
        reconstruction: Tensor | np.ndarray,
        *,
        std: Tensor | np.ndarray | None = None,
        samples: Tensor | np.ndarray | None = None,
        complex_image: Tensor | np.ndarray | None = None,
    ) -> None:
        """Add the slices that were done next.

        Parameters
        ----------
        reconstruction : (slice, y, x) magnitude, stored as float32.
        std : (slice, y, x) standard deviation of the magnitude, stored as float32.
        samples : (slice, sample, y, x); stored as complex64 if complex, else as float32.
        complex_image : (slice, y, x) complex, stored as complex64 in `reconstruction_complex`.

        Raises
        ------
        InputError
            If shapes differ, among these or from earlier slices, or the reconstruction is complex.
        """
        image = as_array(reconstruction)
        if image.ndim != 3 or np.iscomplexobj(image):
            raise InputError(f"expected a magnitude image (slice, y, x), came {image.dtype} of shape {image.shape}")
        self._extend("reconstruction", image, image.shape)
        if std is not None:
            self._extend("std", as_array(std), image.shape)
        if samples is not None:
            values = as_array(samples)
            self._extend("samples", values, (image.shape[0], *values.shape[1:2], *image.shape[1:]))
        if complex_image is not None:
            self._extend("reconstruction_complex", as_array(complex_image), image.shape)
        self.file.flush()
        self.disk.check()

    def _extend(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
        dtype = np.complex64 if np.iscomplexobj(values) else np.float32
        if name not in self.file:
            self.file.create_dataset(
                name, shape=(0, *shape[1:]), maxshape=(None, *shape[1:]), chunks=(1, *shape[1:]), dtype=dtype
            )
        dataset = self.file[name]
        done = len(dataset)
        if values.shape != shape or dataset.shape[1:] != shape[1:] or dataset.dtype != dtype:
            raise InputError(
                f"expected {name} as {dataset.dtype} of shape {shape} like the slices before, came {values.dtype} of "
                f"shape {values.shape}"
            )
        dataset.resize(done + len(values), axis=0)
        dataset[done:] = values


@contextmanager
def submission(
    path: str | Path, *, header: Mapping[str, str] | None = None, overwrite: bool = False
) -> Iterator[Submission]:
    """A file in the fastMRI submission layout, filled by `append` and in place when the block ends.

    Dataset `reconstruction` (slice, y, x) float32; beside it what `append` is given. Images are in the intensity units
    of the k-space they came from.

    Parameters
    ----------
    path : the file.
    header : texts to store as attributes (MRIScan.header).

    Raises
    ------
    ResultExistsError, WriteError
        If the file is there and `overwrite` is not set; if it cannot be written.
    """
    import h5py

    with atomic(path, overwrite=overwrite) as temporary, Disk(temporary, "w+b") as disk:
        with h5py.File(disk, "w") as file:
            for key, text in (header or {}).items():
                if key == "ismrmrd_header":
                    file[key] = text  # a dataset, as in the file it came from: attributes end at 64 KiB
                else:
                    file.attrs[key] = text
            yield Submission(file, disk)
        disk.check()


def write_submission(
    path: str | Path,
    reconstruction: Tensor | np.ndarray,
    *,
    std: Tensor | np.ndarray | None = None,
    samples: Tensor | np.ndarray | None = None,
    complex_image: Tensor | np.ndarray | None = None,
    header: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write all slices at once; parameters and errors as in `submission` and `Submission.append`."""
    with submission(path, header=header, overwrite=overwrite) as file:
        file.append(reconstruction, std=std, samples=samples, complex_image=complex_image)


def write_nifti(
    path: str | Path,
    image: Tensor | np.ndarray,
    *,
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
    overwrite: bool = False,
) -> None:
    """Write a magnitude volume as NIfTI-1, float32.

    Raw k-space says nothing of the patient's position, so the orientation is nominal, that of an axial scan seen as
    radiologists do: columns run to the patient's left, rows to posterior, slices to superior, the origin in the middle
    of the volume. The stored axes are (x, y, slice). A viewer then shows the first row on top, as the PNG panel does.

    Parameters
    ----------
    path : ends in .nii or .nii.gz.
    image : (slice, y, x) magnitude.
    voxel_size : mm along (z, y, x).

    Raises
    ------
    InputError
        If the image is complex or has other axes, or the ending is another.
    ResultExistsError, WriteError
        If the file is there and `overwrite` is not set; if it cannot be written.
    """
    import nibabel

    values = as_array(image)
    if values.ndim != 3 or np.iscomplexobj(values):
        raise InputError(f"expected a magnitude image (slice, y, x), came {values.dtype} of shape {values.shape}")
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: expected a name that ends in .nii or .nii.gz")
    stored = values.astype(np.float32).transpose(2, 1, 0)
    dz, dy, dx = voxel_size
    affine = np.diag([-dx, -dy, dz, 1.0])  # world axes: right, anterior, superior
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(stored.shape) - 1) / 2)
    nifti = nibabel.Nifti1Image(stored, affine)
    nifti.header.set_xyzt_units("mm")
    nifti.header["descrip"] = b"orientation nominal: axial, radiological"
    with atomic(path, overwrite=overwrite) as temporary:
        nibabel.save(nifti, temporary)


def write_run(path: str | Path, record: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write a run's record (see `run_record`) as JSON; numbers that are not finite become null.

    Raises
    ------
    ResultExistsError, WriteError
        If the file is there and `overwrite` is not set; if it cannot be written.
    """
    text = json.dumps(plain(record), indent=2, allow_nan=False) + "\n"
    with atomic(path, overwrite=overwrite) as temporary:
        temporary.write_text(text)


def run_record(
    *,
    arguments: Mapping[str, Any],
    seed: int | None,
    device: str,
    input_path: str | Path | None = None,
    prior_path: str | Path | None = None,
    timings: Mapping[str, float] | None = None,
    metrics: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What it takes to repeat a run and to know what it was made of.

    Parameters
    ----------
    arguments : name -> value of everything that was asked.
    seed, device : of the run.
    input_path, prior_path : files whose SHA-256 is recorded.
    timings : name -> seconds.
    metrics : name -> value.
    notes : sentences on what was assumed.
    """
    packages = ("tweedie-recon", "torch", "numpy", "h5py")
    return {
        "arguments": dict(arguments),
        "seed": seed,
        "device": device,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "input": None if input_path is None else checksums(input_path),
        "prior": None if prior_path is None else checksums(prior_path),
        "timings_s": dict(timings or {}),
        "metrics": dict(metrics or {}),
        "notes": list(notes),
    }


def checksums(path: str | Path) -> dict[str, str]:
    """SHA-256 of every file of a scan (see recon.io.files_of), by its name in the folder that `path` is, or is in."""
    path = Path(path)
    sums = {}
    for file in files_of(path):
        name = os.path.relpath(file, path if path in file.parents else path.parent)
        with file.open("rb") as stream:
            sums[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return sums


def plain(value: Any) -> Any:
    """The value in JSON's own types.

    Raises
    ------
    TypeError
        If it has none.
    """
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"expected a number, a text, or lists and mappings of them, came {type(value).__name__}")


def as_array(values: Tensor | np.ndarray) -> np.ndarray:
    """A NumPy array of a tensor on any device, or of an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
