"""A folder of images, as a model's input: decoded by Pillow, resized, scaled, laid out as the model wants it.

Only the five formats below are decoded, whatever a file's name promises, and the header's size is checked
before any pixel is. Of an animation the first frame counts. A camera's EXIF orientation is applied.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from skerry_contract.errors import DataError, InputError

from ..inspect import TensorInfo
from .folders import check_regular, labelled_files
from .options import RESIZES, SCALES, SourceOptions
from .samples import LABELS, Samples, require, spread_evenly, spread_note

IMAGES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
_FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP", "GIF")
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
_MOST_PIXELS: Final = 64_000_000
_LARGEST_SIDE: Final = 16_384
_ARRAYS_HINT: Final = "Prepare the arrays yourself and give them as .npz."


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """What one image becomes."""

    name: str
    layout: str
    """``HWC``, ``CHW`` or ``HW``: the shape of one image."""
    channels: int
    height: int
    width: int
    dtype: np.dtype[Any]


def image_input(inputs: Sequence[TensorInfo], options: SourceOptions) -> ImageInput:
    """The input that takes images, with its layout and size.

    Raises:
        InputError: no input takes images or several do, or its size is open and not given, or given wrongly.
    """
    fitting = [
        (info, *found)
        for info in inputs
        if (found := _layout(info)) is not None and options.input in ("", info.name)
    ]
    if len(fitting) != 1:
        shapes = ", ".join(f"{info.name!r} {list(info.shape)}" for info in inputs)
        require(not fitting, f"several inputs could take images: {shapes}", "Name one with --input.")
        raise InputError(
            f"no input takes images{f' and is named {options.input!r}' if options.input else ''}: {shapes}",
            hint="Images need [N, C, H, W] or [N, H, W, C] with 1, 3 or 4 channels. " + _ARRAYS_HINT,
        )
    info, layout, channels, size = fitting[0]
    height, width = (
        _side(size[place], options.size[place] if options.size else 0, axis, info.name)
        for place, axis in enumerate(("height", "width"))
    )
    return ImageInput(
        name=info.name, layout=layout, channels=channels, height=height, width=width,
        dtype=np.dtype(info.dtype),
    )  # fmt: skip


Size = tuple[int | str | None, int | str | None]


def _layout(info: TensorInfo) -> tuple[str, int, Size] | None:
    """Layout of one image, channels, and height and width as declared; None if it takes no images."""
    if not info.ranked or info.dtype not in ("float16", "float32", "float64", "uint8", "int8"):
        return None
    shape = info.shape
    if len(shape) == 4 and _is_batch(shape[0]):
        shape = shape[1:]
    elif len(shape) == 3 and _is_batch(shape[0]) and shape[0] != 1 and shape[2] not in _MODES:
        return "HW", 1, (shape[1], shape[2])
    elif len(shape) != 3:
        return None
    first, _, last = shape
    if isinstance(first, int) and first in _MODES:
        return "CHW", first, (shape[1], shape[2])
    if isinstance(last, int) and last in _MODES:
        return "HWC", last, (shape[0], shape[1])
    return None


def _is_batch(size: int | str | None) -> bool:
    return size == 1 or not isinstance(size, int)


def _side(declared: int | str | None, given: int, axis: str, name: str) -> int:
    fixed = declared if isinstance(declared, int) else 0
    require(
        fixed > 0 or given > 0,
        f"input {name!r} leaves the {axis} of images open",
        "Give the size that it was trained with: --size HEIGHTxWIDTH.",
    )
    require(
        not (fixed and given) or fixed == given,
        f"input {name!r} takes images with a {axis} of {fixed}, not {given}",
        "Leave --size out.",
    )
    side = fixed or given
    require(side <= _LARGEST_SIDE, f"a {axis} of {side} is too large for images", "Give a smaller --size.")
    return side


def read_images(folder: Path, inputs: Sequence[TensorInfo], options: SourceOptions) -> Samples:
    """All images of a folder, in the order of their names.

    Raises:
        InputError: an option does not fit the model.
        DataError: an image is broken, too large, or its labels are not clear; the message names the file.
    """
    wanted = image_input(inputs, options)
    transform = _transform(wanted, options)
    files = labelled_files(folder, IMAGES, options)
    shape = _array_shape(wanted)
    room = options.max_bytes // max(1, int(np.prod(shape)) * wanted.dtype.itemsize)
    keep = spread_evenly(range(len(files.paths)), max(1, room))
    notes = files.notes
    if len(keep) < len(files.paths):
        notes += (spread_note(f"{folder} (memory)", len(keep), len(files.paths)),)
    pixels = np.empty((len(keep), *shape), dtype=wanted.dtype)
    for row, place in enumerate(keep):
        pixels[row] = transform.apply(load_image(files.paths[place], wanted, options))
    arrays = {wanted.name: pixels}
    if files.labels is not None:
        arrays[LABELS] = files.labels[keep]
    return Samples(
        arrays=arrays,
        preprocessing=_record(wanted, transform, options),
        notes=notes,
        class_names=files.class_names,
    )


def load_image(path: Path, wanted: ImageInput, options: SourceOptions) -> np.ndarray:
    """One image as uint8 [H, W, C], in the order of channels and the size that are wanted.

    Raises:
        DataError: it is no image of a known format, broken, or too large.
    """
    check_regular(path)
    size = (wanted.width, wanted.height)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of our own check below, which is stricter than the library's
            with Image.open(path, formats=_FORMATS) as image:
                pixels = image.width * image.height
                if pixels > _MOST_PIXELS:
                    raise DataError(
                        f"{path} has {pixels:,} pixels, and at most {_MOST_PIXELS:,} are decoded",
                        hint="Scale it down, or leave it out.",
                    )
                upright = _plain(ImageOps.exif_transpose(image), _MODES[wanted.channels])
        if options.resize == "crop":
            upright = ImageOps.fit(upright, size, Image.Resampling.BILINEAR)
        elif options.resize == "pad":
            upright = ImageOps.pad(upright, size, Image.Resampling.BILINEAR, color=0)
        else:
            upright = upright.resize(size, Image.Resampling.BILINEAR)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is no image of a known format ({', '.join(_FORMATS)})",
            hint="Remove it from the folder, or save it as PNG.",
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is broken: {error}", hint="Remove it, or save it anew as PNG.") from error
    found = np.asarray(upright).reshape(wanted.height, wanted.width, wanted.channels)
    if options.bgr:
        found = np.concatenate([found[..., 2::-1], found[..., 3:]], axis=-1)
    return found


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode of 8 bits a channel; transparency is dropped where there is no channel for it."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} are not 8 or 16 bits deep")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


@dataclass(frozen=True, slots=True)
class _Transform:
    """From uint8 [H, W, C] to the model's numbers: ``pixel * gain + offset`` for each channel."""

    wanted: ImageInput
    scale: str
    gain: np.ndarray
    offset: np.ndarray

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        if self.wanted.dtype == np.int8:
            numbers = (pixels.astype(np.int16) - 128).astype(np.int8)
        elif self.wanted.dtype == np.uint8:
            numbers = pixels
        else:
            numbers = (pixels * self.gain + self.offset).astype(self.wanted.dtype)
        if self.wanted.layout == "CHW":
            return np.moveaxis(numbers, -1, 0)
        return numbers[..., 0] if self.wanted.layout == "HW" else numbers


def _transform(wanted: ImageInput, options: SourceOptions) -> _Transform:
    """Raises `InputError` for options that do not fit the input."""
    require(
        options.resize in RESIZES, f"resize {options.resize!r} is not known", f"Known: {', '.join(RESIZES)}."
    )
    require(
        not options.bgr or wanted.channels >= 3, f"input {wanted.name!r} has no colours", "Leave --bgr out."
    )
    if wanted.dtype.kind in "iu":
        for name in ("scale", "mean", "std"):
            require(
                not getattr(options, name),
                f"--{name} is for inputs of floats, and {wanted.name!r} takes {wanted.dtype}",
                f"Leave --{name} out: pixels go in as they are (int8: less 128).",
            )
        whole = "0..255" if wanted.dtype == np.uint8 else "-128..127"
        return _Transform(wanted, whole, np.ones(1), np.zeros(1))
    scale = options.scale or "0..1"
    require(scale in SCALES, f"scale {scale!r} is not known", f"Known: {', '.join(SCALES)}.")
    low, high = SCALES[scale]
    mean, std = (
        _per_channel(values, default, wanted.channels, name)
        for values, default, name in ((options.mean, 0.0, "mean"), (options.std, 1.0, "std"))
    )
    require(bool((std > 0).all()), "--std has a number that is not above 0", "Give those of the training.")
    return _Transform(wanted, scale, (high - low) / 255 / std, (low - mean) / std)


def _per_channel(values: Sequence[float], default: float, channels: int, name: str) -> np.ndarray:
    require(
        len(values) in (0, 1, channels) and bool(np.isfinite(values).all()),
        f"--{name} has {len(values)} numbers for {channels} channels",
        "Give one finite number, or one for each channel.",
    )
    return np.broadcast_to(np.array(values or [default], dtype=np.float64), channels)


def _array_shape(wanted: ImageInput) -> tuple[int, ...]:
    sides = {"H": wanted.height, "W": wanted.width, "C": wanted.channels}
    return tuple(sides[axis] for axis in wanted.layout)


def _record(wanted: ImageInput, transform: _Transform, options: SourceOptions) -> dict[str, Any]:
    colours = {1: "L", 3: "BGR" if options.bgr else "RGB", 4: "BGRA" if options.bgr else "RGBA"}
    return {
        "kind": "image",
        "input": wanted.name,
        "layout": wanted.layout,
        "height": wanted.height,
        "width": wanted.width,
        "channels": colours[wanted.channels],
        "orientation": "exif",
        "resize": options.resize,
        "filter": "bilinear, antialiased",
        "scale": transform.scale,
        "mean": list(options.mean),
        "std": list(options.std),
        "dtype": str(wanted.dtype),
    }
