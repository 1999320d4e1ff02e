"""What does a sampler cost beside the network and the operator? At most 5 % is the aim.

    python -m benchmarks.sampler_overhead --data ../shared/data/mri

One sample of every method with a prior, 8 noise levels or iterations, of a measured brain. Time inside the denoiser,
its gradient and the operator (forward, adjoint, normal) is subtracted from that of the run, all in one process: the
rest is the sampler's own. Of it random numbers are told apart.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import priors
from benchmarks import peers
from benchmarks.samplers import ONE_COIL, SCAN
from operators.masks import mask_function
from recon import io, mri
from recon.apply import prior_inputs
from recon.errors import ReconError
from recon.methods import METHODS, has_levels, inputs_of, options_of
from recon.noise import Noise

STEPS = 8
RESULTS = Path(__file__).parent / "results"


class Stopwatch:
    """Adds up the time inside functions; a call within another counts once."""

    def __init__(self) -> None:
        self.seconds, self._running = 0.0, False

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._running = False

        return timed


class Timed:
    """A denoiser under a stopwatch."""

    def __init__(self, denoiser: Any, watch: Stopwatch) -> None:
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.ndim, self.is_complex = denoiser.ndim, denoiser.is_complex
        self._call = watch(denoiser)

    def __call__(self, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        return self._call(x, sigma)  # type: ignore[no-any-return]


def overhead(
    name: str, prepared: mri.PreparedMRI, denoiser: Any, watch: Stopwatch, noise: Stopwatch
) -> tuple[float, float]:
    """The part of a run that is neither network nor operator, and that of random numbers."""
    method, likelihood = METHODS[name], mri.likelihood(prepared)
    made, _ = prior_inputs(name, likelihood, Timed(denoiser, watch), None if "-" in name else STEPS)
    given = {"likelihood": likelihood, "scan": prepared, "rng": Noise(0, [0])} | made
    if "sigmas" in inputs_of(method):  # the first levels of a long schedule are as any others
        given["sigmas"] = torch.cat((made["sigmas"][:STEPS], made["sigmas"].new_zeros(1)))
    options = {"iterations": STEPS} if name == "csgm" else {}
    assert options.keys() <= options_of(method).keys()
    watch.seconds, noise.seconds, start = 0.0, 0.0, time.perf_counter()
    method(**{key: given[key] for key in inputs_of(method)}, **options)
    whole = time.perf_counter() - start
    return 1 - watch.seconds / whole, noise.seconds / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scan = io.load(arguments.data / SCAN)[:1]
    mask = mask_function("random")(scan.shape, 4.0, seed=0, axis=-2 if scan.readout_axis == -1 else -1)
    prepared, watch, noise = mri.prepare(mri.undersample(scan, mask)), Stopwatch(), Stopwatch()
    operator = type(mri.likelihood(prepared).A)
    for name in ("forward", "adjoint", "gram"):
        setattr(operator, name, watch(getattr(operator, name)))
    torch.autograd.grad = watch(torch.autograd.grad)
    Noise.randn_like = noise(Noise.randn_like)  # type: ignore[method-assign]
    found = {}
    for precision in ("float32", "bf16"):
        denoiser = priors.load("brain") if precision == "float32" else priors.bf16(priors.load("brain"))
        denoiser = priors.chunked(denoiser, 2**16)
        for name in (n for n, f in METHODS.items() if has_levels(f) and n not in ONE_COIL):
            try:
                repeats = [overhead(name, prepared, denoiser, watch, noise) for _ in range(arguments.repeats)]
            except ReconError as error:
                print(name, error, flush=True)
                continue
            found[name, precision] = [100 * median(part) for part in zip(*repeats, strict=True)]
            print(name, precision, found[name, precision], flush=True)
    names = list(dict.fromkeys(name for name, _ in found))
    lines = [
        "# What samplers cost beside network and operator",
        "",
        f"`python -m benchmarks.sampler_overhead {' '.join(sys.argv[1:])}`, {peers.machine()['cpu']}, torch "
        f"{torch.__version__}, {arguments.threads} threads, {SCAN}, median of {arguments.repeats} runs of {STEPS} "
        "levels.",
        "",
        "| method | network in float32 | of it random numbers | network in bf16 | of it random numbers |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        parts = [part for precision in ("float32", "bf16") for part in found[name, precision]]
        lines.append(f"| {name} | " + " | ".join(f"{part:.1f} %" for part in parts) + " |")
    (RESULTS / "sampler_overhead.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
