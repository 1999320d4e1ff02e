"""How good an image of `benchmarks.ct` is.

References
----------
Meaney, Silva de Moura, Siltanen, Helsinki tomography challenge 2022, Appl Math Mod Chall 1, 170 (2023).
Otsu, IEEE Trans Syst Man Cybern 9, 62 (1979); Matthews, Biochim Biophys Acta 405, 442 (1975).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon import metrics
from recon.ct import CTScan
from recon.projections import to_hu
from recon.result import Reconstruction

WINDOWS = {"brain": (0.0, 80.0), "wide": (-1000.0, 1000.0)}  # HU; centre 40 and width 80, and everything


def otsu(image: Tensor, *, bins: int = 256) -> Tensor:
    """Where an image is above the threshold that separates its histogram into classes of least variance."""
    low, high = float(image.min()), float(image.max())
    histogram = torch.histc(image.double(), bins, low, high)
    levels = low + (torch.arange(bins, dtype=torch.float64) + 0.5) * (high - low) / bins
    below, total = histogram.cumsum(0), histogram.sum()
    first, everything = (histogram * levels).cumsum(0), (histogram * levels).sum()
    between = (total * first - below * everything).square() / (below * (total - below)).clamp(min=1)
    best = (between == between.max()).nonzero().double().mean()  # the middle, where some bins between are empty
    return image > low + (float(best) + 1) * (high - low) / bins


def matthews(truth: Tensor, found: Tensor) -> float:
    """Correlation of two binary images, 1 for equal ones; 0 where one of them is uniform."""
    a, b = (m.double().flatten() - m.double().mean() for m in (truth, found))
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def all_views(scan: CTScan, result: Reconstruction) -> Tensor:
    assert result.reference is not None
    return result.reference[0]


def the_object(scan: CTScan, result: Reconstruction) -> Tensor:
    assert scan.reference is not None
    return torch.as_tensor(scan.reference[:])[0]


def against_all_views(scan: CTScan, result: Reconstruction) -> dict[str, float]:
    """Against the filtered back-projection of all views, unless it is that; predictive coverage of that image."""
    found = {key: result.metrics[key] for key in ("psnr_scaled", "ssim_scaled")}
    if math.isinf(found["psnr_scaled"]):
        return {}
    coverage = result.run["coverage"][0]
    return found | ({} if coverage is None else {"coverage": coverage["coverage"][coverage["levels"].index(0.9)]})


def disc_score(scan: CTScan, result: Reconstruction) -> dict[str, float]:
    found = against_all_views(scan, result)
    return found and found | {"matthews": matthews(otsu(all_views(scan, result)), otsu(result.mean[0]))}


def head_score(scan: CTScan, result: Reconstruction) -> dict[str, float]:
    """Against the object, in windows of HU: PSNR inside the head, SSIM over the rectangle about it."""
    assert scan.water is not None
    truth = the_object(scan, result)
    inside = metrics.object_mask(truth)
    y, x = (slice(int(n.min()), int(n.max()) + 1) for n in inside.nonzero().unbind(1))
    found = {}
    for name, (low, high) in WINDOWS.items():
        r, m = (to_hu(image, scan.water).clamp(low, high) - low for image in (truth, result.mean[0]))
        found[f"psnr_{name}"] = metrics.psnr(r[inside][None], m[inside][None])
        found[f"ssim_{name}"] = metrics.ssim(r[y, x], m[y, x])
    if result.lower is not None and result.upper is not None:
        within = (result.lower[0] <= truth) & (truth <= result.upper[0])
        found["coverage"] = float(within[inside].double().mean())
        found["width_hu"] = float((result.upper[0] - result.lower[0])[inside].mean()) / scan.water * 1000
    return found
