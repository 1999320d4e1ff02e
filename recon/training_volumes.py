"""Reading folders of scans into volumes that training images are cut from."""

import fnmatch
import io
import math
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.errors import InputError, MissingFileError
from recon.training_images import Volume

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz")


def read_folder(folder: Path, *, exclude: Sequence[str] = ()) -> dict[str, list[Volume]]:
    """Every volume below a folder, by file name: NIfTI (images or FreeSurfer label maps), fastMRI HDF5, DICOM (loose
    or in tar archives).

    Parameters
    ----------
    folder : searched with its subfolders.
    exclude : patterns of file names to leave out, such as "*_1[5-9].nii.gz".

    Raises
    ------
    InputError
        If nothing readable is left, or a file is damaged.
    """
    volumes: dict[str, list[Volume]] = {}
    loose: dict[Path, list[bytes]] = defaultdict(list)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in exclude):
            continue
        with reading(path):
            if path.name.endswith((".nii", ".nii.gz")):
                volumes[path.name] = [read_nifti(path)]
            elif path.suffix in (".h5", ".hdf5"):
                volumes[path.name] = [read_fastmri(path)]
            elif path.name.endswith(ARCHIVES):
                volumes[path.name] = list(read_dicom(members(path)))
            elif is_dicom(path):
                loose[path.parent].append(path.read_bytes())
    for parent, files in loose.items():
        with reading(parent):
            volumes[str(parent.relative_to(folder))] = list(read_dicom(files))
    volumes = {name: found for name, found in volumes.items() if found}
    if not volumes:
        raise InputError(f"no NIfTI, fastMRI (.h5), DICOM or tar file to train on in {folder}: give the scans' folder")
    return volumes


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line which file cannot be read."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # every format's library has errors of its own
        raise InputError(
            f"{path}: expected a whole scan, came one that cannot be read ({' '.join(str(error).split())}); copy it "
            "again or leave it out (exclude)"
        ) from error


def read_volume(path: Path) -> Volume:
    """One NIfTI file, an image or a label map.

    Raises
    ------
    MissingFileError, InputError
        If it is not there; if it cannot be read.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: expected a file, came a path where there is none; check its spelling")
    with reading(path):
        return read_nifti(path)


def read_nifti(path: Path) -> Volume:
    """An image, or a label map if its values are those of FreeSurfer's segmentation."""
    import nibabel

    image: Any = nibabel.as_closest_canonical(nibabel.load(path))  # type: ignore[arg-type]
    x, y, z = (float(s) for s in image.header.get_zooms()[:3])
    values = np.nan_to_num(np.asarray(image.dataobj)).squeeze()
    if values.ndim != 3:
        raise InputError(
            f"{path} has shape {values.shape}: expected one volume with three axes; leave it out or split it"
        )
    values = values.transpose(2, 1, 0)
    if is_label_map(values):
        return label_volume(values, (z, y, x))
    return image_volume(np.abs(values), (z, y, x))


def read_fastmri(path: Path) -> Volume:
    """The reconstruction in a fastMRI file; else from its k-space (one coil: complex, many: root sum of squares)."""
    import h5py

    with h5py.File(path) as file:
        names = sorted(n for n in file if n.startswith("reconstruction"))
        if names:
            data = np.asarray(file[names[0]])
        elif "kspace" in file:
            kspace = np.fft.ifftshift(np.asarray(file["kspace"]), axes=(-2, -1))
            data = np.fft.fftshift(np.fft.ifft2(kspace), axes=(-2, -1))
            data = np.sqrt((np.abs(data) ** 2).sum(axis=1)) if data.ndim == 4 else data
        else:
            raise InputError(f"{path} holds neither reconstruction_* nor kspace: expected a fastMRI file")
    return Volume(scaled(data), (5.0, 1.0, 1.0), axes=(0,))


def read_dicom(files: Iterable[bytes]) -> Iterator[Volume]:
    """Volumes from DICOM files: grouped by series, sorted along the slice normal. What has no image is passed over."""
    import pydicom

    series: dict[Any, list[Any]] = defaultdict(list)
    for content in files:
        if content[128:132] != b"DICM":
            continue
        dataset = pydicom.dcmread(io.BytesIO(content))
        if "PixelData" in dataset and "ImageOrientationPatient" in dataset:
            orientation = tuple(round(float(v), 3) for v in dataset.ImageOrientationPatient)
            series[dataset.SeriesInstanceUID, orientation, dataset.Rows, dataset.Columns].append(dataset)
    for (_, orientation, _, _), datasets in series.items():
        if len(datasets) >= 8:  # fewer are scouts
            yield stack(datasets, np.array(orientation))


def stack(datasets: Sequence[Any], orientation: NDArray[np.floating]) -> Volume:
    import nibabel

    row, column = orientation[:3], orientation[3:]
    normal = np.cross(row, column)
    place = np.array([float(normal @ np.array(d.ImagePositionPatient, float)) for d in datasets])
    order = np.argsort(place)
    gap = float(np.median(np.diff(place[order])))
    dy, dx = (float(s) for s in datasets[0].PixelSpacing)
    data = np.stack([datasets[i].pixel_array for i in order]).astype(np.float32)  # (normal, row index, column index)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * gap, column * dy, row * dx], axis=1)
    affine[:2] *= -1  # DICOM counts towards left and posterior, NIfTI towards right and anterior
    image: Any = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine))  # type: ignore[no-untyped-call]
    x, y, z = (float(s) for s in image.header.get_zooms()[:3])
    return image_volume(np.asarray(image.dataobj).transpose(2, 1, 0), (z, y, x))


def is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def members(path: Path) -> Iterator[bytes]:
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield file.read()


def image_volume(values: NDArray[Any], spacing: tuple[float, float, float]) -> Volume:
    """A magnitude volume with its background set to zero; slices are cut where pixels are nearly square and fine."""
    fine = 1.3 * min(spacing)
    axes = tuple(a for a in range(3) if all(spacing[b] <= fine for b in range(3) if b != a))
    values = values.astype(np.float32)
    return Volume(scaled(values * body(values)), spacing, axes or (0,))


def scaled(values: NDArray[Any]) -> NDArray[Any]:
    """Magnitudes (or complex values) with the bright end of the object near 1."""
    magnitude = np.abs(values)
    bright = magnitude[magnitude > 0.05 * np.percentile(magnitude, 99.9)]
    top = np.percentile(bright, 98) if bright.size else math.inf
    return (values / top).astype(np.complex64 if np.iscomplexobj(values) else np.float16)


def body(values: NDArray[Any]) -> NDArray[np.bool_]:
    """The object: brighter than noise, the largest connected part, grown by two voxels, holes filled slice by slice."""
    from scipy import ndimage

    smooth = ndimage.uniform_filter(values, 3)
    mask = smooth > 0.08 * np.percentile(smooth, 99)
    parts, count = ndimage.label(mask)
    if count == 0:
        return np.ones(values.shape, bool)
    mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    mask = ndimage.binary_dilation(mask, iterations=2)
    return np.stack([ndimage.binary_fill_holes(plane) for plane in mask])


# FreeSurfer's labels by tissue class (recon.training_images.TISSUES); all others are tissue outside the brain.
LABELS = {
    0: (0,),
    1: (2, 7, 41, 46, 77, 85),
    2: (3, 8, 17, 18, 42, 47, 53, 54),
    3: (10, 11, 12, 13, 16, 26, 28, 49, 50, 51, 52, 58, 60),
    4: (4, 5, 14, 15, 24, 43, 44, 72),
}


def is_label_map(values: NDArray[Any]) -> bool:
    """Whole numbers, few of them, and both sides' white matter and cortex (2, 3, 41, 42) among them."""
    if values.min() < 0 or values.max() >= 2**16 or not np.array_equal(values, np.rint(values)):
        return False
    found = np.flatnonzero(np.bincount(values.ravel().astype(np.int64)))
    return len(found) <= 256 and {2, 3, 41, 42} <= set(found.tolist()) and len(found) < found.max() / 2


def label_volume(values: NDArray[Any], spacing: tuple[float, float, float]) -> Volume:
    values = values.astype(np.int64)
    found = np.flatnonzero(np.bincount(values.ravel()))
    index = np.zeros(found.max() + 1, np.uint8)
    index[found] = np.arange(len(found))
    classes = {label: tissue for tissue, group in LABELS.items() for label in group}
    tissues = tuple(classes.get(int(label), 5) for label in found)
    return Volume(index[values], spacing, tissues=tissues, labels=tuple(found.tolist()))
