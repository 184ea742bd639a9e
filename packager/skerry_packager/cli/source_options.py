"""The options of ``skerry pack`` that say how sample data becomes the model's inputs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Final

import click

_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})")


def image_size(value: str) -> tuple[int, int]:
    """Height and width, from ``224x224``."""
    match = _SIZE.fullmatch(str(value))
    if match is None or not int(match[1]) or not int(match[2]):
        raise click.BadParameter(f"{value!r} is no size; write HEIGHTxWIDTH, such as 224x320.")
    return int(match[1]), int(match[2])


def numbers(value: str) -> tuple[float, ...]:
    """One number for each channel, from ``0.485,0.456,0.406``."""
    try:
        return tuple(float(part) for part in str(value).split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} are no numbers; write 0.5 or 0.485,0.456,0.406.") from None


def names(value: str) -> tuple[str, ...]:
    """Names, from ``a,b,c``."""
    return tuple(part.strip() for part in str(value).split(",") if part.strip())


def with_source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, as one mapping ``source_options`` of what was given."""
    from ..sources.options import RESIZES, SCALES

    options = {
        "input": click.option(
            "--input", metavar="NAME", help="Input that images or sound go to, where several could take them."
        ),
        "label_column": click.option(
            "--label-column", metavar="NAME", help="Column of a table that holds the labels."
        ),
        "columns": click.option(
            "--columns", type=names, metavar="A,B,…",
            help="Columns of a table that feed the model, in this order; all others are left out.",
        ),
        "size": click.option(
            "--size", type=image_size, metavar="HxW",
            help="Height and width of images, where the model leaves them open.",
        ),
        "resize": click.option(
            "--resize", type=click.Choice(RESIZES), help="How images come to that size; stretch if not given."
        ),
        "scale": click.option(
            "--scale", type=click.Choice(tuple(SCALES)),
            help="What 0 to 255 of images is mapped to, for inputs of floats; 0..1 if not given.",
        ),
        "mean": click.option(
            "--mean", type=numbers, metavar="R,G,B", help="Subtracted from images after scaling."
        ),
        "std": click.option(
            "--std", type=numbers, metavar="R,G,B", help="Images are divided by it after that."
        ),
        "bgr": click.option("--bgr", is_flag=True, default=None, help="Blue first, as OpenCV reads images."),
        "sample_rate": click.option(
            "--sample-rate", type=click.IntRange(1), metavar="HZ", help="Sound is resampled to this rate."
        ),
        "window": click.option(
            "--window", type=click.IntRange(1), metavar="N",
            help="Samples of sound in one inference, where the model leaves that open.",
        ),
        "hop": click.option(
            "--hop", type=click.IntRange(1), metavar="N",
            help="Samples of sound from one inference to the next; a window if not given.",
        ),
        "max_rows": click.option(
            "--max-rows", type=click.IntRange(1), metavar="N",
            help="Of more rows in a source an evenly spread part is taken; 10,000 if not given.",
        ),
    }  # fmt: skip

    @functools.wraps(command)
    def called(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in options}
        told = {name: value for name, value in given.items() if value is not None}
        return command(*args, source_options=told, **kwargs)

    for option in reversed(options.values()):
        called = option(called)
    return called
