"""The monitoring spec: the reference that travels, signed, in the bundle, and that devices bin against.

Binning at the edge against reference quantiles makes a window a few hundred bytes, and merging windows an
exact addition of integers. Two summaries may be merged or compared only under the same `spec_hash`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from .errors import ManifestError
from .limits import DEFAULT_LIMITS, Limits
from .strict_json import Reader, canonical, loads

SCHEMA: Final = 1
EXCEEDANCE: Final = 6
"""Buckets beyond the range, a side."""
EXCEEDANCE_EDGES: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Distance beyond the range in units of the reference's inter-quartile range, between the buckets."""
FIXED_POINT: Final = 1 << 12
"""Moments are sums of integers: ``round((x - mean) / sd * FIXED_POINT)``, clipped to `CLIP_SD` sd."""
CLIP_SD: Final = 1024.0
SCORE_BINS: Final = 64

SOURCE_KINDS: Final = ("column", "image", "tensor", "output")
IMAGE_STATISTICS: Final = ("brightness", "contrast", "sharpness")
TENSOR_STATISTICS: Final = ("mean", "sd", "min", "max", "rms")
LAYOUTS: Final = ("NCHW", "NHWC", "NHW")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a feature's value comes from; one value a row (axis 0 of the tensor).

    - ``column``: element ``index`` of the flattened row of input ``tensor``;
    - ``image``: ``statistic`` of the image in input ``tensor``, axes as in ``layout``;
    - ``tensor``: ``statistic`` over the row of input ``tensor``;
    - ``output``: element ``index`` of the flattened row of output ``tensor``.
    """

    kind: str
    tensor: str
    index: int = 0
    statistic: str = ""
    layout: str = ""
    unknown: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFeature:
    """A number, binned.

    ``edges`` ascend; the first and the last are the range, between them lie ``len(edges) - 1`` bins
    ``[a, b)``, the last one closed. An atom (a value of its own mass) has a bin ``[a, nextafter(a))``.
    A counts vector has ``EXCEEDANCE`` buckets below (farthest first), the bins, ``EXCEEDANCE`` above.
    """

    name: str
    source: Source
    edges: tuple[float, ...]
    probabilities: tuple[float, ...]
    """Of the reference, one for each element of a counts vector."""
    mean: float
    sd: float
    iqr: float
    null_rate: float = 0.0
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """Length of a counts vector."""
        return len(self.edges) - 1 + 2 * EXCEEDANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryFeature:
    """A category: the top values and "other", which is the last element of a counts vector."""

    name: str
    source: Source
    values: tuple[float, ...]
    """Categories are numbers in a tensor: codes."""
    probabilities: tuple[float, ...]
    null_rate: float = 0.0
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """Length of a counts vector."""
        return len(self.values) + 1


Feature = FloatFeature | CategoryFeature


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrediction:
    """Predictions of a classifier: counts a class, and `SCORE_BINS` bins of the top score a class."""

    output: str
    form: str
    """``probabilities``, ``logits`` (softmax is applied) or ``label`` (class index; no scores)."""
    classes: int
    probabilities: tuple[float, ...]
    """Of the reference's predictions, a class."""
    calibration: tuple[float, ...] = ()
    """Accuracy on the reference at each of the score bins, isotonic; empty if it had no labels."""
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingReference:
    """A vector's distribution as a mean of seeded random Fourier features (Rahimi and Recht, 2007)."""

    source: Source
    seed: int
    dimensions: int
    bandwidth: float
    mean: tuple[float, ...]
    norm_edges: tuple[float, ...]
    norm_probabilities: tuple[float, ...]
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringSpec:
    """What a device counts. See ``docs/spec/window-summary-v1.md``."""

    rows: int
    """Rows of the reference."""
    features: tuple[Feature, ...]
    prediction: ClassPrediction | None = None
    embedding: EmbeddingReference | None = None
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The blob of the bundle."""
        raw: dict[str, Any] = {
            **self.unknown,
            "skerry_monitoring": SCHEMA,
            "rows": self.rows,
            "features": [{"kind": _kind(feature), **_flat(feature)} for feature in self.features],
        }
        if self.prediction is not None:
            raw["prediction"] = _flat(self.prediction)
        if self.embedding is not None:
            raw["embedding"] = _flat(self.embedding)
        return canonical(raw)


def spec_hash(spec_bytes: bytes) -> bytes:
    """The 8 bytes by which a window summary names its spec."""
    return hashlib.sha256(spec_bytes).digest()[:8]


def parse_spec(data: bytes, limits: Limits = DEFAULT_LIMITS) -> MonitoringSpec:
    """Read a spec strictly.

    Raises:
        ManifestError: anything outside the schema, with the place.
    """
    raw = loads(
        data, max_bytes=4 * limits.manifest_bytes, max_depth=limits.json_depth, what="monitoring spec"
    )
    r = Reader(raw, "monitoring")
    if r.take("skerry_monitoring", int) != SCHEMA:
        raise ManifestError("the monitoring spec's schema is not known", hint="Update Skerry.")
    rows = r.take("rows", int)
    items = r.take("features", list)
    if rows < 1 or len(items) > limits.features:
        raise ManifestError(f"monitoring: a spec has at least 1 row and at most {limits.features} features")
    features = tuple(
        _feature(Reader(item, f"monitoring.features[{i}]"), limits) for i, item in enumerate(items)
    )
    if len({feature.name for feature in features}) != len(features):
        raise ManifestError("monitoring.features names something twice")
    prediction, embedding = r.take("prediction", dict, None), r.take("embedding", dict, None)
    return MonitoringSpec(
        rows=rows,
        features=features,
        prediction=None
        if prediction is None
        else _prediction(Reader(prediction, "monitoring.prediction"), limits),
        embedding=None
        if embedding is None
        else _embedding(Reader(embedding, "monitoring.embedding"), limits),
        unknown=r.rest(),
    )


def _feature(r: Reader, limits: Limits) -> Feature:
    kind = r.take("kind", str)
    name = r.take("name", str)
    source = _source(Reader(r.take("source", dict), f"{r.where}.source"))
    probabilities = _floats(r, "probabilities", limits.bins + 2 * EXCEEDANCE)
    null_rate = r.take("null_rate", float, 0.0)
    if not 0 <= null_rate <= 1:
        raise ManifestError(f"{r.where}.null_rate is {null_rate}; a rate is 0 to 1")
    feature: Feature
    if kind == "float":
        feature = FloatFeature(
            name=name, source=source, edges=_floats(r, "edges", limits.bins + 1), probabilities=probabilities,
            mean=r.take("mean", float), sd=r.take("sd", float), iqr=r.take("iqr", float),
            null_rate=null_rate, unknown=r.rest(),
        )  # fmt: skip
        if len(feature.edges) < 2 or not _ascends(feature.edges):
            raise ManifestError(f"{r.where}.edges must ascend and be at least two")
        if not (feature.sd > 0 and feature.iqr > 0):
            raise ManifestError(f"{r.where}: sd and iqr must be positive")
    elif kind == "category":
        feature = CategoryFeature(
            name=name, source=source, values=_floats(r, "values", limits.bins), probabilities=probabilities,
            null_rate=null_rate, unknown=r.rest(),
        )  # fmt: skip
        if len(set(feature.values)) != len(feature.values):
            raise ManifestError(f"{r.where}.values names something twice")
    else:
        raise ManifestError(f"{r.where}.kind is {kind[:40]!r}", hint="Known: float, category.")
    _check_probabilities(probabilities, feature.cells, r.where)
    return feature


def _source(r: Reader) -> Source:
    source = Source(
        kind=r.take("kind", str),
        tensor=r.take("tensor", str),
        index=r.take("index", int, 0),
        statistic=r.take("statistic", str, ""),
        layout=r.take("layout", str, ""),
        unknown=r.rest(),
    )
    known = {
        "column": source.index >= 0,
        "output": source.index >= 0,
        "image": source.statistic in IMAGE_STATISTICS and source.layout in LAYOUTS,
        "tensor": source.statistic in TENSOR_STATISTICS,
    }
    if not known.get(source.kind, False):
        raise ManifestError(f"{r.where} is not a known source of a feature")
    return source


def _prediction(r: Reader, limits: Limits) -> ClassPrediction:
    prediction = ClassPrediction(
        output=r.take("output", str),
        form=r.take("form", str),
        classes=r.take("classes", int),
        probabilities=_floats(r, "probabilities", limits.classes),
        calibration=_floats(r, "calibration", SCORE_BINS),
        unknown=r.rest(),
    )
    if prediction.form not in ("probabilities", "logits", "label"):
        raise ManifestError(f"{r.where}.form is {prediction.form[:40]!r}")
    if not 1 <= prediction.classes <= limits.classes:
        raise ManifestError(f"{r.where}.classes must be 1 to {limits.classes}")
    if len(prediction.calibration) not in (0, SCORE_BINS):
        raise ManifestError(
            f"{r.where}.calibration has one value for each of the {SCORE_BINS} score bins, or none"
        )
    _check_probabilities(prediction.probabilities, prediction.classes, r.where)
    return prediction


def _embedding(r: Reader, limits: Limits) -> EmbeddingReference:
    embedding = EmbeddingReference(
        source=_source(Reader(r.take("source", dict), f"{r.where}.source")),
        seed=r.take("seed", int),
        dimensions=r.take("dimensions", int),
        bandwidth=r.take("bandwidth", float),
        mean=_floats(r, "mean", limits.features),
        norm_edges=_floats(r, "norm_edges", limits.bins + 1),
        norm_probabilities=_floats(r, "norm_probabilities", limits.bins + 2),
        unknown=r.rest(),
    )
    if len(embedding.mean) != embedding.dimensions or embedding.bandwidth <= 0:
        raise ManifestError(f"{r.where}: dimensions, mean and bandwidth do not fit")
    if not 0 <= embedding.seed < 2**32:
        raise ManifestError(f"{r.where}.seed is {embedding.seed}; a seed is 0 to 2^32 - 1")
    if not embedding.norm_edges or not _ascends(embedding.norm_edges):
        raise ManifestError(f"{r.where}.norm_edges must ascend and be at least one")
    _check_probabilities(embedding.norm_probabilities, len(embedding.norm_edges) + 1, r.where)
    return embedding


def _check_probabilities(values: tuple[float, ...], cells: int, where: str) -> None:
    if len(values) != cells:
        raise ManifestError(f"{where} needs {cells} probabilities, not {len(values)}")
    if any(value < 0 for value in values) or not math.isclose(sum(values), 1.0, abs_tol=1e-6):
        raise ManifestError(f"{where}: probabilities must be at least 0 and add up to 1")


def _ascends(values: tuple[float, ...]) -> bool:
    return all(a < b for a, b in pairwise(values))


def _floats(r: Reader, key: str, most: int) -> tuple[float, ...]:
    items = r.take(key, list, [])
    if len(items) > most or not all(type(item) in (int, float) for item in items):
        raise ManifestError(f"{r.where}.{key} must list at most {most} numbers")
    return tuple(float(item) for item in items)


def _kind(feature: Feature) -> str:
    return "float" if isinstance(feature, FloatFeature) else "category"


def _flat(item: Feature | ClassPrediction | EmbeddingReference) -> dict[str, Any]:
    raw: dict[str, Any] = dict(item.unknown)
    for name in item.__dataclass_fields__:
        value = getattr(item, name)
        if isinstance(value, Source):
            known = {key: getattr(value, key) for key in Source.__dataclass_fields__ if key != "unknown"}
            raw[name] = {**value.unknown, **known}
        elif name != "unknown":
            raw[name] = list(value) if isinstance(value, tuple) else value
    return raw
