"""How good are reconstructions of measured scans, beside those of BART and SigPy? Paired mask by mask.

    python -m benchmarks.quality --data ../shared/data/mri --masks 10

Reference: magnitude of all the data, their coil images combined with ESPIRiT maps of all the data. It carries the noise
of the scan, and undersampled data share part of it: a method that keeps that noise looks better than it is. The samples
that were not acquired have noise of their own. How well they are predicted (`Case.unseen`), the known power of their
noise taken off, says what the error without noise would say, of that part of k-space.

Maps for reconstructions are estimated from the undersampled data. The regularisation of the peers is tuned on the
reference itself, for each scan, kind of mask and source of maps (the grid grows until its best is inside), on the first
masks of each kind; ours is our default for everything.

Cells are kept one by one in a JSON lines file: an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

import recon
from benchmarks import peers
from operators.fourier import fftc
from operators.masks import MASKS
from recon import metrics, mri
from recon.coils import apply_coil_matrix, noise_factor, whitener
from recon.methods import inputs_of, levels_of, method_named
from recon.methods.zero_filled import zero_filled
from recon.noise import Noise
from recon.noise_level import NoiseEstimate
from recon.residual_noise import scan_noise

SCANS = ("brain_8ch.h5", "brain_mprage_4ch.h5")
KINDS = {
    "random x4": ("random", 4.0),
    "equispaced x4": ("equispaced", 4.0),
    "gaussian1d x8": ("gaussian1d", 8.0),
    "poisson x8": ("poisson", 8.0),
}
TUNING_MASKS = 2
GRID = (0.001, 0.002, 0.004, 0.008)  # factors of 2, extended at either end until the best is inside
ITERATIONS = 100


class Peer(NamedTuple):
    """One method of a peer.

    reconstruct : (k-space (coil, y, x), maps (coil, y, x), regularisation) -> image (y, x) and seconds.
    maps : where its maps come from; it is tuned with each.
    """

    reconstruct: Callable[[Tensor, Tensor, float], tuple[Tensor, float]]
    maps: tuple[str, ...]


def by_bart(penalty: str) -> Callable[[Tensor, Tensor, float], tuple[Tensor, float]]:
    return lambda kspace, maps, value: peers.pics(kspace, maps, f"-i{ITERATIONS} -R {penalty}:{value}")


def by_sigpy(app: str) -> Callable[[Tensor, Tensor, float], tuple[Tensor, float]]:
    def reconstruct(kspace: Tensor, maps: Tensor, value: float) -> tuple[Tensor, float]:
        start = time.perf_counter()
        image = peers.sigpy_recon(app, kspace, maps, value, iterations=ITERATIONS)
        return image, time.perf_counter() - start

    return reconstruct


PEERS = {
    "bart l1-wavelet": Peer(by_bart("W:3:0"), ("ecalib crop 0", "ecalib crop 0.8", "ours")),
    "bart tv": Peer(by_bart("T:3:0"), ("ecalib crop 0", "ecalib crop 0.8")),
    "sigpy l1-wavelet": Peer(by_sigpy("L1WaveletRecon"), ("sigpy",)),
    "sigpy tv": Peer(by_sigpy("TotalVariationRecon"), ("sigpy",)),
}
MAPS: dict[str, Callable[[Case], Tensor]] = {
    "ecalib crop 0.8": lambda case: peers.ecalib(case.kspace, "-c0.8")[0],
    "ecalib crop 0": lambda case: peers.ecalib(case.kspace, "-c0")[0],
    "sigpy": lambda case: torch.from_numpy(peers.sigpy_espirit(case.kspace.numpy())),
    "ours": lambda case: case.maps,
}


class Case:
    """One scan under one mask, as every method sees it."""

    def __init__(self, scan: mri.MRIScan, kind: str, index: int) -> None:
        pattern, factor = KINDS[kind]
        options: dict[str, Any] = {"offset": index} if pattern == "equispaced" else {"seed": index}
        self.mask = MASKS[pattern](scan.shape, factor, **options)
        self.noise = scan_noise(mri.undersample(scan, self.mask))
        full = mri.prepare(scan, noise=self.noise)
        self.reference = image_of(full, zero_filled(mri.likelihood(full)))
        self.inside = metrics.object_mask(self.reference)
        self.scan = mri.undersample(scan, self.mask)
        self.kspace = torch.as_tensor(self.scan.kspace[:])[0]
        white = NoiseEstimate(torch.eye(scan.coils, dtype=self.kspace.dtype), "none")  # maps of the coils as measured
        prepared = mri.prepare(self.scan, noise=white)
        self.maps = prepared.sens_maps[0, 0] / prepared.scale
        self.whitener = whitener(mri.noise_of(scan).covariance)
        self.everything = torch.as_tensor(scan.kspace[:])[0]

    def quality(self, image: Tensor) -> dict[str, float]:
        return {
            "psnr_scaled": metrics.psnr_scaled(self.reference, image, self.inside),
            "ssim_scaled": metrics.ssim_scaled(self.reference, image, self.inside),
        }

    def unseen(self, coil_images: Tensor) -> dict[str, float]:
        """Power over power of the error of the samples that were not acquired, in dB, without their noise.

        Parameters
        ----------
        coil_images : (coil, y, x) complex, of the coils as measured, up to one factor.
        """
        data, predicted = (
            apply_coil_matrix(self.whitener, k, coil_axis=-3)[..., ~self.mask]
            for k in (self.everything, fftc(coil_images, (-2, -1)))
        )
        factor = torch.vdot(predicted.flatten(), data.flatten()) / predicted.abs().square().sum()
        noise = 2 * data.numel()
        error, power = ((k.abs().square().sum() - noise).item() for k in (factor * predicted - data, data))
        return {"unseen_db": 10 * math.log10(power / error)}


def image_of(prepared: mri.PreparedMRI, x: Tensor) -> Tensor:
    """Magnitude (y, x) of one slice."""
    return torch.linalg.vector_norm(prepared.image(x)[0], dim=0)


class Cells:
    """Finished figures, one JSON line each, found again by what they are of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                cell = json.loads(line)
                self.done[self.key(**cell["of"])] = cell

    @staticmethod
    def key(**of: Any) -> str:
        return json.dumps(of, sort_keys=True)

    def get(self, compute: Callable[[], dict[str, float]], *, figures: Sequence[str] = (), **of: Any) -> dict[str, Any]:
        """The cell, computed if it has not been with those figures."""
        key = self.key(**of)
        if not {*figures} <= self.done.get(key, {}).keys() or key not in self.done:
            self.done[key] = {"of": of, **compute()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[key]) + "\n")
        return self.done[key]


def ours(case: Case, method: str, *, prior: Any, samples: int) -> dict[str, float]:
    """One of our methods at its default settings."""
    prepared = mri.prepare(case.scan, noise=case.noise)
    likelihood = mri.likelihood(prepared)
    function = method_named(method)
    given: dict[str, Any] = {"likelihood": likelihood, "scan": prepared, "denoiser": prior}
    if "sigmas" in inputs_of(function):
        given |= {"sigmas": levels_of(function)(likelihood, prior, None), "rng": Noise(0, range(samples))}
    start = time.perf_counter()
    x = function(**{name: given[name] for name in inputs_of(function)})
    seconds = time.perf_counter() - start
    coils = apply_coil_matrix(noise_factor(case.noise.covariance), prepared.sens_maps[0, 0], coil_axis=-3)
    if "rng" not in given:
        return case.quality(image_of(prepared, x)) | case.unseen(coils * x[0, 0]) | {"seconds": seconds}
    images = torch.stack([image_of(prepared, sample) for sample in x])
    figures = case.quality(images.mean(0)) | case.unseen(coils * x.mean(0)[0, 0])
    return figures | {"seconds": seconds / samples, "samples": samples}


def drawn(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the figures of a sampler depend on besides."""
    if "rng" not in inputs_of(method_named(method)):
        return {}
    import priors

    card = priors.load(arguments.prior).card
    return {"samples": arguments.samples, "prior": card["sha256"][:16], "precision": arguments.precision}


def peer(case: Case, name: str, maps: str, regularization: float) -> dict[str, float]:
    """A peer's method with the maps of that name."""
    coils = MAPS[maps](case)
    image, seconds = PEERS[name].reconstruct(case.kspace, coils, regularization)
    return case.quality(image.abs()) | case.unseen(coils * image) | {"seconds": seconds}


def tuned(cells: Cells, case_of: Callable[[int], Case], name: str, maps: str, of: dict[str, Any]) -> float:
    """The regularisation with the best mean PSNR over the tuning masks, the grid extended until it is inside."""

    def score(regularization: float) -> float:
        found = [
            cells.get(
                lambda index=index: peer(case_of(index), name, maps, regularization),
                **of,
                index=index,
                method=name,
                maps=maps,
                regularization=regularization,
            )
            for index in range(TUNING_MASKS)
        ]
        return mean(cell["psnr_scaled"] for cell in found)

    grid = {value: score(value) for value in GRID}
    while (best := max(grid, key=lambda value: grid[value])) in (min(grid), max(grid)) and 1e-5 < best < 1:
        value = best / 2 if best == min(grid) else best * 2
        grid[value] = score(value)
    return best


def summary(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f} ({min(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=["zero-filled", "cg-sense", "l1-wavelet", "tv"])
    parser.add_argument("--prior", default="brain")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="of the prior's network")
    parser.add_argument("--scans", nargs="+", default=list(SCANS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/results/quality.jsonl"))
    parser.add_argument("--report", type=Path, default=Path("benchmarks/results/quality.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells = Cells(arguments.cells)
    prior = None
    if any("denoiser" in inputs_of(method_named(name)) for name in arguments.methods):
        import priors

        loaded = priors.load(arguments.prior)
        prior = priors.chunked(priors.bf16(loaded) if arguments.precision == "bf16" else loaded, 2**16)

    rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for scan_name in arguments.scans:
        scan = recon.load(arguments.data / scan_name)
        for kind in KINDS:
            case_of = cache(partial(Case, scan, kind))  # none is made for cells that are there
            of = {"scan": scan_name, "kind": kind}
            row = rows.setdefault((scan_name, kind), {})
            for name in arguments.methods:
                row[name] = [
                    cells.get(
                        lambda i=i, name=name, case_of=case_of: ours(
                            case_of(i), name, prior=prior, samples=arguments.samples
                        ),
                        figures=["unseen_db"],
                        **of,
                        index=i,
                        method=name,
                        **drawn(name, arguments),
                    )
                    for i in range(arguments.masks)
                ]
            for name in arguments.peers:
                for maps in PEERS[name].maps:
                    regularization = tuned(cells, case_of, name, maps, of)
                    row[f"{name}, maps {maps}"] = [
                        cells.get(
                            lambda case_of=case_of, i=i, name=name, maps=maps, regularization=regularization: peer(
                                case_of(i), name, maps, regularization
                            ),
                            figures=["unseen_db"] if "bart" in name else [],
                            **of,
                            index=i,
                            method=name,
                            maps=maps,
                            regularization=regularization,
                        )
                        for i in range(arguments.masks)
                    ]
            print(report(rows), flush=True)
    machine = f"{peers.machine()['cpu']}, torch {torch.__version__}, BART {peers.bart_version()}"
    header = (
        f"# Quality on measured scans\n\n`python -m benchmarks.quality {' '.join(sys.argv[1:])}`, {machine}\n\n"
        "PSNR in dB and SSIM inside the object after least-squares scaling, mean ± spread (worst) over "
        f"{arguments.masks} masks of each kind. Reference: all the data, with the scan's noise. Unseen: signal over "
        "error, in dB, of the samples that were not acquired, their noise taken off. Samplers: mean of "
        f"{arguments.samples} samples, seconds for one.\n\n"
    )
    arguments.report.write_text(header + report(rows) + "\n" + paired(rows))


def report(rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]]) -> str:
    """A table in Markdown."""
    lines = ["| scan | mask | method | PSNR | SSIM | unseen | seconds |", "|---|---|---|---|---|---|---|"]
    for (scan, kind), methods in rows.items():
        for name, found in methods.items():
            psnr = summary([cell["psnr_scaled"] for cell in found])
            ssim = f"{mean(cell['ssim_scaled'] for cell in found):.3f}"
            seconds = f"{mean(cell['seconds'] for cell in found):.2f}"
            unseen = summary([c["unseen_db"] for c in found]) if all("unseen_db" in c for c in found) else ""
            lines.append(f"| {scan} | {kind} | {name} | {psnr} | {ssim} | {unseen} | {seconds} |")
    return "\n".join(lines) + "\n"


def paired(rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]]) -> str:
    """Samplers against the best classical method of each mask, ours or BART's, in Markdown."""
    lines = [
        "Samplers against the best of our classical methods and BART's, chosen anew for each mask and each figure: "
        "mean (worst) gain in PSNR, mean gain in SSIM and in unseen samples, and the worst PSNR of any mask, both.",
        "",
        "| scan | mask | sampler | PSNR gain | SSIM gain | unseen gain | worst PSNR | of the best classical |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (scan, kind), methods in rows.items():
        classical = [cells for cells in methods.values() if "unseen_db" in cells[0] and "samples" not in cells[0]]
        for name, found in methods.items():
            if "samples" not in found[0]:
                continue
            best = {key: [max(c[key] for c in cells) for cells in zip(*classical, strict=True)] for key in PAIRED}
            gain = {key: [c[key] - b for c, b in zip(found, best[key], strict=True)] for key in PAIRED}
            psnr, ssim, unseen = (gain[key] for key in PAIRED)
            worst = f"{min(c['psnr_scaled'] for c in found):.2f} | {min(best['psnr_scaled']):.2f}"
            lines.append(
                f"| {scan} | {kind} | {name} | {mean(psnr):+.2f} ({min(psnr):+.2f}) | {mean(ssim):+.3f} | "
                f"{mean(unseen):+.2f} | {worst} |"
            )
    return "\n".join(lines) + "\n"


PAIRED = ("psnr_scaled", "ssim_scaled", "unseen_db")


if __name__ == "__main__":
    main()
