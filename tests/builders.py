"""Builders of small, valid things that the contract speaks of; a test changes the one part that it is about.

Nothing here is random but keys: the same calls give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skerry_contract import bundle, monitoring, signing, summary
from skerry_contract.digests import Digest, digest_of
from skerry_contract.manifest import (
    BlobRef,
    Budgets,
    Lineage,
    Manifest,
    Requirements,
    TensorSpec,
    Tolerance,
    Variant,
)
from skerry_contract.tensors import Tensor, write_tensors


def floats(*values: float, shape: tuple[int, ...] | None = None) -> Tensor:
    """A float32 tensor, one-dimensional unless told otherwise."""
    return Tensor("F32", shape or (len(values),), struct.pack(f"<{len(values)}f", *values))


def new_signer() -> signing.EcdsaSigner:
    """A signer with a key of its own."""
    return signing.load_signer(signing.generate_private_key())


@dataclass(slots=True)
class BundleBuilder:
    """Builds a signed bundle around any bytes as its model.

    >>> data = BundleBuilder(version="1.2.0", release=7).build()
    >>> data[:13]
    b'manifest.json'

    ``changes`` replaces fields of the manifest; `add` gives the reference of a blob to put there.
    """

    name: str = "digits"
    version: str = "1.0.0"
    release: int = 1
    models: Mapping[str, bytes] = field(
        default_factory=lambda: {"fp32": b"model fp32" * 50, "int8": b"model int8" * 9}
    )
    """By variant id."""
    spec: bytes = b""
    """The monitoring spec; `monitoring_spec` if empty."""
    signer: signing.EcdsaSigner = field(default_factory=new_signer)
    changes: dict[str, Any] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    """Filled by `manifest`."""

    def add(self, data: bytes) -> BlobRef:
        """Keep a blob, give its reference."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return BlobRef(digest=digest, size=len(data))

    def manifest(self) -> Manifest:
        golden_inputs = self.add(write_tensors({"inputs/image": floats(*range(8), shape=(2, 4))}))
        golden_outputs = self.add(write_tensors({"outputs/scores": floats(0, 1, 1, 0, shape=(2, 2))}))
        manifest = Manifest(
            name=self.name,
            version=self.version,
            release=self.release,
            task="classification",
            inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 4)),),
            outputs=(TensorSpec(name="scores", datatype="FP32", shape=(-1, 2)),),
            labels=("zero", "one"),
            variants=tuple(
                Variant(
                    id=variant,
                    engine="onnx",
                    model=self.add(model),
                    golden_outputs=golden_outputs,
                    tolerances={"scores": Tolerance(atol=1e-4, rtol=1e-3, top1=True)},
                    requires=Requirements(
                        architectures=("aarch64", "x86_64"), min_engine="1.23", ram_bytes=1 << 26
                    ),
                )
                for variant, model in self.models.items()
            ),
            golden_inputs=golden_inputs,
            monitoring=self.add(self.spec or monitoring_spec().to_bytes()),
            budgets=Budgets(ram_bytes=1 << 27, latency_p95_us=50_000),
            lineage=Lineage(data_hash="sha256:" + "d" * 64, code_commit="c0ffee"),
        )
        return replace(manifest, **self.changes)

    def parts(self) -> tuple[Manifest, bytes, bytes]:
        """Manifest, its bytes, its signature."""
        manifest = self.manifest()
        data = manifest.to_bytes()
        return manifest, data, signing.sign_bundle(manifest, data, self.signer)

    def build(self) -> bytes:
        """The bundle."""
        manifest, data, signature = self.parts()
        return b"".join(bundle.write_bundle(manifest, data, signature, self.blobs.__getitem__))

    def write(self, folder: Path) -> Path:
        """The bundle as ``NAME-VERSION.skerry`` in a folder."""
        path = folder / f"{self.name}-{self.version}{bundle.SUFFIX}"
        path.write_bytes(self.build())
        return path


def float_feature(name: str = "x0", index: int = 0, bins: int = 4) -> monitoring.FloatFeature:
    """A float feature with equal-width bins over [0, 1], no reference mass beyond."""
    beyond = (0.0,) * monitoring.EXCEEDANCE
    return monitoring.FloatFeature(
        name=name,
        source=monitoring.Source(kind="column", tensor="image", index=index),
        edges=tuple(edge / bins for edge in range(bins + 1)),
        probabilities=(*beyond, *(1 / bins for _ in range(bins)), *beyond),
        mean=0.5,
        sd=0.29,
        iqr=0.5,
    )


def monitoring_spec(features: Iterable[monitoring.Feature] | None = None) -> monitoring.MonitoringSpec:
    """Two float features and a classifier of two classes, unless other features are given."""
    return monitoring.MonitoringSpec(
        rows=1000,
        features=tuple(features) if features is not None else (float_feature(), float_feature("x1", 1)),
        prediction=monitoring.ClassPrediction(
            output="scores", form="probabilities", classes=2, probabilities=(0.5, 0.5)
        ),
    )


def feature_sketch(rows: int, cells: int) -> summary.FeatureSketch:
    """All rows in the middle cell, with moments that fit one value a row."""
    counts = [0] * cells
    counts[cells // 2] = rows
    return summary.FeatureSketch(
        counts=tuple(counts),
        total=3 * rows,
        squares=9 * rows,
        minimum=0.25 if rows else 0.0,
        maximum=0.5 if rows else 0.0,
    )


def window(
    spec: monitoring.MonitoringSpec | None = None, *, rows: int = 100, seq: int = 1, **changes: Any
) -> summary.WindowSummary:
    """A window of the spec: `check` accepts it. ``changes`` replaces fields."""
    spec = spec or monitoring_spec()
    prediction = None
    if spec.prediction is not None:
        counts = (rows, *(0,) * (spec.prediction.classes - 1))
        scores = [0] * (
            0 if spec.prediction.form == "label" else spec.prediction.classes * monitoring.SCORE_BINS
        )
        if scores:
            scores[60] = rows
        prediction = summary.PredictionSketch(counts=counts, scores=tuple(scores), sum_max_score=rows << 19)
    made = summary.WindowSummary(
        spec_hash=monitoring.spec_hash(spec.to_bytes()),
        bundle=bytes(range(8)),
        boot=bytes(range(16)),
        seq=seq,
        start_utc_ms=1_800_000_000_000 + seq * 3_600_000,
        start_mono_ms=seq * 3_600_000,
        duration_ms=3_600_000,
        clock_quality=summary.CLOCK_NTP,
        rows=rows,
        features=tuple(feature_sketch(rows, feature.cells) for feature in spec.features),
        prediction=prediction,
        health=summary.HealthSketch(
            latency=(0,) * 40 + (rows,) + (0,) * (summary.LATENCY_CELLS - 41),
            rss_kib=65_536,
            temperature_mc=48_250,
        ),
    )
    return replace(made, **changes)
