"""Every sampler on a measured brain with the embedded prior, and the book's claim: DDS against full-length Score-MRI.

    python -m benchmarks.samplers --data ../shared/data/mri

One sample of each method at its default setting, random lines x4; then DDS with 50 evaluations beside Score-MRI with
all of its 2000 levels (4000 evaluations), paired on the same masks. PSNR and SSIM inside the object after
least-squares scaling, against all the data, which carry the noise of the scan. Seconds are of the processor, on one
thread, for the whole call: reading and preparation (coil maps) are among them, as in the row of zero-filled.

Cells are kept one by one in a JSON lines file: an interrupted run continues.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import priors
import recon
from benchmarks import peers
from benchmarks.quality import Cells
from recon.errors import ReconError
from recon.methods import METHODS, caveat_of, has_levels, inputs_of

SCAN = "brain_8ch.h5"
LONG = (("dds", 50), ("dds-49", None), ("score-mri", 2000))
ONE_COIL = {"score-mri-single-coil"}  # not for eight; coil by coil it is score-mri-ssos
RESULTS = Path(__file__).parent / "results"


def sample(path: Path, method: str, *, steps: int | None, seed: int, precision: str) -> dict[str, Any]:
    """One sample of a method, by the public line."""
    has_prior, start = has_levels(METHODS[method]), time.process_time()
    result = recon.reconstruct(
        path,
        method=method,
        mask="random",
        acceleration=4.0,
        seed=seed,
        samples=1 if "rng" in inputs_of(METHODS[method]) else None,
        steps=steps,
        check=False,
        precision=precision if has_prior else "float32",
    )
    kept = {key: result.metrics[key] for key in ("psnr_scaled", "ssim_scaled")}
    return kept | {"evaluations": result.run["evaluations"], "seconds": time.process_time() - start}


def table(rows: list[tuple[str, list[dict[str, Any]]]], *, weaknesses: bool) -> str:
    last = " known weakness |" if weaknesses else ""
    lines = ["| method | evaluations | PSNR | SSIM | seconds |" + last, "|---" * (5 + weaknesses) + "|"]
    for name, cells in rows:
        if any("error" in cell for cell in cells):
            lines.append(f"| {name} | | | | | {cells[0]['error']} |")
            continue
        figures = [f"{mean(c[key] for c in cells):.{digits}f}" for key, digits in FIGURES]
        weakness = f" {caveat_of(METHODS[name])} |" if weaknesses else ""
        lines.append(f"| {name} | {cells[0]['evaluations']} | " + " | ".join(figures) + " |" + weakness)
    return "\n".join(lines) + "\n"


FIGURES = (("psnr_scaled", 2), ("ssim_scaled", 3), ("seconds", 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--masks", type=int, default=2, help="of the comparison at full length")
    parser.add_argument("--cells", type=Path, default=RESULTS / "samplers.jsonl")
    parser.add_argument("--report", type=Path, default=RESULTS / "samplers.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = Cells(arguments.cells)
    prior = priors.load("brain").card["sha256"][:12]

    def cell(method: str, steps: int | None, seed: int) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            try:
                return sample(arguments.data / SCAN, method, steps=steps, seed=seed, precision=arguments.precision)
            except ReconError as error:
                return {"error": str(error)}

        of = {"scan": SCAN, "method": method, "steps": steps, "seed": seed, "prior": prior}
        found = cells.get(compute, **of, precision=arguments.precision)
        print(method, found, flush=True)
        return found

    long = [
        (f"{name}, {steps} levels" if steps else name, [cell(name, steps, seed) for seed in range(arguments.masks)])
        for name, steps in LONG
    ]
    names = ["zero-filled", "l1-wavelet", *(n for n, f in METHODS.items() if has_levels(f) and n not in ONE_COIL)]
    every = [(name, [cell(name, None, 0)]) for name in names]
    header = (
        f"`python -m benchmarks.samplers {' '.join(sys.argv[1:])}`, {peers.machine()['cpu']}, torch "
        f"{torch.__version__}, prior {prior}, network in {arguments.precision}\n\n"
    )
    arguments.report.write_text(
        f"# Samplers on a measured brain\n\n{header}One sample, {SCAN}, random lines x4.\n\n"
        + table(every, weaknesses=True)
        + f"\n## DDS and Score-MRI at full length\n\nOne sample on each of {arguments.masks} masks.\n\n"
        + table(long, weaknesses=False)
    )


if __name__ == "__main__":
    main()
