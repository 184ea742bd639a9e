"""Signed bundles of small real models, made when they are asked for: each release answers differently."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.agent_world import Made, make_bundle
from tests.runtime.model_zoo import ZooModel, onnx_bytes
from tests.torture.release import NAME, Release, load_release, version_of

from skerry_contract import signing
from skerry_contract.digests import digest_of, hex_of
from skerry_contract.manifest import TensorSpec
from skerry_contract.monitoring import MonitoringSpec

_IN, _OUT = 64, 192
"""48 KiB of weights: several writes, and a block of a download."""


class Releases:
    """A folder of bundles, and of their blobs as the fleet would serve them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        key = folder / "key.pem"
        if not key.exists():
            key.write_bytes(signing.generate_private_key())
        self._signer = signing.load_signer(key.read_bytes())
        (folder / "engineer.pem").write_bytes(self._signer.verifier.pem)

    def get(self, number: int) -> Release:
        described = self.folder / f"{number}.json"
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not described.exists():
                described.write_bytes(msgspec.json.encode(self._make(number)))
        return load_release(self.folder, number)

    def _make(self, number: int) -> Release:
        # The floor follows three behind: it rises all the time, and the last good one stays allowed.
        made: Made = make_bundle(
            self._signer,
            version=version_of(number),
            release=number,
            model=_model(number),
            security_floor=max(0, number - 3),
        )
        for digest, data in made.everything().items():
            (self.blobs / hex_of(digest)).write_bytes(data)
        return Release(
            number=number,
            file=str(made.write(self.folder)),
            digest=made.digest,
            signature=digest_of(made.signature),
            manifest_size=len(made.manifest_bytes),
            signature_size=len(made.signature),
        )


def _model(number: int) -> ZooModel:
    chance: Any = np.random.default_rng(number)
    weights = chance.normal(size=(_IN, _OUT)).astype(np.float32)
    inputs = chance.normal(size=(2, 1, _IN)).astype(np.float32)
    return ZooModel(
        name=NAME,
        version=version_of(number),
        data=onnx_bytes(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            [("x", TensorProto.FLOAT, ["n", _IN])],
            [("y", TensorProto.FLOAT, ["n", _OUT])],
            [numpy_helper.from_array(weights, "w")],
        ),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, _IN)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, _OUT)),),
        golden=tuple({"x": row} for row in inputs),
        spec=MonitoringSpec(rows=1, features=()),
    )
