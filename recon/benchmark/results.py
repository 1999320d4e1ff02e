"""The results of a benchmark as files: tables, pictures, and the report that holds all of them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from ..io.atomic import atomic
from . import pictures
from .grid import Cell, Grid, file_name
from .report import html
from .store import Record, Store
from .table import Row, cells_csv, table_csv, table_markdown

ACCELERATION, COST, COVERAGE = "Quality against acceleration", "Quality against cost", "Coverage of the intervals"
CAPTIONS = {
    ACCELERATION: "Means over files, slices and seeds, of the cells that did not fail; bars of one standard deviation. "
    "Dashed: methods that draw no samples.",
    COST: "Means over the masks, of methods that have a figure under each. The gray line is the best that is to be had "
    "for so much; horizontal lines are methods without a network.",
    COVERAGE: "Fraction of the object's pixels that predictive intervals hold: on the diagonal if the samples spread "
    "as they should, below it if they spread too little.",
}


def write_results(store: Store, grid: Grid, records: Mapping[Cell, Record], rows: Sequence[Row]) -> list[str]:
    """Write them all into the folder of the benchmark; returns notes on what is missing in them.

    Raises
    ------
    WriteError
        If the folder cannot be written or the disk is full.
    """
    drawn = {
        ACCELERATION: pictures.against_acceleration(grid, rows),
        COST: pictures.against_cost(grid, rows),
        COVERAGE: pictures.reliability(grid, records),
    }
    figures = {title: content for title, content in drawn.items() if content is not None}
    images, notes = _images(store, grid, records)
    texts = {
        "cells.csv": cells_csv(records),
        "table.csv": table_csv(rows),
        "table.md": table_markdown(grid, rows),
        "report.html": html(grid, records, rows, figures=figures, captions=CAPTIONS, images=images),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    contents |= {f"pictures/{title.lower().replace(' ', '-')}.png": content for title, content in figures.items()}
    for (file, mask, acceleration), content in images.items():
        contents[f"pictures/{file_name(file)}_{mask}_x{acceleration:g}.jpg"] = content
    for name, content in contents.items():
        with atomic(store.folder / name, overwrite=True) as path:
            path.write_bytes(content)
    return notes


def _images(
    store: Store, grid: Grid, records: Mapping[Cell, Record]
) -> tuple[dict[tuple[str, str, float], bytes], list[str]]:
    """A picture for each file, mask and acceleration, and a note for every cell whose images cannot be read."""
    groups: dict[tuple[str, str, float], dict[Cell, pictures.Picture]] = {}
    notes = []
    for task in grid.tasks():
        cell = task.cell
        if not task.picture or records[cell]["error"] is not None:
            continue
        try:
            with np.load(store.picture(cell)) as archive:
                picture = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            notes.append(f"{store.picture(cell)}: its images cannot be read ({error}); they are left out")
            continue
        groups.setdefault((cell.file, cell.mask, cell.acceleration), {})[cell] = picture
    return {key: pictures.images(group, records) for key, group in groups.items()}, notes
