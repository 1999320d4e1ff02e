"""How well does a prior denoise? Its error against noise level beside wavelet shrinkage.

    python benchmarks/denoising.py brain --data ../shared/data [--card]

Images: slices rendered from label maps of subjects 18-20, never trained on, and the two fully sampled brain scans,
their coils combined with ESPIRiT maps. The scans' own noise is in their reference: removing it counts as error.
Noise is added per real component; errors are 20 log10(sigma / rmse), the decibels gained over the noisy image.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pywt
import torch
from torch import Tensor

import priors
from recon import io, mri
from recon.methods.zero_filled import zero_filled
from recon.training_images import TrainingImages
from recon.training_volumes import read_nifti

SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5)
SCANS = {"brain_8ch": "mri/brain_8ch.h5", "brain_mprage_4ch": "mri/brain_mprage_4ch.h5"}
SUBJECTS = (18, 19, 20)


def images(data: Path) -> dict[str, list[Tensor]]:
    """Test images by the name of their source, each (y, x) complex."""
    labels = [read_nifti(data / f"train/synthseg_labels/training_seg_{i}.nii.gz") for i in SUBJECTS]
    rendered = TrainingImages(labels, seed=20)
    found = {"label maps 18-20": [rendered[i] for i in range(8)]}
    for name, path in SCANS.items():
        found[name] = [zero_filled(mri.likelihood(mri.prepare(io.load(data / path))))[0, 0]]
    return found


def shrink(x: Tensor, threshold: float, *, shifts: int = 4, levels: int = 4) -> Tensor:
    """Soft thresholding of complex db4 coefficients, averaged over shifts of the image along both axes."""
    pad = [(0, -n % 2**levels) for n in x.shape]
    total = np.zeros(x.shape, np.complex64)
    for s in range(shifts):
        shifted = np.roll(np.pad(x.numpy(), pad), (5 * s, 3 * s), axis=(0, 1))
        coarse, *details = pywt.wavedec2(shifted, "db4", mode="periodization", level=levels)
        kept = [coarse, *(tuple(pywt.threshold(d, threshold, "soft") for d in level) for level in details)]
        back = np.roll(pywt.waverec2(kept, "db4", mode="periodization"), (-5 * s, -3 * s), axis=(0, 1))
        total += back[: x.shape[0], : x.shape[1]] / shifts
    return torch.from_numpy(total)


def gain(denoise: Callable[[Tensor], Tensor], clean: list[Tensor], sigma: float) -> float:
    """20 log10(sigma / rmse) over the images, in dB; the noise is the same for everybody."""
    squared, count = 0.0, 0
    for i, x0 in enumerate(clean):
        rng = torch.Generator().manual_seed(i)
        noise = torch.view_as_complex(torch.randn(*x0.shape, 2, generator=rng))
        squared += (denoise(x0 + sigma * noise) - x0).abs().square().sum().item()
        count += 2 * x0.numel()
    return 20 * math.log10(sigma / math.sqrt(squared / count))


def table(denoiser: priors.Denoiser, sources: dict[str, list[Tensor]]) -> dict[str, dict[str, dict[str, float]]]:
    """Gain in dB by source, noise level and method; the wavelet threshold is the best of six for that very entry."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, clean in sources.items():
        result[name] = {}
        for sigma in SIGMAS:
            with torch.no_grad():
                prior = gain(partial(denoiser, sigma=sigma), clean, sigma)
            factors = (0.8, 1.1, 1.4, 1.8, 2.2, 2.7)
            wavelet = max(gain(partial(shrink, threshold=f * sigma), clean, sigma) for f in factors)
            result[name][str(sigma)] = {"prior": round(prior, 2), "wavelets": round(wavelet, 2)}
    return result


def milliseconds(denoiser: priors.Denoiser, shape: tuple[int, int], *, repeats: int = 30) -> float:
    """Of one evaluation on one thread: the fastest of several, which other work on the machine disturbed least."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.zeros(1, *shape, dtype=torch.complex64)
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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "denoising.md")
    parser.add_argument("--card", action="store_true", help="write the figures into the prior's card too")
    arguments = parser.parse_args()
    denoiser = priors.load(arguments.prior)
    figures = table(denoiser, images(arguments.data))
    speed = {f"{ny}x{nx}": round(milliseconds(denoiser, (ny, nx)), 1) for ny, nx in ((230, 180), (256, 256))}
    lines = [
        f"# Denoising by the prior `{denoiser.card['name']}`",
        "",
        "Decibels gained over the noisy image; sigma per real component, images with bright tissue near 1. Wavelets:",
        "db4, soft threshold (the best for each entry), average of 4 shifts. The scans' references are noisy.",
        "",
        "| image | sigma | prior | wavelets | difference |",
        "|---|---|---|---|---|",
    ]
    for name, levels in figures.items():
        for sigma, entry in levels.items():
            difference = entry["prior"] - entry["wavelets"]
            lines.append(f"| {name} | {sigma} | {entry['prior']:.2f} | {entry['wavelets']:.2f} | {difference:+.2f} |")
    times = ", ".join(f"{ms} ms at {size}" for size, ms in speed.items())
    lines += ["", f"One evaluation on one CPU thread: {times}.", ""]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines))
    print("\n".join(lines))
    if arguments.card:
        path = priors.library.find(arguments.prior)[1]
        card = json.loads(path.read_text()) | {"denoising_gain_dB": figures, "milliseconds_one_thread": speed}
        path.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
