"""What does a benchmark cost beside its reconstructions? Many cells of a trivial method on a tiny scan.

    python -m benchmarks.overhead --cells 10000

The reconstructions and everything around them are timed in one run of one process, so that the ratio does not depend on
what else the machine does: the time of the whole run, its tables, pictures and report included, over the time inside
`recon.reconstruct`. Then the same command once more, which finds everything done.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import torch

from benchmarks import peers
from recon.benchmark import cells
from recon.benchmark.grid import make_grid
from recon.benchmark.run import benchmark
from recon.phantom import head


class Stopwatch:
    """Calls a function and adds up the seconds it takes: of the clock, and of the processor."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.wall, self.processor = 0.0, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.wall += time.perf_counter() - wall
            self.processor += time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="of the scan, which has 3 coils")
    parser.add_argument("--report", type=Path, default=Path("benchmarks/results/overhead.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "head.h5"), Path(folder, "out")
        with h5py.File(file, "w") as opened:
            opened["kspace"] = head((arguments.size, arguments.size), coils=3).kspace.numpy()
        grid = make_grid([file], methods=["zero-filled"], masks=["random"], accelerations=[2.0], seeds=arguments.cells)
        inside = Stopwatch(cells.reconstruct)
        cells.reconstruct = inside
        whole, again = Stopwatch(benchmark), Stopwatch(benchmark)
        assert whole(grid, out=out).computed == arguments.cells
        assert again(grid, out=out).computed == 0
        size = sum(path.stat().st_size for path in (out / "cells").iterdir())
    found = {
        "cells": arguments.cells,
        "ms of a reconstruction": round(1e3 * inside.wall / arguments.cells, 2),
        "overhead, clock": round(whole.wall / inside.wall - 1, 4),
        "overhead, processor": round(whole.processor / inside.processor - 1, 4),
        "seconds of the same command again": round(again.wall, 2),
        "kB of a cell": round(size / arguments.cells / 1e3, 2),
    }
    text = json.dumps({"machine": peers.machine(), "torch": torch.__version__, **found}, indent=1)
    arguments.report.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
