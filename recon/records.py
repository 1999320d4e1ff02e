"""JSON records that one command writes and another reads: calibrations, tuned settings, recipes of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import InputError, MissingFileError
from .io.atomic import atomic

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


# What may change when training goes on: how long it takes, and how it is done.
_FREE = {"minutes", "steps", "bf16", "shards", "workers", "checkpoint_minutes", "validate_minutes"}


def keep_recipe(out: Path, recipe: dict[str, Any]) -> None:
    """Write recipe.json for a training that begins; for one that goes on, its recipe must be this one.

    Raises
    ------
    InputError
        If another recipe was begun in the folder.
    """
    path, text = out / "recipe.json", json.dumps(recipe, indent=2) + "\n"
    if (out / "checkpoint.pt").exists() and path.exists():
        begun, asked = json.loads(path.read_text()), json.loads(text)
        other = [k for k in {**begun, **asked} if k not in _FREE and begun.get(k) != asked.get(k)]
        if other:
            found = ", ".join(f"{key} {begun.get(key)!r}, not {asked.get(key)!r}" for key in other)
            raise InputError(f"{out}: the training there is of {found}; ask for the same, or train in another folder")
    with atomic(path, overwrite=True) as temporary:
        temporary.write_text(text)
