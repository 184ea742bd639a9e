"""The model card: readable by people and by the Hub, made from the manifest alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.builders import BundleBuilder

from skerry_contract.manifest import Lineage, Manifest
from skerry_packager.card import render_card, yaml_lines

JUDGED = {
    "split": "held-out", "metric": "accuracy", "samples": 180, "reference": 0.97, "candidate": 0.965,
    "drop": 0.005, "drop_bound": 0.008,
}  # fmt: skip


@pytest.fixture
def manifest(builder: BundleBuilder) -> Manifest:
    made = builder.manifest()
    judged = tuple(replace(variant, evaluation={"held_out": JUDGED}) for variant in made.variants)
    lineage = Lineage(
        data_hash="sha256:aa",
        data_splits={"held-out": {"rows": 180, "sha256": "bb"}},
        code_commit="c0ffee",
        hyperparameters={"hidden": 64, "note": "a | b"},
        unknown={"license": "apache-2.0", "dataset": "digits: real ones", "description": "Reads *digits*."},
    )
    tried = [{"name": "qdq-u8s8", "verdict": "accuracy", "size_bytes": 9, "drop": 0.2}]
    return replace(made, variants=judged, lineage=lineage, evaluation={"tried": tried})


def read_yaml(text: str) -> Any:
    """By a reader that is not ours."""
    return pytest.importorskip("yaml").safe_load(text)


def front_matter(card: bytes) -> Any:
    head, _, _ = card.decode().removeprefix("---\n").partition("\n---\n")
    return read_yaml(head)


def test_the_front_matter_is_what_the_hub_reads(manifest: Manifest) -> None:
    metadata = front_matter(render_card(manifest))
    assert (metadata["license"], metadata["library_name"]) == ("apache-2.0", "skerry")
    assert metadata["tags"] == ["edge", "onnx", "classification"]
    (index,) = metadata["model-index"]
    assert index["name"] == "digits-1.0.0"
    result = index["results"][0]
    assert result["task"] == {"type": "classification", "name": "Classification"}
    assert result["dataset"] == {
        "name": "digits: real ones",
        "type": "private",
        "split": "held-out",
        "revision": "bb",
    }
    assert result["metrics"][0]["value"] == 0.965
    assert result["metrics"][0]["args"] == {
        "variant": "fp32",
        "samples": 180,
        "drop": 0.005,
        "drop_bound": 0.008,
    }


def test_the_page_shows_the_evidence(manifest: Manifest) -> None:
    page = render_card(manifest).decode()
    assert "| fp32 | held-out | accuracy | 180 | 0.97 | 0.965 | 0.005 | 0.008 |" in page
    assert "| qdq-u8s8 | accuracy | 9 | 0.2 |" in page
    assert "| Code commit | c0ffee |" in page
    assert "| Training run | not given |" in page


def test_a_bound_of_zero_comes_with_the_exact_one(manifest: Manifest) -> None:
    same = {**JUDGED, "candidate": 0.97, "drop": 0.0, "drop_bound": 0.0, "exact_bound": 0.0165}
    clean = replace(
        manifest, variants=tuple(replace(v, evaluation={"held_out": same}) for v in manifest.variants)
    )
    page = render_card(clean).decode()
    assert "| 0 | 0; no disagreement in 180 rows (exact bound 1.7%) |" in page
    assert "gives a bound of 0" in page
    assert "gives a bound of 0" not in render_card(manifest).decode()


def test_text_of_others_stays_text(manifest: Manifest) -> None:
    hostile = replace(manifest, labels=("<script>", "a|b\n# Title", "[x](http://y)"))
    page = render_card(hostile).decode()
    assert "<script>" not in page
    assert "\n# Title" not in page
    assert "[x](" not in page
    assert r"a \| b" in page


def with_lineage(manifest: Manifest, **unknown: str) -> Manifest:
    return replace(manifest, lineage=replace(manifest.lineage, unknown=unknown))


def test_names_of_the_hub_are_linked_and_others_are_only_told(manifest: Manifest) -> None:
    told = with_lineage(manifest, base_model="google/magika", dataset="ylecun/mnist", language="en, de")
    metadata = front_matter(render_card(told))
    assert metadata["base_model"] == "google/magika"
    assert metadata["base_model_relation"] == "quantized"
    assert (metadata["datasets"], metadata["language"]) == (["ylecun/mnist"], ["en", "de"])
    assert metadata["metrics"] == ["accuracy"]
    elsewhere = with_lineage(manifest, base_model="our own", dataset="a folder")
    assert not {"base_model", "datasets"} & set(front_matter(render_card(elsewhere)))
    assert "| Base model | our own |" in render_card(elsewhere).decode()


@pytest.mark.parametrize(
    ("license_", "front"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("ACME internal", {"license": "other", "license_name": "ACME internal"}),
        ("", {}),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_other(
    manifest: Manifest, license_: str, front: dict[str, str]
) -> None:
    metadata = front_matter(render_card(with_lineage(manifest, license=license_)))
    assert {key: value for key, value in metadata.items() if key.startswith("license")} == front


def test_the_pipeline_is_said_only_where_it_follows(manifest: Manifest) -> None:
    assert "pipeline_tag" not in front_matter(render_card(manifest)), "a vector may be anything"
    image = replace(manifest.inputs[0], shape=(-1, 3, 32, 32))
    pictures = front_matter(render_card(replace(manifest, inputs=(image,))))
    assert pictures["pipeline_tag"] == "image-classification"
    assert pictures["model-index"][0]["results"][0]["task"]["type"] == "image-classification"
    told = front_matter(render_card(with_lineage(manifest, pipeline_tag="audio-classification")))
    assert told["pipeline_tag"] == "audio-classification"


def test_what_nobody_knows_is_said_plainly(manifest: Manifest) -> None:
    bare = replace(manifest, lineage=Lineage(), evaluation={"metric": "cosine"})
    page = render_card(bare).decode()
    for unknown in (
        "whoever packed the model did not say", "which data it was trained on", "which code trained it",
        "under which licence", "how often it is right", "limits of the model itself",
    ):  # fmt: skip
        assert f"Not known: {unknown}" in page
    told = with_lineage(manifest, intended_use="Doors.", limitations="Blind at night.", license="mit")
    page = render_card(replace(told, evaluation={"metric": "accuracy"})).decode()
    assert "## Intended use\n\nDoors." in page
    assert "## Limits\n\nBlind at night." in page
    assert page.count("Not known:") == 1, "only that groups were not told apart"


def test_a_figure_that_is_not_finite_is_no_result(manifest: Manifest) -> None:
    lost = {**JUDGED, "candidate": None, "drop": None, "drop_bound": None}
    spoiled = replace(
        manifest, variants=tuple(replace(item, evaluation={"held_out": lost}) for item in manifest.variants)
    )
    assert "model-index" not in front_matter(render_card(spoiled))


def test_serving_learns_how_the_inputs_were_prepared(manifest: Manifest) -> None:
    page = render_card(replace(manifest, preprocessing={"kind": "image", "scale": 0.5})).decode()
    assert "| kind | image |" in page
    assert "| scale | 0.5 |" in page


def test_it_is_the_same_every_time(manifest: Manifest) -> None:
    assert render_card(manifest) == render_card(manifest)


def test_a_manifest_without_evidence_has_a_card_too(builder: BundleBuilder) -> None:
    card = render_card(builder.manifest())
    assert "model-index" not in front_matter(card)
    assert b"## Evaluation" not in card


@pytest.mark.parametrize(
    "value",
    [
        "",
        "no",
        "Yes",
        "null",
        "1.0",
        "1e3",
        "- a",
        "a: b",
        "#x",
        "'",
        '"',
        "a\nb",
        "é✓",
        "true",
        "~",
        "a,b",
        "0x1f",
        " x ",
        "2024-01-01",
    ],
)
def test_scalars_survive_yaml(value: str) -> None:
    tree = {
        value or "k": value,
        "list": [value, 1, 0.5, True, None],
        "deep": [{"a": value, "b": {"c": [value]}}],
        "e": [],
        "f": {},
    }
    assert read_yaml("\n".join(yaml_lines(tree))) == tree
