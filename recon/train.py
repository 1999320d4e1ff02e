"""`recon train`: a prior from a folder of scans, a denoiser or a network that reconstructs directly."""

import fnmatch
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recon.errors import InputError, ReconError
from recon.io.atomic import writing
from recon.records import keep_recipe
from recon.training_images import TrainingImages, Volume
from recon.training_kinds import KINDS, Kind

if TYPE_CHECKING:
    from priors import EDM, Supervised
    from priors.train import Examples, Objective, TrainConfig


def train(
    folder: Path | None,
    *,
    out: Path,
    task: str = "denoiser",
    images: str = "mri",
    mask: str | None = None,
    accelerations: Sequence[float] | None = None,
    widths: Sequence[int] | None = None,
    minutes: float = 60.0,
    steps: int | None = None,
    exclude: Sequence[str] = (),
    validation: Sequence[str] = (),
    label_share: float = 1 / 3,
    name: str = "prior",
    start: str | Path | None = None,
    learning_rate: float = 8e-4,
    card: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """Train a prior on a folder of fastMRI files, NIfTI, DICOM or FreeSurfer label maps, or on synthetic images.

    The same command continues where an earlier one was stopped. The best prior so far lies in `out` from the first
    validation on (after 12 minutes).

    Parameters
    ----------
    folder : of scans, searched with its subfolders; None for synthetic images.
    out : of checkpoints and of the prior, `name`.safetensors with its card `name`.json.
    task : "denoiser"; or a network for the method of that name: of mri "unet" or "varnet", of head-ct "fbp-unet" or
        "fbp-gan".
    images : "mri", complex images of the folder's scans; or real ones, "head-ct", CT-like renderings of the folder's
        label maps, or "discs-ct", synthetic discs with holes.
    mask, accelerations : of unet and varnet: the pattern of lines, and what to choose from; random, 4 and 8 if None.
    widths : channels of a new U-Net at each resolution; None: those of `priors.networks.UNet`, or of the task.
    minutes : of training, over all calls together; while the process is stopped, time does not count.
    steps : stop after so many steps, if that is sooner.
    exclude : patterns of file names to leave out.
    validation : patterns of file names to validate on; if none, the last volume.
    label_share : share of training images that are drawn from label maps, where there are both.
    name : of the prior.
    start : prior to start from, by its name or path (fine-tuning), for varnet also a denoiser, for fbp-gan also an
        fbp-unet, for a denoiser of real images also one of complex ones; None: random weights.
    learning_rate : of AdamW at its highest.
    card : JSON file with what the card shall say besides: licences, intended use.
    device : to train on.
    seed : of the initial weights, the images and the noise.

    Returns
    -------
    The path of the card.

    Raises
    ------
    ReconError
        If there is nothing to train on, an argument is out of range or has no effect, the prior to start from is
        unknown or of another kind, the checkpoint is of another network or recipe, or `out` cannot be written;
        NonFiniteError if the loss is not finite.
    """
    import torch

    from priors import EDM, Supervised, save
    from priors.train import train as optimise

    from .methods.diffusion import NonFiniteError
    from .settings import Settings

    if not (minutes > 0 and (steps is None or steps > 0)):
        raise InputError(f"expected training of more than 0 minutes and steps, got {minutes:g} minutes, {steps} steps")
    if not 0 < learning_rate < math.inf:
        raise InputError(f"expected a learning rate above 0, got {learning_rate:g}")
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if task not in ("unet", "varnet") and not (mask is None and accelerations is None):
        why = "a denoiser learns from images alone" if task == "denoiser" else f"{task} learns from CT"
        raise InputError(f"mask, accelerations: {why}; leave them out, or train a varnet")
    if start is not None and widths is not None:
        raise InputError("widths: those of the prior to start from are kept; leave them out")
    shape: dict[str, Any] = {} if widths is None else {"widths": tuple(widths)}
    if images not in KINDS:
        raise InputError(f"unknown images {images!r}; expected one of {', '.join(KINDS)}")
    kind = KINDS[images]
    if images not in TASKS[task]:
        raise InputError(f"task {task} is for images of {', '.join(TASKS[task])}, got {images}; train a denoiser")
    if kind.is_synthetic and (folder is not None or exclude or validation):
        raise InputError(f"images {images} are synthetic: leave out folder, exclude and validation")
    if folder is None and not kind.is_synthetic:
        raise InputError(f"images {images} are made of scans: give the folder")
    Settings(device=device, seed=seed).resolved()
    first = None if start is None else load_start(start, task, is_complex=kind.is_complex)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    training, held_out = split(read(folder, exclude), validation) if folder is not None else ({}, {})
    if training:
        print(f"training on {', '.join(sorted(training))}; validating on {', '.join(sorted(held_out))}")
    loop: dict[str, Any] = {
        "minutes": minutes,
        "steps": math.inf if steps is None else steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "bf16": device != "cpu" or has_bf16(),
        "shards": torch.get_num_threads() if device == "cpu" else 1,
    }
    volumes = weighted(training, label_share), weighted(held_out, label_share)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights are drawn from the global stream, which is put back
        if task == "denoiser":
            work = denoising(volumes, loop, first, kind=kind, shape=shape, device=device)
        elif task in ("fbp-unet", "fbp-gan"):
            work = enhancement(volumes, loop, first, shape=shape, task=task, device=device)
        else:
            data = {"mask": mask or "random", "accelerations": tuple(accelerations or (4.0, 8.0))}
            work = supervision(volumes, loop, first, shape=shape, task=task, data=data, device=device)
    config, shards = work.config, work.config.shards
    notes = json.loads(card.read_text()) if card is not None else {}
    described = out / f"{name}.json"

    recipe = {
        "images": images,
        **work.recipe,
        **finite(asdict(config)),
        "files": sorted(training),
        "validation": sorted(held_out),
    }
    if first is not None:
        recipe["start"] = {key: first.card.get(key) for key in ("name", "sha256")}
    keep_recipe(out, recipe)

    def export(model: EDM | Supervised, record: dict[str, Any]) -> None:
        facts = {**kind.facts, **work.facts, "recipe": recipe, "training": record, **notes}
        save(model, described, card=facts, dtype=torch.float16)

    try:
        with writing(out), progress_bar() as report, single_threaded(shards):
            optimise(
                work.objective,
                work.examples,
                config,
                folder=out,
                validation=[work.tuning[i] for i in range(VALIDATION_IMAGES)],
                on_export=export,
                progress=report,
            )
    except ReconError:
        raise
    except FloatingPointError as error:
        raise NonFiniteError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
    return described


def has_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; without them it is slower than float32."""
    import torch

    return bool({"avx512_bf16", "amx_bf16", "bf16"} & {k for k, v in torch.cpu.get_capabilities().items() if v})


TASKS = {
    "denoiser": tuple(KINDS),
    "unet": ("mri",),
    "varnet": ("mri",),
    "fbp-unet": ("head-ct",),
    "fbp-gan": ("head-ct",),
}
"""Each with the images that it is for."""
VALIDATION_IMAGES = 8


@dataclass(frozen=True)
class Work:
    """A task: what is trained on which examples, how, and what the card says of it.

    Parameters
    ----------
    objective, examples, config : as of priors.train.train.
    tuning : examples to validate on.
    recipe, facts : for the card.
    """

    objective: "Objective"
    examples: "Examples"
    tuning: "Examples"
    config: "TrainConfig"
    recipe: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def denoising(
    volumes: tuple[list[Volume], list[Volume]],
    loop: dict[str, Any],
    first: Any,
    *,
    kind: Kind,
    shape: dict[str, Any],
    device: str,
) -> Work:
    """A denoiser; `volumes` are to train and to validate on, `first` is the prior to start from."""
    from priors.denoising import Denoising, DenoisingConfig
    from priors.networks import UNet

    noise = {} if first is None else {k: first.card["noise"][k] for k in ("sigma_min", "sigma_max", "sigma_data")}
    config = DenoisingConfig(**kind.batch | noise, **loop)
    arguments = {"is_complex": kind.is_complex, **kind.network, **shape}
    network = (new(UNet, arguments) if first is None else first.network).to(device)
    images, tuning = (kind.images(v, config.seed + i) for i, v in enumerate(volumes))
    return Work(Denoising(network, config), images, tuning, config)


def supervision(
    volumes: tuple[list[Volume], list[Volume]],
    loop: dict[str, Any],
    first: Any,
    *,
    shape: dict[str, Any],
    task: str,
    data: dict[str, Any],
    device: str,
) -> Work:
    """A network that reconstructs, by simulated scans of the same images under the mask and accelerations of `data`."""
    from priors import PostProcessing, VarNet
    from priors.train import TrainConfig

    from .training_scans import FACTS, Supervision, TrainingScans

    config = TrainConfig(**loop, images_per_step=2, warmup=30)
    scans, tuning = (
        TrainingScans(TrainingImages(v, shape=(256, 256), seed=config.seed + i), **data, seed=config.seed + i)
        for i, v in enumerate(volumes)
    )
    kind = {"unet": PostProcessing, "varnet": VarNet}[task]
    network = (new(kind, shape) if first is None else first).to(device)
    return Work(Supervision(network), scans, tuning, config, recipe={"task": task, **data}, facts=FACTS)


def enhancement(
    volumes: tuple[list[Volume], list[Volume]],
    loop: dict[str, Any],
    first: Any,
    *,
    shape: dict[str, Any],
    task: str,
    device: str,
) -> Work:
    """A network that takes the noise out of filtered back-projections, by simulated scans; a GAN if so asked."""
    from priors import PostProcessing
    from priors.enhancement import Enhancement
    from priors.gan.patch import AdversarialEnhancement, PatchDiscriminator
    from priors.train import TrainConfig

    from .training_ct_scans import FACTS, LowDoseScans

    config = TrainConfig(**loop, images_per_step=1, warmup=50)
    scans, tuning = (
        LowDoseScans(v, seed=config.seed + i, repeats=n) for i, (v, n) in enumerate(zip(volumes, (6, 1), strict=True))
    )
    arguments = {"task": task, "is_complex": False, "widths": (32, 64, 96), "blocks": (2, 2, 2), **shape}
    network = (new(PostProcessing, arguments) if first is None else first).to(device)
    objective = (
        AdversarialEnhancement(network, PatchDiscriminator().to(device)) if task == "fbp-gan" else Enhancement(network)
    )
    return Work(objective, scans, tuning, config, recipe={"task": task}, facts=FACTS)


def new(kind: Callable[..., Any], shape: dict[str, Any]) -> Any:
    try:
        return kind(**shape)
    except ValueError as error:
        raise InputError(str(error)) from error


def load_start(name_or_path: str | Path, task: str, *, is_complex: bool = True) -> "EDM | Supervised":
    """The prior to fine-tune, its weights ready for training.

    A denoiser of complex images is unrolled where that is the task, and loses a channel where images are real; a
    fbp-unet may become a fbp-gan.
    """
    from priors import EDM, PostProcessing, Supervised, VarNet, load

    try:
        prior = load(name_or_path)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"--start: {error}") from error
    if task == "varnet" and isinstance(prior, EDM) and prior.is_complex:
        card, prior = prior.card, VarNet.unrolled(prior)
        prior.card = card
    if not is_complex and isinstance(prior, EDM) and prior.is_complex:
        card, prior = prior.card, EDM(prior.network.of_real_images(), **prior.card["noise"])  # type: ignore[operator]
        prior.card = card
    if task == "fbp-gan" and isinstance(prior, PostProcessing) and prior.task == "fbp-unet":
        card, prior = prior.card, prior.for_task(task)
        prior.card = card
    kind = prior.task if isinstance(prior, Supervised) else "denoiser"
    if kind != task:
        raise InputError(f"--start: expected a prior for the task {task}, got one for {kind}")
    if (prior.is_complex, prior.ndim) != (is_complex, 2):
        expected, got = (
            f"{'complex' if c else 'real'} {n}-D" for c, n in ((is_complex, 2), (prior.is_complex, prior.ndim))
        )
        raise InputError(f"--start: expected a prior of {expected} images, got one of {got} images")
    return prior.train().requires_grad_(True)


def read(folder: Path, exclude: Sequence[str]) -> dict[str, list[Volume]]:
    from recon.training_volumes import read_folder

    return read_folder(folder, exclude=exclude)


def split(
    volumes: dict[str, list[Volume]], validation: Sequence[str]
) -> tuple[dict[str, list[Volume]], dict[str, list[Volume]]]:
    """Training and validation volumes, by file name."""
    patterns = validation or [max(volumes)]
    held_out = {n: v for n, v in volumes.items() if any(fnmatch.fnmatch(n, p) for p in patterns)}
    training = {n: v for n, v in volumes.items() if n not in held_out}
    if not held_out:
        raise InputError(f"no file matches {', '.join(patterns)}: there are {', '.join(sorted(volumes))}")
    if not training:
        raise InputError(
            f"nothing is left to train on once {', '.join(sorted(held_out))} is kept for validation: give two files "
            "at least"
        )
    return training, held_out


def weighted(volumes: dict[str, list[Volume]], label_share: float) -> list[Volume]:
    """Every slice as likely as any other, but label maps together `label_share` of the images."""
    every = [volume for found in volumes.values() for volume in found]
    slices = [sum(v.data.shape[a] for a in v.axes) for v in every]
    total = {
        kind: sum(n for v, n in zip(every, slices, strict=True) if (v.tissues is None) is kind)
        for kind in (True, False)
    }
    share = {True: 1 - label_share, False: label_share}
    return [
        replace(v, weight=share[v.tissues is None] * n / total[v.tissues is None])
        for v, n in zip(every, slices, strict=True)
    ]


@contextmanager
def single_threaded(shards: int) -> Iterator[None]:
    """Operations on one thread each while shards of the batch run in parallel."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if shards > 1 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: what is not limited is left out."""
    return {key: value for key, value in values.items() if value != math.inf}


@contextmanager
def progress_bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that takes the reports of priors.train and shows them with the time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=1.0, left="")

        def report(state: dict[str, Any]) -> None:
            done, seconds = state["done"], state["seconds"]
            left = f"{seconds * (1 - done) / done / 60:.0f} min left" if done > 0 else ""
            text = f"step {state['step']}, loss {state['loss']:.3f}"
            bar.update(task, completed=done, left=left, description=text)

        yield report
