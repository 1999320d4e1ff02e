"""`recon tune`: the settings of a method that are best on simulated scans, whose truth is known."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .calibrated import full_arguments
from .ct_heads import HeadScans
from .errors import InputError
from .io.writers import run_record, write_run
from .methods import check_options, method_named, options_of
from .modalities import check_settings, ct, mri
from .pipeline import Progress, load_prior
from .records import TUNED
from .series import Series, against_truth, each, kept_until_done
from .settings import Settings
from .simulation import Distribution


def tune(
    folder: str | Path,
    *,
    out: str | Path,
    grid: Mapping[str, Sequence[float | bool | str]],
    on: Sequence[str] = ("*",),
    method: str = "dds",
    options: Mapping[str, Any] | None = None,
    masks: Sequence[str] = ("random",),
    accelerations: Sequence[float] = (4.0,),
    samples: int | None = None,
    prior: str | None = None,
    steps: int | None = None,
    images: int = 4,
    distribution: Distribution | HeadScans | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "float32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Try every combination of some values of a method's options, and keep the one of the highest mean PSNR.

    The figure is `recon.metrics.psnr_scaled` against the truth inside the object, a mean over simulated scans, masks
    and accelerations; every combination sees the same. The same call continues where an earlier one was stopped.

    Parameters
    ----------
    folder, on : NIfTI label maps or images to simulate from: those whose names match one of the patterns `on`. Nothing
        that the method is tested on later may be among them.
    out : the record (JSON), for `reconstruct(..., tuned=out)`.
    grid : option -> the values to try.
    options : that are fixed.
    masks, accelerations : each with each; of CT the masks are views, range and dose, as of `recon benchmark`.
    method ... precision : see recon.settings.Settings.
    images : simulated scans.
    distribution : of the simulated scans; of CT by default where the masks are.
    seed : of all that is drawn.

    Returns
    -------
    What the record holds.

    Raises
    ------
    ReconError
        If an option, a value, a mask or an acceleration cannot be, or the grid is empty.
    """
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if not grid or not combinations:
        raise InputError("tuning: expected values to try, got none; give a grid, such as weight=0.05,0.1,0.2")
    if images < 1 or not masks or not accelerations:
        raise InputError("tuning: expected at least one image, mask and acceleration, got none of one of them")
    if len({*masks}) < len(masks) or len({*accelerations}) < len(accelerations):
        raise InputError(f"tuning: expected masks and accelerations once each, got {masks} and {accelerations}")
    twice = sorted(set(grid) & set(options or {}))
    if twice:
        raise InputError(f"tuning: {', '.join(twice)}: expected fixed or in the grid, got both; leave one out")
    common = Settings(
        method=method,
        options=dict(options or {}),
        samples=samples,
        prior=prior,
        steps=steps,
        seed=seed,
        device=device,
        precision=precision,
        check=False,
    )
    for combination in combinations:
        check_options(method, combination)
    where = distribution or (HeadScans() if is_of_ct(masks) else Distribution())
    modality = ct if isinstance(where, HeadScans) else mri
    series = Series(Path(folder), on, distribution=where, seed=seed)
    cells = [
        replace(common, **modality.undersampling(series[0], mask, float(acceleration), {})).resolved(
            prior=modality.PRIOR
        )
        for mask, acceleration in itertools.product(masks, accelerations)
    ]
    check_settings(cells[0], series[0])
    card = load_prior(cells[0].prior, cells[0])[1] or {}
    key = {"distribution": asdict(where), "prior": card.get("sha256"), "files": series.checksums()}
    with kept_until_done(Path(out), key, overwrite=overwrite) as parts:
        work = [
            _piece(series, replace(cell, options={**cell.options, **combination}), index)
            for index, cell, combination in itertools.product(range(images), cells, combinations)
        ]
        outcomes = each(work, parts, progress)
        table = [
            {"options": combination, **_summary(outcomes[i :: len(combinations)])}
            for i, combination in enumerate(combinations)
        ]
        best = max(table, key=lambda row: float(row["psnr_scaled"]))["options"]
        record = run_record(
            arguments=full_arguments(common.resolved(prior=modality.PRIOR))
            | {"mask": list(masks), "acceleration": list(accelerations)},
            seed=seed,
            device=device,
            timings={"all": sum(o["seconds"] for o in outcomes), "image": mean(o["seconds"] for o in outcomes)},
            notes=_at_the_edge(best, grid),
        ) | {
            "kind": TUNED,
            "method": method,
            "options": {**dict(options or {}), **best},
            "default": {name: options_of(method_named(method))[name] for name in grid},
            "table": table,
            "images": images,
            "files": series.checksums(),
            "distribution": asdict(where),
            "prior": {"name": card.get("name"), "sha256": card.get("sha256")},
        }
        write_run(out, record, overwrite=overwrite)
    return record


def is_of_ct(masks: Sequence[str]) -> bool:
    """Whether these are kinds of undersampling of CT; InputError if only some are."""
    of_ct = set(masks) & set(ct.PARTS)
    if of_ct and of_ct != set(masks):
        raise InputError(f"tuning: expected masks of MRI or those of CT ({', '.join(ct.PARTS)}), got both: {masks}")
    return bool(of_ct)


def _piece(series: Series, settings: Settings, index: int) -> tuple[str, Callable[[Progress | None], dict[str, float]]]:
    """A name for one scan, mask and setting, and a function that finds its quality."""

    def work(progress: Progress | None) -> dict[str, float]:
        start = time.perf_counter()
        result = against_truth(series[index], settings, seed=series.run_seed(index), progress=progress)
        figures = {name: result.metrics[name] for name in ("psnr_scaled", "ssim_scaled")}
        return figures | {"seconds": time.perf_counter() - start}

    text = json.dumps([full_arguments(settings), index], sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.pt", work


def _summary(outcomes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean and spread over scans, masks and accelerations."""
    psnr = [o["psnr_scaled"] for o in outcomes]
    return {
        "psnr_scaled": mean(psnr),
        "psnr_scaled_std": stdev(psnr) if len(psnr) > 1 else None,
        "ssim_scaled": mean(o["ssim_scaled"] for o in outcomes),
        "seconds": mean(o["seconds"] for o in outcomes),
        "psnr_scaled_of_each": psnr,
    }


def _at_the_edge(best: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """A note for each number whose best value is the least or the largest that was tried."""
    numbers = {k: [v for v in values if not isinstance(v, bool | str)] for k, values in grid.items()}
    return [
        f"{name}={best[name]} is at the edge of its grid: what lies beyond may be better"
        for name, values in numbers.items()
        if len(values) > 1 and best[name] in (min(values), max(values))
    ]
