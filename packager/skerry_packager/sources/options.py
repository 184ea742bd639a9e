"""What may be said about how to read sample data. Imports nothing heavy: the command line shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from skerry_contract.limits import GIB

RESIZES: Final = ("stretch", "crop", "pad")
SCALES: Final[Mapping[str, tuple[float, float]]] = {
    "0..1": (0.0, 1.0),
    "-1..1": (-1.0, 1.0),
    "0..255": (0.0, 255.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How to turn files into a model's inputs. An option that a source has no use for is an error."""

    input: str = ""
    """Input that images or sound go to; needed only where several could take them."""
    label_column: str = ""
    """Column of a table that holds the labels; else one named label, labels, y, target or targets."""
    label_required: bool = True
    """Whether a `label_column` that is not there is an error; calibration needs no labels."""
    columns: tuple[str, ...] = ()
    """Columns of a table that feed the model, in this order; all others are left out."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the model's output, for labels that are words; else sorted."""
    size: tuple[int, int] | None = None
    """Height and width of images, where the model leaves them open."""
    resize: str = "stretch"
    """``stretch`` to the size, ``crop`` the middle, or ``pad`` with black."""
    scale: str = ""
    """What 0 to 255 is mapped to, for inputs of floats: ``0..1`` (if not given), ``-1..1`` or ``0..255``."""
    mean: tuple[float, ...] = ()
    """Subtracted after scaling, one number for each channel or one for all."""
    std: tuple[float, ...] = ()
    """Divided by after that."""
    bgr: bool = False
    """Blue first, as OpenCV reads images."""
    sample_rate: int = 0
    """Hertz that sound is resampled to; else all files must have one rate, which is taken for the model's."""
    window: int = 0
    """Samples of sound in one inference, where the model leaves that open."""
    hop: int = 0
    """Samples from the start of one window to the next; the window's length if not given."""
    sequences: bool = False
    """Each sound file is one sequence of windows, for a stateful model."""
    max_rows: int = 10_000
    """Of more rows an evenly spread part is taken."""
    max_bytes: int = 1 * GIB
    """All arrays of a source together."""
