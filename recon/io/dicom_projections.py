"""DICOM-CT-PD: projections of a clinical scanner, one file a view, in a folder or a tar archive.

The scanner's third-generation geometry is in private elements. Seen from the table, angle 0 has the source at 12
o'clock, and angles grow counter-clockwise; with the source there, column 1 is on the left. Axial scans are read: each
table position is a slice, in the plane of the source. A helix is no 2-D scan and is refused.

References
----------
Chen et al., Med Phys 42, 6964 (2015); DICOM-CT-PD user manual, version 3 (2020).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from operators.geometry import FanBeam
from recon.ct import CTScan
from recon.errors import InputError
from recon.io import dicom
from recon.io.projection_arrays import from_projections

LAYOUT = "DICOM-CT-PD"
ELEMENTS = {
    "DetectorElementTransverseSpacing": (0x7029, 0x1002),
    "NumberofDetectorRows": (0x7029, 0x1010),
    "NumberofDetectorColumns": (0x7029, 0x1011),
    "DetectorShape": (0x7029, 0x100B),
    "DetectorFocalCenterAngularPosition": dicom.PROJECTION_ANGLE,
    "DetectorFocalCenterAxialPosition": (0x7031, 0x1002),
    "DetectorFocalCenterRadialDistance": (0x7031, 0x1003),
    "ConstantRadialDistance": (0x7031, 0x1031),
    "DetectorCentralElement": (0x7031, 0x1033),
}
_WHOLE = {ELEMENTS["NumberofDetectorRows"], ELEMENTS["NumberofDetectorColumns"]}
SHIFTS = {"SourceAngularPositionShift": (0x7033, 0x100B), "SourceRadialDistanceShift": (0x7033, 0x100D)}
PHOTONS, LOG, WATER = (0x7033, 0x1065), (0x7039, 0x1009), (0x7041, 0x1001)
SHAPES = {"CYLINDRICAL": True, "FLAT": False}


def matches(path: Path) -> bool:
    """Whether it is DICOM (a file, an archive, or a folder with such a file in it)."""
    if not path.is_dir():
        return dicom.is_dicom(path)
    return any(dicom.is_dicom(file) for file in path.iterdir() if file.is_file())


def files(path: Path) -> tuple[Path, ...]:
    """Those in a folder, or the archive."""
    return tuple(sorted(file for file in path.rglob("*") if file.is_file())) if path.is_dir() else (path,)


def read(path: Path) -> CTScan:
    """Read an axial scan.

    The bins are those of the detector row that the source is level with; between two rows their mean weighted by
    nearness is taken. Pixels lie as (column, row), the rows next to each other; (row, column) is read too, where that
    can be told. Line integrals only: projections whose logarithm was not taken have no flats in this format.

    Raises
    ------
    InputError
        An element is missing, pixels are no detector's, the scan is a helix, positions have different views, the
        focal spot flies in the plane, the detector is spherical, or the logarithm was not taken.
    """
    found = list(dicom.datasets(path))
    views = [d for d in found if dicom.PROJECTION_ANGLE in d]
    if found and not views:
        raise InputError(
            f"{path}: expected projections, came DICOM images; simulate a scan of them (recon simulate-ct), or give "
            "the projections they were made from"
        )
    if not views:
        raise InputError(f"{path}: expected DICOM projections, came a file or folder without; give their folder")
    return scan_of(views, path.name)


def scan_of(views: Sequence[Any], name: str) -> CTScan:
    """The scan of DICOM-CT-PD data sets in any order; errors as in `read`."""
    for element, tag in ELEMENTS.items():
        if missing := sum(tag not in d for d in views):
            raise InputError(
                f"{name}: expected {element} {tag} in every view, {missing} of {len(views)} came without it"
            )
    if any(str(_value(d, LOG, "YES")).strip() == "NO" for d in views):
        raise InputError(f"{name}: expected projections whose logarithm is taken (LogFlag YES), came some without")
    for shift, tag in SHIFTS.items():
        if max(abs(float(_value(d, tag, 0.0))) for d in views) > 1e-6:
            raise InputError(
                f"{name}: expected a focal spot that stays in place, came one that flies ({shift}); it is not read"
            )
    shape = str(_common(views, "DetectorShape", name)).strip()
    if shape not in SHAPES:
        raise InputError(f"{name}: expected a CYLINDRICAL or FLAT detector, came {shape}")
    places: dict[float, list[Any]] = defaultdict(list)
    for view in views:
        places[round(float(_element(view, "DetectorFocalCenterAxialPosition")), 3)].append(view)
    counts = sorted({len(group) for group in places.values()})
    if counts[0] < 2 or len(counts) > 1:
        raise InputError(
            f"{name}: expected an axial scan, with the same views at each table position, came {len(views)} views at "
            f"{len(places)} positions ({counts[0]} to {counts[-1]} at one); a helix, or views are missing: a helix "
            "needs a reconstruction in 3-D or rebinning first"
        )
    order = sorted(places)
    groups = [sorted(places[z], key=lambda d: float(_element(d, "DetectorFocalCenterAngularPosition"))) for z in order]
    turns = np.array([[float(_element(d, "DetectorFocalCenterAngularPosition")) for d in g] for g in groups])
    if np.abs(turns - turns[0]).max() > 1e-4:
        raise InputError(
            f"{name}: expected the same angles at each table position, came different ones; read one of them"
        )
    column, row = (float(v) for v in _common(views, "DetectorCentralElement", name))  # both from 1
    detector = (_count(views, "NumberofDetectorRows", name), _count(views, "NumberofDetectorColumns", name))
    projections = np.stack([[_row(view, row - 1, detector, name) for view in group] for group in groups])
    spacing = float(_common(views, "DetectorElementTransverseSpacing", name))
    geometry = FanBeam(
        -torch.from_numpy(turns[0]),  # counter-clockwise from 12 o'clock; our angles turn the source the other way
        projections.shape[-1],
        spacing,
        float(_common(views, "DetectorFocalCenterRadialDistance", name)),
        float(_common(views, "ConstantRadialDistance", name)),
        curved=SHAPES[shape],
        detector_offset=((projections.shape[-1] - 1) / 2 - (column - 1)) * spacing,
    )
    photons = np.concatenate([np.ravel(np.asarray(_value(d, PHOTONS, np.nan), float)) for d in views])
    water = _value(views[0], WATER, None)
    rows, notes = detector[0], []
    if rows > 1:
        notes.append(f"Of {rows} detector rows the one level with the source was taken.")
    if photons.max() > 1.1 * photons.min():
        notes.append(
            f"Photons run from {photons.min():.3g} to {photons.max():.3g} over columns and views (bowtie filter, tube "
            "modulation); their mean is taken for all."
        )
    return from_projections(
        projections,
        geometry,
        photons=float(np.mean(photons)) if np.isfinite(photons).all() else None,
        water=None if water is None else float(water),
        slice_spacing=float(np.median(np.diff(order))) if len(order) > 1 else 1.0,
        name=name,
        header=dicom.header_of(views[0]),
        notes=notes,
    )


def _count(views: Sequence[Any], element: str, name: str) -> int:
    value = _common(views, element, name)
    if value is None or not int(value) >= 1:
        raise InputError(f"{name}: expected {element} of at least 1, came {value}")
    return int(value)


def _row(view: Any, row: float, shape: tuple[int, int], name: str) -> np.ndarray:
    """(bin,) at a row, which may lie between two."""
    image = _detector(view, shape, name) * float(view.get("RescaleSlope", 1)) + float(view.get("RescaleIntercept", 0))
    if not 0 <= row <= len(image) - 1:
        raise InputError(f"{name}: expected a central element within {len(image)} rows, came row {row + 1:g}")
    low = int(row)
    high, part = min(low + 1, len(image) - 1), row - low
    return ((1 - part) * image[low] + part * image[high]).astype(np.float32)


def _detector(view: Any, shape: tuple[int, int], name: str) -> np.ndarray:
    """(row, column) of a view."""
    try:
        pixels: np.ndarray = view.pixel_array
    except Exception as error:  # whatever missing or broken pixels lead pydicom to
        number = view.get("InstanceNumber")
        raise InputError(f"{name}: expected whole pixels, view {number} came without ({error})") from error
    rows, columns = shape
    if pixels.shape == (columns, rows):
        return pixels.T
    if pixels.shape == (rows, columns):
        return pixels
    raise InputError(
        f"{name}: expected {columns} columns x {rows} rows of pixels, as NumberofDetectorColumns and -Rows say, came "
        f"{' x '.join(map(str, pixels.shape))}"
    )


def _value(dataset: Any, tag: tuple[int, int], default: Any) -> Any:
    """An element's value, also where its VR is unknown to the reader (UN: bytes of 32-bit floats, 16-bit whole numbers,
    or a text)."""
    if tag not in dataset:
        return default
    value = dataset[tag].value
    if isinstance(value, bytes):
        if tag in (ELEMENTS["DetectorShape"], LOG, WATER):
            return value.decode(errors="replace").strip("\0 ")
        numbers = np.frombuffer(value, "<u2" if tag in _WHOLE else "<f4")
        return numbers if len(numbers) > 1 else float(numbers[0])
    return value


def _element(dataset: Any, element: str) -> Any:
    return _value(dataset, ELEMENTS[element], None)


def _common(views: Sequence[Any], element: str, name: str) -> Any:
    """A value that all views share."""
    values = {str(_element(d, element)) for d in views}
    if len(values) > 1:
        raise InputError(f"{name}: expected one {element}, came {len(values)}: {', '.join(sorted(values)[:3])} ...")
    return _element(views[0], element)
