"""DICOM files: opening them from a folder, an archive or one by one, and series of CT images in Hounsfield units."""

from __future__ import annotations

import io
import math
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.errors import InputError, MissingFileError

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
PROJECTION_ANGLE = (0x7031, 0x1001)  # is there in DICOM-CT-PD files alone
PLACE = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}
"""What every image must say of its place, and in how many numbers."""


@dataclass(frozen=True)
class CTImages:
    """A series of CT images.

    Parameters
    ----------
    hu : (slice, y, x) float32 Hounsfield units, sorted along the normal of the slices; padding reads as -1000.
    positions : (slice,) mm along the normal.
    thickness : (slice,) mm.
    pixel_size : (y, x) mm.
    tilt : radians by which the gantry is tilted; slices are then shifted against each other, fit for 2-D alone.
    uneven : whether the distance from slice to slice is not the same everywhere.
    header : what else the files say, texts.
    notes : what was noticed, in sentences for the user.
    """

    hu: Tensor
    positions: Tensor
    thickness: Tensor
    pixel_size: tuple[float, float]
    tilt: float
    uneven: bool
    header: dict[str, str]
    notes: tuple[str, ...] = ()


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's preamble, or is a tar archive of such files."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or is_archive(path)


def is_archive(path: Path) -> bool:
    """Whether a file is a tar archive, compressed or not."""
    with path.open("rb") as file:
        start = file.read(262)
    return start[257:] == b"ustar" or (start.startswith(COMPRESSED) and tarfile.is_tarfile(path))


def datasets(path: Path) -> Iterator[Any]:
    """The DICOM data sets of a file, of a folder or of a tar archive, in no order; other files are passed over.

    Raises
    ------
    MissingFileError, InputError
        If nothing is there; if a file or the archive is damaged.
    """
    import pydicom

    if not path.exists():
        raise MissingFileError(f"{path}: expected a file, came a path where there is none; check its spelling")
    for name, content in _contents(path):
        if content[128:132] != b"DICM":
            continue
        try:
            yield pydicom.dcmread(io.BytesIO(content))
        except Exception as error:  # whatever a broken file leads pydicom to
            raise InputError(f"{name}: expected a whole DICOM file, came one that cannot be read ({error})") from error


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield str(file), file.read_bytes()
    elif is_archive(path):
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is not None:
                        yield f"{path}: {member.name}", content.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(f"{path}: expected a whole archive, came one that cannot be read ({error})") from error
    else:
        yield str(path), path.read_bytes()


def read_images(path: str | Path, *, series: str | None = None, gaps: bool = False) -> CTImages:
    """Read one series of CT images.

    Parameters
    ----------
    path : a folder, a tar archive or a file.
    series : its SeriesInstanceUID, where there are several.
    gaps : accept a series of which slices seem to be missing (each slice is then good for itself alone).

    Raises
    ------
    MissingFileError
        If nothing is there.
    InputError
        Several series; no CT images; an image without an element of `PLACE`; slices of several sizes, orientations or
        frames of reference; two at one place; a gap where slices are missing (unless `gaps`); a rescale type that is
        not HU.
    """
    path = Path(path)
    found, placeless = defaultdict[str, list[Any]](list), Counter[str]()
    for dataset in datasets(path):
        if dataset.get("Modality") == "CT" and "PixelData" in dataset:
            uid = str(dataset.get("SeriesInstanceUID", ""))
            if "ImagePositionPatient" in dataset:
                found[uid].append(dataset)
            else:
                placeless[uid] += 1
    if not found:
        came = f"{placeless.total()} images without ImagePositionPatient" if placeless else "none"
        raise InputError(f"{path}: expected a series of CT images (DICOM), came {came}; give their folder")
    if series is None and len(found) > 1:
        sizes = ", ".join(f"{uid} ({len(slices)} slices)" for uid, slices in found.items())
        raise InputError(f"{path}: expected one series, came {len(found)} mixed: {sizes}; name one of them (series)")
    if series is not None and series not in found:
        raise InputError(f"{path}: expected series {series}, came {', '.join(found)}")
    series = series or next(iter(found))
    images = stack(found[series], name=path.name, gaps=gaps)
    if not placeless[series]:
        return images
    left = f"Left out: {placeless[series]} of the series' images, without a position (a screen capture, say)."
    return replace(images, notes=(*images.notes, left))


def stack(slices: Sequence[Any], *, name: str, gaps: bool = False) -> CTImages:
    """One series, sorted and checked; errors as in `read_images`."""
    _placed(slices, name)
    first = slices[0]
    _same(slices, name, "size", lambda d: (int(d.Rows), int(d.Columns)))
    _same(slices, name, "pixel size", lambda d: tuple(round(float(v), 4) for v in d.PixelSpacing))
    _same(slices, name, "orientation", lambda d: tuple(round(float(v), 3) for v in d.ImageOrientationPatient))
    _same(slices, name, "frame of reference", lambda d: str(d.get("FrameOfReferenceUID", "")))
    if (kind := {str(d.get("RescaleType", "HU")).upper() for d in slices}) != {"HU"}:
        raise InputError(f"{name}: expected values in HU, came rescale type {', '.join(sorted(kind))}")
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    places = np.array([[float(v) for v in d.ImagePositionPatient] for d in slices])
    order = np.argsort(places @ normal)
    places, slices = places[order], [slices[i] for i in order]
    along, thickness = places @ normal, np.array([float(d.get("SliceThickness") or 0) for d in slices])
    steps = np.diff(along)
    if (steps < 1e-3).any():
        i = int(np.argmax(steps < 1e-3))
        raise InputError(
            f"{name}: expected one slice at each place, came several at {along[i]:.2f} mm (instances "
            f"{slices[i].get('InstanceNumber')} and {slices[i + 1].get('InstanceNumber')}); take one of the phases out"
        )
    notes, uneven = list[str](), bool(len(steps) > 1 and np.ptp(steps) > 0.02 * np.median(steps))
    if uneven:
        # A slice that is missing leaves a step of about a multiple of its neighbours'; a change of thickness does not.
        near = np.array([min(steps[max(0, i - 1)], steps[min(len(steps) - 1, i + 1)]) for i in range(len(steps))])
        allowed = 1.5 * np.maximum(near, np.maximum(thickness[1:], thickness[:-1]))
        if (wide := np.flatnonzero(steps > allowed)).size and not gaps:
            raise InputError(
                f"{name}: slices are missing: expected steps of about {np.median(steps):.2f} mm, came "
                f"{steps[wide[0]]:.2f} mm after instance {slices[wide[0]].get('InstanceNumber')}; find them, or accept "
                "gaps (gaps=True) where every slice is used for itself"
            )
        kinds = sorted({round(float(t), 2) for t in thickness})
        notes.append(
            f"Slices are {steps.min():.2f} to {steps.max():.2f} mm apart (thickness "
            f"{', '.join(f'{t:g}' for t in kinds)} mm): they do not make a regular volume."
        )
    tilt = 0.0
    if len(slices) > 1:
        travel = places[-1] - places[0]
        tilt = math.acos(min(1.0, abs(float(travel @ normal)) / float(np.linalg.norm(travel))))
    if tilt > math.radians(0.1):
        notes.append(
            f"The gantry is tilted by {math.degrees(tilt):.1f} degrees: slices are shifted against each other."
        )
    dy, dx = (float(v) for v in first.PixelSpacing)
    return CTImages(
        hu=torch.from_numpy(np.stack([hounsfield(d) for d in slices])),
        positions=torch.from_numpy(along.copy()),
        thickness=torch.from_numpy(thickness),
        pixel_size=(dy, dx),
        tilt=tilt,
        uneven=uneven,
        header=header_of(first),
        notes=tuple(notes),
    )


def header_of(dataset: Any) -> dict[str, str]:
    """What a data set says of the scanner."""
    texts = ("Manufacturer", "ManufacturerModelName", "KVP", "ConvolutionKernel")
    return {key: str(dataset.get(key)) for key in texts if dataset.get(key) not in (None, "")}


def hounsfield(dataset: Any) -> np.ndarray:
    """(y, x) float32 HU; what the file calls padding is air, -1000."""
    try:
        stored = dataset.pixel_array
    except Exception as error:  # whatever broken or compressed pixels lead pydicom to
        raise InputError(
            f"instance {dataset.get('InstanceNumber')}: expected whole pixels, came some that cannot be read ({error})"
        ) from error
    hu = stored.astype(np.float32) * np.float32(dataset.get("RescaleSlope", 1)) + np.float32(
        dataset.get("RescaleIntercept", 0)
    )
    if "PixelPaddingValue" in dataset:
        low = int(dataset.PixelPaddingValue)
        high = int(dataset.get("PixelPaddingRangeLimit", low))
        hu[(stored >= min(low, high)) & (stored <= max(low, high))] = -1000
    return hu


def _placed(slices: Sequence[Any], name: str) -> None:
    for dataset in slices:
        for element, count in PLACE.items():
            value = dataset.get(element)
            if value is None or np.size(value) != count:
                raise InputError(
                    f"{name}: expected {element} ({count} number{'s' * (count > 1)}) in every image, instance "
                    f"{dataset.get('InstanceNumber')} came with {'none' if value is None else value}; take it out"
                )


def _same(slices: Sequence[Any], name: str, what: str, value: Callable[[Any], Any]) -> None:
    kinds: dict[Any, int] = defaultdict(int)
    for dataset in slices:
        kinds[value(dataset)] += 1
    if len(kinds) > 1:
        text = ", ".join(f"{kind} in {count}" for kind, count in kinds.items())
        raise InputError(f"{name}: expected slices of one {what}, came mixed slices: {text}; take a part of them out")
