"""benchmark(): compute the cells that are not done, then tables, pictures and the report of all of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import InputError
from .grid import Cell, Grid, Task
from .results import write_results
from .store import Record, open_store
from .table import Row, summarize_cells
from .workers import Runner, here, on_cluster, spawned


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark.

    Parameters
    ----------
    records : of every cell; see `recon.benchmark.cells`.
    rows : means, spreads and worsts.
    computed : how many cells this call computed.
    notes : what was found broken, in sentences.
    """

    records: dict[Cell, Record]
    rows: list[Row]
    computed: int
    notes: list[str]

    @property
    def failed(self) -> list[Cell]:
        """The cells whose record is an error."""
        return [cell for cell, record in self.records.items() if record["error"] is not None]


class Costs:
    """What the cells take and how much is left, from those that are done.

    Parameters
    ----------
    tasks : that are left.
    records : of cells that were done before.
    workers : at work at once, as far as is known; once cells are done, how fast they come says more.
    """

    def __init__(self, tasks: Iterable[Task], records: Mapping[Cell, Record], *, workers: int) -> None:
        self.waiting = Counter(task.cell.method for task in tasks)
        self.total, self.done, self.failures, self.workers = sum(self.waiting.values()), 0, 0, workers
        self._seconds, self._count = Counter[str](), Counter[str]()
        self._start, self._work = time.perf_counter(), 0.0
        for cell, record in records.items():
            if record["error"] is None:
                self._learn(cell, record)

    def finished(self, cell: Cell, record: Record) -> None:
        """Count a cell that is done now."""
        self.waiting[cell.method] -= 1
        self.done += 1
        self.failures += record["error"] is not None
        self._work += record["seconds"]["cell"]
        self._learn(cell, record)

    def _learn(self, cell: Cell, record: Record) -> None:
        self._seconds[cell.method] += record["seconds"]["cell"]
        self._count[cell.method] += 1

    def per_method(self) -> dict[str, tuple[int, float]] | None:
        """Method -> cells that are left, and mean seconds of one; None until every method is known."""
        left = {method: count for method, count in self.waiting.items() if count > 0}
        if not all(self._count[method] for method in left):
            return None
        return {method: (count, self._seconds[method] / self._count[method]) for method, count in left.items()}

    def seconds_left(self) -> float | None:
        """Of the clock, None until every method is known."""
        costs = self.per_method()
        if costs is None:
            return None
        work, elapsed = sum(count * seconds for count, seconds in costs.values()), time.perf_counter() - self._start
        return work * (elapsed / self._work if self._work > 0 else 1 / self.workers)


Progress = Callable[[Costs, Cell | None], None]
"""Called at the start and after every cell, with the cell."""


def benchmark(
    grid: Grid,
    *,
    out: str | Path,
    workers: int = 1,
    cluster: str | None = None,
    retry: bool = False,
    progress: Progress | None = None,
) -> Benchmark:
    """Compute what is not done of a grid, and write cells.csv, table.csv, table.md, report.html and pictures/.

    Parameters
    ----------
    grid : see `recon.benchmark.grid.make_grid`.
    out : folder of the benchmark. What is done there is not done again: an interrupted call goes on where it stopped.
    workers : processes; 1 computes in this one. Several are spawned: a script that calls this with more than 1 needs
        the usual `if __name__ == "__main__"`.
    cluster : address of a Dask scheduler, whose workers are taken instead.
    retry : compute the cells again that failed.

    Raises
    ------
    InputError
        If the folder is of something else, or another call is at work in it; if there is no such cluster.
    WriteError
        If the folder cannot be written.
    """
    runner = _runner(workers, cluster)
    with open_store(out, grid) as store:
        tasks = grid.tasks()
        records, notes = store.load([task.cell for task in tasks])
        if retry:
            records = {cell: record for cell, record in records.items() if record["error"] is None}
        left = _first_of_each([task for task in tasks if task.cell not in records])
        costs = Costs(left, records, workers=workers)
        if progress is not None:
            progress(costs, None)
        for task, outcome in runner(left):
            store.save(task.cell, outcome.record, outcome.picture)
            records[task.cell] = outcome.record
            costs.finished(task.cell, outcome.record)
            if progress is not None:
                progress(costs, task.cell)
        records = {task.cell: records[task.cell] for task in tasks}  # in the order of the grid, whatever was done first
        rows = summarize_cells(grid, records)
        notes += write_results(store, grid, records, rows)
    return Benchmark(records, rows, computed=costs.done, notes=notes)


def _runner(workers: int, cluster: str | None) -> Runner:
    if workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    if cluster is not None:
        if workers > 1:
            raise InputError("workers: those of the cluster are taken; leave out workers, or cluster")
        return partial(on_cluster, address=cluster)
    return here if workers == 1 else partial(spawned, workers=workers)


def _first_of_each(tasks: list[Task]) -> list[Task]:
    """The same tasks, one of each method first: they say what the others will cost."""
    first = {task.cell.method: task for task in reversed(tasks)}
    leading = [task for task in tasks if first[task.cell.method] is task]
    return leading + [task for task in tasks if first[task.cell.method] is not task]
