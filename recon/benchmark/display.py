"""What the command shows of a benchmark while it runs, and of what it came to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from .grid import Cell, Grid
from .run import Benchmark, Costs, Progress
from .table import ALL, overview


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A bar with the cells that are done and the time left, and one line with the cost as soon as it is known."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    told = False
    with Bar(*columns, console=console, transient=True) as bar:
        line = bar.add_task("preparing", total=None, left="")

        def report(costs: Costs, cell: Cell | None) -> None:
            nonlocal told
            seconds = costs.seconds_left()
            if not told and seconds is not None and costs.total > costs.done:
                told = True
                console.print(f"{estimate(costs)}; about {duration(seconds)}", style="dim", soft_wrap=True)
            left = "estimating" if seconds is None else f"{duration(seconds)} left"
            failures = f", {costs.failures} failed" if costs.failures else ""
            what = "" if cell is None else f"{cell.method}, {cell.mask} x{cell.acceleration:g}"
            bar.update(line, description=escape(what), total=costs.total, completed=costs.done, left=left + failures)

        yield report


def estimate(costs: Costs) -> str:
    """What is left: cells of each method, and what one costs."""
    methods = (costs.per_method() or {}).items()
    return "to do: " + ", ".join(f"{count} x {name} at {duration(seconds)}" for name, (count, seconds) in methods)


def duration(seconds: float) -> str:
    """In the two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole} s" if minutes else f"{whole} s"


def outcome(grid: Grid, found: Benchmark) -> Table:
    """The means of the headline."""
    header, lines = overview(grid, [row for row in found.rows if row.file == ALL])
    table = Table(header[0], box=None, header_style="bold")
    for title in header[1:]:
        table.add_column(title, justify="right")
    for line in lines:
        table.add_row(*(f"[bold]{t.strip('*')}[/]" if t.startswith("**") else escape(t) for t in line))
    return table
