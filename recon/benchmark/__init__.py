"""The benchmark: every method on every mask, cell by cell, so that an interruption loses nothing."""
