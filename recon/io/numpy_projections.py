"""NumPy projections with a geometry: a .npz that holds both, a .npy with a JSON beside it, or the JSON itself.

The archive holds `projections` (slice, view, bin) or (view, bin), `geometry` (a text, see `recon.io.geometry_file`),
and may hold `flats`, `darks` (frame, slice, bin) and `reference` (slice, y, x).
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from recon.ct import CTScan
from recon.errors import InputError, MissingFileError
from recon.io import geometry_file, numpy_array, tiff_array
from recon.io.atomic import atomic, refuse_existing

LAYOUT = "NumPy or TIFF projections with a geometry file"
FRAMES = ("flats", "darks", "reference")
KEYS = ("projections", "geometry", *FRAMES)


def matches(path: Path) -> bool:
    """Whether it is an archive with projections, a TIFF, a real .npy with a JSON beside it, or a geometry file."""
    if tiff_array.matches(path) or geometry_file.is_geometry(path):
        return True
    if not numpy_array.matches(path):
        return False
    if not is_archive(path):
        return path.with_suffix(".json").is_file() and not np.iscomplexobj(numpy_array.mapped(path))
    try:
        with zipfile.ZipFile(path) as members:
            return "projections.npy" in members.namelist()
    except zipfile.BadZipFile:
        return False


def is_archive(path: Path) -> bool:
    """Whether it is a .npz."""
    with path.open("rb") as file:
        return file.read(4) == numpy_array.ZIP


def files(path: Path) -> tuple[Path, ...]:
    """What is read: an archive; or projections, their geometry file and the arrays that it names."""
    named = geometry_file.is_geometry(path)
    if not named and is_archive(path):
        return (path,)
    geometry = path if named else path.with_suffix(".json")
    entries = geometry_file.read_json(geometry)
    projections = path.parent / entries["projections"] if named else path
    return projections, geometry, *(path.parent / entries[key] for key in FRAMES if key in entries)


def read(path: Path) -> CTScan:
    """Read projections and their geometry.

    Raises
    ------
    MissingFileError
        If there is no geometry file, or a file that it names is not there.
    InputError
        If arrays have wrong axes or disagree with the geometry, or an entry of it is missing or unknown.
    """
    if geometry_file.is_geometry(path):
        entries = geometry_file.read_json(path)
        if "projections" not in entries:
            raise InputError(f"{path.name}: expected projections, the name of their file, came none; name it")
        return from_entries(entries, array(path.parent / entries["projections"]), path)
    if not is_archive(path):
        return from_entries(geometry_file.read_json(path.with_suffix(".json")), array(path), path)
    arrays = load_archive(path)
    if unknown := sorted(set(arrays) - set(KEYS)):
        raise InputError(f"{path.name}: unknown: {', '.join(unknown)}; known: {', '.join(KEYS)}")
    if "geometry" not in arrays:
        raise InputError(f"{path.name}: expected geometry beside projections, came none; add it as JSON text")
    entries = geometry_file.parse(str(arrays["geometry"]), path.name)
    frames = {key: arrays.get(key) for key in FRAMES}
    return geometry_file.scan_of(entries, slices(arrays["projections"], entries, path), name=path.stem, **frames)


def load_archive(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: expected a whole .npz file, came one that cannot be read ({error}); save it again"
        ) from error


def from_entries(entries: dict[str, Any], projections: np.ndarray, path: Path) -> CTScan:
    """The scan of projections and of the entries of a geometry file at path, or beside it."""
    frames = {key: array(path.parent / entries[key]) for key in FRAMES if key in entries}
    for key in ("flats", "darks"):
        if key in frames and frames[key].ndim == 2:  # (frame, bin) of one slice
            frames[key] = frames[key][:, None]
    return geometry_file.scan_of(entries, slices(projections, entries, path), name=path.stem, **frames)


def array(path: Path) -> np.ndarray:
    """The numbers in a .npy or a TIFF."""
    if not path.is_file():
        raise MissingFileError(f"{path}: expected a file, as the geometry names it, came a path where there is none")
    return tiff_array.read_array(path) if tiff_array.matches(path) else np.asarray(numpy_array.mapped(path))


def slices(projections: np.ndarray, entries: dict[str, Any], path: Path) -> np.ndarray:
    """(slice, view, bin), from the axes that the entries name."""
    axes = entries.get("axes", "slice,view,bin")
    if axes not in ("slice,view,bin", "view,slice,bin"):
        raise InputError(f"{path.name}: expected axes slice,view,bin or view,slice,bin, came {axes!r}")
    if projections.ndim == 2:
        return projections[None]
    return projections.swapaxes(0, 1) if axes.startswith("view") and projections.ndim == 3 else projections


def check_target(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a name that `write` would refuse, before a long simulation; errors as there."""
    if Path(path).suffix != ".npz":
        raise InputError(f"{path}: expected a name that ends in .npz, came another; change it")
    refuse_existing(path, overwrite=overwrite)


def write(path: str | Path, scan: CTScan, *, overwrite: bool = False) -> None:
    """Write a scan as a .npz that `read` gives back.

    Raises
    ------
    InputError
        If the name does not end in .npz.
    ResultExistsError, WriteError
        If the file is there and `overwrite` is not set; if it cannot be written.
    """
    check_target(path, overwrite=overwrite)
    arrays = {
        "projections": np.asarray(scan.projections[:], np.float32),
        "geometry": np.asarray(json.dumps(geometry_file.entries_of(scan))),
    }
    frames = {"flats": scan.flats, "darks": scan.darks}
    arrays |= {key: values.cpu().numpy() for key, values in frames.items() if values is not None}
    if scan.reference is not None:
        arrays["reference"] = np.asarray(scan.reference[:], np.float32)
    with atomic(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
