"""recon benchmark in processes of its own: whatever kills one, nothing is lost and nothing done twice."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_benchmark import IDENTITY, QUALITY, cells, grid, table, write

from recon.benchmark import workers
from recon.benchmark.grid import Cell
from recon.benchmark.run import Costs, benchmark
from recon.errors import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scan") / "head.h5")


# Spawned workers


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_that_is_killed_is_replaced_and_its_cell_done(file: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(costs: Costs, _: Cell | None) -> None:
        if costs.done == 2 and not killed:
            (worker, *_) = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    asked = grid(file, methods=["tv"], options={"tv": {"iterations": 50}})
    found = benchmark(asked, out=tmp_path, workers=2, progress=kill_one)
    assert killed
    assert found.failed == []
    assert found.computed == 8
    assert multiprocessing.active_children() == []


class Fatal:
    """Ends the process that unpickles it, as want of memory would."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_cell_that_ends_its_workers_is_recorded_and_the_rest_goes_on(file: Path) -> None:
    first, fatal, last, *_ = grid(file).tasks()
    fatal = replace(fatal, arguments={**fatal.arguments, "options": Fatal()})
    outcomes = {task.cell: outcome.record for task, outcome in workers.spawned([first, fatal, last], workers=1)}
    assert outcomes[first.cell]["error"] is outcomes[last.cell]["error"] is None
    assert outcomes[fatal.cell]["error"]["type"] == "WorkerDied"
    assert outcomes[fatal.cell]["error"]["message"] == "its worker ended, 2 times, with 9"


def test_workers_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    started: list[dict[str, str | None]] = []

    class Process:
        def __init__(self, **given: Any) -> None:
            self.threads = given["args"][1]

        def start(self) -> None:
            started.append({name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
            assert self.threads == 3

    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(type(multiprocessing.get_context("spawn")), "Process", Process)
    workers._start(2)
    assert started == [{"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}]
    assert os.environ["OMP_NUM_THREADS"] == "6"
    assert "MKL_NUM_THREADS" not in os.environ


def test_no_workers_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers: expected at least 1, got 0"):
        benchmark(grid(file), out=tmp_path, workers=0)
    with pytest.raises(InputError, match="leave out workers, or cluster"):
        benchmark(grid(file), out=tmp_path, workers=2, cluster="tcp://nowhere:1")
    assert list(tmp_path.iterdir()) == []


# Whole processes


def start(file: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "recon.cli", "benchmark", str(file), "--out", str(out), *arguments]
    command += ["--methods", "zero-filled,tv", "--masks", "random", "--accelerations", "2", "--seeds", "2"]
    command += ["--set", "tv.iterations=1000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_killed_command_gives_the_same_table_and_runs_no_cell_twice(file: Path, tmp_path: Path) -> None:
    """Killed (9) with 2 workers, interrupted by Ctrl-C, then left to end, beside a run that was left alone."""
    out = tmp_path / "out"
    process = start(file, out, "--workers", "2")
    wait_until(lambda: len(cells(out)) >= 1, process)
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    kept = cells(out)
    assert 1 <= len(kept) < 8

    process = start(file, out)
    wait_until(lambda: len(cells(out)) > len(kept), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "interrupted; the same command continues where it stopped"
    assert "Traceback" not in errors
    assert kept.items() <= cells(out).items()  # not written again
    kept = cells(out)

    process = start(file, out)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert kept.items() <= cells(out).items()
    assert f"{8 - len(kept)} of 8 cells computed, 0 failed" in output
    assert "report.html" in output
    assert {path.suffix for path in (out / "pictures").iterdir()} == {".png", ".jpg"}
    assert not list((out / "cells").glob(".partial*"))

    options = {"tv": {"iterations": 1000}}
    benchmark(grid(file, methods=["zero-filled", "tv"], masks=["random"], options=options), out=tmp_path / "alone")
    for found, expected in zip(table(out), table(tmp_path / "alone"), strict=True):
        assert [found[name] for name in IDENTITY] == [expected[name] for name in IDENTITY]
        for name in QUALITY:  # sums in float32, by another number of threads
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-4)
