"""Pictures of a benchmark: images with their errors, and quality against what it costs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ..io.panel import BACKGROUND, FAINT, TEXT, brightening, window
from .grid import Cell, Grid
from .store import Record
from .table import ALL, HEADLINE, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 8  # of images, the reference among them, before they go on in further rows
TILE = 1.9  # inches, the longer side of an image
INK, GRID_LINES = "#20242a", "#d9dde3"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8c6d31", "#4d4d4d", "#b0003a")
MARKERS = "osD^vP*X"

Picture = dict[str, np.ndarray[Any, Any]]
"""What `recon.benchmark.cells.Outcome` holds of one cell."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn in every figure: those without a network dashed."""

    color: str
    marker: str
    line: str


def styles(grid: Grid) -> dict[str, Style]:
    return {
        method.name: Style(
            COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)], "-" if method.samples else "--"
        )
        for i, method in enumerate(grid.methods)
    }


class _Sheet:
    """Images in bands of several rows, a title of two lines above each band."""

    TOP, GAP = 0.42, 0.04  # inches: for the titles, between images

    def __init__(self, *, bands: int, rows: int, columns: int, shape: tuple[int, int], aspect: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        height, width = shape[0] * aspect, float(shape[1])
        self.aspect, self.rows = aspect, rows
        self.height, self.width = TILE * height / max(height, width), TILE * width / max(height, width)
        self.band = self.TOP + rows * (self.height + self.GAP)
        self.size = columns * (self.width + self.GAP) + self.GAP, bands * self.band
        self.figure = Figure(figsize=self.size, facecolor=BACKGROUND)
        FigureCanvasAgg(self.figure)

    def show(self, image: np.ndarray[Any, Any], white: float, *, band: int, row: int, column: int) -> None:
        """The image itself is gray, maps below it are not."""
        left = self.GAP + column * (self.width + self.GAP)
        bottom = self.size[1] - band * self.band - self.TOP - row * (self.height + self.GAP) - self.height
        w, h = self.size
        axes = self.figure.add_axes((left / w, bottom / h, self.width / w, self.height / h))
        axes.axis("off")
        smooth = "nearest" if image.shape[0] >= 192 else "bilinear"
        color = "inferno" if row else "gray"
        shown = image.astype(np.float32)
        axes.imshow(shown, cmap=color, vmin=0, vmax=white, aspect=self.aspect, interpolation=smooth)

    def title(self, text: str, caption: str = "", *, band: int, column: int) -> None:
        self._write(text, TEXT, band, column, down=0.13)
        self._write(caption, FAINT, band, column, down=0.3)

    def label(self, text: str, *, band: int, row: int, column: int) -> None:
        """In place of an image."""
        self._write(text, FAINT, band, column, down=self.TOP + row * (self.height + self.GAP) + self.height / 2)

    def _write(self, text: str, color: str, band: int, column: int, *, down: float) -> None:
        x = self.GAP + column * (self.width + self.GAP) + self.width / 2
        y = self.size[1] - band * self.band - down
        self.figure.text(x / self.size[0], y / self.size[1], text, color=color, size=8.5, ha="center", va="center")


def images(pictures: Mapping[Cell, Picture], records: Mapping[Cell, Record]) -> bytes:
    """A JPEG of one slice under one mask by several methods: images, errors, and standard deviations where drawn.

    Parameters
    ----------
    pictures : of cells that differ in their method alone.
    """
    first = next(iter(pictures.values()))
    reference = first["image"].astype(np.float32) - first["error"]
    white = window(reference)
    errors = {cell: np.abs(picture["error"].astype(np.float32)) for cell, picture in pictures.items()}
    by_size = sorted(errors.values(), key=lambda error: float(np.square(error).mean()))
    factor = brightening(by_size[: max(1, len(errors) - 1)], white)  # the largest may saturate
    cells, columns = list(pictures), min(COLUMNS, 1 + len(pictures))
    bands = [cells[i : i + columns - 1] for i in range(0, len(cells), columns - 1)]
    rows = 3 if any("std" in picture for picture in pictures.values()) else 2
    sheet = _Sheet(bands=len(bands), rows=rows, columns=columns, shape=reference.shape, aspect=float(first["aspect"]))
    for b, band in enumerate(bands):
        sheet.show(reference, white, band=b, row=0, column=0)
        sheet.title("reference", band=b, column=0)
        for row, what in enumerate(("error", "standard deviation")[: rows - 1], start=1):
            sheet.label(f"{what}\n× {factor}", band=b, row=row, column=0)
        for c, cell in enumerate(band, start=1):
            found = records[cell]["metrics"]
            quality = "perfect" if found["psnr_scaled"] is None else f"{found['psnr_scaled']:.1f} dB"
            sheet.title(cell.method, f"{quality}, {found['ssim_scaled']:.3f}", band=b, column=c)
            sheet.show(pictures[cell]["image"], white, band=b, row=0, column=c)
            sheet.show(errors[cell], white / factor, band=b, row=1, column=c)
            if "std" in pictures[cell]:
                sheet.show(pictures[cell]["std"], white / factor, band=b, row=2, column=c)
    return _bytes(sheet.figure, "jpg")


def against_acceleration(grid: Grid, rows: Sequence[Row]) -> bytes:
    """A PNG: the headline against the acceleration, a panel for each mask, bars of one standard deviation."""
    figure, panels = _panels(len(grid.masks), columns=3)
    pooled = [row for row in rows if row.file == ALL and HEADLINE.name in row.figures]
    drawn = styles(grid)
    for axes, mask in zip(panels, grid.masks, strict=False):
        for i, method in enumerate(grid.methods):
            found = [row for row in pooled if (row.mask, row.method) == (mask, method.name)]
            if not found:
                continue
            style, shift = drawn[method.name], 1 + 0.012 * (i - len(grid.methods) / 2)  # bars side by side
            axes.errorbar(
                [row.acceleration * shift for row in found],
                [row.figures[HEADLINE.name].mean for row in found],
                [row.figures[HEADLINE.name].spread or 0 for row in found],
                color=style.color, marker=style.marker, linestyle=style.line, markersize=4, linewidth=1.3,
                elinewidth=0.8, label=method.name,
            )  # fmt: skip
        axes.set_title(mask, size=10, color=INK)
        axes.set_xscale("log")
        axes.set_xticks(grid.accelerations, [f"×{a:g}" for a in grid.accelerations])
        axes.minorticks_off()
    figure.supxlabel("acceleration", size=9, color=INK)
    figure.supylabel(HEADLINE.title, size=9, color=INK)
    _legend(figure, panels)
    return _bytes(figure, "png")


def against_cost(grid: Grid, rows: Sequence[Row]) -> bytes:
    """A PNG: the headline against network evaluations and against seconds, a column for each acceleration.

    Points are means over the masks, of methods that have a figure under each; the line is the best that is to be had
    for so much (Pareto). Methods without a network are horizontal lines beside the evaluations.
    """
    figure, panels = _panels(2 * len(grid.accelerations), columns=len(grid.accelerations))
    costs = {"evaluations": "network evaluations for one sample", "seconds": "seconds for all samples of a slice"}
    for i, (axes, (cost, acceleration)) in enumerate(zip(panels, product(costs, grid.accelerations), strict=True)):
        points = {}
        for method, style in styles(grid).items():
            found = [row for row in rows if (row.file, row.acceleration, row.method) == (ALL, acceleration, method)]
            found = [row for row in found if HEADLINE.name in row.figures]
            if len(found) < len(grid.masks):
                continue
            y = fmean(row.figures[HEADLINE.name].mean for row in found)
            if any(cost not in row.figures for row in found):
                axes.axhline(y, color=style.color, linestyle=style.line, linewidth=1, label=method)
                continue
            points[method] = (fmean(row.figures[cost].mean for row in found), y)
            axes.plot(*points[method], color=style.color, marker=style.marker, linestyle="", markersize=7, label=method)
        front = [p for p in sorted(points.values()) if all(q[1] < p[1] for q in points.values() if q[0] < p[0])]
        if front:
            axes.plot(*zip(*front, strict=True), color=FAINT, linewidth=1, zorder=0, drawstyle="steps-post")
        axes.set_xscale("log")
        axes.set_xlabel(costs[cost], size=8, color=INK)
        axes.set_title(f"×{acceleration:g}" if i < len(grid.accelerations) else "", size=10, color=INK)
    figure.supylabel(HEADLINE.title, size=9, color=INK)
    _legend(figure, panels)
    return _bytes(figure, "png")


def reliability(grid: Grid, records: Mapping[Cell, Record]) -> bytes | None:
    """A PNG: coverage that was found against what the intervals are made for; None if no method drew samples."""
    found: dict[tuple[str, float], dict[float, list[float]]] = {}
    for cell, record in records.items():
        if record["error"] is None and record["coverage"] is not None:
            curve = found.setdefault((cell.method, cell.acceleration), {})
            for nominal, coverage in zip(record["coverage"]["nominal"], record["coverage"]["coverage"], strict=True):
                curve.setdefault(nominal, []).append(coverage)
    if not found:
        return None
    figure, panels = _panels(len(grid.accelerations), columns=3)
    drawn = styles(grid)
    for axes, acceleration in zip(panels, grid.accelerations, strict=False):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        for method in grid.methods:
            curve = found.get((method.name, acceleration), {})
            if curve:
                style, x = drawn[method.name], sorted(curve)
                y = [fmean(curve[nominal]) for nominal in x]
                axes.plot(x, y, color=style.color, marker=style.marker, markersize=4, linewidth=1.3, label=method.name)
        axes.set(xlim=(0.45, 1), ylim=(0, 1))
        axes.set_title(f"×{acceleration:g}", size=10, color=INK)
    figure.supxlabel("coverage that the intervals are made for", size=9, color=INK)
    figure.supylabel("coverage found", size=9, color=INK)
    _legend(figure, panels)
    return _bytes(figure, "png")


def _panels(count: int, *, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels; no pyplot, which would leave global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2 + 3.1 * columns, 0.6 + 2.6 * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels:
        axes.grid(color=GRID_LINES, linewidth=0.6)
        axes.tick_params(labelsize=8, colors=INK, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID_LINES)
    return figure, panels[:count]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, beside them."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(list(entries.values()), list(entries), loc="outside right upper", fontsize=8, frameon=False)


def _bytes(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    options: dict[str, Any] = {"pil_kwargs": {"quality": 88}} if kind == "jpg" else {"metadata": {"Software": None}}
    figure.savefig(content, format=kind, dpi=120, facecolor=figure.get_facecolor(), **options)
    return content.getvalue()
