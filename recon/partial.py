"""What an interrupted run had finished, kept beside its future results so that the same command continues."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .io.atomic import atomic

FOLDER = ".unfinished"


class PartialResults:
    """Finished parts of one run, each a file that is there whole or not at all.

    Parameters
    ----------
    folder : of the results; None keeps nothing.
    run : everything the result depends on; another run finds none of these parts.
    """

    def __init__(self, folder: Path | None, run: Mapping[str, Any]) -> None:
        text = json.dumps(run, sort_keys=True, default=str)
        self.root = None if folder is None else folder / FOLDER
        self.folder = None if self.root is None else self.root / hashlib.sha256(text.encode()).hexdigest()[:16]

    def load(self, name: str) -> Any | None:
        """The part of that name, None if it has not been finished."""
        path = None if self.folder is None else self.folder / name
        return torch.load(path, weights_only=True) if path is not None and path.exists() else None

    def save(self, name: str, part: Any) -> None:
        """Keep a finished part: tensors, numbers, and lists and dicts of them."""
        if self.folder is not None:
            content = io.BytesIO()
            torch.save(part, content)
            with atomic(self.folder / name, overwrite=True) as path:
                path.write_bytes(content.getvalue())  # says why it cannot, which torch.save does not

    def clear(self) -> None:
        """Forget all parts, those of other runs too: the results are there."""
        if self.root is not None:
            shutil.rmtree(self.root, ignore_errors=True)
