"""Bundles of real models, packed once, and a stage of real processes that is cleared whatever happens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.stage import Stage, program, run

from skerry_packager.demo import digits
from skerry_packager.demo.processes import end_demo


@dataclass(frozen=True)
class Packed:
    """Two versions of a digit reader, and real images that neither has seen."""

    folder: Path
    key: Path
    public_key: Path
    v1: Path
    v2: Path
    images: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Packed by the installed command, from models trained on scikit-learn's real digits."""
    folder = tmp_path_factory.mktemp("packed")
    data = digits.load()
    calibration, evaluation = digits.write_data(data, folder)
    keys = run(program("skerry"), "keys", "init", "--name", "engineer", "--no-password", cwd=folder)
    assert keys.code == 0, keys.err
    for version in (1, 2):
        model = folder / f"digits-{version}.onnx"
        digits.train(version, data, model)
        answer = run(
            program("skerry"), "pack", str(model), "--name", "digits", "--version", f"{version}.0.0",
            "--release", str(version), "--calibration", str(calibration), "--evaluation", str(evaluation),
            "--profile", "x86-gateway", "--monitor", "image", "--key", "engineer.key", cwd=folder,
        )  # fmt: skip
        assert answer.code == 0, answer.out + answer.err
    images, labels = data.live
    return Packed(
        folder=folder,
        key=folder / "engineer.key",
        public_key=folder / "engineer.pub",
        v1=folder / "digits-1.0.0.skerry",
        v2=folder / "digits-2.0.0.skerry",
        images=images,
        labels=labels,
    )


@pytest.fixture
def stage(packed: Packed) -> Iterator[Stage]:
    """A running fleet server. Its folder has a short path, because Unix sockets need one."""
    with tempfile.TemporaryDirectory(prefix="skerry-e2e-") as name:
        made = Stage(Path(name), packed.public_key)
        try:
            made.start_fleet()
            yield made
        finally:
            made.processes.end_all()
            left = end_demo(Path(name))
        assert not left, f"processes are left: {left}"
