"""JSON records that one command writes and another reads: calibrations, tuned settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import InputError, MissingFileError

CALIBRATION, TUNED = "calibration of intervals", "tuned settings"


def read_record(path: str | Path, *, kind: str) -> dict[str, Any]:
    """A JSON object whose `kind` is the one that is expected.

    Raises
    ------
    MissingFileError, InputError
        If it is not there; if it is none or of another kind.
    """
    try:
        record = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: expected {kind}, came a path where there is no file; see its spelling"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected {kind} (JSON), came what cannot be read ({error})") from error
    found = record.get("kind") if isinstance(record, dict) else None
    if found != kind:
        raise InputError(f"{path}: expected {kind}, came a file of kind {found!r}; give the right file")
    return dict(record)


def tuned_options(path: str | Path, *, method: str) -> dict[str, Any]:
    """The options that `recon tune` chose for a method.

    Raises
    ------
    MissingFileError, InputError
        If the file is not there; if it is of another kind or method.
    """
    record = read_record(path, kind=TUNED)
    found, options = record.get("method"), record.get("options")
    if found != method or not isinstance(options, dict):
        raise InputError(
            f"{path}: expected settings of {method}, came those of {found}; give method {found}, or tune it"
        )
    return options
