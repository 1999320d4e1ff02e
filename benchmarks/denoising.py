"""How well does a prior denoise? Its error against noise level beside wavelet shrinkage, and total variation in CT.

    python -m benchmarks.denoising brain --data ../shared/data [--card]

For a prior of MRI the images are slices rendered from label maps of subjects 18-20, never trained on, and the two fully
sampled brain scans, their coils combined with ESPIRiT maps. The scans' own noise is in their reference: removing it
counts as error. For a prior of CT they are renderings of subjects 15-17, which chose among averages of the weights, or
discs of another seed.
Noise is added per real component; errors are 20 log10(sigma / rmse), the decibels gained over the noisy image.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pywt
import torch
from torch import Tensor

import priors
from operators.basic import FiniteDifference
from operators.linop import Space
from priors.denoising import draw_noise
from recon import io, mri
from recon.methods.zero_filled import zero_filled
from recon.solvers import pdhg, project_ball
from recon.training_ct import HeadImages
from recon.training_discs import DiscImages
from recon.training_images import TrainingImages, Volume
from recon.training_volumes import read_nifti

SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5)
SCANS = {"brain_8ch": "mri/brain_8ch.h5", "brain_mprage_4ch": "mri/brain_mprage_4ch.h5"}


def images(data: Path, kind: str) -> dict[str, list[Tensor]]:
    """Test images (y, x) by the name of their source, for a prior of images of that kind."""
    if kind == "discs-ct":
        discs = DiscImages(seed=1000)
        return {"discs": [discs[i] for i in range(4)]}
    if kind == "head-ct":
        heads = HeadImages(label_maps(data, range(15, 18)), seed=20)
        return {"label maps 15-17": [heads[i] for i in range(4)]}
    rendered = TrainingImages(label_maps(data, range(18, 21)), seed=20)
    found = {"label maps 18-20": [rendered[i] for i in range(8)]}
    for name, path in SCANS.items():
        found[name] = [zero_filled(mri.likelihood(mri.prepare(io.load(data / path))))[0, 0]]
    return found


def label_maps(data: Path, subjects: Iterable[int]) -> list[Volume]:
    return [read_nifti(data / f"train/synthseg_labels/training_seg_{i}.nii.gz") for i in subjects]


def smooth(x: Tensor, weight: float) -> Tensor:
    """Total variation of real images: min_z 1/2 |z - x|^2 + weight sum |grad z|, z >= 0."""
    D = FiniteDifference(Space.of(x))
    ball = partial(project_ball, radius=weight, axis=-3)
    return pdhg(lambda z: z - x, 1.0, D, math.sqrt(8), ball, x, iterations=60, project=torch.relu)


def shrink(x: Tensor, weight: float, *, shifts: int = 4, levels: int = 4) -> Tensor:
    """Soft thresholding of db4 coefficients, averaged over shifts of the image along both axes."""
    pad = [(0, -n % 2**levels) for n in x.shape]
    total = np.zeros_like(x.numpy())
    for s in range(shifts):
        shifted = np.roll(np.pad(x.numpy(), pad), (5 * s, 3 * s), axis=(0, 1))
        coarse, *details = pywt.wavedec2(shifted, "db4", mode="periodization", level=levels)
        kept = [coarse, *(tuple(pywt.threshold(d, weight, "soft") for d in level) for level in details)]
        back = np.roll(pywt.waverec2(kept, "db4", mode="periodization"), (-5 * s, -3 * s), axis=(0, 1))
        total += back[: x.shape[0], : x.shape[1]] / shifts
    return torch.from_numpy(total)


def gain(denoise: Callable[[Tensor], Tensor], clean: list[Tensor], sigma: float) -> float:
    """20 log10(sigma / rmse) over the images, in dB; the noise is the same for everybody."""
    squared, count = 0.0, 0
    for i, x0 in enumerate(clean):
        rng = torch.Generator().manual_seed(i)
        squared += (denoise(x0 + sigma * draw_noise(x0, rng)) - x0).abs().square().sum().item()
        count += x0.numel() * (2 if x0.is_complex() else 1)
    return 20 * math.log10(sigma / math.sqrt(squared / count))


def table(denoiser: priors.Denoiser, sources: dict[str, list[Tensor]]) -> dict[str, dict[str, dict[str, float]]]:
    """Gain in dB by source, noise level and method; thresholds and weights are the best of six for that very entry."""
    classical = {"wavelets": (shrink, (0.8, 1.1, 1.4, 1.8, 2.2, 2.7))}
    if not denoiser.is_complex:
        classical["tv"] = (smooth, (0.4, 0.6, 0.9, 1.3, 1.9, 2.8))
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, clean in sources.items():
        result[name] = {}
        for sigma in SIGMAS:
            with torch.no_grad():
                entry = {"prior": gain(partial(denoiser, sigma=sigma), clean, sigma)}
            for method, (function, factors) in classical.items():
                entry[method] = max(gain(partial(function, weight=f * sigma), clean, sigma) for f in factors)
            result[name][str(sigma)] = {method: round(decibels, 2) for method, decibels in entry.items()}
    return result


def milliseconds(denoiser: priors.Denoiser, shape: tuple[int, int], *, repeats: int = 30) -> float:
    """Of one evaluation on one thread: the fastest of several, which other work on the machine disturbed least."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.zeros(1, *shape, dtype=torch.complex64 if denoiser.is_complex else torch.float32)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        with torch.no_grad():
            denoiser(x, 0.1)
        times.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return min(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prior", help="name or path of a prior")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, help="the table; benchmarks/results/denoising-PRIOR.md")
    parser.add_argument("--card", action="store_true", help="write the figures into the prior's card too")
    arguments = parser.parse_args()
    denoiser = priors.load(arguments.prior)
    name = denoiser.card["name"]
    out = arguments.out or Path(__file__).parent / "results" / f"denoising-{name}.md"
    figures = table(denoiser, images(arguments.data, denoiser.card["recipe"].get("images", "mri")))
    speed = {f"{ny}x{nx}": round(milliseconds(denoiser, (ny, nx)), 1) for ny, nx in ((230, 180), (256, 256))}
    methods = list(next(iter(next(iter(figures.values())).values())))
    lines = [
        f"# Denoising by the prior `{name}`",
        "",
        "Decibels gained over the noisy image; sigma per real component, images with bright tissue or material near 1.",
        "Wavelets: db4, soft threshold, average of 4 shifts; tv: total variation; both with the best weight for each",
        "entry. The references of measured scans are noisy.",
        "",
        f"| image | sigma | {' | '.join(methods)} |",
        "|---|---" + "|---" * len(methods) + "|",
    ]
    for source, levels in figures.items():
        for sigma, entry in levels.items():
            lines.append(f"| {source} | {sigma} | {' | '.join(f'{entry[m]:.2f}' for m in methods)} |")
    times = ", ".join(f"{ms} ms at {size}" for size, ms in speed.items())
    lines += ["", f"One evaluation on one CPU thread: {times}.", ""]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines))
    print("\n".join(lines))
    if arguments.card:
        path = priors.library.find(arguments.prior)[1]
        card = json.loads(path.read_text()) | {"denoising_gain_dB": figures, "milliseconds_one_thread": speed}
        path.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
