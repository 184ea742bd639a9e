"""The specifications are true: their examples are read by the code, and they leave nothing out."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from skerry_contract import frames, messages
from skerry_contract.limits import DEFAULT_LIMITS, GIB, KIB, MIB, Limits
from skerry_contract.manifest import (
    DATATYPES,
    ENGINES,
    TASKS,
    BlobRef,
    Budgets,
    Lineage,
    Manifest,
    Requirements,
    TensorSpec,
    Tolerance,
    Variant,
    parse_manifest,
)
from skerry_contract.messages import Phase, Presence, decode, encode
from skerry_contract.monitoring import IMAGE_STATISTICS, LAYOUTS, SOURCE_KINDS, TENSOR_STATISTICS, parse_spec
from skerry_contract.signing import MEDIA_TYPE, PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE
from skerry_contract.summary import FeatureSketch, PredictionSketch, WindowSummary
from skerry_contract.summary import decode as decode_summary
from skerry_contract.topics import Down, GroupDown, Up

DOCS = Path(__file__).resolve().parents[2] / "docs"
BUNDLE, MQTT, WINDOW = (
    (DOCS / "spec" / f"{name}.md").read_text() for name in ("bundle-v1", "mqtt-v1", "window-summary-v1")
)
EXAMPLES = re.findall(r"^```(json|hex) (\S+)\n(.*?)^```$", BUNDLE + MQTT + WINDOW, re.M | re.S)
JSON = {name: text for kind, name, text in EXAMPLES if kind == "json"}
HEX = {
    name: bytes.fromhex("".join(line.split("  ")[0] for line in text.splitlines()))
    for kind, name, text in EXAMPLES
    if kind == "hex"
}
SENT = (
    "Hello", "PresenceMessage", "DesiredState", "UpdateReport", "ErrorReport", "EventBatch", "Acknowledge",
    "BlockRequest", "Command", "CommandResult",
)  # fmt: skip
"""Messages that travel by themselves; the others are parts of them."""


def mentions(text: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", text) is not None


@pytest.mark.parametrize("name", SENT)
def test_every_message_has_an_example_that_is_read_completely(name: str) -> None:
    raw = json.loads(JSON[name])
    message = decode(JSON[name].encode(), getattr(messages, name))
    assert_within(raw, json.loads(encode(message)))


def assert_within(example: object, read: object) -> None:
    """Whatever the example says arrived: no field of it is unknown or means something else."""
    if isinstance(example, dict):
        assert isinstance(read, dict)
        for key, value in example.items():
            assert key in read
            assert_within(value, read[key])
    elif isinstance(example, list):
        assert isinstance(read, list)
        assert len(example) == len(read)
        for value, other in zip(example, read, strict=True):
            assert_within(value, other)
    else:
        assert example == read


def test_every_example_is_tested() -> None:
    assert set(JSON) == {*SENT, "manifest", "monitoring-spec"}
    assert set(HEX) == {"OutboxFrame", "BlockFrame", "minimal"}


def test_the_example_of_a_manifest_is_one() -> None:
    manifest = parse_manifest(JSON["manifest"].encode())
    assert manifest.unknown == {}
    assert_within(json.loads(JSON["manifest"]), json.loads(manifest.to_bytes()))


def test_the_example_of_a_monitoring_spec_is_one() -> None:
    spec = parse_spec(JSON["monitoring-spec"].encode())
    assert spec.unknown == {}
    assert [feature.cells for feature in spec.features] == [16, 6]


def test_the_example_of_a_window_is_the_vector() -> None:
    vector = Path(__file__).resolve().parents[1] / "data" / "window-summary" / "v1" / "minimal.hex"
    assert HEX["minimal"] == bytes.fromhex(vector.read_text())
    assert decode_summary(HEX["minimal"]).rows == 0


def test_the_examples_of_frames_are_frames() -> None:
    outbox = frames.OutboxFrame.decode(HEX["OutboxFrame"])
    acknowledge = decode(JSON["Acknowledge"].encode(), messages.Acknowledge)
    assert (outbox.stream.hex(), outbox.last) == (acknowledge.stream, acknowledge.seq)
    block = frames.BlockFrame.decode(HEX["BlockFrame"])
    request = decode(JSON["BlockRequest"].encode(), messages.BlockRequest)
    assert (block.transfer, block.offset) == (request.transfer, request.offset)


def test_every_field_of_a_manifest_is_specified() -> None:
    for kind in (Manifest, Variant, BlobRef, TensorSpec, Tolerance, Requirements, Budgets, Lineage):
        for field in fields(kind):
            assert field.name == "unknown" or mentions(BUNDLE, field.name), f"{kind.__name__}.{field.name}"
    for word in (*TASKS, *ENGINES, MEDIA_TYPE, PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE):
        assert mentions(BUNDLE, word), word
    elided = {"UINT16", "UINT32", "INT16", "INT32"}
    assert all(mentions(BUNDLE, datatype) for datatype in set(DATATYPES) - elided)


def test_every_field_of_a_message_is_in_an_example() -> None:
    shown = " ".join(JSON.values())
    for kind in vars(messages).values():
        if (
            isinstance(kind, type)
            and hasattr(kind, "__dataclass_fields__")
            and kind.__module__ == messages.__name__
        ):
            for field in fields(kind):
                assert f'"{field.name}"' in shown, f"{kind.__name__}.{field.name}"
    assert messages.DESIRED_PAYLOAD_TYPE in MQTT
    for value in (*Phase, *Presence):
        assert mentions(MQTT, value), value


def test_every_channel_is_in_the_table() -> None:
    table = re.findall(r"^\| `(up|dn)/(\w+)` \|", MQTT, re.M)
    assert set(table) == {("up", channel) for channel in Up} | {("dn", channel) for channel in Down}
    assert all(mentions(MQTT, channel) for channel in GroupDown)


def test_every_field_of_a_window_is_specified() -> None:
    named = {
        field.name for kind in (WindowSummary, FeatureSketch, PredictionSketch) for field in fields(kind)
    }
    plain = {"boot", "features", "prediction", "embedding", "labels", "health", "counts", "scores", "unknown"}
    for name in named:
        assert mentions(WINDOW, name), name
    assert plain <= named
    for word in (*SOURCE_KINDS, *IMAGE_STATISTICS, *TENSOR_STATISTICS, *LAYOUTS):
        assert mentions(WINDOW, word), word


def test_the_limits_of_the_bundle_are_those_of_the_code() -> None:
    units = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "": 1}
    table = re.findall(r"^\| `(\w+)`[^|]*\| ([\d,]+) ?(\w*) \|$", BUNDLE, re.M)
    found = {name: int(number.replace(",", "")) * units[unit] for name, number, unit in table}
    elsewhere = {"message_bytes", "summary_bytes", "features", "bins"}
    assert found == {
        field.name: getattr(DEFAULT_LIMITS, field.name)
        for field in fields(Limits)
        if field.name not in elsewhere
    }
    assert f"{DEFAULT_LIMITS.message_bytes // KIB} KiB" in MQTT
    for text in (
        f"{DEFAULT_LIMITS.summary_bytes // KIB} KiB",
        f"{DEFAULT_LIMITS.features:,} features",
        f"{DEFAULT_LIMITS.classes:,} classes",
        f"{DEFAULT_LIMITS.bins + 16} elements",
    ):
        assert text in WINDOW


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_decision_is_complete_and_listed() -> None:
    folder = DOCS / "adr"
    index = (folder / "README.md").read_text()
    decisions = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    for number, path in enumerate(decisions, 1):
        text = path.read_text()
        assert path.name.startswith(f"{number:04}-")
        assert f"({path.name})" in index
        assert text.startswith(f"# {number:04} ")
        headings = re.findall(r"^## (.+)$", text, re.M)
        assert headings == ["Context", "Decision", "Rejected", "Consequences"]
