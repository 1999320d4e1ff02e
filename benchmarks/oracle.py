"""Do the samplers reach the posterior where it is known in closed form? Run: python -m benchmarks.oracle

Gaussian priors and a mixture of two, with their exact denoisers (tests/oracle.py). Every sampler runs at its default
setting with 4000 chains, on the larger complex problems 1000, or 100 where it takes more than 500 evaluations. Mean:
||mean - m|| / sqrt(tr P), of which .016, .03 or .1 is chance; cov: tr Cov / tr P, for the posterior's mean m and
covariance P; coverage: the part of the posterior's mass within the central 90 % of the samples, component by component.
0, 1 and 90 % would be perfect.

A second table varies settings. Samplers that are affine in their noise are fed basis vectors in its place there, which
gives their mean and covariance exactly.
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

from recon.apply import prior_inputs
from recon.errors import ReconError
from recon.methods import METHODS, inputs_of
from recon.methods.dds import consistent_diffusion, dds, dds_hard, dds_levels, proximal
from recon.methods.diffusion import Counted
from recon.methods.split_gibbs import couplings, split_gibbs
from recon.noise import Noise
from recon.schedules import ddpm

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.oracle import (
    OneStream,
    Problem,
    coverage,
    exact_moments,
    mixture_problem,
    multicoil_problem,
    reference_problem,
    sample_moments,
)

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "oracle.json"
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


def variations() -> list[tuple[str, str, Sampler, bool]]:
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


def problems() -> dict[str, Problem]:
    return {
        "real": reference_problem(),
        "complex x2": multicoil_problem(),
        "complex x4": multicoil_problem(acceleration=4.0),
        "complex noisy": multicoil_problem(sigma_y=0.1),
        "two modes": mixture_problem(),
        "noise-free": reference_problem(sigma_y=0.0),
    }


def samplers() -> list[str]:
    """The methods that draw samples, given a likelihood alone."""
    return [
        n for n in METHODS if {"rng", "likelihood"} <= {*inputs_of(METHODS[n])} and "scan" not in inputs_of(METHODS[n])
    ]


def sample(name: str, p: Problem, *, chains: int) -> tuple[Tensor, int]:
    """Samples of a method at its default setting, and the network evaluations of each."""
    made, counted = prior_inputs(name, p.likelihood, p.denoiser, None)
    given = {"likelihood": p.likelihood, "rng": OneStream(0, chains)} | made
    method = METHODS[name]
    return method(**{key: given[key] for key in inputs_of(method)}), counted.evaluations


def figures(name: str, p: Problem, *, chains: int = 4000) -> dict[str, float]:
    """How far the samples of a method are from the posterior."""
    x, evaluations = sample(name, p, chains=chains)
    error, ratio = p.error(*sample_moments(x))
    exact = p.draws(20_000, torch.Generator().manual_seed(1))
    return {"mean": error, "cov": ratio, "coverage": coverage(x, exact), "evaluations": evaluations}


def defaults(name: str) -> list[dict]:
    """A sampler on every problem with noise; or the reason why it has no answer."""
    found = []
    for problem, p in problems().items():
        if problem == "noise-free":
            continue
        start = time.perf_counter()
        try:
            row = figures(name, p, chains=chains(problem, found))
        except ReconError as error:
            row = {"refused": str(error)}
        found.append({"sampler": name, "problem": problem, **row, "seconds": time.perf_counter() - start})
        print(name, problem, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return found


def chains(problem: str, found: list[dict]) -> int:
    """How many to draw on a problem, by its size and by the evaluations that the sampler took on those before."""
    if not problem.startswith("complex"):
        return 4000
    return 100 if any(row.get("evaluations", 0) > 500 for row in found) else 1000


def varied() -> list[dict]:
    """The second table."""
    results = []
    for problem, name, sampler, exact in variations():
        p, start = problems()[problem], time.perf_counter()
        counted = Counted(p.denoiser)
        run = lambda rng, p=p, sampler=sampler, counted=counted: sampler(p, counted, rng)  # noqa: E731
        mean, cov = p.error(*(exact_moments(run) if exact else sample_moments(run(OneStream(0, 4000)))))
        evaluations = counted.evaluations // (2 if exact else 1)
        row = {"problem": problem, "sampler": name, "mean": mean, "cov": cov, "evaluations": evaluations}
        results.append(row | {"moments": "exact" if exact else "4000 chains", "seconds": time.perf_counter() - start})
        print(problem, name, f"{mean:.4f} {cov:.4f}", flush=True)
    return results


def main() -> None:
    torch.set_num_threads(1)
    results = json.loads(TABLE.read_text()) if TABLE.exists() else {"defaults": [], "variations": []}
    for name in sys.argv[1:] or samplers():  # each is kept when it is done
        kept = [row for row in results["defaults"] if row["sampler"] in samplers() and row["sampler"] != name]
        results["defaults"] = sorted(kept + defaults(name), key=lambda row: samplers().index(row["sampler"]))
        write(results)
    if not sys.argv[1:]:
        results["variations"] = varied()
        write(results)


def write(results: dict[str, list[dict]]) -> None:
    TABLE.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "oracle.md").write_text(markdown(results))
    picture([row for row in results["defaults"] if "refused" not in row])


def markdown(results: dict[str, list[dict]]) -> str:
    lines = ["# Samplers against the closed-form posterior", "", *(__doc__ or "").splitlines()[2:], ""]
    names = [name for name in problems() if name != "noise-free"]
    lines += ["| sampler | evaluations | " + " | ".join(f"{n}: mean, cov, coverage" for n in names) + " |"]
    lines += ["|---" * (len(names) + 2) + "|"]
    by_sampler: dict[str, dict[str, dict]] = {}
    for row in results["defaults"]:
        by_sampler.setdefault(row["sampler"], {})[row["problem"]] = row
    for sampler, rows in by_sampler.items():
        cells = [cell(rows[n]) for n in names]
        evaluations = max(r.get("evaluations", 0) for r in rows.values())
        lines.append(f"| {sampler} | {evaluations or ''} | " + " | ".join(cells) + " |")
    lines += ["", "| problem | sampler | evaluations | mean | cov | moments |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['problem']} | {r['sampler']} | {r['evaluations']} | {r['mean']:.3f} | {r['cov']:.3f} | {r['moments']} |"
        for r in results["variations"]
    ]
    return "\n".join(lines) + "\n"


def cell(row: dict) -> str:
    if "refused" in row:
        return "diverges or refuses"
    return f"{row['mean']:.3f}, {row['cov']:.2f}, {100 * row['coverage']:.0f} %"


def picture(table: list[dict]) -> None:
    """docs/samplers.png: one line for each sampler, one mark for each problem, the truth as a line."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["sampler"] for row in table))
    kinds = list(dict.fromkeys(row["problem"] for row in table))
    figure = Figure(figsize=(10, 0.28 * len(names) + 1.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    shown = {"mean": (0.01, 10), "cov": (0.05, 20), "coverage": (0, 1)}
    titles = ("error of the mean (posterior std)", "variance / posterior variance", "coverage of 90 % intervals")
    for panel, (key, limits), title, truth in zip(panels, shown.items(), titles, (None, 1.0, 0.9), strict=True):
        for kind, marker in zip(kinds, "osD^v", strict=True):
            rows = [row for row in table if row["problem"] == kind]
            values = [min(max(row[key], limits[0]), limits[1]) for row in rows]
            panel.plot(values, [names.index(r["sampler"]) for r in rows], marker, ms=4.5, alpha=0.75, label=kind)
        if truth is not None:
            panel.axvline(truth, color="black", lw=0.8)
        panel.set(xlim=limits, title=title, xscale="linear" if key == "coverage" else "log")
        panel.title.set_fontsize(9)
        panel.grid(visible=True, axis="y", lw=0.3)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), fontsize=8)
    figure.savefig(Path(__file__).parents[1] / "docs" / "samplers.png", dpi=110)


if __name__ == "__main__":
    main()
