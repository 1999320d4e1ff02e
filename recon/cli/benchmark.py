"""`recon benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .display import console, plain
from .options import Device, Prior, parse_method_options, parse_numbers, parse_options, parse_slices


def benchmark(
    files: Annotated[list[Path], typer.Argument(help="Fully sampled scans, of any format that is read.")],
    out: Annotated[Path, typer.Option(help="Folder of the benchmark; what is done there is not done again.")],
    methods: Annotated[
        str | None,
        typer.Option(help="NAME,NAME (see `recon methods`) [zero-filled,l1-wavelet,dds; of CT fbp,tv,dds]."),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            help="KIND,KIND [random,equispaced,gaussian1d,gaussian2d,poisson,radial; of CT views,range,dose]."
        ),
    ] = None,
    accelerations: Annotated[
        str, typer.Option(help="NUMBER,NUMBER; 12 leaves a twelfth of the samples, views, angles or dose.")
    ] = "4,8,12",
    samples: Annotated[int | None, typer.Option(help="For methods that draw them; 8.")] = None,
    seeds: Annotated[int, typer.Option(help="How many masks of each kind, with the samples drawn for them.")] = 1,
    slices: Annotated[str | None, typer.Option(help="FIRST:LAST (exclusive) of every file, all by default.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of a method: METHOD.NAME=VALUE; samples, steps, prior and precision count too."),
    ] = None,
    tuned: Annotated[list[Path] | None, typer.Option(help="Options as `recon tune` chose them.")] = None,
    mask_option: Annotated[
        list[str] | None, typer.Option("--mask-set", help="An option of all masks, NAME=VALUE: calibration=24, say.")
    ] = None,
    prior: Prior = None,
    device: Device = "cpu",
    precision: Annotated[str, typer.Option(help="Of the networks of priors: float32 or bf16.")] = "float32",
    workers: Annotated[int, typer.Option(help="Processes, which share the threads.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, in place of workers.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Compute the cells again that failed.")] = False,
) -> None:
    """Compare methods over masks, accelerations and seeds: tables, pictures and a report in a folder."""
    from ..benchmark import display
    from ..benchmark.grid import make_grid
    from ..benchmark.run import benchmark as run

    grid = make_grid(
        files,
        methods=None if methods is None else methods.split(","),
        masks=None if masks is None else masks.split(","),
        accelerations=parse_numbers("--accelerations", accelerations),
        seeds=seeds,
        samples=samples,
        slices=parse_slices(slices),
        options=parse_method_options(option or []),
        tuned=tuned or (),
        mask_options=parse_options(mask_option or []),
        prior=prior,
        device=device,
        precision=precision,
    )
    with display.progress(Console(stderr=True)) as progress:
        found = run(grid, out=out, workers=workers, cluster=cluster, retry=retry, progress=progress)
    console.print(display.outcome(grid, found))
    for note in found.notes:
        console.print(plain(note), style="bold red", soft_wrap=True)
    for cell in found.failed[:10]:  # all of them are in the report
        console.print(f"{plain(cell.name)}: {plain(found.records[cell]['error']['message'])}", style="red")
    mend = "; --retry computes the failed ones again" if found.failed else ""
    console.print(
        f"{found.computed} of {len(found.records)} cells computed, {len(found.failed)} failed{mend}", soft_wrap=True
    )
    console.print(f"report in {plain(str(out / 'report.html'))}", soft_wrap=True)
