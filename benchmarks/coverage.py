"""Do the intervals of the samplers cover what they should, on measured scans?

    python -m benchmarks.coverage --data ../shared/data/mri --samples 8 --masks 2

The reference is all the data, their coil images combined; it carries the noise of the scan. So the samples are pushed
through the model of all the data and given noise, what had been acquired replaced by what was measured, and combined in
the same way: predictive draws (`recon.posterior.predictive_coverage`). Counted are the pixels of a fixed object mask.
Scans, masks and reference are those of benchmarks/quality.py.

Cells are kept one by one in a JSON lines file: an interrupted run continues.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import priors
import recon
from benchmarks import peers
from benchmarks.quality import KINDS, SCANS, Case, Cells, image_of
from priors.denoiser import Denoiser
from recon import mri
from recon.likelihood import Gaussian
from recon.methods import levels_of, method_named
from recon.methods.diffusion import Counted
from recon.methods.zero_filled import zero_filled
from recon.noise import Noise
from recon.posterior import predictive_coverage

LEVELS = (0.5, 0.8, 0.9, 0.95)
RESULTS = Path("benchmarks/results")


def cell(
    scan: mri.MRIScan, case: Case, method: str, prior: Denoiser, *, samples: int, steps: int | None
) -> dict[str, Any]:
    """Coverage and width of the intervals of one sampler under one mask, with the quality of its mean."""
    prepared = mri.prepare(case.scan, noise=case.noise)
    likelihood = mri.likelihood(prepared)
    counted, sigmas = Counted(prior), levels_of(method_named(method))(likelihood, prior, steps)
    start = time.perf_counter()
    x = method_named(method)(likelihood, counted, sigmas, rng=Noise(0, range(samples)))
    seconds = time.perf_counter() - start

    # The readout of points is not cropped to the field of view; that of all the data must not be either.
    everything = mri.prepare(replace(scan, readout_axis=case.scan.readout_axis), noise=case.noise)
    reference = mri.likelihood(everything)

    def combine(data: Tensor) -> Tensor:
        image = everything.image(zero_filled(Gaussian(reference.A, data)))
        return torch.linalg.vector_norm(image[..., 0, :, :, :], dim=-3)

    found = predictive_coverage(
        x,
        reference,
        case.inside,
        rng=Noise((0, 1), range(samples)),
        acquired=prepared.mask,
        combine=combine,
        levels=LEVELS,
    )
    quality = case.quality(torch.stack([image_of(prepared, sample) for sample in x]).mean(0))
    times = {"seconds": seconds / samples, "evaluations": counted.evaluations}
    return quality | {"coverage": found.coverage, "width": found.width, "scale": found.scale} | times


def report(rows: dict[tuple[str, str, str], list[dict[str, Any]]]) -> str:
    """A table in Markdown, with the mean over all rows of a method at its end."""
    levels = " | ".join(f"{100 * level:g} %" for level in LEVELS)
    lines = [
        f"| scan | mask | method | {levels} | width of 90 % | PSNR | evaluations | seconds |",
        "|---" * (len(LEVELS) + 7) + "|",
    ]
    pooled: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for (_, _, method), cells in rows.items():
        pooled.setdefault(("all", "all", method), []).extend(cells)
    for (scan, kind, method), cells in [*rows.items(), *pooled.items()]:
        found = [f"{100 * mean(c['coverage'][i] for c in cells):.1f}" for i in range(len(LEVELS))]
        width = f"{mean(c['width'][LEVELS.index(0.9)] for c in cells):.3f}"
        psnr = f"{mean(c['psnr_scaled'] for c in cells):.2f}"
        cost = [str(cells[0]["evaluations"]), f"{mean(c['seconds'] for c in cells):.2f}"]
        lines.append("| " + " | ".join([scan, kind, method, *found, width, psnr, *cost]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--masks", type=int, default=2)
    parser.add_argument("--steps", type=int, help="levels of the schedules, their own by default")
    parser.add_argument("--prior", default="brain")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="of the prior's network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="+", default=["dds", "split-gibbs"])
    parser.add_argument("--scans", nargs="+", default=list(SCANS))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--cells", type=Path, default=RESULTS / "coverage.jsonl")
    parser.add_argument("--report", type=Path, default=RESULTS / "coverage.md")
    arguments = parser.parse_args()

    loaded = priors.load(arguments.prior)
    prior = priors.chunked(priors.bf16(loaded) if arguments.precision == "bf16" else loaded, 2**16)
    cells = Cells(arguments.cells)
    torch.set_num_threads(arguments.threads)
    of = {"prior": loaded.card["sha256"][:12], "samples": arguments.samples, "steps": arguments.steps}
    of |= {"precision": arguments.precision}
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    header = (
        "# Coverage of predictive intervals on measured scans\n\n"
        f"`python -m benchmarks.coverage {' '.join(sys.argv[1:])}`, {peers.machine()['cpu']}, "
        f"torch {torch.__version__}, prior {arguments.prior} {of['prior']}\n\n"
        f"Percent of the object's pixels whose interval, made of {arguments.samples} samples, holds the reference, "
        "against what the interval is made for; width of the 90 % interval relative to the mean brightness of the "
        "object; PSNR of the mean (dB, scaled, in the object). Network evaluations and seconds are for one sample.\n\n"
    )
    for scan_name, kind in product(arguments.scans, arguments.kinds):
        scan = recon.load(arguments.data / scan_name)
        for index in range(arguments.masks):
            case = Case(scan, kind, index)
            for method in arguments.methods:
                found = cells.get(
                    lambda case=case, scan=scan, method=method: cell(
                        scan, case, method, prior, samples=arguments.samples, steps=arguments.steps
                    ),
                    **of,
                    scan=scan_name,
                    kind=kind,
                    index=index,
                    method=method,
                )
                rows.setdefault((scan_name, kind, method), []).append(found)
        arguments.report.write_text(header + report(rows))
        print(report(rows), flush=True)


if __name__ == "__main__":
    main()
