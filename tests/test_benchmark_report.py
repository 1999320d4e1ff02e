"""Tables, pictures and the report of a benchmark, of figures made up for the purpose."""

import base64
import csv
import io
import re
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from recon.benchmark import pictures
from recon.benchmark.display import duration, estimate
from recon.benchmark.grid import Cell, Contestant, Grid, Source
from recon.benchmark.report import html
from recon.benchmark.run import Costs
from recon.benchmark.table import ALL, cells_csv, full_table, overview, summarize_cells, table_csv, table_markdown

Records = dict[Cell, dict[str, Any]]


def grid(**changes: Any) -> Grid:
    arguments: dict[str, Any] = {
        "files": (Source("head", "1", (0, 2), "head.h5"), Source("knee", "2", (0, 1), "knee.h5")),
        "methods": (Contestant("zero-filled"), Contestant("tv"), Contestant("dds", samples=4)),
        "masks": ("random", "poisson"),
        "accelerations": (4.0, 8.0),
        "seeds": 2,
    }
    return Grid(**(arguments | changes))


def records(grid: Grid, psnr: Callable[[Cell], float] = lambda cell: 30.0, fails: str = "") -> Records:
    """Cells whose name holds `fails` failed."""
    found = {}
    for task in grid.tasks():
        cell, draws = task.cell, task.arguments["samples"] is not None
        error = {"type": "InputError", "message": "no <signal>", "traceback": ""}
        value = psnr(cell)
        levels = [0.5, 0.8, 0.9, 0.95]
        names = ("psnr", "psnr_scaled", "ssim", "ssim_scaled", "nmse", "nmse_scaled")
        found[cell] = {
            "cell": asdict(cell),
            "error": error if fails and fails in cell.name else None,
            "metrics": dict(zip(names, (value, value, 0.9, 0.9, 1 / value, 1 / value), strict=True)),
            "coverage": {"levels": levels, "nominal": levels, "coverage": levels, "width": levels} if draws else None,
            "acceleration": cell.acceleration,
            "evaluations": 20 if draws else 0,
            "seconds": {"method": 1.0, "cell": 2.0},
            "memory_mib": 300.0,
            "versions": {"torch": "2.13.0"},
            "date": "2026-01-01T00:00:00+00:00",
            "notes": [],
        }
    return found


def test_rows_are_of_all_files_and_of_each() -> None:
    asked = grid()
    rows = summarize_cells(asked, records(asked, lambda cell: {"head": 20.0, "knee": 40.0}[cell.file] + cell.seed))
    of = {(row.file, row.mask, row.acceleration, row.method): row for row in rows}
    assert len(of) == len(rows) == 3 * 2 * 2 * 3
    pooled = of[(ALL, "poisson", 8.0, "tv")]
    assert pooled.cells == 6
    values = [20, 21, 20, 21, 40, 41]
    assert pooled.figures["psnr"].mean == pytest.approx(np.mean(values))
    assert pooled.figures["psnr"].spread == pytest.approx(np.std(values, ddof=1))
    assert pooled.figures["psnr"].worst == 20
    assert pooled.figures["nmse"].worst == 1 / 20
    assert of[("knee", "poisson", 8.0, "tv")].figures["psnr"].mean == 40.5
    assert "coverage" not in pooled.figures
    assert of[(ALL, "poisson", 8.0, "dds")].figures["coverage"].mean == 0.9
    assert "evaluations" not in pooled.figures


def test_one_cell_has_no_spread() -> None:
    asked = grid(seeds=1, files=(Source("knee", "2", (0, 1), "knee.h5"),))
    assert all(row.figures["psnr"].spread is None for row in summarize_cells(asked, records(asked)))


def test_the_best_is_bold_but_not_of_other_cells() -> None:
    """A method that fails on hard cells has a better mean of the easy ones."""
    asked = grid()
    scores = {"zero-filled": 20.0, "tv": 30.0, "dds": 35.0}
    rows = summarize_cells(asked, records(asked, lambda cell: scores[cell.method], fails="knee_0000_random_x4_001_dds"))
    _, lines = overview(asked, [row for row in rows if row.file == ALL])
    assert lines == [
        ["zero-filled", "20.00", "20.00", "20.00", "20.00"],
        ["tv", "**30.00**", "30.00", "30.00", "30.00"],
        ["dds", "35.00 (5 of 6)", "**35.00**", "**35.00**", "**35.00**"],
    ]
    header, lines = full_table([row for row in rows if row.file == ALL])
    cells = header.index("cells")
    assert [line[cells] for line in lines if line[2] == "dds"] == ["5 of 6", "6", "6", "6"]


def test_a_method_that_failed_everywhere_says_so() -> None:
    asked = grid()
    rows = summarize_cells(asked, records(asked, fails="_tv"))
    _, lines = overview(asked, [row for row in rows if row.file == ALL])
    assert lines[1] == ["tv", "failed", "failed", "failed", "failed"]


def test_tables_are_whole() -> None:
    asked = grid()
    found = records(asked, fails="_poisson_x8")
    rows = summarize_cells(asked, found)
    for text, count in ((cells_csv(found), len(found)), (table_csv(rows), len(rows))):
        header, *lines = csv.reader(io.StringIO(text))
        assert len(lines) == count
        assert {len(line) for line in lines} == {len(header)}
    assert cells_csv(found).count("no <signal>") == 18
    tables = re.findall(r"(?:^\|.*\n)+", table_markdown(asked, rows), flags=re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


class Page(HTMLParser):
    """Checks that tags close in order, and collects what is shown and what is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.shown, self.sources = "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_the_report_is_one_whole_file() -> None:
    asked = grid(files=(Source("<b>head & knee", "1", (0, 2), "head.h5"),))
    found = records(asked, fails="_random_x8_001_tv")
    rows = summarize_cells(asked, found)
    figures = {"Quality": pictures.against_acceleration(asked, rows)}
    images = {("<b>head & knee", "random", 4.0): b"jpeg"}
    page = Page(html(asked, found, rows, figures=figures, captions={"Quality": "higher > better"}, images=images))
    assert [source[:11] for source in page.sources] == ["data:image/"] * 2
    assert base64.b64decode(page.sources[0].split(",")[1]) == figures["Quality"]
    for text in ("<b>head & knee", "InputError: no <signal>", "higher > better", "48 cells, 2 failed"):
        assert text in page.shown
    again = html(asked, found, rows, figures=figures, captions={"Quality": "higher > better"}, images=images)
    assert Page(again).shown == page.shown


@pytest.mark.parametrize("fails", ["", "_tv", "_random", "_"])
def test_charts_can_be_drawn_of_whatever_there_is(fails: str) -> None:
    asked = grid()
    found = records(asked, lambda cell: 30 + cell.seed, fails=fails)
    rows = summarize_cells(asked, found)
    for content in (pictures.against_acceleration(asked, rows), pictures.against_cost(asked, rows)):
        assert imread(io.BytesIO(content), format="png").shape[2] == 4
    curves = pictures.reliability(asked, found)
    assert (curves is None) == (fails == "_")


def test_no_samplers_no_coverage() -> None:
    asked = grid(methods=(Contestant("tv"),))
    assert pictures.reliability(asked, records(asked)) is None


@pytest.mark.parametrize(("methods", "bands"), [(1, 1), (7, 1), (9, 2)])
@pytest.mark.parametrize("std", [False, True])
def test_images_of_many_methods_go_on_below(methods: int, bands: int, std: bool) -> None:
    record = next(iter(records(grid()).values()))
    found = {Cell("head", 0, f"method-{i}", "random", 4.0, 0): record for i in range(methods)}
    rng = np.random.default_rng(0)
    shown = {}
    for cell in found:
        names = ("image", "error", *(["std"] if std else []))
        shown[cell] = {name: rng.random((24, 20)).astype(np.float16) for name in names} | {"aspect": np.array(1.0)}
    picture = imread(io.BytesIO(pictures.images(shown, found)), format="jpg")
    height = bands * (0.42 + (3 if std else 2) * (pictures.TILE + 0.04))
    assert picture.shape[0] == pytest.approx(120 * height, abs=2)
    assert picture.std() > 20  # something is to be seen


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.02, "0.0 s"), (9.4, "9.4 s"), (59, "59 s"), (61, "1 min 1 s"), (3725, "1 h 2 min"), (200000, "2 d 7 h")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_estimate_in_words() -> None:
    asked = grid()
    found = records(asked)
    done = {cell: record for cell, record in found.items() if cell.seed == 0}
    costs = Costs([task for task in asked.tasks() if task.cell not in done], done, workers=2)
    assert estimate(costs) == "to do: 12 x zero-filled at 2.0 s, 12 x tv at 2.0 s, 12 x dds at 2.0 s"
    assert costs.seconds_left() == 36
