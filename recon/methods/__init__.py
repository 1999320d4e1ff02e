"""Every method by its name. A method is a function: it is given what its parameters name, and its keywords are options.

What a parameter may name: `likelihood`, `scan` (prepared), `denoiser` or `generator` (made of the prior), `network`
(a prior that was trained for this very method), `sigmas` (noise levels), `rng` (random streams).
Classical methods return one image, samplers (those with `rng`) one image for each sample.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from priors.denoiser import Denoiser

from ..errors import InputError
from ..likelihood import Gaussian
from .classical import cg_sense, l1_wavelet, total_variation
from .coilwise import coilwise
from .csgm import csgm, csgm_levels
from .daps import daps, daps_langevin, daps_langevin_levels, daps_levels
from .ddrm import ddrm, ddrm_levels
from .dds import dds, dds_hard, dds_levels, dds_published, dds_warm, published_levels, warm_levels
from .diffpir import diffpir, diffpir_levels, diffpir_published_levels
from .dps import dps, dps_levels, dps_norm, dps_published_levels
from .fbp import fbp
from .mcg import mcg, mcg_hard
from .peers import bart_l1_wavelet, bart_tv, sigpy_l1_wavelet, sigpy_tv
from .penalised import pwls, transmission
from .pigdm import pigdm, pigdm_levels
from .plug_and_play import plug_and_play_levels, pnp_admm, pnp_hqs
from .red_diff import red_diff, red_diff_levels, red_diff_published_levels
from .sart import os_sart, sirt
from .score_ald import ald_levels, ald_published_levels, score_ald, score_ald_published
from .score_mri import score_mri, score_mri_hard, score_mri_hybrid, ve_levels
from .song import song, song_hard
from .split_gibbs import couplings, split_gibbs
from .supervised import unet, varnet
from .zero_filled import root_sum_of_squares, zero_filled


def preset(method: Callable[..., Tensor], summary: str, **options: float | bool | str) -> Callable[..., Tensor]:
    """A named setting: the method with other defaults, which its signature shows.

    Parameters
    ----------
    summary : one line, the docstring of the setting.
    """
    setting = partial(method, **options)
    setting.__doc__ = summary
    return setting


METHODS: dict[str, Callable[..., Tensor]] = {
    "zero-filled": zero_filled,
    "rss": root_sum_of_squares,
    "cg-sense": cg_sense,
    "l1-wavelet": l1_wavelet,
    "tv": total_variation,
    "fbp": fbp,
    "sirt": sirt,
    "os-sart": os_sart,
    "cgls": preset(cg_sense, "CGLS: weighted least squares, stopped early.", regularization=0.0),
    "pwls": pwls,
    "transmission": transmission,
    "bart-l1-wavelet": bart_l1_wavelet,
    "bart-tv": bart_tv,
    "sigpy-l1-wavelet": sigpy_l1_wavelet,
    "sigpy-tv": sigpy_tv,
    "dds": dds,
    "dds-hard": dds_hard,
    "dds-19": preset(dds_published, "DDS as published (gamma 1, eta 0.85), 19 network evaluations."),
    "dds-49": preset(dds_published, "DDS as published (gamma 1, eta 0.85), 49 network evaluations."),
    "dds-99": preset(dds_published, "DDS as published (gamma 1, eta 0.85), 99 network evaluations."),
    "dds-warm": dds_warm,
    "split-gibbs": split_gibbs,
    "pigdm": pigdm,
    "diffpir": diffpir,
    "diffpir-20": preset(diffpir, "DiffPIR as published for inpainting (lambda 1, zeta 1), 20 network evaluations."),
    "diffpir-100": preset(
        diffpir, "DiffPIR as published for deblurring (lambda 1, zeta 0.1), 100 network evaluations.", zeta=0.1
    ),
    "ddrm": coilwise(ddrm),
    "daps": daps,
    "pnp-admm": pnp_admm,
    "pnp-hqs": pnp_hqs,
    "csgm": csgm,
    "red-diff": red_diff,
    "red-diff-published": preset(red_diff, "RED-diff as published: all timesteps of DDPM in the range of the prior."),
    "daps-published": preset(daps_langevin, "DAPS as published: Langevin steps given the data, 1000 evaluations."),
    "dps": dps,
    "dps-published": dps_norm,
    "mcg": mcg,
    "mcg-published": mcg_hard,
    "score-ald": score_ald,
    "score-ald-published": score_ald_published,
    "score-mri": score_mri,
    "score-mri-rss": preset(coilwise(score_mri), "Score-MRI coil by coil, weighted by the noise; needs no maps."),
    "score-mri-single-coil": preset(score_mri_hard, "Score-MRI as published for one coil: projections, 2000 levels."),
    "score-mri-ssos": preset(
        coilwise(score_mri_hard),
        "Score-MRI as published for coils without maps: projections coil by coil, 500 levels.",
        corrector_first=False,
    ),
    "score-mri-hybrid": score_mri_hybrid,
    "song": song,
    "song-published": preset(song_hard, "Song et al. 2022 as published for MRI: projections, 1000 levels.", snr=0.517),
    "unet": unet,
    "varnet": varnet,
}

SCHEDULES: dict[str, Callable[[Gaussian, Denoiser, int | None], Tensor]] = {
    "dds": dds_levels,
    "dds-hard": dds_levels,
    "dds-19": published_levels(19),
    "dds-49": published_levels(49),
    "dds-99": published_levels(99),
    "dds-warm": warm_levels,
    "split-gibbs": couplings,
    "pigdm": pigdm_levels,
    "diffpir": diffpir_levels,
    "diffpir-20": diffpir_published_levels(20),
    "diffpir-100": diffpir_published_levels(100),
    "ddrm": ddrm_levels,
    "daps": daps_levels,
    "daps-published": daps_langevin_levels,
    "pnp-admm": plug_and_play_levels,
    "pnp-hqs": plug_and_play_levels,
    "csgm": csgm_levels,
    "red-diff": red_diff_levels,
    "red-diff-published": red_diff_published_levels,
    "dps": dps_levels,
    "dps-published": dps_published_levels,
    "mcg": dps_levels,
    "mcg-published": dps_published_levels,
    "score-ald": ald_levels,
    "score-ald-published": ald_published_levels,
    "score-mri": ve_levels(100, largest=3.0),
    "score-mri-rss": ve_levels(100, largest=3.0),
    "score-mri-single-coil": ve_levels(2000),
    "score-mri-ssos": ve_levels(500),
    "score-mri-hybrid": ve_levels(500),
    "song": ve_levels(100, largest=3.0),
    "song-published": ve_levels(1000, largest=128.0),
}
"""The noise levels of a sampler, given the likelihood, the denoiser and the number of steps (None: its own)."""

_UNDER_DISPERSED = (
    "{} is under-dispersed: where the posterior is known (Gaussian priors) its samples hold 0.4 to 0.6 of its "
    "variance, so that std map and intervals are too narrow; split-gibbs holds all of it."
)
_FIXED_GAMMA = (
    "DDS as published does not follow the measured noise: where the posterior is known (Gaussian priors) its mean is "
    "off by 0.1 to 1.4 standard deviations and its samples hold 0.4 to 1.8 of the variance; dds is nearer, split-gibbs "
    "holds all of it."
)
CAVEATS: dict[str, str] = {"dds": _UNDER_DISPERSED.format("DDS"), "dds-hard": _UNDER_DISPERSED.format("DDS")}
CAVEATS |= {"dds-warm": _UNDER_DISPERSED.format("DDS"), **dict.fromkeys(("dds-19", "dds-49", "dds-99"), _FIXED_GAMMA)}
CAVEATS |= {
    "dps": (
        "dps is a heuristic: where the posterior is known (Gaussian priors) its mean is off by 0.06 to 0.64 standard "
        "deviations and its samples hold 0.35 to 0.92 of the variance; split-gibbs holds all of it."
    ),
    "dps-published": (
        "dps-published does not follow the noise of the data: where the posterior is known (a Gaussian prior) its "
        "samples hold 0.9 to 8 of the variance, by its zeta; split-gibbs holds all of it."
    ),
    "mcg": (
        "mcg uses the data twice: where the posterior is known (Gaussian priors) its mean is off by 0.07 to 0.39 "
        "standard deviations and its samples hold 0.44 to 0.94 of the variance; split-gibbs holds all of it."
    ),
    "mcg-published": (
        "mcg-published takes noise for signal: where the posterior is known (a Gaussian prior) its mean is off by 1.05 "
        "standard deviations and its samples hold 0.8 of the variance; split-gibbs holds all of it."
    ),
    "score-ald": (
        "score-ald is slightly too wide with its own number of levels: where the posterior is known (Gaussian priors) "
        "its samples hold 1.01 to 1.09 of the variance, about a mean that is off by up to 0.24 standard deviations."
    ),
    "score-ald-published": (
        "score-ald-published is no sampler of the posterior: where that is known (Gaussian priors) its mean is off by "
        "0.25 standard deviations and its samples hold 1.6 of the variance at an mse of 1; at 5 it diverges."
    ),
}
CAVEATS["csgm"] = (
    "CSGM searches for the most probable image: the spread of its results is that of local minima and of searches that "
    "ended early, no uncertainty (where the posterior is known, 0 to 0.4 of its variance, about a mean that is off by "
    "0.2 to 0.9 standard deviations)."
)
CAVEATS |= dict.fromkeys(
    ("red-diff", "red-diff-published"),
    "RED-diff searches for one image: the spread of its results is no uncertainty (where the posterior is known, with "
    "Gaussian priors, 0.1 to 0.6 of its variance, about a mean that is off by up to 0.9 standard deviations).",
)
CAVEATS["daps-published"] = (
    "DAPS as published spreads too much: where the posterior is known (Gaussian priors) its samples hold 1.1 to "
    "2.9 of the variance, about a mean that is off by 0.1 to 1.1 standard deviations; daps is nearer."
)
_CORRECTED = (
    "{} is mostly too wide: where the posterior is known (Gaussian priors) its samples hold {} of the variance, about "
    "a mean that is off by {} standard deviations; split-gibbs is nearer."
)
_PROJECTED = _CORRECTED + " It takes the data to be free of noise, and carries theirs into the image."
CAVEATS |= {
    "score-mri": _CORRECTED.format("Score-MRI", "0.9 to 1.9", "0.1 to 0.5"),
    "score-mri-rss": _CORRECTED.format("Score-MRI", "0.9 to 1.9", "0.1 to 0.5"),
    "score-mri-single-coil": _PROJECTED.format("Score-MRI with projections", "1.75", "0.1"),
    "score-mri-ssos": _PROJECTED.format("Score-MRI with projections", "1.75", "0.1"),
    "score-mri-hybrid": _CORRECTED.format("Score-MRI in its hybrid form", "0.5 to 1.7", "0.1 to 1.0"),
    "song": _CORRECTED.format("The sampler of Song et al.", "0.9 to 1.9", "0.1 to 0.5"),
    "song-published": _PROJECTED.format("The sampler of Song et al. with its published snr", "3.8", "0.16"),
}
CAVEATS["pigdm"] = (
    "PiGDM takes the prior for white: where the posterior is known (Gaussian priors that are not) its mean is off by "
    "0.1 to 0.25 standard deviations, and its samples hold 0.8 to 1.1 of the variance."
)
CAVEATS |= dict.fromkeys(
    ("diffpir", "diffpir-20", "diffpir-100"),
    "DiffPIR is no sampler of the posterior: where that is known (Gaussian priors) its mean is off by up to 0.3 "
    "standard deviations and its samples hold 0.2 to 0.5 of the variance, 0.8 to 1.2 with 100 steps and zeta 0.1.",
)
CAVEATS["ddrm"] = (
    "DDRM goes coil by coil, what several coils tell together unused: where the posterior of one coil is known "
    "(Gaussian priors) its mean is off by 0.1 to 0.4 standard deviations, and its samples hold 0.6 to 0.85 of the "
    "variance."
)
"""What a user must know of the spread of a sampler's draws (see benchmarks/results/oracle.md)."""

INPUTS = ("likelihood", "scan", "denoiser", "generator", "network", "sigmas", "rng")


def method_named(name: str) -> Callable[..., Tensor]:
    """The method of that name.

    Raises
    ------
    InputError
        If there is none; the message lists the names.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name]


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


def own_prior(name: str, base: str) -> str:
    """The embedded prior that a method uses if no other is asked for, where `base` is the denoiser of the modality."""
    return f"{base}-{name}" if "network" in inputs_of(method_named(name)) else base


def options_of(method: Callable[..., Tensor]) -> dict[str, Any]:
    """The options of a method, name -> default: its keywords that are numbers, switches or names."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if isinstance(parameter.default, bool | int | float | str)
    }


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raise InputError unless every option is one of the method's, and of its kind."""
    known = options_of(method_named(name))
    for option, value in options.items():
        if option not in known:
            expected = ", ".join(f"{key}={default}" for key, default in known.items()) or "none"
            raise InputError(f"method {name}: unknown option {option!r}; expected among: {expected}")
        default = known[option]
        kind = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool):
            raise InputError(f"method {name}: option {option} expects {type(default).__name__}, got {value!r}")
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise InputError(f"method {name}: option {option} expects a finite number, 0 or more, got {value!r}")
