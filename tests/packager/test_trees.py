"""Tree ensembles: `tree-store`, what every packed ensemble loses, outputs declared with a wrong type."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from skl2onnx import to_onnx  # type: ignore[import-untyped] # ships no stubs
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from tests.packager.onnx_models import Array, digits

from skerry_packager.compact import compact
from skerry_packager.engine import Session
from skerry_packager.normalize import normalize
from skerry_packager.requirements import lacking
from skerry_packager.variants.candidate import Candidate, Skipped
from skerry_packager.variants.storage import fp16_store, tree_store

DOUBLE = TensorProto.DOUBLE
ENSEMBLES: dict[str, tuple[Any, Any]] = {
    "forest-of-two-classes": (RandomForestClassifier(20, random_state=0), load_breast_cancer),
    "boosting-of-two-classes": (
        GradientBoostingClassifier(n_estimators=20, random_state=0),
        load_breast_cancer,
    ),
    "boosting-of-three-classes": (GradientBoostingClassifier(n_estimators=20, random_state=0), load_wine),
    "forest-of-numbers": (RandomForestRegressor(20, random_state=0), load_diabetes),
    "boosting-of-numbers": (GradientBoostingRegressor(n_estimators=20, random_state=0), load_diabetes),
}


def export(ensemble: Any, rows: Array) -> onnx.ModelProto:
    options = {"zipmap": False} if hasattr(ensemble, "predict_proba") else None
    exported: onnx.ModelProto = to_onnx(
        ensemble, rows[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3}
    )
    return exported


def trained(name: str, dtype: type) -> tuple[onnx.ModelProto, Array]:
    ensemble, load = ENSEMBLES[name]
    rows, wanted = load(return_X_y=True)
    return export(ensemble.fit(rows, wanted), rows.astype(dtype)), rows.astype(dtype)


def feeds(rows: Array) -> list[dict[str, Array]]:
    return [{"X": row[None]} for row in rows[:150]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_tree_answers_as_it_did_at_a_third_of_the_size(name: str, dtype: type) -> None:
    model, rows = trained(name, dtype)
    normal = normalize(model, feeds(rows)[:3])
    outcome = tree_store(normal.model)
    assert isinstance(outcome, Candidate)
    small = compact(outcome.data)
    assert len(small) < (0.36 if dtype is np.float64 else 0.26) * model.ByteSize()
    before, after = Session(normal.data), Session(small)
    for feed in feeds(rows):
        for wanted, got in zip(before.run(feed), after.run(feed), strict=True):
            assert got.dtype == wanted.dtype
            # The engine's sigmoid and softmax are others behind a tree than alone.
            np.testing.assert_allclose(got, wanted, rtol=0, atol=0 if "forest" in name else 3e-7)
    assert lacking(small, {"onnxruntime": "1.20.1"}) == ["TreeEnsemble is not in onnxruntime 1.20"]
    assert lacking(small, {"onnxruntime": "1.23.2"}) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_leaves_with_a_weight_for_each_class_lose_only_what_no_engine_reads(dtype: type) -> None:
    images, labels = digits()
    model = export(
        RandomForestClassifier(20, random_state=0).fit(images[:700], labels[:700]), images.astype(dtype)
    )
    outcome = tree_store(model)
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "leaves with several weights each"
    rest = fp16_store(model)
    assert isinstance(rest, Skipped)
    assert rest.reason == "the numbers are attributes of tree ensembles: see tree-store"
    small = compact(model.SerializeToString())
    assert len(small) < 0.7 * model.ByteSize()
    feed: dict[str, Array] = {"X": images[700:].astype(dtype)}
    for wanted, got in zip(
        *(Session(data).run(feed) for data in (model.SerializeToString(), small)), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


def test_labels_that_are_no_positions_are_looked_up() -> None:
    rows, wanted = load_wine(return_X_y=True)
    ensemble = GradientBoostingClassifier(n_estimators=3, random_state=0).fit(rows, wanted * 10 + 5)
    model = export(ensemble, rows.astype(np.float32))
    outcome = tree_store(normalize(model, feeds(rows.astype(np.float32))[:2]).model)
    assert isinstance(outcome, Candidate)
    found, _ = Session(outcome.data).run({"X": rows.astype(np.float32)})
    np.testing.assert_array_equal(found, ensemble.predict(rows))


def test_other_operators_of_the_domain_keep_its_version_down() -> None:
    model, rows = trained("boosting-of-numbers", np.float32)
    model.graph.node.append(
        onnx.helper.make_node(
            "LabelEncoder",
            ["variable"],
            ["code"],
            domain="ai.onnx.ml",
            keys_floats=[1.0],
            values_floats=[2.0],
        )
    )
    next(entry for entry in model.opset_import if entry.domain == "ai.onnx.ml").version = 2
    model.graph.output.append(onnx.helper.make_tensor_value_info("code", TensorProto.FLOAT, [None, 1]))
    outcome = tree_store(normalize(model, feeds(rows)[:2]).model)
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "the version of ai.onnx.ml cannot rise: LabelEncoder"


def test_scores_declared_as_doubles_that_are_floats_are_declared_anew() -> None:
    model, rows = trained("boosting-of-two-classes", np.float64)
    assert model.graph.output[1].type.tensor_type.elem_type == DOUBLE
    normal = normalize(model, feeds(rows)[:2])
    assert normal.notes[0] == "output 'probabilities' gives float numbers, other than the file declares"
    assert Session(normal.data).run(feeds(rows)[0])[1].dtype == np.float32
