"""The manifest: strict where it is known, untouched where it is not (``docs/spec/bundle-v1.md``)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import BundleBuilder

from skerry_contract.digests import digest_of, parse_digest, prefix8, short
from skerry_contract.errors import InputError, ManifestError
from skerry_contract.limits import Limits
from skerry_contract.manifest import Manifest, bundle_digest, parse_manifest
from skerry_contract.strict_json import canonical

Raw = dict[str, Any]
OTHER = {"digest": "sha256:" + "e" * 64, "size": 5}
KNOWN_OBJECTS = (
    (),
    ("inputs", 0),
    ("outputs", 0),
    ("variants", 0),
    ("variants", 1),
    ("variants", 0, "model"),
    ("variants", 0, "golden_outputs"),
    ("variants", 0, "tolerances", "scores"),
    ("variants", 0, "requires"),
    ("golden_inputs",),
    ("monitoring",),
    ("budgets",),
    ("lineage",),
    ("model_card",),
)
"""Every object of a manifest that has a schema of its own."""
FREE_OBJECTS = (
    ("preprocessing",),
    ("postprocessing",),
    ("evaluation",),
    ("lineage", "data_splits"),
    ("lineage", "metrics"),
    ("lineage", "hyperparameters"),
    ("lineage", "environment"),
    ("variants", 0, "recipe"),
    ("variants", 0, "evaluation"),
)
"""Objects whose content this version does not prescribe."""


@pytest.fixture
def raw(builder: BundleBuilder) -> Raw:
    builder.changes = {"model_card": builder.add(b"# Digits\n")}
    value: Raw = json.loads(builder.manifest().to_bytes())
    return value


def at(raw: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        raw = raw[step]
    return raw


def read(raw: Any) -> Manifest:
    return parse_manifest(canonical(raw))


# --- round trip ---------------------------------------------------------------------------------------------


def test_reading_then_writing_changes_no_byte(builder: BundleBuilder) -> None:
    data = builder.manifest().to_bytes()
    assert parse_manifest(data).to_bytes() == data
    assert parse_manifest(data) == builder.manifest()


@pytest.mark.parametrize("path", KNOWN_OBJECTS + FREE_OBJECTS, ids=str)
def test_unknown_fields_survive_at_every_level(raw: Raw, path: tuple[str | int, ...]) -> None:
    at(raw, path)["x-new"] = {"deep": [1, 2.5, None, "ü", {"deeper": True}]}
    data = canonical(raw)
    assert parse_manifest(data).to_bytes() == data


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1),
        st.integers() | st.text(st.characters(codec="utf-8")),
        max_size=5,
    )
)
def test_any_unknown_fields_survive(fields: Raw) -> None:
    raw: Raw = json.loads(BundleBuilder().manifest().to_bytes())
    data = canonical(
        {
            "x": {
                key: value
                for key, value in fields.items()
                if not isinstance(value, int) or abs(value) < 10**18
            },
            **raw,
        }
    )
    assert parse_manifest(data).to_bytes() == data


def test_a_manifest_without_optional_fields_has_their_defaults(raw: Raw) -> None:
    needed = (
        "skerry_manifest",
        "name",
        "version",
        "release",
        "inputs",
        "outputs",
        "variants",
        "golden_inputs",
        "monitoring",
    )
    minimal = {key: raw[key] for key in needed}
    minimal["variants"] = [
        {key: raw["variants"][0][key] for key in ("id", "engine", "model", "golden_outputs", "tolerances")}
    ]
    manifest = read(minimal)
    assert (manifest.security_floor, manifest.task, manifest.labels, manifest.model_card) == (
        0,
        "other",
        (),
        None,
    )
    assert (manifest.budgets.ram_bytes, manifest.variants[0].requires.architectures) == (0, ())


# --- identity and blobs -------------------------------------------------------------------------------------


def test_the_identity_is_the_digest_of_the_exact_bytes(raw: Raw) -> None:
    compact, spaced = canonical(raw), json.dumps(raw).encode()
    assert parse_manifest(compact) == parse_manifest(spaced)
    assert bundle_digest(compact) == digest_of(compact) != bundle_digest(spaced)
    assert prefix8(digest_of(compact)).hex() == short(digest_of(compact), 16)


def test_blobs_are_distinct_and_ordered_by_digest(raw: Raw) -> None:
    raw["variants"][1]["model"] = raw["variants"][0]["model"]
    digests = [ref.digest for ref in read(raw).blobs()]
    assert digests == sorted(set(digests))
    assert len(digests) == 5  # one model, golden inputs and outputs, monitoring, model card


def test_a_device_downloads_only_its_variant(raw: Raw) -> None:
    manifest = read(raw)
    fp32, int8 = manifest.variants
    wanted = {ref.digest for ref in manifest.blobs_for(fp32)}
    assert fp32.model.digest in wanted
    assert int8.model.digest not in wanted
    assert manifest.model_card is not None
    assert manifest.model_card.digest not in wanted
    assert manifest.variant("int8") is int8


def test_an_unknown_variant_is_answered_with_the_known_ones(raw: Raw) -> None:
    with pytest.raises(InputError, match="no variant 'fp8'") as caught:
        read(raw).variant("fp8")
    assert "fp32, int8" in caught.value.hint


# --- every bad field is refused and named -------------------------------------------------------------------


def put(*path: str | int, value: Any) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        at(raw, path[:-1])[path[-1]] = value

    return change


BAD: dict[str, tuple[str, Callable[[Raw], None]]] = {
    "schema is newer": ("manifest schema 2", put("skerry_manifest", value=2)),
    "schema is true": ("manifest.skerry_manifest", put("skerry_manifest", value=True)),
    "name with a slash": ("manifest.name", put("name", value="a/b")),
    "name climbs": ("manifest.name", put("name", value="../etc")),
    "name in capitals": ("manifest.name", put("name", value="Digits")),
    "name with a line end": ("manifest.name", put("name", value="digits\n")),
    "name empty": ("manifest.name", put("name", value="")),
    "name too long": ("manifest.name", put("name", value="a" * 65)),
    "name ends in a dot": ("manifest.name", put("name", value="digits.")),
    "version of two parts": ("manifest.version", put("version", value="1.0")),
    "version with a leading zero": ("manifest.version", put("version", value="1.02.0")),
    "version climbs": ("manifest.version", put("version", value="1.0.0-/../x")),
    "version is a number": ("manifest.version", put("version", value=1.0)),
    "release zero": ("manifest.release", put("release", value=0)),
    "release too large": ("manifest.release", put("release", value=2**63)),
    "release is a text": ("manifest.release", put("release", value="1")),
    "floor negative": ("manifest.security_floor", put("security_floor", value=-1)),
    "floor above the release": ("manifest.security_floor", put("security_floor", value=2)),
    "task unknown": ("manifest.task", put("task", value="guessing")),
    "no inputs": ("at least one input", put("inputs", value=[])),
    "no outputs": ("at least one input", put("outputs", value=[])),
    "no variants": ("at least one input", put("variants", value=[])),
    "inputs is an object": ("manifest.inputs", put("inputs", value={})),
    "input is a text": ("manifest.inputs[0]", put("inputs", 0, value="image")),
    "input without name": ("manifest.inputs[0].name", put("inputs", 0, "name", value="")),
    "input datatype unknown": ("manifest.inputs[0].datatype", put("inputs", 0, "datatype", value="FP8")),
    "input shape below -1": ("manifest.inputs[0].shape", put("inputs", 0, "shape", value=[-2])),
    "input shape is a fraction": ("manifest.inputs[0].shape", put("inputs", 0, "shape", value=[1.0])),
    "input shape is true": ("manifest.inputs[0].shape", put("inputs", 0, "shape", value=[True])),
    "input shape of 17 sizes": ("manifest.inputs[0].shape", put("inputs", 0, "shape", value=[1] * 17)),
    "labels of numbers": ("manifest.labels", put("labels", value=[0, 1])),
    "label too long": ("manifest.labels", put("labels", value=["x" * 257])),
    "variant id climbs": ("manifest.variants[0].id", put("variants", 0, "id", value="../fp32")),
    "variant engine unknown": ("manifest.variants[0].engine", put("variants", 0, "engine", value="pickle")),
    "variant without tolerance": (
        "no tolerance for output 'scores'",
        put("variants", 0, "tolerances", value={}),
    ),
    "tolerance negative": (
        "tolerances.scores.atol",
        put("variants", 0, "tolerances", "scores", "atol", value=-1e-9),
    ),
    "tolerance huge": (
        "tolerances.scores.rtol",
        put("variants", 0, "tolerances", "scores", "rtol", value=1e300),
    ),
    "tolerance top1 is 1": (
        "tolerances.scores.top1",
        put("variants", 0, "tolerances", "scores", "top1", value=1),
    ),
    "architectures is a text": (
        "requires.architectures",
        put("variants", 0, "requires", "architectures", value="all"),
    ),
    "ir negative": ("requires.ir", put("variants", 0, "requires", "ir", value=-1)),
    "opset is a text": ("requires.opset", put("variants", 0, "requires", "opset", value="17")),
    "requires ram negative": ("requires.ram_bytes", put("variants", 0, "requires", "ram_bytes", value=-1)),
    "model digest of another algorithm": (
        "variants[0].model",
        put("variants", 0, "model", "digest", value="md5:" + "0" * 32),
    ),
    "model digest in capitals": (
        "variants[0].model",
        put("variants", 0, "model", "digest", value="sha256:" + "A" * 64),
    ),
    "model digest climbs": (
        "variants[0].model",
        put("variants", 0, "model", "digest", value="sha256:../../etc/passwd"),
    ),
    "model size negative": ("variants[0].model.size", put("variants", 0, "model", "size", value=-1)),
    "model size over 2 GiB": ("variants[0].model.size", put("variants", 0, "model", "size", value=2**31 + 1)),
    "golden outputs missing": (
        "golden_outputs is missing",
        lambda raw: raw["variants"][1].pop("golden_outputs"),
    ),
    "golden inputs is a digest": ("manifest.golden_inputs", put("golden_inputs", value="sha256:" + "0" * 64)),
    "monitoring missing": ("manifest.monitoring is missing", lambda raw: raw.pop("monitoring")),
    "one blob with two sizes": ("two sizes", put("variants", 0, "golden_outputs", "size", value=1)),
    "budget negative": ("manifest.budgets.load_ms", put("budgets", "load_ms", value=-1)),
    "budget size is a fraction": ("manifest.budgets.size_bytes", put("budgets", "size_bytes", value=0.5)),
    "preprocessing is a list": ("manifest.preprocessing", put("preprocessing", value=[])),
    "lineage is null": ("manifest.lineage", put("lineage", value=None)),
    "lineage metrics is a text": ("manifest.lineage.metrics", put("lineage", "metrics", value="99%")),
    "model card is null": ("manifest.model_card", put("model_card", value=None)),
    "parents are names": ("manifest.parents", put("parents", value=["digits 0.9.0"])),
    "device classes of numbers": ("manifest.device_classes", put("device_classes", value=[4])),
    "profiles too many": ("variants[0].profiles", put("variants", 0, "profiles", value=["x"] * 65)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_field_is_refused_and_named(raw: Raw, case: str) -> None:
    place, change = BAD[case]
    change(raw)
    with pytest.raises(ManifestError) as caught:
        read(raw)
    assert place in str(caught.value)


@pytest.mark.parametrize(
    ("key", "name"),
    [("inputs", "image"), ("outputs", "scores"), ("variants", "fp32")],
    ids=["inputs", "outputs", "variants"],
)
def test_a_name_may_not_occur_twice(raw: Raw, key: str, name: str) -> None:
    raw[key].append(copy.deepcopy(raw[key][0]))
    with pytest.raises(ManifestError, match=f"manifest.{key} names something twice"):
        read(raw)


@pytest.mark.parametrize("value", [None, [], "manifest", 1, True])
def test_a_manifest_is_an_object(value: object) -> None:
    with pytest.raises(ManifestError, match="manifest must be an object"):
        read(value)


def test_limits_hold_at_every_blob(raw: Raw) -> None:
    for path in [
        ("golden_inputs",),
        ("monitoring",),
        ("model_card",),
        ("variants", 1, "model"),
        ("variants", 1, "golden_outputs"),
    ]:
        tight = Limits(blob_bytes=at(raw, path)["size"] - 1)
        with pytest.raises(ManifestError, match="size is"):
            parse_manifest(canonical(raw), tight)
    with pytest.raises(ManifestError, match="6 blobs are listed; at most 5"):
        parse_manifest(canonical(raw), Limits(blobs=5))
    with pytest.raises(ManifestError, match=r"manifest\.variants has 2 entries"):
        parse_manifest(canonical(raw), Limits(variants=1))
    with pytest.raises(ManifestError, match=r"manifest\.inputs has 1 entries"):
        parse_manifest(canonical(raw), Limits(tensors=0))
    with pytest.raises(ManifestError, match="at most 100 are accepted"):
        parse_manifest(canonical(raw), Limits(manifest_bytes=100))


def leaves(raw: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value."""
    for key, value in (
        raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    ):
        yield (*path, key)
        yield from leaves(value, (*path, key))


def test_any_value_in_any_place_is_read_or_refused(raw: Raw) -> None:
    for path in list(leaves(raw)):
        for value in (None, True, -1, 1.5, 10**19, "", "\0", [], [None], {}, {"": None}, OTHER):
            changed = copy.deepcopy(raw)
            put(*path, value=value)(changed)
            try:
                manifest = read(changed)
            except ManifestError:
                continue
            assert parse_manifest(manifest.to_bytes()) == manifest


def test_a_missing_field_is_refused_or_has_a_default(raw: Raw) -> None:
    for path in list(leaves(raw)):
        changed = copy.deepcopy(raw)
        del at(changed, path[:-1])[path[-1]]
        try:
            manifest = read(changed)
        except ManifestError:
            continue
        assert parse_manifest(manifest.to_bytes()) == manifest


# --- digests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "sha256:", "0" * 64, "sha256:" + "0" * 63, "sha256:" + "0" * 64 + "\n", "SHA256:" + "0" * 64]
)
def test_a_digest_has_one_form(text: str) -> None:
    with pytest.raises(InputError, match="is not a digest"):
        parse_digest(text)
