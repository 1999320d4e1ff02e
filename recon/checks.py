"""Does the prior suit these data? The check of `recon.datafit` as a part of every run that draws samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .apply import Images
from .datafit import DataFit, data_fit
from .errors import InputError
from .modalities import Prepared, modality_of
from .noise import Noise
from .settings import Settings

SAMPLES = 4
"""Drawn for the check; 3 are the fewest that it can use."""

FRACTION = 0.03
"""Of the acquired samples that are withheld."""

Apply = Callable[[Any, Settings, str], Images]
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


def check_data_fit(prepared: Prepared, settings: Settings, apply: Apply, *, slice_index: int) -> Check:
    """Draw a few samples without a part of the data, and predict that part; so does a classical method."""
    modality = modality_of(prepared)
    try:
        given, left_out, where = modality.withhold(prepared, seed=settings.seed, fraction=FRACTION)
    except InputError as error:
        return Check(None, slice_index, 0.0, f"The fit of the prior to the data was not checked: {error}")
    samples = apply(given, replace(settings, samples=SAMPLES), "samples")
    fallback = apply(given, replace(settings, method=modality.FALLBACK, options={}, samples=None), "fallback")
    fit = data_fit(
        samples.x,
        left_out,
        where,
        rng=Noise((settings.seed, slice_index, 2), range(SAMPLES)),
        fallback=fallback.x[0],
        fallback_name=modality.FALLBACK,
    )
    return Check(fit, slice_index, samples.seconds + fallback.seconds, fit.statement)
