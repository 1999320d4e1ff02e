"""recon benchmark: what cannot work is refused before any work."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_benchmark import SHAPE, cells, grid, table, write

from recon.benchmark.grid import Cell, make_grid
from recon.benchmark.run import Costs, benchmark
from recon.benchmark.store import GRID
from recon.errors import InputError, MissingFileError

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("scan") / "head.h5")


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
        ({"mask_options": {"calibration": "abc"}}, "mask random: option calibration expects int, got 'abc'"),
        ({"mask_options": {"calibration": 4.5}}, "mask random: option calibration expects int, got 4.5"),
        ({"methods": ["dds"], "options": {"dds": {"prior": 3}}}, "method dds: prior expects a name, got 3"),
        ({"methods": ["dds"], "options": {"dds": {"precision": 16}}}, "method dds: precision expects a name, got 16"),
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


def test_cells_of_different_files_have_different_names() -> None:
    names = ("a/b", "a-b", "a%2Fb", "a%b")
    assert len({Cell(name, 0, "rss", "random", 2.0, 0).name for name in names}) == len(names)


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
