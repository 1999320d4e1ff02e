"""What a user can mend: every message is one line that says what was expected, what came, and how to mend it."""

from __future__ import annotations


class ReconError(Exception):
    """An error that the user can mend. The command prints its message as one line and exits non-zero."""


class InputError(ReconError, ValueError):
    """The data or an argument is not what was expected."""


class MissingFileError(ReconError, FileNotFoundError):
    """A file that was named is not there."""


class ResultExistsError(ReconError, FileExistsError):
    """A result is there already and was not to be overwritten."""


class WriteError(ReconError, OSError):
    """A result could not be written: folder not writable, disk full, ..."""
