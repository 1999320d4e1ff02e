"""Do the samplers reach the posterior where it is known in closed form? Run: python -m benchmarks.oracle

Gaussian priors and their exact denoisers (tests/oracle.py). The samplers are affine in their noise there, so that basis
vectors in its place give their mean and covariance exactly; the larger complex problem is sampled with 4000 chains,
whose chance is .016 in the mean. Columns: ||mean - m|| / sqrt(tr P) and tr Cov / tr P of N(m, P), the posterior.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from recon.methods.dds import consistent_diffusion, dds, dds_hard, dds_levels, proximal
from recon.methods.diffusion import Counted
from recon.methods.split_gibbs import couplings, split_gibbs
from recon.noise import Noise
from recon.schedules import ddpm

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.oracle import (
    OneStream,
    Problem,
    exact_moments,
    multicoil_problem,
    reference_problem,
    sample_moments,
)

RESULTS = Path(__file__).parent / "results"
ETAS = (0.0, 0.85, 1.0)
Sampler = Callable[[Problem, Counted, Noise], Tensor]


def published(eta: float, *, official: bool) -> Sampler:
    """gamma = 1, 50 steps. The official code adds no noise where the next timestep is 0, one step before the last."""

    def sampler(p: Problem, denoiser: Counted, rng: Noise) -> Tensor:
        x0, sigmas = p.likelihood.A.domain.zeros(len(rng)), ddpm(50)
        consistency = proximal(p.likelihood, lambda sigma: p.sigma_y**2, iterations=5)
        if not official:
            return consistent_diffusion(consistency, denoiser, sigmas, x0, rng=rng, eta=eta)
        x = x0 + float(sigmas[0]) * rng.randn_like(x0)
        for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
            denoised = denoiser(x, sigma)
            epsilon = (x - denoised) / sigma
            x = consistency(denoised, sigma)
            if step < len(sigmas) - 3:
                x = x + sigma_next * (eta * rng.randn_like(x) + math.sqrt(1 - eta**2) * epsilon)
        return x

    return sampler


def measured(steps: int, eta: float) -> Sampler:
    return lambda p, denoiser, rng: dds(p.likelihood, denoiser, ddpm(steps), rng=rng, eta=eta, iterations=20)


def by_default(eta: float) -> Sampler:
    return lambda p, denoiser, rng: dds(p.likelihood, denoiser, dds_levels(p.likelihood, denoiser), rng=rng, eta=eta)


def hard(eta: float) -> Sampler:
    return lambda p, denoiser, rng: dds_hard(p.likelihood, denoiser, ddpm(1000), rng=rng, eta=eta, tolerance=1e-12)


def gibbs(levels: int) -> Sampler:
    return lambda p, denoiser, rng: split_gibbs(
        p.likelihood, denoiser, couplings(p.likelihood, denoiser, levels=levels), rng=rng, tolerance=1e-8
    )


def rows() -> list[tuple[str, str, Sampler, bool]]:
    """(problem, name, sampler, whether its moments are exact)."""
    table = [("real", f"DDS as published, official code, 50 steps, eta {e}", published(e, official=True)) for e in ETAS]
    table += [("real", f"DDS as published, 50 steps, eta {e}", published(e, official=False)) for e in ETAS]
    table += [("noise-free", f"DDS hard, 1000 steps, eta {e}", hard(e)) for e in ETAS]
    table += [("real", f"DDS, {n} steps, eta {e}", measured(n, e)) for n in (50, 1000) for e in (0.0, 0.9, 1.0)]
    table += [("real", f"DDS, its own levels, eta {e}", by_default(e)) for e in (0.0, 0.9, 1.0)]
    table += [("real", f"split Gibbs, {n} levels", gibbs(n)) for n in (25, 50, 75, 150)]
    exact = [(*row, True) for row in table]
    names = ("complex x2", "complex x4", "complex noisy")
    sampled = [(q, f"DDS, 50 steps, eta {e}", measured(50, e), False) for q in names for e in (0.0, 0.9, 1.0)]
    sampled += [(q, f"DDS, its own levels, eta {e}", by_default(e), False) for q in names for e in (0.5, 0.9, 1.0)]
    sampled += [(q, f"split Gibbs, {n} levels", gibbs(n), False) for q in names for n in (75, 150)]
    return exact + sampled


def main() -> None:
    torch.set_num_threads(1)
    problems = {
        "real": reference_problem(),
        "noise-free": reference_problem(sigma_y=0.0),
        "complex x2": multicoil_problem(),
        "complex x4": multicoil_problem(acceleration=4.0),
        "complex noisy": multicoil_problem(sigma_y=0.1),
    }
    results = []
    for problem, name, sampler, exact in rows():
        p, start = problems[problem], time.perf_counter()
        counted = Counted(p.denoiser)
        run = lambda rng, p=p, sampler=sampler, counted=counted: sampler(p, counted, rng)  # noqa: E731
        mean, cov = p.error(*(exact_moments(run) if exact else sample_moments(run(OneStream(0, 4000)))))
        evaluations = counted.evaluations // (2 if exact else 1)
        row = {"problem": problem, "sampler": name, "mean": mean, "cov": cov, "evaluations": evaluations}
        results.append(row | {"moments": "exact" if exact else "4000 chains", "seconds": time.perf_counter() - start})
        print(problem, name, f"{mean:.4f} {cov:.4f}", flush=True)
    write(results)


def write(results: list[dict]) -> None:
    lines = ["# Samplers against the closed-form posterior", "", *(__doc__ or "").splitlines()[2:], ""]
    lines += ["| problem | sampler | evaluations | mean | cov | moments |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['problem']} | {r['sampler']} | {r['evaluations']} | {r['mean']:.3f} | {r['cov']:.3f} | {r['moments']} |"
        for r in results
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "oracle.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "oracle.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
