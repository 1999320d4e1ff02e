"""Training of a network by any loss: averaged weights, checkpoints that survive a kill at any moment."""

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

from priors.library import write_whole


class Examples(Protocol):
    """An endless, reproducible series: the same index gives the same example, whoever asks and when.

    An example is a tensor or a tuple of tensors; all of a series have the same shapes.
    """

    def __getitem__(self, index: int) -> Any: ...


class Player(Protocol):
    """A network and its loss.

    Attributes
    ----------
    model : whose parameters are trained, on the device to train on.
    """

    model: Any

    def loss(self, *drawn: Tensor) -> Tensor:
        """The mean loss over what was drawn, or over a shard of it."""
        ...


class Objective(Player, Protocol):
    """What is trained, and by which loss.

    Attributes
    ----------
    opponent : a second network that the loss depends on, trained on the same draws after each step of the model: the
        discriminator of a GAN. None if there is none.
    """

    opponent: Player | None

    def draw(self, batch: Any, rng: torch.Generator) -> tuple[Tensor, ...]:
        """What a step sees of a batch of examples; all that is random in it comes from rng."""
        ...

    def errors(self, examples: Sequence[Any]) -> dict[float, float]:
        """Errors on examples that were held back, by what tells them apart (a noise level, an acceleration)."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Training ends after `minutes` of training time or `steps`, whichever comes first.

    Attributes
    ----------
    minutes : training time; pauses (a stopped process) do not count.
    steps : optimiser steps.
    images_per_step : examples in a batch.
    shards : threads that share a batch. On a processor that others use too, two shards with
        torch.set_num_threads(1) need 30 % less time than two threads within every operation.
    learning_rate, warmup : AdamW's step; it rises over `warmup` steps, stays, and falls to zero over the second half.
    ema : relative widths of the power-function averages that are kept; validation chooses among them.
    bf16 : compute in bfloat16 (autocast); weights stay in float32. Twice as fast where the processor has bfloat16
        instructions; torch.compile then adds nothing.
    seed : of what is drawn.
    workers : processes that prepare examples ahead (0: none, in the training process itself).
    checkpoint_minutes, validate_minutes : training time between checkpoints, and between validations.
    """

    minutes: float = math.inf
    steps: float = math.inf
    images_per_step: int = 4
    shards: int = 2
    learning_rate: float = 8e-4
    warmup: int = 100
    ema: tuple[float, ...] = (0.05, 0.1)
    bf16: bool = True
    seed: int = 0
    workers: int = 1
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 12.0

    def __post_init__(self) -> None:
        if math.isinf(self.minutes) and math.isinf(self.steps):
            raise ValueError("training needs an end: give minutes or steps")


@dataclass(frozen=True)
class Trained:
    """A player with its optimiser."""

    player: Player
    optimizer: torch.optim.Optimizer

    def state(self) -> dict[str, Any]:
        return {"network": self.player.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def shapes(self) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in self.player.model.state_dict().items()}

    def restore(self, state: dict[str, Any]) -> None:
        self.player.model.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


PAUSE = 15.0  # seconds: a step that took longer was stopped from outside, and is not counted as training time


def train(
    objective: Objective,
    examples: Examples,
    config: TrainConfig,
    *,
    folder: Path,
    validation: Sequence[Any] = (),
    on_export: Callable[[Any, dict[str, Any]], None] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """Train a network; continue from the checkpoint in `folder` if there is one.

    Killed at any moment and called again with the same arguments, it ends with the weights of an uninterrupted run.

    Parameters
    ----------
    objective : the network and its loss.
    examples : to train on, for every index >= 0.
    config : how to train.
    folder : of the checkpoint.
    validation : examples that choose among the averages of the weights.
    on_export : called after each validation with the model (best average so far in place) and the record of it.
    progress : called after each step with step, done (0 to 1), loss (running mean) and seconds (of training).

    Returns
    -------
    The model, with the average of the weights that the last validation found best.

    Raises
    ------
    ValueError
        If the checkpoint belongs to another network, or the objective refuses the examples.
    FloatingPointError
        If the loss is not finite; the checkpoint is from before.

    References
    ----------
    Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR (2024): the averages.
    """
    model = objective.model
    players = [objective] if objective.opponent is None else [objective, objective.opponent]
    trained = [
        Trained(p, torch.optim.AdamW(p.model.parameters(), lr=config.learning_rate, weight_decay=1e-4)) for p in players
    ]
    averages = {width: [p.detach().clone() for p in model.parameters()] for width in config.ema}
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "loss": math.nan, "history": []}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state |= restore(checkpoint, trained, averages)
    saved = validated = state["seconds"]
    batches = load_batches(examples, config, start=state["step"])
    with ThreadPoolExecutor(config.shards) as pool:
        while (done := max(state["step"] / config.steps, state["seconds"] / 60 / config.minutes)) < 1:
            began = time.perf_counter()
            for group in (group for one in trained for group in one.optimizer.param_groups):
                group["lr"] = config.learning_rate * schedule(done, state["step"], config)
            loss = take_step(objective, trained, next(batches), config, state["step"], pool)
            state["step"] += 1
            update_averages(averages, model, state["step"])
            state["loss"] = loss if math.isnan(state["loss"]) else 0.99 * state["loss"] + 0.01 * loss
            seconds = time.perf_counter() - began
            state["seconds"] += seconds if seconds < PAUSE else 0.0
            if state["seconds"] - validated >= 60 * config.validate_minutes:
                validated = state["seconds"]
                state["history"].append(validate(objective, averages, validation, state, on_export))
            if state["seconds"] - saved >= 60 * config.checkpoint_minutes:
                saved = state["seconds"]
                save_checkpoint(checkpoint, trained, averages, state)
            if progress is not None:
                progress({"step": state["step"], "done": done, "loss": state["loss"], "seconds": state["seconds"]})
    save_checkpoint(checkpoint, trained, averages, state)
    last = validate(objective, averages, validation, state, on_export)
    load_average(model, averages[last["best"]])
    return model


def take_step(
    objective: Objective,
    trained: Sequence[Trained],
    batch: Any,
    config: TrainConfig,
    step: int,
    pool: ThreadPoolExecutor,
) -> float:
    """One step of each optimiser; everything random in it comes from the seed and the step's number.

    Returns
    -------
    The loss of the first.
    """
    rng = torch.Generator().manual_seed((config.seed << 40) + step)
    device = next(objective.model.parameters()).device
    drawn = tuple(part.to(device) for part in objective.draw(batch, rng))
    losses = []
    for one in trained:
        losses.append(loss := accumulate_gradients(one.player, drawn, config, pool))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}: lower the learning rate, or look at the images"
            )
        nn.utils.clip_grad_norm_(one.player.model.parameters(), 1.0)
        one.optimizer.step()
    return losses[0]


def schedule(done: float, step: int, config: TrainConfig) -> float:
    return min(1.0, (step + 1) / config.warmup) * min(1.0, 2 * (1 - done))


def load_batches(examples: Examples, config: TrainConfig, *, start: int) -> Iterator[Any]:
    """Batches of examples from step `start` on, prepared ahead by spawned workers (0: in this process)."""
    loader: DataLoader[Any] = DataLoader(
        examples,  # type: ignore[arg-type]
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


def accumulate_gradients(
    player: Player, drawn: tuple[Tensor, ...], config: TrainConfig, pool: ThreadPoolExecutor
) -> float:
    """Set the gradients of the mean loss over the batch, each shard of it differentiated in a thread of its own.

    With operations on one thread each, shards meet once a step instead of once an operation: on a processor that others
    use too, that is the difference between waiting and working.
    """
    parameters, count = list(player.model.parameters()), len(drawn[0])

    def differentiate(shard: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor, ...]]:
        with torch.autocast(shard[0].device.type, torch.bfloat16, enabled=config.bf16):
            loss = player.loss(*shard) * len(shard[0]) / count
        return loss.item(), torch.autograd.grad(loss, parameters)

    shards = zip(*(part.chunk(config.shards) for part in drawn), strict=True)
    losses, gradients = zip(*pool.map(differentiate, shards), strict=True)
    for parameter, *shares in zip(parameters, *gradients, strict=True):
        parameter.grad = sum(shares[1:], start=shares[0])
    return sum(losses)


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
    objective: Objective,
    averages: dict[float, list[Tensor]],
    examples: Sequence[Any],
    state: dict[str, Any],
    on_export: Callable[[Any, dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """The errors of every average; the best is handed to on_export. The weights in training are put back."""
    model = objective.model
    training = [p.detach().clone() for p in model.parameters()]
    errors = {}
    for width, average in averages.items():
        load_average(model, average)
        errors[width] = objective.errors(examples)
    best = min(errors, key=lambda width: sum(math.log(e) for e in errors[width].values()))
    record = {"step": state["step"], "seconds": state["seconds"], "loss": state["loss"], "best": best, "rmse": errors}
    load_average(model, averages[best])
    if on_export is not None:
        on_export(model, record)
    load_average(model, training)
    return record


def save_checkpoint(
    path: Path, trained: Sequence[Trained], averages: dict[float, list[Tensor]], state: dict[str, Any]
) -> None:
    """Written beside and renamed: a kill leaves the old checkpoint or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model, *opponents = (one.state() for one in trained)
    content = io.BytesIO()
    torch.save({**model, "opponents": opponents, "averages": averages, "state": state}, content)
    write_whole(path, content.getvalue())  # says why it cannot, which torch.save does not


def restore(path: Path, trained: Sequence[Trained], averages: dict[float, list[Tensor]]) -> dict[str, Any]:
    device = next(trained[0].player.model.parameters()).device
    try:
        record = torch.load(path, weights_only=True, map_location=device)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint: train in another folder, or remove it") from error
    states = [record, *record.get("opponents", [])]
    found = [{key: value.shape for key, value in state["network"].items()} for state in states]
    if found != [one.shapes() for one in trained]:
        raise ValueError(f"{path} is the checkpoint of another network: train in another folder, or remove it")
    for one, state in zip(trained, states, strict=True):
        one.restore(state)
    averages.update(record["averages"])
    return record["state"]
