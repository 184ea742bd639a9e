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

from .results import FP32, no_disagreement

_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""``owner/name``, as the Hub names models and data sets."""
_HUB_METRICS: Final = {"auc": "roc_auc"}
"""Our metric -> its name at the Hub, where that is another."""
_LICENSES: Final = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m",
    "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0",
    "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0",
    "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql",
    "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "gemma", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "unknown", "other",
})  # fmt: skip
"""Identifiers that the Hub knows; any other licence is ``other`` with its name."""
_NOBODY_SAID: Final = "Not known: whoever packed the model did not say (`intended_use` of --lineage)."
_UNLABELLED: Final = ("top1-agreement", "cosine", "sqnr")
"""Metrics that compare with the original only."""
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9 _./-]*[A-Za-z0-9]")
_YAML_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def render_card(manifest: Manifest) -> bytes:
    """The card of a manifest that has none yet."""
    sections = [
        _summary(manifest),
        _intended_use(manifest),
        _tensors(manifest),
        _variants(manifest),
        _evaluation(manifest),
        _limits(manifest),
        _lineage(manifest),
        _notes(manifest),
    ]
    front = "\n".join(yaml_lines(_front_matter(manifest)))
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{front}\n---\n\n{body}\n".encode()


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    told = manifest.lineage.unknown
    metadata: dict[str, Any] = {}
    if license_ := str(told.get("license", "")):
        known = license_.lower() in _LICENSES
        metadata |= {"license": license_.lower()} if known else {"license": "other", "license_name": license_}
    if "language" in told:
        metadata["language"] = [part.strip() for part in str(told["language"]).split(",") if part.strip()]
    metadata["library_name"] = "skerry"
    if tag := _pipeline_tag(manifest):
        metadata["pipeline_tag"] = tag
    metadata["tags"] = ["edge", *sorted({variant.engine for variant in manifest.variants}), manifest.task]
    # The Hub links these names to its own repositories: what is no name of the Hub is only in the text.
    if _HUB_NAME.fullmatch(str(told.get("base_model", ""))):
        metadata["base_model"] = told["base_model"]
        if any(variant.id != FP32 for variant in manifest.variants):
            metadata["base_model_relation"] = "quantized"
    if _HUB_NAME.fullmatch(str(told.get("dataset", ""))):
        metadata["datasets"] = [told["dataset"]]
    results = list(_results(manifest))
    if results:
        metadata["metrics"] = sorted({result["metrics"][0]["type"] for result in results})
        metadata["model-index"] = [{"name": f"{manifest.name}-{manifest.version}", "results": results}]
    return metadata


def _pipeline_tag(manifest: Manifest) -> str:
    """As told; else what follows from the task and the only input, and nothing where that leaves a choice."""
    if told := str(manifest.lineage.unknown.get("pipeline_tag", "")):
        return told
    shapes = [spec.shape for spec in manifest.inputs]
    pictures = len(shapes) == 1 and len(shapes[0]) == 4 and {shapes[0][1], shapes[0][3]} & {1, 3}
    tags = {"classification": "image-classification", "detection": "object-detection"}
    return tags.get(manifest.task, "") if pictures else ""


def _results(manifest: Manifest) -> Iterable[dict[str, Any]]:
    """One entry of the model-index for every variant that was judged on held-out data."""
    task = _pipeline_tag(manifest) or manifest.task
    dataset = {
        "name": str(manifest.lineage.unknown.get("dataset", "held-out evaluation data")),
        "type": "private",
        "split": "held-out",
        "revision": _digest_of_split(manifest),
    }
    for variant in manifest.variants:
        judged = variant.evaluation.get("held_out") or variant.evaluation.get("search")
        if not judged or judged["candidate"] is None:
            continue
        kept = ("drop", "drop_bound", "exact_bound")
        metric = {
            "name": f"{judged['metric']} ({variant.id})",
            "type": _HUB_METRICS.get(judged["metric"], judged["metric"]),
            "value": judged["candidate"],
            "args": {
                "variant": variant.id,
                "samples": judged["samples"],
                **{name: judged[name] for name in kept if judged.get(name) is not None},
            },
        }
        yield {
            "task": {"type": task, "name": task.replace("-", " ").capitalize()},
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
    told = lineage.unknown
    rows: list[Sequence[object]] = [
        ("Source model", lineage.source_model),
        ("Base model", told.get("base_model") or "not given"),
        ("Training data", told.get("dataset") or "not given"),
        ("Licence", told.get("license") or "not given"),
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


def _intended_use(manifest: Manifest) -> str:
    told = manifest.lineage.unknown.get("intended_use")
    said = _text(told) if told else _NOBODY_SAID
    text = f"## Intended use\n\n{said}"
    profiles = _profiles(manifest)
    if profiles:
        text += f"\n\nPacked for devices of the profiles {', '.join(map(_text, profiles))}."
    if manifest.preprocessing:
        rows = [(name, _compact(value)) for name, value in sorted(manifest.preprocessing.items())]
        text += "\n\nInputs must be prepared as the evaluation data was:\n\n" + _table(("", ""), rows)
    return text


def _limits(manifest: Manifest) -> str:
    budgets = manifest.budgets
    rows = [
        ("RAM, bytes", budgets.ram_bytes),
        ("Latency p95, µs", budgets.latency_p95_us),
        ("Load, ms", budgets.load_ms),
        ("Size, bytes", budgets.size_bytes),
    ]
    told = manifest.lineage.unknown.get("limitations")
    said = f"{_text(told)}\n\n" if told else ""
    return (
        f"## Limits\n\n{said}"
        + "\n".join(f"- {line}" for line in _unknowns(manifest))
        + "\n\nBudgets that the device's self-test and probation hold the model to:\n\n"
        + _table(("", "at most"), [(name, value or "no limit") for name, value in rows])
    )


def _unknowns(manifest: Manifest) -> list[str]:
    """What nobody has measured or said: a card must not be silent about it."""
    lineage, metric = manifest.lineage, str(manifest.evaluation.get("metric", ""))
    lines = [
        "The figures above are of the evaluation data named there, and say nothing about other data.",
        "RAM is predicted from the graph; latency is not in this card: each device measures it before it "
        "uses the model.",
        "Not known: how it does on groups of people, places or conditions that the data does not tell apart.",
    ]
    if metric in _UNLABELLED:
        lines.append(
            "Not known: how often it is right. The evaluation data had no labels, so variants were only "
            "compared with the original."
        )
    if not lineage.unknown.get("limitations"):
        lines.append("Not known: limits of the model itself (`limitations` of --lineage).")
    if not lineage.data_hash:
        lines.append("Not known: which data it was trained on.")
    if not lineage.code_commit:
        lines.append("Not known: which code trained it.")
    if not lineage.unknown.get("license"):
        lines.append("Not known: under which licence it may be used.")
    return lines


def _notes(manifest: Manifest) -> str:
    notes = manifest.evaluation.get("notes") or []
    return "## Notes\n\n" + "\n".join(f"- {_text(note)}" for note in notes) if notes else ""


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
