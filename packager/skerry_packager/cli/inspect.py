"""``skerry inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import console
from .options import EXISTING_FILE, json_option

if TYPE_CHECKING:
    from ..bundles import BundleDescription
    from ..inspect import ModelInspection


@click.command()
@click.argument("file", metavar="MODEL_OR_BUNDLE", type=EXISTING_FILE)
@click.option(
    "--card",
    is_flag=True,
    help="Print the model card of a bundle: evaluation, lineage and limits, in Markdown.",
)
@json_option
def inspect(file: Path, card: bool, as_json: bool) -> None:
    """Say what a model or a bundle is, without trusting it.

    A model is loaded in a disposable process with limits and without network. Of a bundle, framing and
    digests are checked, but not who signed it: that is what 'skerry verify' is for.

    \b
    Example:
      skerry inspect digits.onnx
      skerry inspect digits-1.0.0.skerry --json
      skerry inspect digits-1.0.0.skerry --card | less
    """
    from ..bundles import describe, looks_like_bundle

    if card:
        _show_card(file, as_json)
        return
    if looks_like_bundle(file):
        bundle = describe(file)
        console.print_json(bundle_as_json(bundle)) if as_json else show_bundle(bundle)
        return
    from ..inspect import inspect_model

    with console.progress(quiet=as_json) as step:
        step("loading the model in quarantine", 0, 1)
        model = inspect_model(file)
    console.print_json(_model_as_json(model)) if as_json else _show_model(model)


def _show_card(file: Path, as_json: bool) -> None:
    from ..bundles import looks_like_bundle, read_card

    if not looks_like_bundle(file):
        raise click.UsageError("--card needs a bundle: a model has no card before it is packed.")
    text = read_card(file)
    if as_json:
        console.print_json({"kind": "card", "verified": False, "card": text})
        return
    console.say(text.rstrip("\n"))
    _warn_unverified()


def _warn_unverified() -> None:
    console.warn("the signature was not checked: run 'skerry verify' with the engineer's public key")


def bundle_as_json(bundle: BundleDescription) -> dict[str, Any]:
    """The manifest as it is in the file, and what is known beside it."""
    import json

    return {
        "kind": "bundle",
        "digest": bundle.digest,
        "file_bytes": bundle.file_bytes,
        "verified": bool(bundle.signed_by),
        "key_id": bundle.signed_by or bundle.key_hint,
        "manifest": json.loads(bundle.manifest_bytes),
    }


def show_bundle(bundle: BundleDescription) -> None:
    manifest = bundle.manifest
    signer = (
        f"{bundle.signed_by}  (verified)"
        if bundle.signed_by
        else f"{bundle.key_hint or 'none'}  (NOT verified)"
    )
    console.facts(
        [
            ("bundle", f"{manifest.name} {manifest.version}, release {manifest.release}"),
            ("digest", bundle.digest),
            ("signed by", signer),
            ("file", f"{console.size(bundle.file_bytes)}, {len(manifest.blobs())} blobs"),
            ("task", manifest.task),
            (
                "inputs",
                "; ".join(f"{spec.name} {spec.datatype} {_shape(spec.shape)}" for spec in manifest.inputs),
            ),
            (
                "outputs",
                "; ".join(f"{spec.name} {spec.datatype} {_shape(spec.shape)}" for spec in manifest.outputs),
            ),
            ("labels", ", ".join(manifest.labels[:20]) + (" …" if len(manifest.labels) > 20 else "")),
            ("code", manifest.lineage.code_commit),
            ("data", manifest.lineage.data_hash),
        ]
    )
    console.say()
    console.table(
        ("variant", "engine", "size", "RAM at least", "IR", "opset", "for profiles"),
        (
            (
                variant.id, variant.engine, console.size(variant.model.size),
                console.size(variant.requires.ram_bytes or None), variant.requires.ir or None,
                variant.requires.opset or None, ", ".join(variant.profiles),
            )
            for variant in manifest.variants
        ),
        right=("size", "RAM at least", "IR", "opset"),
        whole=("variant", "engine"),
    )  # fmt: skip
    if not bundle.signed_by:
        _warn_unverified()


def _model_as_json(model: ModelInspection) -> dict[str, Any]:
    from dataclasses import asdict

    return {"kind": "model", **asdict(model)}


def _show_model(model: ModelInspection) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in sorted(model.opsets.items()))
    quantized = f"{model.quantized_operators} operators" if model.quantized_operators else "no"
    console.facts(
        [
            ("model", f"{model.file_name} ({model.format})"),
            ("digest", f"sha256:{model.sha256}"),
            ("size", console.size(model.size_bytes)),
            ("IR, opsets", f"{model.ir}; {opsets}" if opsets else ""),
            ("producer", model.producer),
            ("inputs", "; ".join(f"{info.name} {info.dtype} {_shape(info.shape)}" for info in model.inputs)),
            (
                "outputs",
                "; ".join(f"{info.name} {info.dtype} {_shape(info.shape)}" for info in model.outputs),
            ),
            ("parameters", f"{model.parameters:,} ({console.size(model.weight_bytes)})"),
            ("nodes", f"{model.nodes}, {model.subgraphs} subgraphs"),
            ("operators", ", ".join(f"{name} {count}" for name, count in model.operators.items())),
            ("quantized", quantized),
            (
                "external",
                ", ".join(
                    f"{item.location} {console.size(item.size_bytes)}" for item in model.external_files
                ),
            ),
            ("test run", model.probe),
        ]
    )


def _shape(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if size in (None, -1) else str(size) for size in shape) + "]"
