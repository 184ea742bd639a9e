"""Features of inputs and outputs, as float64, one row a row (axis 0) of the tensors.

The packager computes the reference with this very code, so that reference and device never differ by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry_contract.errors import InputError
from skerry_contract.monitoring import ClassPrediction, Source

from .engines import Array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TENSOR: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "mean": lambda flat: flat.mean(axis=1),
    "sd": lambda flat: flat.std(axis=1),
    "min": lambda flat: flat.min(axis=1),
    "max": lambda flat: flat.max(axis=1),
    "rms": lambda flat: np.sqrt(np.square(flat).mean(axis=1)),
}
_CHANNEL_AXIS: Final = {"NCHW": 1, "NHWC": 3}
_FEW_CHANNELS: Final = 4
_AT_ONCE: Final = 32_768
"""Pixels of one step: its arrays stay in the cache and off the kernel's list of pages."""


def extract(sources: Sequence[Source], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Floats:
    """The features of one request.

    Args:
        sources: one a feature.
        inputs: by name; axis 0 is the rows.
        outputs: by name; may be empty if no source is an output.

    Returns:
        float64 of shape ``[rows, len(sources)]``; NaN where the data was.

    Raises:
        InputError: a tensor is missing, too short for an index, or its rows differ from the others'.
    """
    columns: list[Floats] = []
    flats: dict[tuple[bool, str], Array] = {}
    grays: dict[tuple[str, str], Floats] = {}
    with np.errstate(all="ignore"):
        for source in sources:
            is_output = source.kind == "output"
            tensor = _tensor(outputs if is_output else inputs, source.tensor)
            if source.kind == "image":
                gray = grays.get((source.tensor, source.layout))
                if gray is None:
                    gray = grays[source.tensor, source.layout] = gray_images(tensor, source.layout)
                columns.append(_IMAGE[source.statistic](gray))
                continue
            flat = flats.get((is_output, source.tensor))
            if flat is None:
                flat = flats[is_output, source.tensor] = tensor.reshape(len(tensor), -1)
            if source.kind == "tensor":
                columns.append(_TENSOR[source.statistic](flat.astype(np.float64)))
            elif source.index < flat.shape[1]:
                columns.append(flat[:, source.index].astype(np.float64))
            else:
                raise InputError(f"a row of {source.tensor!r} has no element {source.index}")
    if not columns:
        return np.empty((_rows(inputs), 0))
    if len({len(column) for column in columns}) != 1:
        raise InputError("the tensors that are monitored have different numbers of rows")
    return np.stack(columns, axis=1)


def gray_images(tensor: Array, layout: str) -> Floats:
    """Images as ``[rows, height, width]``: the mean over the channels.

    Raises:
        InputError: the tensor has not as many axes as the layout, or a side is empty.
    """
    if tensor.ndim != len(layout) or 0 in tensor.shape[1:]:
        raise InputError(f"a tensor of shape {list(tensor.shape)} holds no images as {layout}")
    if layout not in _CHANNEL_AXIS:
        return tensor.astype(np.float64)
    channels = np.moveaxis(tensor, _CHANNEL_AXIS[layout], 0)
    if len(channels) > _FEW_CHANNELS:
        gray: Floats = channels.mean(axis=0, dtype=np.float64)
        return gray
    gray = channels[0].astype(np.float64)  # the same sum as numpy's mean, up to six times as fast
    for channel in channels[1:]:
        gray += channel
    gray /= len(channels)
    return gray


def _sharpness(gray: Floats) -> Floats:
    """Variance of the 3x3 Laplacian inside the border; 0 for images that have no inside."""
    rows, height, width = gray.shape
    if height < 3 or width < 3:
        return np.zeros(rows)
    step = max(1, _AT_ONCE // (height * width))
    if rows > step:
        return np.concatenate([_sharpness(gray[k : k + step]) for k in range(0, rows, step)])
    laplacian = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1]
    laplacian += gray[:, 1:-1, :-2]
    laplacian += gray[:, 1:-1, 2:]
    laplacian -= 4.0 * gray[:, 1:-1, 1:-1]
    variance: Floats = laplacian.var(axis=(1, 2))
    return variance


_IMAGE: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "brightness": lambda gray: gray.mean(axis=(1, 2)),
    "contrast": lambda gray: gray.std(axis=(1, 2)),
    "sharpness": _sharpness,
}


def predictions(spec: ClassPrediction, outputs: Mapping[str, Array]) -> tuple[Ints, Floats]:
    """What a classifier said.

    Returns:
        The predicted class of each row, and its score in [0, 1] (0 where the form is ``label``).

    Raises:
        InputError: the output is missing or has not one value a class.
    """
    tensor = _tensor(outputs, spec.output)
    flat = tensor.reshape(len(tensor), -1)
    if spec.form == "label":
        if flat.shape[1] != 1:
            raise InputError(f"the output {spec.output!r} has {flat.shape[1]} values a row, not one label")
        return flat[:, 0].astype(np.int64), np.zeros(len(flat))
    if flat.shape[1] != spec.classes:
        raise InputError(f"the output {spec.output!r} has {flat.shape[1]} values a row, not {spec.classes}")
    scores = flat.astype(np.float64)
    predicted = scores.argmax(axis=1)
    top = scores[np.arange(len(scores)), predicted]
    if spec.form == "logits":
        with np.errstate(all="ignore"):
            top = 1.0 / np.exp(scores - top[:, None]).sum(axis=1)
    return predicted, np.clip(top, 0.0, 1.0)


def fourier_basis(seed: int, dimensions: int, bandwidth: float, size: int) -> tuple[Floats, Floats]:
    """Frequencies ``[size, dimensions]`` and phases ``[dimensions]`` of random Fourier features.

    Rahimi and Recht, 2007. The generator is numpy's frozen one, so a seed means the same everywhere.
    """
    generator = np.random.RandomState(seed)
    frequencies = generator.standard_normal((size, dimensions)) / bandwidth
    return frequencies, generator.uniform(0.0, 2.0 * np.pi, dimensions)


def embedding_vectors(source: Source, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Floats:
    """The vectors ``[rows, size]`` that an embedding reference is about: whole flattened rows."""
    tensor = _tensor(outputs if source.kind == "output" else inputs, source.tensor)
    return tensor.reshape(len(tensor), -1).astype(np.float64)


def _tensor(tensors: Mapping[str, Array], name: str) -> NDArray[Any]:
    tensor = tensors.get(name)
    if tensor is None:
        raise InputError(f"there is no tensor {name!r}")
    if tensor.size == 0:
        raise InputError(f"the tensor {name!r} is empty")
    return tensor if tensor.ndim else tensor.reshape(1)


def _rows(inputs: Mapping[str, Array]) -> int:
    first = next(iter(inputs.values()))
    return len(first) if first.ndim else 1
