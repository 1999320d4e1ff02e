"""Figures of all cells, and what they come to for each method, mask and acceleration, as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from .grid import Cell, Grid
from .store import Record

ALL = "all"
"""The name of all files together."""


@dataclass(frozen=True)
class Column:
    """A figure of a cell.

    Parameters
    ----------
    title : with its unit, in reports.
    digits : after the point.
    better : 1 if more is better, -1 if less is, 0 if neither: its worst is then the largest.
    read : from a record; None where a cell has no such figure.
    brief : whether Markdown and HTML show its mean alone.
    quality : whether it is a metric of quality, of which methods may be the best.
    """

    name: str
    title: str
    digits: int
    better: int
    read: Callable[[Record], float | None]
    brief: bool = False
    quality: bool = False


LEVEL = 0.9  # of the interval whose coverage stands in the tables


def _metric(name: str) -> Callable[[Record], float | None]:
    return lambda record: record["metrics"][name]


def _interval(name: str) -> Callable[[Record], float | None]:
    def read(record: Record) -> float | None:
        found = record["coverage"]
        return None if found is None else found[name][found["levels"].index(LEVEL)]

    return read


COLUMNS = (
    Column("psnr_scaled", "PSNR scaled, in object (dB)", 2, 1, _metric("psnr_scaled"), quality=True),
    Column("psnr", "PSNR (dB)", 2, 1, _metric("psnr"), quality=True),
    Column("ssim_scaled", "SSIM scaled, in object", 4, 1, _metric("ssim_scaled"), quality=True),
    Column("ssim", "SSIM", 4, 1, _metric("ssim"), quality=True),
    Column("nmse", "NMSE", 4, -1, _metric("nmse"), quality=True),
    Column("coverage", "coverage of 90 % intervals", 3, 1, _interval("coverage")),
    Column("width", "width of 90 % intervals", 3, -1, _interval("width")),
    Column("seconds", "seconds", 2, -1, lambda record: record["seconds"]["method"]),
    Column("evaluations", "evaluations", 0, -1, lambda record: record["evaluations"] or None, brief=True),
    Column("memory_mib", "memory (MiB)", 0, -1, lambda record: record["memory_mib"], brief=True),
    Column("true_acceleration", "true acceleration", 2, 0, lambda record: record["acceleration"], brief=True),
)
HEADLINE = COLUMNS[0]


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (None of fewer than 2) and worst of a figure over cells."""

    mean: float
    spread: float | None
    worst: float

    def text(self, digits: int) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.{digits}f} ({self.worst:.{digits}f})"
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Row:
    """The cells of one method under one mask at one acceleration, over slices and seeds, of one file or ALL.

    Parameters
    ----------
    cells, failed : how many there are, and how many of them failed; figures are of the others.
    figures : column -> summary; none of a column that these cells lack.
    """

    file: str
    method: str
    mask: str
    acceleration: float
    cells: int
    failed: int
    figures: dict[str, Summary]


def summarize_cells(grid: Grid, records: Mapping[Cell, Record]) -> list[Row]:
    """Rows in the order of the grid; those of ALL come first."""
    groups: dict[tuple[str, str, float, str], list[Record]] = {}
    for cell, record in records.items():
        for file in (ALL, cell.file):
            groups.setdefault((file, cell.mask, cell.acceleration, cell.method), []).append(record)
    order = [
        (file, mask, acceleration, method.name)
        for file in (ALL, *(source.name for source in grid.files))
        for mask in grid.masks
        for acceleration in grid.accelerations
        for method in grid.methods
    ]
    return [
        Row(file, method, mask, acceleration, len(found), sum(r["error"] is not None for r in found), _figures(found))
        for file, mask, acceleration, method in order
        if (found := groups.get((file, mask, acceleration, method)))
    ]


def _figures(records: Sequence[Record]) -> dict[str, Summary]:
    done, figures = [record for record in records if record["error"] is None], {}
    for column in COLUMNS:
        values = [value for record in done if (value := column.read(record)) is not None]
        if values:
            worst = min(values) if column.better > 0 else max(values)
            figures[column.name] = Summary(fmean(values), stdev(values) if len(values) > 1 else None, worst)
    return figures


def cells_csv(records: Mapping[Cell, Record]) -> str:
    """One line for each cell."""
    lines = [
        [*asdict(cell).values(), *(_plain(column.read(record)) for column in COLUMNS), ""]
        if record["error"] is None
        else [*asdict(cell).values(), *("" for _ in COLUMNS), record["error"]["message"]]
        for cell, record in records.items()
    ]
    return _csv([[*Cell.__dataclass_fields__, *(column.name for column in COLUMNS), "error"], *lines])


def table_csv(rows: Sequence[Row]) -> str:
    """One line for each row, three entries for each figure."""
    header = ["file", "method", "mask", "acceleration", "cells", "failed"]
    header += [f"{column.name}_{what}" for column in COLUMNS for what in ("mean", "std", "worst")]
    lines: list[list[object]] = []
    for row in rows:
        line: list[object] = [row.file, row.method, row.mask, f"{row.acceleration:g}", row.cells, row.failed]
        for column in COLUMNS:
            found = row.figures.get(column.name)
            line += ["", "", ""] if found is None else map(_plain, (found.mean, found.spread, found.worst))
        lines.append(line)
    return _csv([header, *lines])


def table_markdown(grid: Grid, rows: Sequence[Row]) -> str:
    """Means of the headline by mask and acceleration, then every figure of every row of ALL; the best means bold."""
    pooled = [row for row in rows if row.file == ALL]
    files = ", ".join(source.name for source in grid.files)
    text = [
        f"Over {files}; {grid.seeds} seed{'s' * (grid.seeds > 1)} of mask and samples. {legend(grid)}",
        f"## {HEADLINE.title}",
        _markdown(*overview(grid, pooled)),
        "## Every figure",
        _markdown(*full_table(pooled)),
    ]
    return "# Benchmark\n\n" + "\n\n".join(text) + "\n"


def legend(grid: Grid) -> str:
    """What the figures of the tables are."""
    draws = {method.samples for method in grid.methods if method.samples}
    drawn = f" of {' or '.join(map(str, sorted(draws)))} samples" if draws else ""
    return (
        "Mean ± standard deviation (worst) over files, slices and seeds. Plain PSNR, SSIM and NMSE are of "
        "the whole image, unscaled; those scaled are inside the object, after one factor was fitted. A sampler's image "
        f"is the mean{drawn}; its coverage is that of predictive 90 % intervals, their width relative to the "
        "mean brightness of the object. Seconds are of the method for all samples, without preparation; evaluations of "
        "the network are for one sample; memory is the most that the process of the worker held."
    )


def overview(grid: Grid, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: a method in each line, masks and accelerations along it, means of the headline."""
    places = [(mask, acceleration) for mask in grid.masks for acceleration in grid.accelerations]
    found = {(row.mask, row.acceleration, row.method): row for row in rows}
    lines = []
    for method in grid.methods:
        line = [method.name]
        for mask, acceleration in places:
            row = found.get((mask, acceleration, method.name))
            rivals = [
                found[(mask, acceleration, m.name)] for m in grid.methods if (mask, acceleration, m.name) in found
            ]
            line.append("" if row is None else _entry(row, HEADLINE, rivals, whole=False))
        lines.append(line)
    return ["method", *(f"{mask} ×{acceleration:g}" for mask, acceleration in places)], lines


def full_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of every figure; columns that no row has are left out."""
    columns = [column for column in COLUMNS if any(column.name in row.figures for row in rows)]
    lines = []
    for row in rows:
        rivals = [r for r in rows if (r.file, r.mask, r.acceleration) == (row.file, row.mask, row.acceleration)]
        cells = f"{row.cells - row.failed} of {row.cells}" if row.failed else str(row.cells)
        figures = [_entry(row, column, rivals, whole=True) for column in columns]
        lines.append([row.mask, f"×{row.acceleration:g}", row.method, cells, *figures])
    return ["mask", "", "method", "cells", *(column.title for column in columns)], lines


def _entry(row: Row, column: Column, rivals: Sequence[Row], *, whole: bool) -> str:
    """A figure, bold if it is a metric of quality whose mean is the best.

    Where cells failed the mean is of other cells than that of the rivals: then it says of how many, and wins nothing.
    """
    found = row.figures.get(column.name)
    if found is None:
        return "failed" if row.failed == row.cells else ""
    text = found.text(column.digits) if whole and not column.brief else f"{found.mean:.{column.digits}f}"
    if row.failed:
        return text if whole else f"{text} ({row.cells - row.failed} of {row.cells})"
    means = [column.better * r.figures[column.name].mean for r in rivals if column.name in r.figures and not r.failed]
    best = column.quality and len(means) > 1 and column.better * found.mean == max(means)
    return f"**{text}**" if best else text


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
