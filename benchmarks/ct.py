"""CT of measured discs and a measured tooth, and of heads whose truth is known: every method on parts of the scans.

    python -m benchmarks.ct --data ../shared/data

- Discs of acrylic with holes (Helsinki tomography challenge 2022), fewer views and fewer angles. Reference: the
  filtered back-projection of all views, which carries their noise. PSNR and SSIM inside the disc after least-squares
  scaling, and the challenge's score: Matthews' correlation of the image's Otsu segmentation with that of the reference.
- A tooth (synchrotron, counts), fewer views; reference likewise.
- Slices of a head: CT images in HU, of which scans are simulated (finer grid, strips, photons: `recon simulate-ct`).
  The object is known: PSNR and SSIM in two windows of HU, and how much of the head the 90 % intervals of the samples
  hold.

Nothing is tuned on these files. Every method runs by `recon.reconstruct` at its default setting, on one thread.
Cells are kept one by one in a JSON lines file: an interrupted run continues. A cell is known by the options of its
method and the weights of its prior, so that new ones are computed anew. The report is of all cells that are kept,
also where only some were asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import priors
import recon
from benchmarks import peers
from benchmarks.ct_pictures import Pictures
from benchmarks.ct_scores import WINDOWS, against_all_views, all_views, disc_score, head_score, the_object
from benchmarks.quality import Cells
from priors.library import names
from recon.ct import CTScan
from recon.ct_simulation import WATER, simulate_series
from recon.errors import ReconError
from recon.io.atomic import atomic
from recon.methods import METHODS, inputs_of, options_of, own_prior, takes_prior
from recon.result import Reconstruction

RESULTS = Path(__file__).parent / "results"
ALL_VIEWS = 240  # of a simulated head
HEAD_SLICES = (17, 6)  # ventricles, skull base; the first is pictured


class Run(NamedTuple):
    """How often a method is run.

    Parameters
    ----------
    scans : on the first so many.
    settings : on those; none for all.
    samples : that are drawn.
    """

    scans: int = 99
    settings: tuple[str, ...] = ()
    samples: int | None = None


class Study(NamedTuple):
    """One kind of scan.

    Parameters
    ----------
    load : folder of the data -> scans of one slice by their names; each is read when it is needed.
    settings : name -> what `recon.reconstruct` is asked for.
    scans : settings that only the first so many scans are run with.
    methods : name -> how often.
    truth : scan and result -> (y, x) in 1/mm that images are compared with.
    score : scan and result -> figures.
    figures : name in the cells -> title of its table, and digits.
    pictured : settings and methods in the picture, of the first scan.
    gray : what is black and white there, 1/mm.
    """

    title: str
    text: str
    load: Callable[[Path], dict[str, Callable[[], CTScan]]]
    settings: dict[str, dict[str, Any]]
    scans: dict[str, int]
    methods: dict[str, Run]
    prior: str
    truth: Callable[[CTScan, Reconstruction], Tensor]
    score: Callable[[CTScan, Reconstruction], dict[str, float]]
    figures: dict[str, tuple[str, int]]
    pictured: tuple[tuple[str, ...], tuple[str, ...]]
    gray: tuple[float, float]


def file(path: Path, *, index: int = 0) -> Callable[[], CTScan]:
    return lambda: recon.load(path)[index : index + 1]


def head(path: Path, index: int) -> Callable[[], CTScan]:
    return lambda: simulate_series(path, shape=(256, 256), slices=(index, index + 1), views=ALL_VIEWS, seed=index)


CLASSICAL = {name: Run() for name in ("fbp", "sirt", "os-sart", "cgls", "tv", "pwls")}
HELSINKI = {"psnr_scaled": ("PSNR in dB", 2), "ssim_scaled": ("SSIM", 3)}
STUDIES = {
    "htc": Study(
        title="Discs with holes (HTC 2022, measured)",
        text="Reference: FBP of all 721 views, with their noise, which FBP of 721 views is. DDS: one sample.",
        load=lambda data: {f"t{x}": file(data / "ct" / f"htc2022_t{x}_full.mat") for x in "abcd"},
        settings={
            "30 views": {"views": 30},
            "0..60 degrees": {"angular_range": (0.0, 60.0)},
            "60 views": {"views": 60},
            "90 views": {"views": 90},
            "0..90 degrees": {"angular_range": (0.0, 90.0)},
            "721 views": {"views": 721},
        },
        scans={"60 views": 1, "90 views": 1, "0..90 degrees": 1, "721 views": 1},
        methods=CLASSICAL | {"dds": Run(samples=1)},
        prior="discs-ct",
        truth=all_views,
        score=disc_score,
        figures=HELSINKI | {"matthews": ("Matthews correlation after Otsu", 3)},
        pictured=(("30 views", "0..60 degrees"), ("fbp", "sirt", "tv", "pwls", "dds")),
        gray=(0.0, 0.05),
    ),
    "tooth": Study(
        title="Tooth (synchrotron, measured counts)",
        text="Two slices. Reference: FBP of all 181 views, with their noise. No prior of this project fits a tooth.",
        load=lambda data: {f"slice {i}": file(data / "ct" / "tomopy_tooth.h5", index=i) for i in range(2)},
        settings={"30 views": {"views": 30}, "60 views": {"views": 60}, "181 views": {"views": 181}},
        scans={"60 views": 1, "181 views": 1},
        methods=CLASSICAL | {"transmission": Run()},
        prior="",
        truth=all_views,
        score=against_all_views,
        figures=HELSINKI,
        pictured=(("30 views", "60 views"), ("fbp", "sirt", "tv", "pwls", "transmission")),
        gray=(0.0, 0.01),
    ),
    "head": Study(
        title="Heads (simulated scans of measured CT images)",
        text=(
            f"Slices {', '.join(map(str, HEAD_SLICES))} (of 28, from below) of a head in HU, 512 x 512: the object. "
            f"{ALL_VIEWS} views over a turn, 2e5 photons a bin, images of 256 x 256. PSNR inside the head, SSIM over "
            "the rectangle about it, of images cut to the window (brain: 0 to 80 HU, wide: -1000 to 1000 HU), whose "
            "width is the peak. The object has the noise of its own scan. DDS: mean of three samples."
        ),
        load=lambda data: {f"slice {i}": head(data / "ct" / "dcm_qa_ct_GE_head_28.tar.xz", i) for i in HEAD_SLICES},
        settings={
            "8 views": {"views": 8},
            "16 views": {"views": 16},
            "23 views": {"views": 23},
            "60 views": {"views": 60},
            "dose 1/10": {"dose": 0.1},
            "dose 1/4": {"dose": 0.25},
        },
        scans={},
        methods=CLASSICAL
        | {
            "transmission": Run(),
            "pnp-admm": Run(),
            "diffpir": Run(1, ("23 views",), 1),
            "dds": Run(samples=3),
            "score-mri": Run(1, ("23 views",), 1),
            "dps": Run(1, ("23 views",), 1),
            "mcg": Run(1, ("23 views",), 1),
            "pigdm": Run(1, ("23 views",), 1),
            "split-gibbs": Run(1, ("23 views",), 3),
        }
        | {name: Run() for name in ("fbp-unet", "fbp-gan") if f"head-ct-{name}" in names()},
        prior="head-ct",
        truth=the_object,
        score=head_score,
        figures={
            f"{figure}_{window}": (f"{title}, {window} window", digits)
            for window in WINDOWS
            for figure, title, digits in (("psnr", "PSNR in dB", 2), ("ssim", "SSIM", 3))
        }
        | {"coverage": ("Coverage of 90 %", 2), "width_hu": ("Length of the intervals in HU", 0)},
        pictured=(("8 views", "23 views"), ("fbp", "sirt", "tv", "pwls", "dds")),
        gray=(WATER * 0.8, WATER * 1.3),  # -200 to 300 HU
    ),
}


UNRANKED = ("coverage", "width_hu")
Cell = dict[tuple[str, str, str], dict[str, Any]]
"""(setting, method, scan) -> figures."""


class Bench:
    """The cells of one study."""

    def __init__(self, key: str, data: Path, cells: Cells, images: Path) -> None:
        self.key, self.study, self.cells = key, STUDIES[key], cells
        self.scans = {name: cache(load) for name, load in self.study.load(data).items()}
        self.pictures = Pictures(images / key)

    def runs(self, setting: str, method: str) -> list[str]:
        """The scans that a method is run on with a setting."""
        study, run = self.study, self.study.methods[method]
        count = min(run.scans, study.scans.get(setting, len(self.scans)))
        return list(self.scans)[:count] if not run.settings or setting in run.settings else []

    def all(self) -> list[tuple[str, str, str]]:
        """(setting, method, scan) of every cell that is to be, setting by setting."""
        return [
            (setting, method, scan)
            for setting in self.study.settings
            for scan in self.scans
            for method in self.study.methods
            if scan in self.runs(setting, method)
        ]

    def of(self, setting: str, method: str, scan: str) -> dict[str, Any]:
        """What a cell is known by."""
        function = METHODS[method]
        prior = own_prior(method, self.study.prior) if takes_prior(function) else None
        samples = self.study.methods[method].samples if "rng" in inputs_of(function) else None
        of: dict[str, Any] = {"study": self.key, "scan": scan, "setting": setting, "method": method}
        of |= {"options": options_of(function), "samples": samples}
        return of if prior is None else of | {"prior": prior, "weights": priors.load(prior).card["sha256"][:12]}

    def kept(self) -> Cell:
        """All cells that have been computed."""
        cells = {key: self.cells.done.get(Cells.key(**self.of(*key))) for key in self.all()}
        return {key: cell for key, cell in cells.items() if cell}

    def compute(self, setting: str, method: str, scan: str) -> None:
        """The figures of one method on one scan, if they have not been computed."""
        study, of = self.study, self.of(setting, method, scan)
        settings, methods = study.pictured
        pictured = scan == next(iter(self.scans)) and setting in settings and method in methods
        if pictured and not self.pictures.has(setting, method):
            self.cells.done.pop(Cells.key(**of), None)

        def figures() -> dict[str, Any]:
            given = self.scans[scan]()
            try:
                result = recon.reconstruct(
                    given,
                    method=method,
                    samples=of["samples"],
                    prior=of.get("prior"),
                    check=False,
                    **study.settings[setting],
                )
            except ReconError as error:
                return {"error": str(error)}
            if pictured:
                self.pictures.keep(setting, method, result, study.truth(given, result))
            cost = {"seconds": result.run["timings_s"]["method"], "evaluations": result.run["evaluations"]}
            return study.score(given, result) | cost

        found = self.cells.get(figures, **of)
        rounded = {key: round(value, 3) for key, value in found.items() if isinstance(value, float)}
        print(self.key, scan, setting, method, rounded or found, flush=True)

    def report(self) -> str:
        """Tables in Markdown: every figure over settings and methods; then all methods, where some ran on one scan."""
        study, cells = self.study, self.kept()
        parts = [f"## {study.title}", study.text]
        for figure, (title, digits) in study.figures.items():
            rows = {}
            for setting in study.settings:
                found, count = self.means(cells, setting, figure)
                if found:
                    rows[f"{setting} ({count})"] = marked(found, digits, ranked=figure not in UNRANKED)
            if rows:
                parts += [f"{title} (mean of so many scans):", table(rows)]
        parts += [self.on_one(cells, setting) for setting in study.settings if self.alone(cells, setting)]
        return "\n\n".join(parts) + "\n"

    def means(self, cells: Cell, setting: str, figure: str) -> tuple[dict[str, float], int]:
        """Method -> mean over the scans that all of them were run on, and how many these are."""
        found: dict[str, dict[str, float]] = {}
        for (where, method, scan), cell in cells.items():
            if where == setting and figure in cell and self.study.methods[method].scans > 1:
                found.setdefault(method, {})[scan] = cell[figure]
        common = set(self.scans).intersection(*found.values())
        return {m: mean(values[scan] for scan in common) for m, values in found.items() if common}, len(common)

    def alone(self, cells: Cell, setting: str) -> bool:
        """Whether a method ran on the first scan only with a setting that others ran on several."""
        return any(run.scans == 1 and key[:2] == (setting, m) for m, run in self.study.methods.items() for key in cells)

    def on_one(self, cells: Cell, setting: str) -> str:
        """Every method on the first scan."""
        scan, rows = next(iter(self.scans)), {}
        columns = {
            **self.study.figures,
            "samples": ("samples", 0),
            "evaluations": ("evaluations", 0),
            "seconds": ("s", 1),
        }
        for (where, method, which), cell in cells.items():
            if (where, which) == (setting, scan):
                figures = cell | {"samples": cell["of"]["samples"]}
                rows[method] = {
                    title: cell["error"] if "error" in cell else f"{figures[key]:.{digits}f}"
                    for key, (title, digits) in columns.items()
                    if figures.get(key) is not None or "error" in cell
                }
        return f"Every method, {scan}, {setting}; seconds for all samples:\n\n{table(rows)}"


def marked(values: dict[str, float], digits: int, *, ranked: bool) -> dict[str, str]:
    """Numbers as text, the largest in bold."""
    best = max(values.values()) if ranked else None
    return {key: f"**{v:.{digits}f}**" if v == best else f"{v:.{digits}f}" for key, v in values.items()}


def table(rows: dict[str, dict[str, str]]) -> str:
    """In Markdown; columns in the order of their first appearance."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    for part in ("methods", "settings", "scans"):
        parser.add_argument(f"--{part}", type=lambda text: text.split(","), help="some of the study's, A,B; else all")
    parser.add_argument("--cells", type=Path, default=RESULTS / "ct.jsonl")
    parser.add_argument("--report", type=Path, default=RESULTS / "ct.md")
    parser.add_argument("--tables", action="store_true", help="of the cells that are there; compute none")
    parser.add_argument("--images", type=Path, default=Path("runs/ct"), help="where pictured images are kept")
    arguments = parser.parse_args(words)
    for part, known in {
        "methods": [name for study in STUDIES.values() for name in study.methods],
        "settings": [name for study in STUDIES.values() for name in study.settings],
        "scans": [name for study in STUDIES.values() for name in study.load(arguments.data)],
    }.items():
        if unknown := set(getattr(arguments, part) or ()) - set(known):
            names_known = ", ".join(dict.fromkeys(known))
            parser.error(f"--{part}: unknown {', '.join(sorted(unknown))}; expected among {names_known}")
    torch.set_num_threads(1)
    asked = arguments.settings, arguments.methods, arguments.scans
    cells = Cells(arguments.cells)
    for key in arguments.only:
        bench = Bench(key, arguments.data, cells, arguments.images)
        for cell in [] if arguments.tables else bench.all():
            if all(some is None or name in some for some, name in zip(asked, cell, strict=True)):
                bench.compute(*cell)
        bench.pictures.draw(arguments.report.with_name(f"ct-{key}.png"), *bench.study.pictured, gray=bench.study.gray)
    cells = Cells(arguments.cells)  # with those that others have computed meanwhile
    reports = [Bench(key, arguments.data, cells, arguments.images).report() for key in STUDIES]
    machine = f"{peers.machine()['cpu']}, torch {torch.__version__}"
    title = f"# CT\n\n`python -m benchmarks.ct`, {machine}, one thread. Empty: not run.\n\n"
    with atomic(arguments.report, overwrite=True) as temporary:
        temporary.write_text(title + "\n".join(reports))


if __name__ == "__main__":
    main()
