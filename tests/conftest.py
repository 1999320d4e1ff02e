"""Shared fixtures."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of measured data: TWEEDIE_DATA, else ../shared/data beside the repository; skips where there is none."""
    folder = Path(os.environ.get("TWEEDIE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"measured data not found at {folder}; set TWEEDIE_DATA to its folder")
    return folder
