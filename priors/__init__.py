"""Priors: denoisers D(x, sigma) = E[x0 | x0 + sigma n = x], the networks behind them, and their training.

Supervised networks, which reconstruct directly, are trained and kept by the same means.
"""

from priors.denoiser import (
    EDM,
    VE,
    VP,
    Denoiser,
    V,
    affine,
    along,
    bf16,
    chunked,
    real_imag,
    within,
)
from priors.generator import Generator, probability_flow
from priors.library import load, names, save
from priors.supervised import PostProcessing, Supervised, VarNet

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Denoiser",
    "Generator",
    "PostProcessing",
    "Supervised",
    "V",
    "VarNet",
    "affine",
    "along",
    "bf16",
    "chunked",
    "load",
    "names",
    "probability_flow",
    "real_imag",
    "save",
    "within",
]
