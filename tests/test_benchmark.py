"""recon benchmark: what a cell is, nothing is lost, and nothing is done twice."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon.benchmark import cells as cells_module
from recon.benchmark import workers
from recon.benchmark.grid import Cell, Grid, Task, make_grid
from recon.benchmark.run import Costs, benchmark
from recon.errors import InputError, ReconError
from recon.likelihood import Gaussian
from recon.methods import METHODS
from recon.methods.zero_filled import zero_filled
from recon.phantom import head
from recon.pipeline import reconstruct

SHAPE = (32, 32)
IDENTITY = ("file", "slice", "method", "mask", "acceleration", "seed", "true_acceleration", "error")
QUALITY = ("psnr", "psnr_scaled", "ssim", "ssim_scaled", "nmse")

pytestmark = pytest.mark.usefixtures("no_pictures")


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
    cells_module._scan.cache_clear()
    opened: list[object] = []
    original = h5py.File
    monkeypatch.setattr(h5py, "File", lambda *args, **kwargs: opened.append(args) or original(*args, **kwargs))
    benchmark(asked, out=tmp_path)
    assert len(opened) < 16  # for 16 cells of 2 slices: opening it, and reading each slice


def test_a_scan_or_a_prior_that_took_the_place_of_another_stops_the_run(file: Path, tmp_path: Path) -> None:
    asked = grid(file, methods=["dds"], options={"dds": {"steps": 1, "samples": 1}}, slices=(0, 1))
    other_scan = replace(asked, files=(replace(asked.files[0], sha256="of another scan"),))
    with pytest.raises(ReconError, match=r"head.h5: expected checksum of another .* got"):
        benchmark(other_scan, out=tmp_path / "scan")
    other_prior = replace(asked, methods=(replace(asked.methods[0], prior_sha256="of another one"),))
    with pytest.raises(ReconError, match=r"prior brain: expected checksum of another .* got"):
        benchmark(other_prior, out=tmp_path / "prior")
    assert not cells(tmp_path / "scan") | cells(tmp_path / "prior")


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


def test_cells_of_other_defaults_are_of_another_benchmark(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = grid(file, methods=["cg-sense"])
    benchmark(asked, out=tmp_path)
    monkeypatch.setitem(METHODS["cg-sense"].__kwdefaults__, "regularization", 5.0)
    with pytest.raises(InputError, match="or gives other settings to it"):
        benchmark(asked, out=tmp_path)


def test_a_broken_cell_is_computed_again_and_no_other(file: Path, tmp_path: Path, computed: list[Cell]) -> None:
    asked = grid(file)
    benchmark(asked, out=tmp_path)
    expected = quality(tmp_path)
    names = [task.cell.name for task in asked.tasks()]
    paths = [tmp_path / "cells" / f"{name}.json" for name in names]
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    paths[4].write_bytes(b"")
    paths[7].write_bytes(paths[8].read_bytes())
    for i, changes in {2: {"seconds": None}, 3: {"error": "x"}, 5: {"metrics": {"psnr": []}}}.items():
        paths[i].write_text(json.dumps(json.loads(paths[i].read_text()) | changes))
    paths[6].unlink()
    paths[6].mkdir()
    computed.clear()
    found = benchmark(asked, out=tmp_path)
    assert sorted(cell.name for cell in computed) == sorted(names[i] for i in range(1, 8))
    assert len(found.notes) == 7
    assert all("a broken cell file" in note for note in found.notes)
    assert quality(tmp_path) == expected


def test_a_perfect_image_has_no_psnr_and_stops_nothing(file: Path, tmp_path: Path, computed: list[Cell]) -> None:
    """At acceleration 1 the coil-combined image is the reference; the same tables once more from the kept cells."""
    asked = grid(file, methods=["zero-filled"], masks=["random"], accelerations=[1.0], seeds=2)
    first = benchmark(asked, out=tmp_path)
    assert [record["error"] for record in first.records.values()] == [None] * len(first.records)
    assert any(None in record["metrics"].values() for record in first.records.values())
    tables = [(tmp_path / name).read_text() for name in ("cells.csv", "table.csv", "table.md")]
    computed.clear()
    benchmark(asked, out=tmp_path)
    assert not computed
    assert [(tmp_path / name).read_text() for name in ("cells.csv", "table.csv", "table.md")] == tables


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
