"""Do calibrated intervals of CT hold what they promise: on simulated heads, as guaranteed, and on measured images?

    recon calibrate ../shared/data/train/synthseg_labels --on '*_1[5-7].nii.gz' --test '*_18.nii.gz' \\
        --test '*_19.nii.gz' --test '*_20.nii.gz' --method dds --views 23 --samples 4 --images 24 --test-images 15 \\
        --out benchmarks/results/ct-calibration/dds-23-views.json
    python -m benchmarks.ct_calibration --data ../shared/data

The second command takes the factors to heads whose images were measured, with scans simulated of them as for
`benchmarks.ct`: other pixels, 256 x 256 of 240 views, anatomy and texture that no label map has, hence no guarantee.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

import recon
from benchmarks import peers
from benchmarks.ct import HEAD_SLICES, head, table
from benchmarks.ct_scores import head_score
from recon.calibrated import load_calibration
from recon.errors import InputError
from recon.io.atomic import atomic

RESULTS = Path(__file__).parent / "results"


def measured(path: Path, data: Path) -> dict[str, float]:
    """Part of the head outside the intervals, and their length in HU, without and with the factor; mean over slices."""
    asked = load_calibration(path).arguments
    found = []
    for index in HEAD_SLICES:
        scan = head(data / "ct" / "dcm_qa_ct_GE_head_28.tar.xz", index)()
        names = ("method", "options", "samples", "prior", "steps", "views", "angular_range", "dose", "precision")
        settings = {name: asked[name] for name in names if asked[name] is not None}
        for calibrated in (None, path):
            result = recon.reconstruct(scan, check=False, calibrated=calibrated, **settings)
            found.append(head_score(scan, result))
            print(path.stem, index, calibrated is not None, found[-1], flush=True)
    return {
        "measured heads: outside before": 100 * (1 - mean(f["coverage"] for f in found[::2])),
        "with the factor": 100 * (1 - mean(f["coverage"] for f in found[1::2])),
        "HU before": mean(f["width_hu"] for f in found[::2]),
        "HU after": mean(f["width_hu"] for f in found[1::2]),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    rows = {}
    for path in sorted((RESULTS / "ct-calibration").glob("*.json")):
        record = json.loads(path.read_text())
        calibration, test = record["calibration"], record["test"]
        if test is None:
            raise InputError(f"{path}: expected a calibration with a test, came one without; calibrate with --test")
        figures = {
            "factor": record["factor"],
            "simulated heads: outside before": 100 * test["risk"]["before"],
            "after": 100 * test["risk"]["after"],
        } | measured(path, arguments.data)
        rows[path.stem] = {
            "samples": str(record["arguments"]["samples"]),
            "images": f"{calibration['images']}, {test['images']} to test on",
        } | {name: f"{value:.2f}" if name == "factor" else f"{value:.1f}" for name, value in figures.items()}
    text = (
        f"# Calibrated intervals of CT\n\n`python -m benchmarks.ct_calibration`, {peers.machine()['cpu']}, torch "
        f"{torch.__version__}, one thread.\n\nPercent of the object's pixels outside nominal 90 % intervals, and the "
        "mean length of these. Simulated: subjects that neither the prior nor the calibration has seen; measured: two "
        f"slices of a head, for which nothing is guaranteed.\n\n{table(rows)}\n"
    )
    with atomic(RESULTS / "ct-calibration.md", overwrite=True) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
