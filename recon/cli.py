"""The command `recon`: the words of the Python interface, a progress bar, and errors of one line."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .pipeline import Progress

# torch and all that needs it are imported inside the commands, so that `recon --help` is instant.

app = typer.Typer(
    help="Posterior reconstruction: measured data in, image and uncertainty out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


def main() -> None:
    """Run the command; a user's error is one line on stderr and a non-zero exit."""
    from .errors import ReconError

    # Waiting threads spin for a moment only: on a busy machine long spinning makes two threads slower than one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.showwarning = lambda message, *_: Console(stderr=True, soft_wrap=True).print(
        f"[bold red]warning:[/] {_plain(str(message))}"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # temporary files go away as they do on Ctrl-C
    try:
        app()
    except ReconError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_plain(str(error))}")
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # typer turns an interruption into a silent exit
            raise
        Console(stderr=True).print("interrupted; the same command continues where it stopped")
        sys.exit(130)


File = Annotated[Path, typer.Argument(help="fastMRI HDF5, BART cfl, NumPy .npy or .npz.")]


@app.command()
def reconstruct(
    file: File,
    method: Annotated[str, typer.Option(help="See `recon methods`.")] = "l1-wavelet",
    option: Annotated[list[str] | None, typer.Option("--set", help="An option of the method, NAME=VALUE.")] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Undersample: random, equispaced, gaussian1d, gaussian2d, poisson, radial, spiral, fastmri-..."
        ),
    ] = None,
    acceleration: Annotated[
        float | None, typer.Option(help="Grid points per sample of the mask; 4 by default.")
    ] = None,
    mask_option: Annotated[
        list[str] | None, typer.Option("--mask-set", help="An option of the mask, NAME=VALUE: calibration=24, say.")
    ] = None,
    slices: Annotated[str | None, typer.Option(help="FIRST:LAST (exclusive), all by default.")] = None,
    samples: Annotated[int | None, typer.Option(help="Posterior samples, for methods that draw them; 8.")] = None,
    prior: Annotated[str | None, typer.Option(help="Name of an embedded prior (brain), or a path.")] = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels of a sampler; its own number by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the mask and of the samples.")] = 0,
    coils: Annotated[int | None, typer.Option(help="Compress to so many virtual coils.")] = None,
    sets: Annotated[int, typer.Option(help="ESPIRiT map sets; 2 if the object exceeds the field of view.")] = 1,
    views: Annotated[int | None, typer.Option(help="CT: keep so many views, evenly; all by default.")] = None,
    angular_range: Annotated[
        str | None, typer.Option(help="CT: keep FIRST:LAST degrees from the first view on; all by default.")
    ] = None,
    dose: Annotated[float | None, typer.Option(help="CT: simulate this fraction of the dose.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[
        str, typer.Option(help="Of the prior's network: float32, or bf16, faster where there are instructions for it.")
    ] = "float32",
    check: Annotated[
        bool, typer.Option(help="For samplers: look if the prior suits the data (costs 4 samples of one slice).")
    ] = True,
    tuned: Annotated[Path | None, typer.Option(help="Options of the method as `recon tune` chose them.")] = None,
    calibrated: Annotated[
        Path | None, typer.Option(help="Factor for std and intervals, as `recon calibrate` found it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("reconstruction"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    complex_image: Annotated[bool, typer.Option("--complex", help="Save the complex image too.")] = False,
) -> None:
    """Reconstruct a scan: HDF5, NIfTI, a picture and run.json in a folder."""
    from .pipeline import reconstruct as run

    with progress_bar() as progress:
        result = run(
            file,
            method=method,
            options=parse_options(option or []),
            mask=mask,
            acceleration=acceleration,
            mask_options=parse_options(mask_option or []),
            slices=parse_slices(slices),
            samples=samples,
            prior=prior,
            steps=steps,
            seed=seed,
            coils=coils,
            sets=sets,
            views=views,
            angular_range=parse_range(angular_range),
            dose=dose,
            device=device,
            precision=precision,
            check=check,
            tuned=tuned,
            calibrated=calibrated,
            out=out,
            overwrite=overwrite,
            complex_image=complex_image,
            progress=progress,
        )
    for note in result.run["notes"]:
        if not note.startswith("WARNING"):  # it was given when it was found
            console.print(_plain(note), style="dim", soft_wrap=True)
    cost = f"{result.run['timings_s']['method']:.1f} s"
    if result.run["evaluations"]:
        cost += f" at {result.run['evaluations']} network evaluations" + " a sample" * (result.samples is not None)
    if "check" in result.run["timings_s"]:
        cost += f", and {result.run['timings_s']['check']:.1f} s for the check of the prior"
    console.print(f"{result.run['sampled']}, {cost}", soft_wrap=True)
    if result.metrics:
        console.print(metrics_table({method: result.metrics}))
    console.print(f"results in {out}/", soft_wrap=True)


@app.command()
def info(file: File) -> None:
    """Say what a file holds."""
    from .io import load
    from .modalities import modality_of

    scan = load(file)
    table = Table(show_header=False, box=None)
    for key, value in {"name": scan.name, **modality_of(scan).info(scan)}.items():
        table.add_row(f"[bold]{key}", _plain(value))
    for note in scan.notes:
        table.add_row("[bold]note", _plain(note))
    console.print(table)


@app.command()
def methods() -> None:
    """List the methods with their options."""
    from .methods import METHODS, options_of, takes_prior

    table = Table("method", "what it is", "options for --set (default)", box=None, header_style="bold")
    for name, method in METHODS.items():
        summary = (method.__doc__ or "").strip().splitlines()[0]
        options = ", ".join(f"{key}={value}" for key, value in options_of(method).items())
        prior = " [dim](prior)" if takes_prior(method) else ""
        table.add_row(name + prior, _plain(summary), options)
    console.print(table)


@app.command()
def demo(
    file: Annotated[
        Path | None, typer.Argument(help="A fully sampled scan of your own; else an embedded head.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
) -> None:
    """Undersample a scan fourfold and compare the methods on it."""
    from .demo import run

    with progress_bar() as progress:
        results = run(file, out=out, overwrite=overwrite, progress=progress)
    console.print(metrics_table({name: result.metrics for name, result in results.items()}, results))
    console.print(f"pictures in {out}/panel.png", soft_wrap=True)


@app.command()
def train(
    folder: Annotated[
        Path | None, typer.Argument(help="Of fastMRI files, NIfTI, DICOM or label maps; none for discs-ct.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the prior.")] = Path("prior"),
    task: Annotated[str, typer.Option(help="denoiser; or unet or varnet, for the method of that name.")] = "denoiser",
    images: Annotated[
        str, typer.Option(help="mri; head-ct, renderings of label maps; or discs-ct, synthetic discs with holes.")
    ] = "mri",
    mask: Annotated[str | None, typer.Option(help="For unet and varnet: the pattern of lines [random].")] = None,
    accelerations: Annotated[str | None, typer.Option(help="For unet and varnet: which [4,8].")] = None,
    minutes: Annotated[float, typer.Option(help="Training time, over all calls together.")] = 60.0,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps, if that is sooner.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Patterns of file names to leave out.")] = None,
    validation: Annotated[list[str] | None, typer.Option(help="Patterns of file names to validate on.")] = None,
    name: Annotated[str, typer.Option(help="Of the prior.")] = "prior",
    widths: Annotated[str | None, typer.Option(help="Channels at each resolution, such as 32,64,96.")] = None,
    start: Annotated[str | None, typer.Option(help="Prior to start from (fine-tuning): name or path.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW at its highest.")] = 8e-4,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the weights, the images and the noise.")] = 0,
) -> None:
    """Train a prior, or a network that reconstructs, on a folder's images or synthetic ones; again to continue."""
    from .train import train as run

    card = run(
        folder,
        out=out,
        task=task,
        images=images,
        mask=mask,
        accelerations=None if accelerations is None else parse_numbers("--accelerations", accelerations),
        widths=None if widths is None else parse_whole("--widths", widths),
        minutes=minutes,
        steps=steps,
        exclude=exclude or (),
        validation=validation or (),
        name=name,
        start=start,
        learning_rate=learning_rate,
        device=device,
        seed=seed,
    )
    console.print(f"prior in {card}; use it with --prior {card}", soft_wrap=True)


@app.command()
def simulate(
    file: Annotated[Path, typer.Argument(help="NIfTI of a head: FreeSurfer labels, or a magnitude image.")],
    out: Annotated[Path, typer.Option(help="The scan, a fastMRI HDF5 file.")] = Path("scan.h5"),
    shape: Annotated[str, typer.Option(help="Y,X of k-space.")] = "230,180",
    slices: Annotated[int, typer.Option(help="How many, one above the other.")] = 1,
    position: Annotated[float, typer.Option(help="Of their middle, from 0 (low in the brain) to 1.")] = 0.5,
    coils: Annotated[int, typer.Option(help="Loops around the head.")] = 8,
    noise: Annotated[float, typer.Option(help="Standard deviation, over the 99th percentile of the image.")] = 0.01,
    pixel: Annotated[float | None, typer.Option(help="In mm; by default the head fills 7/8 of the image.")] = None,
    thickness: Annotated[float, typer.Option(help="Of a slice, in mm.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of contrast, phase, coils and noise.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a scan that is there.")] = False,
) -> None:
    """Simulate a fully sampled scan whose truth is known, on a finer grid and with coils of its own."""
    from .io.scan_writer import write_scan
    from .simulation import simulate as run
    from .training_volumes import read_volume

    scan = run(
        read_volume(file),
        shape=parse_shape(shape),
        slices=slices,
        position=position,
        coils=coils,
        noise=noise,
        pixel=pixel,
        thickness=thickness,
        seed=seed,
        name=file.name,
    )
    write_scan(out, scan, overwrite=overwrite)
    count = f"{slices} slice{'s' * (slices > 1)}, {coils} coils, {scan.shape[0]} x {scan.shape[1]}"
    console.print(f"{count}, fully sampled, with its truth, in {_plain(str(out))}", soft_wrap=True)


@app.command("simulate-ct")
def simulate_ct(
    images: Annotated[Path, typer.Argument(help="A series of CT images in HU (DICOM): its folder or tar archive.")],
    out: Annotated[Path, typer.Option(help="The scan, a .npz with its geometry.")] = Path("scan.npz"),
    shape: Annotated[
        str, typer.Option(help="Y,X of the image to reconstruct; it divides that of the series.")
    ] = "256,256",
    slices: Annotated[str | None, typer.Option(help="FIRST:LAST (exclusive) by position, all by default.")] = None,
    views: Annotated[int, typer.Option(help="Over a turn.")] = 720,
    photons: Annotated[float, typer.Option(help="That a bin counts without object.")] = 2e5,
    electronic: Annotated[float, typer.Option(help="Standard deviation of the detector's noise, in photons.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a scan that is there.")] = False,
) -> None:
    """Simulate a CT scan of images in HU, by a finer model than any that reconstructs."""
    from .ct_simulation import simulate_series
    from .io.numpy_projections import write

    scan = simulate_series(
        images,
        shape=parse_shape(shape),
        slices=parse_slices(slices),
        views=views,
        photons=photons,
        electronic=electronic,
        seed=seed,
    )
    write(out, scan, overwrite=overwrite)
    for note in scan.notes:
        console.print(_plain(note), style="dim", soft_wrap=True)
    console.print(
        f"{len(scan)} slices, {views} views of {scan.geometry.bins} bins in {_plain(str(out))}", soft_wrap=True
    )


Folder = Annotated[Path, typer.Argument(help="Of NIfTI files: FreeSurfer labels, or magnitude images.")]
On = Annotated[list[str] | None, typer.Option(help="Patterns of file names to take; all by default.")]
Shape = Annotated[str, typer.Option(help="Y,X of the simulated scans.")]
Coils = Annotated[int, typer.Option(help="Of the simulated scans.")]
Levels = Annotated[str, typer.Option(help="LOW,HIGH of the simulated noise, over the 99th percentile of the image.")]
Options = Annotated[list[str] | None, typer.Option("--set", help="An option of the method, NAME=VALUE.")]


@app.command()
def calibrate(
    folder: Folder,
    on: On = None,
    test: Annotated[list[str] | None, typer.Option(help="Patterns of the files to test on: other subjects.")] = None,
    method: Annotated[str, typer.Option(help="A method that draws samples.")] = "dds",
    option: Options = None,
    mask: Annotated[str, typer.Option(help="Kind of mask; every image has its own.")] = "random",
    acceleration: Annotated[float, typer.Option(help="Of the mask.")] = 4.0,
    mask_option: Annotated[list[str] | None, typer.Option("--mask-set", help="An option of the mask.")] = None,
    samples: Annotated[int | None, typer.Option(help="For each image; 8.")] = None,
    prior: Annotated[str | None, typer.Option(help="Name of an embedded prior (brain), or a path.")] = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels of a sampler.")] = None,
    alpha: Annotated[float, typer.Option(help="Part of the object's pixels that may lie outside.")] = 0.1,
    images: Annotated[int, typer.Option(help="To calibrate on.")] = 45,
    test_images: Annotated[int | None, typer.Option(help="To test on; as many by default.")] = None,
    shape: Shape = "230,180",
    coils: Coils = 8,
    noise: Levels = "0.005,0.02",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Of the prior's network: float32 or bf16.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="The record (JSON); by default beside the prior.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a record that is there.")] = False,
) -> None:
    """Find the factor that makes a sampler's intervals hold what they promise, on simulated scans."""
    from .calibrate import calibrate as run
    from .simulation import Distribution

    with progress_bar() as progress:
        path, record = run(
            folder,
            on=on or ("*",),
            test=test or (),
            method=method,
            options=parse_options(option or []),
            mask=mask,
            acceleration=acceleration,
            mask_options=parse_options(mask_option or []),
            samples=samples,
            prior=prior,
            steps=steps,
            alpha=alpha,
            images=images,
            test_images=test_images,
            distribution=Distribution(shape=parse_shape(shape), coils=coils, noise=parse_levels(noise)),
            seed=seed,
            device=device,
            precision=precision,
            out=out,
            overwrite=overwrite,
            progress=progress,
        )
    table = Table("", "images", "outside before", "after", "width before", "after", box=None, header_style="bold")
    for name in ("calibration", "test"):
        if found := record[name]:
            cells = (*(f"{100 * found['risk'][when]:.1f} %" for when in ("before", "after")),)
            cells += (*(f"{found['width'][when]:.3f}" for when in ("before", "after")),)
            table.add_row(name, str(found["images"]), *cells)
    console.print(table)
    console.print(_plain(record["notes"][0]), style="dim", soft_wrap=True)
    cost = f"{record['timings_s']['all']:.0f} s, {record['timings_s']['image']:.1f} s an image"
    console.print(f"factor {record['factor']:.3f} ({cost}) in {_plain(str(path))}", soft_wrap=True)


@app.command()
def tune(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The settings (JSON), for `recon reconstruct --tuned`.")],
    grid: Annotated[list[str], typer.Option("--set-grid", help="Values of an option to try: NAME=A,B,C.")],
    on: On = None,
    method: Annotated[str, typer.Option(help="See `recon methods`.")] = "dds",
    option: Options = None,
    masks: Annotated[str, typer.Option(help="Kinds of masks, KIND,KIND.")] = "random",
    accelerations: Annotated[str, typer.Option(help="Of each of them, NUMBER,NUMBER.")] = "4",
    samples: Annotated[int | None, typer.Option(help="For each image, for methods that draw them; 8.")] = None,
    prior: Annotated[str | None, typer.Option(help="Name of an embedded prior (brain), or a path.")] = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels of a sampler.")] = None,
    images: Annotated[int, typer.Option(help="Simulated scans.")] = 4,
    shape: Shape = "230,180",
    coils: Coils = 8,
    noise: Levels = "0.005,0.02",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Of the prior's network: float32 or bf16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a record that is there.")] = False,
) -> None:
    """Choose a method's options on simulated scans, whose truth is known."""
    from .simulation import Distribution
    from .tune import tune as run

    with progress_bar() as progress:
        record = run(
            folder,
            out=out,
            grid=parse_grid(grid),
            on=on or ("*",),
            method=method,
            options=parse_options(option or []),
            masks=masks.split(","),
            accelerations=parse_numbers("--accelerations", accelerations),
            samples=samples,
            prior=prior,
            steps=steps,
            images=images,
            distribution=Distribution(shape=parse_shape(shape), coils=coils, noise=parse_levels(noise)),
            seed=seed,
            device=device,
            precision=precision,
            overwrite=overwrite,
            progress=progress,
        )
    table = Table("options", "PSNR scaled, in object", "SSIM", "seconds", box=None, header_style="bold")
    for row in record["table"]:
        values = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        chosen = all(record["options"][name] == value for name, value in row["options"].items())
        figures = f"{row['psnr_scaled']:.2f}", f"{row['ssim_scaled']:.4f}", f"{row['seconds']:.1f}"
        table.add_row(values, *figures, style="bold" if chosen else "")
    console.print(table)
    for note in record["notes"]:
        console.print(_plain(note), style="dim", soft_wrap=True)
    console.print(f"settings in {_plain(str(out))}; use them with --tuned {_plain(str(out))}", soft_wrap=True)


@app.command()
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
    prior: Annotated[str | None, typer.Option(help="Name of an embedded prior (brain), or a path.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Of the networks of priors: float32 or bf16.")] = "float32",
    workers: Annotated[int, typer.Option(help="Processes, which share the threads.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, in place of workers.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Compute the cells again that failed.")] = False,
) -> None:
    """Compare methods over masks, accelerations and seeds: tables, pictures and a report in a folder."""
    from .benchmark import display
    from .benchmark.grid import make_grid
    from .benchmark.run import benchmark as run

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
        console.print(_plain(note), style="bold red", soft_wrap=True)
    for cell in found.failed[:10]:  # all of them are in the report
        console.print(f"{_plain(cell.name)}: {_plain(found.records[cell]['error']['message'])}", style="red")
    mend = "; --retry computes the failed ones again" if found.failed else ""
    console.print(
        f"{found.computed} of {len(found.records)} cells computed, {len(found.failed)} failed{mend}", soft_wrap=True
    )
    console.print(f"report in {_plain(str(out / 'report.html'))}", soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar with the time left, shown while the block runs."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def metrics_table(metrics: dict[str, dict[str, float]], results: dict[str, Any] | None = None) -> Table:
    """One row for each method; what is scaled and what is not is in the names of the columns."""
    table = Table(box=None, header_style="bold")
    table.add_column("method")
    names = {
        "psnr": "PSNR (dB)",
        "ssim": "SSIM",
        "nmse": "NMSE",
        "psnr_scaled": "PSNR scaled, in object",
        "ssim_scaled": "SSIM scaled, in object",
    }
    for title in names.values():
        table.add_column(title, justify="right")
    if results:
        table.add_column("seconds", justify="right")
    for method, values in metrics.items():
        row = [f"{values[name]:.2f}" if "psnr" in name else f"{values[name]:.4f}" for name in names]
        seconds = [f"{results[method].run['timings_s']['method']:.1f}"] if results else []
        table.add_row(method, *row, *seconds)
    return table


def parse_options(texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a dictionary; values are numbers, switches (true, false) or names."""
    from .errors import InputError

    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"--set: expected NAME=VALUE, got {text!r}")
        options[name] = _value(value)
    return options


def parse_method_options(texts: list[str]) -> dict[str, dict[str, Any]]:
    """METHOD.NAME=VALUE texts as method -> options."""
    from .errors import InputError

    options: dict[str, dict[str, Any]] = {}
    for key, value in parse_options(texts).items():
        method, dot, name = key.partition(".")
        if not (method and dot and name):
            raise InputError(f"--set: expected METHOD.NAME=VALUE, got {key}={value}")
        options.setdefault(method, {})[name] = value
    return options


def parse_slices(text: str | None) -> tuple[int, int] | None:
    """FIRST:LAST as two numbers."""
    from .errors import InputError

    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit()):
        raise InputError(f"--slices: expected FIRST:LAST such as 0:3, got {text!r}")
    return int(first), int(last)


def parse_range(text: str | None) -> tuple[float, float] | None:
    """FIRST:LAST as two numbers of degrees."""
    from .errors import InputError

    if text is None:
        return None
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise InputError(f"--angular-range: expected FIRST:LAST in degrees such as 0:120, got {text!r}") from error
    return first, last


def parse_shape(text: str) -> tuple[int, int]:
    """Y,X as two numbers."""
    from .errors import InputError

    y, _, x = text.partition(",")
    if not (y.isdigit() and x.isdigit()):
        raise InputError(f"--shape: expected Y,X such as 230,180, got {text!r}")
    return int(y), int(x)


def parse_grid(texts: list[str]) -> dict[str, list[bool | int | float | str]]:
    """NAME=A,B,C texts as a dictionary of lists."""
    from .errors import InputError

    grid: dict[str, list[bool | int | float | str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name and equals and all(values.split(","))) or name in grid:
            raise InputError(f"--set-grid: expected NAME=A,B,C, each name once, got {text!r}")
        grid[name] = [_value(value) for value in values.split(",")]
    return grid


def parse_numbers(option: str, text: str) -> list[float]:
    """Numbers with commas between them."""
    from .errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option}: expected numbers with commas between them, got {text!r}") from error


def parse_whole(option: str, text: str) -> list[int]:
    from .errors import InputError

    numbers = parse_numbers(option, text)
    if not all(number.is_integer() and number >= 1 for number in numbers):
        raise InputError(f"{option}: expected whole numbers, at least 1, got {text!r}")
    return [int(number) for number in numbers]


def parse_levels(text: str) -> tuple[float, float]:
    """LOW,HIGH as two numbers; one number is both."""
    from .errors import InputError

    numbers = parse_numbers("--noise", text)
    if len(numbers) > 2:
        raise InputError(f"--noise: expected LOW,HIGH, got {text!r}")
    return numbers[0], numbers[-1]


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain(text: str) -> str:
    """Text whose brackets rich does not take for markup."""
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
