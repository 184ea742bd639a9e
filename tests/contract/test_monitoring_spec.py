"""The monitoring spec: what a device bins against; signed, and read as if hostile."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.builders import float_feature, monitoring_spec

from skerry_contract.errors import ManifestError
from skerry_contract.limits import Limits
from skerry_contract.monitoring import (
    EXCEEDANCE,
    EXCEEDANCE_EDGES,
    SCORE_BINS,
    CategoryFeature,
    ClassPrediction,
    EmbeddingReference,
    MonitoringSpec,
    Source,
    parse_spec,
    spec_hash,
)
from skerry_contract.strict_json import canonical

Raw = dict[str, Any]

EVERYTHING = MonitoringSpec(
    rows=1797,
    features=(
        float_feature(),
        float_feature("x1", 1),
        CategoryFeature(
            name="weekday",
            source=Source(kind="column", tensor="table", index=3),
            values=(0.0, 1.0, 2.0),
            probabilities=(0.5, 0.25, 0.125, 0.125),
            null_rate=0.01,
        ),
        CategoryFeature(
            name="brightness is round",
            source=Source(kind="image", tensor="image", statistic="brightness", layout="NHWC"),
            values=(),
            probabilities=(1.0,),
        ),
    ),
    prediction=ClassPrediction(
        output="scores",
        form="logits",
        classes=3,
        probabilities=(0.5, 0.25, 0.25),
        calibration=(0.5,) * SCORE_BINS,
    ),
    embedding=EmbeddingReference(
        source=Source(kind="output", tensor="embedding"),
        seed=7,
        dimensions=2,
        bandwidth=1.5,
        mean=(0.25, -0.25),
        norm_edges=(0.5, 1.0),
        norm_probabilities=(0.25, 0.5, 0.25),
    ),
)


@pytest.fixture
def raw() -> Raw:
    value: Raw = json.loads(EVERYTHING.to_bytes())
    return value


@pytest.mark.parametrize(
    "spec", [EVERYTHING, monitoring_spec(), monitoring_spec(())], ids=["everything", "usual", "no features"]
)
def test_reading_then_writing_changes_no_byte(spec: MonitoringSpec) -> None:
    assert parse_spec(spec.to_bytes()) == spec
    assert parse_spec(spec.to_bytes()).to_bytes() == spec.to_bytes()


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("features", 0),
        ("features", 0, "source"),
        ("features", 2),
        ("prediction",),
        ("embedding",),
        ("embedding", "source"),
    ],
    ids=str,
)
def test_unknown_fields_survive_at_every_level(raw: Raw, path: tuple[str | int, ...]) -> None:
    place: Any = raw
    for step in path:
        place = place[step]
    place["x-new"] = {"deep": [1, 2.5, None, "ü"]}
    data = canonical(raw)
    assert parse_spec(data).to_bytes() == data


def test_a_spec_is_named_by_the_first_8_bytes_of_its_hash() -> None:
    data = EVERYTHING.to_bytes()
    assert spec_hash(data) == hashlib.sha256(data).digest()[:8]


def test_a_counts_vector_has_the_bins_and_six_buckets_a_side() -> None:
    feature = float_feature(bins=4)
    assert (EXCEEDANCE, len(EXCEEDANCE_EDGES)) == (6, 5)
    assert feature.cells == 6 + 4 + 6 == len(feature.probabilities)
    assert EVERYTHING.features[2].cells == 4  # three values and "other"


def test_a_source_may_key_a_table() -> None:
    assert {float_feature().source: 1}[float_feature().source] == 1


def put(*path: str | int, value: Any) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        place: Any = raw
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


BAD: dict[str, tuple[str, Callable[[Raw], None]]] = {
    "schema newer": ("schema", put("skerry_monitoring", value=2)),
    "no rows": ("at least 1 row", put("rows", value=0)),
    "rows a fraction": ("monitoring.rows", put("rows", value=1.5)),
    "features an object": ("monitoring.features", put("features", value={})),
    "feature kind unknown": ("features[0].kind", put("features", 0, "kind", value="string")),
    "feature name a number": ("features[0].name", put("features", 0, "name", value=1)),
    "feature name twice": ("names something twice", put("features", 1, "name", value="x0")),
    "source kind unknown": ("features[0].source", put("features", 0, "source", "kind", value="file")),
    "source index negative": ("features[0].source", put("features", 0, "source", "index", value=-1)),
    "source tensor missing": (
        "source.tensor is missing",
        lambda raw: raw["features"][0]["source"].pop("tensor"),
    ),
    "image statistic unknown": (
        "features[3].source",
        put("features", 3, "source", "statistic", value="beauty"),
    ),
    "image layout unknown": ("features[3].source", put("features", 3, "source", "layout", value="CHW")),
    "tensor statistic unknown": (
        "features[0].source",
        put("features", 0, "source", value={"kind": "tensor", "tensor": "t", "statistic": "median"}),
    ),
    "edges equal": (
        "features[0].edges must ascend",
        put("features", 0, "edges", value=[0, 0.25, 0.25, 0.5, 1]),
    ),
    "edges descend": (
        "features[0].edges must ascend",
        put("features", 0, "edges", value=[1, 0.75, 0.5, 0.25, 0]),
    ),
    "one edge": ("features[0].edges must ascend", put("features", 0, "edges", value=[1])),
    "edge a text": ("features[0].edges", put("features", 0, "edges", 0, value="0")),
    "edge true": ("features[0].edges", put("features", 0, "edges", 0, value=True)),
    "edges too many": ("features[0].edges", put("features", 0, "edges", value=list(range(258)))),
    "sd zero": ("sd and iqr", put("features", 0, "sd", value=0)),
    "iqr negative": ("sd and iqr", put("features", 0, "iqr", value=-1.0)),
    "mean missing": ("features[0].mean is missing", lambda raw: raw["features"][0].pop("mean")),
    "null rate above 1": ("features[0].null_rate", put("features", 0, "null_rate", value=1.01)),
    "null rate negative": ("features[2].null_rate", put("features", 2, "null_rate", value=-0.01)),
    "probability negative": ("features[2]", put("features", 2, "probabilities", value=[0.5, 0.75, -0.25, 0])),
    "probabilities too few": ("features[0] needs 16", put("features", 0, "probabilities", value=[1.0])),
    "probabilities add up to 2": ("add up to 1", put("features", 2, "probabilities", value=[0.5] * 4)),
    "category value twice": ("values names something twice", put("features", 2, "values", value=[1, 1.0, 2])),
    "prediction a list": ("monitoring.prediction", put("prediction", value=[])),
    "prediction form unknown": ("prediction.form", put("prediction", "form", value="votes")),
    "no classes": ("prediction.classes", put("prediction", "classes", value=0)),
    "classes too many": ("prediction.classes", put("prediction", "classes", value=4097)),
    "class probabilities too few": (
        "monitoring.prediction needs 3",
        put("prediction", "probabilities", value=[1]),
    ),
    "calibration of 3 bins": ("prediction.calibration", put("prediction", "calibration", value=[0.5] * 3)),
    "embedding dimensions differ": ("monitoring.embedding", put("embedding", "dimensions", value=3)),
    "bandwidth zero": ("monitoring.embedding", put("embedding", "bandwidth", value=0)),
    "norm edges descend": ("norm_edges must ascend", put("embedding", "norm_edges", value=[1.0, 0.5])),
    "no norm edges": ("norm_edges must ascend", put("embedding", "norm_edges", value=[])),
    "norm probabilities too few": (
        "embedding needs 3",
        put("embedding", "norm_probabilities", value=[0.5, 0.5]),
    ),
    "seed negative": ("embedding.seed", put("embedding", "seed", value=-1)),
    "seed too large": ("embedding.seed", put("embedding", "seed", value=2**32)),
    "seed a text": ("embedding.seed", put("embedding", "seed", value="7")),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_field_is_refused_and_named(raw: Raw, case: str) -> None:
    place, change = BAD[case]
    change(raw)
    with pytest.raises(ManifestError) as caught:
        parse_spec(canonical(raw))
    assert place in str(caught.value)


@pytest.mark.attack
@pytest.mark.parametrize(
    "data",
    [b'{"rows":NaN}', b'{"rows":1,"rows":1}', b"[" * 5000, b"\xff", b"", b" " * ((4 << 20) + 1)],
    ids=lambda d: repr(d)[:20],
)
def test_b10_hostile_json_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_spec(data)


def test_limits_hold(raw: Raw) -> None:
    with pytest.raises(ManifestError, match="at most 3 features"):
        parse_spec(canonical(raw), Limits(features=3))
    with pytest.raises(ManifestError, match="at most 15 numbers"):
        parse_spec(canonical(raw), Limits(bins=3))


def paths(raw: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = raw.items() if isinstance(raw, dict) else enumerate(raw[:5]) if isinstance(raw, list) else ()
    return [path] * bool(path) + [inner for key, value in items for inner in paths(value, (*path, key))]


def test_any_value_in_any_place_is_read_or_refused(raw: Raw) -> None:
    values: list[Any] = [None, True, -1, 1.5, 10**19, 1e300, "", [], [None], [[]], {}, {"": None}]
    for path in paths(raw):
        for value in values:
            changed = copy.deepcopy(raw)
            put(*path, value=value)(changed)
            try:
                spec = parse_spec(canonical(changed))
            except ManifestError:
                continue
            assert parse_spec(spec.to_bytes()) == spec
