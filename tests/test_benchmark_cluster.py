"""recon benchmark --cluster: the cells on a Dask cluster of two processes on this machine."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest

from recon.benchmark import workers
from recon.benchmark.grid import Cell, Grid, make_grid
from recon.benchmark.run import Costs, benchmark
from recon.errors import InputError, ReconError
from recon.phantom import head

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    path = tmp_path_factory.mktemp("scan") / "head.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = head((32, 32), coils=3).kspace.numpy()
    options = {"tv": {"iterations": 40}}
    return make_grid(
        [path], methods=["zero-filled", "tv"], masks=["random"], accelerations=[2.0], seeds=6, options=options
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two processes of one thread; a cell that ends two of them is given up."""
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as made,
    ):
        yield made


def test_a_worker_that_is_killed_loses_nothing(grid: Grid, cluster: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(costs: Costs, _: Cell | None) -> None:
        if costs.done == 2:
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    found = benchmark(grid, out=tmp_path / "cluster", cluster=cluster.scheduler_address, progress=kill_one)
    assert len(killed) == 1
    assert found.failed == []
    assert found.computed == 12
    again = benchmark(grid, out=tmp_path / "cluster", cluster=cluster.scheduler_address)
    assert again.computed == 0
    here = benchmark(grid, out=tmp_path / "here")
    for cell, record in here.records.items():
        assert found.records[cell]["metrics"] == pytest.approx(record["metrics"], rel=1e-5)


def test_a_cell_that_ends_its_workers_is_recorded(grid: Grid, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(task: Any) -> None:
        os._exit(9)

    monkeypatch.setattr(workers, "compute", end)
    ((_, outcome),) = workers.on_cluster(grid.tasks()[:1], address=cluster.scheduler_address)
    assert outcome.record["error"]["type"] == "WorkerDied"


def test_workers_that_cannot_compute_are_said_to(grid: Grid, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(task: Any) -> None:
        raise ModuleNotFoundError("No module named 'recon'")

    monkeypatch.setattr(workers, "compute", lack)
    with pytest.raises(ReconError, match=r"cluster: the workers cannot compute \(No module named 'recon'\)"):
        list(workers.on_cluster(grid.tasks()[:1], address=cluster.scheduler_address))


def test_a_scheduler_that_is_not_there(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", "1s")
    with pytest.raises(InputError, match=r"cluster: expected a Dask scheduler at tcp://127.0.0.1:9, got none"):
        benchmark(grid, out=tmp_path, cluster="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="cluster: expected a Dask scheduler at nonsense://x, got none"):
        benchmark(grid, out=tmp_path, cluster="nonsense://x")


def test_without_dask(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="cluster: expected Dask, found none; pip install"):
        benchmark(grid, out=tmp_path, cluster="tcp://127.0.0.1:9")
