"""How fast are the X-ray projector and its adjoint, beside astra-toolbox on the processor?

    python -m benchmarks.projector

Ours and theirs in turn, every figure the median over these repeats, every ratio the median of the ratios within a
repeat; each number of threads runs in a process of its own. astra runs on one thread whatever is allowed. Ours includes
the call through torch, theirs is the bare algorithm on data that it holds.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.speed import interleaved
from operators.ct import FanBeam, Geometry, Grid, ParallelBeam, XRay
from operators.kernels import libraries

SIZES = [(256, 60), (256, 180), (512, 720)]  # pixels along a side, views
BATCH = 16


def geometries(pixels: int, views: int) -> dict[str, tuple[Geometry, str, dict[str, Any]]]:
    """Ours, the name of astra's projector, and its geometry; every ray of the inscribed disc is seen."""
    import astra

    half, whole = (torch.linspace(0, turn, views + 1, dtype=torch.float64)[:-1] for turn in (math.pi, 2 * math.pi))
    bins = math.ceil(pixels * math.sqrt(2))
    parallel, fan = ParallelBeam(half, bins), FanBeam(whole, bins, 2.0, 2.0 * pixels, 4.0 * pixels)
    return {
        "parallel": (parallel, "linear", astra.create_proj_geom("parallel", 1.0, bins, half.numpy())),
        "fan": (
            fan,
            "line_fanflat",
            astra.create_proj_geom("fanflat", 2.0, bins, whole.numpy(), 2.0 * pixels, 2.0 * pixels),
        ),
    }


class Astra:
    """Both directions on data that astra holds."""

    def __init__(self, name: str, geometry: dict[str, Any], image: np.ndarray[Any, Any]) -> None:
        import astra

        self._astra = astra
        volume = astra.create_vol_geom(*image.shape)
        projector = astra.create_projector(name, geometry, volume)
        images, sinograms = astra.data2d.create("-vol", volume, image), astra.data2d.create("-sino", geometry, 0)
        self._sinograms = sinograms
        self._forward = self._algorithm("FP", projector, sinograms, VolumeDataId=images)
        target = astra.data2d.create("-vol", volume, 0)
        self._adjoint = self._algorithm("BP", projector, sinograms, ReconstructionDataId=target)

    def _algorithm(self, name: str, projector: int, sinograms: int, **data: int) -> int:
        config = self._astra.astra_dict(name)
        config.update(ProjectorId=projector, ProjectionDataId=sinograms, **data)
        return int(self._astra.algorithm.create(config))

    def forward(self) -> None:
        self._astra.algorithm.run(self._forward)

    def adjoint(self) -> None:
        self._astra.algorithm.run(self._adjoint)

    def sinogram(self) -> torch.Tensor:
        return torch.from_numpy(self._astra.data2d.get(self._sinograms))


def measure(pixels: int, views: int, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, pixels, pixels, generator=generator)
    found = {}
    for name, (geometry, projector, described) in geometries(pixels, views).items():
        A = XRay(geometry, Grid((pixels, pixels)))
        sinograms = A(images)
        theirs = Astra(projector, described, np.ascontiguousarray(images[0].flip(0).numpy()))
        theirs.forward()
        difference = float((theirs.sinogram() - sinograms[0]).norm() / sinograms[0].norm())
        assert difference < 0.02, f"{name}: the projectors differ by {difference}"

        def forward(A: XRay = A) -> object:
            return A(images[0])

        def batch_forward(A: XRay = A) -> object:
            return A(images)

        def adjoint(A: XRay = A, y: torch.Tensor = sinograms) -> object:
            return A.H(y[0])

        def batch_adjoint(A: XRay = A, y: torch.Tensor = sinograms) -> object:
            return A.H(y)

        found[name] = {
            "forward": interleaved(
                {"one image": forward, f"astra {projector}": theirs.forward, f"{BATCH} images": batch_forward}, repeats
            ),
            "adjoint": interleaved(
                {"one image": adjoint, f"astra {projector}": theirs.adjoint, f"{BATCH} images": batch_adjoint}, repeats
            ),
        }
    return found


def first_use() -> float:
    """Seconds from nothing made to the first sinogram, in a new process that has loaded torch."""
    code = (
        "import time, torch; start = time.perf_counter(); from operators.ct import *; "
        "A = XRay(ParallelBeam(torch.linspace(0, 3, 180), 363), Grid((256, 256))); A(torch.ones(256, 256)); "
        "print(time.perf_counter() - start)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/projector.json"))
    parser.add_argument("--threads", type=int, help="measure here with so many threads and print")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        assert libraries.load("cpu") is not None, "the kernels are not compiled"
        found = {
            f"{pixels} x {pixels}, {views} views": measure(pixels, views, max(3, arguments.repeats * 60 // views))
            for pixels, views in SIZES
        }
        print(json.dumps(found))
        return
    import astra

    record: dict[str, Any] = {
        "command": f"python -m benchmarks.projector {' '.join(sys.argv[1:])}",
        "machine": peers.machine(),
        "versions": {"torch": torch.__version__, "astra-toolbox": astra.__version__},
        "first use, seconds": round(median(first_use() for _ in range(5)), 3),
    }
    for threads in (1, 2):
        command = [sys.executable, "-m", "benchmarks.projector"]
        command += ["--repeats", str(arguments.repeats), "--threads", str(threads)]
        done = subprocess.run(command, env=peers.thread_limits(threads), capture_output=True, text=True, check=True)
        record[f"{threads} threads"] = json.loads(done.stdout.splitlines()[-1])
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
