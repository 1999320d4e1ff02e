"""Shared fixtures."""

import os
import signal
from pathlib import Path

import pytest

# A shell ignores it for what runs in the background, and the children that tests interrupt would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of measured data: TWEEDIE_DATA, else ../shared/data beside the repository; skips where there is none."""
    folder = Path(os.environ.get("TWEEDIE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"measured data not found at {folder}; set TWEEDIE_DATA to its folder")
    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a quick benchmark; its command in a process of its own draws them."""
    from recon.benchmark import pictures

    for name in ("against_acceleration", "against_cost", "reliability", "images"):
        monkeypatch.setattr(pictures, name, lambda *_: b"picture")
