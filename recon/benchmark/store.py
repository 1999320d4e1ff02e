"""The folder of a benchmark: what it is of, and one small file for every finished cell."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import InputError
from ..io.atomic import PREFIX, atomic, writing
from ..io.writers import plain
from ..methods import method_named, options_of
from .grid import Cell, Grid

GRID, CELLS = "benchmark.json", "cells"
RESULTS = ("cells.csv", "table.csv", "table.md", "report.html", "pictures")

Record = dict[str, Any]
"""What is known of one cell: see `recon.benchmark.cells`."""


class Store:
    """Records of finished cells, each a file that is there whole or not at all; opened by `open_store`.

    Cells are not forced to the disk one by one: that would cost more than a quick cell does. What a power cut leaves
    empty is found broken and computed again; the end of a process loses nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = folder / CELLS

    def save(self, cell: Cell, record: Record, picture: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Keep a finished cell. The record comes last: with it the cell is done.

        Raises
        ------
        WriteError
            If the folder cannot be written or the disk is full.
        """
        if picture:
            content = io.BytesIO()
            np.savez_compressed(content, **cast(Any, picture))
            self._replace(self.picture(cell), content.getvalue())
        self._replace(self._path(cell), json.dumps(plain(record), indent=1).encode())

    def load(self, cells: list[Cell]) -> tuple[dict[Cell, Record], list[str]]:
        """The records of those cells that are done, and a note for every one that cannot be read."""
        there, records, notes = set(os.listdir(self.cells)), {}, []
        for cell in cells:
            path = self._path(cell)
            if path.name not in there:
                continue
            try:
                record = json.loads(path.read_bytes())
                _check_record(record, cell)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                notes.append(f"{path}: a broken cell file ({error}); the cell is computed again")
                continue
            records[cell] = record
        return records, notes

    def picture(self, cell: Cell) -> Path:
        """Where the images of a cell are, if they are kept."""
        return self.cells / f"{cell.name}.npz"

    def _path(self, cell: Cell) -> Path:
        return self.cells / f"{cell.name}.json"

    def _replace(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(f"{PREFIX}{os.getpid()}-{path.name}")
        with writing(path):
            try:
                temporary.write_bytes(content)
                if path.is_dir():  # a file's name is taken: what is in there is kept aside
                    path.rename(f"{path}.aside")
                os.replace(temporary, path)
            finally:
                with suppress(OSError):  # most often it has its own name by now
                    temporary.unlink()


_FIELDS = ("metrics", "coverage", "acceleration", "evaluations", "memory_mib")


def _check_record(record: Record, cell: Cell) -> None:
    """Raise ValueError, KeyError or TypeError unless tables can be made of it."""
    if record["cell"] != asdict(cell):
        raise ValueError("it is of another cell")
    float(record["seconds"]["cell"])
    if record["error"] is not None:
        str(record["error"]["message"])
        return
    float(record["seconds"]["method"])
    if missing := [name for name in _FIELDS if name not in record]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for value in record["metrics"].values():
        if value is not None:
            float(value)


@contextmanager
def open_store(folder: str | Path, grid: Grid) -> Iterator[Store]:
    """The folder of a benchmark, for this process alone while the block runs; made if missing.

    A folder holds one benchmark. It may grow: more files, methods, masks, accelerations or seeds than before; nothing
    else of it may change.

    Raises
    ------
    InputError
        If the folder is of another benchmark, holds results of something else, or another run is at work in it.
    WriteError
        If it cannot be written.
    """
    folder = Path(folder)
    _check(folder, grid)  # before anything is made in a folder of something else
    with writing(folder):
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
    with _locked(folder / CELLS / ".lock"):
        _check(folder, grid)
        for killed in (folder / CELLS).glob(f"{PREFIX}*"):  # what a run left that could not clean up
            killed.unlink(missing_ok=True)
        with atomic(folder / GRID, overwrite=True) as path:
            path.write_text(json.dumps(plain(describe(grid)), indent=1) + "\n")
        yield Store(folder)


def describe(grid: Grid) -> dict[str, Any]:
    """A grid without what is of this machine alone."""
    record = asdict(grid)
    for source in record["files"]:
        del source["path"]
    for method in record["methods"]:
        del method["prior"]  # its checksum stays
        method["options"] = options_of(method_named(method["name"])) | method["options"]  # a default may change
    return {"recon benchmark": record.pop("version"), **record}


def _check(folder: Path, grid: Grid) -> None:
    """Raise InputError unless the folder holds nothing, or this benchmark, or a smaller one of it."""
    mend = "choose another folder"
    if not (folder / GRID).exists():
        others = [name for name in RESULTS if (folder / name).exists()]
        others += [CELLS] if any((folder / CELLS).glob("*.json")) else []
        if others:
            found = f"{', '.join(others)} without {GRID}"
            raise InputError(f"{folder}: expected a benchmark or nothing, got {found}; {mend}")
        return
    try:
        there = json.loads((folder / GRID).read_bytes())
        if not isinstance(there, dict) or "recon benchmark" not in there:
            raise ValueError("something else")
    except ValueError as error:
        raise InputError(f"{folder / GRID}: expected what a benchmark is of, got {error}; {mend}") from error
    here = plain(describe(grid))
    lists = ("files", "methods", "masks", "accelerations")
    lost = [entry for name in lists for entry in there.get(name, []) if entry not in here[name]]
    if lost:
        labels = ", ".join(str(entry["name"] if isinstance(entry, dict) else entry) for entry in lost)
        raise InputError(
            f"{folder}: expected all of the benchmark that is there; what was asked leaves out {labels} or gives "
            f"other settings to it; ask for it as {folder / GRID} says, or {mend}"
        )
    if here["seeds"] < there.get("seeds", 0):
        raise InputError(f"{folder}: expected at least the {there['seeds']} seeds there, got {here['seeds']}; {mend}")
    for name in here.keys() - {*lists, "seeds"}:
        if there.get(name) != here[name]:
            raise InputError(f"{folder}: the benchmark there is of {name} {there.get(name)}, not {here[name]}; {mend}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it when that ends, however it does."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with writing(path):
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{path.parent.parent}: another run is at work in this folder; wait for its end"
            ) from error
        yield
