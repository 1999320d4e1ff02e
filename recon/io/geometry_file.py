"""Geometry as JSON: what a file of bare projections does not say of itself.

```json
{"projections": "sinogram.tif", "beam": "parallel", "angles_degrees": {"start": 0, "stop": 360, "views": 459},
 "bin_size": 0.1, "rotation_centre": 245.1, "counts": true, "flat": 47000}
```
It is read where it is named itself, and beside the file that it belongs to (sinogram.json beside sinogram.tif).

| key | what |
|---|---|
| beam | "parallel", "fan-flat", "fan-curved" or "vectors" |
| angles | radians, a list; or instead |
| angles_degrees | degrees: a list, or {"start", "stop", "views"}, the stop included |
| bins, bin_size | number (of the data, if it is not said), mm |
| detector_offset, rotation_offset | mm, 0 if not said |
| rotation_centre | parallel only, instead of detector_offset: the bin (from 0) that the axis projects onto |
| source_to_axis, source_to_detector | mm, for fans |
| detector, bin_step, source or direction | for vectors: lists of (y, x) in mm, one for each view |
| image_shape, pixel_size, image_centre | (y, x); mm, one number or (y, x); (y, x) mm |
| projections, flats, darks, reference | names of files of arrays, from the folder of the JSON |
| axes | of the projections: "slice,view,bin" (unless said) or "view,slice,bin" |
| counts, flat | whether projections are counts; a number that stands for flats |
| gain, photons, electronic, water, slice_spacing, header, notes | as in CTScan |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from operators.geometry import FanBeam, Geometry, Grid, ParallelBeam, ViewVectors
from recon.ct import CTScan
from recon.errors import InputError, MissingFileError
from recon.io.projection_arrays import from_projections, radians
from recon.mri import SliceArray

_FAN = {"source_to_axis", "source_to_detector", "detector_offset", "rotation_offset"}
_BEAMS = {
    "parallel": {"detector_offset", "rotation_centre"},
    "fan-flat": _FAN,
    "fan-curved": _FAN,
    "vectors": {"detector", "bin_step", "source", "direction"},
}
_ANGLES = {"angles", "angles_degrees", "bin_size"}
_COMMON = {
    *("beam", "bins", "image_shape", "pixel_size", "image_centre", "projections", "flats", "darks", "reference"),
    *("axes", "counts", "flat", "gain", "photons", "electronic", "water", "slice_spacing", "header", "notes"),
}
_NUMBERS = ("gain", "photons", "electronic", "water", "slice_spacing")
_LENGTHS = ("bin_size", "detector_offset", "rotation_offset", "rotation_centre", "source_to_axis", "source_to_detector")
_FILES = ("projections", "flats", "darks", "reference")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys((*_NUMBERS, *_LENGTHS, "flat", "start", "stop"), ((int, float), "a number")),
    **dict.fromkeys((*_FILES, "beam", "axes"), ((str,), "a text")),
    **dict.fromkeys(("bins", "views"), ((int,), "a whole number")),
    **dict.fromkeys(("angles", "detector", "bin_step", "source", "direction"), ((list,), "a list of numbers")),
    "angles_degrees": ((list, dict), 'a list of numbers or {"start", "stop", "views"}'),
    "image_shape": ((list,), "[y, x] in pixels"),
    "image_centre": ((list,), "[y, x] in mm"),
    "pixel_size": ((int, float, list), "a number or [y, x] in mm"),
    "counts": ((bool,), "true or false"),
    "header": ((dict,), "an object of texts"),
    "notes": ((list,), "a list of texts"),
}


def is_geometry(path: Path) -> bool:
    """Whether a file is a JSON object with a beam."""
    with path.open("rb") as file:
        if not file.read(64).lstrip().startswith(b"{"):
            return False
    try:
        return "beam" in json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError):
        return path.suffix == ".json"  # to say where it is wrong


def read_json(path: Path) -> dict[str, Any]:
    """The entries of a geometry file.

    Raises
    ------
    MissingFileError, InputError
        If it is not there; if it is not a JSON object.
    """
    if not path.is_file():
        raise MissingFileError(
            f"{path}: expected a geometry file (JSON) beside the projections, came none; write one, with beam, angles "
            'and bin_size: {"beam": "parallel", "angles_degrees": {"start": 0, "stop": 180, "views": 181}, '
            '"bin_size": 0.1}'
        )
    try:
        return parse(path.read_text(), path.name)
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name}: expected JSON text, came bytes that are none") from error


def parse(text: str, name: str) -> dict[str, Any]:
    """A JSON object, whose entries are of the kinds that a geometry has.

    Raises
    ------
    InputError
        If it is none, or one of its entries is of another kind.
    """
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name}: expected a geometry as JSON, came a text that is not ({error})") from error
    if not isinstance(entries, dict):
        raise InputError(f"{name}: expected a geometry as a JSON object, came a {type(entries).__name__}")
    check_kinds(entries, name)
    return entries


def check_kinds(entries: Mapping[str, Any], name: str) -> None:
    """Raise InputError if an entry is a text where a number belongs, or the like."""
    for key, value in entries.items():
        kinds, what = _KINDS.get(key, ((type(value),), ""))
        if type(value) not in kinds:  # true is no number
            raise InputError(f"{name}: expected {key} as {what}, came {json.dumps(value)[:60]}")


def scan_of(
    entries: Mapping[str, Any],
    projections: SliceArray,
    *,
    name: str,
    flats: Any = None,
    darks: Any = None,
    reference: SliceArray | None = None,
) -> CTScan:
    """The scan of projections (slice, view, bin) and of a geometry's entries.

    Raises
    ------
    InputError
        If an entry is missing, unknown or not of its kind, or does not fit the projections.
    """
    shape = tuple(projections.shape)
    geometry = geometry_of(entries, bins=shape[-1], name=name)
    if flats is not None and "flat" in entries:
        raise InputError(f"{name}: expected flat or flats, came both; leave one of them out")
    if "flat" in entries:
        flats = torch.full((1, shape[0], shape[-1]), float(entries["flat"]))
    numbers = {key: float(entries[key]) for key in _NUMBERS if key in entries}
    return from_projections(
        projections,
        geometry,
        grid=grid_of(entries, name),
        is_counts=entries.get("counts", False),
        flats=flats,
        darks=darks,
        gain=numbers.get("gain"),
        photons=numbers.get("photons"),
        electronic=numbers.get("electronic", 0.0),
        water=numbers.get("water"),
        slice_spacing=numbers.get("slice_spacing", 1.0),
        reference=reference,
        name=name,
        header={str(key): str(text) for key, text in entries.get("header", {}).items()},
        notes=[str(note) for note in entries.get("notes", ())],
    )


def geometry_of(entries: Mapping[str, Any], *, bins: int, name: str) -> Geometry:
    """The rays.

    Parameters
    ----------
    bins : of the projections, where the entries do not say.

    Raises
    ------
    InputError
        If an entry is missing, unknown or not of its kind.
    """
    beam = entries.get("beam")
    if beam not in _BEAMS:
        raise InputError(f"{name}: expected beam as one of {', '.join(_BEAMS)}, came {beam!r}")
    known = _COMMON | _BEAMS[beam] | (_ANGLES if beam != "vectors" else set())
    if unknown := sorted(set(entries) - known):
        raise InputError(
            f"{name}: unknown in a {beam} geometry: {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    bins = entries.get("bins", bins)
    try:
        if beam == "vectors":
            vectors = {
                key: torch.tensor(entries[key], dtype=torch.float64)
                for key in ("detector", "bin_step", "source", "direction")
                if key in entries
            }
            return ViewVectors(
                vectors["detector"],
                vectors["bin_step"],
                bins,
                source=vectors.get("source"),
                direction=vectors.get("direction"),
            )
        angles, bin_size = angles_of(entries, name), float(entries["bin_size"])
        offset = float(entries.get("detector_offset", 0.0))
        if beam == "parallel":
            if "rotation_centre" in entries:
                if "detector_offset" in entries:
                    raise InputError(f"{name}: expected rotation_centre or detector_offset, came both")
                offset = ((bins - 1) / 2 - float(entries["rotation_centre"])) * bin_size
            return ParallelBeam(angles, bins, bin_size, offset)
        return FanBeam(
            angles,
            bins,
            bin_size,
            float(entries["source_to_axis"]),
            float(entries["source_to_detector"]),
            curved=beam == "fan-curved",
            detector_offset=offset,
            rotation_offset=float(entries.get("rotation_offset", 0.0)),
        )
    except KeyError as error:
        raise InputError(f"{name}: expected {error.args[0]} in a {beam} geometry, came none; add it") from error
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # whatever lists lead torch to
        raise InputError(f"{name}: {error}") from error


def angles_of(entries: Mapping[str, Any], name: str) -> torch.Tensor:
    """(views,) radians, from `angles` or `angles_degrees`."""
    if ("angles" in entries) == ("angles_degrees" in entries):
        raise InputError(f"{name}: expected either angles (radians) or angles_degrees, came both or none")
    if "angles" in entries:
        return _numbers(entries["angles"], f"{name}: angles")
    degrees = entries["angles_degrees"]
    if not isinstance(degrees, dict):
        found = _numbers(degrees, f"{name}: angles_degrees")
    elif set(degrees) == {"start", "stop", "views"}:
        check_kinds(degrees, f"{name}: angles_degrees")
        if degrees["views"] < 1:
            raise InputError(f"{name}: angles_degrees: expected at least 1 of views, came {degrees['views']}")
        found = torch.linspace(degrees["start"], degrees["stop"], degrees["views"], dtype=torch.float64)
    else:
        raise InputError(f"{name}: expected angles_degrees of start, stop and views, came {', '.join(degrees)}")
    return radians(found, name)


def _numbers(values: Any, what: str) -> torch.Tensor:
    """(n,) float64."""
    try:
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: expected a list of numbers, came {str(values)[:60]}") from error


def grid_of(entries: Mapping[str, Any], name: str) -> Grid | None:
    """The pixels, None if the entries do not give them."""
    given = {"image_shape", "pixel_size", "image_centre"} & set(entries)
    if not given:
        return None
    if not {"image_shape", "pixel_size"} <= given:
        raise InputError(
            f"{name}: expected image_shape and pixel_size together, came {' and '.join(sorted(given))} alone"
        )
    try:
        size = entries["pixel_size"]
        y, x = entries["image_shape"]
        pixel_y, pixel_x = size if isinstance(size, list) else (size, size)
        centre_y, centre_x = entries.get("image_centre", (0.0, 0.0))
        if (type(y), type(x)) != (int, int):
            raise ValueError(f"came image_shape {[y, x]}")
        return Grid((y, x), (float(pixel_y), float(pixel_x)), (float(centre_y), float(centre_x)))
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: expected image_shape [y, x] and pixel_size in mm; {error}") from error


def entries_of(scan: CTScan) -> dict[str, Any]:
    """A scan's geometry and numbers as entries that `scan_of` reads again.

    Raises
    ------
    InputError
        If its geometry is of a kind that has no name here.
    """
    geometry, grid = scan.geometry, scan.grid
    entries: dict[str, Any]
    match geometry:
        case ParallelBeam():
            entries = {"beam": "parallel", "detector_offset": geometry.detector_offset}
        case FanBeam():
            entries = {"beam": "fan-curved" if geometry.curved else "fan-flat"}
            entries |= {key: getattr(geometry, key) for key in sorted(_FAN)}
        case ViewVectors():
            entries = {"beam": "vectors"}
            vectors = {key: getattr(geometry, key) for key in ("detector", "bin_step", "source", "direction")}
            entries |= {key: value.tolist() for key, value in vectors.items() if value is not None}
        case _:
            raise InputError(f"geometry: expected a parallel or fan beam or vectors, got {type(geometry).__name__}")
    if isinstance(geometry, ParallelBeam | FanBeam):
        entries |= {"angles": geometry.angles.tolist(), "bin_size": geometry.bin_size}
    entries |= {"bins": geometry.bins, "image_shape": list(grid.shape), "pixel_size": list(grid.pixel_sizes)}
    entries |= {"image_centre": list(grid.centre), "counts": scan.is_counts, "slice_spacing": scan.slice_spacing}
    entries |= {"header": dict(scan.header), "notes": list(scan.notes)}
    numbers = {"gain": scan.gain, "photons": scan.photons, "electronic": scan.electronic, "water": scan.water}
    return entries | {key: value for key, value in numbers.items() if value is not None}
