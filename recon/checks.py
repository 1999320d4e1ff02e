"""Does the prior suit these data? The check of `recon.datafit` as a part of every run that draws samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from . import mri
from .apply import Images
from .datafit import DataFit, data_fit, withhold
from .errors import InputError
from .noise import Noise
from .settings import Settings

SAMPLES = 4
"""Drawn for the check; 3 are the fewest that it can use."""

FRACTION = 0.03
"""Of the acquired samples that are withheld."""

FALLBACK = "l1-wavelet"
"""The classical method to turn to."""

Apply = Callable[[mri.PreparedMRI, Settings, str], Images]
"""From data, settings and a name for what is kept to the images of a method."""


@dataclass(frozen=True)
class Check:
    """The outcome for one slice.

    Parameters
    ----------
    fit : None if too few samples could be withheld.
    slice : index of the slice.
    seconds : that it took.
    statement : for the user.
    """

    fit: DataFit | None
    slice: int
    seconds: float
    statement: str

    @property
    def warning(self) -> bool:
        """Whether the samples should not be trusted."""
        return self.fit is not None and not self.fit.ok

    def record(self) -> dict[str, Any]:
        """For run.json."""
        record: dict[str, Any] = {"slice": self.slice, "seconds": self.seconds, "statement": self.statement}
        if self.fit is None:
            return record
        names = ("ok", "z", "ratio", "ratio_to_fallback", "fallback_name", "places", "z_by_coil", "z_by_sector")
        return record | {"samples": SAMPLES} | {name: getattr(self.fit, name) for name in names}


def check_data_fit(prepared: mri.PreparedMRI, settings: Settings, apply: Apply, *, slice_index: int) -> Check:
    """Draw a few samples without a part of the data, and predict that part; so does a classical method.

    The maps are those of all the data: they come from the calibration region, of which nothing is withheld.
    """
    try:
        kept, withheld = withhold(prepared.mask, seed=settings.seed, fraction=FRACTION)
    except InputError as error:
        return Check(None, slice_index, 0.0, f"The fit of the prior to the data was not checked: {error}")
    given, left_out = _only(prepared, kept), mri.likelihood(_only(prepared, withheld))
    samples = apply(given, replace(settings, samples=SAMPLES), "samples")
    fallback = apply(given, replace(settings, method=FALLBACK, options={}, samples=None), "fallback")
    fit = data_fit(
        samples.x,
        left_out,
        withheld,
        rng=Noise((settings.seed, slice_index, 2), range(SAMPLES)),
        fallback=fallback.x[0],
        fallback_name=FALLBACK,
    )
    return Check(fit, slice_index, samples.seconds + fallback.seconds, fit.statement)


def _only(prepared: mri.PreparedMRI, mask: Tensor) -> mri.PreparedMRI:
    """The data as if only a part had been sampled; the maps stay."""
    return replace(prepared, mask=mask, kspace=prepared.kspace * mask, measured=prepared.measured * mask)
