"""Are the ESPIRiT maps those of BART and sigpy, and how long do they take?

    python -m benchmarks.espirit --data ../shared/data

Times: brain_8ch.h5 (8 x 230 x 180), calibrated on 24 x 24 samples. Each round runs every tool once, in turn; ratios are
medians over rounds of the ratio within a round. BART is a program: its time is that of the whole process, with
reading and writing files; ours and sigpy's are those of a call. Our first call and our whole process stand beside it.
Agreement: first percentile of |<map, map>| where the root sum of squares is above 10 % of its maximum, eroded by 3
pixels; no crop.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy import ndimage

from benchmarks.peers import Array, Bart, bart, bart_version, from_bart, machine, sigpy_espirit, thread_limits, to_bart
from operators.espirit import espirit

SCANS = ("brain_8ch", "brain_mprage_4ch")
WIDTH = 24


def load(data: Path, scan: str) -> Array:
    with h5py.File(data / "mri" / f"{scan}.h5") as file:
        return np.asarray(file["kspace"][0])


def centre(kspace: Array) -> torch.Tensor:
    for axis in (1, 2):
        start = kspace.shape[axis] // 2 - WIDTH // 2
        kspace = kspace.take(range(start, start + WIDTH), axis)
    return torch.from_numpy(kspace)


def ours(kspace: Array, *, sets: int = 1, crop: float = 0.8) -> Array:
    return espirit(centre(kspace), kspace.shape[1:], sets=sets, crop=crop).maps.numpy()


def agreement(data: Path) -> dict[str, dict[str, float]]:
    """First percentile of the absolute correlation, each tool with its own defaults but for the crop."""
    found = {}
    for scan in SCANS:
        kspace = load(data, scan)
        images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(1, 2))), axes=(1, 2))
        rss = np.linalg.norm(images, axis=0)
        inside = ndimage.binary_erosion(rss > 0.1 * rss.max(), iterations=3)
        maps = {
            "ours": ours(kspace, crop=0)[0],
            "bart": from_bart(bart(f"ecalib -m 1 -r {WIDTH} -c 0", to_bart(kspace))[0]),
            "sigpy": sigpy_espirit(kspace, width=WIDTH, crop=0),
        }
        pairs = (("ours", "bart"), ("ours", "sigpy"), ("bart", "sigpy"))
        found[scan] = {
            f"{a} - {b}": float(np.quantile(np.abs((maps[a].conj() * maps[b]).sum(0))[inside], 0.01)) for a, b in pairs
        }
    return found


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def whole_process(data: Path, threads: int) -> float:
    """Seconds from the start of Python, imports included, to the maps of a file."""
    code = f"import pathlib, benchmarks.espirit as b; b.ours(b.load(pathlib.Path({str(data)!r}), {SCANS[0]!r}))"
    command = [sys.executable, "-c", code]
    return seconds(lambda: subprocess.run(command, env=thread_limits(threads), check=True))


def worker(data: Path, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by tool, in a process of its own: libraries read their number of threads at the start."""
    torch.set_num_threads(threads)
    kspace = load(data, SCANS[0])
    times = {"ours, first call of a process": [seconds(lambda: ours(kspace))]}
    times["ours, start of Python and imports included"] = [whole_process(data, threads) for _ in range(3)]
    with (
        Bart(f"ecalib -m 1 -r {WIDTH}", to_bart(kspace), threads=threads) as one,
        Bart(f"ecalib -m 2 -r {WIDTH}", to_bart(kspace), threads=threads) as two,
        Bart("version", outputs=0, threads=threads) as nothing,
    ):
        tools: dict[str, Callable[[], float]] = {
            "ours": lambda: seconds(lambda: ours(kspace)),
            "bart": one.run,
            "sigpy": lambda: seconds(lambda: sigpy_espirit(kspace, width=WIDTH)),
            "ours, two sets": lambda: seconds(lambda: ours(kspace, sets=2)),
            "bart, two sets": two.run,
            "bart, start of the program": nothing.run,
        }
        for run in tools.values():  # imports, plans
            run()
        for _, (name, run) in itertools.product(range(rounds), tools.items()):
            time.sleep(0.1)  # threads of the tool before may still spin
            times.setdefault(name, []).append(run())
    return times


def summary(times: dict[str, list[float]]) -> dict[str, float]:
    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 3)

    result = {f"{name} [ms]": round(1e3 * statistics.median(values), 1) for name, values in times.items()}
    result["ours / bart"] = ratio("ours", "bart")
    result["ours / sigpy"] = ratio("ours", "sigpy")
    result["ours / bart, two sets"] = ratio("ours, two sets", "bart, two sets")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        print(json.dumps(worker(arguments.data, arguments.worker, arguments.rounds)))
        return

    columns = {}
    for threads in arguments.threads:
        command = [sys.executable, "-m", "benchmarks.espirit", "--worker", threads]
        command += ["--data", arguments.data, "--rounds", arguments.rounds]
        done = subprocess.run([*map(str, command)], env=thread_limits(threads), stdout=subprocess.PIPE, check=True)
        columns[str(threads)] = summary(json.loads(done.stdout))
    result = {
        "command": "python -m benchmarks.espirit --data ../shared/data",
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "sigpy")},
            "bart": bart_version(),
        },
        "rounds": arguments.rounds,
        "by threads": columns,
        "agreement": agreement(arguments.data),
    }
    write(result, arguments.out)


def table(corner: str, columns: Iterable[str], rows: dict[str, list[str]]) -> list[str]:
    cells = [[corner, *columns], ["---"] * (1 + len(next(iter(rows.values())))), *([k, *v] for k, v in rows.items())]
    return [f"| {' | '.join(row)} |" for row in cells]


def write(result: dict[str, Any], folder: Path) -> None:
    by_threads, found = result["by threads"], result["agreement"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    times = {row: [f"{column[row]:g}" for column in by_threads.values()] for row in next(iter(by_threads.values()))}
    correlations = {scan: [f"{value:.5f}" for value in values.values()] for scan, values in found.items()}
    text = f"""# ESPIRiT beside BART and sigpy

`{result["command"]}` on {result["machine"]["cpu"]}, {result["machine"]["cores"]} cores; {versions}.

Medians of {result["rounds"]} interleaved rounds, 8 x 230 x 180, {WIDTH} x {WIDTH} calibration samples; ratios are
medians of the ratios within rounds. BART: the whole process, files read and written. Ours and sigpy: one call.

{chr(10).join(table("threads", by_threads, times))}

Agreement: first percentile of the absolute correlation inside the eroded object, each tool with its own threshold, no
crop.

{chr(10).join(table("scan", next(iter(found.values())), correlations))}
"""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "espirit.md").write_text(text)
    (folder / "espirit.json").write_text(json.dumps(result, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
