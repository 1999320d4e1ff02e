"""recon benchmark: nothing is lost, nothing is done twice, and what cannot work is refused before any work."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon.benchmark import pictures, workers
from recon.benchmark.grid import Cell, Grid, Task, make_grid
from recon.benchmark.run import Costs, benchmark
from recon.benchmark.store import GRID
from recon.errors import InputError, MissingFileError
from recon.likelihood import Gaussian
from recon.methods import METHODS
from recon.methods.zero_filled import zero_filled
from recon.phantom import head
from recon.pipeline import reconstruct

SHAPE = (32, 32)
IDENTITY = ("file", "slice", "method", "mask", "acceleration", "seed", "true_acceleration", "error")
QUALITY = ("psnr", "psnr_scaled", "ssim", "ssim_scaled", "nmse")


def write(path: Path, *, slices: int = 2, seed: int = 0, **datasets: np.ndarray) -> Path:
    """A fully sampled fastMRI file; its slices differ in brightness and noise."""
    kspace = torch.cat([(1 + i / 2) * head(SHAPE, coils=3, seed=seed + i).kspace for i in range(slices)])
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.numpy()
        for name, values in datasets.items():
            file[name] = values
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scan") / "head.h5")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a quick benchmark; the commands below draw them."""
    for name in ("against_acceleration", "against_cost", "reliability", "images"):
        monkeypatch.setattr(pictures, name, lambda *_: b"picture")


def grid(file: Path, **changes: Any) -> Grid:
    """2 slices x 2 methods x 2 masks x 1 acceleration x 2 seeds: 16 quick cells."""
    arguments: dict[str, Any] = {
        "methods": ["zero-filled", "rss"],
        "masks": ["random", "gaussian2d"],
        "accelerations": [2.0],
        "seeds": 2,
    }
    return make_grid([file], **(arguments | changes))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are computed in this process, in their order."""
    cells: list[Cell] = []

    def compute(task: Task) -> Any:
        cells.append(task.cell)
        return original(task)

    original = workers.compute
    monkeypatch.setattr(workers, "compute", compute)
    return cells


def table(folder: Path, name: str = "cells.csv") -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def quality(folder: Path) -> list[list[str]]:
    """Everything of every cell but what it cost."""
    costs = ("seconds", "memory_mib")
    return [[value for name, value in row.items() if name not in costs] for row in table(folder)]


def cells(folder: Path) -> dict[str, int]:
    """Finished cells and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}


# Cells


def test_a_cell_is_a_reconstruction_of_the_pipeline(file: Path, tmp_path: Path) -> None:
    options = {"cg-sense": {"iterations": 5}}
    found = benchmark(grid(file, methods=["cg-sense"], options=options), out=tmp_path)
    assert len(found.records) == found.computed == 8
    for cell, record in found.records.items():
        expected = reconstruct(
            file,
            method="cg-sense",
            options=options["cg-sense"],
            mask=cell.mask,
            acceleration=cell.acceleration,
            seed=cell.seed,
            slices=(cell.slice, cell.slice + 1),
        )
        assert record["error"] is None
        assert record["metrics"] == pytest.approx(expected.metrics, rel=1e-6)
        assert record["acceleration"] == expected.run["acceleration"]
        assert record["settings"]["options"] == {"iterations": 5}
        assert 0 < record["seconds"]["method"] < record["seconds"]["cell"]
        assert record["memory_mib"] > 50
        assert json.loads((tmp_path / "cells" / f"{cell.name}.json").read_text()) == json.loads(json.dumps(record))


def test_a_sampler_takes_part_with_its_coverage(file: Path, tmp_path: Path) -> None:
    options = {"dds": {"steps": 2, "samples": 3, "precision": "bf16"}}
    asked = grid(file, methods=["zero-filled", "dds"], masks=["random"], seeds=1, slices=(0, 1), options=options)
    found = benchmark(asked, out=tmp_path)
    zero, dds = found.records.values()
    assert zero["coverage"] is None
    assert dds["coverage"]["samples"] == 3
    assert 0 <= dds["coverage"]["coverage"][2] <= 1
    assert dds["evaluations"] == 2
    assert dds["prior"] == asked.methods[1].prior_sha256
    assert dds["settings"]["precision"] == "bf16"
    assert dds["settings"]["prior"] == "brain"
    assert zero["prior"] is None
    row = next(row for row in table(tmp_path, "table.csv") if row["method"] == "dds")
    assert float(row["coverage_mean"]) == pytest.approx(dds["coverage"]["coverage"][2], rel=1e-5)
    assert (tmp_path / "pictures" / "coverage-of-the-intervals.png").exists()


def test_means_spreads_and_worsts(file: Path, tmp_path: Path) -> None:
    found = benchmark(grid(file), out=tmp_path)
    rows = table(tmp_path, "table.csv")
    assert len(rows) == 2 * 4  # of all files, and of the one
    for row in rows:
        mine = [r["metrics"] for c, r in found.records.items() if (c.method, c.mask) == (row["method"], row["mask"])]
        assert int(row["cells"]) == len(mine) == 4
        assert row["failed"] == "0"
        for name, worst in {"psnr": min, "nmse": max}.items():
            values = [metrics[name] for metrics in mine]
            assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(values), rel=1e-5)
            assert float(row[f"{name}_std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-4)
            assert float(row[f"{name}_worst"]) == pytest.approx(worst(values), rel=1e-5)


def test_a_scan_is_read_once_for_all_cells(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = grid(file)
    opened: list[object] = []
    original = h5py.File
    monkeypatch.setattr(h5py, "File", lambda *args, **kwargs: opened.append(args) or original(*args, **kwargs))
    benchmark(replace(asked, files=(replace(asked.files[0], sha256="a scan not seen before"),)), out=tmp_path)
    assert len(opened) < 16  # for 16 cells of 2 slices: opening it, and reading each slice


# What is done is not done again


def test_the_same_call_computes_nothing_again(file: Path, tmp_path: Path, computed: list[Cell]) -> None:
    first = benchmark(grid(file), out=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(computed) == len(set(computed)) == 16
    again = benchmark(grid(file), out=tmp_path)
    assert len(computed) == 16
    assert again.computed == 0
    assert again.records.keys() == first.records.keys()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


class Stopped(Exception):
    """Stands for anything that ends a run."""


def stop_after(count: int) -> Callable[[Costs, Cell | None], None]:
    def report(costs: Costs, _: Cell | None) -> None:
        if costs.done == count:
            raise Stopped

    return report


def test_an_interrupted_run_goes_on_where_it_stopped(file: Path, tmp_path: Path, computed: list[Cell]) -> None:
    whole = benchmark(grid(file), out=tmp_path / "whole")
    computed.clear()
    for count in (5, 4):
        with pytest.raises(Stopped):
            benchmark(grid(file), out=tmp_path / "parts", progress=stop_after(count))
    assert len(cells(tmp_path / "parts")) == 9
    found = benchmark(grid(file), out=tmp_path / "parts")
    assert found.computed == 7
    assert len(computed) == len(set(computed)) == 16
    assert list(found.records) == list(whole.records)  # in the order of the grid
    assert quality(tmp_path / "parts") == quality(tmp_path / "whole")


def test_a_benchmark_may_grow(file: Path, tmp_path: Path, computed: list[Cell]) -> None:
    benchmark(grid(file, seeds=1), out=tmp_path)
    assert len(computed) == 8
    bigger = grid(file, methods=["cg-sense", "zero-filled", "rss"], accelerations=[2.0, 4.0])
    found = benchmark(bigger, out=tmp_path)
    assert len(found.records) == 48
    assert len(computed) == len(set(computed)) == 48


def test_a_broken_cell_is_computed_again_and_no_other(file: Path, tmp_path: Path, computed: list[Cell]) -> None:
    asked = grid(file)
    benchmark(asked, out=tmp_path)
    expected = quality(tmp_path)
    names = [task.cell.name for task in asked.tasks()]
    paths = [tmp_path / "cells" / f"{name}.json" for name in names]
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    paths[4].write_bytes(b"")
    paths[7].write_bytes(paths[8].read_bytes())
    computed.clear()
    found = benchmark(asked, out=tmp_path)
    assert sorted(cell.name for cell in computed) == sorted(names[i] for i in (1, 4, 7))
    assert len(found.notes) == 3
    assert all("a broken cell file" in note for note in found.notes)
    assert quality(tmp_path) == expected


def test_a_lost_picture_is_left_out_and_said_so(file: Path, tmp_path: Path) -> None:
    asked = grid(file)
    benchmark(asked, out=tmp_path)
    kept = sorted((tmp_path / "cells").glob("*.npz"))
    assert len(kept) == 4  # of one slice and seed
    kept[0].write_bytes(b"PK")
    kept[1].unlink()
    found = benchmark(asked, out=tmp_path)
    assert len(found.notes) == 2
    assert found.computed == 0


# Cells that fail


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A method that fails as long as there is something in the list."""
    failing = [True]

    def method(likelihood: Gaussian) -> Tensor:
        if failing and likelihood.y.shape[0] == 1 and len(seen) % 2 == 0:
            seen.append(1)
            raise ArithmeticError("it did not converge")
        seen.append(1)
        return zero_filled(likelihood)

    seen: list[int] = []
    monkeypatch.setitem(METHODS, "moody", method)
    return failing


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(file: Path, tmp_path: Path, moody: list[bool]) -> None:
    asked = grid(file, methods=["zero-filled", "moody"])
    found = benchmark(asked, out=tmp_path)
    assert found.computed == 16
    assert len(found.failed) == 4
    for cell in found.failed:
        error = found.records[cell]["error"]
        assert error["type"] == "ArithmeticError"
        assert error["message"] == "it did not converge"
        assert "raise ArithmeticError" in error["traceback"]
    rows = [row for row in table(tmp_path, "table.csv") if row["method"] == "moody" and row["file"] == "all"]
    assert sum(int(row["failed"]) for row in rows) == 4
    assert sum(row["error"] == "it did not converge" for row in table(tmp_path)) == 4
    report = (tmp_path / "report.html").read_text()
    assert "Failed cells" in report
    assert report.count("ArithmeticError: it did not converge") == 4

    moody.clear()
    assert benchmark(asked, out=tmp_path).computed == 0
    again = benchmark(asked, out=tmp_path, retry=True)
    assert again.computed == 4
    assert again.failed == []
    assert "Failed cells" not in (tmp_path / "report.html").read_text()


def test_a_benchmark_of_failures_has_a_report(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def method(likelihood: Gaussian) -> Tensor:
        return torch.full_like(zero_filled(likelihood), torch.nan)

    monkeypatch.setitem(METHODS, "nan", method)
    found = benchmark(grid(file, methods=["nan"]), out=tmp_path)
    assert len(found.failed) == 16 // 2
    assert all("finite" in record["error"]["message"] for record in found.records.values())
    assert "failed" in (tmp_path / "table.md").read_text()


# Costs


def test_the_time_left_is_that_of_the_cells_left(file: Path) -> None:
    tasks = grid(file).tasks()
    record = {"error": None, "seconds": {"cell": 2.0}}
    costs = Costs(tasks, {}, workers=4)
    assert costs.seconds_left() is None  # nothing is known
    costs = Costs(tasks, {task.cell: record for task in tasks[:2]}, workers=4)  # one of each method
    assert costs.seconds_left() == pytest.approx(16 * 2 / 4)
    assert costs.per_method() == {"zero-filled": (8, 2.0), "rss": (8, 2.0)}
    for task in tasks:
        costs.finished(task.cell, record)
    assert costs.seconds_left() == 0
    assert costs.done == 16


def test_one_cell_of_each_method_comes_first(file: Path, tmp_path: Path, computed: list[Cell]) -> None:
    seen: list[float | None] = []
    asked = grid(file, methods=["zero-filled", "rss", "cg-sense"], options={"cg-sense": {"iterations": 1}})
    benchmark(asked, out=tmp_path, progress=lambda costs, _: seen.append(costs.seconds_left()))
    assert {cell.method for cell in computed[:3]} == {"zero-filled", "rss", "cg-sense"}
    assert seen[:3] == [None, None, None]
    assert all(seconds is not None for seconds in seen[3:])
    assert seen[-1] == 0


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["magic"]}, "unknown method 'magic'; expected one of zero-filled"),
        ({"methods": ["rss", "rss"]}, "methods: expected each once, got rss more often"),
        ({"masks": ["chequers"]}, "unknown mask 'chequers'; expected one of random"),
        ({"masks": []}, "masks: expected at least one, got none"),
        ({"accelerations": [0.5]}, r"mask random: .*\(acceleration 0.5 of 32 x 32 k-space\)"),
        ({"accelerations": [100.0]}, r"mask random: .*\(acceleration 100 of 32 x 32 k-space\)"),
        (
            {"masks": ["random", "fastmri-magic"], "accelerations": [2.0, 2.0]},
            "accelerations: expected each once, got 2",
        ),
        ({"mask_options": {"sparkle": 1}}, "mask random: unknown option sparkle"),
        ({"mask_options": {"calibration": 40}}, "mask random: .*calibration"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"samples": 4}, "samples: none of zero-filled, rss draws any"),
        ({"methods": ["dds"], "samples": 0}, "samples: expected at least 1, got 0"),
        ({"prior": "brain"}, "prior: none of zero-filled, rss has one"),
        ({"precision": "bf16"}, "precision: none of zero-filled, rss has one"),
        ({"options": {"rss": {"precision": "bf16"}}}, "precision: rss has no network"),
        ({"methods": ["dds"], "prior": "nobody"}, "nobody"),
        ({"slices": (1, 3)}, "head.h5: expected slices within 0:2, got 1:3"),
        ({"options": {"tv": {"iterations": 3}}}, "options: tv takes no part"),
        ({"options": {"rss": {"iterations": 3}}}, "method rss: unknown option 'iterations'"),
        ({"options": {"rss": {"steps": 3}}}, "steps: rss has no noise levels"),
        ({"methods": ["dds"], "options": {"dds": {"steps": 2.5}}}, "method dds: steps expects a whole number"),
        ({"device": "toaster"}, "device: expected cpu"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, MissingFileError), match=message):
        grid(file, **changes)


def test_scans_that_cannot_serve_are_refused(file: Path, tmp_path: Path) -> None:
    mask = np.ones(SHAPE[1])
    mask[::3] = 0
    half = write(tmp_path / "half.h5", mask=mask)
    copy = write(tmp_path / "copy.h5")
    with pytest.raises(InputError, match=r"half.h5: expected a fully sampled scan, .* use recon reconstruct"):
        make_grid([half], methods=["rss"], masks=["random"], accelerations=[2.0])
    with pytest.raises(InputError, match="expected each scan once, got the same data in head, copy"):
        make_grid([file, copy], methods=["rss"], masks=["random"], accelerations=[2.0])
    with pytest.raises(MissingFileError):
        make_grid([tmp_path / "none.h5"], methods=["rss"], masks=["random"], accelerations=[2.0])


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [write(tmp_path / folder / "scan.h5", slices=1, seed=i) for i, folder in enumerate("ab")]
    asked = make_grid(files, methods=["rss"], masks=["random"], accelerations=[2.0])
    assert [source.name for source in asked.files] == ["a/scan", "b/scan"]
    found = benchmark(asked, out=tmp_path / "out")
    assert len(found.records) == 2
    assert len(cells(tmp_path / "out")) == 2
    assert {row["file"] for row in table(tmp_path / "out", "table.csv")} == {"all", "a/scan", "b/scan"}


def test_a_tool_that_is_not_installed_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="bart-tv: expected the program bart, found none"):
        grid(file, methods=["rss", "bart-tv"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["zero-filled"]}, "leaves out rss"),
        ({"masks": ["poisson"]}, "leaves out random, gaussian2d"),
        ({"accelerations": [3.0]}, "leaves out 2.0"),
        ({"methods": ["zero-filled", "rss", "tv"], "slices": (0, 1)}, "leaves out head or gives other settings"),
        ({"seeds": 1}, "expected at least the 2 seeds there, got 1"),
        ({"mask_options": {"calibration": 8}}, "benchmark there is of mask_options"),
    ],
)
def test_the_folder_of_another_benchmark_is_refused(
    file: Path, tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "of-another-benchmark"
    if not folder.exists():
        benchmark(grid(file), out=folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match=message):
        benchmark(grid(file, **changes), out=folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_scan_of_the_same_name_is_refused(tmp_path: Path) -> None:
    benchmark(grid(write(tmp_path / "head.h5")), out=tmp_path / "out")
    with pytest.raises(InputError, match="leaves out head or gives other settings to it"):
        benchmark(grid(write(tmp_path / "head.h5", seed=5)), out=tmp_path / "out")


def test_the_folder_of_something_else_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(InputError, match=r"expected a benchmark or nothing, got table.csv without benchmark.json"):
        benchmark(grid(file), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    (tmp_path / GRID).write_text("{}")
    with pytest.raises(InputError, match=r"benchmark.json: expected what a benchmark is of, got something else"):
        benchmark(grid(file), out=tmp_path)


def test_a_second_run_in_the_same_folder_is_refused(file: Path, tmp_path: Path) -> None:
    def second(costs: Costs, _: Cell | None) -> None:
        if costs.done == 1:
            benchmark(grid(file), out=tmp_path)

    with pytest.raises(InputError, match="another run is at work in this folder"):
        benchmark(grid(file), out=tmp_path, progress=second)
    assert benchmark(grid(file), out=tmp_path).computed == 15


def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(file: Path, tmp_path: Path) -> None:
    """As a limit on the size of files."""
    code = (
        "import resource, sys; from recon.benchmark.grid import make_grid; from recon.benchmark.run import benchmark\n"
        "from recon.errors import WriteError\n"
        "grid = make_grid([sys.argv[1]], methods=['rss'], masks=['random'], accelerations=[2.0], seeds=2)\n"
        "stop = lambda costs, _: costs.done == 2 and resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9999999))\n"
        "try: benchmark(grid, out=sys.argv[2], progress=stop)\n"
        "except WriteError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(file), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "larger than allowed" in process.stdout
    assert len(cells(tmp_path)) == 2
    assert all(json.loads((tmp_path / "cells" / name).read_text()) for name in cells(tmp_path))


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
