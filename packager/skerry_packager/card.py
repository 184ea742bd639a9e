"""The model card: the evidence of a manifest as a page for people, in Hugging Face's format.

A README in Markdown with YAML front matter and a ``model-index``
(https://huggingface.co/docs/hub/model-cards). It is made from the manifest alone, so the same manifest
gives the same card, and nothing in it is claimed that the manifest does not hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from skerry_contract.manifest import Manifest, Variant

from .results import no_disagreement

_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9 _./-]*[A-Za-z0-9]")
_YAML_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def render_card(manifest: Manifest) -> bytes:
    """The card of a manifest that has none yet."""
    sections = [
        _summary(manifest),
        _tensors(manifest),
        _variants(manifest),
        _evaluation(manifest),
        _lineage(manifest),
        _limits(manifest),
    ]
    front = "\n".join(yaml_lines(_front_matter(manifest)))
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{front}\n---\n\n{body}\n".encode()


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    extra = manifest.lineage.unknown
    metadata: dict[str, Any] = {}
    if "license" in extra:
        metadata["license"] = extra["license"]
    metadata["library_name"] = "skerry"
    metadata["tags"] = ["edge", *sorted({variant.engine for variant in manifest.variants}), manifest.task]
    results = list(_results(manifest))
    if results:
        metadata["model-index"] = [{"name": f"{manifest.name}-{manifest.version}", "results": results}]
    return metadata


def _results(manifest: Manifest) -> Iterable[dict[str, Any]]:
    """One entry of the model-index for every variant that was judged on held-out data."""
    dataset = {
        "name": str(manifest.lineage.unknown.get("dataset", "held-out evaluation data")),
        "type": "private",
        "split": "held-out",
        "revision": _digest_of_split(manifest),
    }
    for variant in manifest.variants:
        judged = variant.evaluation.get("held_out") or variant.evaluation.get("search")
        if not judged:
            continue
        metric = {
            "name": f"{judged['metric']} ({variant.id})",
            "type": judged["metric"],
            "value": judged["candidate"],
            "args": {"variant": variant.id, "samples": judged["samples"], "drop": judged["drop"]},
        }
        yield {
            "task": {"type": manifest.task, "name": manifest.task.capitalize()},
            "dataset": {**dataset, "split": judged["split"]},
            "metrics": [metric],
        }


def _digest_of_split(manifest: Manifest) -> str:
    split = manifest.lineage.data_splits.get("held-out")
    return str(split.get("sha256", "")) if isinstance(split, dict) else ""


def _summary(manifest: Manifest) -> str:
    about = str(manifest.lineage.unknown.get("description", ""))
    lines = [
        f"# {_text(manifest.name)} {_text(manifest.version)}",
        *([_text(about)] if about else []),
        _table(
            ("", ""),
            [
                ("Task", manifest.task),
                ("Release", manifest.release),
                ("Variants", len(manifest.variants)),
                ("Device profiles", ", ".join(_profiles(manifest)) or "none named"),
                ("Classes", ", ".join(manifest.labels[:50]) + (" …" if len(manifest.labels) > 50 else "")),
            ],
        ),
    ]
    return "\n\n".join(lines)


def _tensors(manifest: Manifest) -> str:
    rows = [("input", spec) for spec in manifest.inputs] + [("output", spec) for spec in manifest.outputs]
    return "## Inputs and outputs\n\n" + _table(
        ("", "name", "datatype", "shape"),
        [
            (
                kind,
                spec.name,
                spec.datatype,
                " x ".join("any" if size < 0 else str(size) for size in spec.shape),
            )
            for kind, spec in rows
        ],
    )


def _variants(manifest: Manifest) -> str:
    return "## Variants\n\nBest first; a device takes the first one that it can run.\n\n" + _table(
        ("variant", "engine", "bytes", "predicted RAM, bytes", "IR", "opset", "for profiles"),
        [
            (
                variant.id,
                variant.engine,
                variant.model.size,
                variant.requires.ram_bytes or "",
                variant.requires.ir or "",
                variant.requires.opset or "",
                ", ".join(variant.profiles),
            )
            for variant in manifest.variants
        ],
    )


def _evaluation(manifest: Manifest) -> str:
    rows = [row for variant in manifest.variants for row in _judgements(variant)]
    if not rows:
        return ""
    tried = manifest.evaluation.get("tried", [])
    text = "## Evaluation\n\nEvery variant is compared with the original in fp32 on the same rows.\n\n"
    text += _table(
        ("variant", "split", "metric", "rows", "original", "variant", "loss", "95% bound of the loss"), rows
    )
    if any("exact bound" in str(row[-1]) for row in rows):
        text += (
            "\n\nWhere no row disagrees, the bootstrap, which the choice is made by, gives a bound of 0. The "
            "exact bound (Clopper and Pearson) says how often the variant may still disagree on other rows "
            "like these. A disagreement is a row that only one of the two gets right or, without labels, "
            "another class."
        )
    if tried:
        text += "\n\nAll variants that were tried:\n\n" + _table(
            ("variant", "verdict", "bytes", "loss"),
            [
                (item["name"], item["verdict"], item.get("size_bytes") or "", _figure(item.get("drop")))
                for item in tried
            ],
        )
    return text


def _judgements(variant: Variant) -> Iterable[Sequence[object]]:
    for split in ("search", "held_out"):
        judged = variant.evaluation.get(split)
        if judged:
            figures = [_figure(judged[name]) for name in ("reference", "candidate", "drop", "drop_bound")]
            if judged.get("exact_bound") is not None:
                figures[-1] += f"; {no_disagreement(judged['samples'], judged['exact_bound'])}"
            yield (variant.id, judged["split"], judged["metric"], judged["samples"], *figures)


def _lineage(manifest: Manifest) -> str:
    lineage = manifest.lineage
    rows: list[Sequence[object]] = [
        ("Source model", lineage.source_model),
        ("Code commit", lineage.code_commit or "not given"),
        ("Training data hash", lineage.data_hash or "not given"),
        ("Training run", lineage.tracking_uri or "not given"),
    ]
    for title, values in (
        ("Split", lineage.data_splits),
        ("Hyperparameter", lineage.hyperparameters),
        ("Training metric", lineage.metrics),
        ("Environment", lineage.environment),
    ):
        rows += [(f"{title}: {name}", _compact(value)) for name, value in sorted(values.items())]
    return "## Lineage\n\n" + _table(("", ""), rows)


def _limits(manifest: Manifest) -> str:
    budgets = manifest.budgets
    rows = [
        ("RAM, bytes", budgets.ram_bytes),
        ("Latency p95, µs", budgets.latency_p95_us),
        ("Load, ms", budgets.load_ms),
        ("Size, bytes", budgets.size_bytes),
    ]
    return (
        "## Limits\n\nBudgets that the device's self-test and probation hold the model to:\n\n"
        + _table(("", "at most"), [(name, value or "no limit") for name, value in rows])
        + "\n\nThe figures above are of the evaluation data named there, and say nothing about other data. "
        "RAM is predicted from the graph; latency is measured by each device before it uses the model."
    )


def _profiles(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(profile for variant in manifest.variants for profile in variant.profiles))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _text(value: object) -> str:
    """One line of Markdown that means itself."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", line)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def yaml_lines(value: Mapping[str, Any], indent: int = 0) -> list[str]:
    """A tree of mappings, lists and scalars as block YAML.

    >>> yaml_lines({"tags": ["edge"], "license": "no", "a": [{"b": 1, "c": {"d": 0.5}}]})
    ['tags:', '- edge', 'license: "no"', 'a:', '- b: 1', '  c:', '    d: 0.5']
    """
    lines: list[str] = []
    pad = " " * indent
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{pad}{_scalar(key)}:", *yaml_lines(item, indent + 2)]
        elif isinstance(item, list) and item:
            lines.append(f"{pad}{_scalar(key)}:")
            for element in item:
                if isinstance(element, Mapping):
                    first, *rest = yaml_lines(element, indent + 2)
                    lines += [f"{pad}- {first.lstrip()}", *rest]
                else:
                    lines.append(f"{pad}- {_scalar(element)}")
        else:
            lines.append(f"{pad}{_scalar(key)}: {_scalar(item)}")
    return lines


def _scalar(value: Any) -> str:
    """Plain where no YAML reader can misread it; else as JSON, which is YAML too."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
