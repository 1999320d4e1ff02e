"""What the commands print: text, tables, a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..pipeline import Progress

console = Console()


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar with the time left, shown while the block runs."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def metrics_table(metrics: dict[str, dict[str, float]], results: dict[str, Any] | None = None) -> Table:
    """One row for each method; what is scaled and what is not is in the names of the columns."""
    table = Table(box=None, header_style="bold")
    table.add_column("method")
    names = {
        "psnr": "PSNR (dB)",
        "ssim": "SSIM",
        "nmse": "NMSE",
        "psnr_scaled": "PSNR scaled, in object",
        "ssim_scaled": "SSIM scaled, in object",
    }
    for title in names.values():
        table.add_column(title, justify="right")
    if results:
        table.add_column("seconds", justify="right")
    for method, values in metrics.items():
        row = [f"{values[name]:.2f}" if "psnr" in name else f"{values[name]:.4f}" for name in names]
        seconds = [f"{results[method].run['timings_s']['method']:.1f}"] if results else []
        table.add_row(method, *row, *seconds)
    return table


def plain(text: str) -> str:
    """Text whose brackets rich does not take for markup."""
    from rich.markup import escape

    return escape(text)
