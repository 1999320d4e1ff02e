"""Posterior reconstruction: measured data in, image and uncertainty out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .io import load
    from .pipeline import reconstruct

__all__ = ["load", "reconstruct"]


def __getattr__(name: str) -> Any:
    """Import torch and all that needs it only once something is used, so that `recon --help` is instant."""
    from importlib import import_module

    homes = {"load": ".io", "reconstruct": ".pipeline"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(homes[name], __name__), name)
