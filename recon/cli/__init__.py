"""The command `recon`: the words of the Python interface, a progress bar, and errors of one line.

torch and all that needs it are imported inside the commands, so that `recon --help` is instant.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings

import typer
from rich.console import Console

from .benchmark import benchmark
from .display import plain
from .reconstruct import demo, info, methods, reconstruct
from .simulate import simulate, simulate_ct
from .train import train
from .tune import calibrate, tune

app = typer.Typer(
    help="Posterior reconstruction: measured data in, image and uncertainty out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (reconstruct, info, methods, demo, train, simulate, simulate_ct, calibrate, tune, benchmark):
    app.command()(command)


def main() -> None:
    """Run the command; a user's error is one line on stderr and a non-zero exit."""
    from ..errors import ReconError

    # Waiting threads spin for a moment only: on a busy machine long spinning makes two threads slower than one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.showwarning = lambda message, *_: Console(stderr=True, soft_wrap=True).print(
        f"[bold red]warning:[/] {plain(str(message))}"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # temporary files go away as they do on Ctrl-C
    try:
        app()
    except ReconError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {plain(str(error))}")
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # typer turns an interruption into a silent exit
            raise
        Console(stderr=True).print("interrupted; the same command continues where it stopped")
        sys.exit(130)
