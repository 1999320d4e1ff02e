"""How fast are the normal operator, l1-wavelet and DDS, beside SigPy, plain torch and BART? And how much memory?

    python -m benchmarks.speed --data ../shared/data/mri

Every figure is the median over interleaved repeats, every ratio the median of the ratios within a repeat; each
number of threads runs in a process of its own. BART's time is that of its whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import recon
from benchmarks import peers
from operators.fourier import fftc, ifftc
from operators.masks import MASKS
from operators.mri import sense
from recon import mri
from recon.likelihood import Gaussian
from recon.methods.classical import l1_wavelet
from recon.methods.dds import dds, dds_levels
from recon.noise import Noise

COILS, SHAPE, ITERATIONS = 15, (320, 320), 100


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, Any]:
    """Median seconds of each, and ratios of the first to the others."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if repeat > 0:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    first, *others = candidates
    ratios = {
        f"{first} / {other}": round(median(a / b for a, b in zip(times[first], times[other], strict=True)), 3)
        for other in others
    }
    return {"seconds": {name: round(median(values), 5) for name, values in times.items()}, "ratios": ratios}


def normal_operator(repeats: int) -> dict[str, Any]:
    """A^H A of 15 coils, 320 x 320, one image, a mask of whole readout lines."""
    import sigpy.mri.linop

    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, COILS, *SHAPE, dtype=torch.complex64, generator=generator)
    maps /= torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    x = torch.randn(1, *SHAPE, dtype=torch.complex64, generator=generator)
    mask = MASKS["random"](SHAPE, 4)
    A = sense(mask, maps)
    weights = mask.float()
    S = sigpy.mri.linop.Sense(maps[0].numpy(), weights=weights.numpy())
    normal, image = S.H * S, x[0].numpy()

    def plain() -> torch.Tensor:
        return (maps[0].conj() * ifftc(weights * fftc(maps[0] * x, (-2, -1)), (-2, -1))).sum(0)

    difference = float(torch.linalg.vector_norm(A.gram(x)[0] - plain()) / torch.linalg.vector_norm(plain()))
    assert difference < 1e-5, f"the operators differ by {difference}"
    return interleaved({"ours": lambda: A.gram(x), "sigpy": lambda: normal * image, "plain torch": plain}, repeats)


def l1(data: Path, repeats: int, threads: int) -> dict[str, Any]:
    """l1-wavelet at equal iterations on brain_8ch, the same data, mask and maps."""
    scan = recon.load(data / "brain_8ch.h5")
    scan = mri.undersample(scan, MASKS["random"](scan.shape, 4))
    prepared = mri.prepare(scan)
    likelihood = mri.likelihood(prepared)
    kspace = peers.to_bart(prepared.kspace[0].numpy())
    maps = peers.to_bart(prepared.sens_maps[0, 0].numpy())
    with peers.Bart(f"pics -i{ITERATIONS} -R W:3:0:0.002", kspace, maps, threads=threads) as job:
        candidates = {"ours": lambda: l1_wavelet(likelihood, iterations=ITERATIONS), "bart pics": job.run}
        return interleaved(candidates, repeats)


def sampler(data: Path, repeats: int, threads: int, precision: str) -> dict[str, Any]:
    """One DDS sample at its default, and eight in a batch, beside `bart pics` on the same data, mask and maps."""
    import priors

    scan = recon.load(data / "brain_8ch.h5")
    prepared = mri.prepare(mri.undersample(scan, MASKS["random"](scan.shape, 4)))
    network = priors.load("brain") if precision == "float32" else priors.bf16(priors.load("brain"))
    likelihood, denoiser = mri.likelihood(prepared), priors.chunked(network, 2**16, threads=threads)
    sigmas = dds_levels(likelihood, denoiser)
    kspace = peers.to_bart(prepared.kspace[0].numpy())
    maps = peers.to_bart(prepared.sens_maps[0, 0].numpy())

    def draw(count: int) -> Callable[[], object]:
        return lambda: dds(likelihood, denoiser, sigmas, rng=Noise(0, range(count)))

    with peers.Bart("pics -i100 -R W:3:0:0.005", kspace, maps, threads=threads) as job:
        return interleaved({"one sample": draw(1), "bart pics": job.run, "eight samples": draw(8)}, repeats)


def memory() -> dict[str, float]:
    """Peak memory of l1-wavelet over that of data and maps."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    generator = torch.Generator().manual_seed(0)
    small = sense(torch.ones(32, 32, dtype=torch.bool), torch.ones(1, 2, 32, 32, dtype=torch.complex64))
    l1_wavelet(Gaussian(small, small.codomain.randn(generator=generator)), iterations=2)  # libraries loaded
    before = peak()
    maps = torch.randn(1, COILS, *SHAPE, dtype=torch.complex64, generator=generator) / COILS
    mask = MASKS["random"](SHAPE, 4)
    A = sense(mask, maps)
    y = A.codomain.randn(generator=generator).mul_(mask)
    l1_wavelet(Gaussian(A, y), iterations=10)
    size = 2 * maps.numel() * maps.element_size() / 2**20
    return {"data and maps, MiB": size, "peak, MiB": peak() - before, "ratio": round((peak() - before) / size, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    parser.add_argument("--threads", type=int, help="measure here with so many threads and print")
    parser.add_argument("--only", default="", help="questions that begin so; the others stay as they were")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        data, repeats, threads = arguments.data, arguments.repeats, arguments.threads
        few = max(2, repeats // 5)
        questions: dict[str, Callable[[], dict[str, Any]]] = {
            "memory of l1-wavelet": memory,
            "normal operator, 15 x 320 x 320, 1-D mask": lambda: normal_operator(repeats),
            "dds, 8 x 230 x 180, 50 network evaluations a sample": lambda: sampler(data, few, threads, "float32"),
            "dds, the network in bfloat16": lambda: sampler(data, few, threads, "bf16"),
            f"l1-wavelet, 8 x 230 x 180, {ITERATIONS} iterations": lambda: l1(data, repeats, threads),
        }
        found = {name: ask() for name, ask in questions.items() if name.startswith(arguments.only)}
        print(json.dumps(found))
        return
    before = json.loads(arguments.out.read_text()) if arguments.only else {}
    record: dict[str, Any] = {
        "command": f"python -m benchmarks.speed {' '.join(sys.argv[1:])}",
        "machine": peers.machine(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "bart": peers.bart_version()},
    }
    for threads in (1, 2):
        command = [sys.executable, "-m", "benchmarks.speed", "--data", str(arguments.data)]
        command += ["--repeats", str(arguments.repeats), "--threads", str(threads), "--only", arguments.only]
        done = subprocess.run(command, env=peers.thread_limits(threads), capture_output=True, text=True, check=True)
        name = f"{threads} threads"
        record[name] = before.get(name, {}) | json.loads(done.stdout.splitlines()[-1])
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
