"""Do calibrated intervals hold what they promise: on simulated heads, as guaranteed, and on measured scans?

    recon calibrate ../shared/data/train/synthseg_labels --on '*_1[5-7].nii.gz' --test '*_18.nii.gz' \\
        --test '*_19.nii.gz' --test '*_20.nii.gz' --method dds --mask random --acceleration 4 --precision bf16 \\
        --shape 160,128 --coils 4 --out benchmarks/results/calibration/dds-random-4.json
    python -m benchmarks.calibration --data ../shared/data/mri

The first command for each method and acceleration; the second reads what they wrote, and takes the factors to the
measured brains, where they guarantee nothing. There intervals are predictive, as in benchmarks/coverage.py, with a
bootstrap interval of their coverage over blocks of 16 x 16 pixels, mean over the masks.

Cells are kept one by one in a JSON lines file: an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import priors
import recon
from benchmarks import peers
from benchmarks.quality import SCANS, Cells, image_of
from operators.masks import mask_function
from recon import mri
from recon.apply import prior_inputs
from recon.calibration import transfer
from recon.likelihood import Gaussian
from recon.methods import inputs_of, method_named
from recon.methods.zero_filled import zero_filled
from recon.metrics import object_mask
from recon.noise import Noise
from recon.residual_noise import scan_noise

RESULTS = Path("benchmarks/results")


def measured(path: Path, record: Mapping[str, Any], prior: Any, index: int) -> dict[str, Any]:
    """Coverage on a measured scan, without the factor and with it."""
    asked = record["arguments"]
    scan = recon.load(path)[:1]
    axis = -2 if scan.readout_axis == -1 else -1
    mask = mask_function(asked["mask"])(scan.shape, asked["acceleration"], seed=index, axis=axis)
    given = mri.undersample(scan, mask)
    noise = scan_noise(given)
    prepared = mri.prepare(given, noise=noise)
    everything = mri.prepare(replace(scan, readout_axis=given.readout_axis), noise=noise)
    reference = mri.likelihood(everything)

    def combine(data: Tensor) -> Tensor:
        image = everything.image(zero_filled(Gaussian(reference.A, data)))
        return torch.linalg.vector_norm(image[..., 0, :, :, :], dim=-3)

    likelihood, method = mri.likelihood(prepared), method_named(asked["method"])
    made, _ = prior_inputs(asked["method"], likelihood, prior, asked["steps"])
    ids = range(asked["samples"])
    inputs = {"likelihood": likelihood, "rng": Noise((0, index), ids)} | made
    x = method(**{name: inputs[name] for name in inputs_of(method)}, **asked["options"])
    inside = object_mask(image_of(everything, zero_filled(reference)))
    found = {}
    for name, factor in (("before", 1.0), ("after", record["factor"])):
        rng = Noise((0, index, 1), ids)
        held = transfer(x, reference, inside, factor=factor, rng=rng, acquired=prepared.mask, combine=combine)
        found[name] = asdict(held)
    return found


def report(records: list[dict[str, Any]], found: dict[tuple[str, float, str], list[dict[str, Any]]]) -> str:
    lines = [
        "## Simulated heads",
        "",
        "Percent of the object's pixels outside nominal 90 % intervals, mean over images, without the factor and with "
        "it. The guarantee is for images as those of the calibration (subjects 15 to 17): at most 10 %. The test is on "
        "other subjects (18 to 20), with the standard error over images. Width: of the intervals, over the mean "
        "brightness of the object.",
        "",
        "| method | random lines | samples | factor | images | outside: before | after | width before | after | test "
        "images | outside: before | after | width after |",
        "|---" * 13 + "|",
    ]
    for record in records:
        asked, tuning, test = record["arguments"], record["calibration"], record["test"]
        each = torch.tensor(test["risk"]["after_of_each"])
        error = 100 * float(each.std() / len(each) ** 0.5)
        row = [asked["method"], f"x{asked['acceleration']:g}", str(asked["samples"]), f"{record['factor']:.2f}"]
        row += [str(tuning["images"]), *(f"{100 * tuning['risk'][when]:.1f}" for when in ("before", "after"))]
        row += [f"{tuning['width'][when]:.3f}" for when in ("before", "after")]
        row += [str(test["images"]), f"{100 * test['risk']['before']:.1f}"]
        row += [f"{100 * test['risk']['after']:.1f} ± {error:.1f}", f"{test['width']['after']:.3f}"]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "## Measured brains",
        "",
        "Percent of the object's pixels inside predictive 90 % intervals.",
        "",
        "| scan | method | random lines | before | with the factor (95 % bootstrap) | width before | after |",
        "|---" * 7 + "|",
    ]
    for (method, acceleration, scan), cells in found.items():
        after = {key: 100 * mean(cell["after"][key] for cell in cells) for key in ("coverage", "low", "high")}
        widths = [f"{mean(cell[when]['width'] for cell in cells):.3f}" for when in ("before", "after")]
        before = f"{100 * mean(cell['before']['coverage'] for cell in cells):.1f}"
        held = f"{after['coverage']:.1f} ({after['low']:.1f} to {after['high']:.1f})"
        lines.append("| " + " | ".join([scan, method, f"x{acceleration:g}", before, held, *widths]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mri"))
    parser.add_argument("--masks", type=int, default=2)
    parser.add_argument("--records", type=Path, default=RESULTS / "calibration")
    parser.add_argument("--cells", type=Path, default=RESULTS / "calibration.jsonl")
    parser.add_argument("--report", type=Path, default=RESULTS / "calibration.md")
    arguments = parser.parse_args()
    paths = sorted(arguments.records.glob("*.json"), key=lambda path: (path.stem.rsplit("-", 1)[0], path.stem[-2:]))
    records = [json.loads(path.read_text()) for path in paths]
    cells, loaded = Cells(arguments.cells), priors.load("brain")
    found: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for record in records:
        asked = record["arguments"]
        network = priors.bf16(loaded) if asked["precision"] == "bf16" else loaded
        prior = priors.chunked(network, 2**16, threads=torch.get_num_threads())
        of = {"method": asked["method"], "acceleration": asked["acceleration"], "factor": record["factor"]}
        for scan in SCANS:
            for index in range(arguments.masks):
                cell = cells.get(
                    lambda scan=scan, record=record, prior=prior, index=index: measured(
                        arguments.data / scan, record, prior, index
                    ),
                    **of,
                    scan=scan,
                    index=index,
                )
                found.setdefault((asked["method"], asked["acceleration"], scan), []).append(cell)
                print(of, scan, index, cell["before"]["coverage"], cell["after"]["coverage"], flush=True)
    header = (
        f"# Calibrated intervals\n\n`python -m benchmarks.calibration {' '.join(sys.argv[1:])}`, "
        f"{peers.machine()['cpu']}, torch {torch.__version__}, prior {loaded.card['sha256'][:12]}\n\n"
    )
    arguments.report.write_text(header + report(records, found))


if __name__ == "__main__":
    main()
