"""Golden vectors of the window summary, version 1: bytes and meaning, fixed for ever.

The files under ``tests/data/window-summary/v1`` are never regenerated: a device in the field may send these
bytes years from now. A new vector is a new file, and a new line below.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from skerry_contract.summary import (
    EmbeddingSketch,
    FeatureSketch,
    Flags,
    HealthSketch,
    LabelCount,
    PredictionSketch,
    WindowSummary,
    decode,
    encode,
)

FOLDER = Path(__file__).resolve().parent.parent / "data" / "window-summary" / "v1"
VECTORS = {
    "classifier-image": "874cd180a82af85a8f500bd68dc414c15bae3f9c8f8c17c6eb0878556099d17f",
    "everything": "2d0407a6dd4e7d43446ec6f9520a25ea6b68f9e45841e39c67fa03fe923907bc",
    "minimal": "fefd04b4c8a7c062db5d59ca64e0c2df0c8ec7c69c22b63dddb68f325cd7efb6",
    "negative-moments": "f050fbf19535d3c3402e8628325e1ee47c343441ed2ebb1955c33d69659457d8",
}
"""Name, and the SHA-256 of the bytes."""


def wire(name: str) -> bytes:
    return bytes.fromhex((FOLDER / f"{name}.hex").read_text())


def meaning(name: str) -> WindowSummary:
    """The summary that the JSON file of a vector describes: bytes are hexadecimal, the rest is as named."""
    raw: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())["summary"]
    prediction, embedding = raw.pop("prediction", None), raw.pop("embedding", None)
    return WindowSummary(
        spec_hash=bytes.fromhex(raw.pop("spec_hash")),
        bundle=bytes.fromhex(raw.pop("bundle")),
        boot=bytes.fromhex(raw.pop("boot")),
        flags=Flags(raw.pop("flags", 0)),
        features=tuple(FeatureSketch(**tuples(feature)) for feature in raw.pop("features")),
        prediction=None if prediction is None else PredictionSketch(**tuples(prediction)),
        embedding=None if embedding is None else EmbeddingSketch(**tuples(embedding)),
        labels=tuple(LabelCount(**label) for label in raw.pop("labels", [])),
        health=HealthSketch(**tuples(raw.pop("health"))),
        unknown=tuple((tag, bytes.fromhex(data)) for tag, data in raw.pop("unknown", [])),
        **raw,
    )


def tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}


def test_every_vector_is_listed() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(VECTORS)


@pytest.mark.parametrize("name", VECTORS)
def test_the_bytes_are_those_of_the_first_release(name: str) -> None:
    assert hashlib.sha256(wire(name)).hexdigest() == VECTORS[name]


@pytest.mark.parametrize("name", VECTORS)
def test_the_bytes_mean_what_they_meant(name: str) -> None:
    assert decode(wire(name)) == meaning(name)


@pytest.mark.parametrize("name", VECTORS)
def test_the_meaning_has_the_bytes_that_it_had(name: str) -> None:
    assert encode(meaning(name)) == wire(name)
