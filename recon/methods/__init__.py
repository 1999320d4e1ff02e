"""Every method by its name. A method is a function: it is given what its parameters name, and its keywords are options.

Classical methods return one image, samplers (those with `rng`) one image for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import InputError
from .classical import cg_sense, l1_wavelet, total_variation
from .coilwise import coilwise
from .csgm import csgm
from .daps import daps, daps_langevin
from .ddrm import ddrm
from .dds import dds, dds_hard, dds_published, dds_warm, published_levels
from .description import (
    caveat_of,
    described,
    has_levels,
    inputs_of,
    levels_of,
    options_of,
    preset,
    scan_of,
    takes_prior,
)
from .diffpir import diffpir, diffpir_published_levels
from .dps import dps, dps_norm
from .fbp import fbp
from .fbp_network import fbp_gan, fbp_unet
from .mcg import mcg, mcg_hard
from .peers import bart_l1_wavelet, bart_tv, sigpy_l1_wavelet, sigpy_tv
from .penalised import pwls, transmission
from .pigdm import pigdm
from .plug_and_play import pnp_admm, pnp_hqs
from .red_diff import red_diff, red_diff_published_levels
from .sart import os_sart, sirt
from .score_ald import score_ald, score_ald_published
from .score_mri import score_mri, score_mri_hard, score_mri_hybrid, ve_levels
from .song import song, song_hard
from .split_gibbs import split_gibbs
from .supervised import unet, varnet
from .zero_filled import root_sum_of_squares, zero_filled

__all__ = [
    "METHODS",
    "caveat_of",
    "check_options",
    "described",
    "has_levels",
    "inputs_of",
    "levels_of",
    "method_named",
    "options_of",
    "own_prior",
    "preset",
    "scan_of",
    "takes_prior",
]

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
    "dds-19": preset(
        dds_published, "DDS as published (gamma 1, eta 0.85), 19 network evaluations.", levels=published_levels(19)
    ),
    "dds-49": preset(
        dds_published, "DDS as published (gamma 1, eta 0.85), 49 network evaluations.", levels=published_levels(49)
    ),
    "dds-99": preset(
        dds_published, "DDS as published (gamma 1, eta 0.85), 99 network evaluations.", levels=published_levels(99)
    ),
    "dds-warm": dds_warm,
    "split-gibbs": split_gibbs,
    "pigdm": pigdm,
    "diffpir": diffpir,
    "diffpir-20": preset(
        diffpir,
        "DiffPIR as published for inpainting (lambda 1, zeta 1), 20 network evaluations.",
        levels=diffpir_published_levels(20),
    ),
    "diffpir-100": preset(
        diffpir,
        "DiffPIR as published for deblurring (lambda 1, zeta 0.1), 100 network evaluations.",
        levels=diffpir_published_levels(100),
        zeta=0.1,
    ),
    "ddrm": coilwise(ddrm),
    "daps": daps,
    "pnp-admm": pnp_admm,
    "pnp-hqs": pnp_hqs,
    "csgm": csgm,
    "red-diff": red_diff,
    "red-diff-published": preset(
        red_diff,
        "RED-diff as published: all timesteps of DDPM in the range of the prior.",
        levels=red_diff_published_levels,
    ),
    "daps-published": preset(daps_langevin, "DAPS as published: Langevin steps given the data, 1000 evaluations."),
    "dps": dps,
    "dps-published": dps_norm,
    "mcg": mcg,
    "mcg-published": mcg_hard,
    "score-ald": score_ald,
    "score-ald-published": score_ald_published,
    "score-mri": score_mri,
    "score-mri-rss": preset(coilwise(score_mri), "Score-MRI coil by coil, weighted by the noise; needs no maps."),
    "score-mri-single-coil": preset(
        score_mri_hard, "Score-MRI as published for one coil: projections, 2000 levels.", levels=ve_levels(2000)
    ),
    "score-mri-ssos": preset(
        coilwise(score_mri_hard),
        "Score-MRI as published for coils without maps: projections coil by coil, 500 levels.",
        levels=ve_levels(500),
        corrector_first=False,
    ),
    "score-mri-hybrid": score_mri_hybrid,
    "song": song,
    "song-published": preset(song_hard, "Song et al. 2022 as published for MRI: projections, 1000 levels.", snr=0.517),
    "unet": unet,
    "varnet": varnet,
    "fbp-unet": fbp_unet,
    "fbp-gan": fbp_gan,
}


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


def own_prior(name: str, base: str) -> str:
    """The embedded prior that a method uses if no other is asked for, where `base` is the denoiser of the modality."""
    return f"{base}-{name}" if "network" in inputs_of(method_named(name)) else base


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
