"""`recon calibrate`: how much wider intervals must be, from simulated scans of subjects that the prior has not seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from .calibrated import full_arguments
from .calibration import bootstrap_interval, conformal_factor, fewest_images, risk, scores
from .ct_heads import HeadScans
from .errors import InputError, MissingFileError
from .io.writers import run_record, write_run
from .methods import inputs_of, method_named
from .metrics import object_mask
from .modalities import check_settings, ct, mri
from .pipeline import Progress, load_prior
from .records import CALIBRATION
from .reliability import LEVELS, crps, rank_correlation, reliability, sparsification
from .result import Reconstruction
from .series import Series, against_truth, each, kept_until_done
from .settings import Settings
from .simulation import Distribution

GUARANTEE = (
    "At most {alpha:g} % of the object's pixels lie outside the intervals times the factor, in expectation over the "
    "{images} images of the calibration and one further image that is exchangeable with them (conformal risk control: "
    "n / (n + 1) R + 1 / (n + 1) <= alpha): one simulated in the same way, of the same subjects. For other "
    "subjects, undersampling or doses, or measured scans it is no guarantee."
)

# Factors at which the mean risk is told.
_CURVE = tuple(round(0.1 * i, 1) for i in range(1, 61))


def calibrate(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    on: Sequence[str] = ("*",),
    test: Sequence[str] = (),
    method: str = "dds",
    options: Mapping[str, Any] | None = None,
    mask: str | None = None,
    acceleration: float | None = None,
    mask_options: Mapping[str, Any] | None = None,
    views: int | None = None,
    angular_range: tuple[float, float] | None = None,
    dose: float | None = None,
    samples: int | None = None,
    prior: str | None = None,
    steps: int | None = None,
    alpha: float = 0.1,
    images: int = 45,
    test_images: int | None = None,
    distribution: Distribution | HeadScans | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "float32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Find the factor for the intervals of a sampler under a kind of mask, and see on other subjects what it does.

    Scans are simulated (`recon.simulation`); each image has its own subject, slice, contrast, coils, noise and mask.
    Or they are of CT (`recon.ct_heads`), with fewer views, angles or photons in place of a mask. The same call
    continues where an earlier one was stopped.

    Parameters
    ----------
    folder, on : NIfTI label maps or images to calibrate on: those whose names match one of the patterns `on`.
    test : patterns of those to test on, other subjects. None: no test.
    out : the record (JSON); by default calibrations/PRIOR-METHOD-MASK-ACCELERATION.json beside the prior, or
        ...-23-views.json and the like.
    method ... precision : see recon.settings.Settings; the mask is random if None and the scans are of MRI.
    alpha : part of an object's pixels that may lie outside.
    images, test_images : how many; as many test images as others by default.
    distribution : of the simulated scans; of MRI by default, of CT where views, angular_range or dose are given.
    seed : of all that is drawn; every image has a mask and samples of its own.

    Returns
    -------
    Where the record is, and what it holds.

    Raises
    ------
    ReconError
        If the method draws no samples, images are too few for alpha, a file is to calibrate and to test, ...

    References
    ----------
    Angelopoulos, Bates, Fisch, Lei, Schuster, Conformal risk control, Proc ICLR (2024).
    """
    where = distribution or (HeadScans() if is_of_ct(views, angular_range, dose) else Distribution())
    modality = ct if isinstance(where, HeadScans) else mri
    settings = Settings(
        method=method,
        options=dict(options or {}),
        mask="random" if mask is None and modality is mri else mask,
        acceleration=acceleration,
        mask_options=dict(mask_options or {}),
        views=views,
        angular_range=angular_range,
        dose=dose,
        samples=samples,
        prior=prior,
        steps=steps,
        seed=seed,
        device=device,
        precision=precision,
        check=False,
    ).resolved(prior=modality.PRIOR)
    _check(settings, images, alpha)
    tuning = Series(Path(folder), on, distribution=where, seed=seed)
    testing = Series(Path(folder), test, distribution=where, seed=seed + 1) if test else None
    if test_images is not None and (testing is None or test_images < 1):
        raise InputError(f"test_images: expected at least 1, with files to test on, got {test_images}; see `test`")
    calibrated, tested = tuning.checksums(), testing.checksums() if testing else {}
    both = [name for name, sha in tested.items() if name in calibrated or sha in calibrated.values()]
    if both:
        raise InputError(f"calibration: expected other subjects to test on, came {', '.join(sorted(both))} for both")
    check_settings(settings, tuning[0])
    card = load_prior(settings.prior, settings)[1] or {}
    path = Path(out) if out is not None else beside(settings)
    count = 0 if testing is None else images if test_images is None else test_images
    key = {"settings": full_arguments(settings), "distribution": asdict(where), "prior": card.get("sha256")}
    with kept_until_done(path, key | {"files": calibrated | tested}, overwrite=overwrite) as parts:
        work = [(f"calibrate-{i:04d}.pt", _piece(tuning, settings, i)) for i in range(images)]
        if testing is not None:
            work += [(f"test-{i:04d}.pt", _piece(testing, settings, i)) for i in range(count)]
        outcomes = each(work, parts, progress)
        record = _record(settings, card, outcomes[:images], outcomes[images:], alpha=alpha) | {
            "distribution": asdict(where),
            "files": calibrated,
            "test_files": tested,
        }
        write_run(path, record, overwrite=overwrite)
    return path, record


def is_of_ct(views: int | None, angular_range: object, dose: float | None) -> bool:
    """Whether what is asked for is of CT: one of them is given."""
    return not (views is angular_range is dose is None)


def _record(
    settings: Settings,
    card: Mapping[str, Any],
    tuning: Sequence[Mapping[str, Any]],
    testing: Sequence[Mapping[str, Any]],
    *,
    alpha: float,
) -> dict[str, Any]:
    """What was found, and with what."""
    factor = conformal_factor([o["scores"] for o in tuning], alpha=alpha)
    seconds = [o["seconds"] for o in (*tuning, *testing)]
    return run_record(
        arguments=full_arguments(settings),
        seed=settings.seed,
        device=settings.device,
        timings={"all": sum(seconds), "image": mean(seconds)},
        notes=[GUARANTEE.format(alpha=100 * alpha, images=len(tuning))],
    ) | {
        "kind": CALIBRATION,
        "factor": factor,
        "alpha": alpha,
        "prior": {"name": card.get("name"), "sha256": card.get("sha256")},
        "calibration": _summary(tuning, factor),
        "test": _summary(testing, factor) if testing else None,
    }


def beside(settings: Settings) -> Path:
    """Where the record of a calibration lies if no other place is named: in a folder beside its prior."""
    from priors.library import find

    try:
        card = find(settings.prior or "")[1]
    except FileNotFoundError as error:
        raise MissingFileError(str(error)) from error
    parts = [card.stem, settings.method]
    if settings.mask is not None:
        parts += [settings.mask, f"{settings.acceleration:g}"]
    if settings.views is not None:
        parts += [f"{settings.views}-views"]
    if settings.angular_range is not None:
        parts += ["{:g}-to-{:g}-degrees".format(*settings.angular_range)]
    if settings.dose is not None:
        parts += [f"dose-{settings.dose:g}"]
    return card.parent / "calibrations" / f"{'-'.join(parts)}.json"


def _check(settings: Settings, images: int, alpha: float) -> None:
    if "rng" not in inputs_of(method_named(settings.method)):
        raise InputError(f"calibration: expected a method that draws samples, got {settings.method}; take dds, say")
    if (settings.samples or 0) < 2:
        raise InputError(f"calibration: expected at least 2 samples, got {settings.samples}: one has no interval")
    if images < fewest_images(alpha):
        raise InputError(
            f"calibration: expected at least {fewest_images(alpha)} images for a risk of {alpha:g}, got {images}; "
            "simulate more, or allow a larger risk"
        )


def _piece(series: Series, settings: Settings, index: int) -> Callable[[Progress | None], dict[str, Any]]:
    """Simulate and reconstruct one image, when called."""

    def work(progress: Progress | None) -> dict[str, Any]:
        start, scan = time.perf_counter(), series[index]
        result = against_truth(scan, settings, seed=series.run_seed(index), progress=progress)
        truth = torch.as_tensor(scan.reference[:]) if scan.reference is not None else result.mean
        return assess(result, truth) | {"seconds": time.perf_counter() - start}

    return work


def assess(result: Reconstruction, truth: Tensor) -> dict[str, Any]:
    """Scores of an image's object, and how far its samples can be trusted there.

    Parameters
    ----------
    result : of one slice, with samples.
    truth : (slice, y, x).
    """
    if result.std is None or result.lower is None or result.upper is None or result.samples is None:
        raise InputError("calibration: expected a result of several samples, got one without intervals")
    inside = object_mask(truth)
    kept, target = result.samples.movedim(1, 0)[:, inside], truth[inside]
    average, lower, upper = result.mean[inside], result.lower[inside], result.upper[inside]
    error, std = (target - average).abs(), result.std[inside]
    nominal, coverage = reliability(kept, target, levels=LEVELS)
    level = float(target.double().mean())
    return {
        "scores": scores(average, lower, upper, target),
        "psnr_scaled": result.metrics["psnr_scaled"],
        "width": float((upper - lower).double().mean()) / level,
        "nominal": nominal,
        "coverage": coverage,
        "crps": float(crps(kept, target).double().mean()) / level,
        "rank_correlation": rank_correlation(error, std),
        "sparsification_area": sparsification(error, std).area,
    }


def _summary(outcomes: Sequence[Mapping[str, Any]], factor: float) -> dict[str, Any]:
    """Means over images: risk and width before and after, reliability, order of errors, score, quality."""
    before, after = ([risk(o["scores"], f) for o in outcomes] for f in (1.0, factor))
    width = mean(o["width"] for o in outcomes)
    summary: dict[str, Any] = {
        "images": len(outcomes),
        "risk": {"before": mean(before), "after": mean(after), "after_of_each": after},
        "width": {"before": width, "after": factor * width},
        "nominal": outcomes[0]["nominal"],
        "coverage": [mean(o["coverage"][i] for o in outcomes) for i in range(len(LEVELS))],
        "risk_curve": {"factor": _CURVE, "risk": [mean(risk(o["scores"], f) for o in outcomes) for f in _CURVE]},
    }
    if len(after) > 1:
        summary["risk"]["after_interval"] = bootstrap_interval(torch.tensor(after), torch.ones(len(after)))
    for name in ("crps", "rank_correlation", "sparsification_area", "psnr_scaled"):
        summary[name] = mean(o[name] for o in outcomes)
    return summary
