"""Options that commands share, and the values that their texts stand for."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Prior = Annotated[str | None, typer.Option(help="Name of an embedded prior (brain), or a path.")]
Views = Annotated[int | None, typer.Option(help="CT: keep so many views, evenly; all by default.")]
AngularRange = Annotated[
    str | None, typer.Option(help="CT: keep FIRST:LAST degrees from the first view on; all by default.")
]
Dose = Annotated[float | None, typer.Option(help="CT: simulate this fraction of the dose.")]
Options = Annotated[list[str] | None, typer.Option("--set", help="An option of the method, NAME=VALUE.")]


def parse_options(texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a dictionary; values are numbers, switches (true, false) or names."""
    from ..errors import InputError

    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"--set: expected NAME=VALUE, got {text!r}")
        options[name] = _value(value)
    return options


def parse_method_options(texts: list[str]) -> dict[str, dict[str, Any]]:
    """METHOD.NAME=VALUE texts as method -> options."""
    from ..errors import InputError

    options: dict[str, dict[str, Any]] = {}
    for key, value in parse_options(texts).items():
        method, dot, name = key.partition(".")
        if not (method and dot and name):
            raise InputError(f"--set: expected METHOD.NAME=VALUE, got {key}={value}")
        options.setdefault(method, {})[name] = value
    return options


def parse_slices(text: str | None) -> tuple[int, int] | None:
    """FIRST:LAST as two numbers."""
    from ..errors import InputError

    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit()):
        raise InputError(f"--slices: expected FIRST:LAST such as 0:3, got {text!r}")
    return int(first), int(last)


def parse_range(text: str | None) -> tuple[float, float] | None:
    """FIRST:LAST as two numbers of degrees."""
    from ..errors import InputError

    if text is None:
        return None
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise InputError(f"--angular-range: expected FIRST:LAST in degrees such as 0:120, got {text!r}") from error
    return first, last


def parse_centre(text: str | None) -> float | str | None:
    """A bin, or a word."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def parse_shape(text: str) -> tuple[int, int]:
    """Y,X as two numbers."""
    from ..errors import InputError

    y, _, x = text.partition(",")
    if not (y.isdigit() and x.isdigit()):
        raise InputError(f"--shape: expected Y,X such as 230,180, got {text!r}")
    return int(y), int(x)


def parse_grid(texts: list[str]) -> dict[str, list[bool | int | float | str]]:
    """NAME=A,B,C texts as a dictionary of lists."""
    from ..errors import InputError

    grid: dict[str, list[bool | int | float | str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name and equals and all(values.split(","))) or name in grid:
            raise InputError(f"--set-grid: expected NAME=A,B,C, each name once, got {text!r}")
        grid[name] = [_value(value) for value in values.split(",")]
    return grid


def parse_numbers(option: str, text: str) -> list[float]:
    """Numbers with commas between them."""
    from ..errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option}: expected numbers with commas between them, got {text!r}") from error


def parse_whole(option: str, text: str) -> list[int]:
    from ..errors import InputError

    numbers = parse_numbers(option, text)
    if not all(number.is_integer() and number >= 1 for number in numbers):
        raise InputError(f"{option}: expected whole numbers, at least 1, got {text!r}")
    return [int(number) for number in numbers]


def parse_levels(option: str, text: str) -> tuple[float, float]:
    """LOW,HIGH as two numbers; one number is both."""
    from ..errors import InputError

    numbers = parse_numbers(option, text)
    if len(numbers) > 2:
        raise InputError(f"{option}: expected LOW,HIGH, got {text!r}")
    return numbers[0], numbers[-1]


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
