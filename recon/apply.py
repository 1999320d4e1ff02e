"""One method on prepared data: what it needs by name, samples in batches, each batch kept once it is done."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from operators.mri import Sense
from priors.denoiser import Denoiser, within
from priors.generator import Generator, probability_flow
from priors.supervised import Supervised

from .errors import InputError, ReconError
from .likelihood import Gaussian
from .methods import inputs_of, levels_of, method_named, options_of, takes_prior
from .methods.csgm import CountedGenerator
from .methods.diffusion import Counted
from .modalities import Prepared, modality_of
from .noise import Noise
from .partial import PartialResults
from .settings import Settings

# Samples drawn in one batch: it bounds the memory and what an interruption loses, not the result.
BATCH = 8

Report = Callable[[float], None]
"""Called with the fraction that is done, from 0 to 1."""


@dataclass(frozen=True)
class Images:
    """What a method made.

    Parameters
    ----------
    x : (sample, slice, set, y, x), of CT (sample, slice, y, x); one sample for methods that draw none.
    seconds : that it took.
    evaluations : calls of the prior for each sample, on a batch that holds one image (slice, set, y, x) of each sample,
        or, of methods that go coil by coil, one of each coil of each sample; 0 without a prior.
    """

    x: Tensor
    seconds: float
    evaluations: int


def apply_method(
    prepared: Prepared,
    settings: Settings,
    prior: Denoiser | Generator | Supervised | None,
    *,
    stream: tuple[int, ...],
    parts: PartialResults,
    name: str,
    report: Report,
) -> Images:
    """The images of the method, options, samples and steps in `settings`.

    Parameters
    ----------
    stream : names the random numbers; sample i of a stream is the same whatever the batch.
    parts, name : where finished batches are kept, and the name of this call there.
    report : is told how much is done.

    Raises
    ------
    InputError
        If the method refuses the data or its options.
    """
    samples = settings.samples or 1
    likelihood = modality_of(prepared).likelihood(prepared)
    given = {"likelihood": likelihood, "scan": prepared}
    images, seconds, evaluations = [], 0.0, 0
    for first in range(0, samples, BATCH):
        ids = range(first, min(first + BATCH, samples))
        file = f"{name}-samples-{ids[0]:04d}-{ids[-1]:04d}.pt"
        report(first / samples)
        part = parts.load(file)
        if part is None:
            part = _batch(
                given | {"rng": Noise(stream, ids)},
                settings,
                prior,
                _within(report, first / samples, len(ids) / samples),
            )
            parts.save(file, part)
        images.append(part["x"].to(likelihood.y.device))
        seconds += part["seconds"]
        evaluations = part["evaluations"]  # of each sample: the same in all batches
    report(1.0)
    return Images(torch.cat(images), seconds, evaluations)


def check_prior(name: str, prior: Denoiser | Generator | Supervised) -> None:
    """Raise InputError unless the prior is of the kind that the method needs."""
    needs, kind = inputs_of(method_named(name)), "denoiser"
    if isinstance(prior, Supervised):
        kind = f"network for {prior.task}"
    elif isinstance(prior, Generator):
        kind = "generator"
    if "network" in needs and kind != f"network for {name}":
        raise InputError(
            f"{name} needs a network trained for it (recon train --task {name}), and this prior is a {kind}; leave the "
            "prior out, or give such a one"
        )
    if "network" not in needs and isinstance(prior, Supervised):
        raise InputError(f"{name} needs a denoiser, and this prior is a {kind}; use {prior.task}, or another prior")
    if "generator" not in needs and kind == "generator":
        raise InputError(f"{name} needs a denoiser, and this prior is a generator; use csgm, or another prior")


def prior_inputs(
    name: str, likelihood: Gaussian, prior: Denoiser | Generator | Supervised, steps: int | None
) -> tuple[dict[str, Any], Counted | CountedGenerator | Supervised]:
    """What a method needs of the prior, by name, and what counts the evaluations.

    A generator is the prior's own, or else the probability flow of its denoiser through the levels of the method. Where
    no coil sees anything, images are 0 (of methods that go coil by coil they are not, for want of maps).

    Raises
    ------
    InputError
        If the prior is of another kind than the method needs, or a generator and noise levels were asked for.
    """
    check_prior(name, prior)
    if isinstance(prior, Supervised):
        return {"network": prior}, prior
    if isinstance(prior, Generator):
        if steps is not None:
            raise InputError("steps: this prior is a generator, which has no noise levels; leave it out")
        generator = CountedGenerator(prior)
        return {"generator": generator}, generator
    method = method_named(name)
    if isinstance(likelihood.A, Sense) and "likelihood" in inputs_of(method):
        prior = within(prior, likelihood.A.support)
    denoiser, sigmas = Counted(prior), levels_of(method)(likelihood, prior, steps)
    return {"denoiser": denoiser, "sigmas": sigmas, "generator": probability_flow(denoiser, sigmas)}, denoiser


def _batch(
    given: dict[str, Any], settings: Settings, prior: Denoiser | Generator | Supervised | None, report: Report
) -> dict[str, Any]:
    """One batch of samples, with the time and the network evaluations that it took."""
    method = method_named(settings.method)
    names = inputs_of(method)
    counted = None
    if prior is not None and takes_prior(method):  # the fallback of the check takes none
        made, counted = prior_inputs(settings.method, given["likelihood"], prior, settings.steps)
        given |= made
    arguments = {key: given[key] for key in names} | settings.options
    if "callback" in inspect.signature(method).parameters:
        options = options_of(method) | settings.options
        steps = len(given["sigmas"]) - 1 if "sigmas" in names else options["iterations"]
        arguments["callback"] = lambda step, _: report(min(1.0, (step + 1) / steps))
    rounded = settings.precision == "bf16" and isinstance(prior, Supervised)  # a denoiser sees to it itself
    start = time.perf_counter()
    try:
        with torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=rounded):
            x = method(**arguments)
    except ReconError:
        raise
    except ValueError as error:  # an operator's refusal
        raise InputError(str(error)) from error
    return {
        "x": x if "rng" in names else x[None],
        "seconds": time.perf_counter() - start,
        "evaluations": 0 if counted is None else counted.evaluations,
    }


def _within(report: Report, start: float, share: float) -> Report:
    """Reports a part of the whole."""
    return lambda done: report(start + share * done)
