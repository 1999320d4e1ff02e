"""Training of a denoiser: the EDM loss, averaged weights, checkpoints that survive a kill at any moment."""

import io
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from priors.denoiser import EDM
from priors.library import write_whole


class Images(Protocol):
    """An endless, reproducible series of (y, x) images: the same index gives the same image, whoever asks and when."""

    def __getitem__(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Training ends after `minutes` of training time or `steps`, whichever comes first.

    Attributes
    ----------
    minutes : training time; pauses (a stopped process) do not count.
    steps : optimiser steps.
    images_per_step, crops_per_image, crop : a batch is images_per_step * crops_per_image patches of crop x crop pixels.
    shards : threads that share a batch. On a processor that others use too, two shards with
        torch.set_num_threads(1) need 30 % less time than two threads within every operation.
    learning_rate, warmup : AdamW's step; it rises over `warmup` steps, stays, and falls to zero over the second half.
    sigma_min, sigma_max : noise range, standard deviation per real component.
    sigma_median, sigma_spread : log-normal part of the noise distribution (spread in ln sigma).
    log_uniform : share of patches whose sigma is instead log-uniform over the whole range.
    sigma_data : standard deviation per real component of the images.
    ema : relative widths of the power-function averages that are kept; validation chooses among them.
    bf16 : compute in bfloat16 (autocast); weights and the preconditioning stay in float32. Twice as fast where the
        processor has bfloat16 instructions; torch.compile then adds nothing.
    seed : of crops and noise.
    workers : processes that prepare images ahead (0: none, in the training process itself).
    checkpoint_minutes, validate_minutes : training time between checkpoints, and between validations.
    """

    minutes: float = math.inf
    steps: float = math.inf
    images_per_step: int = 4
    crops_per_image: int = 2
    crop: int = 128
    shards: int = 2
    learning_rate: float = 8e-4
    warmup: int = 100
    sigma_min: float = 0.002
    sigma_max: float = 10.0
    sigma_median: float = 0.12
    sigma_spread: float = 1.1
    log_uniform: float = 0.25
    sigma_data: float = 0.3
    ema: tuple[float, ...] = (0.05, 0.1)
    bf16: bool = True
    seed: int = 0
    workers: int = 1
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 12.0

    def __post_init__(self) -> None:
        if math.isinf(self.minutes) and math.isinf(self.steps):
            raise ValueError("training needs an end: give minutes or steps")


PAUSE = 15.0  # seconds: a step that took longer was stopped from outside, and is not counted as training time


def train(
    network: nn.Module,
    images: Images,
    config: TrainConfig,
    *,
    folder: Path,
    validation: Sequence[Tensor] = (),
    on_export: Callable[[EDM, dict[str, Any]], None] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> EDM:
    """Train a network to denoise; continue from the checkpoint in `folder` if there is one.

    Killed at any moment and called again with the same arguments, it ends with the weights of an uninterrupted run.

    Parameters
    ----------
    network : F(x, noise label) as in priors.denoiser.EDM, on the device to train on.
    images : images[i] is a (y, x) training image, for every i >= 0, the same whenever it is asked for.
    config : how to train.
    folder : of the checkpoint.
    validation : (y, x) images that choose among the averages of the weights.
    on_export : called after each validation with the denoiser (best average so far in place) and the record of it.
    progress : called after each step with step, done (0 to 1), loss (running mean) and seconds (of training).

    Returns
    -------
    The denoiser, with the average of the weights that the last validation found best.

    Raises
    ------
    ValueError
        If the checkpoint belongs to another network, or the images are smaller than the crops.
    FloatingPointError
        If the loss is not finite; the checkpoint is from before.

    References
    ----------
    Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS (2022).
    Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR (2024): the averages.
    """
    denoiser = edm(network, config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    averages = {width: [p.detach().clone() for p in network.parameters()] for width in config.ema}
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "loss": math.nan, "history": []}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state |= restore(checkpoint, network, optimizer, averages)
    saved = validated = state["seconds"]
    batches = load_batches(images, config, start=state["step"])
    with ThreadPoolExecutor(config.shards) as pool:
        while (done := max(state["step"] / config.steps, state["seconds"] / 60 / config.minutes)) < 1:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(done, state["step"], config)
            loss = take_step(denoiser, optimizer, next(batches), config, state["step"], pool)
            state["step"] += 1
            update_averages(averages, network, state["step"])
            state["loss"] = loss if math.isnan(state["loss"]) else 0.99 * state["loss"] + 0.01 * loss
            seconds = time.perf_counter() - began
            state["seconds"] += seconds if seconds < PAUSE else 0.0
            if state["seconds"] - validated >= 60 * config.validate_minutes:
                validated = state["seconds"]
                state["history"].append(validate(denoiser, averages, validation, state, on_export))
            if state["seconds"] - saved >= 60 * config.checkpoint_minutes:
                saved = state["seconds"]
                save_checkpoint(checkpoint, network, optimizer, averages, state)
            if progress is not None:
                progress({"step": state["step"], "done": done, "loss": state["loss"], "seconds": state["seconds"]})
    save_checkpoint(checkpoint, network, optimizer, averages, state)
    last = validate(denoiser, averages, validation, state, on_export)
    load_average(network, averages[last["best"]])
    return denoiser


def take_step(
    denoiser: EDM,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    config: TrainConfig,
    step: int,
    pool: ThreadPoolExecutor,
) -> float:
    """One optimiser step; everything random in it comes from the seed and the step's number."""
    rng = torch.Generator().manual_seed((config.seed << 40) + step)
    x0 = crops(images, config, rng).to(next(denoiser.parameters()).device)
    loss = accumulate_gradients(denoiser, x0, config, rng, pool)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {step}: lower the learning rate, or look at the images")
    nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
    optimizer.step()
    return loss


def edm(network: nn.Module, config: TrainConfig) -> EDM:
    return EDM(network, sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=config.sigma_data)


def schedule(done: float, step: int, config: TrainConfig) -> float:
    return min(1.0, (step + 1) / config.warmup) * min(1.0, 2 * (1 - done))


def load_batches(images: Images, config: TrainConfig, *, start: int) -> Iterator[Tensor]:
    """Batches of whole images from step `start` on, prepared ahead by spawned workers (0: in this process)."""
    loader: DataLoader[Tensor] = DataLoader(
        images,  # type: ignore[arg-type]
        batch_size=config.images_per_step,
        sampler=range(start * config.images_per_step, 2**40),
        num_workers=config.workers,
        multiprocessing_context="spawn" if config.workers else None,  # forked workers hang once OpenMP has run
        prefetch_factor=8 if config.workers else None,
        generator=torch.Generator(),  # else the loader draws from the global random state
        worker_init_fn=one_thread if config.workers else None,
    )
    return iter(loader)


def one_thread(_: int) -> None:
    torch.set_num_threads(1)


def crops(images: Tensor, config: TrainConfig, rng: torch.Generator) -> Tensor:
    """Random crop x crop patches, flipped and transposed, each with its own global phase."""
    if min(images.shape[1:]) < config.crop:
        raise ValueError(f"images of {tuple(images.shape[1:])} pixels are smaller than crops of {config.crop}")
    patches = []
    for image in images.repeat_interleave(config.crops_per_image, dim=0):
        top, left = (int(torch.randint(0, size - config.crop + 1, (), generator=rng)) for size in image.shape)
        patch = image[top : top + config.crop, left : left + config.crop]
        up, side, swap = (torch.rand(3, generator=rng) < 0.5).tolist()
        patch = patch.flip(0) if up else patch
        patch = patch.flip(1) if side else patch
        patches.append(patch.T if swap else patch)
    x0 = torch.stack(patches)
    if x0.is_complex():
        x0 = x0 * torch.exp(2j * torch.pi * torch.rand(len(x0), 1, 1, generator=rng))
    return x0


def draw_sigmas(count: int, config: TrainConfig, rng: torch.Generator) -> Tensor:
    """Noise levels: a log-normal cut to the range, by inverting its distribution function, mixed with a log-uniform."""
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    u = torch.rand(count, generator=rng, dtype=torch.float64)
    bounds = (torch.tensor([low, high], dtype=torch.float64) - math.log(config.sigma_median)) / config.sigma_spread
    a, b = torch.special.ndtr(bounds)
    normal = math.log(config.sigma_median) + config.sigma_spread * torch.special.ndtri(a + u * (b - a))
    uniform = low + u * (high - low)
    chosen = torch.rand(count, generator=rng) < config.log_uniform
    return torch.where(chosen, uniform, normal).exp().float()


def accumulate_gradients(
    denoiser: EDM, x0: Tensor, config: TrainConfig, rng: torch.Generator, pool: ThreadPoolExecutor
) -> float:
    """Set the gradients of the mean loss over the batch, each shard of it differentiated in a thread of its own.

    With operations on one thread each, shards meet once a step instead of once an operation: on a processor that others
    use too, that is the difference between waiting and working.
    """
    parameters = list(denoiser.network.parameters())
    sigma = draw_sigmas(len(x0), config, rng).to(x0.device)
    noise = draw_noise(x0, rng)

    def differentiate(shard: tuple[Tensor, Tensor, Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        loss = edm_loss(denoiser, *shard, config) * len(shard[0]) / len(x0)
        return loss.item(), torch.autograd.grad(loss, parameters)

    parts = zip(x0.chunk(config.shards), sigma.chunk(config.shards), noise.chunk(config.shards), strict=True)
    losses, gradients = zip(*pool.map(differentiate, parts), strict=True)
    for parameter, *shares in zip(parameters, *gradients, strict=True):
        parameter.grad = sum(shares[1:], start=shares[0])
    return sum(losses)


def edm_loss(denoiser: EDM, x0: Tensor, sigma: Tensor, noise: Tensor, config: TrainConfig) -> Tensor:
    """lambda(sigma) |D(x0 + sigma n, sigma) - x0|^2 with lambda = 1 / c_out^2 (Karras et al. 2022, table 1)."""
    with torch.autocast(x0.device.type, torch.bfloat16, enabled=config.bf16):
        error = denoiser(x0 + sigma[:, None, None] * noise, sigma) - x0
    weight = (sigma**2 + config.sigma_data**2) / (sigma * config.sigma_data) ** 2
    return (weight[:, None, None] * error.abs().square()).mean()


def draw_noise(x0: Tensor, rng: torch.Generator) -> Tensor:
    """Noise like x0, of unit standard deviation per real component, drawn on the CPU whatever the device."""
    noise = torch.randn((*x0.shape, 2) if x0.is_complex() else x0.shape, generator=rng).to(x0.device)
    return torch.view_as_complex(noise) if x0.is_complex() else noise


def update_averages(averages: dict[float, list[Tensor]], network: nn.Module, step: int) -> None:
    """average = beta average + (1 - beta) theta with beta = (1 - 1/step)^(gamma + 1) (Karras et al. 2024)."""
    parameters = [p.detach() for p in network.parameters()]
    for width, average in averages.items():
        beta = (1 - 1 / step) ** (power(width) + 1)
        torch._foreach_lerp_(average, parameters, 1 - beta)


def power(width: float) -> float:
    """The exponent gamma of an averaging profile of relative width `width`: width^2 = (g+1) / ((g+2)^2 (g+3))."""
    low, high = 0.0, 1e6
    for _ in range(100):
        g = (low + high) / 2
        low, high = (g, high) if (g + 1) / ((g + 2) ** 2 * (g + 3)) > width**2 else (low, g)
    return low


def load_average(network: nn.Module, average: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), average, strict=True):
            parameter.copy_(value)


def validate(
    denoiser: EDM,
    averages: dict[float, list[Tensor]],
    images: Sequence[Tensor],
    state: dict[str, Any],
    on_export: Callable[[EDM, dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """The denoising error of every average; the best is handed to on_export. The weights in training are put back."""
    training = [p.detach().clone() for p in denoiser.network.parameters()]
    errors = {}
    for width, average in averages.items():
        load_average(denoiser.network, average)
        errors[width] = denoising_error(denoiser, images)
    best = min(errors, key=lambda width: sum(math.log(e) for e in errors[width].values()))
    record = {"step": state["step"], "seconds": state["seconds"], "loss": state["loss"], "best": best, "rmse": errors}
    load_average(denoiser.network, averages[best])
    if on_export is not None:
        on_export(denoiser, record)
    load_average(denoiser.network, training)
    return record


def denoising_error(
    denoiser: EDM, images: Sequence[Tensor], *, sigmas: Sequence[float] = (0.03, 0.1, 0.3, 1.0)
) -> dict[float, float]:
    """Root mean square error per real component after denoising, by noise level; the noise is the same every time."""
    errors: dict[float, float] = {}
    for sigma in sigmas if len(images) else ():
        total, count = 0.0, 0
        for i, x0 in enumerate(images):
            rng = torch.Generator().manual_seed(i)
            with torch.no_grad():
                error = denoiser((x0 + sigma * draw_noise(x0, rng))[None], sigma)[0] - x0
            total += error.abs().square().sum().item()
            count += x0.numel() * (2 if x0.is_complex() else 1)
        errors[sigma] = math.sqrt(total / count)
    return errors


def save_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: dict[float, list[Tensor]],
    state: dict[str, Any],
) -> None:
    """Written beside and renamed: a kill leaves the old checkpoint or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averages": averages,
        "state": state,
    }
    content = io.BytesIO()
    torch.save(record, content)
    write_whole(path, content.getvalue())  # says why it cannot, which torch.save does not


def restore(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, averages: dict[float, list[Tensor]]
) -> dict[str, Any]:
    try:
        record = torch.load(path, weights_only=True, map_location=next(network.parameters()).device)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint: train in another folder, or remove it") from error
    expected = {key: value.shape for key, value in network.state_dict().items()}
    if expected != {key: value.shape for key, value in record["network"].items()}:
        raise ValueError(f"{path} is the checkpoint of another network: train in another folder, or remove it")
    network.load_state_dict(record["network"])
    optimizer.load_state_dict(record["optimizer"])
    averages.update(record["averages"])
    return record["state"]
