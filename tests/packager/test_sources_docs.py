"""docs/data.md: its examples run, and every name in it is one that the code knows."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skerry_packager.inspect import TensorInfo
from skerry_packager.metrics import METRICS, Metric, choose_heads
from skerry_packager.sources.options import RESIZES, SCALES, SourceOptions
from skerry_packager.sources.read import read_source
from skerry_packager.sources.samples import LABEL_NAMES

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.S | re.M)
PYTHON = [body for language, body in BLOCKS if language == "python"]
PLAIN = [body for language, body in BLOCKS if not language]
IMAGE = TensorInfo(name="image", dtype="float32", shape=("N", 1, 8, 8))


def test_the_arrays_of_the_example_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON[0], "data.md", "exec"), {})  # noqa: S102 - the example itself is what is tested
    found = read_source("evaluation.npz", [IMAGE], SourceOptions())
    assert found.arrays["image"].shape == (300, 1, 8, 8)
    assert found.labels is not None


def test_the_function_of_the_example_yields_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "documented_rows.py").write_text(PYTHON[1])
    monkeypatch.chdir(tmp_path)
    found = read_source("documented_rows:rows", [IMAGE], SourceOptions())
    assert found.arrays["image"].shape == (300, 1, 8, 8)


def test_the_folder_of_the_example_has_its_classes(tmp_path: Path) -> None:
    _, *lines = PLAIN[0].strip().splitlines()
    for line in lines:
        folder, *names = line.split()
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("L", (8, 8)).save(tmp_path / folder / name)
    found = read_source(tmp_path, [IMAGE], SourceOptions())
    assert found.class_names == ("cat", "dog")
    other = read_source(tmp_path, [IMAGE], SourceOptions(classes=("dog", "cat")))
    assert other.labels is not None
    assert other.labels.tolist() == [1, 1, 0]


def test_the_table_of_the_example_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(PLAIN[1])
    inputs = [TensorInfo(name="x", dtype="float32", shape=("N", 2))]
    found = read_source(tmp_path / "t.csv", inputs, SourceOptions(columns=("width", "height")))
    assert found.arrays["x"].tolist() == [[1.5, 4.0], [2.0, 5.25]]


def test_the_metric_of_the_example_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "documented_metric.py").write_text(PYTHON[2])
    monkeypatch.chdir(tmp_path)
    samples = [[np.array([[float(row)]], np.float32)] for row in range(8)]
    labels = np.arange(8) + 0.5
    _, (head,) = choose_heads(samples, labels, ["depth"], None, "documented_metric:median_error")
    assert head.metric is Metric.CUSTOM
    assert head.custom is not None
    assert head.custom.lower_is_better
    assert head.custom(labels[:, None], {"depth": np.concatenate([row[0] for row in samples])}) == 0.5


def test_every_option_metric_and_name_is_documented() -> None:
    internal = {"label_required", "max_rows", "max_bytes", "sequences", "input", "classes"}
    for field in fields(SourceOptions):
        if field.name not in internal:
            assert f"--{field.name.replace('_', '-')}" in TEXT, field.name
    for name in (*METRICS, *RESIZES, *SCALES, *LABEL_NAMES):
        if name != "Y":
            assert f"`{name}`" in TEXT, name
