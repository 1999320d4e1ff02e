"""What is known of a method: by its signature, and by what its file says beside it.

What a parameter may name: `likelihood`, `scan` (prepared), `denoiser` or `generator` (made of the prior), `network`
(a prior that was trained for this very method), `sigmas` (noise levels), `rng` (random streams).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian

Levels = Callable[[Gaussian, Denoiser, int | None], Tensor]
"""The noise levels of a method, given the likelihood, the denoiser and the number of steps (None: its own)."""

INPUTS = ("likelihood", "scan", "denoiser", "generator", "network", "sigmas", "rng")

Described = TypeVar("Described", bound=Callable[..., Tensor])


def described(*, levels: Levels | None = None, caveat: str = "") -> Callable[[Described], Described]:
    """Decorator that says of a method what its signature does not.

    Parameters
    ----------
    levels : its noise levels.
    caveat : what a user must know of the spread of its draws (see benchmarks/results/oracle.md).
    """

    def describe(method: Described) -> Described:
        vars(method).update(levels=levels, caveat=caveat)
        return method

    return describe


def preset(
    method: Callable[..., Tensor], summary: str, *, levels: Levels | None = None, **options: float | bool | str
) -> Callable[..., Tensor]:
    """A named setting: the method with other defaults, which its signature shows.

    Parameters
    ----------
    summary : one line, the docstring of the setting.
    levels : its noise levels, where they are not those of the method.
    """
    setting = partial(method, **options)
    setting.__doc__ = summary
    own = getattr(method, "levels", None) if levels is None else levels
    return described(levels=own, caveat=caveat_of(method))(setting)


def inputs_of(method: Callable[..., Tensor]) -> tuple[str, ...]:
    """Which of INPUTS a method needs."""
    return tuple(name for name in INPUTS if name in inspect.signature(method).parameters)


def scan_of(method: Callable[..., Tensor]) -> str | None:
    """Name of the record of prepared data that a method is given, PreparedMRI say; None if the likelihood is enough."""
    parameter = inspect.signature(method).parameters.get("scan")
    return None if parameter is None else str(getattr(parameter.annotation, "__name__", parameter.annotation))


def takes_prior(method: Callable[..., Tensor]) -> bool:
    """Whether a method uses a prior, as its denoiser, generator or network; it need not draw samples."""
    return not {"denoiser", "generator", "network"}.isdisjoint(inputs_of(method))


def has_levels(method: Callable[..., Tensor]) -> bool:
    """Whether a method goes through noise levels, itself or in the generator that is made for it."""
    return getattr(method, "levels", None) is not None


def levels_of(method: Callable[..., Tensor]) -> Levels:
    """The noise levels of a method.

    Raises
    ------
    InputError
        If it has none.
    """
    if not has_levels(method):
        name = getattr(method, "__name__", method)
        raise InputError(f"{name}: expected noise levels, got none; give them with @described(levels=...)")
    return method.levels  # type: ignore[attr-defined, no-any-return]


def caveat_of(method: Callable[..., Tensor]) -> str:
    """What a user must know of the spread of a method's draws; empty if there is nothing to say."""
    return getattr(method, "caveat", "")


def options_of(method: Callable[..., Tensor]) -> dict[str, Any]:
    """The options of a method, name -> default: its keywords that are numbers, switches or names."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if isinstance(parameter.default, bool | int | float | str)
    }
