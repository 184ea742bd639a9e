"""ONNX: normalized, then in all its variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from .. import graphs
from ..compact import compact
from ..engine import Feed
from ..inspect import ModelInspection
from ..memory import memory_bounds
from ..modelfile import load_approved
from ..normalize import normalize
from ..requirements import is_ort
from ..results import Target, VariantResult
from ..variants.candidate import Job, Outcome
from ..variants.mapped import mapped, versions_of
from ..variants.onnx import VARIANT_NAMES, generate
from . import Facts, Prepared


class OnnxFormat:
    """See `skerry_packager.formats.ModelFormat`."""

    engine = "onnx"
    variant_names: Sequence[str] = VARIANT_NAMES

    def prepare(
        self, path: Path, inspection: ModelInspection, samples: Sequence[Feed], targets: Sequence[Target]
    ) -> Prepared:
        normalized = normalize(
            load_approved(path, inspection),
            samples,
            max_ir=min((target.max_ir for target in targets if target.max_ir), default=0),
            max_opset=min((target.max_opset for target in targets if target.max_opset), default=0),
        )
        return Prepared(normalized.data, normalized.notes)

    def generate(self, job: Job) -> Iterator[tuple[str, Callable[[], Outcome]]]:
        return generate(onnx.load_model_from_string(job.source), job)

    def mapped(self, parent: VariantResult) -> Outcome | None:
        return mapped(parent)

    def finish(self, data: bytes) -> bytes:
        return data if is_ort(data) else compact(data)

    def facts(self, data: bytes) -> Facts:
        if is_ort(data):
            return Facts(*versions_of(data))
        model = onnx.load_model_from_string(data)
        return Facts(model.ir_version, graphs.opset_of(model))

    def memory_bounds(
        self, data: bytes, feed: Feed, sizes: Mapping[str, int] | None = None
    ) -> tuple[int, int]:
        return memory_bounds(onnx.load_model_from_string(data), feed, sizes)


FORMAT = OnnxFormat()
